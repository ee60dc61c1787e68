"""From `model.path` to a local folder of safetensors weights: a folder, the model hub, a GGUF package, or tiny:FAMILY.

Only safetensors and JSON are fetched and accepted. Call `local_weights` on one process of each machine first: it may
download or convert; the others then find what it left in the cache.
"""

import json
import threading
from collections.abc import Callable
from pathlib import Path

from hub.config.schema import ModelConfig
from hub.errors import ModelError, first_line
from hub.models.gguf import from_gguf_package
from hub.models.safety import check_files
from hub.models.tiny import tiny_model_path

SECONDS_TO_REACH_HUB = 5
FETCHED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
# Other formats of the same weights, some pickled. consolidated*: Mistral's own layout, as large as all the rest.
NOT_FETCHED = (
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


class _NotReachedError(Exception):
    """The model hub gave no answer and its cache holds no whole copy. The message is the reason."""


def local_weights(model: ModelConfig, say: Callable[[str], None]) -> Path:
    """The local folder with config, safetensors weights and tokenizer that `model` names; fetched or made when needed.

    In this order: `tiny:FAMILY` (made in the cache), a local folder, the model hub (or the copy in its cache when it
    can't be reached), and the GGUF in the installed distribution `model.gguf_package` (converted once, in the cache).

    Args:
        model: `path`, `revision`, `trust_remote_code` and `gguf_package` are used.
        say: takes lines for the user: where the weights come from when that is not plain.

    Raises:
        ModelError: none of these has weights that can be read safely. One line, with what to type.
    """
    if model.path.startswith("tiny:"):
        return tiny_model_path(model.path.removeprefix("tiny:"))
    folder = Path(model.path).expanduser()
    if model.path.startswith((".", "/", "~")) or folder.exists():
        check_folder(folder)
        return folder.absolute()
    try:
        return _from_hub(model, say)
    except _NotReachedError as reason:
        tried = (
            f"model.path={model.path}: there is no such folder here, no copy in the model hub's cache, "
            f"and the model hub can't be reached ({reason})"
        )
    if model.gguf_package is None:
        raise ModelError(f"{tried}. Connect this machine, or type model.path=FOLDER with a copy of the weights (safetensors)")
    try:
        converted = from_gguf_package(model.gguf_package, say)
    except ModelError as error:
        raise ModelError(f"{tried}. {error}") from error
    say(
        f"{model.path}: the model hub can't be reached, so the weights come from {model.gguf_package} "
        "(as GGUF stores them: rounded to few bits)"
    )
    return converted


def check_folder(folder: Path, name: str = "") -> None:
    """Check that transformers will find whole safetensors weights in a folder, and read nothing outside it.

    Args:
        folder: the folder.
        name: how messages call it. Empty: its path.

    Raises:
        ModelError: no config.json, no or pickled or broken weights, or anything that names or links to files elsewhere.
    """
    name = name or f"model.path={folder}"
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name}: no config.json, so it holds no model that transformers can load")
    check_files(folder, name)
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    shards = _shards(index, name) if index.is_file() else []
    if whole.is_file():
        shards.append(whole)
    if not shards:
        raise ModelError(f"{name}: {_why_no_weights(folder)}")
    for shard in shards:
        _check_shard(shard, name)


def _shards(index: Path, name: str) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{name}: {index.name} can't be read. Copy or download it again") from None
    for shard in names:
        if not isinstance(shard, str) or shard != Path(shard).name or "\\" in shard or not shard.endswith(".safetensors"):
            raise ModelError(
                f"{name}: {index.name} names {shard!r}. Allowed: names of safetensors files in the same folder. "
                "Take the model from a source that you trust"
            )
    return [index.parent / shard for shard in names]


def _check_shard(shard: Path, name: str) -> None:
    from safetensors import SafetensorError, safe_open

    if not shard.is_file():
        raise ModelError(f"{name}: {shard.name} is missing. Copy or download it again")
    with shard.open("rb") as file:
        if file.read(20).startswith(b"version https://git-"):
            raise ModelError(f"{name}: {shard.name} is a Git LFS pointer, not the weights. Type in that folder: git lfs pull")
    try:
        with safe_open(shard, framework="np"):  # reads the header and compares it with the length of the file
            pass
    except SafetensorError as error:
        raise ModelError(f"{name}: {shard.name} is broken ({error}). Copy or download it again") from None


def _why_no_weights(folder: Path) -> str:
    names = sorted(file.name for file in folder.iterdir())
    if pickled := [name for name in names if name.endswith(PICKLED) and name != "training_args.bin"]:
        return (
            f"its weights are pickled ({pickled[0]}), and loading a pickle can run any code, so the hub never does. "
            'Where you trust the source, convert it: python -c "from transformers import AutoModelForCausalLM as M; '
            "M.from_pretrained('FOLDER').save_pretrained('NEW_FOLDER')\", and copy the tokenizer files"
        )
    other = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    there = f" (only {other[0]}, which is another layout)" if other else ""
    return f"neither model.safetensors nor model.safetensors.index.json is there{there}"


def _from_hub(model: ModelConfig, say: Callable[[str], None]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    asked = f"model.path={model.path}"
    obstacle = _hub_obstacle()
    try:
        folder = Path(
            snapshot_download(
                model.path,
                revision=model.revision,
                allow_patterns=[*FETCHED, *(["*.py"] if model.trust_remote_code else [])],
                ignore_patterns=list(NOT_FETCHED),
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
        raise _NotReachedError(obstacle or _reason(error.__cause__ or error)) from error
    except Exception as error:
        # The client's own errors, of the network, the disk or its transfer library: they have no base class in common.
        raise ModelError(
            f"{asked}: the download broke off ({_reason(error)}). Type the same command again: it goes on from there"
        ) from error
    try:
        check_folder(folder, asked)
    except ModelError as error:
        if obstacle is None:
            raise
        raise _NotReachedError(f"{obstacle}; the copy in its cache can't be used: {error}") from error
    if obstacle is not None:
        say(
            f"{model.path}: the model hub can't be reached ({obstacle}); using the copy in its cache, commit {folder.name[:12]}"
        )
    return folder


def _hub_obstacle() -> str | None:
    """Why the model hub can't be reached, None when it can. Found out in seconds; its client alone may take minutes."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answers: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=SECONDS_TO_REACH_HUB)
            answers.append(None)
        except Exception as error:
            answers.append(_reason(error))

    # In a thread, since no timeout holds for the look-up of a host's name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_REACH_HUB + 1)
    return answers[0] if answers else f"no answer in {SECONDS_TO_REACH_HUB} s"


def _reason(error: BaseException) -> str:
    """What the client said, short enough for the middle of a line."""
    return first_line(error).rstrip(".")[:200]
