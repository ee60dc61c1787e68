"""Options of what files and chat templates may take, against mistakes and bombs. They are part of `LaunchConfig`.

They concern the machine, so they are never taken from the folder of a run. What reads files asks `bounds()`.
"""

from dataclasses import dataclass, fields
from typing import Any

from hub.config.option import option


@dataclass(kw_only=True)
class BoundOptions:
    """The most that data, model folders and chat templates may take. Each line about one of them names its option."""

    max_row_mb: int = option(256, ge=1)
    """Longest line of a text file, and cell of a CSV file, in MiB. A book of 1,500 pages has 4."""

    max_row_values: int = option(10_000_000, ge=1)
    """Most values in a row of a text file. Each takes 60 to 100 bytes, so a short text of brackets could fill the memory."""

    max_unpacked_ratio: int = option(100, ge=1)
    """How many times its size a compressed file may unpack to. Data has 3 to 30, a bomb up to 1,000. 256 MiB are always
    allowed."""

    max_data_files: int = option(100_000, ge=1)
    """Most files in a folder of data, or that match a pattern."""

    max_model_files: int = option(10_000, ge=1)
    """Most files in the folder of a model. The largest published ones have a few hundred."""

    template_seconds: float = option(60.0, gt=0)
    """Time in which a chat template must render a conversation, which normally takes milliseconds."""

    template_memory_gb: float = option(2.0, gt=0)
    """Memory in GiB that a chat template may take beyond what the process has."""


BOUNDS = frozenset(f"launch.{item.name}" for item in fields(BoundOptions))
"""The full names of the options."""

_current = BoundOptions()


def bounds() -> BoundOptions:
    """The bounds that hold in this process."""
    return _current


def use_bounds(options: BoundOptions) -> None:
    """Let the bounds of a run hold in this process, for all files that are read from now on.

    Args:
        options: `launch` of the run.
    """
    global _current
    values: dict[str, Any] = {item.name: getattr(options, item.name) for item in fields(BoundOptions)}
    _current = BoundOptions(**values)
