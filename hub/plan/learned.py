"""What earlier runs on this machine measured: a file in the user's cache, by the kind of run. No torch.

Nothing leaves the machine, and the file holds no path, no name and no text of the user: shapes, options that decide memory
and speed, the GPU, versions, and three numbers. `plan.learn=false` neither writes nor reads it; deleting it loses nothing else.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hub.config.option import AUTO
from hub.config.schema import RunConfig
from hub.system.cache import cache_dir

MAX_LINES = 2000
"""Runs that the file holds. Beyond it the older half goes."""

MAX_LINE = 4096
"""Characters of a run's line. A longer one is not kept."""

NEWEST = 8
"""Runs of one kind that a plan looks at."""

FORMAT = 2
"""Part of a run's kind. Increase it when the lines mean something else: runs of an older format are of another kind then."""

FIRST = 2
"""Steps that are not steady."""

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "flash-attn-4")
"""Packages whose versions decide memory or speed."""

OPTIONS = (
    "algo.max_tokens_per_gpu",
    "algo.gradient_checkpointing",
    "algo.activation_offload",
    "algo.torch_compile",
    "algo.optimizer",
    "algo.deterministic",
    "model.dtype",
    "model.quantization",
    "launch.strategy",
    "launch.cpu_offload",
    "launch.gpu_memory_gb",
)
"""Options of every run that decide memory or speed."""

OF_ALGORITHMS = (
    "precision",
    "master_weights",
    "load_in_4bit",
    "load_in_8bit",
    "lora_r",
    "use_dora",
    "target_modules",
    "parametrization",
    "unfreeze_rank_ratio",
    "backend",
)
"""Options of an algorithm that decide memory or speed, if it has them. Of a list of names only a hash is stored."""

SHAPE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "tie_word_embeddings",
)
"""What a config says of a model's shape."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one run measured."""

    peak_bytes: int
    """The most that torch had allocated on one GPU."""

    tokens_per_second: float
    """Of all GPUs together: the median of its steps, without the first ones. 0: it had too few."""

    first_step_seconds: float
    """From the start of the process to the end of the first step."""

    longest: int
    """Tokens of its longest sample."""

    max_tokens: int
    """Tokens of its micro-batches, at most."""

    num_checkpointed: int
    """Layers with activation checkpointing."""

    predicted_peak_bytes: int = 0
    """Peak memory as planned before the run, on one GPU. 0: there was no plan."""

    predicted_tokens_per_second: float = 0.0
    """Of all GPUs together, as planned before the run. 0: there was no plan."""

    seconds_since_1970: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """What the newest runs of one kind measured."""

    runs: tuple[Measured, ...]
    """The newest last."""

    lines: tuple[str, ...] = ()
    """What is wrong with the file."""

    @property
    def tokens_per_second(self) -> float | None:
        """Median of the runs. None: there was none of this kind."""
        return _median([run.tokens_per_second for run in self.runs if run.tokens_per_second > 0])

    @property
    def first_step_seconds(self) -> list[float]:
        """Of each run."""
        return [run.first_step_seconds for run in self.runs if run.first_step_seconds > 0]

    def peak_factor(self) -> float | None:
        """Median of measured over predicted peak. None: no run of this kind had a plan."""
        return _median([run.peak_bytes / run.predicted_peak_bytes for run in self.runs if run.predicted_peak_bytes > 0])

    @property
    def because(self) -> str:
        """Where a plan's numbers come from, for the reader. Empty: from no run."""
        count = len(self.runs)
        return f"measured by {count} earlier run{'s' if count > 1 else ''} of this kind on this machine" if count else ""


def steady_speed(metrics: Sequence[Mapping[str, Any]]) -> float | None:
    """The median speed of a run's steps, without the first ones, which compile and take memory for the first time.

    Args:
        metrics: its logged steps.

    Returns:
        Tokens per second of all processes. None: it has too few steps.
    """
    speeds = [(int(line.get("step", 0)), float(line.get("tokens_per_second") or 0.0)) for line in metrics]
    return _median([speed for step, speed in speeds if step > FIRST and speed])


def key_of(algorithm: str, cfg: RunConfig, shape: Mapping[str, Any], gpu: str, world: int, length: int) -> dict[str, Any]:
    """The kind of a run: everything that decides its memory and speed, and nothing that names a person or a place.

    Args:
        algorithm: its name.
        cfg: the run.
        shape: what the model's config says of its shape (`SHAPE`); other keys are left out.
        gpu: name of the GPU.
        world: number of processes.
        length: tokens of the longest sample. Runs of similar lengths (to the next power of two) are of one kind.
    """
    options: dict[str, Any] = {}
    for name in OPTIONS:
        section, _, option = name.partition(".")
        options[name] = getattr(getattr(cfg, section), option)
    for option in OF_ALGORITHMS:
        if (value := getattr(cfg.algo, option, None)) is not None:
            options[f"algo.{option}"] = value if isinstance(value, bool | int | float) else _digest(value)
    return {
        "format": FORMAT,
        "algorithm": algorithm,
        "shape": {name: shape[name] for name in SHAPE if isinstance(shape.get(name), bool | int | float | str)},
        "options": {name: value for name, value in options.items() if value is not None},
        "gpu": gpu,
        "world": world,
        "length": 2 ** math.ceil(math.log2(max(2, length))),
        "versions": _versions(),
    }


def remember(key: Mapping[str, Any], measured: Measured, file: Path | None = None) -> bool:
    """Keep what a run measured, for the next plan of the same kind. To be called on rank 0, at the end of a run.

    Args:
        key: from `key_of`.
        measured: the numbers.
        file: where to. None: `learned_file()`.

    Returns:
        Whether it was kept. A cache that is full or can't be written ends no run.
    """
    file = file or learned_file()
    numbers = asdict(measured) | {"seconds_since_1970": round(time.time())}
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers.values()):
        return False
    line = json.dumps({"kind": _digest(key), "key": dict(key), **numbers}, sort_keys=True)
    if len(line) > MAX_LINE:
        return False
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file):
            # One write of less than a page to a file that is open for appending: lines of several writers do not mix.
            with file.open("ab") as stream:
                ends_whole = stream.tell() == 0 or _last_byte(file) == b"\n"
                stream.write((b"" if ends_whole else b"\n") + line.encode() + b"\n")
            _shorten(file)
    except OSError:
        return False
    return True


def recall(key: Mapping[str, Any], file: Path | None = None) -> Recalled:
    """What the newest runs of a kind measured on this machine.

    Args:
        key: from `key_of`.
        file: where from. None: `learned_file()`.
    """
    file = file or learned_file()
    kind, found, num_broken = _digest(key), [], 0
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return Recalled(runs=())
    except OSError as error:
        return Recalled(runs=(), lines=(f"{file}: can't be read ({error.strerror}), so the plan begins from no earlier run",))
    for line in text.splitlines():
        try:
            held = json.loads(line)
            run = _measured(held)
        except (ValueError, TypeError, KeyError, RecursionError):
            num_broken += 1
            continue
        if held["kind"] == kind:
            found.append(run)
    lines = (f"{file}: {num_broken} damaged lines are ignored. Delete the file to begin anew",) if num_broken else ()
    return Recalled(runs=tuple(found[-NEWEST:]), lines=lines)


def learned_file() -> Path:
    """The file of what runs measured."""
    return cache_dir() / "learned" / "runs.jsonl"


def _measured(held: Mapping[str, Any]) -> Measured:
    numbers = {item.name: held[item.name] for item in fields(Measured)}
    if not isinstance(held["kind"], str) or not all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
        for value in numbers.values()
    ):
        raise ValueError(held)
    if not numbers["peak_bytes"]:
        raise ValueError(held)
    return Measured(**numbers)


def _shorten(file: Path) -> None:
    """Leave the newer half of a file that has become too long. Called while it is locked."""
    if file.stat().st_size < MAX_LINES * 200:
        return
    lines = file.read_bytes().splitlines(keepends=True)
    if len(lines) <= MAX_LINES:
        return
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_bytes(b"".join(lines[-MAX_LINES // 2 :]))
    aside.replace(file)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Held by one writer at a time, where files have locks: a line must not go into a file that is being replaced."""
    try:
        from fcntl import LOCK_EX, flock
    except ImportError:  # Windows
        yield
        return
    with (file.parent / ".lock").open("ab") as stream:
        with suppress(OSError):  # some network file systems have no locks
            flock(stream, LOCK_EX)
        yield


def _last_byte(file: Path) -> bytes:
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1)


def _versions() -> dict[str, str]:
    """Versions of what decides memory and speed: without the part for the build."""
    found = {}
    for name in (*PACKAGES, "finetune-hub"):
        with suppress(PackageNotFoundError):
            found[name] = version(name).partition("+")[0]
    return found


def _digest(value: object) -> str:
    """A short name of a value. Equal values have equal ones."""
    if value == AUTO:
        return AUTO
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _median(values: list[float]) -> float | None:
    ordered = sorted(values)
    middle = len(ordered) // 2
    if not ordered:
        return None
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
