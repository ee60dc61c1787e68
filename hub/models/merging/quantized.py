"""The weights that training in 4 or 8 bits saw: quantized and dequantized again."""

from typing import TYPE_CHECKING, Literal

import torch

from hub.errors import LaunchError
from hub.models.four_bit_tensor import in_nf4

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kind = Literal["nf4", "int8"]


def quantized_layers(model: "PreTrainedModel", kind: Kind) -> frozenset[str]:
    """Names of the weights that are quantized when a model is loaded in 4 or 8 bits: of linear layers, and of experts in 4.

    Args:
        model: without data.
        kind: nf4 or int8.
    """
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    from hub.models.four_bit_loading import stacks_to_quantize

    asked = BitsAndBytesConfig(load_in_4bit=kind == "nf4", load_in_8bit=kind == "int8")
    kept = [*(asked.llm_int8_skip_modules or get_keys_to_not_convert(model)), *(model._keep_in_fp32_modules or ())]
    layers = frozenset(
        f"{name}.weight"
        for name, module in model.named_modules()
        if (type(module) is torch.nn.Linear or type(module).__name__ == "Conv1D") and should_convert_module(name, kept)
    )
    return layers | stacks_to_quantize(model, kept) if kind == "nf4" else layers


def as_trained(weight: torch.Tensor, kind: Kind, dtype: torch.dtype, is_conv1d: bool = False) -> torch.Tensor:
    """A weight as training saw it.

    Args:
        weight: as stored, or the tensor of all experts, which share the scales of their scales.
        kind: nf4: with double quantization, blocks of 64 (QLoRA, arXiv 2305.14314). int8: a scale for each output (arXiv
            2208.07339).
        dtype: compute dtype of training.
        is_conv1d: GPT-2's layer, stored as (in, out) and quantized as (out, in).

    Raises:
        LaunchError: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes import functional
    except ImportError:
        raise LaunchError(f"weights as trained in {kind} need bitsandbytes. Type pip install bitsandbytes") from None
    loaded = (weight.mT if is_conv1d else weight).to(dtype).contiguous()
    if kind == "nf4" and loaded.ndim == 3:
        seen = in_nf4(loaded).dequantized()
    elif kind == "nf4":
        codes, state = functional.quantize_4bit(loaded, blocksize=64, compress_statistics=True, quant_type="nf4")
        seen = functional.dequantize_4bit(codes, state)
    else:
        codes, scales, _ = functional.int8_vectorwise_quant(loaded.half())  # in float16, as bitsandbytes' layer does
        seen = codes.float() * (scales.float() / 127)[:, None]
    seen = seen.to(dtype)
    return seen.mT.contiguous() if is_conv1d else seen
