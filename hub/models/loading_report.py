"""Do the tensors of a folder fit the model that its config.json describes? Names and shapes, before and after loading.

transformers replaces a tensor that it does not find by random numbers, and drops one that it has no place for. Here both
end the run. What a family makes itself or drops rightly is not counted: see `misfit_of`.
"""

import copy
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import PretrainedConfig
from transformers.utils import logging as transformers_logging

from hub.config.schema import QUANTIZATIONS
from hub.errors import HubError
from hub.models.multimodal import auto_class
from hub.models.storage import stored_as
from hub.models.wrapped_names import INNER, WRAPPERS, candidates

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shapes = dict[str, tuple[int, ...]]
"""Name of a tensor -> its shape."""

NAMED = 3
"""Tensors of a kind that a message names."""

_BUFFER = re.compile(r"(^|\.)(inv_freq|original_inv_freq|cos_cached|sin_cached|position_ids|masked_bias|causal_mask)$")
"""Numbers that a model computes from its config. Files of older releases have them."""

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_EXTRA_HEADS = re.compile(r"(^|\.)mtp(_layers)?\.")
"""Layers that predict tokens after the next one. No class for causal language models has them."""

_STATE_OF_QUANTIZED = re.compile(r"\.weight\..+$|\.(SCB|weight_format)$")
"""bitsandbytes' scales beside a quantized weight."""


@dataclass(frozen=True)
class Misfit:
    """What does not fit between a model and its files."""

    missing: tuple[str, ...] = ()
    """Names that the model has and the files do not."""

    unexpected: tuple[str, ...] = ()
    """Names that the files have and the model does not."""

    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    """Name, shape in the files, shape in the model."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def words(self, of_missing: str = "") -> str:
        """What does not fit, with a few names of each kind. `of_missing` follows the missing ones."""
        parts = []
        if self.missing:
            parts.append(
                f"{_tensors(self.missing)} of the model {_are(self.missing)} missing ({_some(self.missing)}){of_missing}"
            )
        if self.unexpected:
            parts.append(
                f"{_tensors(self.unexpected)} in the files {_have(self.unexpected)} no place in it ({_some(self.unexpected)})"
            )
        if self.reshaped:
            shapes = [f"{name}: {list(stored)} in the files, {list(ours)} in the model" for name, stored, ours in self.reshaped]
            parts.append(f"{_tensors(self.reshaped)} {_have(self.reshaped)} another shape ({_some(shapes, '; ')})")
        return "; ".join(parts)


@dataclass(frozen=True)
class Fit:
    """How the tensors of a folder fit its model."""

    name: str
    """Name of the model's class."""

    misfit: Misfit
    advice: str
    """What to do about the misfit."""

    renamed: dict[str, str]
    """`key_mapping` of transformers' `from_pretrained` that undoes a wrapper's names. Empty: the names are the model's own."""

    left_out: tuple[str, ...]
    """Names of the tensors of other parts, such as of images, if the model is the language model alone."""

    @property
    def refusal(self) -> str:
        """The message, without the name of the model. Empty if all tensors fit."""
        if not self.misfit:
            return ""
        random = ", and would be random numbers" if self.misfit.missing else ""
        return f"its weights do not fit {self.name} of config.json: {self.misfit.words(random)}. {self.advice}"


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors without data (on torch's meta device), of the shapes and dtypes that the headers of the files have."""
    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dictionary
                part = opened.get_slice(name)
                shape, kind = part.get_shape(), _DTYPES.get(part.get_dtype(), torch.uint8)
                tensors[name] = torch.empty(shape, dtype=kind, device="meta")
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads: one, or those that the index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return [single]
    return [folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]


def fit_of(config: PretrainedConfig, folder: Path) -> Fit | None:
    """Compare the headers of the files with the model, by transformers' own rules. No weight is read.

    Args:
        config: the model's, as loaded from the folder.
        folder: with safetensors files.

    Returns:
        How they fit. None if that shows only when the data is loaded: of a quantization other than bitsandbytes', or if
        transformers can't build the model otherwise.
    """
    tensors = stored_tensors(folder)
    if is_quantized := getattr(config, "quantization_config", None) is not None:
        if stored_as(folder) not in QUANTIZATIONS:
            return None  # other methods have other names for a weight's parts
        tensors = {name: tensor for name, tensor in tensors.items() if not _STATE_OF_QUANTIZED.search(name)}

    def loaded(mapping: dict[str, str]) -> Misfit:
        misfit = _load(model, tensors, mapping)
        if not is_quantized:
            return misfit
        packed = {name for name, tensor in tensors.items() if not tensor.is_floating_point()}
        return replace(misfit, reshaped=tuple(item for item in misfit.reshaped if item[0] not in packed))

    try:
        model = _without_data(auto_class(config), config)
        misfit, left_out = _without_other_parts(loaded({}), config, model, tensors)
        renamed: dict[str, str] = {}
        for mapping in candidates(tensors) if misfit else ():
            if not loaded(mapping):
                misfit, renamed = Misfit(), mapping
                break
    except HubError:
        raise  # the signal that ends the run
    except Exception:  # whatever it is, loading the model with its data is checked, too
        return None
    return Fit(type(model).__name__, misfit, advice(misfit, model, tensors), renamed, left_out)


def fit_when_loaded(
    config: PretrainedConfig, folder: Path, model: "PreTrainedModel", info: Mapping[str, Any], renamed: dict[str, str]
) -> Fit:
    """How the tensors of a folder fitted a model that was loaded from it.

    Args:
        config: as it was given to transformers.
        folder: with safetensors files.
        model: the loaded one.
        info: of `from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)`.
        renamed: the `key_mapping` that it was loaded with.
    """
    tensors = stored_tensors(folder)
    misfit = misfit_of(info, model, _shapes(tensors, renamed))
    misfit, left_out = _without_other_parts(misfit, config, model, tensors)
    return Fit(type(model).__name__, misfit, advice(misfit, model, tensors), renamed, left_out)


def misfit_of(info: Mapping[str, Any], model: "PreTrainedModel", shapes: Mapping[str, tuple[int, ...]]) -> Misfit:
    """What remains of transformers' loading report.

    transformers itself leaves out tied weights and what the model's class declares (`_keys_to_ignore_on_load_missing` and
    `_keys_to_ignore_on_load_unexpected`). Left out here: buffers that the model computes, such as rotary frequencies; causal
    masks, by their shape; layers for tokens after the next one.

    Args:
        info: of `from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)`.
        model: the loaded model.
        shapes: of the tensors in the files.
    """
    config = model.config
    persistent = model.state_dict().keys()
    computed = {name.rpartition(".")[2] for name, _ in model.named_buffers() if name not in persistent}
    num_layers, num_extra = getattr(config, "num_hidden_layers", 0), getattr(config, "num_nextn_predict_layers", 0) or 0

    def dropped_rightly(name: str) -> bool:
        layer, shape = _LAYER.search(name), shapes.get(name, (1,))
        is_mask = name.endswith("bias") and (shape == () or (len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]))
        is_extra = layer is not None and num_layers <= int(layer[1]) < num_layers + num_extra
        is_buffer = _BUFFER.search(name) is not None or (name.rpartition(".")[2] in computed and "weight" not in name)
        return is_mask or is_extra or is_buffer or _EXTRA_HEADS.search(name) is not None

    return Misfit(
        tuple(sorted(info["missing_keys"])),
        tuple(sorted(name for name in info["unexpected_keys"] if not dropped_rightly(name))),
        tuple(sorted((name, tuple(stored), tuple(ours)) for name, stored, ours in info["mismatched_keys"])),
    )


def difference(stored: Shapes, ours: Shapes) -> Misfit:
    """What does not fit between stored tensors and a model's own, by names and shapes alone."""
    both = [name for name in stored if name in ours and stored[name] != tuple(ours[name])]
    return Misfit(
        tuple(sorted(ours.keys() - stored.keys())),
        tuple(sorted(stored.keys() - ours.keys())),
        tuple((name, stored[name], tuple(ours[name])) for name in sorted(both)),
    )


def advice(misfit: Misfit, model: "PreTrainedModel", stored: Collection[str]) -> str:
    """What to do about a misfit, as the end of a message.

    Args:
        misfit: what does not fit.
        model: its config and its output layer are looked at.
        stored: names in the files.
    """
    numbers = {int(match[1]) for name in stored if (match := _LAYER.search(name))}
    told = getattr(model.config, "num_hidden_layers", None)
    if told and numbers and (len(numbers) != told or max(numbers) != told - 1):
        return f"config.json says num_hidden_layers={told}, the files have {len(numbers)}: take both from one model"
    if any(".lora_" in name for name in stored):
        return "The files hold an adapter: merge it into its base model first (peft: merge_and_unload), and save that"
    wrapped = [w for w in (*WRAPPERS, *(f".{token}." for token in INNER)) if any(w in name for name in misfit.unexpected)]
    if wrapped:
        return f"Some names have {wrapped[0].strip('.')}. and others do not: save the model again, from one state"
    if misfit.missing and set(misfit.missing) <= set(_head(model)) and not misfit.reshaped:
        if misfit.unexpected:
            return (
                "These are the weights of a classifier or reward model, which predicts no next token: name the model that it "
                "was made from"
            )
        return (
            'The output layer is missing. If it has the weights of the embeddings, write "tie_word_embeddings": true into '
            "config.json; otherwise copy or download the model again"
        )
    return "Copy or download the model again, so that config.json and the weights are of one model"


def without_data(config: PretrainedConfig, tensors: Mapping[str, torch.Tensor]) -> "PreTrainedModel":
    """A model on torch's meta device that knows how its files store it: transformers has loaded their tensors, without data.

    Args:
        config: the model's, as loaded from the folder.
        tensors: of the files, without data, by names without a wrapper's.
    """
    return _loaded(_without_data(auto_class(config), config), dict(tensors), {})[0]


def _load(model: "PreTrainedModel", tensors: dict[str, torch.Tensor], renamed: dict[str, str]) -> Misfit:
    """Load tensors without data into a new model of the same class, and return what does not fit."""
    loaded, info = _loaded(model, tensors, renamed)
    return misfit_of(info, loaded, _shapes(tensors, renamed))


def _loaded(
    model: "PreTrainedModel", tensors: dict[str, torch.Tensor], renamed: dict[str, str]
) -> tuple["PreTrainedModel", dict[str, Any]]:
    """A new model of the same class with tensors without data, and transformers' report."""
    with _quiet():
        result: Any = type(model).from_pretrained(
            None,
            config=_plain(model.config),
            state_dict=dict(tensors),
            key_mapping=renamed or None,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    loaded, info = result
    return loaded, info


def _shapes(tensors: Mapping[str, torch.Tensor], renamed: Mapping[str, str]) -> Shapes:
    """Shapes by the names that the model has them under."""

    def plain(name: str) -> str:
        for pattern, other in renamed.items():
            name = re.sub(pattern, other, name)
        return name

    return {plain(name): tuple(tensor.shape) for name, tensor in tensors.items()}


def _without_other_parts(
    misfit: Misfit, config: PretrainedConfig, model: "PreTrainedModel", tensors: dict[str, torch.Tensor]
) -> tuple[Misfit, tuple[str, ...]]:
    """Without tensors that belong to the whole model of images and text, if `model` is its language model alone.

    Returns:
        The rest, and the names of those tensors.
    """
    if not misfit.unexpected or type(model.config) is type(config):
        return misfit, ()
    import transformers

    for name in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
        try:
            whole = _without_data(getattr(transformers, name), config)
        except (AttributeError, ValueError):
            continue
        nowhere = _load(whole, tensors, {}).unexpected
        left_out = tuple(name for name in misfit.unexpected if name not in nowhere)
        return replace(misfit, unexpected=tuple(name for name in misfit.unexpected if name in nowhere)), left_out
    return misfit, ()


def _without_data(loader: Any, config: PretrainedConfig) -> "PreTrainedModel":
    with torch.device("meta"), _quiet():
        model: PreTrainedModel = loader.from_config(_plain(config))
    return model


def _plain(config: PretrainedConfig) -> PretrainedConfig:
    """A copy for a model that is not quantized."""
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _head(model: "PreTrainedModel") -> list[str]:
    """Full names of the parameters of the output layer."""
    head = model.get_output_embeddings()
    return [f"{name}.{last}" for name, layer in model.named_modules() if layer is head for last, _ in layer.named_parameters()]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report and progress bar."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _tensors(names: Collection[object]) -> str:
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''}"


def _are(names: Collection[object]) -> str:
    return "are" if len(names) != 1 else "is"


def _have(names: Collection[object]) -> str:
    return "have" if len(names) != 1 else "has"


def _some(names: Collection[str], separator: str = ", ") -> str:
    shown = list(names)[:NAMED]
    return separator.join(shown) + (f"{separator}..." if len(names) > NAMED else "")


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Dtypes by their names in safetensors headers."""
