"""Measure what is lost by keeping weights, gradients and moments in bfloat16. On a CPU, in seconds.

python -m benchmarks.rounding

First a least squares problem (64 x 64 weights, 512 samples, 600 steps), with weights in float32, in bfloat16 with stochastic
rounding, and in bfloat16 rounded to nearest. Then the gradient of 64 samples of random tokens on a tiny Llama with random
weights, in micro-batches whose bfloat16 gradients are accumulated in bfloat16, compared with accumulation in float32.
"""

from collections.abc import Iterator

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.table import line
from hub.data.prepare import Sample
from hub.testing import tiny_model_path
from hub.train.adamw_bf16 import StochasticAdamW
from hub.train.batch.collate import pack
from hub.train.losses.causal_lm import causal_lm_loss

VARIANTS = ("float32", "bfloat16, stochastic rounding", "bfloat16, rounded to nearest")
RATES = ((1e-5, 0.95), (1e-5, 0.999), (3e-5, 0.95), (3e-5, 0.999), (1e-4, 0.95), (1e-4, 0.999))
STEPS = 600
SAMPLES = 64


def least_squares(variant: str, rate: float, beta2: float) -> tuple[float, float]:
    """Return the loss before and after."""
    torch.manual_seed(0)
    inputs, solution = torch.randn(512, 64), torch.randn(64, 64) / 8
    outputs = inputs @ solution.T
    begin = (solution + 0.02 * torch.randn(64, 64)).bfloat16()
    weight = torch.nn.Parameter(begin.float() if variant == VARIANTS[0] else begin)
    kind = torch.optim.AdamW if variant == VARIANTS[2] else StochasticAdamW
    optimizer = kind([weight], lr=rate, betas=(0.9, beta2), weight_decay=0.0)

    def loss() -> torch.Tensor:
        return (inputs @ weight.float().T - outputs).square().mean()

    before = loss().item()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return before, loss().item()


def accumulated() -> Iterator[tuple[int, float, float]]:
    """Yield the number of micro-batches, and two relative differences of their summed gradient.

    The first is of the sum in bfloat16 from that in float32, the second of that from a single micro-batch.
    """
    dice = np.random.default_rng(0)
    lengths = dice.integers(20, 120, SAMPLES)
    samples = [Sample(dice.integers(3, 512, n).astype(np.int32), np.ones(n, dtype=bool), "") for n in lengths]
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.bfloat16).train()
    weights, first = list(model.parameters()), torch.empty(0)
    for number in (1, 2, 4, 8, 16, 32, 64):
        exact = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        coarse = [torch.zeros_like(weight) for weight in weights]
        for start in range(0, SAMPLES, SAMPLES // number):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = causal_lm_loss(model, pack(samples[start : start + SAMPLES // number]))
            (loss / sum(lengths)).backward()
            for weight, one, other in zip(weights, exact, coarse, strict=True):
                one += weight.grad
                other += weight.grad
        whole, rounded = (torch.cat([part.flatten().double() for part in parts]) for parts in (exact, coarse))
        first = whole if number == 1 else first
        yield number, float((rounded - whole).norm() / whole.norm()), float((whole - first).norm() / first.norm())


def main() -> None:
    head = ("learning rate, beta2", "loss before", *VARIANTS)
    print(line(head), line(["---"] * len(head)), sep="\n")
    for rate, beta2 in RATES:
        losses = [least_squares(variant, rate, beta2) for variant in VARIANTS]
        print(line([f"{rate:g}, {beta2:g}", f"{losses[-1][0]:.3e}", *(f"{after:.3e}" for _, after in losses)]))
    head = ("micro-batches", "sum in bfloat16 vs. in float32", "sum in float32 vs. one micro-batch")
    print(line(head), line(["---"] * len(head)), sep="\n")
    for number, lost, moved in accumulated():
        print(line([str(number), f"{lost:.2%}", f"{moved:.2%}"]))


if __name__ == "__main__":
    main()
