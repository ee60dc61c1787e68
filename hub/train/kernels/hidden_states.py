"""Hidden states in the type of the arithmetic, even if the weights are in float32."""

import torch

from hub.models.patches import Edits, Patch
from hub.models.structure import base_of


class HiddenStatesIn(Patch):
    """Casts the embedding's output, and with it the hidden states of all layers.

    Args:
        model: a causal language model.
        dtype: of the hidden states.
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        self._embedding, self._dtype = base_of(model).get_input_embeddings(), dtype

    def apply(self, edits: Edits) -> None:
        handle = self._embedding.register_forward_hook(lambda module, args, output: output.to(self._dtype))
        edits.record(self._embedding, f"hook {handle.id}", handle.remove)
