"""The training loop: steps, evaluation, checkpoints, result. Every algorithm trains here.

For each step all ranks draw the same N samples, cut them the same way into micro-batches (`batches.split`) and take theirs.
A micro-batch's loss is the sum over its loss tokens divided by the count of loss tokens in the whole step, over all ranks
and micro-batches; gradients are summed over micro-batches and ranks, reduced once per step. So the step is the same for any
number of micro-batches and processes.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hub.config import AUTO
from hub.data.prepare import Sample
from hub.errors import ConfigError
from hub.plugins import registry
from hub.run import Outcome
from hub.signals import stop_request
from hub.train import batches
from hub.train.budget import micro_batch_tokens, wants_checkpointing
from hub.train.checkpoint import save_checkpoint
from hub.train.collate import MicroBatch, num_loss_tokens, pack, pad, weightless
from hub.train.distributed import barrier, max_over_ranks, sum_over_ranks
from hub.train.isolation import can_pack
from hub.train.loss import causal_lm_loss
from hub.train.meters import Meter, peak_memory_gb
from hub.train.optim import make_optimizer, make_scheduler, parameter_groups
from hub.train.progress import ProgressLine
from hub.train.session import Session
from hub.train.setup import Setup

Loss = Callable[[Any, MicroBatch], torch.Tensor]
Save = Callable[[Any, Path], None]


@dataclass(frozen=True)
class Layout:
    """How a step is cut into micro-batches on the machine at hand. Changes speed and memory, never the result."""

    max_tokens: int
    packed: bool
    pad_id: int
    cost_ratio: float

    def micro_batches(self, samples: Sequence[Sample], rank: int, world: int) -> list[MicroBatch]:
        """This rank's micro-batches of one step. All ranks get the same number of them."""
        lengths = [len(sample) for sample in samples]
        parts = batches.split(lengths, world, self.max_tokens, self.cost_ratio)[rank]
        chosen = [[samples[i] for i in part] or [weightless(samples[0])] for part in parts]
        return [pack(part) if self.packed else pad(part, self.pad_id) for part in chosen]


def fit(setup: Setup, model: Any, save: Save, loss: Loss = causal_lm_loss) -> Outcome:
    """Train a model to the end of the run, or to the signal that stops it, and save it into `run.model_path`.

    Args:
        setup: config, run folder, processes, tokenizer, data.
        model: on its device, with `requires_grad` set on what trains.
        save: writes the model as a user loads it into a folder.
        loss: sum of a micro-batch's losses over its loss tokens.

    Returns:
        What was reached. Equal on all ranks.
    """
    cfg, run, session, data = setup.cfg, setup.run, setup.session, setup.data
    algo, group, accelerator = cfg.algo, session.group, session.accelerator
    observe = registry().observe
    batch_size = effective_batch_size(algo.effective_batch_size, len(data.train), group.world)
    total = batches.num_steps(len(data.train), batch_size, algo.num_epochs, algo.max_steps)
    layout = choose_layout(setup, model)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = make_optimizer(algo, parameter_groups(trained, algo.weight_decay), session.device)
    scheduler = make_scheduler(algo, optimizer, total)
    num_trained, num_all = sum(p.numel() for _, p in trained), sum(p.numel() for p in model.parameters())
    run.write_plan(
        effective_batch_size=batch_size, num_steps=total, trainable_parameters=num_trained, parameters=num_all
    )
    run.say(
        f"training {num_trained:,} of {num_all:,} parameters on {len(data.train)} samples: {total} steps of {batch_size} "
        f"samples, micro-batches of at most {layout.max_tokens} tokens"
    )
    wrapped = accelerator.prepare(model)
    if cfg.track.tool != "none":
        accelerator.init_trackers(cfg.track.project, config=_flat(asdict(cfg)))
    if run.is_main:
        observe("hub_run_start", cfg=cfg, run=run)

    def measure() -> float | None:
        return evaluate(session, model, data.evaluation, layout, loss) if data.evaluation else None

    progress = ProgressLine(total, run.is_main)
    eval_before = eval_loss = measure()
    if eval_before is not None:
        progress.say(f"held-out loss before training {eval_before:.4f} ({len(data.evaluation)} samples)")
    meter, recent = Meter(), deque[float](maxlen=10)
    done, stopping = 0, None
    stop_request.in_loop = True
    try:
        for step in batches.steps(len(data.train), batch_size, total, algo.seed):
            meter.begin()
            samples = [data.train[i] for i in step.samples]
            step_loss, norm = train_step(session, wrapped, optimizer, samples, layout, algo.max_grad_norm, loss)
            rate = optimizer.param_groups[0]["lr"]
            scheduler.step()
            done = step.number
            num_tokens = sum(len(sample) for sample in samples)
            speed = meter.end(num_tokens)
            stopping = stop_requested()
            metrics: dict[str, Any] = {
                "step": done,
                "epoch": round(step.epoch + len(step.samples) / len(data.train), 4),
                "loss": step_loss,
                "learning_rate": rate,
                "grad_norm": norm,
                "num_samples": len(samples),
                "num_tokens": num_tokens,
                "num_loss_tokens": sum(num_loss_tokens(sample) for sample in samples),
                "tokens_per_second": round(speed, 1),
                "peak_memory_gb": round(peak_memory_gb(session.device), 3),
            }
            last = done == total or stopping is not None
            if last or (algo.eval_every_steps and done % algo.eval_every_steps == 0):
                eval_loss = measure()
                if eval_loss is not None:
                    metrics["eval_loss"] = eval_loss
            if last or done % algo.log_every_steps == 0:
                recent.append(step_loss)
                run.log(metrics)
                progress.step(done, metrics)
                if "eval_loss" in metrics:
                    progress.say(f"held-out loss {metrics['eval_loss']:.4f} after step {done}")
                if cfg.track.tool != "none":
                    accelerator.log({k: v for k, v in metrics.items() if k != "step"}, step=done)
                if run.is_main:
                    observe("hub_log", run=run, step=done, metrics=metrics)
            if algo.save_every_steps and done % algo.save_every_steps == 0 and not last:
                if run.is_main:
                    state = {"num_steps": total, "effective_batch_size": batch_size, "scheduler": scheduler.state_dict()}
                    path = save_checkpoint(
                        run.checkpoints_path,
                        done,
                        model,
                        optimizer,
                        state,
                        lambda folder: save(model, folder),
                        algo.keep_checkpoints,
                    )
                    observe("hub_checkpoint", run=run, step=done, path=path)
                    progress.say(f"checkpoint {path}")
                barrier()
            if stopping is not None:
                break
    finally:
        stop_request.in_loop = False
        progress.stop()
    if run.is_main:
        save(model, run.model_path)
    barrier()
    memory = max_over_ranks(peak_memory_gb(session.device))
    if cfg.track.tool != "none":
        accelerator.end_training()
    return Outcome(
        num_steps=done,
        effective_batch_size=batch_size,
        train_loss=sum(recent) / len(recent) if recent else None,
        eval_loss_before=eval_before,
        eval_loss=eval_loss,
        tokens_per_second=round(meter.tokens_per_second, 1) if meter.tokens_per_second else None,
        peak_memory_gb=round(memory, 3),
        base_model_path=setup.base_path,
        stopped_by=stopping if done < total else None,
    )


def train_step(
    session: Session,
    model: Any,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    layout: Layout,
    max_grad_norm: float | None,
    loss: Loss = causal_lm_loss,
) -> tuple[float, float]:
    """One optimizer step on the same samples on every rank.

    Returns:
        Mean loss per loss token over the whole step, and the norm of the gradient before clipping. Equal on all ranks.
    """
    local_sum = accumulate_gradients(session, model, samples, layout, loss)
    bound = float("inf") if max_grad_norm is None else max_grad_norm
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = session.accelerator.clip_grad_norm_(parameters, bound)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    (loss_sum,) = sum_over_ranks(local_sum)
    return loss_sum / max(1, sum(num_loss_tokens(sample) for sample in samples)), float(norm)


def accumulate_gradients(
    session: Session, model: Any, samples: Sequence[Sample], layout: Layout, loss: Loss = causal_lm_loss
) -> float:
    """Leave the gradient of the step's mean loss per loss token in the weights. Returns this rank's sum of losses."""
    group = session.group
    num_targets = max(1, sum(num_loss_tokens(sample) for sample in samples))
    # DDP averages over ranks where a sum is wanted.
    scale = group.world / num_targets
    mine = layout.micro_batches(samples, group.rank, group.world)
    total = torch.zeros((), dtype=torch.float64, device=session.device)
    for number, batch in enumerate(mine):
        last = number == len(mine) - 1
        with nullcontext() if last else session.accelerator.no_sync(model):
            with autocast(session):
                loss_sum = loss(model, batch.to(session.device))
            (loss_sum * scale).backward()
        total += loss_sum.detach().double()
    return float(total)


@torch.no_grad()
def evaluate(session: Session, model: Any, samples: Sequence[Sample], layout: Layout, loss: Loss) -> float:
    """Mean loss per loss token over all samples, in evaluation mode. Equal on all ranks, and for any layout."""
    group, chunk = session.group, 64 * session.group.world
    model.eval()
    try:
        total = torch.zeros((), dtype=torch.float64, device=session.device)
        for start in range(0, len(samples), chunk):
            for batch in layout.micro_batches(samples[start : start + chunk], group.rank, group.world):
                with autocast(session):
                    total += loss(model, batch.to(session.device)).double()
    finally:
        model.train()
    (loss_sum,) = sum_over_ranks(float(total))
    return loss_sum / max(1, sum(num_loss_tokens(sample) for sample in samples))


def autocast(session: Session) -> Any:
    """The arithmetic's type; nothing to do in float32."""
    enabled = session.compute_dtype != torch.float32
    return torch.autocast(session.device.type, session.compute_dtype, enabled=enabled)


def stop_requested() -> int | None:
    """The signal that any rank received, so that all stop after the same step."""
    number = int(max_over_ranks(stop_request.signal_number or 0))
    return number or None


def effective_batch_size(asked: int | str, num_samples: int, world: int) -> int:
    """Samples per step: as asked, or by the size of the data set.

    Raises:
        ConfigError: fewer samples than processes.
    """
    size = batches.auto_batch_size(num_samples) if asked == AUTO else int(asked)
    if size < world:
        raise ConfigError(
            f"algo.effective_batch_size={size} is below the number of processes ({world}). "
            f"Type algo.effective_batch_size={world}"
        )
    return size


def choose_layout(setup: Setup, model: Any) -> Layout:
    """Decide how steps are cut on this machine, say why, and set the model up for it."""
    cfg, run, session, data, tokenizer = setup.cfg, setup.run, setup.session, setup.data, setup.tokenizer
    device, longest = session.device, max(len(sample) for sample in [*data.train, *data.evaluation])
    config = model.config.get_text_config()
    packed, packed_because = can_pack(model, config.vocab_size, device, session.compute_dtype)
    checkpointed, checkpointed_because = wants_checkpointing(cfg.algo.gradient_checkpointing, model, device)
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    bound, bound_because = micro_batch_tokens(cfg.algo, model, model.config, device, longest, checkpointed)
    bound = int(-max_over_ranks(-bound))
    if not packed:
        run.say(f"samples are padded, not packed: {packed_because}")
    run.write_plan(
        packed=packed,
        packed_because=packed_because,
        gradient_checkpointing=checkpointed,
        gradient_checkpointing_because=checkpointed_because,
        max_tokens_per_gpu=bound,
        max_tokens_per_gpu_because=bound_because,
    )
    num_parameters = sum(p.numel() for p in model.parameters())
    ratio = batches.cost_ratio(config.num_hidden_layers, config.hidden_size, num_parameters)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    return Layout(bound, packed, pad_id, ratio)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as `algo.lora_r: 8`, in the types that trackers take."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
