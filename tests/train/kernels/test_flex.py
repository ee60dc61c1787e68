"""FlexAttention over packed rows, compared with plain attention of each sample alone. tests/gpu has the kernels themselves."""

import json
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AutoModelForCausalLM
from zoo.zoo import zoo_model

from hub.data.prepare import Sample
from hub.models.patches import ModelPatches, patches_of
from hub.models.structure import layers_of
from hub.system.answers import Answers, open_answers
from hub.train.batch.collate import pack, pad
from hub.train.kernels import compiled, flex, flex_kernel
from hub.train.kernels.attention import UnsuitedError, VarlenAttention, torch_kernel
from hub.train.kernels.checkpointing import Checkpointing
from hub.train.kernels.compiled import CompiledLayers, num_compiled
from hub.train.kernels.flex import FlexAttention
from hub.train.kernels.flex_kernel import HeadKind, attend, plain_attention
from hub.train.kernels.offload import ActivationOffload
from hub.train.kernels.seen_blocks import BLOCK, first_seen, seen_blocks
from hub.train.layout import choose
from hub.train.layout.isolation import Trial
from hub.train.layout.leaks import Leak
from hub.train.losses.causal_lm import causal_lm_loss

CPU = torch.device("cpu")

FAMILIES = {
    "gemma2": {"sliding_window": 16, "attn_logit_softcapping": 0.1},  # windows in each second layer, a cap that shows
    "gemma3_text": {"sliding_window": 16},
    "gpt_oss": {"sliding_window": 16},  # sinks, windows in each second layer
    "cohere2": {"sliding_window": 16},
    "llama4_text": {"attention_chunk_size": 16},
    "phimoe": {"sliding_window": 16},  # a window that only the mask has
    "qwen3": {},
    "deepseek_v3": {},  # values of another size than keys
}
"""Families, and options that make their windows and chunks shorter than the samples."""

EVERYDAY = ("gemma2", "gpt_oss", "llama4_text")


def load(name, dtype=torch.float32, **options):
    options = {**FAMILIES.get(name, {}), "attn_implementation": "eager", **options}
    model = AutoModelForCausalLM.from_pretrained(zoo_model(name), dtype=dtype, **options).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 and not parameter.any():
                parameter.normal_()  # sinks and biases that are all zero show nothing
    return model


def random_samples(lengths):
    chance = np.random.default_rng(0)
    return [Sample(chance.integers(3, 512, n).astype(np.int32), chance.random(n) < 0.8, "") for n in lengths]


def gradients(model, batches):
    model.zero_grad()
    for batch in batches:
        causal_lm_loss(model, batch).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def test_the_blocks_are_those_that_torch_finds_in_the_whole_matrix():
    chance = random.Random(0)
    names = ("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")
    names += ("q_num_blocks", "q_indices"), ("full_q_num_blocks", "full_q_indices")
    for _ in range(12):
        lengths = [chance.randint(1, 20) for _ in range(chance.randint(1, 5))]
        window, chunk, block = chance.choice([None, 1, 3, 7, 30]), chance.choice([None, 2, 5, 16]), chance.choice([4, 8])
        positions = torch.cat([torch.arange(length) for length in lengths])
        samples = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

        def sees(row, head, place, other, samples=samples, positions=positions, window=window, chunk=chunk):
            seen = (other <= place) & (samples[place] == samples[other])
            seen = seen & (other > place - window) if window else seen
            return seen & (positions[place] // chunk == positions[other] // chunk) if chunk else seen

        size = sum(lengths)
        found = seen_blocks(first_seen(positions, window, chunk), block)
        expected = create_block_mask(sees, 1, 1, size, size, device="cpu", BLOCK_SIZE=block)
        for counts, indices in names:
            for number in range(-(-size // block)):
                rows = []
                for lists in (found, expected):
                    count = getattr(lists, counts)[0, 0, number]
                    rows.append(sorted(getattr(lists, indices)[0, 0, number, :count].tolist()))
                assert rows[0] == rows[1], (counts, lengths, window, chunk, block)


@pytest.mark.parametrize(("softcap", "with_sinks"), [(None, False), (2.0, True)])
def test_output_and_gradients_are_those_of_plain_attention(softcap, with_sinks):
    torch.manual_seed(0)
    sizes = ((1, 8, 56, 16), (1, 2, 56, 16), (1, 2, 56, 24), (8,))
    query, key, value, sinks = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes)
    seen = seen_blocks(first_seen(torch.cat([torch.arange(n) for n in (30, 7, 19)]), window=9))
    inputs = (query, key, value, sinks) if with_sinks else (query, key, value)
    results = []
    for output in (
        attend(query, key, value, seen, 0.3, softcap, sinks if with_sinks else None),
        plain_attention(query, key, value, seen.low, 0.3, softcap, sinks if with_sinks else None),
    ):
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "name", [name if name in EVERYDAY else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_packed_row_has_the_gradients_of_its_samples_alone(name):
    model, samples = load(name), random_samples((40, 7, 30))
    expected = gradients(model, [pack([sample]) for sample in samples])
    patches = patches_of(model)
    patch = patches.apply(FlexAttention(model))
    for batch in [pack(samples), *([] if name in EVERYDAY else [pad(samples, 0)])]:
        assert (gradients(model, [batch]) - expected).norm() < 2e-6 * expected.norm()
    patches.undo(patch)
    assert "forward" not in vars(model)
    assert model.config._attn_implementation == "eager"


def test_checkpointed_layers_have_the_same_gradients():
    model, rows = load("gemma2"), [pack(random_samples(lengths)) for lengths in ((9, 7), (1,))]
    patches = patches_of(model)
    patches.apply(FlexAttention(model))
    expected = [gradients(model, [row]) for row in rows]
    patches.apply(Checkpointing(layers_of(model)))
    assert all(torch.equal(gradients(model, [row]), right) for row, right in zip(rows, expected, strict=True))


def choice(name, **options):
    model = load(name, torch.bfloat16, **options).eval()
    patches = ModelPatches(model)
    trial = Trial(model, 512, CPU, torch.bfloat16)
    own = model.config._attn_implementation
    found = choose._choose_attention(patches, model, own, trial, torch.device("cuda"), torch.bfloat16, False)
    torch_kernel.cache_clear()  # other tests have a stand-in for it
    return found, patches


@pytest.mark.parametrize(
    ("name", "own", "because"),
    [
        ("gemma2", "eager", "the model is made for eager attention"),
        ("gpt_oss", "eager", "the model is made for eager attention"),
        ("llama4_text", "sdpa", "only a mask has"),
    ],
)
def test_on_a_gpu_it_serves_what_variable_length_attention_does_not_take(monkeypatch, name, own, because):
    monkeypatch.setattr(choose, "flex_problem", lambda kinds, device, dtype: "" if kinds else "not asked")
    found, patches = choice(name, attn_implementation=own)
    assert (found.name, found.packed, found.variable_length) == ("FlexAttention", True, True)
    assert because in found.because
    assert patches.find(FlexAttention) is not None
    assert patches.find(VarlenAttention) is None


def test_what_a_model_asks_for_is_seen_though_the_outcome_of_the_trial_is_known(monkeypatch):
    monkeypatch.setattr(Trial, "can_pack", lambda trial: (True, "known"))
    monkeypatch.setattr(Trial, "difference", lambda trial, other: Leak(0.0, 0.0))
    asked = []
    monkeypatch.setattr(choose, "flex_problem", lambda kinds, device, dtype: asked.extend(kinds) or "")
    monkeypatch.setattr(Trial, "again", lambda trial: trial)
    found, _ = choice("gemma2")
    assert (found.name, found.packed_because) == ("FlexAttention", "known")
    assert [kind.softcap for kind in asked] == [0.1]


def test_the_models_own_attention_stays_where_it_fails_and_says_why(monkeypatch):
    monkeypatch.setattr(choose, "flex_problem", lambda kinds, device, dtype: "out of resource: shared memory")
    found, patches = choice("gemma2")
    assert (found.name, found.packed) == ("eager", True)
    assert found.because.endswith("not FlexAttention: out of resource: shared memory")
    assert not patches.applied
    with monkeypatch.context() as other:
        other.setattr(flex, "attend", lambda *args: -attend(*args))  # a norm behind it hides a factor
        found, patches = choice("gemma2")
    assert found.name == "eager"
    assert "not FlexAttention: samples alone have something else by it (measured" in found.because
    assert not patches.applied
    found, patches = choice("bloom")  # it adds the mask to a bias of its own
    assert found.name == "eager"
    assert "not FlexAttention: the model can't run packed samples" in found.because
    assert not patches.applied


def test_the_choice_of_an_earlier_run_is_taken_over_without_a_pass(monkeypatch):
    """What the kernels are tried for is observed in the trial's passes, which do not take place then."""
    monkeypatch.setattr(choose, "flex_problem", lambda kinds, device, dtype: "" if kinds else "not asked")
    with open_answers(Answers({})) as first:
        found, _ = choice("gemma2")
    monkeypatch.setattr(Trial, "_run", None)
    with open_answers(Answers(json.loads(json.dumps(first.given)))) as later:
        again, patches = choice("gemma2")
    assert (again.name, again) == ("FlexAttention", found)
    assert patches.find(FlexAttention) is not None
    assert later.given == first.given


def test_kernels_that_give_something_else_are_found_before_they_are_used(monkeypatch):
    kinds = {HeadKind(4, 2, 16, 16, None, None, False), HeadKind(4, 2, 16, 24, 0.3, 20.0, True)}
    assert flex_kernel.problem(kinds, CPU, torch.float32) == ""
    assert flex_kernel.problem(kinds, CPU, torch.bfloat16) == ""
    assert flex_kernel.problem([], CPU, torch.float32) == "the model computes its attention itself"
    monkeypatch.setattr(flex_kernel, "_with_sinks", lambda output, sums, sinks: output if sinks is None else output * sinks[0])
    assert "give something else" in flex_kernel.problem(kinds, CPU, torch.float32)


def test_masks_and_attention_that_it_does_not_know_are_refused():
    config = SimpleNamespace(sliding_window=8, attention_chunk_size=8)
    with pytest.raises(UnsuitedError, match="a window or a chunk"):
        flex.mask(1, 5, 5, config, CPU, local_size=8)
    for other in ({"use_vmap": True}, {"kv_length": 6}, {"allow_is_bidirectional_skip": True}):
        with pytest.raises(UnsuitedError):
            flex.mask(**{"batch_size": 1, "q_length": 5, "kv_length": 5, "config": config, "device": CPU, **other})
    parts = [torch.zeros(1, 2, 5, 4)] * 3
    seen = flex.mask(1, 5, 5, config, CPU)
    for other in ({"dropout": 0.1}, {"position_bias": parts[0]}, {"attention_mask": None}):
        with pytest.raises(UnsuitedError):
            flex.attention(torch.nn.Identity(), *parts, **{"attention_mask": seen, **other})


LENGTHS = [(30, 7, 19), (5,) * 20, (2,), (1,), (300, 20, 200), (128, 128), (600,)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "checkpointed", "versions"), [("gemma2", True, 1), ("gpt_oss", False, 1), ("llama4_text", False, 3)]
)
def test_one_version_of_a_compiled_layer_serves_all_lengths_and_windows(monkeypatch, name, checkpointed, versions):
    counts = compiled_counts(monkeypatch, name, [Checkpointing] if checkpointed else [])
    assert counts == [versions] * len(LENGTHS)


@pytest.mark.slow
def test_a_long_rows_attention_is_offloaded_as_it_lies_in_memory(monkeypatch):
    monkeypatch.setattr(compiled, "LONG_ROWS", 256)
    inputs = ActivationOffload(CPU, 1, tiles_from=10**6)
    counts = compiled_counts(monkeypatch, "gpt_oss", [lambda layers: Checkpointing(layers, inputs)])
    assert counts[0] == 1
    assert counts[-1] == 2  # long rows save attention's result


def compiled_counts(monkeypatch, name, more) -> list[int]:
    """Compare gradients of compiled layers with those of plain ones. Returns how many graphs there were after each row."""
    real = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend="aot_eager"))
    model = load(name)
    patches = patches_of(model)
    patches.apply(FlexAttention(model))
    rows = [pack(random_samples(lengths)) for lengths in LENGTHS]
    expected = [gradients(model, [row]) for row in rows]
    for patch in (CompiledLayers, *more):
        patches.apply(patch(layers_of(model)))
    before, counts = num_compiled(), []
    for row, right in zip(rows, expected, strict=True):
        assert (gradients(model, [row]) - right).norm() <= 1e-5 * right.norm()
        counts.append(num_compiled() - before)
    return counts


@pytest.mark.slow
def test_one_version_of_the_kernel_serves_all_lengths_and_windows_and_passes_without_gradient(monkeypatch):
    real = torch.compile
    torch._dynamo.reset()
    kernel = real(flex_kernel._attend, backend="aot_eager")
    monkeypatch.setattr(flex_kernel, "_compiled", lambda: kernel)
    before = num_compiled()
    monkeypatch.setattr(flex_kernel, "_attend", None)  # what is not compiled
    for lengths in [(30, 7, 19), (5,) * 20, (2,), (1,), (300, 20, 200), (128, 128), (600,)]:
        positions = torch.cat([torch.arange(length) for length in lengths])
        for window in (None, 9):
            seen = seen_blocks(first_seen(positions, window))
            parts = [torch.randn(1, heads, len(positions), 16) for heads in (4, 2, 2)]
            with torch.no_grad():
                run = flex_kernel.attend if lengths == (1,) else flex_kernel._by_kernel
                found = run(*parts, seen, 0.25, 20.0, None)
            assert not found.requires_grad
            assert torch.allclose(found, plain_attention(*parts, seen.low, 0.25, 20.0), atol=1e-5)
            assert num_compiled() - before == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler of C++")
def test_a_kernel_that_skips_blocks_gives_the_same_by_these_lists():
    def attend_by_kernel(query, key, value, seen):
        def sees(row, head, place, other):
            return (other <= place) & (other >= seen.low[place])

        length = query.shape[2]
        mask = BlockMask((length, length), *seen[1:], BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=sees)
        return flex_attention(query, key, value, flex_kernel._capped(20.0), mask, 0.2, enable_gqa=True)

    torch._dynamo.reset()
    run, before = torch.compile(attend_by_kernel), num_compiled()
    for lengths in [(300, 20, 200), (130,), (900, 3, 17, 400)]:
        for window in (None, 50, 300):
            seen = seen_blocks(first_seen(torch.cat([torch.arange(n) for n in lengths]), window))
            parts = [torch.randn(1, heads, sum(lengths), 32) for heads in (4, 2, 2)]
            for part in parts:
                torch._dynamo.maybe_mark_dynamic(part, 2)
            seen.mark_dynamic()
            with torch.no_grad():
                assert torch.allclose(run(*parts, seen), plain_attention(*parts, seen.low, 0.2, 20.0), atol=1e-5)
    assert num_compiled() - before == 1
