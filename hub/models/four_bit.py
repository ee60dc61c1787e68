"""bitsandbytes' 4-bit layers: recognize them, and store their weights so that FSDP2 can shard them."""

from typing import TYPE_CHECKING, TypeGuard

import torch

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit


def is_4bit(module: torch.nn.Module) -> "TypeGuard[Linear4bit]":
    """Whether a module is bitsandbytes' 4-bit layer. Checked by class name: bitsandbytes need not be installed."""
    return type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes")


def hold_as_plain_tensor(layer: "Linear4bit", device: torch.device) -> None:
    """Replace a layer's packed weight by a plain tensor, which FSDP2 can shard.

    bitsandbytes' own parameter class carries the scales, and sharding loses both. The scales (half a bit per weight, less when
    they are quantized themselves) stay unsharded in the layer.
    """
    from bitsandbytes import matmul_4bit
    from bitsandbytes.nn import Params4bit

    packed = layer.weight
    assert isinstance(packed, Params4bit)
    scales = packed.quant_state
    assert scales is not None
    scales.to(device)
    layer.weight = torch.nn.Parameter(packed.data, requires_grad=False)

    def forward(x: torch.Tensor) -> torch.Tensor:
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        out: torch.Tensor = matmul_4bit(x.to(layer.compute_dtype or x.dtype), layer.weight.t(), bias=bias, quant_state=scales)
        return out.to(x.dtype)

    layer.forward = forward  # type: ignore[method-assign]  # this instance's pass only, not the class's
