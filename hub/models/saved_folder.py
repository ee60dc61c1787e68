"""What a saved folder holds beside the weights: the files that the base has beside its own, and the base's name.

transformers 5 writes a tokenizer as tokenizer.json alone, and peft names the folder from which the base was loaded, which may
lie in a cache of this machine. So each folder is completed after its recipe has saved it, whatever the algorithm.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hub.config.schema import ModelConfig
from hub.models.model_code import complete_code
from hub.models.multimodal import copy_processor

BESIDE_WEIGHTS = (
    "generation_config.json",
    "*.model",  # SentencePiece: llama.cpp reads tokenizer.model
    "*.tiktoken",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""Files that are taken over from the base if saving has not written them. The tokenizer's chat template is saved with it."""

LARGEST_READ = 2**22
"""Largest JSON file in bytes that is searched for the base's folder: vocabularies are larger, configs far smaller."""

OF_THIS_MACHINE = ("is_local", "local_files_only")
"""Keys of tokenizer_config.json by which transformers notes how the tokenizer was loaded here."""


def is_local(cfg: ModelConfig) -> bool:
    """Whether `model.path` is a folder of this machine, and not an id of the model hub or a tiny model."""
    return not cfg.path.startswith("tiny:") and os.path.isdir(os.path.expanduser(cfg.path))


def revision_of(cfg: ModelConfig, base: Path) -> str | None:
    """The revision of the base on the model hub: the one that was asked for, else the commit that was loaded.

    Args:
        cfg: the options of the model.
        base: local folder of its weights. In the model hub's cache it has the name of the commit.

    Returns:
        None for weights that are not from the model hub.
    """
    if is_local(cfg) or base.parent.name != "snapshots":
        return None
    return cfg.revision or (base.name if re.fullmatch("[0-9a-f]{40}", base.name) else None)


def line_on_base(cfg: ModelConfig) -> str:
    """A line on the base that an adapter names, if it is a folder of this machine. Else an empty text."""
    if not is_local(cfg):
        return ""
    return (
        f"the adapter will name its base by the folder that was given, {cfg.path}. To publish it, write the base's id on the "
        "model hub as base_model_name_or_path into adapter_config.json and as base_model into README.md"
    )


def complete_folder(folder: Path, base: Path, cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add to a saved folder what the base has beside its weights, and name the base as the user did.

    Args:
        folder: a model or an adapter, just saved. If transformers and peft did not save it, it stays as it is.
        base: local folder of the base model.
        cfg: the options of the model. With a local `path` the folder's files keep that path.
        tokenizer: the one that was saved.
    """
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return
    for pattern in BESIDE_WEIGHTS:
        for file in sorted(base.glob(pattern)):
            if file.is_file() and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)
    copy_processor(base, folder)
    complete_code(folder, base, cfg.trust_remote_code)
    _write_added_tokens(folder, tokenizer)
    _clean_tokenizer_config(folder / "tokenizer_config.json")
    _sort_targets(folder / "adapter_config.json")
    if not is_local(cfg):
        _name_base(folder, base, cfg)


def _write_added_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the tokens that a SentencePiece file does not have, as transformers 4 did: llama.cpp reads them there."""
    file = folder / "added_tokens.json"
    if file.exists() or not (folder / "tokenizer.model").exists() or not isinstance(tokenizer, PreTrainedTokenizerFast):
        return
    added = {token: number for token, number in tokenizer.get_added_vocab().items() if number >= tokenizer.vocab_size}
    if added:
        _write(file, dict(sorted(added.items(), key=lambda item: item[1])))


def _clean_tokenizer_config(file: Path) -> None:
    """Take out what says how the tokenizer was loaded on this machine."""
    if file.is_file():
        values = json.loads(file.read_text(encoding="utf-8"))
        if any(key in values for key in OF_THIS_MACHINE):
            _write(file, {key: value for key, value in values.items() if key not in OF_THIS_MACHINE})


def _sort_targets(file: Path) -> None:
    """Sort the names of the layers with an adapter: peft writes a set, whose order differs from run to run."""
    if file.is_file():
        values = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(names := values.get("target_modules"), list):
            _write(file, values | {"target_modules": sorted(names)})


def _name_base(folder: Path, base: Path, cfg: ModelConfig) -> None:
    """Write the base's id wherever a file of the folder has its path on this machine."""
    for file in folder.rglob("*.json"):
        if file.stat().st_size > LARGEST_READ:
            continue
        values = json.loads(file.read_text(encoding="utf-8"))
        named = _renamed(values, str(base), cfg.path)
        if file.name == "adapter_config.json":
            named |= {"base_model_name_or_path": cfg.path, "revision": revision_of(cfg, base)}
        if named != values:
            _write(file, named)
    card = folder / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        if str(base) in text:
            card.write_text(text.replace(str(base), cfg.path), encoding="utf-8")


def _renamed(value: Any, old: str, new: str) -> Any:
    """A JSON value with a text replaced in all of its strings."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, list):
        return [_renamed(item, old, new) for item in value]
    if isinstance(value, dict):
        return {key: _renamed(item, old, new) for key, item in value.items()}
    return value


def _write(file: Path, values: Any) -> None:
    """Write JSON as transformers and peft do."""
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
