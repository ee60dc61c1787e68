"""What a run says about the load-balancing loss of experts."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from zoo.zoo import zoo_model

from hub.train.setup.balancing import load_balancing


@pytest.mark.parametrize(
    ("family", "asked", "decision", "because"),
    [
        ("mixtral", False, "none", "output_router_logits is false in config.json"),
        (
            "mixtral",
            True,
            "left out",
            "(output_router_logits, times 0.001), but it depends on which samples share a micro-batch",
        ),
        ("deepseek_v3", True, "none", "transformers has no such loss for this family"),
        ("llama", True, None, None),
    ],
)
def test_it_is_as_the_family_trains_in_transformers_or_said_to_be_left_out(family, asked, decision, because):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(zoo_model(family), output_router_logits=asked))
    found = load_balancing(model)
    assert (found and found.decision) == decision
    assert because is None or because in found.because
