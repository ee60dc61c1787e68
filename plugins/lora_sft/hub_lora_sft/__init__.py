"""LoRA and QLoRA: low-rank adapters on frozen weights."""

from collections.abc import Iterable
from pathlib import Path

from hub import Algorithm, Backend, hookimpl
from hub.plugins.offers import one_sample
from hub_lora_sft.config import LoraSftConfig, needs_gpu


@hookimpl
def hub_algorithms() -> Iterable[Algorithm]:
    summary = "LoRA and QLoRA: low-rank adapters are trained, the model is frozen"
    return [Algorithm(name="lora_sft", config=LoraSftConfig, summary=summary)]


@hookimpl
def hub_backends() -> Iterable[Backend]:
    needs = ("torch", "transformers", "accelerate", "peft")
    build, plan = "hub_lora_sft.recipe:build", "hub_lora_sft.recipe:plan"
    return [
        Backend(name="native", algorithm="lora_sft", build=build, plan=plan, needs=needs, needs_gpu=needs_gpu, rows=one_sample)
    ]


@hookimpl
def hub_config_dir() -> Path:
    return Path(__file__).parent / "conf"
