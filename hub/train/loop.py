"""The training loop: steps, evaluation, checkpoints, result. Every algorithm trains here. `step.py` has the step itself.

The samples of step n depend on the seed and on n only, so a resumed run sees the samples that it would have seen.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from hub.config.option import AUTO
from hub.data.samples.sample import Unit, counted, fingerprint, samples_of
from hub.errors import DataError, Interrupted
from hub.parallel.group import end_if_stopped, max_over_ranks, stop_requested
from hub.parallel.strategy import full_weights
from hub.result import Outcome
from hub.system import timeline
from hub.system.garbage import frozen
from hub.system.signals import SAVE_SIGNALS, stop_request
from hub.train.announce import ParameterCounts, announce, announce_first_step, announce_smaller
from hub.train.balanced import balanced
from hub.train.batch import split as batches
from hub.train.checkpoints.best_model import take_best
from hub.train.checkpoints.checkpoint import checkpoint_name, load_checkpoint
from hub.train.checkpoints.rehearsal import rehearse_save
from hub.train.checkpoints.resume import (
    check_disk,
    ended_by_disk,
    ended_by_row,
    options_of,
    resume,
    saves_while_training,
    sizes_on_disk,
)
from hub.train.checkpoints.writer import CheckpointWriter
from hub.train.divergence import Divergence
from hub.train.evaluation import Evaluations, is_due
from hub.train.kernels.compiled import num_compiled
from hub.train.last_save import LastSave
from hub.train.layout.flops import flops_per_token, num_trained_of_token, peak_flops
from hub.train.layout.layout import Layout, choose_layout
from hub.train.losses.objective import figures_of
from hub.train.measured_before import reusing
from hub.train.measuring import Measurements, values_of
from hub.train.meters import Meter, counts_of, peak_memory_gb
from hub.train.optim import make_optimizer, make_scheduler, parameter_groups, restore_schedule
from hub.train.passes import RunChunks, passes_of
from hub.train.recipe import Recipe, check_units
from hub.train.saving import Checkpoints
from hub.train.setup.setup import Setup
from hub.train.step import evaluate, members, train_step
from hub.train.step_log import StepLog
from hub.train.tracker import Tracking
from hub.train.watch import Watch


def fit(setup: Setup, recipe: Recipe, measurements: Measurements | None = None) -> Outcome:
    """Train a model to the end of the run, or to the signal that stops it.

    Args:
        setup: config, run folder, processes, tokenizer, data.
        recipe: model, objective, how to save.
        measurements: what is measured besides the held-out loss. None: nothing.

    Returns:
        The outcome of the run. Equal on all ranks.

    Raises:
        ConfigError: the run can't be resumed, the disk has no room for it, or the data does not fit the objective.
        DivergedError: several steps in a row gave NaN or infinity.
    """
    check_units(setup, recipe.objective)
    return _Fit(setup, recipe, measurements).run_to_end()


class _Fit:
    """The state of one training run in one process."""

    def __init__(self, setup: Setup, recipe: Recipe, measurements: Measurements | None) -> None:
        self.measurements = measurements
        self.setup, self.recipe, self.model, model = setup, recipe, recipe.model, recipe.model
        self.cfg, self.run, self.session, self.data = setup.cfg, setup.run, setup.session, setup.data
        self.algo, self.source = setup.cfg.algo, setup.source
        self.batch_size, self.total = self.source.batch_size, self.source.total
        if recipe.reparametrization is not None:
            self.session.strategy.reparametrization = recipe.reparametrization
        self.session.strategy.place(model)
        self.reparametrization = self.session.strategy.reparametrization
        self.reparametrization.placed()
        self.criterion = balanced(setup, recipe)
        counts = ParameterCounts.of(model)
        groups = parameter_groups(model.named_parameters(), self.algo.weight_decay)
        self.optimizer = make_optimizer(self.algo, groups, self.session.device)
        self.scheduler = make_scheduler(self.algo, self.optimizer, self.total)
        self._evaluation_data = fingerprint(self.data.evaluation)
        self.done = 0
        self.figures: dict[str, float] = {}
        """What the objective has of the newest evaluation, besides the loss."""
        self.meter = Meter()
        self.tracking = Tracking(self.cfg, self.run, self.session.accelerator, setup.algorithm)
        self.log = StepLog(self.run, self.tracking, self._observe, self.total)
        self.evaluations = Evaluations(self.algo, self._measure, self.scheduler, self.log.say)
        self.divergence = Divergence(self.log.say)
        self.watch = Watch(self.run, self.algo)
        check_disk(setup, model)
        self.last_save = LastSave(self.run, self.cfg.launch, self.log.say, sizes_on_disk(setup, model), self._weights_writer)
        self.engine = self.session.strategy.start(model, self.optimizer)
        library = recipe.kernels.library if recipe.kernels is not None else ""
        with reusing(setup, model, recipe.loss, counts.of_text, library) as self.measured_before:
            rehearse_save(self.cfg.model, self.run, self.session, model, self._save_model)
            self.layout, self.shrink = choose_layout(setup, model, recipe.loss, counts.of_text, recipe.kernels)
        peak = peak_flops(self.session.device, self.session.compute_dtype)
        flops = flops_per_token(self.cfg.model, setup.base_path, num_trained_of_token(model)) if peak else None
        self.peak_tokens_per_second = peak * self.session.group.world / flops if peak and flops else None
        announce(setup, model, counts, self.layout)
        chunks = RunChunks(setup, self.source, self.criterion)
        self.passes = passes_of(setup, self.engine, self.criterion, lambda: self.layout, self._keep, chunks)
        self._saves = saves_while_training(self.algo)
        folder, keep, say = self.run.checkpoints_path, self.algo.keep_checkpoints, self.run.say
        writer = CheckpointWriter(folder, self.session, model, self.optimizer, self._save_model, keep, say)
        exactly = self.reparametrization
        self.checkpoints = Checkpoints(self.run, writer, self.last_save, exactly, self._state, self.log.say, self._observe)

    def _save_model(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        self.recipe.save(self.model, folder, weights)
        self.setup.complete_folder(folder)

    def run_to_end(self) -> Outcome:
        """Run the remaining steps, then save the model."""
        self.tracking.start()
        try:
            outcome = self._train()
        except BaseException as error:
            self.log.fail()
            if getattr(error, "outcome", None) is None:
                error.outcome = self._reached()  # type: ignore[attr-defined]  # what is raised is often no HubError
            signal_number = error.signal_number if isinstance(error, Interrupted) else None
            self.tracking.end(stopped_by=signal_number, failed=True)
            if (ended := ended_by_disk(error, self.done, self.run)) is not None:
                ended.outcome = error.outcome  # type: ignore[attr-defined]
                raise ended from error
            raise
        self.tracking.end(stopped_by=outcome.stopped_by)
        return outcome

    def _train(self) -> Outcome:
        timeline.begin("evaluation")
        self._observe("hub_run_start", cfg=self.cfg, run=self.run)
        self.recipe.objective.prepare(self.passes)
        if self.cfg.resume:
            self._resume()
        self.run.begin()
        self.log.start(self.done)
        if self.done == 0:
            before = self.evaluations.before_training()
            if before is not None:
                self.log.before_training(before, counted(self.data.evaluation), self.figures)
            if self.measurements is not None:
                figures = self.measurements.measure(0, self.engine)
                self.evaluations.before_measured(figures)
                self.log.measured_before(values_of(figures))
        stop_request.acknowledge = self.log.stopping
        stop_request.in_loop = True
        end_if_stopped()
        timeline.begin("step")
        stopping: int | None = None
        model_path: Path | None = self.run.model_path
        try:
            with frozen(own_process=self.cfg.launch.mode != "inline"):  # the GPU would wait for the collector
                for step, units in self._steps():
                    stopping = self._step(step, units)
                    if stopping is not None or self.is_complete:
                        break
            if self.evaluations.ends_training and self.done < self.total:
                self.log.say(self.evaluations.why_ended(self.done, self.total))
            if not self.is_complete:
                _, model_path = self.checkpoints.save_last(self.done, self.evaluations.score)
            self.checkpoints.wait()
            if self.is_complete and self.algo.saves_regularly and self.checkpoints.newest != self.done:
                # With more steps the run can go on from its end.
                self.checkpoints.save(self.done, self.evaluations.score, wait=True)
        finally:
            stop_request.acknowledge = lambda: None
            self.log.stop()
            self.source.close()
            lines, seen = self.source.report()
            self.run.write_plan(**seen)
            for line in lines:
                self.run.say(line)
            self.checkpoints.close()
        if self.is_complete:
            model_path = self._save_result()
            self.recipe.objective.finish(self.passes)
        memory = max_over_ranks(peak_memory_gb(self.session.device))
        return replace(self._reached(model_path, stopping), peak_memory_gb=round(memory, 3))

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to train."""
        return self.done == self.total or self.evaluations.ends_training

    def _save_result(self) -> Path:
        """Write `model/`: the best model, if it is asked for and is not the last one, else the last. Returns where it is."""
        best = self.evaluations.kept_step
        if best is not None and best != self.done:
            if (taken := take_best(best, self.evaluations.score, self.run, self.log.say)) is not None:
                step, score = taken
                if score is not None:  # of another step
                    self.evaluations.keep(step, score)
                self.log.say(self.evaluations.why_kept(self.done))
                if self.measurements is not None and not self.measurements.has(step):
                    load_checkpoint(self.run.checkpoints_path / checkpoint_name(step), self.session, self.model, self.optimizer)
                    self.reparametrization.loaded()
                    self.measurements.measure(step, self.engine)
                return self.run.model_path
            self.evaluations.keep_last()
        if self.measurements is not None and not self.measurements.has(self.done):  # it was killed while it saved
            self._measure_more()
        return self.last_save.model()

    def _weights_writer(self) -> Callable[[Path], None]:
        """Take the weights as they are, on all ranks. The function writes the model, on rank 0."""
        with self.reparametrization.exact():
            weights = full_weights(self.model, whole=self.session.strategy.whole)
        return lambda folder: self._save_model(folder, weights)

    def _steps(self) -> Iterator[tuple[batches.Step, list[Unit]]]:
        """The steps to come. A row that can't be used, far in a stream, ends the run: with a checkpoint, as a signal does."""
        if self.is_complete:  # a resumed run that was killed while it saved
            return
        try:
            yield from self.source.steps(after=self.done)
        except DataError as error:
            if not self.done:
                raise
            checkpoint, model = self.checkpoints.save_last(self.done)
            ended = DataError(ended_by_row(error, self.done, checkpoint, self.run.path))
            ended.outcome = self._reached(model)
            raise ended from None

    def _reached(self, model_path: Path | None = None, stopping: int | None = None) -> Outcome:
        """What this process has reached so far. Without communication: other ranks may have failed."""
        speed = self.meter.tokens_per_second
        return Outcome(
            num_steps=self.done,
            effective_batch_size=self.batch_size,
            train_loss=self.log.train_loss,
            eval_loss_before=self.evaluations.before,
            eval_loss=self.evaluations.of_result if self.is_complete else self.evaluations.last,
            best_step=self.evaluations.kept_step if self.is_complete else None,
            ended_early=self.evaluations.ends_training and self.done < self.total,
            tokens_per_second=round(speed, 1) if speed else None,
            peak_memory_gb=round(peak_memory_gb(self.session.device), 3),
            base_model_path=self.setup.base_path,
            model_path=model_path,
            stopped_by=None if self.is_complete else stopping,
        )

    def _step(self, step: batches.Step, units: list[Unit]) -> int | None:
        """Run one step: train, log, evaluate, save. Return the signal that asks to stop, if there is one."""
        units = list(self.recipe.objective.completed(units))
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
        announce_first_step(self.setup, self.log.say)
        self.scheduler.step()
        self.done = step.number
        speed = self.meter.end(int(counts["num_tokens"]))
        self._keep(outcome.layout)
        self.measured_before.keep()
        stopping = stop_requested()
        asked_to_save = stopping in SAVE_SIGNALS
        if asked_to_save:
            stopping = stop_request.save_number = None
        metrics: dict[str, float] = {
            "step": self.done,
            "loss": outcome.loss,
            "learning_rate": rate,
            "grad_norm": outcome.grad_norm,
            **counts,
            "tokens_per_second": round(speed, 1),
            "peak_memory_gb": round(peak_memory_gb(self.session.device), 3),
        }
        metrics |= {"mfu": round(speed / self.peak_tokens_per_second, 4)} if self.peak_tokens_per_second else {}
        metrics |= figures_of(self.recipe.objective, members(units), outcome.values, is_start=self.done == 1)
        metrics |= {"graphs_compiled": compiled} if (compiled := num_compiled()) else {}
        metrics |= self.criterion.balance_figures | self.divergence.judge(self.done, outcome)
        self.log.hold(metrics)
        if self.divergence.is_hopeless:
            self.log.step(metrics)
            checkpoint, model = self.checkpoints.save_last(self.done)
            diverged = self.divergence.error(self.done, outcome, units, self.algo.learning_rate, checkpoint)
            diverged.outcome = self._reached(model)
            raise diverged
        mix, last = self.source.mix, self.done == self.total
        if (measured := self.evaluations.after_step(self.done, last, stopping is not None)) is not None:
            metrics |= {"eval_loss": measured, **self.figures}
        ends = last or self.evaluations.ends_training
        measures_more = self.measurements is not None and (ends or is_due(self.done, self.cfg.evaluate.every_steps))
        if measures_more:
            metrics |= self._measure_more()
        is_end = last or stopping is not None or self.evaluations.ends_training
        is_measured = "eval_loss" in metrics or measures_more  # at a step that is not due to be logged, too
        if is_end or is_measured or "skipped" in metrics or is_due(self.done, self.algo.log_every_steps):
            self.log.step(metrics)
            self.last_save.look()
            if "eval_loss" in metrics and not is_end:
                self.watch.look(self.done, self.log.say)
        every = self.algo.save_every_epochs
        self.checkpoints.poll()
        ends_pass = mix.per_pass is not None and step.place + step.size >= mix.per_pass
        epoch_due = every is not None and ends_pass and (step.epoch + 1) % every == 0
        due = asked_to_save or epoch_due or is_due(self.done, self.algo.save_every_steps)
        if (due or (self.algo.keep_best and self.evaluations.is_new_best)) and not last and stopping is None:
            self.checkpoints.save(self.done, self.evaluations.score)
        elif self._saves:
            self.checkpoints.prepare()
        return stopping

    def _keep(self, layout: Layout) -> None:
        """Keep the layout that fit for the next steps, and log it if memory ran out."""
        before, self.layout = self.layout, layout
        if layout != before:
            self.measured_before.forget()
        announce_smaller(before, layout, self.run, self.log.say)

    def _measure(self) -> float | None:
        """Return the loss on the evaluation set. None without one."""
        if not self.data.evaluation:
            return None
        objective = self.recipe.objective
        units = objective.completed(self.data.evaluation)
        found = evaluate(self.session, self.engine, units, self.layout, self.criterion)
        self._keep(found.layout)
        figures = figures_of(objective, members(units), found.values, is_start=self.done == 0)
        self.figures = {f"eval_{name}": value for name, value in figures.items()}
        return found.loss

    def _measure_more(self) -> dict[str, float]:
        """Measure what is measured besides the held-out loss, and act on it."""
        assert self.measurements is not None
        figures = self.measurements.measure(self.done, self.engine)
        self.evaluations.measured(self.done, figures)
        return values_of(figures)

    def _state(self, score: float | None) -> dict[str, object]:
        """What a checkpoint holds besides weights and optimizer."""
        return {
            "num_steps": self.total,
            "effective_batch_size": self.batch_size,
            "data": self.source.fingerprint,
            "evaluation_data": self._evaluation_data,
            "supply": self.source.state(),
            "options": options_of(self.cfg),
            "scheduler": self.scheduler.state_dict(),
            "score": score,
            "max_tokens": self.layout.max_tokens,
            **self.evaluations.state(),
            **self.divergence.state(),
        }

    def _resume(self) -> None:
        """Continue from the newest whole checkpoint."""
        resumed = resume(self.setup, self.model, self.optimizer)
        self.checkpoints.resumed_from, state = resumed.checkpoint, resumed.state
        self.reparametrization.loaded()
        self.source.restore(state["supply"])
        restore_schedule(self.scheduler, state["scheduler"])
        self.done = state["step"]
        self.evaluations.restore(state, resumed.same_evaluation)
        self.divergence.restore(state)
        if self.algo.max_tokens_per_gpu == AUTO and "algo.max_tokens_per_gpu" not in resumed.changes:
            # Free memory may differ from last time, and other micro-batches would round differently.
            self.layout = replace(self.layout, max_tokens=state["max_tokens"])
        self.log.restore(self.evaluations.before)
        if self.is_complete:
            resumed.refuse_complete(self.cfg, self.run)

    def _observe(self, hook: str, **values: object) -> None:
        if self.run.is_main:
            self.setup.observe(hook, **values)
