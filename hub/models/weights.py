"""Resolve `model.path` to a local folder of safetensors weights: a folder, the model hub, a GGUF package, or tiny:FAMILY.

Only safetensors and JSON are downloaded and accepted. Call `local_weights` first on one process of each machine, which may
download or convert; the other processes then use the cache.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hub.config.schema import ModelConfig
from hub.errors import ModelError, first_line
from hub.models.encoders import refuse_encoders
from hub.models.gguf import from_gguf_package, tokenizer_of_gguf_package
from hub.models.reading import ModelFileError, shown
from hub.models.safety import check_files, read_json
from hub.models.tiny import tiny_model_path

SECONDS_TO_REACH_HUB = 5
LARGEST_INDEX = 256 * 2**20
"""Bytes of model.safetensors.index.json. A model of 1,000,000 tensors has 100 MB."""

TOKENIZER_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
DOWNLOADED = ("*.safetensors", *TOKENIZER_FILES)
# Other formats of the same weights, some pickled. consolidated*: Mistral's own format, as large as everything else.
NOT_DOWNLOADED = (
    "original/*",
    "metal/*",
    "onnx/*",
    "*/*.safetensors",
    "consolidated*",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.gguf",
)
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class _UnreachableError(Exception):
    """The model hub is unreachable and its cache has no complete copy. The message is the reason."""

    copy: str = "no copy in the model hub's cache"
    """What its cache has."""


def local_weights(model: ModelConfig, say: Callable[[str], None]) -> Path:
    """Local folder with config, safetensors weights and tokenizer of a model, downloaded or created if needed.

    Sources, in this order: `tiny:FAMILY` (created in the cache), a local folder, the model hub (or the copy in its cache if it
    is unreachable), and the GGUF file of the installed distribution `model.gguf_package` (converted once, in the cache).

    Args:
        model: its `path`, `revision`, `trust_remote_code` and `gguf_package` are used.
        say: receives lines for the user: the source of the weights, if it is not obvious.

    Raises:
        ModelError: no source has weights that can be read safely. One line, with what to type.
    """
    return _local(model, say, weights=True)


def local_tokenizer(model: ModelConfig, say: Callable[[str], None]) -> Path:
    """Local folder with the tokenizer and the config of a model. Weights are neither fetched nor needed.

    Args:
        model: as for `local_weights`.
        say: receives lines for the user.

    Raises:
        ModelError: no source has the files. One line, with what to type.
    """
    return _local(model, say, weights=False)


def _local(model: ModelConfig, say: Callable[[str], None], weights: bool) -> Path:
    if model.path.startswith("tiny:"):
        return tiny_model_path(model.path.removeprefix("tiny:"))
    folder = Path(model.path).expanduser()
    if model.path.startswith((".", "/", "~")) or folder.exists():
        if weights:
            check_folder(folder)
        else:
            _check_tokenizer_folder(folder)
        return folder.absolute()
    try:
        return _from_hub(model, say, weights)
    except _UnreachableError as reason:
        tried = (
            f"model.path={model.path}: there is no such folder here, {reason.copy}, "
            f"and the model hub can't be reached ({reason})"
        )
    if model.gguf_package is None:
        raise ModelError(f"{tried}. Connect this machine, or type model.path=FOLDER with a copy of the weights (safetensors)")
    try:
        if not weights:
            return tokenizer_of_gguf_package(model.gguf_package, say)
        converted = from_gguf_package(model.gguf_package, say)
    except ModelError as error:
        raise ModelError(f"{tried}. {error}") from error
    say(
        f"{model.path}: the model hub can't be reached, so the weights come from {model.gguf_package} "
        "(as GGUF stores them: rounded to few bits)"
    )
    return converted


def _check_tokenizer_folder(folder: Path, name: str = "") -> None:
    """Check that a folder has the config of a decoder, and that transformers will read nothing outside it. Weights may lack."""
    name = name or f"model.path={folder}"
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name}: no config.json, so transformers can load no model from it")
    check_files(folder, name)
    refuse_encoders(folder, name)


def check_folder(folder: Path, name: str = "") -> None:
    """Check that a folder has complete safetensors weights, and that transformers will read nothing outside it.

    Args:
        folder: the folder.
        name: name of the model in messages. Empty: its path.

    Raises:
        ModelError: it is an encoder, config.json or weights are missing, weights are pickled or broken, or a file elsewhere is
            named or linked.
    """
    name = name or f"model.path={folder}"
    _check_tokenizer_folder(folder, name)
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    shards = _shards(index, name) if index.is_file() else []
    if single.is_file():
        shards.append(single)
    if not shards:
        raise ModelError(f"{name}: {_why_no_weights(folder)}")
    holders: dict[str, str] = {}
    for shard in shards:
        for tensor in _check_shard(shard, name):
            if (other := holders.setdefault(tensor, shard.name)) != shard.name and not single.is_file():
                raise ModelError(
                    f"{name}: {other} and {shard.name} both have the tensor {tensor}, and it is not known which one counts. "
                    "Copy or download the model again"
                )


def _shards(index: Path, name: str) -> list[Path]:
    values = read_json(index, name, LARGEST_INDEX)
    files = _object(values, "weight_map", index, name)
    names = list({str(shard): shard for shard in files.values()}.values())
    for shard in names:
        if not isinstance(shard, str) or shard != Path(shard).name or "\\" in shard or not shard.endswith(".safetensors"):
            raise ModelError(
                f"{name}: {index.name} names {shard!r}. Allowed: names of safetensors files in the same folder. "
                "Take the model from a source that you trust"
            )
    _object(values, "metadata", index, name)  # transformers writes into it
    return [index.parent / shard for shard in names]


def _object(values: dict[str, Any], key: str, file: Path, name: str) -> dict[str, Any]:
    value = values.get(key)
    if not isinstance(value, dict):
        raise ModelFileError.of(name, file.name, key, "" if value is None else shown(value), "it must be an object")
    return value


def _check_shard(shard: Path, name: str) -> list[str]:
    """The names of the tensors in a file, whose header fits its length."""
    from safetensors import SafetensorError, safe_open

    if not shard.is_file():
        raise ModelError(f"{name}: {shard.name} is missing. Copy or download it again")
    with shard.open("rb") as file:
        if file.read(20).startswith(b"version https://git-"):
            raise ModelError(f"{name}: {shard.name} is a Git LFS pointer, not the weights. Type in that folder: git lfs pull")
    try:
        with safe_open(shard, framework="np") as opened:  # reads the header and checks the length of the file
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{name}: {shard.name} is broken ({error}). Copy or download it again") from None


def _why_no_weights(folder: Path) -> str:
    names = sorted(file.name for file in folder.iterdir())
    if pickled := [name for name in names if name.endswith(PICKLED) and name != "training_args.bin"]:
        return (
            f"its weights are pickled ({pickled[0]}), and loading a pickle can run any code, so the hub never does. "
            'If you trust the source, convert it: python -c "from transformers import AutoModelForCausalLM as M; '
            "M.from_pretrained('FOLDER').save_pretrained('NEW_FOLDER')\", and copy the tokenizer files"
        )
    other = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    hint = f" (only {other[0]}, which is another format)" if other else ""
    return f"it has neither model.safetensors nor model.safetensors.index.json{hint}. Copy or download the weights again"


def _from_hub(model: ModelConfig, say: Callable[[str], None], weights: bool) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    asked = f"model.path={model.path}"
    obstacle = hub_obstacle()
    try:
        folder = Path(
            snapshot_download(
                model.path,
                revision=model.revision,
                allow_patterns=[*(DOWNLOADED if weights else TOKENIZER_FILES), *(["*.py"] if model.trust_remote_code else [])],
                ignore_patterns=list(NOT_DOWNLOADED),
                local_files_only=obstacle is not None,
            )
        )
    except HFValidationError:
        raise ModelError(f"{asked} is neither a folder that exists nor an id of the model hub (OWNER/NAME)") from None
    except GatedRepoError:
        raise ModelError(
            f"{asked} is gated, and you have no access to it yet. "
            f"Accept its terms at {constants.ENDPOINT}/{model.path}, then type: hf auth login (or set HF_TOKEN)"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{asked}: there is no such folder, and no such model on the model hub that you may read. "
            "Check the spelling; for a private model type: hf auth login (or set HF_TOKEN)"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(
            f"{asked}: it has no model.revision={model.revision}. Type one of its branches, tags or commits"
        ) from None
    except LocalEntryNotFoundError as error:
        raise _UnreachableError(obstacle or _reason(error.__cause__ or error)) from error
    except Exception as error:
        # Errors of the client, the network, the disk or its transfer library have no common base class.
        raise ModelError(
            f"{asked}: the download failed ({_reason(error)}). Type the same command again: it resumes the download"
        ) from error
    try:
        if weights:
            check_folder(folder, asked)
        else:
            _check_tokenizer_folder(folder, asked)
    except ModelError as error:
        if obstacle is None:
            raise
        unreachable = _UnreachableError(obstacle)
        unreachable.copy = f"the copy in the model hub's cache can't be used ({str(error).removeprefix(f'{asked}: ')})"
        raise unreachable from error
    if obstacle is not None:
        say(
            f"{model.path}: the model hub can't be reached ({obstacle}); using the copy in its cache, commit {folder.name[:12]}"
        )
    return folder


def hub_obstacle() -> str | None:
    """Why the model hub is unreachable. None if it is reachable. Takes seconds; its client alone may take minutes."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answers: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=SECONDS_TO_REACH_HUB)
            answers.append(None)
        except Exception as error:
            answers.append(_reason(error))

    # In a thread, since the DNS lookup has no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_REACH_HUB + 1)
    return answers[0] if answers else f"no answer in {SECONDS_TO_REACH_HUB} s"


def _reason(error: BaseException) -> str:
    """What the client said, short enough for the middle of a line."""
    return first_line(error).rstrip(".")[:200]
