"""Values of a model card without what is this machine's own: folders become names, and secrets are redacted."""

import os
import re
from pathlib import Path
from typing import Any

from hub.secrets import without_secrets

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""OWNER/NAME of a model or a dataset of the model hub."""

_IN_CACHE = re.compile(r"(?:^|/)(?:models|datasets)--([\w.-]+?)--([\w.-]+)/snapshots/")
_ABSOLUTE = re.compile(r"(?<![\w:/.~])~?(?:/[^\s/'\"`|<>()]+){2,}/?|\b[A-Za-z]:\\[^\s'\"`|]+")
_LOCAL = ("/", "~", "./", "../", "file:")


def shown(value: Any) -> Any:
    """A value of an option as a stranger may see it: of each path its last part, and no secret.

    Args:
        value: a number, a text, or lists and mappings of them.
    """
    if isinstance(value, dict):
        return {key: shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown(item) for item in value]
    if isinstance(value, Path):
        return value.name
    return without_machine(name_of(value)) if isinstance(value, str) else value


def name_of(path: str) -> str:
    """The id on the model hub that a path stands for, else the last part of a path of this machine, else the text itself."""
    text = path.replace("\\", "/")
    if found := _IN_CACHE.search(f"{text}/"):
        return f"{found[1]}/{found[2]}"
    if text.startswith(_LOCAL) or re.match(r"[A-Za-z]:/", text) or (text and "://" not in text and os.path.exists(path)):
        return text.rstrip("/").rpartition("/")[2] or "folder"
    return path


def hub_id(path: str) -> str | None:
    """The id on the model hub of a model or a dataset. None: it is a folder or a file of this machine."""
    name = name_of(path)
    in_cache = name != path and "/" in name
    return name if HUB_ID.fullmatch(name) and (in_cache or not os.path.exists(os.path.expanduser(path))) else None


def without_machine(text: str) -> str:
    """A text in which paths of this machine are their last part, and secrets are redacted."""
    for folder in sorted({str(Path.home()), os.getcwd()}, key=len, reverse=True):
        if len(Path(folder).parts) > 1:
            text = re.sub(rf"{re.escape(folder)}(?=[/\s'\"`]|$)/?", "", text)
    return _ABSOLUTE.sub(lambda found: found[0].replace("\\", "/").rstrip("/").rpartition("/")[2], without_secrets(text))
