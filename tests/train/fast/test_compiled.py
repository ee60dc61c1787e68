"""Compiled layers: one version for all layers of a kind and for rows of any length. tests/gpu has the real kernels."""

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hub.data.prepare import Sample
from hub.testing import tiny_model_path
from hub.train.collate import pack, pad
from hub.train.fast import attention
from hub.train.fast.compiled import compile_layers, num_compiled
from hub.train.fast.kernels import layers_of, recompute
from hub.train.fast.offload import HostInputs
from hub.train.loss import causal_lm_loss

LENGTHS = [(30, 7, 19), (100, 3), (64,), (5,) * 20, (2,), (1,), (300, 20, 200), (128, 128), (3, 1), (16, 16), (600,)]
"""Among them: one sample, one token, as many tokens as the model has features (64) or a head has (16), a power of two."""


@torch.library.custom_op("hub_tests::attend", mutates_args=())
def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, longest: int) -> torch.Tensor:
    """Stands in for torch's kernel, which runs on a GPU only: opaque to the compiler in the same way."""
    assert longest >= int(starts.diff().max())
    return query + key.repeat_interleave(query.shape[1] // key.shape[1], 1) * value.mean((1, 2), keepdim=True)


@attend.register_fake
def _(query, key, value, starts, longest):
    return torch.empty_like(query)


def save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:3])


def backward(ctx, gradient):
    key, value = ctx.saved_tensors
    return gradient, torch.zeros_like(key), torch.zeros_like(value), None, None


attend.register_autograd(backward, setup_context=save)


def stand_in(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    return attend(query.contiguous(), key.contiguous(), value.contiguous(), cu_seq_q, max_q)


@pytest.fixture
def model(monkeypatch):
    real = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend="aot_eager"))
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", stand_in)
    attention._kernel.cache_clear()
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.float32, num_hidden_layers=3).train()
    yield get_peft_model(model, LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False))
    attention._kernel.cache_clear()


def gradients(model, form) -> tuple[list[torch.Tensor], list[int]]:
    """Of micro-batches of all those lengths, and how many graphs there were after each."""
    rng = np.random.default_rng(0)
    found, counts, before = [], [], num_compiled()
    for lengths in LENGTHS:
        samples = [Sample(rng.integers(3, 512, n).astype(np.int32), np.ones(n, dtype=bool), "") for n in lengths]
        model.zero_grad()
        causal_lm_loss(model, form(samples)).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
        counts.append(num_compiled() - before)
    return found, counts


@pytest.mark.parametrize(("recomputed", "offload"), [(0, None), (2, None), (3, HostInputs(torch.device("cpu"), 1))])
def test_one_version_serves_all_layers_and_lengths_and_gives_the_same(model, recomputed, offload):
    with attention.varlen_attention(model):
        expected, _ = gradients(model, pack)
        compile_layers(layers_of(model))
        recompute(layers_of(model)[:recomputed], offload)
        found, counts = gradients(model, pack)
    assert counts == [1] * len(LENGTHS)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_padded_rows_take_few_versions(model):
    compile_layers(layers_of(model))
    _, counts = gradients(model, lambda samples: pad(samples, 0))
    assert counts[:2] == [1, 1]
    assert counts[3:] == [3] * (len(LENGTHS) - 3)  # and one for a single row, and one without a mask


def test_evaluation_is_not_compiled(model):
    compile_layers(layers_of(model))
    before = num_compiled()
    model.eval()(input_ids=torch.arange(9)[None], use_cache=False)
    assert num_compiled() == before
