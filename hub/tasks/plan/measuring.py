"""Short runs of a model cut to a few layers, on the GPU that is here: what a plan says of them and what they take differ, and
the difference, carried on to all layers, corrects the plan of the whole model.

Two numbers of layers tell what belongs to a layer from what does not. Weights are random: memory and speed do not depend on
their values. They are true runs, so whatever a run does on this GPU is part of them: kernels, compiler, sharding, optimizer.
"""

import json
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from hub.config.data import DataConfig
from hub.config.plan import PlanConfig
from hub.config.schema import AlgoConfig, ModelConfig, RunConfig
from hub.errors import ConfigError, HubError
from hub.models.cut import copy_cut
from hub.models.load import load_config
from hub.plan.build import compute_dtype, model_without_data
from hub.plan.learned import steady_speed
from hub.plan.work import READ_BYTES
from hub.result import METRICS, Result, read_metrics
from hub.system.memory import GIB
from hub.tasks.plan.cases import Case, OnGpu, Session

LAYERS = (2, 4)
"""Layers of the two short runs."""

STEPS = 8
POOL = 2**20 - 3
"""Random numbers that all weights are filled with. Coprime to the length of rows, so that no two rows of a matrix are equal."""

SPREAD = 0.1
"""Of the speed that follows from two short runs."""

Train = Callable[[RunConfig], Result]


@dataclass(frozen=True, kw_only=True)
class ShortRun:
    """What a run of a few layers took, and what its plan says."""

    num_layers: int
    peak_bytes: float
    predicted_bytes: float
    seconds_per_token: float
    predicted_seconds: float
    """Of a token."""

    first_step_seconds: float
    """From the start of its process to the end of its first step."""

    weight_bytes: int
    """The weights on one GPU."""


def measured(case: Case, found: OnGpu, train: Train) -> OnGpu:
    """Correct a plan by what two short runs take.

    Args:
        case: the run that is planned.
        found: its plan for the GPUs that are here.
        train: runs a config to its end, without output.

    Raises:
        HubError: a short run failed.
    """
    if case.cfg.model.quantization:
        raise ConfigError(
            f"plan.measure=true can't make random weights in {case.cfg.model.quantization}. Name the model that is stored in "
            "full, or leave out plan.measure"
        )
    counts = sorted({min(number, found.memory.num_layers) for number in LAYERS})
    with tempfile.TemporaryDirectory(prefix="hub-plan-") as folder:
        runs = [_short_run(case, found, number, Path(folder), train) for number in counts]
    return corrected(found, runs)


def corrected(found: OnGpu, runs: Sequence[ShortRun]) -> OnGpu:
    """A plan, corrected by short runs of fewer layers.

    Args:
        found: the plan.
        runs: those of fewer layers, ascending. One is enough for a model that has no more.
    """
    layers = found.memory.num_layers
    because = f"{' and '.join(str(run.num_layers) for run in runs)} of its {layers} layers were run here"
    missed = _at(layers, [(run.num_layers, run.peak_bytes - run.predicted_bytes) for run in runs])
    memory = found.memory.corrected(round(missed), because)
    speed = found.speed
    slower = 1.0
    if speed is not None:
        seconds = _at(layers, [(run.num_layers, run.seconds_per_token) for run in runs])
        slower = seconds / _at(layers, [(run.num_layers, run.predicted_seconds) for run in runs])
        speed = speed.scaled(speed.middle / slower, SPREAD, f"{because}: +-{SPREAD:.0%}")
    first = found.first_step
    if first is not None:
        further = max(0, memory.weight_bytes - runs[-1].weight_bytes)
        middle = max(run.first_step_seconds for run in runs) + further / READ_BYTES
        first = (0.8 * middle, middle, 1.3 * middle)
    return replace(found, memory=memory, speed=speed, first_step=first, first_because=because)


def _at(layers: int, points: Sequence[tuple[int, float]]) -> float:
    """The value at so many layers of the line through two points, or of the only point."""
    (few, less), (many, more) = points[0], points[-1]
    slope = (more - less) / (many - few) if many > few else 0.0
    value = more + slope * (layers - many)
    return value if value > 0 or more <= 0 else more


def _short_run(case: Case, found: OnGpu, num_layers: int, folder: Path, train: Train) -> ShortRun:
    """Run a few layers, and plan the same."""
    cfg, world = case.cfg, found.memory.world
    out = folder / f"model-{num_layers}"
    _write_model(case, found, num_layers, out)
    length = max(2, min(case.longest, found.memory.tokens_at_peak))
    in_row = max(1, found.memory.tokens_at_peak // length)
    batch = 2 * in_row * world
    rows = folder / "rows.jsonl"
    _write_rows(rows, length, 2 * batch, int(case.config.get_text_config().vocab_size))
    short = RunConfig(
        algo=_algo(cfg.algo, found, in_row * length, batch),
        model=ModelConfig(path=str(out), dtype=cfg.model.dtype, trust_remote_code=cfg.model.trust_remote_code),
        data=DataConfig(path=str(rows), max_seq_len=length),
        launch=replace(cfg.launch, nproc_per_node=world, nnodes=1, strategy=found.memory.strategy),
        plan=PlanConfig(learn=False),
        output_dir=str(folder),
        run_name=f"run-{num_layers}",
    )
    session = Session(lambda words: short, lambda text: None)
    planned = Case.of(session, short).on(found.gpu, world)
    try:
        result = train(short)
    except HubError as error:
        raise ConfigError(f"plan.measure=true: the run of {num_layers} layers failed. {str(error).splitlines()[0]}") from None
    speed = steady_speed(read_metrics(result.run_path / METRICS)) or result.tokens_per_second or 1.0
    plan: Mapping[str, Any] = json.loads((result.run_path / "plan.json").read_text(encoding="utf-8"))
    return ShortRun(
        num_layers=num_layers,
        peak_bytes=(result.peak_memory_gb or 0.0) * GIB,
        predicted_bytes=planned.memory.torch_bytes,
        seconds_per_token=1 / speed,
        predicted_seconds=1 / planned.speed.middle if planned.speed is not None else 1 / speed,
        first_step_seconds=float(plan.get("first_step_seconds") or 0.0),
        weight_bytes=planned.memory.weight_bytes,
    )


def _algo(algo: AlgoConfig, found: OnGpu, max_tokens: int, batch: int) -> AlgoConfig:
    """The algorithm's own options as they are, and of all others those that decide memory and speed."""
    memory = found.memory
    common = {item.name for item in fields(AlgoConfig)}
    own = {item.name: getattr(algo, item.name) for item in fields(algo) if item.name not in common}
    recomputes = memory.offload or memory.num_checkpointed > memory.num_layers / 2
    return type(algo)(
        **own,
        optimizer=algo.optimizer,
        deterministic=algo.deterministic,
        backend=algo.backend,
        max_tokens_per_gpu=max_tokens,
        gradient_checkpointing="all" if recomputes else "none",
        activation_offload="all" if memory.offload else "none",
        torch_compile="layers" if memory.compiled else "none",
        effective_batch_size=batch,
        max_steps=STEPS,
        log_every_steps=1,
    )


def _write_model(case: Case, found: OnGpu, num_layers: int, out: Path) -> None:
    """A model folder with the first layers only, and random weights."""
    folder = case.session.folder(case.cfg)
    copy_cut(folder, out, num_layers)
    model_config = ModelConfig(path=str(out), trust_remote_code=case.cfg.model.trust_remote_code)
    dtype = compute_dtype(case.cfg, found.gpu)
    model = model_without_data(model_config, load_config(model_config, out), dtype).to_empty(device="cpu")
    numbers = torch.randn(POOL, generator=torch.Generator().manual_seed(0)) * 0.02
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            flat, pool = parameter.view(-1), numbers.to(parameter.dtype)
            whole = flat.numel() // POOL * POOL
            flat[:whole].view(-1, POOL).copy_(pool.expand(whole // POOL, POOL))
            flat[whole:].copy_(pool[: flat.numel() - whole])
        for buffer in model.buffers():
            buffer.zero_()
    model.tie_weights()
    model.save_pretrained(out)
    if not any((out / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        from hub.models.tiny import tokenizer

        tokenizer().save_pretrained(out)


def _write_rows(file: Path, length: int, count: int, vocab_size: int) -> None:
    dice = random.Random(0)
    with file.open("w", encoding="utf-8") as stream:
        for _ in range(count):
            ids = [dice.randrange(3, min(vocab_size, 250)) for _ in range(length)]
            stream.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
