"""Runs that one command plans, ready to be put onto any GPU. Models and data that they share are made once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

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
from hub.plan.memory import Planner
from hub.plan.prediction import MemoryPlan
from hub.plan.speed import Speed, Way, shape_of, speed_of
from hub.plan.work import Cost, Disk, Range, Work, cost_of, disk_of, export_bytes, first_step_seconds, work_of
from hub.plugins.registry import ResolvedRun, resolve
from hub.system.known_gpus import Gpu
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

Again = Callable[[Sequence[str]], RunConfig]
"""Overrides -> the config of the run with them added."""


@dataclass(frozen=True, kw_only=True)
class OnGpu:
    """A run on one kind of GPU."""

    gpu: Gpu
    memory: MemoryPlan
    speed: Speed | None
    cost: Cost | None
    first_step: Range | None = None
    """Seconds from the start of the process to the end of its first step. None: the speed is not known."""

    first_because: str = ""
    """Where that is from, if it is measured."""


class Session:
    """What several plans of one command share."""

    def __init__(self, again: Again, say: Callable[[str], None]) -> None:
        self.again, self.say = again, say
        self._planners: dict[str, Planner] = {}
        self._folders: dict[tuple[str, str | None], Path] = {}
        self._data: dict[str, DataTokens | None] = {}

    def know(self, cfg: RunConfig, folder: Path) -> None:
        """Tell the folder of a run's model."""
        self._folders[cfg.model.path, cfg.model.revision] = folder

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
class Case:
    """A run, ready to be planned on any GPU."""

    session: Session
    resolved: ResolvedRun
    config: "PretrainedConfig"
    tokens: DataTokens | None

    @classmethod
    def of(cls, session: Session, cfg: RunConfig) -> "Case":
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
        loss_share = tokens.loss_share if tokens is not None else 1.0
        memory = planner.plan(cfg, gpu, world, self.longest, loads, num_tokens, loss_share)
        speed = self._speed(planner, memory, gpu, work)
        first = None
        if speed is not None:
            step = work.tokens_per_step if work is not None else batch * self.longest
            first = first_step_seconds(memory.weight_bytes, memory.compiled, step / speed.middle)
        return self.with_cost(OnGpu(gpu=gpu, memory=memory, speed=speed, cost=None, first_step=first))

    def with_cost(self, found: OnGpu) -> OnGpu:
        """A plan with the time and the price that follow from its speed and its first step."""
        speed, first, memory = found.speed, found.first_step, found.memory
        if self.tokens is None or speed is None or first is None:
            return found
        plan, work = self.cfg.plan, work_of(self.cfg, self.tokens, memory.world)
        frozen = memory.num_trained < memory.num_parameters / 2
        cost = cost_of(work, speed, found.gpu, memory.world, first, frozen, plan.price_per_hour, plan.price_per_kwh)
        return replace(found, cost=cost)

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
