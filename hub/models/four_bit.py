"""bitsandbytes' 4-bit layers: recognize them, and store their weights so that FSDP2 can shard them."""

from typing import TYPE_CHECKING, TypeGuard

import torch

from hub.models.patches import Edits, Patch

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit


def is_4bit(module: torch.nn.Module) -> "TypeGuard[Linear4bit]":
    """Whether a module is bitsandbytes' 4-bit layer. Checked by class name: bitsandbytes need not be installed."""
    return type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes")


class PlainFourBitWeight(Patch):
    """A layer's packed weight is a plain tensor, which FSDP2 can shard. It can be undone until the layer is sharded.

    bitsandbytes' own parameter class carries the scales, and sharding loses both. The scales (half a bit per weight, less when
    they are quantized themselves) stay unsharded in the layer.

    Args:
        layer: bitsandbytes' 4-bit layer.
        device: of the scales.
    """

    def __init__(self, layer: "Linear4bit", device: torch.device) -> None:
        self._layer, self._device = layer, device

    def apply(self, edits: Edits) -> None:
        from bitsandbytes import matmul_4bit
        from bitsandbytes.nn import Params4bit

        layer, packed = self._layer, self._layer.weight
        assert isinstance(packed, Params4bit)
        scales = packed.quant_state
        assert scales is not None
        scales.to(self._device)

        def forward(x: torch.Tensor) -> torch.Tensor:
            bias = None if layer.bias is None else layer.bias.to(x.dtype)
            weight = layer.weight.t()
            out: torch.Tensor = matmul_4bit(x.to(layer.compute_dtype or x.dtype), weight, bias=bias, quant_state=scales)
            return out.to(x.dtype)

        layer.weight = torch.nn.Parameter(packed.data, requires_grad=False)
        edits.record(layer, "weight", lambda: setattr(layer, "weight", packed))
        edits.assign(layer, "forward", forward)
