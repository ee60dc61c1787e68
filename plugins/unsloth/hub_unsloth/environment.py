"""Can Unsloth run in this interpreter? Told from the metadata of what is installed: nothing is imported."""

from importlib.metadata import PackageNotFoundError, requires, version

RANGE = ">=2026.10.9,<2027"
"""Versions of unsloth and unsloth_zoo that this backend was written for. pyproject.toml has them too."""

INSTALL = (
    'pip install "hub-unsloth[unsloth]", best in an environment of its own (it holds transformers, trl and datasets at '
    "older versions), and launch.python=THAT_ENVIRONMENT/bin/python here"
)

PINNED = ("unsloth_zoo", "torch", "transformers", "trl", "peft", "datasets", "bitsandbytes")
"""What Unsloth changes while it is imported, so that another version than it asks for fails in odd places."""


def obstacle() -> str | None:
    """Why Unsloth can't run here, with what to type; None when it can."""
    from hub.system.gpus import num_visible_gpus

    if line := wrong_version():
        return f"{line}. Type: {INSTALL}"
    if not num_visible_gpus():
        return "it needs a GPU, and none is visible"
    return None


def wrong_version() -> str | None:
    """The first package that is not of a version that this backend or Unsloth itself asks for; None when all are."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    allowed = {name: SpecifierSet(RANGE) for name in ("unsloth", "unsloth_zoo")}
    for name, versions in allowed.items():
        found = _version(name)
        if found is None or not versions.contains(found, prereleases=True):
            return f"it needs {name}{RANGE}, and {_said(name, found)}"
    for line in requires("unsloth") or ():
        asked = Requirement(line)
        if asked.name.replace("-", "_") not in PINNED or (asked.marker and not asked.marker.evaluate({"extra": ""})):
            continue
        found = _version(asked.name)
        if found is None or not asked.specifier.contains(found, prereleases=True):
            return f"unsloth {version('unsloth')} needs {asked.name}{asked.specifier}, and {_said(asked.name, found)}"
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _said(name: str, found: str | None) -> str:
    return f"{name} {found} is installed" if found else f"{name} is not installed"
