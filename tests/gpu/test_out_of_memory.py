"""Memory that runs out on a GPU before the first step: a bound on torch's allocator, and allocations that fail one by one."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM

from hub import HubError, compose
from hub.launch.launcher import launch
from hub.system.memory import CONTEXT, GIB
from hub.testing import tokenizer, write_chats
from hub.train.step import OPTIMIZER_OUT_OF_MEMORY

OPTIONS = ("launch=inline", "algo.effective_batch_size=64", "algo.max_steps=2", "algo.num_epochs=9", "model.dtype=float32")

NUM_CHATS = 300


class FailsOnce(TorchDispatchMode):
    """Lets one allocation of the GPU fail, by its number: the next operation that makes a tensor there finds no room."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.count = number, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        found = func(*args, **(kwargs or {}))
        self.count += torch.cuda.memory_stats()["allocation.all.allocated"] - before
        if 0 < self.number <= self.count:
            self.number = 0
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        return found


def train(parts, folder, *more: str):
    result = launch(compose(*OPTIONS, *parts, f"output_dir={folder}", *more))
    return result, json.loads((result.run_path / "plan.json").read_text())


def end_of(expected, *args) -> str:
    """Train, and check how it ends. Returns the line that it ended with; empty if it trained to the end."""
    try:
        found, plan = train(*args)
    except HubError as error:
        line = str(error)
    else:
        assert [line["loss"] for line in found.metrics] == pytest.approx(expected, rel=1e-4), plan
        return ""
    assert "\n" not in line
    assert "out of memory" in line
    assert "Type " in line
    return line


@pytest.mark.parametrize("algo", ["sft", "lora_sft"])
def test_each_bound_gives_the_same_run_or_one_line(parts, tmp_path, algo):
    free, _ = train(parts, tmp_path / "free", f"algo={algo}")
    expected = [line["loss"] for line in free.metrics]
    bounds = [CONTEXT / GIB + free.peak_memory_gb * 0.75**number for number in range(12)]
    ends = [end_of(expected, parts, tmp_path / f"bound-{gib}", f"algo={algo}", f"launch.gpu_memory_gb={gib}") for gib in bounds]
    ran = [not line for line in ends]
    assert ran[0]
    assert not ran[-1]
    assert ran == sorted(ran, reverse=True), ends  # what fits into less fits into more


def test_allocations_that_fail_one_by_one_give_the_same_run_or_one_line(parts, tmp_path):
    counter = FailsOnce(0)
    with counter:
        free, _ = train(parts, tmp_path / "free", "algo=lora_sft")
    expected = [line["loss"] for line in free.metrics]
    for number in range(1, counter.count, max(1, counter.count // 40)):
        with FailsOnce(number):
            end_of(expected, parts, tmp_path / f"fails-{number}", "algo=lora_sft")


def test_a_family_whose_attention_takes_the_square_of_the_tokens_is_measured_within_what_is_free(tmp_path):
    """The shape's estimate knows nothing of it. The first passes ended such runs."""
    config = Gemma2Config(hidden_size=256, intermediate_size=512, num_hidden_layers=12, num_attention_heads=16,
                          num_key_value_heads=16, head_dim=32, vocab_size=512)  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    parts = [f"model.path={tmp_path / 'model'}", f"data.path={write_chats(tmp_path / 'chats.jsonl', num_rows=300)}"]
    found, plan = train(parts, tmp_path / "runs", "algo=lora_sft", "launch.gpu_memory_gb=2.5")
    assert found.status == "completed"
    assert found.peak_memory_gb < 2.0, plan


def test_no_room_for_the_optimizers_state_is_said_with_what_is_missing(parts, tmp_path, monkeypatch):
    def step(self, closure=None):
        torch.empty(2**50, dtype=torch.uint8, device="cuda")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(HubError, match=f"{OPTIMIZER_OUT_OF_MEMORY}.*GiB are missing"):
        train(parts, tmp_path, "algo=sft")
