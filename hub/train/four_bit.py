"""bitsandbytes' 4-bit layers, where they have to do otherwise than as they come."""

from typing import Any

import torch
import torch.nn.functional as F


def is_4bit(module: torch.nn.Module) -> bool:
    """Whether it is such a layer. Told by its name, so that bitsandbytes need not be there."""
    return type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes")


def hold_as_plain_tensor(layer: Any, device: torch.device) -> None:
    """Let a layer keep its packed weight as a plain tensor that can be shared out.

    Its own kind of parameter carries the scales along, and both get lost when the weight is shared out. The scales (half a bit
    per weight, less when they are quantised themselves) stay whole in the layer.
    """
    from bitsandbytes import matmul_4bit

    scales = layer.weight.quant_state
    scales.to(device)
    layer.weight = torch.nn.Parameter(layer.weight.data, requires_grad=False)

    def forward(x: torch.Tensor) -> torch.Tensor:
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        out = matmul_4bit(x.to(layer.compute_dtype or x.dtype), layer.weight.t(), bias=bias, quant_state=scales)
        return out.to(x.dtype)

    layer.forward = forward


def unpack_once(layer: Any) -> bool:
    """Let a layer bring its weight to 16 bits in an operation of its own, which a compiler does once for several calls.

    bitsandbytes' own product does it anew for each.

    Returns:
        Whether it does now; one that was changed before stays as it is. `del layer.forward` undoes it.
    """
    from bitsandbytes.functional import dequantize_4bit

    if "forward" in vars(layer) or getattr(layer.weight, "quant_state", None) is None:
        return False

    def forward(x: torch.Tensor) -> torch.Tensor:
        wanted = layer.compute_dtype or x.dtype
        weight = dequantize_4bit(layer.weight, layer.weight.quant_state)
        bias = None if layer.bias is None else layer.bias.to(wanted)
        return F.linear(x.to(wanted), weight.to(wanted), bias).to(x.dtype)

    layer.forward = forward
    return True
