"""Packing is used if a measurement on the model shows that no sample's log-probabilities change by it."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, masking_utils
from zoo.zoo import TEXT, zoo_model

from hub.data.prepare import Sample
from hub.models.patches import patches_of
from hub.testing import FAMILIES, tiny_model_path
from hub.train.batch.collate import pack
from hub.train.kernels.rope import use_own_rope
from hub.train.layout.isolation import Trial, can_pack
from hub.train.layout.leaks import Effects, Leak

CPU = torch.device("cpu")
NOT_PACKED = {
    "gpt_oss",
    *("opt", "opt_proj", "openai-gpt", "xglm", "biogpt"),  # learned positions, or masks that ignore position ids
    *("bloom", "mpt", "falcon_new", "falcon_alibi"),
    *("mamba", "mamba2", "falcon_mamba", "falcon_h1", "jamba", "bamba", "zamba", "zamba2", "granitemoehybrid", "nemotron_h"),
    *("recurrent_gemma", "qwen3_next", "minimax", "lfm2", "rwkv", "xlstm"),
}
if not hasattr(masking_utils, "remap_positions_for_packed_sequence"):
    NOT_PACKED.add("llama4_text")  # older versions of transformers begin chunks with the row, not with the sample
UNABLE = {"dbrx"}  # its plain forward pass raises with this config
SOME = (
    "gemma3_text",
    "gpt_neo",
    "llama4_text",
    "qwen3_moe",
    "opt",
    "openai-gpt",
    "bloom",
    "falcon_h1",
    "lfm2",
    "mamba",
    "rwkv",
)
ZOO = TEXT if os.environ.get("HUB_WHOLE_ZOO") else SOME


def load(folder):
    attention = {"attn_implementation": "eager"} if "gemma2" in folder.name else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **attention).eval()


def samples_of(lengths):
    rng = np.random.default_rng(7)
    return [Sample(rng.integers(3, 512, n).astype(np.int32), np.ones(n, dtype=bool), "") for n in lengths]


def losses(logits, sample):
    return F.cross_entropy(logits[:-1], torch.from_numpy(sample.input_ids.astype(np.int64))[1:], reduction="none")


@torch.no_grad()
def difference_by_packing(model) -> float:
    """The greatest difference of a token's loss, from one sample at a time by plain transformers."""
    samples = samples_of((31, 9, 44, 5, 70, 23))
    alone = [model(input_ids=torch.from_numpy(s.input_ids.astype(np.int64))[None], use_cache=False).logits[0] for s in samples]
    batch = pack(samples)
    packed = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits[0]
    parts = zip(packed.split([len(sample) for sample in samples]), alone, samples, strict=True)
    return max(float((losses(one, sample) - losses(other, sample)).abs().max()) for one, other, sample in parts)


@pytest.mark.parametrize("name", [*FAMILIES, *ZOO])
def test_a_model_is_packed_only_where_its_loss_is_that_of_plain_transformers(name):
    model = load(tiny_model_path(name) if name in FAMILIES else zoo_model(name))
    use_own_rope(patches_of(model), model, 70)
    packed, why = can_pack(model, 512, CPU, torch.float32)
    packed_in_half, why_in_half = can_pack(model, 512, CPU, torch.bfloat16)
    print(f"{name}: {why}; in bfloat16 {why_in_half}")
    if name in UNABLE:
        assert why.startswith("the model can't run packed samples (RuntimeError: ")
        return
    assert packed == packed_in_half == (name not in NOT_PACKED), (why, why_in_half)
    difference = difference_by_packing(model)
    assert difference < 5e-6 if packed else difference > 1e-2


def test_chunks_that_begin_with_the_row_are_found_although_they_are_longer_than_the_samples(monkeypatch):
    monkeypatch.setattr(masking_utils, "remap_positions_for_packed_sequence", lambda mask, positions: mask, raising=False)
    model = AutoModelForCausalLM.from_pretrained(zoo_model("llama4_text"), dtype=torch.float32, attention_chunk_size=8192)
    assert not can_pack(model, 512, CPU, torch.float32)[0]
    assert model.config.attention_chunk_size == 8192


def test_a_model_that_ignores_positions_is_not_packed():
    model = load(tiny_model_path("llama"))
    forward = model.forward
    model.forward = lambda input_ids, use_cache, position_ids=None: forward(input_ids=input_ids, use_cache=use_cache)
    for dtype in (torch.float32, torch.bfloat16):
        packed, why = can_pack(model, 512, CPU, dtype)
        assert not packed
        assert why.startswith("packed samples would see each other (measured leak")


def test_a_model_that_refuses_positions_is_not_packed():
    model = load(tiny_model_path("llama"))
    forward = model.forward
    model.forward = lambda input_ids, use_cache: forward(input_ids=input_ids, use_cache=use_cache)
    assert can_pack(model, 512, CPU, torch.float32)[1].startswith("the model can't run packed samples (TypeError: ")


@pytest.mark.parametrize(("name", "packed"), [("gpt_neo", False), ("gptj", True), ("gpt_bigcode", True)])
def test_a_model_whose_mask_is_a_table_is_not_packed_in_rows_longer_than_that(name, packed):
    model = load(zoo_model(name))
    assert can_pack(model, 512, CPU, torch.float32, most_tokens=512)[0]
    longer, why = can_pack(model, 512, CPU, torch.float32, most_tokens=513)
    assert longer == packed
    row = pack(samples_of((300, 300)))
    if packed:
        model(input_ids=row.input_ids, position_ids=row.position_ids)
        return
    assert "longer than the model's 512 positions, which it can't run (RuntimeError: " in why
    with pytest.raises(RuntimeError, match="must match"):
        model(input_ids=row.input_ids, position_ids=row.position_ids)


@pytest.mark.parametrize(
    ("behind", "coupling", "apart", "rounding", "passes"),
    [
        (0.0, 0.0, 0.015, 0.0, True),  # dense: rounding of another shape only
        (1e-4, 0.0, 0.015, 0.0, False),  # a leak far below the rounding, where nothing couples rows
        (0.01, 0.005, 0.015, 0.005, True),  # experts: as much as on the samples ahead
        (0.1, 0.005, 0.015, 0.005, False),
        (0.0, 0.0, 0.1, 0.03, True),  # a deep model rounds more
        (0.0, 0.0, 0.1, 0.01, False),  # wrong positions
        (0.0, 0.0, 0.3, 0.3, False),  # no rounding is that large
    ],
)
def test_in_half_precision_the_row_is_its_own_yardstick(behind, coupling, apart, rounding, passes):
    effects = Effects(behind, coupling, apart, rounding, 0, 0)
    assert (effects.changed(torch.bfloat16).passes and effects.packed(torch.bfloat16).passes) == passes
    assert not effects.packed(torch.float32).passes


def test_a_leak_must_show_in_each_order_of_the_samples(monkeypatch):
    trial = Trial(load(tiny_model_path("llama")), 512, CPU, torch.float32)
    found = [Effects(behind, 0.0, 0.0, 0.0, 0, 0) for behind in (0.3, 0.2, 1e-6)]
    monkeypatch.setattr(trial, "_effects", found.__getitem__)
    assert trial.can_pack()[0]
    found[2] = replace(found[2], behind=0.1)
    assert trial.leak() == Leak(0.1, 1e-4)


def test_experts_that_couple_samples_in_one_order_do_so_in_all(monkeypatch):
    trial = Trial(load(tiny_model_path("llama")), 512, CPU, torch.bfloat16)
    found = [Effects(0.004, 0.0, 0.0, 0.0, 0, 0), Effects(0.3, 0.002, 0.3, 0.0, 0, 0), Effects(0.3, 0.0, 0.3, 0.0, 0, 0)]
    monkeypatch.setattr(trial, "_effects", found.__getitem__)
    assert trial.leak() == Leak(0.004, 0.02)
    found[1] = replace(found[1], coupling=0.0)
    assert not trial.can_pack()[0]
