"""FlexAttention on a GPU: its kernels, the families that need it, and that no matrix of tokens x tokens is ever made."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from zoo.zoo import zoo_model

from hub import compose
from hub.data.prepare import Sample
from hub.launch.launcher import launch
from hub.models.patches import patches_of
from hub.models.structure import layers_of, output_layer
from hub.tasks.evaluate.passes import Row
from hub.tasks.evaluate.ways import open_scorer
from hub.tasks.loading import Loaded
from hub.testing import write_chats
from hub.train.batch.collate import pack
from hub.train.kernels.compiled import CompiledLayers, num_compiled
from hub.train.kernels.flex import FlexAttention
from hub.train.kernels.flex_kernel import attend, plain_attention
from hub.train.kernels.head import FusedHead
from hub.train.kernels.hidden_states import HiddenStatesIn
from hub.train.kernels.logit_map import LogitMap
from hub.train.kernels.seen_blocks import first_seen, seen_blocks
from hub.train.layout.choose import choose_attention, choose_head
from hub.train.losses.causal_lm import causal_lm_loss

GPU = torch.device("cuda")

FAMILIES = {
    "gemma2": {"sliding_window": 16},
    "vaultgemma": {"sliding_window": 16},
    "gpt_oss": {"sliding_window": 16},
    "llama4_text": {"attention_chunk_size": 16},
    "phimoe": {"sliding_window": 16},
}
"""Families that no variable-length kernel takes, with windows and chunks shorter than the samples."""

ROUNDING = {torch.float32: 2e-3, torch.bfloat16: 1e-2}


def random_samples(lengths, seed=0):
    chance = np.random.default_rng(seed)
    return [Sample(chance.integers(3, 512, n).astype(np.int32), np.ones(n, dtype=bool), "") for n in lengths]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("size", [16, 64, 96, 128, 256])
@pytest.mark.parametrize(("softcap", "with_sinks"), [(None, False), (50.0, False), (None, True), (2.0, True)])
@pytest.mark.parametrize("window", [None, 200])
def test_output_and_gradients_are_those_of_plain_attention(dtype, size, softcap, with_sinks, window):
    torch.manual_seed(0)
    seen = seen_blocks(first_seen(torch.cat([torch.arange(n, device=GPU) for n in (300, 1, 513, 90)]), window))
    length = len(seen.low)
    sizes = ((1, 8, length, size), (1, 2, length, size), (1, 2, length, size), (8,))
    parts = [torch.randn(one, device=GPU).to(dtype).requires_grad_() for one in sizes]
    inputs = parts if with_sinks else parts[:3]
    exact = [part.detach().double().requires_grad_() for part in inputs]
    gradient = torch.randn(1, 8, length, size, device=GPU).to(dtype)
    output = attend(*parts[:3], seen, None, softcap, parts[3] if with_sinks else None)
    expected = plain_attention(*exact[:3], seen.low, None, softcap, exact[3] if with_sinks else None)
    found = [output, *torch.autograd.grad(output, inputs, gradient)]
    wanted = [expected, *torch.autograd.grad(expected, exact, gradient.double())]
    for one, other in zip(found, wanted, strict=True):
        assert (one.double() - other).norm() < ROUNDING[dtype] * other.norm()
    with torch.no_grad():
        again = attend(*parts[:3], seen, None, softcap, parts[3] if with_sinks else None)
    assert not again.requires_grad
    assert torch.equal(again, output)


def test_one_version_serves_all_lengths_of_more_than_one_block():
    counts = []
    for lengths in [(130, 7), (100, 3, 400), (128, 128), (2000,), (5,) * 50]:
        seen = seen_blocks(first_seen(torch.cat([torch.arange(n, device=GPU) for n in lengths])))
        parts = [torch.randn(1, heads, len(seen.low), 64, device=GPU, dtype=torch.bfloat16) for heads in (4, 2, 2)]
        attend(*parts, seen, 0.125)
        counts.append(num_compiled())
    assert len(set(counts)) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_families_that_need_it_get_it_and_isolate(name):
    load = {"dtype": torch.bfloat16, "device_map": {"": 0}, **FAMILIES[name]}
    model = AutoModelForCausalLM.from_pretrained(zoo_model(name), **load).eval()
    if name == "phimoe":  # a random router is undecided, and rounding turns it: here all tokens take the same experts
        for parameter in [one for path, one in model.named_parameters() if "router" in path]:
            torch.nn.init.zeros_(parameter)
    patches = patches_of(model)
    attention = choose_attention(patches, model, 512, GPU, torch.bfloat16)
    print(f"{name}: {attention.because}; {attention.packed_because}")
    assert (attention.name, attention.packed, attention.variable_length) == ("FlexAttention", True, True)
    assert choose_head(patches, model, 512, GPU, torch.bfloat16, packed=True), patches.plan()["fused_head_because"]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_packed_row_has_the_loss_and_gradients_of_its_samples_in_eager_attention(name, compiled):
    load = {"dtype": torch.float32, "device_map": {"": 0}, "attn_implementation": "eager", **FAMILIES[name]}
    model = AutoModelForCausalLM.from_pretrained(zoo_model(name), **load).train()
    samples = random_samples((40, 7, 250, 129))

    def measured(batches):
        model.zero_grad()
        losses = [causal_lm_loss(model, batch.to(GPU)) for batch in batches]
        sum(losses).backward()
        return sum(losses).item(), torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])

    loss, gradient = measured([pack([sample]) for sample in samples])
    patches = patches_of(model)
    patches.apply(FlexAttention(model))
    if compiled:
        patches.apply(CompiledLayers(layers_of(model)))
    found_loss, found = measured([pack(samples)])
    assert found_loss == pytest.approx(loss, rel=1e-3)
    assert (found - gradient).norm() < 2e-2 * gradient.norm()


def made(name, **options):
    """A model of a family with real head sizes, few layers and random weights in bfloat16."""
    config = AutoConfig.from_pretrained(zoo_model(name), hidden_size=256, num_hidden_layers=2, **options)
    config.layer_types = ["sliding_attention", "full_attention"]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager").to(GPU).train()
    patches = patches_of(model)
    patches.apply(FlexAttention(model))
    cap = getattr(config, "final_logit_softcapping", None)
    patches.apply(FusedHead(output_layer(model), model, LogitMap(1.0, cap)))
    patches.apply(HiddenStatesIn(model, torch.bfloat16))
    return model


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gemma2", {"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "sliding_window": 4096}),
        ("gpt_oss", {"head_dim": 64, "num_attention_heads": 16, "num_key_value_heads": 2, "sliding_window": 128}),
    ],
)
def test_nothing_of_tokens_x_tokens_is_allocated_and_memory_grows_with_the_tokens(name, options, compiled):
    model = made(name, **options)
    if compiled:
        patches_of(model).apply(CompiledLayers(layers_of(model)))

    def peak(tokens):
        row = pack(random_samples((tokens // 4,) * 4)).to(GPU)
        model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        causal_lm_loss(model, row).backward()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    for tokens in (4096, 8192):
        peak(tokens)  # compiles
    torch.cuda.memory._record_memory_history(max_entries=1_000_000)
    try:
        least, more, most = (peak(tokens) for tokens in (16384, 32768, 65536))
        largest = max(event["size"] for trace in torch.cuda.memory._snapshot()["device_traces"] for event in trace
                      if event["action"] == "alloc")  # fmt: skip
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    print(f"{name}: peaks {least / 2**20:.0f}, {more / 2**20:.0f}, {most / 2**20:.0f} MiB, largest {largest / 2**20:.0f} MiB")
    assert largest < 65536**2  # not even one byte for each pair
    assert most - more < 2.2 * (more - least)
    assert most < 65536 * 2**17  # 128 KiB a token, where one layer's scores of eager attention would be 4 MiB


def test_a_run_takes_it_and_says_so(tmp_path):
    data = write_chats(tmp_path / "chats.jsonl", num_rows=40)
    words = ["algo=lora_sft", f"model.path={zoo_model('gemma2')}", f"data.path={data}", "launch=inline", "algo.max_steps=3"]
    result = launch(compose(*words, "model.dtype=bfloat16", f"output_dir={tmp_path / 'run'}"))
    plan = json.loads((result.run_path / "plan.json").read_text())
    assert (plan["attention"], plan["packed"], plan["fused_head"]) == ("FlexAttention", True, True)
    assert "softly capped at 30" in plan["fused_head_because"]
    assert all(np.isfinite(line["loss"]) for line in result.metrics)


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_an_evaluation_takes_it_and_each_row_has_what_it_has_alone(name):
    folder, dtype = zoo_model(name), torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").to(GPU).eval()
    loaded = Loaded(name, model, AutoTokenizer.from_pretrained(folder), GPU, dtype, None, folder)
    rows = [Row.of_sample(sample) for sample in random_samples((30, 90, 7, 200))]
    with open_scorer(loaded, 200) as scorer:
        assert scorer.layout == "packed"
        assert patches_of(model).find(FlexAttention) is not None
        found = np.concatenate([scores.log_probabilities for scores in scorer.scores(rows)])
    assert not patches_of(model).applied
    alone = []
    for row in rows:
        with torch.no_grad():
            logits = model(torch.from_numpy(row.input_ids.astype(np.int64))[None].to(GPU), use_cache=False).logits[0].float()
        alone.append(logits.log_softmax(-1)[row.places, row.targets].cpu().numpy())
    wanted = np.concatenate(alone)
    assert np.sqrt(np.square(found - wanted).mean()) < 0.1 * wanted.std()
