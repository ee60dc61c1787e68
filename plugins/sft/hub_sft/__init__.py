"""Full fine-tuning: all weights of the model are trained."""

from collections.abc import Iterable

from hub import Algorithm, Backend, hookimpl
from hub.config.schema import fp8_needs_gpu
from hub.plugins.offers import one_sample
from hub_sft.config import SftConfig


@hookimpl
def hub_algorithms() -> Iterable[Algorithm]:
    return [Algorithm(name="sft", config=SftConfig, summary="full fine-tuning: all weights are trained")]


@hookimpl
def hub_backends() -> Iterable[Backend]:
    needs = ("torch", "transformers", "accelerate")
    build = "hub_sft.recipe:build"
    return [Backend(name="native", algorithm="sft", build=build, needs=needs, needs_gpu=fp8_needs_gpu, rows=one_sample)]
