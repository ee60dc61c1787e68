"""What is measured before the first step is kept in the user's cache: a second run of the same kind does not measure it again.

The kind of a run is everything that its measurements depend on: the hub's code, the model's files, the options, what trains,
the lengths of the samples, the machine, the versions of the libraries. An entry is one JSON file with its kind in full and a
checksum. What is not exactly that is ignored. The layout is taken as it was measured, so losses are those of the measured run,
bit for bit.
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hub.config.option import leaves
from hub.data.samples.sample import samples_of
from hub.models.fingerprint import KEY as FINGERPRINT
from hub.parallel.group import broadcast_text, max_over_ranks
from hub.system import answers as stored
from hub.system.answers import Answers, open_answers
from hub.system.files import write_json
from hub.train.layout.choose import choose_compile
from hub.train.layout.layout import expected_tokens
from hub.train.setup.setup import Setup
from hub.version import VERSION

FORMAT = 1
MAX_ENTRIES = 200
"""Entries that are kept. Beyond it the oldest go."""

MAX_BYTES = 2**20
"""Size of an entry from which on it is none of the hub's."""

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "flash-attn-4", "triton", "kernels", "numpy")
"""Packages whose code takes part in a measurement."""

UNRELATED = {
    *(
        "num_epochs",
        "max_steps",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "seed",
        "backend",
    ),
    *(
        "log_every_steps",
        "eval_every_steps",
        "save_every_steps",
        "save_every_epochs",
        "keep_checkpoints",
        "keep_best",
        "best_by",
    ),
    *("learning_rate", "lr_scheduler", "warmup_steps", "warmup_ratio", "warmup_start_ratio", "min_lr_ratio", "lr_num_cycles"),
    *("lr_power", "lr_decay_steps", "lr_decay_ratio", "lr_decay_type", "lr_factor", "lr_patience"),
    *("early_stopping_patience", "early_stopping_min_delta", "notes", "path", "revision", "gguf_package", "family"),
}
"""Options of `algo` and `model` that no measurement depends on. All others are part of the kind, those of plugins too. The
files of the model stand for its path."""

SET_BY_COMPILER = ("TRITON_PTXAS_PATH", "TRITON_LIBDEVICE_PATH")
"""Paths that torch's compiler writes into the environment: the next run in the process would be of another kind."""

OF_LAUNCH = ("strategy", "cpu_offload", "gpu_memory_gb")

SAMPLES = 1000
"""Samples whose lengths are part of the kind: those that a measurement may choose from."""

REASONS = {"isolation": "packed_because", "equality": "fused_head_because", "memory": "max_tokens_per_gpu_because"}
"""Measurement -> the reason in plan.json that rests on it."""


class MeasuredBefore:
    """The measurements of a run, and their entry in the user's cache. Rank 0 alone reads and writes it.

    Args:
        setup: the run.
        kind: of the run. Empty: nothing is kept.
    """

    def __init__(self, setup: Setup, kind: dict[str, Any]) -> None:
        self._run, self._kind, self._resumes = setup.run, kind, setup.cfg.resume is not None
        self._file = stored.entries_folder() / f"{_digest(kind)}.json"
        self._at, known = ("", {}) if not kind or not setup.run.is_main else self._read()
        # All ranks reuse the same, or nothing.
        self._at, known = json.loads(broadcast_text(json.dumps([self._at, known])))
        self.answers = Answers(known)

    def report(self) -> None:
        """Say what was reused, and write it into plan.json. That of a resumed run has what it had."""
        if not self.answers.reused:
            return
        plan = {} if self._resumes else self._run.plan()
        reasons = {key: plan[key] for name, key in REASONS.items() if name in self.answers.reused and key in plan}
        words = {key: f"{because}; measured before, at {self._at}" for key, because in reasons.items()}
        if not self._resumes:
            self._run.write_plan(measured_before={"at": self._at, "what": self.answers.reused}, **words)
        self._run.say(
            f"measured before, at {self._at}, and not again: {', '.join(self.answers.reused)} (launch.reuse_measurements=false "
            "measures anew)"
        )

    def keep(self) -> None:
        """Keep what was measured, once a step has shown that it holds. A cache that can't be written ends no run."""
        kind, self._kind = self._kind, {}
        if not kind or not self.answers.given or self.answers.is_doubtful:
            return
        with suppress(OSError):
            if self.answers.given == self.answers.known:
                os.utime(self._file)
                return
            self._file.parent.mkdir(parents=True, exist_ok=True)
            given = self.answers.given
            at = time.strftime("%Y-%m-%d %H:%M")
            write_json(self._file, {"kind": kind, "at": at, "answers": given, "checksum": _digest(given)})
            files = sorted(self._file.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
            for file in files[: max(0, len(files) - MAX_ENTRIES)]:
                file.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the entry: memory ran out with what it says, so the next run measures anew."""
        self._kind = {}
        if self._run.is_main:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)

    def _read(self) -> tuple[str, dict[str, Any]]:
        """When the entry was measured, and what. Empty: there is none for this kind of run."""
        try:
            if self._file.stat().st_size > MAX_BYTES:
                raise ValueError("it is too large")
            entry = json.loads(self._file.read_text(encoding="utf-8"))
            at, answers = entry["at"], entry["answers"]
            if entry["kind"] != json.loads(json.dumps(self._kind)):
                raise ValueError("it is of another kind of run")
            if not isinstance(at, str) or not isinstance(answers, dict) or entry["checksum"] != _digest(answers):
                raise ValueError("its checksum does not fit")
        except FileNotFoundError:
            return "", {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            why = f"{type(error).__name__}" if isinstance(error, KeyError | TypeError) else str(error)
            self._run.say(f"{self._file} is ignored, and all is measured anew ({why}). Delete the file")
            return "", {}
        return at, answers


@contextmanager
def reusing(
    setup: Setup, model: torch.nn.Module, loss: Callable[..., object], num_parameters: int, library: str = ""
) -> Iterator[MeasuredBefore]:
    """Take from the user's cache what an earlier run of this kind has measured, within this context. All ranks must enter it.

    Args:
        setup: the run.
        model: ready to train.
        loss: of a micro-batch.
        num_parameters: of the model, as `choose_layout` gets it.
        library: whose kernels are on, if they are not the hub's.
    """
    kind: dict[str, Any] = {}
    cfg = setup.cfg
    # Of settings in a file, and of a model's own code, which may come from yet another place, it is not known what they do.
    if cfg.launch.reuse_measurements and cfg.launch.deepspeed_config is None and not cfg.model.trust_remote_code:
        here = machine(setup.session.device)
        is_alike = _digest(here) == broadcast_text(_digest(here))
        if not max_over_ranks(float(not is_alike)):
            kind = kind_of(setup, model, loss, num_parameters, library) | {"machine": here}
    before = MeasuredBefore(setup, kind)
    with open_answers(before.answers):
        yield before
    before.report()


def kind_of(
    setup: Setup, model: torch.nn.Module, loss: Callable[..., object], num_parameters: int, library: str
) -> dict[str, Any]:
    """Everything but the machine that a run's measurements depend on. Only hashes of names and paths. See `reusing`.

    Empty where it is not known: on ranks other than 0, or if the files of the weights can't be read.
    """
    cfg, session = setup.cfg, setup.session
    weights = setup.run.plan().get(FINGERPRINT) if setup.run.is_main else None
    if not weights:
        return {}
    options = {name: value for name, value, *_ in leaves(cfg) if name.partition(".")[0] in ("algo", "model")}
    chosen = {name: value for name, value in options.items() if name.partition(".")[2] not in UNRELATED}
    lengths = [len(sample) for sample in samples_of(setup.data.train[:SAMPLES])]
    compiled, _ = choose_compile(cfg.algo.torch_compile, num_parameters, expected_tokens(setup), session.device)
    return {
        "format": FORMAT,
        "hub": VERSION,
        "code": code_digest(type(cfg.algo).__module__.partition(".")[0]),
        "algorithm": setup.algorithm,
        "weights": weights,
        "files": _files(setup.base_path, "*"),
        "adapter": _files(Path(os.path.expanduser(cfg.model.adapter)), "adapter*") if cfg.model.adapter else "",
        "options": _digest(chosen),
        "launch": {name: getattr(cfg.launch, name) for name in OF_LAUNCH},
        "strategy": session.strategy.name,
        "dtype": str(session.compute_dtype),
        "world": session.group.world,
        "compiled": compiled,
        "loss": f"{getattr(loss, '__module__', '')}.{getattr(loss, '__qualname__', type(loss).__name__)}",
        "library": library,
        "parameters": _digest([(name, list(p.shape), str(p.dtype), p.requires_grad) for name, p in model.named_parameters()]),
        "template": _digest(setup.tokenizer.chat_template),
        "samples": _digest([lengths, setup.data.longest, setup.source.batch_size, cfg.data.streaming]),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What a measurement depends on of the machine of this process: its device, the versions, variables that torch reads."""
    found: dict[str, Any] = {"device": device.type, "python": sys.version, "processor": platform.machine(), "versions": {}}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found["versions"][name] = version(name)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}
        found["capability"] = [properties.major, properties.minor]
        with suppress(AttributeError):
            found["driver"] = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]  # only in torch for CUDA
    else:
        found |= {"cpu": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
    begins, agents = (
        ("TORCH", "PYTORCH", "TRITON", "CUBLAS", "NVIDIA_TF32"),
        ("TORCHELASTIC", "TORCH_NCCL", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", *SET_BY_COMPILER),
    )
    variables = {k: value for k, value in os.environ.items() if k.startswith(begins) and not k.startswith(agents)}
    return found | {"variables": _digest(variables)}


@cache
def code_digest(plugin: str) -> str:
    """A digest of the hub's own code that measures and computes, of an algorithm's package, and of the hub's plugins."""
    root = Path(__file__).parents[1]
    files = [file for name in ("train", "models", "parallel") for file in sorted((root / name).rglob("*.py"))]
    packages = {plugin, *(name for name in sys.modules if name.startswith("hub_") and "." not in name)} - {"hub"}
    for name in sorted(packages):
        for folder in list(getattr(sys.modules.get(name), "__path__", [])):
            files += sorted(Path(folder).rglob("*.py"))
    return _digest([(file.name, _content(file)) for file in files])


def _content(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


def _files(folder: Path, form: str) -> str:
    """The files of a model's folder, by size and time of the last change: a fingerprint looks at a few bytes only."""
    found = [(file.name, file.stat()) for file in sorted(folder.glob(form)) if file.is_file()]
    return _digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in found])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
