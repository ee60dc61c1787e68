"""Loads finished models: weights, adapter, tokenizer with the template of the run. Used by all tasks on finished models."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase
from transformers.utils.quantization_config import QuantizationConfigMixin

from hub.config.schema import RunConfig
from hub.data.tokens.template import load_template
from hub.data.tokens.template_date import set_date
from hub.data.tokens.tokenizer import load_tokenizer
from hub.errors import LaunchError, ModelError, first_line
from hub.models import load
from hub.models.fingerprint import changed_base
from hub.models.finished import ADAPTER_WEIGHTS, Asked, Finished
from hub.models.patches import patches_of
from hub.models.structure import max_positions
from hub.models.tokens import resize_embeddings, vocabulary_of
from hub.models.weights import local_weights
from hub.parallel.session import choose_dtype, quiet_libraries
from hub.train.kernels.packed_experts import FrozenExperts

Say = Callable[[str], None]


@dataclass(frozen=True)
class Loaded:
    """A finished model in evaluation mode, on its device, with its tokenizer."""

    name: str
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    """Of the arithmetic."""

    max_positions: int | None
    """The longest sequence in tokens that the model can hold. None: any."""

    base_path: Path
    """Local folder of the weights, for an adapter those of its base."""

    has_adapter: bool = False

    def autocast(self) -> torch.autocast:
        """A context with arithmetic in `dtype`. It does nothing if all weights have that type."""
        floating = (weight.dtype for weight in self.model.parameters() if weight.is_floating_point())
        enabled = self.dtype != torch.float32 and any(dtype != self.dtype for dtype in floating)
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    def without_adapter(self) -> AbstractContextManager[Any]:
        """A context in which the model is the base of its adapter. Nothing changes for a whole model."""
        if not self.has_adapter:
            return nullcontext()
        model: Any = self.model
        context: AbstractContextManager[Any] = model.disable_adapter()
        return context


def device_here() -> torch.device:
    """The GPU of this process, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def load_finished(asked: Asked, finished: Finished, say: Say, dtype: torch.dtype | None = None) -> Loaded:
    """Load a finished model with its adapter.

    Args:
        asked: the config: `model.dtype`, the template and the date of `data`.
        finished: the model.
        say: receives lines for the user.
        dtype: of weights and arithmetic. None: that of `model.dtype`.

    Raises:
        ModelError: it can't be loaded.
        LaunchError: peft is not installed, and there is an adapter.
    """
    quiet_libraries()
    device = device_here()
    dtype = dtype or choose_dtype(asked.cfg.model.dtype, device)[0]
    path = local_weights(finished.base, say)
    if finished.adapter is not None and (line := changed_base(finished, path)):
        say(f"{line}. What its adapter does to it is not what was trained")
    model: Any = load.load_causal_lm(finished.base, path, device, dtype, _quantization(asked.cfg, dtype))
    tokenizer = tokenizer_of(asked.cfg, finished, path)
    if finished.adapter is not None:
        if finished.base.changes_vocab and (vocabulary := vocabulary_of(finished.base, path, tokenizer)) is not None:
            resize_embeddings(model, vocabulary, finished.base, say)
        model = _with_adapter(model, finished.adapter)
    patches_of(model).apply(FrozenExperts(model))
    model.eval()
    model.requires_grad_(False)
    model.config.use_cache = True
    positions = max_positions(load.load_config(finished.base, path))
    return Loaded(finished.name, model, tokenizer, device, dtype, positions, path, finished.adapter is not None)


def tokenizer_of(cfg: RunConfig, finished: Finished, base_path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved with what was trained, else the base's, with the template and the date of the config."""
    folder = finished.adapter
    if folder is None or not (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(cfg, base_path)
    tokenizer = load.load_tokenizer(finished.base, folder)
    if cfg.data.template:
        load_template(tokenizer, cfg.data.template)
    if cfg.data.date and cfg.data.date != "auto":
        set_date(tokenizer, cfg.data.date)
    return tokenizer


def _with_adapter(model: Any, folder: Path) -> Any:
    try:
        from peft import PeftModel

        from hub.train.kernels.expert_adapters import ExpertAdapters
    except ImportError:
        raise LaunchError(f"{folder} is an adapter, which needs peft. Type pip install peft") from None
    try:
        adapted = PeftModel.from_pretrained(model, str(folder))
    except SafetensorError as error:
        raise ModelError(f"{folder}: {ADAPTER_WEIGHTS} is broken ({error}). Copy or download the adapter again") from None
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{folder}: this adapter can't be put on {model.config.name_or_path}: {first_line(error)}") from None
    if getattr(adapted.peft_config["default"], "target_parameters", None):
        patches_of(adapted).apply(ExpertAdapters(adapted))
    return adapted


def _quantization(cfg: RunConfig, dtype: torch.dtype) -> QuantizationConfigMixin | None:
    """As the run that trained the adapter had its frozen weights."""
    from transformers import BitsAndBytesConfig

    if getattr(cfg.algo, "load_in_8bit", False):
        return BitsAndBytesConfig(load_in_8bit=True)
    if not getattr(cfg.algo, "load_in_4bit", False):
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
