"""PEFT's adapters on single parameters (`target_parameters`), computed beside the parameters: of experts, and of linear layers.

PEFT (`ParamWrapper`) computes the changed parameter in each pass. What is trained, saved and merged is the same.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import ParamWrapper
from torch import nn

from hub.models.patches import Edits, Patch
from hub.train.kernels.experts import Factors, agrees, experts_forward, is_known, wide_and_narrow


class ExpertAdapters(Patch):
    """Computes the adapters on parameters beside these, where it is known how.

    Args:
        model: with adapters of PEFT.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.others: list[str] = []
        """Names of the modules that keep PEFT's way, once it is applied."""

    def apply(self, edits: Edits) -> None:
        self.others = []
        agreed: dict[type, bool] = {}
        for name, wrapper in outermost(self._model):
            kind = _kind_of(wrapper, agreed)
            if kind is WholeTensors:
                self.others.append(name)
            # A method of a class, and not of an instance: torch.compile then has one version for all layers.
            edits.record(wrapper, "__class__", partial(setattr, wrapper, "__class__", type(wrapper)))
            wrapper.__class__ = kind


class GroupedExperts(ParamWrapper):
    """The outermost adapter of a mixture's experts."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The experts' pass with the adapters of all of their tensors."""
        if kwargs or len(args) != 2 or any(one.disable_adapters or one.merged for one in wrappers(self)):
            return ParamWrapper.forward(self, x, *args, **kwargs)
        experts: Any = self.get_base_layer()
        adapters = {
            one.parameter_name: [
                factors(one, name, experts.is_transposed) for name in one.active_adapters if name in one.lora_A
            ]
            for one in wrappers(self)
        }
        return experts_forward(experts, x, args[0], args[1], adapters)


class LinearBeside(ParamWrapper):
    """An adapter on the weight of a linear layer."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The layer's product, and that of the adapter."""
        if args or kwargs or self.disable_adapters or self.merged:
            return ParamWrapper.forward(self, x, *args, **kwargs)
        result: torch.Tensor = self.base_layer(x)
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.lora_A:
                a: Any = self.lora_A[name]
                result = result + self.lora_B[name](a(self._cast_input_dtype(x, a.weight.dtype))) * self.scaling[name]
        return result.to(dtype)


class WholeTensors(ParamWrapper):
    """Adapters that PEFT computes. A compiler can't follow how it exchanges parameters, and does not try here."""

    @torch.compiler.disable(recursive=True)  # type: ignore[untyped-decorator]  # torch gives it no types
    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """PEFT's own pass."""
        return ParamWrapper.forward(self, x, *args, **kwargs)


def outermost(model: nn.Module) -> list[tuple[str, ParamWrapper]]:
    """The adapters on parameters by name: of each module the one that wraps the others."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, ParamWrapper)]
    inner = {id(wrapper.base_layer) for _, wrapper in found}
    return [(name, wrapper) for name, wrapper in found if id(wrapper) not in inner]


def wrappers(outer: ParamWrapper) -> Iterator[ParamWrapper]:
    """Yield an adapter and those that it wraps: one for each parameter of the same module."""
    module: Any = outer
    while isinstance(module, ParamWrapper):
        yield module
        module = module.base_layer


def factors(wrapper: ParamWrapper, adapter: str, is_transposed: bool) -> Factors:
    """The factors of an adapter on a tensor of all experts.

    PEFT has A as (experts * r, a) with the experts outside, and B as (b, r * experts) with the experts inside
    (`ParamWrapper.get_delta_weight`). From 0.19.1 on it adds B A to a tensor (experts, b, a), and A^T B^T to one that is
    called transposed, (experts, a, b). Before, it was the latter for all.

    Args:
        wrapper: the adapter.
        adapter: its name in PEFT.
        is_transposed: whether the tensor is (experts, in, out).
    """
    own: Any = wrapper
    number, a, b = own.num_experts, own.lora_A[adapter].weight, own.lora_B[adapter].weight
    a = a.reshape(number, -1, a.shape[-1])
    b = b.reshape(len(b), -1, number).permute(2, 0, 1)
    left, right = (b, a) if getattr(wrapper, "_did_swap_in_out_features", False) else (a.mT, b.mT)
    first, second = (left, right) if is_transposed else (right.mT, left.mT)
    return Factors(first, second, wrapper.scaling[adapter])


def _kind_of(wrapper: ParamWrapper, agreed: dict[type, bool]) -> type[ParamWrapper]:
    """The class that computes an adapter, tried once for each class of experts."""
    base = wrapper.get_base_layer()
    names = [one.parameter_name for one in wrappers(wrapper)]
    if isinstance(base, nn.Linear):
        return LinearBeside if names == ["weight"] else WholeTensors
    if not is_known(base) or not set(names) <= set(wide_and_narrow(base)) or base.num_experts == 1:
        return WholeTensors
    if type(base) not in agreed:
        agreed[type(base)] = agrees(base)
    return GroupedExperts if agreed[type(base)] else WholeTensors
