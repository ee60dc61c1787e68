"""Learning from preferences on one page: what trains comes from another plugin, the objective from here."""

from collections.abc import Callable
from dataclasses import replace

from hub.models.structure import without_dropout
from hub.recipe import Recipe, Setup
from hub_dpo.config import PreferenceOptions
from hub_dpo.objective import KtoObjective, PairObjective
from hub_dpo.references import References


def build_full(setup: Setup) -> Recipe:
    """Build the recipe: every weight trains."""
    from hub_sft.recipe import build

    return _build(setup, build)


def build_lora(setup: Setup) -> Recipe:
    """Build the recipe: adapters train on frozen weights."""
    from hub_lora_sft.recipe import build

    return _build(setup, build)


def build_osft(setup: Setup) -> Recipe:
    """Build the recipe: changes within the free directions train."""
    from hub_osft.recipe import build

    return _build(setup, build)


def _build(setup: Setup, build: Callable[[Setup], Recipe]) -> Recipe:
    algo = setup.cfg.algo
    assert isinstance(algo, PreferenceOptions)
    recipe = build(setup)
    if names := without_dropout(recipe.model, but="lora_dropout"):
        setup.run.say(f"dropout is off in {len(names)} modules of the model: a reference has none")
    references = References(setup, recipe) if algo.traits.reference else None
    if algo.loss == "kto":
        return replace(recipe, objective=KtoObjective(algo, references, setup.data.longest))
    return replace(recipe, objective=PairObjective(algo, references))
