"""OSFT: new tasks are learned in low-importance singular directions, so that the model retains what it knows."""

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
    return [Backend(name="native", algorithm="osft", train="hub_osft.train:train", needs=needs)]
