"""The task `train`: runs the training loop, to the end of the run or to the signal that stops it."""

from dataclasses import replace

from hub.run import Outcome
from hub.tasks.train.measurements import TrainMeasurements, verdicts, wanted
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
    measurements = TrainMeasurements(setup) if wanted(setup.cfg.evaluate) else None
    outcome = fit(setup, recipe, measurements)
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
