"""Plans a run: its memory and layout on some GPUs, its time and disk, and what to change if it does not fit."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hub.config.schema import RunConfig
from hub.data.samples.mix import sources_of
from hub.errors import HubError
from hub.plan.data_tokens import DataTokens
from hub.plan.fitting import Fix, Tried, changes_of, fixes
from hub.plan.gpus import planned_gpu, planned_number, smallest_that_fits
from hub.plan.learned import Recalled, key_of, recall
from hub.plan.work import Disk, Work, first_step_seconds, work_of
from hub.plugins.registry import registry
from hub.result import Result
from hub.system.known_gpus import Gpu, known_gpus
from hub.tasks.plan.cases import Again, Case, OnGpu, Session

SHOWN_FIXES = 8


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
        "first_step_seconds": found.first_step,
        "cost": None if found.cost is None else asdict(found.cost),
    }


def _data_json(data: DataTokens) -> dict[str, Any]:
    kept = {
        item.name: getattr(data, item.name)
        for item in fields(data)
        if item.name not in ("mix", "lengths", "population", "lines")
    }
    return {**kept, "exact": data.exact, "tokens_per_pass": data.tokens_per_pass}


def plan_run(
    cfg: RunConfig,
    again: Again,
    say: Callable[[str], None] = lambda text: None,
    name: str = "",
    folder: Path | None = None,
    train: Callable[[RunConfig], Result] | None = None,
) -> Planned:
    """Plan a run.

    Args:
        cfg: the run, whose options are checked.
        again: composes the run with more overrides.
        say: receives lines for the user.
        name: of the algorithm, or of its preset.
        folder: with the model's config, if it is known already.
        train: runs a config to its end, for `plan.measure`.

    Raises:
        HubError: an option, the model, the data or the GPU is wrong.
    """
    session = Session(again, say)
    if folder is not None:
        session.know(cfg, folder)
    asked = planned_gpu(cfg.plan)
    gpus = known_gpus(cfg.plan.gpus_file)
    world = planned_number(cfg.plan, cfg.launch.nproc_per_node, cfg.launch.nnodes)
    if cfg.launch.strategy == "split":
        world = 1
    case = Case.of(session, cfg)
    gpu = asked or smallest_that_fits(gpus, lambda one: case.on(one, world).memory.fits, lambda one: one.has_bfloat16)
    chosen = case.on(gpu or max(gpus.values(), key=lambda one: one.memory_bytes), world)
    found: tuple[Fix, ...] = ()
    if not chosen.memory.fits:
        found = tuple(_fixes(session, case, chosen, world))[:SHOWN_FIXES]
    work = work_of(case.cfg, case.tokens, world) if case.tokens is not None else None
    lines = [line for line in chosen.memory.lines if line]
    if case.tokens is None:
        remote = [source.path for source in sources_of(case.cfg.data) if source.path]
        why = f"a plan downloads no data ({', '.join(remote)})" if remote else "no data is named"
        lines.append(f"{why}, so samples of {case.longest:,} tokens are assumed. Type data.path=FILE for steps and time")
    recalled, unlearned = None, chosen
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
        lines += recalled.lines
        if (factor := recalled.peak_factor()) is not None:
            lines.append(f"{recalled.because}: the peak was {factor:.1%} of what was predicted")
        chosen = _learned(case, chosen, recalled)
    if cfg.plan.measure:
        from hub.tasks.plan.measuring import measured

        assert train is not None
        say("plan.measure=true: 2 and 4 layers are run on this machine ...")
        chosen = case.with_cost(measured(case, unlearned, train))
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


def _learned(case: Case, found: OnGpu, recalled: Recalled) -> OnGpu:
    """With the memory, the speed and the first step that earlier runs of this kind measured."""
    factor, speed, seconds = recalled.peak_factor(), recalled.tokens_per_second, recalled.first_step_seconds
    if factor is not None:
        found = replace(found, memory=found.memory.corrected(round((factor - 1) * found.memory.torch_bytes), recalled.because))
    if speed is not None and found.speed is not None:
        found = replace(found, speed=found.speed.scaled(speed, 0.05, recalled.because))
    if seconds:
        first = first_step_seconds(0, found.memory.compiled, 0, seconds)
        found = replace(found, first_step=first, first_because=recalled.because)
    return case.with_cost(found)


def _fixes(session: Session, case: Case, chosen: OnGpu, world: int) -> list[Fix]:
    """What would make a run fit that does not."""
    gpu = chosen.gpu

    def peak_of(overrides: Sequence[str]) -> Tried:
        cfg = session.again(overrides)
        other = Case.of(session, cfg)
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


def _compared(session: Session, case: Case, gpu: Gpu, world: int, gpus: Any) -> list[tuple[str, OnGpu | str]]:
    """The planned run with other algorithms, or on other GPUs: what is compared, and its plan or why it has none."""
    found: list[tuple[str, OnGpu | str]] = []
    if case.cfg.plan.compare == "algo":
        for name in algorithms():
            try:
                found.append((name, Case.of(session, session.again([f"algo={name}"])).on(gpu, world)))
            except HubError as error:
                found.append((name, str(error).splitlines()[0]))
    elif case.cfg.plan.compare == "gpu":
        for name, one in gpus.items():
            try:
                found.append((name, case.on(one, world)))
            except HubError as error:
                found.append((name, str(error).splitlines()[0]))
    return found
