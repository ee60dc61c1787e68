"""Check whether Unsloth can run in this interpreter. Reads package metadata only: nothing is imported."""

from importlib.metadata import PackageNotFoundError, requires, version

RANGE = ">=2026.10.9,<2027"
"""Supported versions of unsloth and unsloth_zoo. pyproject.toml repeats them."""

INSTALL = (
    'pip install "hub-unsloth[unsloth]", best in an environment of its own (it holds transformers, trl and datasets at '
    "older versions), and launch.python=THAT_ENVIRONMENT/bin/python here"
)

PINNED = ("unsloth_zoo", "torch", "transformers", "trl", "peft", "datasets", "bitsandbytes")
"""Packages that Unsloth patches on import, so that other versions than it requires fail in unexpected ways."""


def obstacle() -> str | None:
    """Why Unsloth can't run here, and what to type. None if it can."""
    from hub.system.gpus import num_visible_gpus

    if line := wrong_version():
        return f"{line}. Type: {INSTALL}"
    if not num_visible_gpus():
        return "it needs a GPU, and none is visible"
    return None


def wrong_version() -> str | None:
    """A message about the first package whose version this backend or Unsloth does not support. None if all are supported."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    allowed = {name: SpecifierSet(RANGE) for name in ("unsloth", "unsloth_zoo")}
    for name, versions in allowed.items():
        installed = _version(name)
        if installed is None or not versions.contains(installed, prereleases=True):
            return f"it needs {name}{RANGE}, and {_status(name, installed)}"
    for line in requires("unsloth") or ():
        needed = Requirement(line)
        if needed.name.replace("-", "_") not in PINNED or (needed.marker and not needed.marker.evaluate({"extra": ""})):
            continue
        installed = _version(needed.name)
        if installed is None or not needed.specifier.contains(installed, prereleases=True):
            status = _status(needed.name, installed)
            return f"unsloth {version('unsloth')} needs {needed.name}{needed.specifier}, and {status}"
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _status(name: str, installed: str | None) -> str:
    return f"{name} {installed} is installed" if installed else f"{name} is not installed"
