"""A whole run against a loop of its own: NumPy and plain transformers in float64, one sample at a time."""

import json
import random
import time
from functools import partial

import hub_sft.recipe
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hub import compose
from hub.launch.launcher import launch
from hub.models.tiny import tiny_model_path
from hub.train import loop, step
from hub.train.checkpoints.save import Save
from hub.train.losses.causal_lm import causal_lm_loss
from hub.train.recipe import Recipe

RATES = [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]
"""Of six steps with two of warmup and a linear decay: the peak in step 2, and nothing in no step."""

ADAM = {"learning_rate": 0.01, "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-3, "weight_decay": 0.5}
CLIPPED = 2.5
SIZES = [6, 4] * 3
"""Samples of each step: two sources of five rows each, in three passes."""

OPTIONS = ["algo=sft", "model.path=tiny:qwen2", "launch=inline", "model.dtype=float32", "algo.effective_batch_size=6",
           "algo.num_epochs=3", "algo.lr_scheduler=linear", "algo.warmup_steps=2", "algo.max_tokens_per_gpu=100",
           "algo.eval_every_steps=3", "algo.log_every_steps=1", "algo.save_every_epochs=2", f"algo.max_grad_norm={CLIPPED}",
           *(f"algo.{name}={value}" for name, value in ADAM.items())]  # fmt: skip


def rows(name, count: int, seed: int):
    """Chats of unequal lengths, as a file."""
    dice = random.Random(seed)
    words = ["the", "of", "and", "a", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are", "as", "with"]

    def text(most: int) -> str:
        return " ".join(dice.choices(words, k=dice.randint(1, most)))

    chats = [[{"role": role, "content": text(most)} for role, most in (("user", 6), ("assistant", 24))] for _ in range(count)]
    name.write_text("".join(f"{json.dumps({'messages': chat})}\n" for chat in chats))
    return name


class Reference:
    """A model in float64, and AdamW by its formula (arXiv 1711.05101)."""

    def __init__(self) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(tiny_model_path("qwen2"), dtype=torch.float64)
        self.weights = {name: p.detach().numpy() for name, p in self.model.named_parameters()}  # the model's own memory
        self.m = {name: np.zeros_like(weight) for name, weight in self.weights.items()}
        self.v = {name: np.zeros_like(weight) for name, weight in self.weights.items()}
        self.number = 0

    def loss(self, units) -> torch.Tensor:
        """Mean over all loss tokens, in nats."""
        total, count = torch.zeros((), dtype=torch.float64), 0
        for unit in units:
            ids = torch.from_numpy(unit.input_ids.astype(np.int64))
            logs = self.model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            for place in np.flatnonzero(unit.loss_mask[1:]):
                total, count = total - logs[place, ids[place + 1]], count + 1
        return total / count

    def step(self, units, rate: float) -> tuple[float, float]:
        """Returns loss and gradient norm."""
        self.model.zero_grad()
        loss = self.loss(units)
        loss.backward()
        gradients = {name: p.grad.numpy() for name, p in self.model.named_parameters()}
        norm = sum(float((gradient**2).sum()) for gradient in gradients.values()) ** 0.5
        self.number += 1
        rate, one, two = rate * ADAM["learning_rate"], ADAM["adam_beta1"], ADAM["adam_beta2"]
        for name, weight in self.weights.items():
            gradient = gradients[name] * min(1.0, CLIPPED / norm)
            self.m[name] = one * self.m[name] + (1 - one) * gradient
            self.v[name] = two * self.v[name] + (1 - two) * gradient**2
            mean, square = self.m[name] / (1 - one**self.number), self.v[name] / (1 - two**self.number)
            if weight.ndim > 1:  # biases and norms do not decay
                weight *= 1 - rate * ADAM["weight_decay"]
            weight -= rate * mean / (np.sqrt(square) + ADAM["adam_epsilon"])
        return loss.item(), norm


def near(found: dict[str, torch.Tensor], expected, scale: float) -> bool:
    """Whether no number is off by more than a thousandth of `scale`."""
    return all(np.abs(found[name].numpy() - expected[name]).max() < 1e-3 * scale for name in found)


def test_a_run_is_adamw_by_the_book_and_a_checkpoint_is_its_state_at_the_step(tmp_path, monkeypatch):
    """Loss, gradient norm, rate, held-out loss, weights and moments, with memory that runs out once, and a slow disk."""
    monkeypatch.setattr(step, "EVALUATION_CHUNK", 2)
    seen, calls, real, write = [], iter(range(1, 10000)), loop.train_step, Save._write_parts
    evaluated = []

    def recorded(session, model, optimizer, units, *rest, **named):
        seen.append(units)
        return real(session, model, optimizer, units, *rest, **named)

    def once_out_of_memory(model, batch):
        if model.training and len(seen) == 2 and next(calls) == 2:  # the first micro-batch has left its gradient by then
            raise torch.OutOfMemoryError("no room")
        return causal_lm_loss(model, batch)

    def late(self):
        """Write when training is two steps further on. If it waits for this, the state is that of the step in any case."""
        deadline = time.monotonic() + 5
        while len(seen) < min(self.snapshot.step + 2, 6) and time.monotonic() < deadline:
            time.sleep(0.001)
        write(self)

    monkeypatch.setattr(loop, "train_step", recorded)
    monkeypatch.setattr(loop, "evaluate", lambda *given: (evaluated.append(given[2]), step.evaluate(*given))[1])
    monkeypatch.setattr(Save, "_write_parts", late)
    monkeypatch.setattr(hub_sft.recipe, "Recipe", partial(Recipe, loss=once_out_of_memory))
    files = [rows(tmp_path / f"{name}.jsonl", count, count + number) for number, (name, count) in
             enumerate((("one", 5), ("two", 5), ("held", 7)))]  # fmt: skip
    result = launch(compose(*OPTIONS, f"data.mix=[{{path: {files[0]}}}, {{path: {files[1]}}}]", f"data.eval_path={files[2]}",
                            f"output_dir={tmp_path}"))  # fmt: skip

    assert [len(units) for units in seen] == SIZES
    places = [[unit.where.split(":") for units in seen[start : start + 2] for unit in units] for start in (0, 2, 4)]
    orders = [[int(line) for file, line in of_pass if file == f"{name}.jsonl"] for of_pass in places for name in ("one", "two")]
    assert all(sorted(order) == [1, 2, 3, 4, 5] for order in orders)
    assert len(set(map(tuple, orders))) == 6, "each source and each pass has an order of its own"

    reference, held, lines = Reference(), evaluated[0], result.metrics
    assert len(held) == 7
    start = {name: weight.copy() for name, weight in reference.weights.items()}
    assert result.eval_loss_before == pytest.approx(reference.loss(held).item(), rel=1e-5)
    norms = []
    for number, (units, rate, line) in enumerate(zip(seen, RATES, lines, strict=True), 1):
        loss, norm = reference.step(units, rate)
        norms.append(norm)
        assert line["learning_rate"] == pytest.approx(rate * ADAM["learning_rate"])
        assert line["loss"] == pytest.approx(loss, rel=1e-4)
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-3)
        assert line["num_tokens"] == sum(len(unit.input_ids) for unit in units)
        assert line["num_loss_tokens"] == sum(int(unit.loss_mask[1:].sum()) for unit in units)
        assert line["epoch"] == [0.6, 1, 1.6, 2, 2.6, 3][number - 1]
        assert line["num_samples.one"] + line["num_samples.two"] == line["num_samples"] == len(units)
        assert ("eval_loss" in line) == (number in (3, 6))
        if "eval_loss" in line:
            assert line["eval_loss"] == pytest.approx(reference.loss(held).item(), rel=1e-4)
        if number == 4:
            then = [{name: tensor.copy() for name, tensor in which.items()} for which in
                    (reference.weights, reference.m, reference.v)]  # fmt: skip
    assert min(norms) < CLIPPED < max(norms) / 1.5, norms

    moved = max(np.abs(reference.weights[name] - start[name]).max() for name in start)
    assert near(load_file(result.model_path / "model.safetensors"), reference.weights, moved)
    folders = sorted((result.run_path / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == [
        "step-00000004",
        "step-00000006",
    ]  # after the second pass of three, and the last step
    weights, m, v = then
    assert near(load_file(folders[0] / "trainable.safetensors"), weights, moved)
    assert near(load_file(folders[0] / "model" / "model.safetensors"), weights, moved)
    stored = load_file(folders[0] / "optimizer.safetensors")
    for kind, expected in (("exp_avg", m), ("exp_avg_sq", v)):
        scale = max(np.abs(tensor).max() for tensor in expected.values())
        assert near(
            {name.removesuffix(f"/{kind}"): t for name, t in stored.items() if name.endswith(f"/{kind}")}, expected, scale
        )
