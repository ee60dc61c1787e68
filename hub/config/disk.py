"""Options of a disk that is full when a run ends. They are part of `LaunchConfig`."""

from dataclasses import dataclass

from hub.config.option import option


@dataclass(kw_only=True)
class DiskOptions:
    """How the trained weights are saved when `output_dir` has no room for them."""

    wait_for_disk_minutes: float = option(30.0, ge=0)
    """If the disk is full when the run ends: time to wait for room, with the trained weights in memory. Then the model is saved
    in `spare_dir`, or given up."""

    spare_dir: str | None = None
    """Folder on another disk that takes the model if `output_dir` is full when the run ends. null: none."""
