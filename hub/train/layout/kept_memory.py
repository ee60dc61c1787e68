"""The memory of a pass, as it was measured now or by an earlier run of the same kind."""

from collections.abc import Callable
from typing import Any

from hub.models.patches import ModelPatches
from hub.system.answers import is_known, measured, was_reused, withdraw
from hub.train.kernels.compiled import CompiledLayers
from hub.train.layout.memory_budget import Line, PassMemory

LEAST_ROOM, MOST_ROOM = 0.99, 1.05
"""Memory that is free for activations, over that at the measurement, within which the measurement holds. With less the layout
would not fit. With much more another process had taken some, and there is a better one."""


Found = tuple[float, PassMemory | None]


def measured_memory(room: float, measure: Callable[[], PassMemory | None]) -> Found:
    """Measure the memory of a pass, or take what was measured before if as much is free as then.

    Args:
        room: bytes that are free for activations. The same on all ranks.
        measure: measures. All ranks call it. None: not even a pass over few tokens fits.

    Returns:
        The room that the layout is to be chosen for, that of the measurement; and the memory of a pass.
    """

    def now() -> Found:
        return room, measure()

    if is_known("memory"):
        before, memory = measured("memory", now, _read, _write)
        if LEAST_ROOM * before <= room <= MOST_ROOM * before:
            return before, memory
        withdraw("memory")
    return measured("memory", now, _read, _write)


def compile_as_measured(patches: ModelPatches, run_pass: Callable[[], object]) -> None:
    """Compile the layers by a pass like the first of the measurement, if that was reused.

    The compiler looks at the lengths that it meets first. So the code is what it was in the run that measured. If memory runs
    out here, the first step eases, as any step does.

    Args:
        patches: the owner of the model's patches.
        run_pass: runs a pass forward and backward, and leaves no gradient. All ranks call it.
    """
    if was_reused("memory") and patches.find(CompiledLayers) is not None:
        run_pass()


def _write(found: Found) -> dict[str, Any]:
    room, memory = found
    if memory is None:
        return {"room": room}
    parts = (("plain", memory.plain), ("checkpointed", memory.checkpointed))
    lines = {name: [line.per_token, line.fixed] for name, line in parts}
    return {"room": room, "num_layers": memory.num_layers, **lines}


def _read(held: dict[str, Any]) -> Found:
    if "plain" not in held:
        return float(held["room"]), None
    plain, checkpointed = (Line(*map(float, held[name])) for name in ("plain", "checkpointed"))
    return float(held["room"]), PassMemory(plain, checkpointed, int(held["num_layers"]))
