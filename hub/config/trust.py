"""Which options of a file may count: what runs code or concerns this machine counts only if it is typed.

A preset, a config file and the folder of a run may come from anywhere. Their options decide what is computed. Where it runs,
whom it joins, where it writes and whose code it runs is decided by what the user types, on the command line or in a call.
"""

from collections.abc import Iterator
from typing import Any

from hub.config.option import leaves
from hub.config.schema import LaunchConfig, RunConfig

RUN_CODE = ("model.trust_remote_code", "launch.python", "launch.image", "export.python")
"""Options that run code. From a file they are refused."""

OF_THE_COMPUTATION = {
    "launch.mode",
    "launch.nproc_per_node",
    "launch.strategy",
    "launch.cpu_offload",
    "launch.gpu_memory_gb",
    "launch.grace_seconds",
}
"""Options of `launch` that are taken from a run: they decide how it is computed on one machine, within the bounds of each."""

LEAVES_THE_MACHINE = ("export.repo",)
"""Options beside those of `launch` by which something leaves this machine."""


def of_the_machine(name: str) -> bool:
    """Whether an option concerns the machine, so that it is not taken from the folder of a run. A new one does at first."""
    return (name.startswith("launch.") and name not in OF_THE_COMPUTATION) or name in LEAVES_THE_MACHINE


def machine_options(cfg: RunConfig) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each option that concerns the machine and is not at its default. Not those that run code."""
    for name, value, default, _ in leaves(cfg):
        if of_the_machine(name) and name not in RUN_CODE and value != default:
            yield name, value


def set_launch(launch: LaunchConfig, typed: LaunchConfig) -> dict[str, Any]:
    """The values of the options of `launch` that a run must not decide, as typed or at their defaults.

    Args:
        launch: of the run.
        typed: of this call.
    """
    return {name: getattr(typed, name) for name in vars(launch) if of_the_machine(f"launch.{name}")}
