"""Save a trained model as transformers itself would save it: with the same names and dtypes."""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedTokenizerBase

from hub.errors import first_line
from hub.models.rounding import rounded

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

_plain: "WeakKeyDictionary[PreTrainedModel, PreTrainedModel]" = WeakKeyDictionary()
"""Model -> its plain model. A checkpoint is written in a thread beside training, where none may be built: see `plain_model`."""


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Options of transformers' GenerationConfig that have an effect in sampling only (`GenerationConfig.validate`)."""


def plain_model(model: "PreTrainedModel", dtype: torch.dtype) -> "PreTrainedModel":
    """A model of the same class and config without data, as transformers builds it for weights in a dtype.

    It has nothing that training adds: no patches, no sharding, no layers of an algorithm. Its tensors have the dtypes that
    transformers gives them when it loads the model in `dtype`, which for some is float32 (`_keep_in_fp32_modules_strict`, or
    created so by the class). It is built once for a model, and must be built first while nothing else runs: torch's default
    dtype is changed meanwhile.

    Args:
        model: a model that trains.
        dtype: as given to `from_pretrained`.
    """
    known = _plain.get(model)
    if known is not None and known.config.dtype == dtype:
        return known
    kind = cast("type[PreTrainedModel]", next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule)))
    config = copy.deepcopy(model.config)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        plain: PreTrainedModel = kind._from_config(config, dtype=dtype, attn_implementation="eager")
    # How names and tensors of the files became those of the model. Saving reverts it.
    if (conversions := getattr(model, "_weight_conversions", None)) is not None:
        plain._weight_conversions = conversions
    if model.can_generate():
        plain.generation_config = copy.deepcopy(model.generation_config)
    _plain[model] = plain
    return plain


def stored_dtypes(plain: "PreTrainedModel", dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype of each tensor of a model, as transformers gives it when it loads the model.

    transformers (`PreTrainedModel._get_dtype_plan`, `convert_and_load_state_dict_in_model`) keeps what the class names in
    `_keep_in_fp32_modules` (for float16) and `_keep_in_fp32_modules_strict` (for float16 and bfloat16) in float32, leaves
    tensors that the class creates in a dtype of their own in that one, and casts the others.

    Args:
        plain: result of `plain_model`.
        dtype: that for which it was built.
    """
    kept = [(re.compile(pattern.replace("*", ".*")), own) for pattern, own in plain._get_dtype_plan(dtype).items()]

    def dtype_of(name: str, tensor: torch.Tensor) -> torch.dtype:
        return next((own for pattern, own in kept if pattern.search(name)), tensor.dtype)

    return {name: dtype_of(name, tensor) for name, tensor in plain.state_dict(keep_vars=True).items()}


def make_generation_config_savable(model: torch.nn.Module, folder: Path) -> str:
    """Correct a model's generation config as transformers asks for, if it refuses to save it.

    Options of sampling without `do_sample` get it. Other options that have no effect as they stand, such as those of beam
    search with one beam or a negative `pad_token_id`, are unset.

    Args:
        model: if it has no generation config, nothing is done.
        folder: a temporary folder to try it in, which is removed.

    Returns:
        A line about the correction, or an empty text. What can't be corrected so stays as it is.
    """
    config = getattr(model, "generation_config", None)
    if config is None or not (refused := _refused(config, folder)):
        return ""
    corrected, changes = copy.deepcopy(config), []
    for name in refused:
        if name in SAMPLING:
            corrected.do_sample = True
            changes.append(f"do_sample=true, as {name}={getattr(config, name)} needs it")
        elif hasattr(config, name):
            setattr(corrected, name, getattr(type(config)(), name))
            changes.append(f"no {name}={getattr(config, name)}")
    if _refused(corrected, folder):
        return ""
    model.generation_config = corrected
    return f"generation_config.json is saved with {' and '.join(changes)}: transformers refuses to save it as it is"


def _refused(config: "GenerationConfig", folder: Path) -> list[str]:
    """The options for which transformers refuses to save a generation config."""
    try:
        config.save_pretrained(folder)
    except ValueError as error:
        return re.findall(r"^- `(\w+)`", str(error), re.MULTILINE) or [first_line(error)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return []


def save_whole_model(
    model: "PreTrainedModel",
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    dtype: torch.dtype,
    weights: dict[str, torch.Tensor],
    base: Path | None = None,
) -> None:
    """Write a dense model that transformers loads: config, safetensors and tokenizer.

    Float32 weights are rounded to a type of fewer bits by chance, as in `rounded`: equal weights give equal files.

    Args:
        model: for its config and class.
        tokenizer: saved in the same folder.
        folder: receives the files.
        dtype: dtype of the stored weights, but of those that transformers keeps in another one.
        weights: full weights by name, as `fit` passes them. Before training they may be on the meta device.
        base: folder of the base model, for `use_cache` in its config.
    """
    plain = plain_model(model, dtype)
    dtypes = stored_dtypes(plain, dtype)
    copies: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def in_its_dtype(name: str, tensor: torch.Tensor) -> torch.Tensor:
        target = dtypes.get(name, dtype if tensor.is_floating_point() else tensor.dtype)
        # Tied weights share memory and must still share it, otherwise they would be written twice.
        key = (id(tensor) if tensor.is_meta else tensor.data_ptr(), target)
        if key not in copies:
            # To the nearest number most of what was learnt would be lost: one weight seldom changes by half a step of bfloat16.
            whole = tensor.detach() if tensor.is_meta else tensor.detach().cpu()
            copies[key] = whole.to(target) if tensor.is_meta else rounded(whole, target, name)
        return copies[key]

    state = {name: in_its_dtype(name, tensor) for name, tensor in weights.items()}
    # A shallow copy: saving changes the config.
    twin = copy.copy(plain)
    twin.config = copy.deepcopy(plain.config)
    # Loading has turned the cache off for training.
    stored = json.loads((base / "config.json").read_text(encoding="utf-8")) if base is not None else {"use_cache": True}
    vars(twin.config).pop("use_cache", None)
    if "use_cache" in stored:
        twin.config.use_cache = stored["use_cache"]
    twin.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
