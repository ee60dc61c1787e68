"""The Python that has llmcompressor: this one, or one of another environment, since llmcompressor pins transformers."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hub.errors import ConfigError

LEAST = (0, 14)
"""Oldest llmcompressor that was tried."""

PACKAGES = ("llmcompressor", "compressed-tensors", "transformers", "torch")
MAKE = "python3 -m venv ~/llmcompressor && ~/llmcompressor/bin/pip install llmcompressor"
"""What to type for an environment with it."""

_SECONDS = 20
_ASK = """
import importlib.metadata, json
found = {}
for name in %r:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def problem_of_python(python: str | None) -> str | None:
    """Why llmcompressor can't be used, with what to type. None if it can.

    Args:
        python: `export.python`. None: this interpreter.
    """
    try:
        versions = versions_of(python)
    except ConfigError as error:
        return str(error)
    name = f"export.python={python}" if python is not None else "this environment"
    found = versions.get("llmcompressor")
    if found is None and python is None:
        return (
            "export.to=compressed needs llmcompressor, which asks for an older transformers than the hub has, so it gets an "
            f"environment of its own. Type: {MAKE}, and then python=~/llmcompressor/bin/python"
        )
    if found is None:
        return f"{name} has no llmcompressor. Type: {python} -m pip install llmcompressor"
    if _numbers(found) < LEAST:
        least = ".".join(map(str, LEAST))
        pip = f"{python or sys.executable} -m pip install 'llmcompressor>={least}'"
        return f"{name} has llmcompressor {found}, and {least} or newer is needed. Type: {pip}"
    return None


def versions_of(python: str | None) -> Mapping[str, str]:
    """Versions of the packages that make and read an export. What is not installed is left out.

    Args:
        python: `export.python`. None: this interpreter.

    Raises:
        ConfigError: it is no Python.
    """
    if python is not None:
        return _asked(python)
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def command(python: str | None) -> str:
    """The interpreter to run."""
    return sys.executable if python is None else os.path.abspath(os.path.expanduser(python))


def environment(python: str | None) -> dict[str, str]:
    """The environment variables of that interpreter: offline, and without the search path of this one."""
    values = {name: value for name, value in os.environ.items() if python is None or not name.startswith("PYTHON")}
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
    return values | dict.fromkeys(offline, "1") | {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


@cache
def _asked(python: str) -> Mapping[str, str]:
    place = Path(command(python))
    name = f"export.python={python}"
    if place.is_dir():
        inside = place / "bin" / "python"
        raise ConfigError(f"{name}: this is a folder. Type python={inside if inside.is_file() else 'FOLDER/bin/python'}")
    if not place.is_file():
        raise ConfigError(f"{name}: there is no such file. Make an environment, type: {MAKE}")
    if not os.access(place, os.X_OK):
        raise ConfigError(f"{name}: this can't be run. Type python=FOLDER/bin/python, the Python of an environment")
    try:
        done = subprocess.run(
            [str(place), "-c", _ASK % (PACKAGES,)],
            env=environment(python),
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
        )
        values: dict[str, str] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise ConfigError(
            f"{name}: this is no Python that works. Type: {MAKE}, and python=~/llmcompressor/bin/python"
        ) from None
    return values


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
