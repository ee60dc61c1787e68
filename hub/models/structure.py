"""Parts of a model, whatever wraps it: the transformers model itself, its config, its decoder layers, its output layer."""

from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def base_of(model: torch.nn.Module) -> "PreTrainedModel":
    """The transformers model inside an engine (DeepSpeed, DDP) and inside PEFT's wrapper."""
    inner = getattr(model, "module", model)
    unwrapped = getattr(inner, "get_base_model", lambda: inner)
    return cast("PreTrainedModel", unwrapped())


def text_config(model: torch.nn.Module) -> "PretrainedConfig":
    """The config of the model's language part."""
    return base_of(model).config.get_text_config()


def input_embeddings(model: torch.nn.Module) -> torch.nn.Embedding:
    """The layer that turns tokens into vectors. Some models have their own class with a weight of the same shape."""
    return cast(torch.nn.Embedding, base_of(model).get_input_embeddings())


def output_layer(model: torch.nn.Module) -> torch.nn.Linear | None:
    """The layer that gives the logits, if it is a plain linear one. If PEFT trains a copy of it, the copy."""
    head = base_of(model).get_output_embeddings()
    if copies := getattr(head, "modules_to_save", None):
        head = next(iter(copies.values()))
    return head if type(head) is torch.nn.Linear else None


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the decoder layers: modules of the classes that the model declares in `_no_split_modules`."""
    base = base_of(model)
    names = set(getattr(base, "_no_split_modules", None) or ())

    def is_layer(module: torch.nn.Module) -> bool:
        return type(module).__name__ in names or any(kind.__name__ in names for kind in type(module).__mro__)

    return [module for module in base.modules() if is_layer(module)]
