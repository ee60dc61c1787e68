"""OSFT: new tasks are learned in low-importance singular directions, so that the model keeps what it knows."""

from collections.abc import Iterable

from hub import Algorithm, Backend, hookimpl
from hub.plugins.offers import one_sample
from hub_osft.config import OsftConfig


@hookimpl
def hub_algorithms() -> Iterable[Algorithm]:
    summary = "orthogonal subspace fine-tuning: trains directions of low importance to the model, or to protected data"
    return [Algorithm(name="osft", config=OsftConfig, summary=summary)]


@hookimpl
def hub_backends() -> Iterable[Backend]:
    needs = ("torch", "transformers", "accelerate")
    build, plan = "hub_osft.recipe:build", "hub_osft.recipe:plan"
    return [Backend(name="native", algorithm="osft", build=build, plan=plan, needs=needs, rows=one_sample)]
