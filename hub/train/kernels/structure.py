"""Parts of a model, whatever wraps it: the transformers model itself, its decoder layers, its output layer."""

from typing import Any

import torch


def base_of(model: Any) -> Any:
    """The transformers model inside an engine (DeepSpeed, DDP) and inside PEFT's wrapper."""
    if hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the decoder layers: modules of the classes that the model declares in `_no_split_modules`."""
    base = base_of(model)
    names = set(getattr(base, "_no_split_modules", None) or ())

    def is_layer(module: torch.nn.Module) -> bool:
        return type(module).__name__ in names or any(kind.__name__ in names for kind in type(module).__mro__)

    return [module for module in base.modules() if is_layer(module)]
