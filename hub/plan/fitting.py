"""What to change if a run does not fit: the mildest changes that make it fit, as overrides to paste. No torch.

What a change does to memory and time is asked of the caller (`PeakOf`), which plans the run with it. So the answers are the
planner's own, and nothing is listed that was not tried.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import combinations
from typing import NamedTuple

from hub.config.launch import WORK_ON_SHARDS
from hub.config.option import AUTO, conf_dir
from hub.config.schema import RunConfig
from hub.errors import HubError
from hub.plan.data_tokens import DataTokens

MAX_TRIES = 24
"""Plans that a search makes. Each takes up to a second or two."""

SHORT = 64
"""A shorter `data.max_seq_len` than this is no advice."""

MOST_GPUS = 8


class Tried(NamedTuple):
    """A plan of the run with some changes."""

    peak_bytes: float
    """Of one GPU."""

    memory_bytes: float
    """That one GPU has."""

    slowdown: float
    """Time of the run over that of the run as it was asked for (as if it fitted)."""

    fits: bool


PeakOf = Callable[[Sequence[str]], Tried]
"""Overrides that are added to the command -> the plan with them. Raises a HubError where they clash with the rest."""


class Loses(IntEnum):
    """What a change costs besides time, from nothing to much."""

    NOTHING = 0
    ROUNDING = 1
    """Numbers are stored in fewer bits."""

    HARDWARE = 2
    """More GPUs."""

    DATA = 3
    """Some samples are cut or left out."""

    METHOD = 4
    """Something else trains."""

    MODEL = 5
    """Another model."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that may be changed. Of `steps` the first that fits is enough."""

    name: str
    loses: Loses
    steps: tuple[tuple[tuple[str, ...], str], ...]
    """Overrides, with what they do in words, from mild to strong."""

    alone: bool = False
    """Whether it is no use together with others: it changes what they are about."""


@dataclass(frozen=True, kw_only=True)
class Fix:
    """Changes that make a run fit."""

    overrides: tuple[str, ...]
    what: str
    loses: Loses
    tried: Tried
    more_gpus: float = 1.0
    """GPUs over those of the run as it was asked for."""

    @property
    def price(self) -> float:
        """GPU time over that of the run as it was asked for."""
        return self.tried.slowdown * self.more_gpus

    @property
    def line(self) -> str:
        """Overrides, what they do, and their price, in one line."""
        change = self.tried.slowdown - 1
        time = "no more time" if abs(change) < 0.02 else f"{abs(change):.0%} {'more' if change > 0 else 'less'} time"
        return f"{' '.join(self.overrides)}  ({self.what}; {time})"


@dataclass
class _Search:
    peak_of: PeakOf
    left: int
    known: dict[tuple[str, ...], Tried | None] = field(default_factory=dict)

    def __call__(self, overrides: tuple[str, ...]) -> Tried | None:
        """The plan with some overrides. None: they can't be combined, or enough was tried."""
        if overrides not in self.known:
            if not self.left:
                return None
            self.left -= 1
            try:
                self.known[overrides] = self.peak_of(overrides)
            except HubError:
                self.known[overrides] = None
        return self.known[overrides]


def fixes(changes: Sequence[Change], peak_of: PeakOf, world: int = 1, max_tries: int = MAX_TRIES) -> list[Fix]:
    """The mildest ways to make a run fit: each change alone where that is enough, else some together.

    Args:
        changes: from `changes_of`.
        peak_of: plans the run with some overrides added.
        world: GPUs of the run as it was asked for.
        max_tries: plans to make at most.

    Returns:
        What loses least first; of those the cheapest first. Empty: nothing that was tried makes it fit.
    """
    search = _Search(peak_of, max_tries)
    found = [fix for change in changes if (fix := _alone(change, search))]
    least = min((fix.loses for fix in found), default=Loses.MODEL)
    together = [change for change in changes if not change.alone and change.loses < least]
    several = (fix for number in range(2, len(together) + 1) if (fix := _together(together, number, search)))
    found += [fix] if (fix := next(several, None)) else []
    found = [replace(fix, more_gpus=fix.more_gpus / world) if fix.more_gpus > 1 else fix for fix in found]
    return sorted(found, key=lambda fix: (fix.loses, fix.price))


def _alone(change: Change, search: _Search) -> Fix | None:
    for overrides, what in change.steps:
        tried = search(overrides)
        if tried is not None and tried.fits:
            return _fix(((overrides, what, change.loses),), tried)
    return None


def _together(changes: Sequence[Change], number: int, search: _Search) -> Fix | None:
    """The mildest so many changes that make it fit together, each as strong as it can be."""
    groups = sorted(combinations(changes, number), key=lambda group: (max(c.loses for c in group), sum(c.loses for c in group)))
    for group in groups:
        parts = tuple((*change.steps[-1], change.loses) for change in group)
        names = [override.partition("=")[0] for overrides, _, _ in parts for override in overrides]
        if len(set(names)) < len(names):
            continue
        tried = search(tuple(override for overrides, _, _ in parts for override in overrides))
        if tried is not None and tried.fits:
            return _fix(parts, tried)
    return None


def _fix(parts: Sequence[tuple[tuple[str, ...], str, Loses]], tried: Tried) -> Fix:
    overrides = tuple(override for each, _, _ in parts for override in each)
    gpus = next((float(override.partition("=")[2]) for override in overrides if override.startswith("plan.gpus=")), 1.0)
    what = ", ".join(words for _, words, _ in parts)
    return Fix(overrides=overrides, what=what, loses=max(loses for _, _, loses in parts), tried=tried, more_gpus=gpus)


def changes_of(
    cfg: RunConfig,
    data: DataTokens | None,
    longest: int,
    longest_that_fits: int,
    world: int,
    algorithms: Sequence[str] = (),
) -> list[Change]:
    """What may be changed in a run, from its options.

    Args:
        cfg: the run.
        data: its tokens. None: not known.
        longest: tokens of the longest sample.
        longest_that_fits: tokens of the longest sample that would fit as the run is.
        world: number of GPUs.
        algorithms: names of other algorithms, or presets of them, that may take less.
    """
    changes = [*_same_result(cfg, longest), *_fewer_bits(cfg), *_fewer_directions(cfg)]
    if cfg.algo.optimizer in WORK_ON_SHARDS and cfg.launch.strategy in (AUTO, "ddp", "fsdp"):
        numbers = [count for count in (2, 4, MOST_GPUS) if count > world]
        steps = tuple(((f"plan.gpus={count}", "launch.strategy=fsdp"), f"{count} GPUs share the weights") for count in numbers)
        changes += [Change(name="gpus", loses=Loses.HARDWARE, steps=steps)] if steps else []
    changes += _shorter(cfg, data, longest, longest_that_fits)
    if algorithms:
        others = tuple(((f"algo={name}",), f"{name} in place of what is asked for") for name in algorithms)
        changes.append(Change(name="algo", loses=Loses.METHOD, steps=others, alone=True))
    if smaller := smaller_presets(cfg):
        models = tuple(((f"model={name}",), f"a model of {_size(billions)} parameters") for name, billions in smaller)
        changes.append(Change(name="model", loses=Loses.MODEL, steps=models, alone=True))
    return changes


def _same_result(cfg: RunConfig, longest: int) -> Iterator[Change]:
    """Options that were set and that the hub would choose better: the result does not change beyond rounding."""
    algo = cfg.algo
    steps: list[tuple[tuple[str, ...], str]] = []
    if algo.gradient_checkpointing == "none":
        steps.append((("algo.gradient_checkpointing=auto",), "layers recompute their activations, as many as memory requires"))
    if algo.activation_offload == "none":
        both = ("algo.gradient_checkpointing=auto",) if algo.gradient_checkpointing == "none" else ()
        steps.append(((*both, "algo.activation_offload=auto"), "layers' inputs wait in CPU memory"))
    if steps:
        yield Change(name="activations", loses=Loses.NOTHING, steps=tuple(steps))
    if isinstance(algo.max_tokens_per_gpu, int) and algo.max_tokens_per_gpu > longest:
        yield Change(
            name="tokens",
            loses=Loses.NOTHING,
            steps=(((f"algo.max_tokens_per_gpu={longest}",), "micro-batches of one long sample"),),
        )
    if cfg.launch.gpu_memory_gb is not None:
        yield Change(name="limit", loses=Loses.NOTHING, steps=((("launch.gpu_memory_gb=null",), "all of the GPU's memory"),))


def _fewer_bits(cfg: RunConfig) -> Iterator[Change]:
    """Weights, gradients or moments in fewer bits, where the algorithm has an option for it."""
    algo, full = cfg.algo, cfg.model.quantization is None and cfg.model.dtype != "float32"
    if full and getattr(algo, "load_in_4bit", None) is False:
        also = ["algo.load_in_8bit=false"] if getattr(algo, "load_in_8bit", False) else []
        also += ["algo.precision=auto"] if getattr(algo, "precision", AUTO) == "fp8" else []
        four_bit = (((*also, "algo.load_in_4bit=true"), "frozen weights in 4 bits (NF4)"),)
        yield Change(name="4-bit", loses=Loses.ROUNDING, steps=four_bit)
    sharded = cfg.launch.strategy in ("fsdp", "zero1", "zero2", "zero3")
    if (
        getattr(algo, "master_weights", None) is True
        and algo.optimizer == "adamw"
        and not cfg.launch.strategy.startswith("zero")
    ):
        steps = ((("algo.master_weights=false",), "weights and moments in bfloat16, rounded stochastically"),)
        yield Change(name="master weights", loses=Loses.ROUNDING, steps=steps)
    if algo.optimizer == "adamw" and not sharded and getattr(algo, "master_weights", True):
        yield Change(name="optimizer", loses=Loses.ROUNDING, steps=((("algo.optimizer=adamw_8bit",), "moments in 8 bits"),))


def _fewer_directions(cfg: RunConfig) -> Iterator[Change]:
    """A smaller part of each matrix, where the algorithm has an option for it."""
    ratio = getattr(cfg.algo, "ratio", None) if hasattr(cfg.algo, "unfreeze_rank_ratio") else None
    words = {0.5: "half of the directions of each matrix train", 0.25: "a quarter of the directions of each matrix train"}
    steps = [
        ((f"algo.unfreeze_rank_ratio={less}",), what) for less, what in words.items() if ratio is not None and less < ratio
    ]
    if steps:
        yield Change(name="directions", loses=Loses.METHOD, steps=tuple(steps))


def _shorter(cfg: RunConfig, data: DataTokens | None, longest: int, longest_that_fits: int) -> Iterator[Change]:
    length = longest_that_fits // SHORT * SHORT
    if length < SHORT or length >= longest or cfg.data.block_size is not None:
        return
    overrides = [f"data.max_seq_len={length}"]
    if isinstance(cfg.algo.max_tokens_per_gpu, int) and cfg.algo.max_tokens_per_gpu > length:
        overrides.append(f"algo.max_tokens_per_gpu={length}")
    verb = {"truncate": "cut", "split": "split"}.get(cfg.data.on_long, "left out")
    what = f"samples of at most {length:,} tokens"
    if data is not None:
        share = data.share_longer(length)
        what += f": {share:.1%} of them are longer and {verb}" if share else ": hardly any is longer"
    yield Change(name="length", loses=Loses.DATA, steps=((tuple(overrides), what),))


def smaller_presets(cfg: RunConfig) -> list[tuple[str, float]]:
    """The presets of the same family that are smaller, with their parameters in billions: the largest first.

    Those in 4 bits are left out: another option says that.
    """
    from yaml import safe_load  # type: ignore[import-untyped]

    mine = _billions(cfg.model.notes)
    if mine is None or cfg.model.family is None:
        return []
    found = []
    for file in (conf_dir() / "model").glob("*.yaml"):
        held = safe_load(file.read_text(encoding="utf-8"))
        size = _billions(str(held.get("notes", "")))
        alike = (held.get("family"), held.get("quantization")) == (cfg.model.family, cfg.model.quantization)
        if alike and size and size < 0.9 * mine:
            found.append((file.stem, size))
    by_size: dict[float, str] = {size: name for name, size in sorted(found, reverse=True)}
    return [(by_size[size], size) for size in sorted(by_size, reverse=True)]


def _billions(notes: str) -> float | None:
    """Parameters in billions, from a preset's line on it."""
    match = re.match(r"([\d.]+)([BM])\b", notes)
    return float(match[1]) / (1 if match[2] == "B" else 1000) if match else None


def _size(billions: float) -> str:
    return f"{billions:g}B" if billions >= 1 else f"{billions * 1000:g}M"
