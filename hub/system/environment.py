"""Environment variables that a process hands to its children."""

import json
import os
from collections.abc import Iterable

SHOWN = "HUB_WARNINGS_SHOWN"
"""Environment variable with the warnings that the parent process has shown, as a JSON list."""


def without_repeats(warnings: Iterable[str]) -> dict[str, str]:
    """Environment variables for a child process, so that it does not repeat these warnings.

    The child may be another interpreter with other plugins, whose own warnings are still shown.
    """
    return {SHOWN: json.dumps(sorted({*already_shown(), *warnings}))}


def already_shown() -> list[str]:
    """Warnings that the parent process has shown."""
    lines: list[str] = json.loads(os.environ.get(SHOWN, "[]"))
    return lines
