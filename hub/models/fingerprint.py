"""A fingerprint of base weights: whether what an adapter is put on is still what it was trained on.

Reading all of a large model takes minutes, so a few bytes of each tensor stand for it. Another model of the same shapes,
another revision or another training differ in them. A few numbers that were changed by hand may not.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from hub.models.finished import Finished
from hub.models.loading_report import weight_files

KEY = "base_fingerprint"
"""In plan.json."""

_NUM_SAMPLED = 1024
"""Tensors of which bytes are read. With more tensors, these are evenly spread over their names."""

_SAMPLE = 512
_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")
"""Keys of config.json that say nothing on what the weights compute."""


def fingerprint(folder: Path) -> dict[str, str]:
    """The fingerprint of a folder of weights.

    Args:
        folder: with config.json and safetensors.

    Returns:
        `weights`: of names, types and shapes of all tensors, and of a few bytes of each, however they are split into files.
        `config`: of what config.json says of the model. Empty: the files can't be read.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = dict(item for file in weight_files(folder) for item in _tensors(file))
    except (OSError, ValueError, KeyError):
        return {}
    names = sorted(tensors)
    heads = [[name, tensors[name][0]] for name in names]
    weights = hashlib.sha256(json.dumps(heads).encode())
    step = -(-len(names) // _NUM_SAMPLED) or 1
    for name in names[::step]:
        _, file, start, end = tensors[name]
        with file.open("rb") as stream:
            stream.seek(start + max(0, (end - start - _SAMPLE) // 2))
            weights.update(stream.read(min(_SAMPLE, end - start)))
    kept = {key: value for key, value in config.items() if key not in _NOT_OF_THE_MODEL}
    return {"weights": weights.hexdigest(), "config": hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()}


def changed_base(finished: Finished, base_path: Path) -> str | None:
    """The line on a base that is not the one that training began with.

    Args:
        finished: a model of a run. Of any other it is not known.
        base_path: local folder of the base weights.

    Returns:
        None: it is the same, or it is not known.
    """
    if finished.run_path is None:
        return None
    try:
        before = json.loads((finished.run_path / "plan.json").read_text(encoding="utf-8")).get(KEY)
    except (OSError, ValueError):
        return None
    now = fingerprint(base_path) if before else {}
    different = [name for name in ("weights", "config") if now and now[name] != before.get(name)]
    if not different:
        return None
    what = {"weights": "its weights are others", "config": "its config.json says something else"}
    return (
        f"{finished.name}: the base {finished.before.path if finished.before else base_path} has changed since training: "
        f"{' and '.join(what[name] for name in different)}"
    )


def _tensors(file: Path) -> list[tuple[str, tuple[Any, Path, int, int]]]:
    """Name, then type with shape, file, first and last byte of each tensor."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    return [
        (name, ([values["dtype"], values["shape"]], file, *(8 + length + place for place in values["data_offsets"])))
        for name, values in header.items()
        if name != "__metadata__"
    ]
