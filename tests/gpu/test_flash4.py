"""flash-attn-4 on a GPU that it supports: compared with plain attention in float64, compiled, and in a run."""

import json
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from hub import compose
from hub.launch.launcher import launch
from hub.testing import tokenizer, write_chats
from hub.train.kernels import flash4

if find_spec("flash_attn") is None or find_spec("flash_attn.cute") is None:
    pytest.skip("needs the package flash-attn-4", allow_module_level=True)

LENGTHS = (300, 1, 2, 64, 129, 1000)


@pytest.fixture(autouse=True)
def _fitting_gpu():
    if torch.cuda.get_device_capability()[0] not in flash4.ARCHITECTURES:
        pytest.skip("needs a GPU of the generations Hopper or Blackwell")


def in_float64(query, key, value, window):
    found = []
    for rows in zip(*(part.double().split(LENGTHS) for part in (query, key, value)), strict=True):
        q, k, v = (row.transpose(0, 1)[None] for row in rows)
        seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device="cuda").tril()
        seen = seen if window is None else seen & ~seen.tril(-window)
        found.append(F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("heads", "key_heads"), [(8, 8), (8, 2)])
@pytest.mark.parametrize("window", [None, 70])
def test_output_and_gradients_are_those_of_plain_attention(heads, key_heads, window, compiled):
    torch.manual_seed(0)
    parts = [torch.randn(sum(LENGTHS), n, 128, device="cuda", dtype=torch.bfloat16) for n in (heads, key_heads, key_heads)]
    parts = [part.requires_grad_() for part in parts]
    gradient = torch.randn(sum(LENGTHS), heads, 128, device="cuda", dtype=torch.bfloat16)
    starts = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32, device="cuda")
    attend = torch.compile(flash4.attend, dynamic=True) if compiled else flash4.attend
    output = attend(*parts, starts, starts, 1024, 1024, window_size=(-1 if window is None else window - 1, 0))
    found = [output, *torch.autograd.grad(output, parts, gradient)]
    exact = in_float64(*parts, window)
    expected = [exact, *torch.autograd.grad(exact, parts, gradient.double())]
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() < 6e-3 * other.norm()


def test_a_run_that_is_worth_it_takes_it_and_learns_the_same(tmp_path, monkeypatch):
    config = LlamaConfig(hidden_size=512, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=128, vocab_size=512, tie_word_embeddings=True)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    data = write_chats(tmp_path / "chats.jsonl", num_rows=200)
    options = ["algo=sft", f"model.path={tmp_path / 'model'}", f"data.path={data}", "launch=inline", "algo.max_steps=8"]

    def run(name):
        result = launch(compose(*options, "algo.torch_compile=layers", f"output_dir={tmp_path / name}"))
        plan = json.loads((result.run_path / "plan.json").read_text())
        return plan["attention"], plan["packed"], [line["loss"] for line in result.metrics]

    name, packed, losses = run("flash")
    assert (name, packed) == ("variable-length, FlashAttention 4", True)
    monkeypatch.setattr(flash4, "problem", lambda *args: "not here")
    other, _, expected = run("torch")
    assert other == "variable-length"
    assert losses == pytest.approx(expected, rel=5e-3)
