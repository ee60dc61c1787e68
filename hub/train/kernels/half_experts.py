"""Experts whose weights are kept in float32, in the type of the arithmetic.

Autocast casts the inputs of linear layers, and knows nothing of grouped products. Experts of a mixture that is fine-tuned in
full would compute in float32, several times as slowly as all other layers.
"""

from collections.abc import Callable

import torch
from torch.distributed.tensor import DTensor

from hub.models.patches import Edits, Patch
from hub.train.kernels.experts import agrees, experts_forward, is_known, wide_and_narrow


class HalfExperts(Patch):
    """Lets experts in float32 compute in autocast's type, with the numbers of their own pass but for its rounding.

    Experts whose pass is not known stay as they are, and so do those of sharded weights, which arrive in that type.

    Args:
        model: whose experts stay on their device from now on.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def apply(self, edits: Edits) -> None:
        agreed: dict[type, bool] = {}
        for module in self._model.modules():
            if not _is_in_float32(module):
                continue
            if type(module) not in agreed:
                agreed[type(module)] = agrees(module)
            if agreed[type(module)]:
                edits.assign(module, "forward", _forward_of(module, module.forward))


def _is_in_float32(module: torch.nn.Module) -> bool:
    if "forward" in vars(module) or not is_known(module):
        return False
    tensors = [getattr(module, name) for name in wide_and_narrow(module)]
    return all(tensor.dtype == torch.float32 and not isinstance(tensor, DTensor) for tensor in tensors)


def _forward_of(module: torch.nn.Module, plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward(*args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        if kwargs or len(args) != 3:
            return plain(*args, **kwargs)
        return experts_forward(module, *args, adapters={})

    return forward
