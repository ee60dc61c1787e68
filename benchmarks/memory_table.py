"""The table of docs/memory.md: the least memory and the smallest GPU for each preset, algorithm and length.

    python -m benchmarks.memory_table            # prints the table
    python -m benchmarks.memory_table --write    # and puts it into docs/memory.md

No weights, no GPU and no network are needed: the presets' shapes are in preset_shapes.py.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.preset_shapes import SHAPES, folder_of
from hub.plan.prediction import MemoryPlan
from hub.system.known_gpus import Gpu

PAGE = Path(__file__).parents[1] / "docs" / "memory.md"
BEGIN, END = "<!-- table: python -m benchmarks.memory_table --write -->", "<!-- end of the table -->"
ALGORITHMS = ("qlora_sft", "lora_sft", "osft", "sft")
LENGTHS = (2048, 8192, 32768)
"""Tokens of the longest sample."""

LEAST = ("algo.gradient_checkpointing=all", "algo.activation_offload=all")
BATCH = 32
"""Samples of a step."""

NO_GPU = "none"


@dataclass(frozen=True)
class Need:
    """What a run takes with everything that saves memory turned on."""

    least_gib: float
    """Peak of one GPU: all layers checkpointed, their inputs in CPU memory, micro-batches of one sample."""

    gpu: str | None
    """The smallest known GPU on which the hub, left to itself, fits it. None: there is none."""

    def __str__(self) -> str:
        return f"{self.least_gib:.1f}: {self.gpu or NO_GPU}"


def needs(preset: str, algo: str, lengths: Sequence[int] = LENGTHS) -> list[Need | None]:
    """Plan a preset with an algorithm, for samples of some lengths.

    Args:
        preset: one of `preset_shapes.SHAPES`.
        algo: an algorithm or a preset of one.
        lengths: tokens of the longest sample.

    Returns:
        None for a length that the model does not take.
    """
    import torch

    from hub.compose.compose import compose
    from hub.plan.memory import Planner
    from hub.plugins.registry import resolve
    from hub.system.known_gpus import known_gpus
    from hub.train.layout.memory_budget import draw_loads

    gpus, folder = list(known_gpus().values()), folder_of(preset)
    words = [f"algo={algo}", "algo.backend=native", f"model.path={folder}"]
    planner = Planner(resolve(compose(*words), check_needs=False), folder, torch.bfloat16)

    def plan(gpu: Gpu, length: int, *more: str) -> MemoryPlan:
        return planner.plan(compose(*words, *more), gpu, 1, length, draw_loads([length], BATCH))

    found: list[Need | None] = []
    for length in lengths:
        if length > int(SHAPES[preset]["max_position_embeddings"]):
            found.append(None)
            continue
        least = plan(gpus[-1], length, *LEAST, f"algo.max_tokens_per_gpu={length}").peak_bytes
        able = (gpu for gpu in gpus if gpu.has_bfloat16 and gpu.memory_bytes >= least)
        found.append(Need(least / 2**30, next((gpu.name for gpu in able if plan(gpu, length).fits), None)))
    return found


def lines(presets: list[str], algorithms: list[str]) -> Iterator[str]:
    """Yield the table in Markdown, a line as soon as its plans are made."""
    yield "| model | algorithm | " + " | ".join(f"{length:,} tokens" for length in LENGTHS) + " |"
    yield "| --- | --- |" + " --- |" * len(LENGTHS)
    for preset in presets:
        for algo in algorithms:
            cells = (str(need) if need else "" for need in needs(preset, algo))
            yield f"| {preset} | {algo} | {' | '.join(cells)} |"


def write(table: list[str]) -> None:
    """Put a table into the page, in place of the one that is there."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text("\n".join([before + BEGIN, "", *table, "", END + after]), encoding="utf-8")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default=",".join(SHAPES), help="presets, separated by commas")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS), help="algorithms, separated by commas")
    parser.add_argument("--write", action="store_true", help="put the table into docs/memory.md")
    asked = parser.parse_args()
    table = []
    for line in lines(asked.presets.split(","), asked.algorithms.split(",")):
        print(line, flush=True)
        table.append(line)
    if asked.write:
        write(table)


if __name__ == "__main__":
    main()
