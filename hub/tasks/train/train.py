"""The task `train`: runs the training loop, to the end of the run or to the signal that stops it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hub.errors import HubError, Interrupted, ModelError
from hub.parallel.group import broadcast_text
from hub.result import Outcome
from hub.tasks.export.trial import try_export
from hub.tasks.train.measurements import TrainMeasurements, verdicts, wanted
from hub.tasks.train.prediction import Prediction
from hub.tasks.verbs import FINISHED
from hub.train.loop import fit
from hub.train.recipe import Recipe
from hub.train.setup.setup import Setup
from hub.train.watch import say_diagnosis


def train(setup: Setup, recipe: Recipe) -> Outcome:
    """Train to the end of the run, and say what was learnt, kept and lost, and what the curves show.

    Raises:
        HubError: see `fit`.
    """
    if setup.cfg.export.to and setup.cfg.resume is None:
        _try_export(setup, recipe)
    measurements = TrainMeasurements(setup) if wanted(setup.cfg.evaluate) else None
    prediction = Prediction(setup)
    try:
        outcome = fit(setup, recipe, measurements)
    finally:
        prediction.close()
    outcome = prediction.compared(outcome)
    try:
        recipe.finish(outcome)
    except Exception as error:
        error.outcome = outcome  # type: ignore[attr-defined]  # the model is trained and saved
        raise
    if measurements is not None and setup.run.is_main and (found := measurements.write(outcome)) is not None:
        setup.run.say(repr(found))
        for line in verdicts(found):
            setup.run.say(line)
    return replace(outcome, diagnosis=say_diagnosis(setup.run, setup.cfg.algo, FINISHED))


def _try_export(setup: Setup, recipe: Recipe) -> None:
    """Export the untrained model on rank 0, cut to a few layers. The others wait.

    Raises:
        ModelError: it can't be exported, on all ranks.
        Interrupted: a signal stops the run.
    """
    failure = ""
    if setup.run.is_main:
        try:
            setup.run.say(f"export.to={', '.join(setup.cfg.export.to)}: trying it with an untrained model of a few layers")
            with _fresh(setup.run.path / ".untrained") as aside:
                setup.run.say(try_export(setup.cfg, setup.run.path, setup.base_path, _untrained_adapter(recipe, aside)))
        except Interrupted:
            raise
        except HubError as error:
            failure = str(error)
    if failure := broadcast_text(failure):
        raise ModelError(failure)


@contextmanager
def _fresh(folder: Path) -> Iterator[Path]:
    """An empty folder, removed in the end. What a killed run has left there is removed too."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _untrained_adapter(recipe: Recipe, aside: Path) -> Path | None:
    """The adapter as the run saves it, before a step. None: the whole model trains."""
    if not hasattr(recipe.model, "peft_config"):
        return None
    weights = {name: weight.detach().cpu() for name, weight in recipe.model.named_parameters() if weight.requires_grad}
    recipe.save(recipe.model, aside / "adapter", weights)
    return aside / "adapter"
