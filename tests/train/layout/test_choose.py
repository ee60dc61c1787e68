"""The automatic choices of a run on a GPU, as far as they can be tested without one. tests/gpu has the kernels."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM
from zoo.zoo import zoo_model

from hub.data.prepare import Sample
from hub.models.patches import ModelPatches, patches_of
from hub.models.structure import layers_of
from hub.testing import tiny_model_path
from hub.train.batch.collate import pack, pad
from hub.train.kernels import attention, flash4
from hub.train.kernels.attention import VarlenAttention, sample_bounds, uses_varlen
from hub.train.kernels.checkpointing import Checkpointing
from hub.train.layout.choose import choose_attention, choose_compile, choose_head
from hub.train.layout.memory_budget import Line, PassMemory, choose_max_tokens, draw_loads
from hub.train.losses.causal_lm import causal_lm_loss, model_inputs

CPU = torch.device("cpu")


def load():
    return AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.float32).train()


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    return [Sample(rng.integers(3, 512, n).astype(np.int32), np.ones(n, dtype=bool), "") for n in (30, 7, 19)]


@pytest.mark.parametrize(
    ("room", "longest", "expected"),
    [
        (1e9, 100, (16384, 0)),  # all fits: as many tokens as are of use, nothing checkpointed
        (8000 * 1000.0, 100, (7680, 0)),  # fewer tokens, rather than checkpointing
        (3100 * 1000.0, 100, (4096, 3)),  # enough tokens, and as few checkpointed layers as that needs
        (800 * 1000.0, 100, (6656, 10)),
        (200 * 1000.0, 100, (1536, 10)),  # all checkpointed, and fewer tokens
        (1000 * 1000.0, 5000, (8192, 10)),  # the longest sample has to fit
        (100 * 1000.0, 5000, None),
    ],
)
def test_checkpointing_is_avoided_before_more_tokens_are_taken(room, longest, expected):
    memory = PassMemory(Line(1000.0), Line(120.0), num_layers=10)
    found = choose_max_tokens(memory, room, longest)
    assert found == expected
    if found:
        per_token = memory.with_checkpointed(found[1]).per_token
        assert found[0] * per_token <= max(room, longest * per_token)


def test_what_does_not_grow_with_the_tokens_is_not_counted_for_each():
    line = Line.through([(1000, 5e6), (2000, 7e6)])
    assert (line.per_token, line.fixed) == (2000.0, 3e6)
    assert line.tokens(9e6) == 3000
    assert Line.through([(2000, 7e6)]) == Line(3500.0)
    assert Line.through([(1000, 8e6), (2000, 7e6)]) == Line(3500.0)  # no line that grows
    memory = PassMemory(line, Line(500.0, 1e6), num_layers=4)
    assert memory.with_checkpointed(2) == Line(1250.0, 2e6)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (0.0, (8192, 0)),  # nothing is checkpointed: two micro-batches
        (500.0, (8192, 0)),  # not worth it
        (4000.0, (12288, 4)),  # some layers are checkpointed, and one micro-batch holds all
    ],
)
def test_a_micro_batch_with_a_cost_of_its_own_is_worth_checkpointing_for(cost, expected):
    memory = PassMemory(Line(1000.0), Line(200.0), num_layers=10)
    assert choose_max_tokens(memory, 8400e3, 100, 32768, None, [12000.0, 11000.0], cost) == expected


def test_a_requested_budget_need_only_hold_what_a_step_makes_of_it():
    memory = PassMemory(Line(1000.0), Line(200.0), num_layers=10)
    assert choose_max_tokens(memory, 8192e3, 100, requested=8192) == (8192, 0)
    assert choose_max_tokens(memory, 7800e3, 100, requested=8192) == (8192, 1)
    # Four micro-batches of 7,500.
    assert choose_max_tokens(memory, 7800e3, 100, requested=8192, loads=[30000.0, 29000.0]) == (8192, 0)
    # The longest sample has to fit.
    assert choose_max_tokens(memory, 7800e3, 7900, requested=8192, loads=[30000.0]) == (8192, 1)
    assert choose_max_tokens(memory, 1600e3, 100, requested=8192) is None


def test_loads_are_those_of_the_samples():
    loads = draw_loads([100, 300], 64)
    assert len(set(loads)) > 1
    assert sum(loads) / len(loads) == pytest.approx(64 * 200, rel=0.05)
    assert draw_loads([100], 1.5) == [150.0] * len(loads)


def test_compiling_is_for_long_runs_on_a_gpu():
    gpu = torch.device("cuda")
    assert choose_compile("auto", 8 * 10**9, 1e6, gpu)[0]
    assert not choose_compile("auto", 8 * 10**9, 1e4, gpu)[0]
    assert not choose_compile("auto", 8 * 10**9, 1e9, CPU)[0]
    assert choose_compile("layers", 10, 10, gpu) == (True, "asked for")


def test_a_cpu_keeps_the_models_own_attention_and_output_layer():
    model = load()
    patches = ModelPatches(model)
    attention = choose_attention(patches, model, 512, CPU, torch.float32)
    assert (attention.packed, attention.name) == (True, "sdpa")
    assert attention.because == "variable-length attention and FlexAttention need a GPU and half precision"
    assert not choose_head(patches, model, 512, CPU, torch.float32, attention.packed)
    assert not patches.applied
    assert patches.plan() == {
        "attention": "sdpa",
        "attention_because": attention.because,
        "fused_head": False,
        "fused_head_because": "it runs on a GPU only",
    }


def reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    """What torch's kernel does, sample by sample, for a CPU, where it does not run."""
    assert max_q >= int(cu_seq_q.diff().max())
    assert window_size[1] == 0, "not causal"
    found = []
    for begin, end in pairwise(cu_seq_q.tolist()):
        q, k, v = (part[begin:end].transpose(0, 1)[None] for part in (query, key, value))
        seen = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
        if window_size[0] >= 0:
            seen &= ~seen.tril(-window_size[0] - 1)
        found.append(F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=enable_gqa)[0].transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "granite", "gpt2"])
def test_variable_length_attention_gives_the_models_own_result(family, samples, monkeypatch):
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", reference)
    options = {"sliding_window": 8} if family == "mistral" else {}
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path(family), dtype=torch.float32, **options).eval()

    def logits():
        batches = [pack(samples), pad(samples, 0), pack(samples[:1])]
        with torch.no_grad():
            outputs = [model(**model_inputs(model, batch)).logits for batch in batches]
        lengths = [len(sample) for sample in samples]
        rows = [row[:length] for row, length in zip(outputs[1], lengths, strict=True)]
        return torch.cat([outputs[0][0], *rows, outputs[2][0]])

    own = logits()
    patches = patches_of(model)
    with patches.temporarily(VarlenAttention(model)):
        assert uses_varlen(model)
        assert torch.allclose(logits(), own, atol=1e-5)
    assert not uses_varlen(model)
    patches.apply(VarlenAttention(model))
    assert uses_varlen(model)


def test_flash_attention_4_is_called_like_torchs_kernel(samples, monkeypatch):
    monkeypatch.setattr(flash4, "attend", reference)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("mistral"), dtype=torch.float32, sliding_window=8).eval()
    with torch.no_grad():
        own = model(**model_inputs(model, pack(samples))).logits
        with patches_of(model).temporarily(VarlenAttention(model, kernel=attention.flash_attention_4())):
            found = model(**model_inputs(model, pack(samples))).logits
    assert torch.allclose(found, own, atol=1e-5)


def test_its_operators_say_what_they_give_without_running():
    with FakeTensorMode():
        query = torch.empty(59, 8, 128, dtype=torch.bfloat16, requires_grad=True)
        key, value = (torch.empty(59, 2, 128, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        starts = torch.empty(4, dtype=torch.int32)
        output = flash4.attend(query.transpose(0, 1).contiguous().transpose(0, 1), key, value, starts, starts, 64, 64)
        assert (output.shape, output.dtype, output.is_contiguous()) == (query.shape, torch.bfloat16, True)
        output.sum().backward()
        assert all(part.grad.shape == part.shape for part in (query, key, value))


def test_flash_attention_4_is_not_for_a_cpu_and_says_why():
    assert flash4.problem(load().config, CPU, torch.bfloat16) in (
        "flash-attn-4 is not installed",
        "it is made for Hopper and Blackwell",
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "these have None"),
        ({"num_attention_heads": 8, "hidden_size": 512}, "these have 64"),
        ({"num_attention_heads": 8, "hidden_size": 512, "head_dim": 256}, "these have 256"),
    ],
)
def test_flash_attention_4_is_not_for_heads_that_lose_by_it(monkeypatch, config, words):
    monkeypatch.setattr(flash4, "version", lambda name: "4.0.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert flash4.problem(SimpleNamespace(**config), torch.device("cuda"), torch.bfloat16).endswith(words)


def test_a_window_that_the_kernel_does_not_know_leaves_the_model_its_own_attention(samples, monkeypatch):
    def without_windows(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, is_causal=False):
        raise AssertionError("called although the model has a window, wider than these samples")

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", without_windows)
    attention.torch_kernel.cache_clear()
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("mistral"), dtype=torch.float32, sliding_window=4096).eval()
    try:
        with (
            patches_of(model).temporarily(VarlenAttention(model)),
            pytest.raises(attention.UnsuitedError, match="sliding windows"),
        ):
            model(**model_inputs(model, pack(samples)))
    finally:
        attention.torch_kernel.cache_clear()


@pytest.mark.parametrize(("name", "options"), [("llama4_text", {}), ("phimoe", {"sliding_window": 4096})])
def test_a_window_or_chunks_that_only_a_mask_has_leave_the_model_its_own_attention(name, options, samples, monkeypatch):
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", reference)
    model = AutoModelForCausalLM.from_pretrained(zoo_model(name), dtype=torch.float32, **options).eval()
    with (
        patches_of(model).temporarily(VarlenAttention(model)),
        pytest.raises(attention.UnsuitedError, match="only a mask has"),
    ):
        model(**model_inputs(model, pack(samples)))


def test_checkpointed_layers_give_the_same_gradients_and_checkpointing_can_be_undone(samples):
    def gradients(num: int) -> dict[str, torch.Tensor]:
        model = load()
        with patches_of(model).temporarily(Checkpointing(layers_of(model)[:num])):
            causal_lm_loss(model, pack(samples)).backward()
        return {name: p.grad for name, p in model.named_parameters()}

    plain = gradients(0)
    for num in (1, 2):
        checkpointed = gradients(num)
        assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def test_a_packed_row_says_where_its_samples_are(samples):
    batch = pack(samples)
    bounds = sample_bounds(batch)
    lengths = [len(sample) for sample in samples]
    assert bounds["cu_seq_lens_q"].tolist() == [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    assert max(lengths) <= bounds["max_length_q"] < 2 * max(lengths)
