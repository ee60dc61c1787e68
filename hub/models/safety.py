"""Checks of an untrusted model folder: no file outside it is read, and nothing in it selects code or other weights.

The hub does these checks itself, so they hold for every supported release of transformers.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hub.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Config = TypeVar("Config", bound="PretrainedConfig")

READ = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".safetensors", ".py")
"""Suffixes of the files that transformers may open in a model's folder."""

CODE = "auto_map"
KERNELS = ("attn_implementation", "experts_implementation")
"""Keys of config.json that could select kernels, including kernels from the model hub (CVE-2026-4372)."""

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def check_files(folder: Path, name: str) -> None:
    """Check that the files that transformers will open are inside the folder, and are those of the model itself.

    Args:
        folder: a folder with config.json.
        name: name of the model in messages.

    Raises:
        ModelError: a link or a name points outside the folder, config.json is broken or names other weights, or the folder
            also has an adapter.
    """
    for file in sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*")]):
        if file.suffix in READ or file.is_dir():
            check_inside(file, folder, name)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{name}: the folder also has an adapter (adapter_config.json), which would be loaded with the model. "
            "Remove it from the folder, or merge it into the model first"
        )
    weights = read_json(folder / "config.json", name).get("transformers_weights")
    if weights is not None and weights not in WEIGHTS:
        raise ModelError(
            f"{name}: config.json names its weights itself (transformers_weights: {weights!r}). "
            f"Allowed: {' or '.join(WEIGHTS)}, or no such entry"
        )
    # Releases of transformers before 5.23 open the files named here, wherever they are.
    for key, value in read_json(folder / "tokenizer_config.json", name).items():
        if key.endswith("_file") and isinstance(value, str) and (folder / value).exists():
            check_inside(folder / value, folder, name, f"tokenizer_config.json ({key})")


def check_inside(file: Path, folder: Path, name: str, named_by: str = "") -> None:
    """Check that a file, after following links, is inside its folder.

    Raises:
        ModelError: it is elsewhere. The target may be private, and would be copied into the trained model's folder.
    """
    home, target = folder.resolve(), file.resolve()
    # In the model hub's cache, snapshots/COMMIT/FILE links to blobs/HASH of the same repository.
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
        how = f"{named_by} names" if named_by else f"{file.name} is a link to"
        raise ModelError(f"{name}: {how} {target}, outside the folder. Put the file itself there")


def read_json(file: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file. Empty if the file does not exist.

    Raises:
        ModelError: the file is not a JSON object.
    """
    if not file.is_file():
        return {}
    try:
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
