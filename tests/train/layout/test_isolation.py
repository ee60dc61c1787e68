"""Packing is used if a measurement on the model shows that it isolates samples."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from hub.data.prepare import Sample
from hub.testing import FAMILIES, tiny_model_path
from hub.train.batch.collate import pack
from hub.train.layout.isolation import can_pack

CPU = torch.device("cpu")
NOT_PACKED = {"gpt_oss"}


def load(family: str):
    attention = {"attn_implementation": "eager"} if family == "gemma2" else {}
    return AutoModelForCausalLM.from_pretrained(tiny_model_path(family), dtype=torch.float32, **attention)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_packed_only_where_a_neighbor_changes_no_logit(family):
    model = load(family)
    packed, why = can_pack(model, 512, CPU, torch.float32)
    rng = np.random.default_rng(1)
    parts = [Sample(rng.integers(3, 512, n).astype(np.int32), np.ones(n, dtype=bool), "") for n in (19, 1, 40, 7)]
    changed = [*parts[:2], Sample((parts[2].input_ids + 5) % 512, parts[2].loss_mask, ""), parts[3]]

    def logits(samples):
        batch = pack(samples)
        with torch.no_grad():
            return model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits[0]

    before, after = logits(parts), logits(changed)
    others = torch.cat([before[:20] - after[:20], before[60:] - after[60:]]).abs().max()
    if family in NOT_PACKED:
        assert not packed
        assert others > 1e-3
    else:
        assert packed, why
        # Experts multiply the tokens of all samples together, so a neighbor may change the rounding but nothing else.
        assert others == 0 or (family in {"mixtral", "deepseek_v2"} and others < 1e-5)


def test_a_model_that_ignores_positions_is_not_packed():
    model = load("llama")
    forward = model.forward
    model.forward = lambda input_ids, position_ids, use_cache: forward(input_ids=input_ids, use_cache=use_cache)
    packed, why = can_pack(model, 512, CPU, torch.float32)
    assert not packed
    assert "would see each other" in why
