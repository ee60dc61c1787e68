"""The files of a merged model beside its weights: those of the base, and over them those that the run saved."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hub.config.schema import ModelConfig
from hub.errors import ModelError
from hub.models.finished import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hub.models.model_code import complete_code
from hub.models.safety import read_json
from hub.models.saved_folder import OF_THIS_MACHINE
from hub.system.links import outside

OTHER_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".npz", ".onnx", ".onnx_data", ".tflite", ".gguf",
    ".ggml", ".mlmodel", ".xml", ".nemo", ".pkl", ".distcp",
)  # fmt: skip
"""Endings of files with weights, an optimizer's state or a trainer's. They are of the base, and no part of the merged model."""

OF_TRAINING = ("manifest.json", "trainer_state.json", "optimizer.json", "scheduler.json", "README.md", ADAPTER_CONFIG)
"""Files that tell of the base or of an adapter, and not how a model is used."""

FOLDERS = ("additional_chat_templates",)
"""Folders that transformers reads beside the files."""

TEMPLATES = ("chat_template.jinja", "chat_template.json")
MAP = "special_tokens_map.json"
LARGEST = 2**27
"""Bytes. Tokenizers are far smaller; what is larger is no part of how a model is used."""

_PATHS = ("_name_or_path", "name_or_path", *OF_THIS_MACHINE)
"""Keys that tell where something was on this machine."""


@dataclass(frozen=True)
class Edits:
    """What the config of a merged model has other than that of its base."""

    dtype: torch.dtype
    num_rows: tuple[int, int] | None = None
    """Rows of the embeddings in the base and now, if they are not the same."""

    is_untied: bool = False
    """The output layer has other weights than the embeddings, and had the same."""


def sources(base: Path, adapter: Path | None) -> dict[str, Path]:
    """Name in the merged folder -> the file that is copied.

    Args:
        base: folder of the base, or of a whole model.
        adapter: folder of the adapter, with the tokenizer of the run.

    Raises:
        ModelError: a file is a link to one outside its folder.
    """
    found = dict(_files(base))
    if adapter is None:
        return found
    ours = dict(_files(adapter))
    ours.pop("config.json", None)
    if any(name in ours for name in TEMPLATES) or "chat_template" in read_json(adapter / "tokenizer_config.json", str(adapter)):
        # The template of the run is the only one: processors would read an older file of the base.
        found = {name: file for name, file in found.items() if name not in TEMPLATES and not name.startswith(f"{FOLDERS[0]}/")}
    if "tokenizer_config.json" in ours and _contradicts(base / MAP, adapter / "tokenizer_config.json"):
        found.pop(MAP, None)
    return found | ours


def write_beside(folder: Path, base: Path, adapter: Path | None, cfg: ModelConfig, edits: Edits) -> None:
    """Write all files beside the weights.

    Args:
        folder: of the merged model.
        base: as of `sources`.
        adapter: as of `sources`.
        cfg: for `trust_remote_code`.
        edits: of config.json.
    """
    for name, file in sources(base, adapter).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    config = read_json(folder / "config.json", str(folder))
    _write(folder / "config.json", edited(config, edits))
    for file in folder.rglob("*.json"):
        if file.stat().st_size <= LARGEST // 32 and isinstance(values := json.loads(file.read_text(encoding="utf-8")), dict):
            plain = _without_paths(values, str(base))
            if plain != values:
                _write(file, plain)
    complete_code(folder, base, cfg.trust_remote_code)


def edited(config: dict[str, Any], edits: Edits) -> dict[str, Any]:
    """The config.json of a merged model.

    Args:
        config: that of the base.
        edits: what changes.
    """
    name = str(edits.dtype).removeprefix("torch.")
    made: dict[str, Any] = {}
    for key, value in config.items():
        if key == "quantization_config":
            continue
        if isinstance(value, dict) and key.endswith("_config"):
            made[key] = edited(value, edits)
        elif key in ("dtype", "torch_dtype") and isinstance(value, str):
            made[key] = name
        elif key == "vocab_size" and edits.num_rows is not None and value == edits.num_rows[0]:
            made[key] = edits.num_rows[1]
        else:
            made[key] = value
    if "architectures" in config or "model_type" in config:
        if "dtype" not in made and "torch_dtype" not in made and "architectures" in config:
            made["dtype"] = name
        if edits.is_untied and ("tie_word_embeddings" in made or "architectures" in config):
            made["tie_word_embeddings"] = False
    return made


def num_bytes(base: Path, adapter: Path | None) -> int:
    """Size of all files beside the weights."""
    return sum(file.stat().st_size for file in sources(base, adapter).values())


def left_out(base: Path) -> list[str]:
    """Names of files of the base that are too large to be a part of how a model is used."""
    return sorted(
        file.name for file in base.iterdir() if file.is_file() and file.stat().st_size > LARGEST and not _is_weights(file.name)
    )


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    inner = [file for name in FOLDERS if (folder / name).is_dir() for file in sorted((folder / name).iterdir())]
    for file in [*sorted(folder.iterdir()), *inner]:
        name = str(file.relative_to(folder))
        if file.is_file() and not _is_weights(name) and not name.startswith(".") and file.stat().st_size <= LARGEST:
            if problem := outside(file, folder):
                raise ModelError(f"{folder}: {name} {problem}. Put the file itself there")
            yield name, file


def _is_weights(name: str) -> bool:
    return (
        name.lower().endswith(OTHER_WEIGHTS) or name.endswith(".index.json") or name in OF_TRAINING or name == ADAPTER_WEIGHTS
    )


def _contradicts(file: Path, tokenizer: Path) -> bool:
    """Whether a file of special tokens contradicts the config of the run's tokenizer."""
    ours, stored = read_json(tokenizer, str(tokenizer.parent)), read_json(file, str(file.parent))
    return any(_text(value) != _text(ours.get(key)) for key, value in stored.items() if not isinstance(value, list))


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _without_paths(value: Any, base: str) -> Any:
    """A JSON value without keys that tell where the base was, and without texts that are this place."""
    if isinstance(value, list):
        return [_without_paths(item, base) for item in value]
    if isinstance(value, dict):
        return {
            key: _without_paths(item, base)
            for key, item in value.items()
            if key not in _PATHS and not (isinstance(item, str) and item.startswith(base))
        }
    return value


def _write(file: Path, values: Any) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
