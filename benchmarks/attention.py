"""Measure the attention of packed rows: time and memory of forward and backward by each way that this machine has.

python -m benchmarks.attention
python -m benchmarks.attention --head-sizes 256 --tokens 16384 --softcap 50 --json attention.json
python -m benchmarks.attention --tokens 256 --rounds 1        # a quick check that runs anywhere

A row has samples of about 500 tokens, as the other benchmarks have, or of one length (`--sample`). `eager` and `sdpa` get a
mask of tokens x tokens. `variable-length` is torch's kernel, `FlashAttention 4` the package flash-attn-4. A way that can't do
what is asked, such as a soft cap, or has too little memory, is left out with its reason. The median of `--rounds` is printed,
and the peak that torch allocated beyond the inputs. `apart` is the relative difference of the result from eager attention in
the same type, over all heads.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.table import gpu_name, line
from hub.errors import one_line
from hub.train.kernels.attention import UnsuitedError, torch_kernel
from hub.train.kernels.flex_kernel import attend, plain_attention
from hub.train.kernels.seen_blocks import first_seen, seen_blocks

HEAD = ("head size", "attention", "forward, ms", "forward and backward, ms", "peak MiB", "apart")
LARGEST_MATRIX = 2**34
"""Bytes of scores in float32 from which on eager attention is not tried."""

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Row:
    """A packed row, and the ways to compute attention over it. Each takes and gives (1, heads, T, head size).

    Args:
        lengths: tokens of the samples.
        window: number of tokens that a token sees. None: all.
        softcap: bound of the scores. None: there is none.
        device: of the row.
    """

    def __init__(self, lengths: list[int], window: int | None, softcap: float | None, device: torch.device) -> None:
        self.lengths, self.window, self.softcap = lengths, window, softcap
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        self.seen = seen_blocks(first_seen(positions, window))
        self.starts = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32, device=device)

    def eager(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Compute it by plain operations."""
        if 4 * query.shape[1] * query.shape[2] ** 2 > LARGEST_MATRIX:
            raise UnsuitedError(f"scores of {4 * query.shape[1] * query.shape[2] ** 2 / 2**30:.0f} GiB")
        return plain_attention(query, key, value, self.seen.low, softcap=self.softcap)

    def sdpa(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Compute it by torch's `scaled_dot_product_attention` with a mask."""
        self._without_softcap()
        places = torch.arange(query.shape[2], device=query.device)
        mask = (places <= places[:, None]) & (places >= self.seen.low[:, None])
        return F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=query.shape[1] != key.shape[1])

    def flex(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Compute it by FlexAttention."""
        return attend(query, key, value, self.seen, softcap=self.softcap)

    def varlen(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Compute it by torch's variable-length kernel."""
        kernel = torch_kernel(query.device)
        options: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if "enable_gqa" in kernel.options else {}
        if "enable_gqa" not in kernel.options and not kernel.fewer_keys:
            key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
        if "window_size" not in kernel.options and self.window is None:
            options["is_causal"] = True
        else:
            options["window_size"] = (-1 if self.window is None else self.window - 1, 0)
        return self._flat(kernel.attend, query, key, value, **options)

    def flash4(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Compute it by flash-attn-4."""
        import flash_attn.cute  # noqa: F401 - says that it is missing

        from hub.train.kernels import flash4

        return self._flat(flash4.attend, query, key, value, window_size=(-1 if self.window is None else self.window - 1, 0))

    def _flat(self, run: Callable[..., torch.Tensor], *parts: torch.Tensor, **options: Any) -> torch.Tensor:
        self._without_softcap()
        query, key, value = (part[0].transpose(0, 1) for part in parts)
        most = max(self.lengths)
        return run(query, key, value, self.starts, self.starts, most, most, **options).transpose(0, 1)[None]

    def _without_softcap(self) -> None:
        if self.softcap is not None:
            raise UnsuitedError("it has no soft cap")


WAYS: dict[str, Callable[[Row], Attend]] = {
    "eager": lambda row: row.eager,
    "sdpa": lambda row: row.sdpa,
    "FlexAttention": lambda row: row.flex,
    "variable-length": lambda row: row.varlen,
    "FlashAttention 4": lambda row: row.flash4,
}


def measure(run: Attend, parts: list[torch.Tensor], gradient: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Return the median times in milliseconds, the peak in MiB, and the result.

    Args:
        run: computes attention.
        parts: query, key and value.
        gradient: of the result.
        rounds: how many times it is measured, after two that are not.
    """
    device = gradient.device
    is_gpu = device.type == "cuda"

    def now() -> float:
        if is_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    forward, both, peak = [], [], 0
    for number in range(rounds + 2):
        if is_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) if is_gpu else 0
        begin = now()
        output = run(parts[0], parts[1], parts[2])
        middle = now()
        torch.autograd.grad(output, parts, gradient)
        end = now()
        if number >= 2:
            forward.append(1e3 * (middle - begin))
            both.append(1e3 * (end - begin))
            peak = max(peak, torch.cuda.max_memory_allocated(device) - before if is_gpu else 0)
        output = output.detach()
    return {"forward": statistics.median(forward), "both": statistics.median(both), "peak": peak / 2**20, "output": output}


def rows(asked: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Measure each way for each head size."""
    chance = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) < asked.tokens:
        length = asked.sample or int(np.clip(chance.lognormal(np.log(500) - 0.32, 0.8), 8, 2048))
        lengths.append(min(length, asked.tokens - sum(lengths)))
    row, found = Row(lengths, asked.window, asked.softcap, device), []
    for size in asked.head_sizes:
        torch.manual_seed(0)
        kinds = (asked.heads, asked.key_heads, asked.key_heads)
        parts = [torch.randn(1, n, asked.tokens, size, device=device).to(asked.dtype).requires_grad_() for n in kinds]
        gradient = torch.randn(1, asked.heads, asked.tokens, size, device=device).to(asked.dtype)
        first: torch.Tensor | None = None
        for name in asked.only or WAYS:
            figures: dict[str, Any] = {"head_size": size, "attention": name}
            try:
                made = measure(WAYS[name](row), parts, gradient, asked.rounds)
                output = made.pop("output").float()
                first = output if name == "eager" else first
                figures |= made
                figures["apart"] = None if first is None else float((output - first).norm() / first.norm())
            except Exception as error:  # a way that is not here, or has too little memory
                figures["left_out"] = one_line(error)[:120]
            found.append(figures)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Print the rows, and below them what was left out and why."""
    lines = [line(HEAD), line(["---"] * len(HEAD))]
    for one in found:
        if "left_out" not in one:
            apart = "" if one["apart"] is None else f"{one['apart']:.0e}"
            numbers = [f"{one[key]:.2f}" for key in ("forward", "both")]
            lines.append(line((str(one["head_size"]), one["attention"], *numbers, f"{one['peak']:.0f}", apart)))
    left = [f"{one['attention']}, heads of {one['head_size']}: {one['left_out']}" for one in found if "left_out" in one]
    return "\n".join([*lines, *(["", "Left out:", *left] if left else [])])


def main(words: list[str] | None = None) -> None:
    """Measure and print. `words` is the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--key-heads", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8192, help="of the row")
    parser.add_argument("--sample", type=int, help="tokens of each sample. Without: lengths as in the other benchmarks")
    parser.add_argument("--window", type=int, help="tokens that a token sees")
    parser.add_argument("--softcap", type=float, help="bound of the scores")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=list(WAYS))
    parser.add_argument("--json", type=Path, help="file for the figures")
    asked = parser.parse_args(words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    found = rows(asked, device)
    print(f"{gpu_name() or 'CPU'}, torch {torch.__version__}: a row of {asked.tokens} tokens, {asked.heads} heads of queries, "
          f"{asked.key_heads} of keys, window {asked.window}, soft cap {asked.softcap}\n")  # fmt: skip
    print(table(found))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
