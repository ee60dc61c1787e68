"""Experts whose weights are stored in float32 compute in the dtype of autocast.

Autocast casts the inputs of linear layers, and knows nothing of grouped products. Experts of a mixture that is fine-tuned in
full would compute in float32, several times slower than all other layers.
"""

import torch
from torch.distributed.tensor import DTensor

from hub.models.patches import Edits, Patch
from hub.train.kernels.experts import compute_here, is_known, wide_and_narrow


class HalfExperts(Patch):
    """Lets experts in float32 compute in the dtype of autocast, with the numbers of their own pass but for its rounding.

    Experts whose pass is not known stay as they are. So do sharded ones, whose weights are all-gathered in that dtype.

    Args:
        model: whose experts stay on their device from now on.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def apply(self, edits: Edits) -> None:
        compute_here(edits, (module for module in self._model.modules() if _is_in_float32(module)))


def _is_in_float32(module: torch.nn.Module) -> bool:
    if "forward" in vars(module) or not is_known(module):
        return False
    tensors = [getattr(module, name) for name in wide_and_narrow(module)]
    return all(tensor.dtype == torch.float32 and not isinstance(tensor, DTensor) for tensor in tensors)
