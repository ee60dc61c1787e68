"""What a started process takes from the environment of the one that started it."""

import json
import os
from collections.abc import Iterable

SHOWN = "HUB_WARNINGS_SHOWN"
"""Environment variable: the warnings that the parent process has shown, as a JSON list."""


def without_repeats(warnings: Iterable[str]) -> dict[str, str]:
    """Environment of a process started from here, so that it does not repeat these warnings.

    It may be another interpreter with other plugins, whose own warnings are still shown.
    """
    return {SHOWN: json.dumps(sorted({*already_shown(), *warnings}))}


def already_shown() -> list[str]:
    """Warnings that the process which started this one has shown."""
    lines: list[str] = json.loads(os.environ.get(SHOWN, "[]"))
    return lines
