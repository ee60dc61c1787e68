"""Where a model may be: what is wrong with `model.path`, and what to type instead. Only names and small files are read."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from hub.config.option import conf_dir

TINY = "tiny:"
_ELSEWHERE = re.compile(r"tiny:.*|\w[\w.-]{0,95}(/\w[\w.-]{0,95})?")
"""The form of a path that may be no folder of this machine: a tiny model, or an id of the model hub."""


def path_problems(path: str, revision: str | None) -> Iterator[str]:
    """One line for each reason why no model can be at a path.

    Args:
        path: `model.path`.
        revision: `model.revision`.
    """
    if not path:
        yield "No model is chosen. Type model=NAME (python -m hub --help lists them) or model.path=FOLDER_OR_HUB_ID"
        return
    folder = os.path.expanduser(path)  # os.path: Path's own raise errors for names that are too long
    exists = os.path.exists(folder)
    if not exists and "://" in path:
        yield f"model.path={path}: addresses are not read. Download it and type its folder, or type ORG/NAME of the model hub"
    elif not exists and re.fullmatch(r"\w+", path) and os.path.isfile(conf_dir() / "model" / f"{path}.yaml"):
        yield f"model.path={path}: there is no such folder. For the preset of this name type model={path}"
    elif not exists and not _ELSEWHERE.fullmatch(path):
        yield f"model.path={path}: there is no such folder. Type an existing folder or an id of the model hub"
    elif exists and not os.path.isdir(folder):
        yield f"model.path={path} is a file. Type the folder with config.json: model.path={os.path.dirname(path) or '.'}"
    elif exists and not os.path.isfile(os.path.join(folder, "config.json")):
        yield f"model.path={path}: no config.json in this folder, so transformers finds no model in it.{_advice(path)}"
    elif revision is not None and (exists or path.startswith(TINY)):
        yield f"model.revision={revision} is for models of the model hub, and model.path={path} is none. Leave it out"


def _advice(path: str) -> str:
    """A sentence on where the model may be that was meant by a folder without config.json."""
    folder, result = Path(os.path.expanduser(path)), os.path.join(path, "model")
    if (folder / "model/config.json").is_file():
        return f" It is the folder of a run. Type model.path={result}"
    return " Type model.path=FOLDER of a model"
