"""The weights that training in 4 or 8 bits saw: quantized and dequantized again."""

from typing import TYPE_CHECKING, Literal

import torch

from hub.errors import LaunchError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kind = Literal["nf4", "int8"]


def quantized_layers(model: "PreTrainedModel", kind: Kind) -> frozenset[str]:
    """Names of the weights that transformers quantizes when it loads a model in 4 or 8 bits.

    Args:
        model: without data.
        kind: nf4 or int8.
    """
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    asked = BitsAndBytesConfig(load_in_4bit=kind == "nf4", load_in_8bit=kind == "int8")
    kept = [*(asked.llm_int8_skip_modules or get_keys_to_not_convert(model)), *(model._keep_in_fp32_modules or ())]
    return frozenset(
        f"{name}.weight"
        for name, module in model.named_modules()
        if (type(module) is torch.nn.Linear or type(module).__name__ == "Conv1D") and should_convert_module(name, kept)
    )


def as_trained(weight: torch.Tensor, kind: Kind, dtype: torch.dtype, is_conv1d: bool = False) -> torch.Tensor:
    """A weight as training saw it.

    Args:
        weight: as stored.
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
    if kind == "nf4":
        codes, state = functional.quantize_4bit(loaded, blocksize=64, compress_statistics=True, quant_type="nf4")
        seen = functional.dequantize_4bit(codes, state)
    else:
        codes, scales, _ = functional.int8_vectorwise_quant(loaded.half())  # in float16, as bitsandbytes' layer does
        seen = codes.float() * (scales.float() / 127)[:, None]
    seen = seen.to(dtype)
    return seen.mT.contiguous() if is_conv1d else seen
