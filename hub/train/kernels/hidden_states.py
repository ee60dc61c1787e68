"""Hidden states in the type of the arithmetic, even if the weights are in float32."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from hub.models.patches import Edits, Patch
from hub.models.structure import base_of


class HiddenStatesIn(Patch):
    """Casts the embedding's output, and with it the hidden states of all layers. LoRA's adapters take them as they are.

    PEFT casts the input of an adapter to the type of its weights, float32, and autocast casts it back for the product. The
    numbers are the same, but the copy is saved beside the original: of attention's output two instead of one.

    Args:
        model: a causal language model.
        dtype: of the hidden states.
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        self._base, self._dtype = base_of(model), dtype

    def apply(self, edits: Edits) -> None:
        embedding = self._base.get_input_embeddings()
        handle = embedding.register_forward_hook(lambda module, args, output: output.to(self._dtype))
        edits.record(embedding, f"hook {handle.id}", handle.remove)
        for layer in _adapted_layers(self._base):
            edits.assign(layer, "_cast_input_dtype", _cast_by_autocast(layer._cast_input_dtype))


def _adapted_layers(model: torch.nn.Module) -> Iterator[Any]:
    """Iterate over PEFT's LoRA layers whose first factor is a plain linear layer, which autocast casts by itself."""
    module: Any
    for module in model.modules():
        factors = getattr(module, "lora_A", None)
        if not isinstance(factors, torch.nn.ModuleDict) or not hasattr(module, "_cast_input_dtype"):
            continue
        if not isinstance(module.get_base_layer(), torch.nn.Linear):
            continue  # tensors of experts, embeddings
        if all(type(one) is torch.nn.Linear for one in factors.values()) and not getattr(module, "lora_variant", None):
            yield module


def _cast_by_autocast(plain: Callable[[Any, torch.dtype], Any]) -> Callable[[Any, torch.dtype], Any]:
    def cast(x: Any, dtype: torch.dtype) -> Any:
        return x if isinstance(x, torch.Tensor) and torch.is_autocast_enabled(x.device.type) else plain(x, dtype)

    return cast
