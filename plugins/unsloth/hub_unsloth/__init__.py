"""Unsloth as a second backend of `lora_sft`: its kernels and its checkpointing, the hub's loop."""

from collections.abc import Iterable

from hub import Backend, hookimpl
from hub.plugins.offers import one_sample
from hub_unsloth.environment import INSTALL, obstacle
from hub_unsloth.limits import problems


@hookimpl
def hub_backends() -> Iterable[Backend]:
    return [
        Backend(
            name="unsloth",
            algorithm="lora_sft",
            build="hub_unsloth.recipe:build",
            needs=("torch", "transformers", "accelerate", "peft", "unsloth", "unsloth_zoo"),
            install=INSTALL,
            # Lower than the native backend, which is faster (measurements in README.md).
            priority=-10,
            available=obstacle,
            problems=problems,
            rows=one_sample,
        )
    ]
