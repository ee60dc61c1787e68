"""A model's folder is not trusted: nothing outside it is read, and nothing in it chooses code or other weights.

The checks are the hub's own, so they hold for every release of transformers that it runs with.
"""

import json
from pathlib import Path
from typing import Any

from hub.errors import ModelError

READ = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".safetensors", ".py")
"""Endings of the files that transformers may open in a model's folder."""

CODE = "auto_map"
KERNELS = ("attn_implementation", "experts_implementation")
"""Keys of config.json by which it could choose kernels, those of the model hub included (CVE-2026-4372)."""

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def check_files(folder: Path, name: str) -> None:
    """Check that what transformers will open lies in the folder, and is the model and nothing else.

    Args:
        folder: a folder with config.json.
        name: how messages call it.

    Raises:
        ModelError: a link or a name leads out of the folder, config.json is broken or names other weights, or an adapter
            lies beside the model.
    """
    for file in sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*")]):
        if file.suffix in READ or file.is_dir():
            check_inside(file, folder, name)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{name}: an adapter (adapter_config.json) lies beside the model, and would be loaded with it. "
            "Take it out of the folder, or merge it into the model first"
        )
    weights = read_json(folder / "config.json", name).get("transformers_weights")
    if weights is not None and weights not in WEIGHTS:
        raise ModelError(
            f"{name}: config.json names its weights itself (transformers_weights: {weights!r}). "
            f"Allowed: {' or '.join(WEIGHTS)}, or no such entry"
        )
    # Releases of transformers before 5.23 open what stands here wherever it is.
    for key, value in read_json(folder / "tokenizer_config.json", name).items():
        if key.endswith("_file") and isinstance(value, str) and (folder / value).exists():
            check_inside(folder / value, folder, name, f"tokenizer_config.json ({key})")


def check_inside(file: Path, folder: Path, name: str, named_by: str = "") -> None:
    """Check that a file, links followed, lies in its folder.

    Raises:
        ModelError: it lies elsewhere. What is there may be private, and would go into the trained model's folder.
    """
    home, target = folder.resolve(), file.resolve()
    # In the model hub's cache, snapshots/COMMIT/FILE links to blobs/HASH of the same repository.
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
        how = f"{named_by} names" if named_by else f"{file.name} is a link to"
        raise ModelError(f"{name}: {how} {target}, outside the folder. Put the file itself there")


def read_json(file: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file.

    Raises:
        ModelError: it is no JSON object.
    """
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{name}: {file.name} can't be read ({str(error)[:100]}). Copy or download it again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{name}: {file.name} is no JSON object. Copy or download it again")
    return value


def not_heeded(folder: Path, trust_remote_code: bool) -> list[str]:
    """Lines for the user: what the model's files ask for and do not get."""
    config = read_json(folder / "config.json", "")
    lines = []
    named = [file for file in ("config.json", "tokenizer_config.json") if read_json(folder / file, "").get(CODE)]
    if named and not trust_remote_code:
        lines.append(f"{' and '.join(named)} of the model name Python code ({CODE}): it is not run")
    if asked := sorted(set(_implementations(config))):
        lines.append(f"config.json of the model asks for the kernels {', '.join(asked)}: the hub chooses them itself")
    return lines


def choose_kernels_ourselves(config: Any) -> Any:
    """A transformers config without the choices that its file made for attention and experts, sub-configs included."""
    config._attn_implementation = None
    config._experts_implementation = None
    vars(config).pop("transformers_weights", None)
    return config


def _implementations(value: Any) -> list[str]:
    """Names of kernels anywhere in a config.json."""
    if isinstance(value, list):
        return [name for item in value for name in _implementations(item)]
    found = []
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key.removeprefix("_").removesuffix("_internal") in KERNELS:
            found += [str(name) for name in (inner.values() if isinstance(inner, dict) else [inner]) if name is not None]
        else:
            found += _implementations(inner)
    return found
