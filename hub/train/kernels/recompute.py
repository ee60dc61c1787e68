"""Fast ways through a model on a GPU, each kept only if the model is seen to give the same with it.

* Attention over a packed row by torch's variable-length kernel (`attention.py`).
* The output layer and its loss in one (`head.py`): the logits never exist as a whole.
* Activations of some layers recomputed in the backward pass.
* The hidden states in the type of the arithmetic, also where the weights are kept in float32.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from hub.train.kernels.compiled import CompiledForward
from hub.train.kernels.head import FusedHead
from hub.train.kernels.offload import HostInputs


def base_of(model: Any) -> Any:
    """The transformers model inside an engine and PEFT's wrapper."""
    if hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def layers_of(model: Any) -> list[torch.nn.Module]:
    """The decoder layers: the modules of the classes that the model declares to belong together."""
    base = base_of(model)
    names = set(getattr(base, "_no_split_modules", None) or ())

    def is_layer(module: torch.nn.Module) -> bool:
        return type(module).__name__ in names or any(kind.__name__ in names for kind in type(module).__mro__)

    return [module for module in base.modules() if is_layer(module)]


# Output layer


def fused_head(model: Any) -> FusedHead | None:
    """The model's fused output layer, if it has one."""
    found: FusedHead | None = getattr(base_of(model).get_output_embeddings(), "hub_fused", None)
    return found


def can_fuse_head(model: Any) -> bool:
    """Whether the model's output layer is a plain linear one."""
    return type(base_of(model).get_output_embeddings()) is torch.nn.Linear


# Layers


def hidden_states_in(model: Any, dtype: torch.dtype) -> None:
    """Let the hidden states have this type from the embedding on, whatever type the weights are kept in."""
    base_of(model).get_input_embeddings().register_forward_hook(lambda module, args, output: output.to(dtype))


def recompute(layers: list[torch.nn.Module], offload: HostInputs | None = None) -> Callable[[], None]:
    """Keep of these layers only the input, and run them again in the backward pass.

    Args:
        layers: some of a model's.
        offload: keeps the inputs on the host.

    Returns:
        What undoes it.
    """
    undone: list[Callable[[], None]] = []

    def wrap(layer: torch.nn.Module) -> None:
        plain = layer.forward
        if isinstance(plain, CompiledForward):
            undone.append(plain.recompute(offload))
            return

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not (layer.training and torch.is_grad_enabled()):
                return plain(*args, **kwargs)
            if offload is None:
                return checkpoint(plain, *args, use_reentrant=False, **kwargs)
            with offload.around(layer, args, kwargs):
                return checkpoint(plain, *args, use_reentrant=False, **kwargs)

        layer.forward = forward
        undone.append(lambda: setattr(layer, "forward", plain))

    for layer in layers:
        wrap(layer)

    def undo() -> None:
        for step in undone:
            step()

    return undo
