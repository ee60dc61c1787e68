"""OSFT: new tasks are learnt in directions that a model hardly uses, so that it keeps what it knows."""

from collections.abc import Iterable

from hub import Algorithm, Backend, hookimpl
from hub_osft.config import OsftConfig


@hookimpl
def hub_algorithms() -> Iterable[Algorithm]:
    summary = "orthogonal subspace fine-tuning: learns in directions that the model, or data to protect, hardly uses"
    return [Algorithm(name="osft", config=OsftConfig, summary=summary)]


@hookimpl
def hub_backends() -> Iterable[Backend]:
    needs = ("torch", "transformers", "accelerate")
    return [Backend(name="native", algorithm="osft", build="hub_osft.recipe:build", needs=needs)]
