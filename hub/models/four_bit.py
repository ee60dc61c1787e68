"""bitsandbytes' 4-bit layers: which ones they are, and how they are held so that they can be shared out."""

from typing import Any

import torch


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
