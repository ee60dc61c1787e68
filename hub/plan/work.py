"""What a run takes besides memory: steps, seconds, disk, energy, price. No torch when it is imported."""

from collections.abc import Sequence
from dataclasses import dataclass

from hub.config.export import ExportConfig
from hub.config.schema import AlgoConfig, RunConfig
from hub.plan.data_tokens import DataTokens
from hub.plan.speed import Speed
from hub.system.known_gpus import Gpu
from hub.train.batch.split import num_steps

START_SECONDS = 11.5
"""Seconds before the first step for a small model that is not compiled: process, imports, data, checks, measuring. This and the
two numbers below are fitted to six runs on an H200 (docs/plan.md), of 16 to 36 s."""

COMPILE_SECONDS = 7.5
"""Between 1 s, where the kernels were compiled before, and 12 s. FlexAttention takes longer."""

READ_BYTES = 2.3e9
"""Bytes of weights that are read and put onto a GPU in a second, with a warm file cache."""

FIRST_STEP_SPREAD = (0.7, 1.6)

BITS = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q4_k_m": 4.9}
"""Bits of a weight in GGUF files, on average."""

SCHEME_BITS = {"w4a16": 4.6, "w8a8_fp8": 8.2, "w8a8_int8": 8.2}
Range = tuple[float, float, float]
"""Low, middle, high."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run computes."""

    num_steps: int
    batch_size: int
    """Units of a step."""

    tokens_per_step: float
    num_tokens: Range
    """Tokens that are trained on in the whole run."""

    num_passes: float | None
    """Passes over the data. None: a stream of unknown length."""

    num_eval_tokens: float
    """Tokens of all evaluations together: forward passes."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run takes."""

    first_step: Range
    """Seconds from the start of the process to the end of its first step."""

    training: Range
    """Seconds of all steps and evaluations."""

    total: Range
    gpu_hours: Range
    kilowatt_hours: Range | None
    """At the GPUs' power limit. None: it is not known."""

    price: Range | None
    """In the currency of `plan.price_per_hour` and `plan.price_per_kwh`."""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """What a run leaves on the disk, in bytes."""

    model: int
    checkpoint: int
    num_checkpoints: int
    """Checkpoints that are there at the same time, at most."""

    exports: int

    @property
    def total(self) -> int:
        """Bytes at the most, which a run asks for before it begins."""
        return self.model + self.checkpoint * self.num_checkpoints + self.exports


def work_of(cfg: RunConfig, data: DataTokens, world: int) -> Work:
    """Count steps and tokens as a run counts them.

    Raises:
        ConfigError: the effective batch size is below the number of processes.
    """
    from hub.train.setup.samples import effective_batch_size  # imports torch

    algo = cfg.algo
    batch_size = effective_batch_size(algo.effective_batch_size, data.per_pass, world)
    total = num_steps(data.per_pass or 1, batch_size, algo.num_epochs, algo.max_steps)
    units: float = total * batch_size
    passes = None
    if data.per_pass is not None:
        # A pass ends with a smaller step.
        whole, rest = divmod(total, -(-data.per_pass // batch_size))
        units = whole * data.per_pass + min(rest * batch_size, data.per_pass)
        passes = units / data.per_pass
    low, high = data.spread
    tokens = units * data.tokens_per_unit
    evaluations = (2 + total // algo.eval_every_steps if algo.eval_every_steps else 2) if data.num_eval_tokens else 0
    return Work(
        num_steps=total,
        batch_size=batch_size,
        tokens_per_step=min(batch_size, data.per_pass or batch_size) * data.tokens_per_unit,
        num_tokens=(low * tokens, tokens, high * tokens),
        num_passes=passes,
        num_eval_tokens=float(evaluations * data.num_eval_tokens),
    )


def first_step_seconds(weight_bytes: float, compiled: bool, step_seconds: float, learned: Sequence[float] = ()) -> Range:
    """Seconds from the start of the process to the end of its first step.

    Args:
        weight_bytes: of the base weights of one process, as they are stored.
        compiled: whether layers are compiled.
        step_seconds: of one step.
        learned: what earlier runs of the same kind took.
    """
    if learned:
        middle = sorted(learned)[len(learned) // 2]
        return 0.8 * middle, middle, 1.3 * middle
    middle = START_SECONDS + weight_bytes / READ_BYTES + (COMPILE_SECONDS if compiled else 0.0) + 2 * step_seconds
    low, high = FIRST_STEP_SPREAD
    return low * middle, middle, high * middle


def cost_of(
    work: Work,
    speed: Speed,
    gpu: Gpu,
    world: int,
    first_step: Range,
    frozen: bool,
    price_per_hour: float | None = None,
    price_per_kwh: float | None = None,
) -> Cost:
    """Seconds, energy and price of a run.

    Args:
        work: from `work_of`.
        speed: from `hub.plan.speed.speed_of`.
        gpu: each of the GPUs.
        world: number of GPUs.
        first_step: from `first_step_seconds`.
        frozen: whether most weights are frozen: a forward pass is then half of the work, else a third.
        price_per_hour: of one GPU.
        price_per_kwh: of a kilowatt-hour.
    """
    evaluated = work.num_eval_tokens * (1 / 2 if frozen else 1 / 3)
    rest = max(0.0, 1 - 1 / work.num_steps)  # the first step is in `first_step`
    low, middle, high = (tokens * rest + evaluated for tokens in work.num_tokens)
    training = (low / speed.high, middle / speed.middle, high / speed.low)
    total = _each(training, first_step)
    hours = _times(total, world / 3600)
    energy = _times(hours, gpu.watts / 1000) if gpu.watts else None
    price = _times(hours, price_per_hour) if price_per_hour else None
    if price_per_kwh and energy:
        price = _each(price or (0.0, 0.0, 0.0), _times(energy, price_per_kwh))
    return Cost(first_step=first_step, training=training, total=total, gpu_hours=hours, kilowatt_hours=energy, price=price)


def disk_of(algo: AlgoConfig, num_trained: int, is_adapter: bool, itemsize: int, trained_itemsize: int = 4) -> Disk:
    """Bytes of the model and of checkpoints, as a run asks for them (`hub.train.checkpoints.resume.check_disk`).

    Args:
        algo: `keep_checkpoints` and what decides whether there are any.
        num_trained: parameters that are trained.
        is_adapter: whether some weights are frozen: what trains is then saved in float32.
        itemsize: bytes of a number of the saved model.
        trained_itemsize: bytes of a trained weight, its gradient and each moment.
    """
    from hub.train.checkpoints.resume import saves_while_training  # imports torch

    model = num_trained * (4 if is_adapter else itemsize)
    checkpoint = model + 3 * num_trained * trained_itemsize
    kept = algo.keep_checkpoints + 2 if saves_while_training(algo) else 0
    return Disk(model=model, checkpoint=checkpoint, num_checkpoints=kept, exports=0)


def export_bytes(export: ExportConfig, num_parameters: int) -> int:
    """Bytes of what `export.to` writes, roughly. Those of plugins are not known and count nothing."""
    dtype = 4 if export.dtype == "float32" else 2
    total = num_parameters * dtype if {"merged", "hub"} & set(export.to) else 0
    if {"gguf", "ollama"} & set(export.to):
        total += sum(int(num_parameters * BITS.get(kind, 16.0) / 8) for kind in export.quant)
    if "compressed" in export.to:
        total += sum(int(num_parameters * SCHEME_BITS.get(scheme, 16.0) / 8) for scheme in export.scheme)
    return total


def _each(left: Range, right: Range) -> Range:
    return left[0] + right[0], left[1] + right[1], left[2] + right[2]


def _times(values: Range, factor: float) -> Range:
    return values[0] * factor, values[1] * factor, values[2] * factor
