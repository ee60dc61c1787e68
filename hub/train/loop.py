"""The training loop: steps, evaluation, checkpoints, result. Every algorithm trains here; `step.py` has the step itself.

The samples of step n depend on the seed and on n only, so a run that is stopped and resumed sees what it would have seen.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from hub.errors import ConfigError, DivergedError
from hub.options import AUTO
from hub.plugins import registry
from hub.run import Outcome, read_metrics
from hub.signals import stop_request
from hub.train import batches
from hub.train.checkpoint import fingerprint, save_checkpoint
from hub.train.collate import num_loss_tokens
from hub.train.distributed import barrier, max_over_ranks
from hub.train.layout import choose_layout
from hub.train.loss import causal_lm_loss
from hub.train.meters import Meter, SpikeMeter, peak_memory_gb
from hub.train.optim import make_optimizer, make_scheduler, parameter_groups
from hub.train.progress import ProgressLine
from hub.train.resume import check_disk, resume
from hub.train.setup import Setup
from hub.train.step import Loss, StepOutcome, evaluate, train_step
from hub.train.strategy import full_weights
from hub.train.verify import verify

Save = Callable[[Any, Path, dict[str, torch.Tensor]], None]

MOST_SKIPPED_IN_A_ROW = 3
"""Steps with NaN or infinity that are passed over before the run is given up."""

NUM_RECENT = 10
"""Logged steps over which a run's training loss is averaged."""


def fit(setup: Setup, model: Any, save: Save, loss: Loss = causal_lm_loss) -> Outcome:
    """Train a model to the end of the run, or to the signal that stops it.

    Args:
        setup: config, run folder, processes, tokenizer, data.
        model: on its device, with `requires_grad` set on what trains.
        save: writes the model as a user loads it: `save(model, folder, weights)`. `weights` are whole tensors on the CPU
            by name: all of them, or those that train when the model carries adapters. Called on rank 0.
        loss: sum of a micro-batch's losses over its loss tokens.

    Returns:
        What was reached. Equal on all ranks.

    Raises:
        ConfigError: the run can't be resumed, or the disk has no room for it.
        DivergedError: several steps in a row gave NaN or infinity.
    """
    if setup.cfg.task == "verify":
        return verify(setup, model, loss)
    return _Fit(setup, model, save, loss).run_to_end()


class _Fit:
    """The state of one training run in one process."""

    def __init__(self, setup: Setup, model: Any, save: Save, loss: Loss) -> None:
        self.setup, self.model, self.save, self.loss = setup, model, save, loss
        self.cfg, self.run, self.session, self.data = setup.cfg, setup.run, setup.session, setup.data
        self.algo, group = setup.cfg.algo, setup.session.group
        num_train = len(self.data.train)
        self.batch_size = effective_batch_size(self.algo.effective_batch_size, num_train, group.world)
        self.per_epoch = -(-num_train // self.batch_size)
        self.total = batches.num_steps(num_train, self.batch_size, self.algo.num_epochs, self.algo.max_steps)
        self.session.strategy.place(model)
        self.layout = choose_layout(setup, model)
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.algo, parameter_groups(trained, self.algo.weight_decay), self.session.device)
        self.scheduler = make_scheduler(self.algo, self.optimizer, self.total)
        self.fingerprint = fingerprint(self.data.train)
        self.done = 0
        self.skipped_in_a_row = self.skipped = 0
        self.eval_before: float | None = None
        self.eval_loss: float | None = None
        self.meter, self.spikes = Meter(), SpikeMeter()
        self.recent: deque[float] = deque(maxlen=NUM_RECENT)
        self._announce(trained)

    def _announce(self, trained: list[tuple[str, Any]]) -> None:
        num_trained, num_all = sum(p.numel() for _, p in trained), sum(p.numel() for p in self.model.parameters())
        self.run.write_plan(
            effective_batch_size=self.batch_size,
            num_steps=self.total,
            trainable_parameters=num_trained,
            parameters=num_all,
        )
        self.run.say(
            f"training {num_trained:,} of {num_all:,} parameters on {len(self.data.train)} samples: {self.total} steps of "
            f"{self.batch_size} samples, micro-batches of at most {self.layout.max_tokens} tokens"
        )
        check_disk(self.setup, self.model)

    def run_to_end(self) -> Outcome:
        """All steps that are left, then the model."""
        if self.cfg.track.tool != "none":
            self.session.accelerator.init_trackers(self.cfg.track.project, config=_flat(asdict(self.cfg)))
        self._observe("hub_run_start", cfg=self.cfg, run=self.run)
        if self.cfg.resume:
            self._resume()
        self.progress = ProgressLine(self.total, self.run.is_main, self.done)
        if self.done == 0:
            self.eval_before = self.eval_loss = self._measure()
            if self.eval_before is not None:
                count = len(self.data.evaluation)
                self.progress.say(f"held-out loss before training {self.eval_before:.4f} ({count} samples)")
        stop_request.in_loop = True
        stopping: int | None = None
        model_path: Path | None = self.run.model_path
        try:
            for step in batches.steps(len(self.data.train), self.batch_size, self.total, self.algo.seed, after=self.done):
                stopping = self._step(step)
                if stopping is not None and self.done < self.total:
                    break
        finally:
            stop_request.in_loop = False
            self.progress.stop()
        if self.done < self.total:
            checkpoint = self._checkpoint()
            model_path = checkpoint / "model" if checkpoint else None
        else:
            weights = full_weights(self.model)
            if self.run.is_main:
                self.save(self.model, self.run.model_path, weights)
            barrier()
        memory = max_over_ranks(peak_memory_gb(self.session.device))
        if self.cfg.track.tool != "none":
            self.session.accelerator.end_training()
        speed = self.meter.tokens_per_second
        return Outcome(
            num_steps=self.done,
            effective_batch_size=self.batch_size,
            train_loss=sum(self.recent) / len(self.recent) if self.recent else None,
            eval_loss_before=self.eval_before,
            eval_loss=self.eval_loss,
            tokens_per_second=round(speed, 1) if speed else None,
            peak_memory_gb=round(memory, 3),
            base_model_path=self.setup.base_path,
            model_path=model_path,
            stopped_by=stopping if self.done < self.total else None,
        )

    def _step(self, step: batches.Step) -> int | None:
        """One step with all that follows it. Returns the signal that asks to stop, if there is one."""
        samples = [self.data.train[i] for i in step.samples]
        self.meter.begin()
        rate = self.optimizer.param_groups[0]["lr"]
        outcome = train_step(self.session, self.model, self.optimizer, samples, self.layout, self.algo.max_grad_norm, self.loss)
        self.scheduler.step()
        self.done = step.number
        num_tokens = sum(len(sample) for sample in samples)
        speed = self.meter.end(num_tokens)
        self._keep_smaller(outcome)
        stopping = stop_requested()
        metrics: dict[str, Any] = {
            "step": self.done,
            "epoch": round(step.epoch + (step.place + len(samples)) / len(self.data.train), 4),
            "loss": outcome.loss,
            "learning_rate": rate,
            "grad_norm": outcome.grad_norm,
            "num_samples": len(samples),
            "num_tokens": num_tokens,
            "num_loss_tokens": sum(num_loss_tokens(sample) for sample in samples),
            "tokens_per_second": round(speed, 1),
            "peak_memory_gb": round(peak_memory_gb(self.session.device), 3),
        }
        self._judge(outcome, step, metrics)
        last = self.done == self.total
        measure = last or stopping is not None or _due(self.done, self.algo.eval_every_steps)
        if measure and (measured := self._measure()) is not None:
            self.eval_loss = metrics["eval_loss"] = measured
        if last or stopping is not None or "skipped" in metrics or _due(self.done, self.algo.log_every_steps):
            self._log(metrics)
        per_epoch = self.algo.save_every_epochs
        epoch_due = per_epoch is not None and self.done % (per_epoch * self.per_epoch) == 0
        if (epoch_due or _due(self.done, self.algo.save_every_steps)) and not last and stopping is None:
            self._checkpoint(metrics.get("eval_loss"))
        return stopping

    def _judge(self, outcome: StepOutcome, step: batches.Step, metrics: dict[str, Any]) -> None:
        """NaN and infinity: the step changed nothing; after a few in a row the run is given up. Spikes are noted.

        Raises:
            DivergedError: too many in a row. What was reached before them is in a checkpoint.
        """
        if outcome.finite:
            self.skipped_in_a_row = 0
            if self.spikes.is_spike(outcome.loss):
                metrics["spike"] = True
                self.progress.say(f"step {self.done}: the loss jumped to {outcome.loss:.4f}")
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        metrics["skipped"] = True
        what = f"loss {outcome.loss}, gradient norm {outcome.grad_norm}"
        self.progress.say(f"step {self.done} is passed over, the weights stay as they were: {what}")
        if self.skipped_in_a_row < MOST_SKIPPED_IN_A_ROW:
            return
        self._log(metrics)
        checkpoint = self._checkpoint()
        rows = ", ".join(self.data.train[i].where for i in step.samples[:5])
        raise DivergedError(
            f"{self.skipped_in_a_row} steps in a row gave NaN or infinity (the last: step {self.done}, {what}; rows {rows}, "
            f"...). Type a lower algo.learning_rate than {self.algo.learning_rate:g} or algo.max_grad_norm=0.5, and look at "
            f"those rows. The weights before these steps: {checkpoint}"
        )

    def _keep_smaller(self, outcome: StepOutcome) -> None:
        """Remember the micro-batches that got through when memory ran out."""
        if outcome.layout.max_tokens != self.layout.max_tokens:
            self._smaller(outcome.layout)

    def _smaller(self, layout: Any) -> None:
        self.progress.say(
            f"out of memory at {self.layout.max_tokens} tokens: the step was done again in micro-batches of at most "
            f"{layout.max_tokens} tokens, with the same result. Next time type algo.max_tokens_per_gpu={layout.max_tokens}"
        )
        self.layout = layout
        self.run.write_plan(max_tokens_per_gpu=layout.max_tokens, max_tokens_per_gpu_because="memory ran out above it")

    def _measure(self) -> float | None:
        """The held-out loss; None when nothing is held out."""
        if not self.data.evaluation:
            return None
        found: float
        found, layout = evaluate(self.session, self.model, self.data.evaluation, self.layout, self.loss)
        if layout.max_tokens != self.layout.max_tokens:
            self._smaller(layout)
        return found

    def _log(self, metrics: dict[str, Any]) -> None:
        if "skipped" not in metrics:
            self.recent.append(metrics["loss"])
        self.run.log(metrics)
        self.progress.step(self.done, metrics)
        if "eval_loss" in metrics:
            self.progress.say(f"held-out loss {metrics['eval_loss']:.4f} after step {self.done}")
        if self.cfg.track.tool != "none":
            self.session.accelerator.log({k: v for k, v in metrics.items() if k != "step"}, step=self.done)
        self._observe("hub_log", run=self.run, step=self.done, metrics=metrics)

    def _checkpoint(self, eval_loss: float | None = None) -> Path | None:
        """Write a checkpoint; a failure is said and training goes on without it."""
        state = {
            "num_steps": self.total,
            "effective_batch_size": self.batch_size,
            "data": self.fingerprint,
            "scheduler": self.scheduler.state_dict(),
            "eval_loss_before": self.eval_before,
            "last_eval_loss": self.eval_loss,
            "eval_loss": eval_loss,
            "max_tokens": self.layout.max_tokens,
            "skipped": self.skipped,
            "spikes": self.spikes.state(),
        }
        path, failure = save_checkpoint(
            self.run.checkpoints_path,
            self.done,
            self.session,
            self.model,
            self.optimizer,
            state,
            lambda folder, weights: self.save(self.model, folder, weights),
            self.algo.keep_checkpoints,
        )
        if path is None:
            self.progress.say(f"no checkpoint could be written after step {self.done}: {failure}. Training goes on")
        else:
            self.progress.say(f"checkpoint {path}")
            self._observe("hub_checkpoint", run=self.run, step=self.done, path=path)
        return path

    def _resume(self) -> None:
        """Go to where the newest whole checkpoint left this run."""
        state = resume(self.setup, self.model, self.optimizer, self.fingerprint, self.total)
        self.scheduler.load_state_dict(state["scheduler"])
        self.done = state["step"]
        self.eval_before, self.eval_loss = state["eval_loss_before"], state["last_eval_loss"]
        self.skipped = state["skipped"]
        self.spikes.restore(state["spikes"])
        if self.algo.max_tokens_per_gpu == AUTO:
            # Free memory may be another now; other micro-batches would round differently.
            self.layout = replace(self.layout, max_tokens=state["max_tokens"])
        lines = [line for line in read_metrics(self.run.metrics_file) if "skipped" not in line]
        self.recent.extend(line["loss"] for line in lines[-NUM_RECENT:])

    def _observe(self, hook: str, **values: Any) -> None:
        if self.run.is_main:
            registry().observe(hook, **values)


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


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as `algo.lora_r: 8`, in the types that trackers take."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
