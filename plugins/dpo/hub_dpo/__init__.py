"""Learning from preferences: DPO and its kin, on all weights, on LoRA adapters, and within OSFT's free directions."""

from collections.abc import Iterable
from pathlib import Path

from hub_lora_sft.config import needs_gpu

from hub import Algorithm, Backend, hookimpl
from hub.config.schema import fp8_needs_gpu
from hub_dpo.config import DpoConfig, LoraDpoConfig, OsftDpoConfig, rows


@hookimpl
def hub_algorithms() -> Iterable[Algorithm]:
    return [
        Algorithm(name="dpo", config=DpoConfig, summary="from preferences (DPO, IPO, SimPO, ORPO, KTO, ...): all weights"),
        Algorithm(name="lora_dpo", config=LoraDpoConfig, summary="from preferences: LoRA and QLoRA adapters"),
        Algorithm(name="osft_dpo", config=OsftDpoConfig, summary="from preferences: OSFT's directions of low importance"),
    ]


@hookimpl
def hub_backends() -> Iterable[Backend]:
    needs = ("torch", "transformers", "accelerate")
    build = "hub_dpo.recipe:build_"
    return [
        Backend(name="native", algorithm="dpo", build=f"{build}full", needs=needs, needs_gpu=fp8_needs_gpu, rows=rows),
        Backend(
            name="native", algorithm="lora_dpo", build=f"{build}lora", needs=(*needs, "peft"), needs_gpu=needs_gpu, rows=rows
        ),
        Backend(name="native", algorithm="osft_dpo", build=f"{build}osft", needs=needs, rows=rows),
    ]


@hookimpl
def hub_config_dir() -> Path:
    return Path(__file__).parent / "conf"
