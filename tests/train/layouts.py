"""Runs one ragged batch through many layouts and stores each layout's gradient. Started by test_layouts.py, on 1 to 4 ranks.

python -m torch.distributed.run --nproc-per-node=2 layouts.py MODEL OUT [MUTANT]
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from hub.data.prepare import Sample
from hub.parallel.group import barrier, start_group, sum_gradients
from hub.parallel.session import Session
from hub.system.signals import end_process
from hub.train import step
from hub.train.batch import collate
from hub.train.batch.split import split
from hub.train.layout import layout as layouts
from hub.train.layout.layout import Layout
from hub.train.losses.causal_lm import causal_lm_loss
from hub.train.step import accumulate_gradients, evaluate


def batch(name: str) -> list[Sample]:
    """`ragged`: 32 samples, some with one loss token, some with none. `partial`: 3, fewer than the ranks may be."""
    rng = np.random.default_rng(5)
    samples = []
    for number in range(32 if name == "ragged" else 3):
        length = int(rng.integers(4, 60))
        mask = rng.random(length) < (0.0 if number % 7 == 3 else 0.05 if number % 3 else 0.8)
        mask[-1] |= number % 7 != 3
        samples.append(Sample(rng.integers(3, 512, length).astype(np.int32), mask, str(number)))
    return samples


def mean_per_micro_batch(model, micro):
    return causal_lm_loss(model, micro) / max(1, len(micro.targets)) * 10


def shifted_count(sample):
    return int(sample.loss_mask.sum()) + 1


def leaking_attention(samples):
    packed = collate.pack(samples)
    positions = torch.arange(packed.num_tokens)[None]
    return collate.MicroBatch(packed.input_ids, positions, None, packed.loss_positions, packed.targets, packed.num_tokens)


def got_through(session, model, samples, layout, loss) -> float:
    """As train_step does it: all ranks again in smaller micro-batches when one runs out of memory."""

    def attempt(smaller: Layout) -> torch.Tensor:
        model.zero_grad()
        return accumulate_gradients(session, model, samples, smaller, loss)

    return float(step.retry_on_oom(attempt, samples, layout)[0])


def little_memory(model, most_tokens: int) -> None:
    forward = model.forward

    def limited(input_ids, **rest):
        if input_ids.numel() > most_tokens:
            raise torch.OutOfMemoryError(f"{input_ids.numel()} tokens")
        return forward(input_ids=input_ids, **rest)

    model.forward = limited


def main(model_path: str, out: Path, mutant: str = "") -> None:
    group = start_group()
    session = Session(group, Accelerator(cpu=True), torch.float32)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model.train()
    loss = mean_per_micro_batch if mutant == "mean_per_micro_batch" else causal_lm_loss
    if mutant == "little_memory_on_the_last_rank" and group.rank == group.world - 1:
        little_memory(model, 120)
    if mutant == "shifted_count":
        step.num_loss_tokens = shifted_count
    if mutant == "leaking_attention":
        layouts.pack = leaking_attention
    if mutant == "mean_per_rank":
        session = Session(type(group)(0, 1, 0, group.device), session.accelerator, torch.float32)
    for name in ("ragged", "partial"):
        samples = batch(name)
        total, longest = sum(map(len, samples)), max(map(len, samples))
        if mutant == "dropped_tail":
            samples = samples[:-2]
        for micro_batches in (1, 2, 4):
            bound = max(longest, -(-total // (group.world * micro_batches)) + longest // 2)
            for packed in (True, False):
                layout = Layout(bound, packed, pad_id=0, cost_ratio=0.01)
                model.zero_grad()
                if mutant == "mean_per_rank":
                    lengths = [len(s) for s in samples]
                    parts = split(lengths, 2, bound, 0.01)[group.rank]
                    mine = [samples[i] for part in parts for i in part] or samples[:1]
                    layout = Layout(10**6, packed, 0, 0.01)
                    local = accumulate_gradients(session, model, mine, layout, loss)
                else:
                    local = got_through(session, model, samples, layout, loss)
                sum_gradients(model.parameters())
                if mutant == "mean_per_rank":
                    for parameter in model.parameters():
                        parameter.grad /= group.world
                mean, _ = evaluate(session, model, samples, layout, loss)
                if group.rank == 0:
                    gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
                    gradients["_eval_loss"] = torch.tensor([mean], dtype=torch.float64)
                    kind = "packed" if packed else "padded"
                    save_file(gradients, out / f"{name}-{group.world}x{micro_batches}-{kind}.safetensors")
                assert np.isfinite(local)
    barrier()


def reference(model_path: str, name: str) -> dict[str, torch.Tensor]:
    """The same gradient in float64 without any of the hub's code: one sample at a time, sum over loss tokens, one division."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64)
    count, total = 0, 0.0
    for sample in batch(name):
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(sample.loss_mask), ids[0], -100)[1:]
        with nullcontext():
            loss = F.cross_entropy(model(input_ids=ids).logits[0, :-1], labels, reduction="sum", ignore_index=-100)
        if (labels != -100).any():
            loss.backward()
            total += loss.item()
        count += int((labels != -100).sum())
    gradients = {key: p.grad / count for key, p in model.named_parameters() if p.grad is not None}
    return gradients | {"_eval_loss": torch.tensor([total / count], dtype=torch.float64)}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
    end_process(0)
