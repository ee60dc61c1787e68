"""The task `train`: runs the training loop, to the end of the run or to the signal that stops it."""

from hub.run import Outcome
from hub.train.loop import fit
from hub.train.recipe import Recipe
from hub.train.setup.setup import Setup


def train(setup: Setup, recipe: Recipe) -> Outcome:
    """Train to the end of the run.

    Raises:
        HubError: see `fit`.
    """
    outcome = fit(setup, recipe)
    try:
        recipe.finish(outcome)
    except Exception as error:
        error.outcome = outcome  # type: ignore[attr-defined]  # the model is trained and saved
        raise
    return outcome
