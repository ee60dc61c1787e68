"""Plans a run: its memory and layout on some GPUs, its time and disk, and what to change if it does not fit."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hub.config.option import AUTO
from hub.config.schema import RunConfig
from hub.data.prepare import Prepared
from hub.errors import ConfigError, HubError
from hub.models.load import load_config
from hub.models.storage import storage_problems, with_storage
from hub.models.structure import max_positions
from hub.models.weights import local_tokenizer
from hub.plan.build import compute_dtype
from hub.plan.data_tokens import DataTokens, data_tokens
from hub.plan.fitting import Fix, Tried, changes_of, fixes
from hub.plan.gpus import planned_gpu, planned_number, smallest_that_fits
from hub.plan.learned import Recalled, key_of, recall
from hub.plan.memory import Planner
from hub.plan.prediction import MemoryPlan
from hub.plan.speed import Speed, Way, shape_of, speed_of
from hub.plan.work import Cost, Disk, Work, cost_of, disk_of, export_bytes, first_step_seconds, work_of
from hub.plugins.registry import ResolvedRun, registry, resolve
from hub.system.known_gpus import Gpu, known_gpus
from hub.train.layout.flops import num_trained_of_token
from hub.train.layout.memory_budget import draw_loads

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ASSUMED_LENGTH = 2048
"""Tokens of each sample, if there is no data to ask."""

NOT_OF_THE_MODEL = (
    "gradient_checkpointing", "activation_offload", "max_tokens_per_gpu", "optimizer", "num_epochs", "max_steps",
    "effective_batch_size", "learning_rate", "deterministic",
)  # fmt: skip
"""Options of algorithms on which neither the model nor what its layers take depends."""

SHOWN_FIXES = 8

Again = Callable[[Sequence[str]], RunConfig]
"""Overrides -> the config of the run with them added."""


@dataclass(frozen=True, kw_only=True)
class OnGpu:
    """A run on one kind of GPU."""

    gpu: Gpu
    memory: MemoryPlan
    speed: Speed | None
    cost: Cost | None


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan of a run."""

    name: str
    """The algorithm, or the preset of it that was asked for."""

    cfg: RunConfig
    chosen: OnGpu
    asked: bool
    """Whether the GPU was asked for or is here; else it is the smallest that fits."""

    data: DataTokens | None
    work: Work | None
    disk: Disk
    fixes: tuple[Fix, ...] = ()
    compared: tuple[tuple[str, OnGpu | str], ...] = ()
    """Name and plan of others, or why there is none."""

    learned: Recalled | None = None
    lines: tuple[str, ...] = field(default=())

    @property
    def num_tokens(self) -> float | None:
        """Tokens of the whole training."""
        return self.work.num_tokens[1] if self.work else None

    def as_json(self) -> dict[str, Any]:
        """Values for JSON. Memory is in bytes."""
        return {
            "algo": self.name,
            "model": self.cfg.model.path,
            **_on_gpu_json(self.chosen),
            "gpu_is_asked_for": self.asked,
            "data": None if self.data is None else _data_json(self.data),
            "work": None if self.work is None else asdict(self.work),
            "disk_bytes": {**asdict(self.disk), "total": self.disk.total},
            "fixes": [
                {
                    "overrides": list(fix.overrides),
                    "what": fix.what,
                    "slowdown": fix.tried.slowdown,
                    "peak_bytes": fix.tried.peak_bytes,
                }
                for fix in self.fixes
            ],
            "compared": [
                {"name": name, "problem": found} if isinstance(found, str) else {"name": name, **_on_gpu_json(found)}
                for name, found in self.compared
            ],
            "learned_from": len(self.learned.runs) if self.learned else 0,
            "lines": list(self.lines),
        }

    def __repr__(self) -> str:
        from hub.tasks.plan.page import page

        return page(self)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(repr(self))}</pre>"


def _on_gpu_json(found: OnGpu) -> dict[str, Any]:
    return {
        "gpu": found.gpu.name,
        "num_gpus": found.memory.world,
        "memory": found.memory.as_json(),
        "speed": None if found.speed is None else asdict(found.speed),
        "cost": None if found.cost is None else asdict(found.cost),
    }


def _data_json(data: DataTokens) -> dict[str, Any]:
    kept = {
        item.name: getattr(data, item.name)
        for item in fields(data)
        if item.name not in ("mix", "lengths", "population", "lines")
    }
    return {**kept, "exact": data.exact, "tokens_per_pass": data.tokens_per_pass}


class _Session:
    """What several plans of one command share."""

    def __init__(self, again: Again, say: Callable[[str], None]) -> None:
        self.again, self.say = again, say
        self._planners: dict[Any, Planner] = {}
        self._folders: dict[Any, Path] = {}
        self._data: dict[Any, DataTokens | None] = {}

    def folder(self, cfg: RunConfig) -> Path:
        """The folder with the model's config.json."""
        key = (cfg.model.path, cfg.model.revision)
        if key not in self._folders:
            self._folders[key] = local_tokenizer(cfg.model, self.say)
        return self._folders[key]

    def data(self, cfg: RunConfig, config: "PretrainedConfig") -> DataTokens | None:
        """The tokens of the run's data. None: the run has no data yet."""
        if not (cfg.data.path or cfg.data.mix):
            return None
        key = repr((cfg.data, cfg.model.path, cfg.algo.seed, cfg.algo.max_tokens_per_gpu))
        if key not in self._data:
            from hub.data.tokens.tokenizer import load_tokenizer

            try:
                tokenizer = load_tokenizer(cfg, self.folder(cfg))
            except HubError:
                tokenizer = None
            self._data[key] = data_tokens(cfg, tokenizer, max_positions(config))
        return self._data[key]

    def planner(self, resolved: ResolvedRun, dtype: torch.dtype, data: Prepared | None) -> Planner:
        """The planner of a run's model."""
        cfg = resolved.config
        algo = {item.name: getattr(cfg.algo, item.name) for item in fields(cfg.algo) if item.name not in NOT_OF_THE_MODEL}
        key = repr((cfg.model, type(cfg.algo).__name__, algo, dtype))
        if key not in self._planners:
            tokenizer = None
            if cfg.model.changes_vocab:
                from hub.data.tokens.tokenizer import load_tokenizer

                tokenizer = load_tokenizer(cfg, self.folder(cfg))
            self._planners[key] = Planner(resolved, self.folder(cfg), dtype, tokenizer, data)
        return self._planners[key]


@dataclass(frozen=True)
class _Case:
    """A run, ready to be planned on any GPU."""

    session: _Session
    resolved: ResolvedRun
    config: "PretrainedConfig"
    tokens: DataTokens | None

    @classmethod
    def of(cls, session: _Session, cfg: RunConfig) -> "_Case":
        """Find the model's config and count the data.

        Raises:
            HubError: the options do not fit the model, or the data is bad.
        """
        folder = session.folder(cfg)
        cfg = with_storage(cfg, folder)
        resolved = resolve(cfg, check_needs=False)
        if problems := [
            *storage_problems(cfg, resolved.algorithm.name),
            *cfg.algo.problems(cfg),
            *resolved.backend.problems(cfg),
        ]:
            raise ConfigError(list(dict.fromkeys(problems)))
        config = load_config(cfg.model, folder)
        return cls(session, resolved, config, session.data(cfg, config))

    @property
    def cfg(self) -> RunConfig:
        return self.resolved.config

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        if self.tokens is not None:
            return max(2, self.tokens.longest)
        asked = self.cfg.data.max_seq_len
        return int(asked) if isinstance(asked, int) else min(ASSUMED_LENGTH, max_positions(self.config) or ASSUMED_LENGTH)

    def on(self, gpu: Gpu, world: int) -> OnGpu:
        """Plan it on some GPUs.

        Raises:
            HubError: it can't run so.
        """
        cfg, tokens = self.cfg, self.tokens
        work = work_of(cfg, tokens, world) if tokens is not None else None
        lengths = list(tokens.lengths) if tokens is not None else [self.longest]
        batch = work.batch_size if work is not None else 32
        loads = draw_loads(lengths, batch / world)
        planner = self.session.planner(self.resolved, compute_dtype(cfg, gpu), None)
        num_tokens = work.num_tokens[1] if work is not None else float("inf")
        memory = planner.plan(cfg, gpu, world, self.longest, loads, num_tokens)
        speed = self._speed(planner, memory, gpu, work)
        cost = None
        if work is not None and speed is not None:
            frozen = memory.num_trained < memory.num_parameters / 2
            weights = sum(part.num_bytes for part in memory.parts if "weights" in part.name)
            first = first_step_seconds(weights, memory.compiled, work.tokens_per_step / speed.middle)
            cost = cost_of(work, speed, gpu, world, first, frozen, cfg.plan.price_per_hour, cfg.plan.price_per_kwh)
        return OnGpu(gpu=gpu, memory=memory, speed=speed, cost=cost)

    def _speed(self, planner: Planner, memory: MemoryPlan, gpu: Gpu, work: Work | None) -> Speed | None:
        load = planner.planned.load
        if load.num_multiplied is None:
            return None
        algo, full = self.cfg.algo, planner.trained
        itemsize = full[0].element_size() if full else 4
        stored = next((p.num_bytes for p in memory.parts if "4 bits" in p.because), 0)
        way = Way(
            num_trained=memory.num_trained,
            trained_of_token=num_trained_of_token(planner.model),
            max_tokens=memory.max_tokens,
            checkpointed=memory.num_checkpointed / max(1, memory.num_layers),
            world=memory.world,
            strategy=memory.strategy,
            dtype="fp32" if planner.dtype == torch.float32 else "fp16" if planner.dtype == torch.float16 else "bf16",
            fp8=getattr(algo, "precision", AUTO) == "fp8",
            compiled=memory.compiled,
            weight_bytes=0.55 if stored else planner.dtype.itemsize,
            state_bytes=4.0 * itemsize,
            offload=memory.offload,
        )
        tokens = self.tokens
        square = tokens.mean_square if tokens is not None else float(self.longest)
        per_step = work.tokens_per_step if work is not None else float(memory.max_tokens * memory.world)
        shape = shape_of(self.config, load.num_multiplied, load.num_parameters)
        return speed_of(shape, way, gpu, square, per_step)

    def disk(self, found: OnGpu) -> Disk:
        """What it leaves on the disk."""
        planner = self.session.planner(self.resolved, compute_dtype(self.cfg, found.gpu), None)
        frozen = planner.planned.load.frozen
        trained = planner.trained[0].element_size() if planner.trained else 4
        disk = disk_of(self.cfg.algo, found.memory.num_trained, frozen, planner.dtype.itemsize, trained)
        return replace(disk, exports=export_bytes(self.cfg.export, found.memory.num_parameters))


def plan_run(cfg: RunConfig, again: Again, say: Callable[[str], None] = lambda text: None, name: str = "") -> Planned:
    """Plan a run.

    Args:
        cfg: the run, whose options are checked.
        again: composes the run with more overrides.
        say: receives lines for the user.
        name: of the algorithm, or of its preset.

    Raises:
        HubError: an option, the model, the data or the GPU is wrong.
    """
    session = _Session(again, say)
    asked = planned_gpu(cfg.plan)
    gpus = known_gpus(cfg.plan.gpus_file)
    world = planned_number(cfg.plan, cfg.launch.nproc_per_node, cfg.launch.nnodes)
    if cfg.launch.strategy == "split":
        world = 1
    case = _Case.of(session, cfg)
    gpu = asked or smallest_that_fits(gpus, lambda one: case.on(one, world).memory.fits, lambda one: one.has_bfloat16)
    chosen = case.on(gpu or max(gpus.values(), key=lambda one: one.memory_bytes), world)
    found: tuple[Fix, ...] = ()
    if not chosen.memory.fits:
        found = tuple(_fixes(session, case, chosen, world))[:SHOWN_FIXES]
    work = work_of(case.cfg, case.tokens, world) if case.tokens is not None else None
    lines = [line for line in chosen.memory.lines if line]
    if case.tokens is None:
        lines.append(
            f"no data is named, so samples of {case.longest:,} tokens are assumed. Type data.path=FILE for steps and time"
        )
    recalled = None
    if cfg.plan.learn:
        key = key_of(
            case.resolved.algorithm.name,
            case.cfg,
            case.config.get_text_config().to_dict(),
            chosen.gpu.name,
            world,
            case.longest,
        )
        recalled = recall(key)
        if (factor := recalled.peak_factor()) is not None:
            lines.append(f"{recalled.because}: the peak was {factor:.1%} of what was predicted")
        chosen = _learned(case, chosen, recalled, work)
    return Planned(
        name=name or case.resolved.algorithm.name,
        cfg=case.cfg,
        chosen=chosen,
        asked=asked is not None,
        data=case.tokens,
        work=work,
        disk=case.disk(chosen),
        fixes=found,
        compared=tuple(_compared(session, case, chosen.gpu, world, gpus)),
        learned=recalled if recalled is not None and recalled.runs else None,
        lines=tuple(dict.fromkeys(lines)),
    )


def _learned(case: _Case, found: OnGpu, recalled: Recalled, work: Work | None) -> OnGpu:
    """With the speed and the first step that earlier runs of this kind measured."""
    measured = recalled.tokens_per_second
    if measured is None or found.speed is None:
        return found
    speed = found.speed.scaled(measured, 0.05, recalled.because)
    cost = found.cost
    if work is not None:
        plan = case.cfg.plan
        first = first_step_seconds(0, found.memory.compiled, work.tokens_per_step / measured, recalled.first_step_seconds)
        frozen = found.memory.num_trained < found.memory.num_parameters / 2
        cost = cost_of(work, speed, found.gpu, found.memory.world, first, frozen, plan.price_per_hour, plan.price_per_kwh)
    return replace(found, speed=speed, cost=cost)


def _fixes(session: _Session, case: _Case, chosen: OnGpu, world: int) -> list[Fix]:
    """What would make a run fit that does not."""
    gpu = chosen.gpu

    def peak_of(overrides: Sequence[str]) -> Tried:
        cfg = session.again(overrides)
        other = _Case.of(session, cfg)
        number = cfg.plan.gpus if isinstance(cfg.plan.gpus, int) else world
        found = other.on(gpu, number)
        slower = chosen.speed.middle / found.speed.middle if chosen.speed and found.speed else 1.0
        return Tried(found.memory.peak_bytes, gpu.memory_bytes, slower, found.memory.fits)

    others = [name for name in algorithms() if name != case.resolved.algorithm.name]
    changes = changes_of(case.cfg, case.tokens, case.longest, chosen.memory.longest_that_fits, world, others)
    return fixes(changes, peak_of)


def algorithms() -> list[str]:
    """The installed algorithms that can be planned, and their presets: names for `algo=`."""
    from hub.compose.compose import groups

    installed = registry().algorithms
    return [name for name in groups()["algo"] if any(name == known or name.endswith(f"{known}") for known in installed)]


def _compared(session: _Session, case: _Case, gpu: Gpu, world: int, gpus: Any) -> list[tuple[str, OnGpu | str]]:
    """The same run with other algorithms, or on other GPUs."""
    found: list[tuple[str, OnGpu | str]] = []
    if case.cfg.plan.compare == "algo":
        for name in algorithms():
            try:
                found.append((name, _Case.of(session, session.again([f"algo={name}"])).on(gpu, world)))
            except HubError as error:
                found.append((name, str(error).splitlines()[0]))
    elif case.cfg.plan.compare == "gpu":
        for name, one in gpus.items():
            try:
                found.append((name, case.on(one, world)))
            except HubError as error:
                found.append((name, str(error).splitlines()[0]))
    return found
