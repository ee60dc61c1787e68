"""Python's bytecode: where installed libraries have none beside them, it is kept in the user's cache.

A container that sets PYTHONDONTWRITEBYTECODE, or a folder of packages that only root may write, would compile thousands of
modules in each run: 8 s and more before the first step.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from hub.system.cache import cache_dir

WRITTEN_FOR = "torch"
"""The library with the most modules. If it has bytecode beside it, the others are taken to have it too."""


def bytecode_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which a worker keeps its bytecode; none if it lies beside the libraries.

    Args:
        environment: of the worker. A PYTHONPYCACHEPREFIX in it stays.
    """
    if environment.get("PYTHONPYCACHEPREFIX") or _has_bytecode(WRITTEN_FOR):
        return {}
    return {"PYTHONPYCACHEPREFIX": str(cache_dir() / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}


def _has_bytecode(library: str) -> bool:
    """Whether a library's bytecode lies beside it, or there is no such library."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return True
    return Path(importlib.util.cache_from_source(spec.origin)).is_file()
