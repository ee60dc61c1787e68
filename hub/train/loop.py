"""The training loop: steps, evaluation, checkpoints, result. Every algorithm trains here. `step.py` has the step itself.

The samples of step n depend on the seed and on n only, so a resumed run sees the samples that it would have seen.
"""

import gc
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from hub.config.option import AUTO
from hub.data.samples.sample import Unit, samples_of
from hub.errors import DataError, DivergedError, Interrupted
from hub.models.multimodal import auto_class
from hub.models.saved_folder import line_on_base
from hub.models.structure import base_of, outside_text
from hub.parallel.group import barrier, max_over_ranks, stop_requested
from hub.parallel.strategy import full_weights
from hub.run import Outcome, read_metrics
from hub.system.signals import stop_request
from hub.train.batch import split as batches
from hub.train.checkpoints.rehearsal import rehearse_save
from hub.train.checkpoints.resume import check_disk, ended_by_row, resume
from hub.train.checkpoints.save import Saved
from hub.train.checkpoints.writer import CheckpointWriter
from hub.train.kernels.compiled import num_compiled
from hub.train.layout.flops import flops_per_token, peak_flops
from hub.train.layout.layout import Layout, choose_layout
from hub.train.meters import Meter, SpikeMeter, counts_of, peak_memory_gb
from hub.train.optim import make_optimizer, make_scheduler, observe_loss, parameter_groups
from hub.train.progress import ProgressLine
from hub.train.recipe import Recipe, check_units
from hub.train.setup.samples import length_lines, mix_lines
from hub.train.setup.setup import Setup
from hub.train.step import StepOutcome, evaluate, train_step
from hub.train.tracker import Tracking
from hub.train.watch import Watch

MOST_SKIPPED_IN_A_ROW = 3
"""Consecutive steps with NaN or infinity after which the run ends. Each of them is skipped."""

NUM_RECENT = 10
"""Number of logged steps over which the reported training loss is averaged."""


def fit(setup: Setup, recipe: Recipe) -> Outcome:
    """Train a model to the end of the run, or to the signal that stops it.

    Args:
        setup: config, run folder, processes, tokenizer, data.
        recipe: model, objective, how to save.

    Returns:
        The outcome of the run. Equal on all ranks.

    Raises:
        ConfigError: the run can't be resumed, the disk has no room for it, or the data does not fit the objective.
        DivergedError: several steps in a row gave NaN or infinity.
    """
    check_units(setup, recipe.objective)
    return _Fit(setup, recipe).run_to_end()


class _Fit:
    """The state of one training run in one process."""

    def __init__(self, setup: Setup, recipe: Recipe) -> None:
        self.setup, self.recipe, self.model = setup, recipe, recipe.model
        self.criterion, model = recipe.criterion, recipe.model
        self.cfg, self.run, self.session, self.data = setup.cfg, setup.run, setup.session, setup.data
        self.algo = setup.cfg.algo
        self.source = setup.source
        self.batch_size, self.total = self.source.batch_size, self.source.total
        if recipe.reparametrization is not None:
            self.session.strategy.reparametrization = recipe.reparametrization
        self.session.strategy.place(model)
        self.reparametrization = self.session.strategy.reparametrization
        self.reparametrization.placed()
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.kept_in = " and ".join(sorted({str(p.dtype).removeprefix("torch.") for _, p in trained}))
        self.optimizer = make_optimizer(self.algo, parameter_groups(trained, self.algo.weight_decay), self.session.device)
        self.scheduler = make_scheduler(self.algo, self.optimizer, self.total)
        self.done = 0
        self.skipped_in_a_row = self.skipped = 0
        self.eval_before: float | None = None
        self.logged_before = False
        self.eval_loss: float | None = None
        self.meter, self.spikes = Meter(), SpikeMeter()
        self.watch = Watch(self.run, self.algo)
        self.recent: deque[float] = deque(maxlen=NUM_RECENT)
        self.num_trained, self.num_parameters = sum(p.numel() for _, p in trained), sum(p.numel() for p in model.parameters())
        check_disk(setup, model)
        self.engine = self.session.strategy.start(model, self.optimizer)
        rehearse_save(self.cfg.model, self.run, self.session, model, self._save_model)
        self.num_outside_text = sum(p.numel() for p in outside_text(model))
        num_of_text = self.num_parameters - self.num_outside_text
        self.layout, self.shrink = choose_layout(setup, model, recipe.loss, num_of_text, recipe.kernels)
        peak = peak_flops(self.session.device, self.session.compute_dtype)
        flops = flops_per_token(self.cfg.model, setup.base_path, self.num_trained) if peak else None
        self.peak_tokens_per_second = peak * self.session.group.world / flops if peak and flops else None
        self._announce()
        self.tracking = Tracking(self.cfg, self.run, self.session.accelerator, setup.algorithm)
        self._saves = self.algo.save_every_steps is not None or self.algo.save_every_epochs is not None
        folder, keep = self.run.checkpoints_path, self.algo.keep_checkpoints
        self.writer = CheckpointWriter(folder, self.session, model, self.optimizer, self._save_model, keep, self.run.say)

    def _save_model(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        self.recipe.save(self.model, folder, weights)
        self.setup.complete_folder(folder)

    def _announce(self) -> None:
        lines, plan = mix_lines(self.source)
        self.run.write_plan(
            effective_batch_size=self.batch_size,
            num_steps=self.total,
            trainable_parameters=self.num_trained,
            parameters=self.num_parameters,
            weights_kept_in=self.kept_in,
            auto_class=auto_class(base_of(self.model).config).__name__,
            **plan,
        )
        what = "a stream" if self.cfg.data.streaming else f"{len(self.data.train)} samples"
        self.run.say(
            f"training {self.num_trained:,} of {self.num_parameters:,} parameters in {self.kept_in} on {what}: "
            f"{self.total} steps of {self.batch_size} samples, micro-batches of at most {self.layout.max_tokens} tokens"
        )
        if self.num_outside_text:
            self.run.say(f"the text part trains; {self.num_outside_text:,} parameters that no text reaches stay as they are")
        if hasattr(self.model, "peft_config") and (line := line_on_base(self.cfg.model)):
            self.run.say(line)
        for line in [*length_lines(self.source, self.algo), *lines]:
            self.run.say(line)

    def run_to_end(self) -> Outcome:
        """Run the remaining steps, then save the model."""
        self.tracking.start()
        try:
            outcome = self._train()
        except BaseException as error:
            signal_number = error.signal_number if isinstance(error, Interrupted) else None
            self.tracking.end(stopped_by=signal_number, failed=True)
            raise
        self.tracking.end(stopped_by=outcome.stopped_by)
        return outcome

    def _train(self) -> Outcome:
        self._observe("hub_run_start", cfg=self.cfg, run=self.run)
        if self.cfg.resume:
            self._resume()
        self.progress = ProgressLine(self.total, self.run.is_main, self.done)
        if self.done == 0:
            self.eval_before = self.eval_loss = self._measure()
            if self.eval_before is not None:
                count = len(self.data.evaluation)
                self.progress.say(f"held-out loss before training {self.eval_before:.4f} ({count} samples)")
                self.tracking.log(0, {"eval_loss": self.eval_before})
        stop_request.in_loop = True
        # Objects made so far live to the end. Frozen, they cost Python's collector no time while the GPU waits.
        gc.collect()
        gc.freeze()
        stopping: int | None = None
        model_path: Path | None = self.run.model_path
        try:
            for step, units in self._steps():
                stopping = self._step(step, units)
                if stopping is not None and self.done < self.total:
                    break
            if self.done < self.total:
                checkpoint = self._checkpoint(wait=True)
                model_path = checkpoint / "model" if checkpoint else None
            self._report(self.writer.wait())
        finally:
            gc.unfreeze()
            self.progress.stop()
            self.source.close()
            lines, seen = self.source.report()
            self.run.write_plan(**seen)
            for line in lines:
                self.run.say(line)
            self._report(self.writer.close())
        if self.done == self.total:
            with self.reparametrization.exact():
                weights = full_weights(self.model, whole=self.session.strategy.whole)
            if self.run.is_main:
                self._save_model(self.run.model_path, weights)
            barrier()
        return self._outcome(model_path, stopping)

    def _steps(self) -> Iterator[tuple[batches.Step, list[Unit]]]:
        """The steps to come. A row that can't be used, far in a stream, ends the run: with a checkpoint, as a signal does."""
        try:
            yield from self.source.steps(after=self.done)
        except DataError as error:
            if not self.done:
                raise
            checkpoint = self._checkpoint(wait=True)
            ended = DataError(ended_by_row(error, self.done, checkpoint, self.run.path))
            ended.outcome = self._outcome(checkpoint / "model" if checkpoint else None)
            raise ended from None

    def _outcome(self, model_path: Path | None, stopping: int | None = None) -> Outcome:
        memory = max_over_ranks(peak_memory_gb(self.session.device))
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

    def _step(self, step: batches.Step, units: list[Unit]) -> int | None:
        """Run one step: train, log, evaluate, save. Return the signal that asks to stop, if there is one."""
        self.meter.begin()
        rate = self.optimizer.param_groups[0]["lr"]
        counts: dict[str, float] = {}

        def count(layout: Layout) -> None:
            counts.update(counts_of(step, units, self.source.mix))
            counts["packing_efficiency"] = round(layout.efficiency(samples_of(units), self.session.group.world), 4)

        outcome = train_step(
            self.session,
            self.engine,
            self.optimizer,
            units,
            self.layout,
            self.algo.max_grad_norm,
            self.criterion,
            shrink=self.shrink,
            on_cpu_during_step=count,
        )
        self.scheduler.step()
        self.done = step.number
        speed = self.meter.end(int(counts["num_tokens"]))
        self._keep(outcome.layout)
        stopping = stop_requested()
        metrics: dict[str, float] = {
            "step": self.done,
            "loss": outcome.loss,
            "learning_rate": rate,
            "grad_norm": outcome.grad_norm,
            **counts,
            "tokens_per_second": round(speed, 1),
            "peak_memory_gb": round(peak_memory_gb(self.session.device), 3),
        }
        if self.peak_tokens_per_second:
            metrics["mfu"] = round(speed / self.peak_tokens_per_second, 4)
        if compiled := num_compiled():
            metrics["graphs_compiled"] = compiled
        self._judge(outcome, units, metrics)
        mix, last = self.source.mix, self.done == self.total
        measure = last or stopping is not None or _due(self.done, self.algo.eval_every_steps)
        if measure and (measured := self._measure()) is not None:
            self.eval_loss = metrics["eval_loss"] = measured
            # Not at a signal: a run that is stopped and resumed trains like one that is not.
            if _due(self.done, self.algo.eval_every_steps) and (changed := observe_loss(self.scheduler, measured)):
                self.progress.say(f"step {self.done}: learning rate {changed:.3g} from now on ({self.algo.lr_scheduler})")
        if last or stopping is not None or "skipped" in metrics or _due(self.done, self.algo.log_every_steps):
            self._log(metrics)
        every = self.algo.save_every_epochs
        self._report(self.writer.poll())
        ends_pass = mix.per_pass is not None and step.place + step.size >= mix.per_pass
        epoch_due = every is not None and ends_pass and (step.epoch + 1) % every == 0
        if (epoch_due or _due(self.done, self.algo.save_every_steps)) and not last and stopping is None:
            self._checkpoint(metrics.get("eval_loss"))
        elif self._saves:
            self.writer.prepare()
        return stopping

    def _judge(self, outcome: StepOutcome, units: list[Unit], metrics: dict[str, float]) -> None:
        """Check a step for NaN and infinity, which changed no weight, and for a spike of the loss.

        Raises:
            DivergedError: too many such steps in a row. A checkpoint has the weights from before them.
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
        self.progress.say(f"step {self.done} is skipped, the weights stay as they were: {what}")
        if self.skipped_in_a_row < MOST_SKIPPED_IN_A_ROW:
            return
        self._log(metrics)
        checkpoint = self._checkpoint(wait=True)
        rows = ", ".join(unit.where for unit in units[:5])
        raise DivergedError(
            f"{self.skipped_in_a_row} steps in a row gave NaN or infinity (the last: step {self.done}, {what}; rows {rows}, "
            f"...). Type a lower algo.learning_rate than {self.algo.learning_rate:g} or algo.max_grad_norm=0.5, and look at "
            f"those rows. The weights before these steps: {checkpoint}"
        )

    def _keep(self, layout: Layout) -> None:
        """Keep the layout that fit for the next steps, and log it if memory ran out."""
        before, self.layout, checkpointed, tokens = self.layout, layout, layout.num_checkpointed, layout.max_tokens
        if checkpointed != before.num_checkpointed:
            self.progress.say(
                f"out of memory: {checkpointed} layers use activation checkpointing from now on instead of "
                f"{before.num_checkpointed}. The step was retried, with the same result"
            )
            self.run.write_plan(layers_recomputed=checkpointed)
        if tokens != before.max_tokens:
            self.progress.say(
                f"out of memory at {before.max_tokens} tokens: the step was retried in micro-batches of at most {tokens} "
                f"tokens, with the same result. Next time type algo.max_tokens_per_gpu={tokens}"
            )
            self.run.write_plan(max_tokens_per_gpu=tokens, max_tokens_per_gpu_because="memory ran out above it")

    def _measure(self) -> float | None:
        """Return the loss on the evaluation set. None without one."""
        if not self.data.evaluation:
            return None
        loss, layout = evaluate(self.session, self.engine, self.data.evaluation, self.layout, self.criterion)
        self._keep(layout)
        return loss

    def _log(self, metrics: dict[str, float]) -> None:
        if "skipped" not in metrics:
            self.recent.append(metrics["loss"])
        if self.eval_before is not None and not self.logged_before:
            metrics["eval_loss_before"] = self.eval_before
        self.logged_before = True
        self.run.log(metrics)
        self.progress.step(self.done, metrics)
        if "eval_loss" in metrics:
            self.progress.say(f"held-out loss {metrics['eval_loss']:.4f} after step {self.done}")
            if self.done < self.total:
                self.watch.look(self.done, self.progress.say)
        self.tracking.log(self.done, metrics)
        self._observe("hub_log", run=self.run, step=self.done, metrics=metrics)

    def _checkpoint(self, eval_loss: float | None = None, wait: bool = False) -> Path | None:
        """Start writing a checkpoint, once the previous one is written. A failure is logged, and training continues without it.

        Returns:
            Its folder, if `wait` is set and it could be written.
        """
        self._report(self.writer.wait())
        state = {
            "num_steps": self.total,
            "effective_batch_size": self.batch_size,
            "data": self.source.fingerprint,
            "supply": self.source.state(),
            "scheduler": self.scheduler.state_dict(),
            "eval_loss_before": self.eval_before,
            "last_eval_loss": self.eval_loss,
            "eval_loss": eval_loss,
            "max_tokens": self.layout.max_tokens,
            "skipped": self.skipped,
            "spikes": self.spikes.state(),
        }
        with self.reparametrization.exact():
            saved = self.writer.save(self.done, state, wait)
        self._report(saved)
        return saved.path if saved else None

    def _report(self, saved: Saved | None) -> None:
        """Log how a finished save ended. None: no save has finished."""
        if saved is None:
            return
        if saved.path is None:
            self.progress.say(f"no checkpoint could be written after step {saved.step}: {saved.failure}. Training continues")
        else:
            self.progress.say(f"checkpoint {saved.path}")
            self._observe("hub_checkpoint", run=self.run, step=saved.step, path=saved.path)

    def _resume(self) -> None:
        """Continue from the newest whole checkpoint."""
        state = resume(self.setup, self.model, self.optimizer, self.source.fingerprint, self.total)
        self.reparametrization.loaded()
        self.source.restore(state["supply"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.done = state["step"]
        self.eval_before, self.eval_loss = state["eval_loss_before"], state["last_eval_loss"]
        self.skipped = state["skipped"]
        self.spikes.restore(state["spikes"])
        if self.algo.max_tokens_per_gpu == AUTO:
            # Free memory may differ from last time, and other micro-batches would round differently.
            self.layout = replace(self.layout, max_tokens=state["max_tokens"])
        lines = [line for line in read_metrics(self.run.metrics_file) if "skipped" not in line]
        self.recent.extend(line["loss"] for line in lines[-NUM_RECENT:])
        self.logged_before = any("eval_loss_before" in line for line in lines)

    def _observe(self, hook: str, **values: object) -> None:
        if self.run.is_main:
            self.setup.observe(hook, **values)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
