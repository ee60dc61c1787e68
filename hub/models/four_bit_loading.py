"""Models loaded in 4 bits, the experts of mixtures too: transformers quantizes linear layers only, not their fused tensors.

Each tensor is quantized when it is complete, before the next is read: in full there is one at a time.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import BitsAndBytesConfig, Mxfp4Config, QuantizationMethod

from hub.models.four_bit_tensor import MXFP4_BLOCK, as_parameter, in_mxfp4, in_nf4, nf4_without_data
from hub.models.structure import expert_stacks

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils.quantization_config import QuantizationConfigMixin

METHOD = "bitsandbytes_with_experts"
"""The name of the quantizer here among those of transformers."""

_MXFP4 = "hub_from_mxfp4"
"""Attribute of a config: the experts are stored in MXFP4, and are kept so."""


def with_experts(quantization: "QuantizationConfigMixin", from_mxfp4: bool = False) -> "QuantizationConfigMixin":
    """The same config, with which the experts are in 4 bits too. One that is not for NF4 stays as it is.

    Args:
        quantization: as an algorithm asks for it.
        from_mxfp4: the experts are stored in MXFP4. They are kept so, code by code.
    """
    if not isinstance(quantization, BitsAndBytesConfig) or not quantization.load_in_4bit:
        return quantization
    AUTO_QUANTIZER_MAPPING.setdefault(METHOD, WithExperts)
    made: Any = copy.copy(quantization)
    made.quant_method = METHOD
    setattr(made, _MXFP4, from_mxfp4)
    result: QuantizationConfigMixin = made
    return result


class WithExperts(Bnb4BitHfQuantizer):
    """Quantizes linear layers as transformers does, and the tensors of experts."""

    _stacks: frozenset[str] = frozenset()

    def _process_model_before_weight_loading(  # type: ignore[override]  # transformers' own are of two kinds
        self, model: "PreTrainedModel", device_map: Any, **kwargs: Any
    ) -> None:
        super()._process_model_before_weight_loading(model, device_map, **kwargs)
        self._stacks = stacks_to_quantize(model, self.modules_to_not_convert)

    def _process_model_after_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> Any:
        # A config that is saved has transformers' own name.
        self.quantization_config.quant_method = QuantizationMethod.BITS_AND_BYTES
        vars(self.quantization_config).pop(_MXFP4, None)
        vars(model)["quantization_method"] = QuantizationMethod.BITS_AND_BYTES
        return super()._process_model_after_weight_loading(model, **kwargs)

    def param_needs_quantization(self, model: "PreTrainedModel", param_name: str, **kwargs: Any) -> bool:
        """Whether transformers is to quantize a tensor when it has it in full."""
        if param_name in self._stacks:
            return not getattr(self.quantization_config, _MXFP4, False)
        return bool(super().param_needs_quantization(model, param_name, **kwargs))

    def param_element_size(self, model: "PreTrainedModel", param_name: str, param: torch.Tensor) -> float:
        """Bytes of a number as it is loaded."""
        return 0.5 if param_name in self._stacks else float(super().param_element_size(model, param_name, param))

    def get_quantize_ops(self) -> ConversionOps:
        """The operation that quantizes a tensor."""
        return _Quantize(self, super().get_quantize_ops())  # type: ignore[no-untyped-call]

    def get_weight_conversions(self) -> list[Any]:
        """How tensors of the files become those of the model."""
        conversions: list[Any] = list(super().get_weight_conversions())  # type: ignore[no-untyped-call]
        if getattr(self.quantization_config, _MXFP4, False):
            of_mxfp4 = Mxfp4HfQuantizer(Mxfp4Config(dequantize=True), pre_quantized=True)
            for conversion in of_mxfp4.get_weight_conversions():
                conversion.operations = [_Keep()]
                conversions.append(conversion)
        return conversions

    def without_data(self, model: "PreTrainedModel") -> None:
        """Give a model on torch's meta device its experts in 4 bits, where loading would."""
        for name in self._stacks:
            module, last = get_module_from_name(model, name)
            weight = getattr(module, last)
            if getattr(self.quantization_config, _MXFP4, False):
                experts, inputs, outputs = weight.shape
                shape = (experts, outputs, inputs // MXFP4_BLOCK)
                blocks, scales = (torch.empty(size, dtype=torch.uint8, device="meta") for size in ((*shape, 16), shape))
                setattr(module, last, as_parameter(in_mxfp4(blocks, scales, weight.dtype)))
            else:
                setattr(module, last, as_parameter(nf4_without_data(weight.shape, weight.dtype)))


def stacks_to_quantize(model: "PreTrainedModel", kept: list[str]) -> frozenset[str]:
    """The names of the tensors with a matrix for each expert, but of the modules that are kept in full."""
    return frozenset(
        f"{module}.{name}"
        for module, name in expert_stacks(model)
        if not name.endswith("bias") and should_convert_module(module, kept)
    )


class _Quantize(ConversionOps):
    """Quantizes what is complete: experts here, layers as transformers does."""

    def __init__(self, quantizer: WithExperts, of_layers: ConversionOps) -> None:
        self._quantizer, self._of_layers = quantizer, of_layers

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The tensors of the model, by name."""
        made: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        for name, value in input_dict.items():
            if name in self._quantizer._stacks:
                weight = value[0] if isinstance(value, list) else value
                dtype = self._quantizer.quantization_config.bnb_4bit_compute_dtype
                made[name] = as_parameter(in_nf4(weight.to(dtype)))
            else:
                rest[name] = value
        return made | (self._of_layers.convert(rest, *args, **kwargs) if rest else {})


class _Keep(ConversionOps):
    """Takes experts in MXFP4 as they are stored."""

    def convert(
        self, input_dict: dict[str, Any], *args: Any, full_layer_name: str = "", model: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The tensor of the model, by name."""
        # transformers reads all tensors in the dtype of the model, which holds 8 bits of an integer.
        parts = {name: (value[0] if isinstance(value, list) else value).to(torch.uint8) for name, value in input_dict.items()}
        (blocks,), (scales,) = ([part for name, part in parts.items() if name.endswith(end)] for end in ("blocks", "scales"))
        module, name = get_module_from_name(model, full_layer_name)
        return {full_layer_name: as_parameter(in_mxfp4(blocks, scales, getattr(module, name).dtype))}
