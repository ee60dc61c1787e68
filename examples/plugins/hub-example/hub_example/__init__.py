"""BitFit for the hub. This module holds the hooks; it imports the standard library and `hub` only, not torch."""

from collections.abc import Iterable
from pathlib import Path

from hub import Algorithm, Backend, hookimpl
from hub_example.config import BitFitConfig


@hookimpl
def hub_algorithms() -> Iterable[Algorithm]:
    return [Algorithm(name="bitfit", config=BitFitConfig, summary="BitFit: only biases (or norm weights) learn")]


@hookimpl
def hub_backends() -> Iterable[Backend]:
    return [Backend(name="native", algorithm="bitfit", build="hub_example.recipe:build")]


@hookimpl
def hub_config_dir() -> Path:
    return Path(__file__).parent / "conf"
