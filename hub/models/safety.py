"""Checks of an untrusted model folder: no file outside it is read, and nothing in it selects code or other weights.

The hub does these checks itself, so they hold for every supported release of transformers.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hub.config.bounds import bounds
from hub.errors import ModelError
from hub.models.reading import ModelFileError, shown
from hub.system.links import outside, strange_entries

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Config = TypeVar("Config", bound="PretrainedConfig")

CODE = "auto_map"
KERNELS = ("attn_implementation", "experts_implementation")
"""Keys of config.json that could select kernels, including kernels from the model hub (CVE-2026-4372)."""

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")

LARGEST_JSON = 8 * 2**20
"""Bytes of config.json and its like. The launcher reads them, and must stay small. The largest published ones have 2 MB."""

TYPES: dict[str, dict[str, type]] = {
    "config.json": {
        "model_type": str,
        "architectures": list,
        "quantization_config": dict,
        "text_config": dict,
        "auto_map": dict,
    },
}
"""Fields that the hub reads itself. The others are checked by reading the folder: see `reading.py`."""

_WORDS: dict[type, str] = {str: "a text", dict: "an object", list: "a list of texts"}
_LONGEST_PATH = 1000


def check_files(folder: Path, name: str) -> None:
    """Check that the files that transformers will open are inside the folder, and are those of the model itself.

    Args:
        folder: a folder with config.json.
        name: name of the model in messages.

    Raises:
        ModelError: a link or a name points outside the folder, config.json is broken or names other weights, or the folder
            also has an adapter.
    """
    check_links(folder, name)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{name}: the folder also has an adapter (adapter_config.json), which would be loaded with the model. "
            "Remove it from the folder, or merge it into the model first"
        )
    for file, types in TYPES.items():
        _check_types(file, types, read_json(folder / file, name), name)
    weights = read_json(folder / "config.json", name).get("transformers_weights")
    if weights is not None and weights not in WEIGHTS:
        raise ModelError(
            f"{name}: config.json names its weights itself (transformers_weights: {weights!r}). "
            f"Allowed: {' or '.join(WEIGHTS)}, or no such entry"
        )
    # Releases of transformers before 5.23 open the files named here, wherever they are. No key is known to be harmless.
    for key, value in read_json(folder / "tokenizer_config.json", name).items():
        for place in (folder, Path()) if isinstance(value, str) and 0 < len(value) < _LONGEST_PATH else ():
            if os.path.isfile(place / value) and outside(place / value, folder):
                raise ModelError(
                    f"{name}: tokenizer_config.json ({key}) names {os.path.realpath(place / value)}, outside the folder. "
                    "Put the file itself there"
                )


def check_links(folder: Path, name: str) -> None:
    """Check that all of a folder is inside it, whatever its names are: links lead out of it nowhere.

    Raises:
        ModelError: an entry is elsewhere, is no file, or there are too many. What a link leads to may be private, and would be
            copied into the trained model's folder.
    """
    for entry, problem in strange_entries(folder, most := bounds().max_model_files):
        instead = f", or type a larger launch.max_model_files (now {most})" if "more than" in problem else ""
        raise ModelError(
            f"{name}: {entry} {problem}. Put the file itself there, or name a folder that holds the model alone{instead}"
        )


def _check_types(file: str, types: Mapping[str, type], values: Mapping[str, Any], name: str) -> None:
    """Check the types of the fields that the hub itself reads."""
    for key, kind in types.items():
        value = values.get(key)
        fits = isinstance(value, kind) and (not isinstance(value, list) or all(isinstance(item, str) for item in value))
        if value is not None and not fits:
            raise ModelFileError.of(name, file, key, shown(value), f"it must be {_WORDS[kind]}")


def read_json(file: Path, name: str, most_bytes: int = LARGEST_JSON) -> dict[str, Any]:
    """The object in a JSON file. Empty if the file does not exist.

    Args:
        file: its path.
        name: name of the model in messages.
        most_bytes: size from which on it is not read. JSON takes up to 24 times its size in memory.

    Raises:
        ModelError: the file is not a JSON object, or too large.
    """
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > most_bytes:
            raise ValueError(f"it has {file.stat().st_size:,} bytes, and at most {most_bytes:,} are read")
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{name}: {file.name} can't be read ({str(error)[:100]}). Copy or download it again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{name}: {file.name} is not a JSON object. Copy or download it again")
    return value


def ignored_settings(folder: Path, trust_remote_code: bool) -> list[str]:
    """Messages about settings of the model's files that the hub ignores."""
    config = read_json(folder / "config.json", "")
    lines = []
    named = [file for file in ("config.json", "tokenizer_config.json") if read_json(folder / file, "").get(CODE)]
    if named and not trust_remote_code:
        lines.append(
            f"{' and '.join(named)} of the model name Python code ({CODE}): it is not run, and the saved model does not name it"
        )
    if asked := sorted(set(_implementations(config))):
        lines.append(f"config.json of the model asks for the kernels {', '.join(asked)}: the hub chooses them itself")
    return lines


def choose_kernels_ourselves(config: Config) -> Config:
    """Remove the choice of attention and experts kernels that config.json made, including in sub-configs."""
    config._attn_implementation = None
    config._experts_implementation = None
    vars(config).pop("transformers_weights", None)
    return config


def _implementations(value: object) -> list[str]:
    """Names of kernels at any depth of a config.json."""
    names: list[str] = []
    if isinstance(value, list):
        for item in value:
            names += _implementations(item)
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key.removeprefix("_").removesuffix("_internal") in KERNELS:
            chosen = inner.values() if isinstance(inner, dict) else [inner]
            names += [str(name) for name in chosen if name is not None]
        else:
            names += _implementations(inner)
    return names
