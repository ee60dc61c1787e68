"""What a run does about the load-balancing loss of experts."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from zoo.zoo import zoo_model

from hub.train.setup.balancing import NO_SUCH_LOSS, load_balancing


@pytest.mark.parametrize(
    ("family", "in_config", "asked", "coefficient", "because", "problem"),
    [
        ("mixtral", False, None, 0.0, "output_router_logits is false in config.json", ""),
        ("mixtral", True, None, 0.001, "(output_router_logits), times router_aux_loss_coef 0.001", ""),
        ("mixtral", True, 0.0, 0.0, "algo.router_aux_loss_coef=0", ""),
        ("mixtral", False, 0.02, 0.02, "algo.router_aux_loss_coef=0.02", ""),
        ("deepseek_v3", True, None, 0.0, NO_SUCH_LOSS, ""),
        ("deepseek_v3", True, 0.02, 0.0, NO_SUCH_LOSS, NO_SUCH_LOSS),
        ("llama", True, 0.02, 0.0, NO_SUCH_LOSS, "the model has no experts"),
    ],
)
def test_it_is_as_the_family_trains_in_transformers_or_as_asked_for(family, in_config, asked, coefficient, because, problem):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(zoo_model(family), output_router_logits=in_config))
    found = load_balancing(model, asked)
    assert found is not None
    assert (found.coefficient, found.problem) == (coefficient, problem)
    assert because in found.because


def test_a_model_without_experts_has_none_and_says_nothing():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(zoo_model("llama")))
    assert load_balancing(model) is None
