"""What a stored adapter does to each parameter of its base. PEFT itself puts it onto a model without data: its own rules hold.

LoRA (arXiv 2106.09685): W + s B A. DoRA (arXiv 2402.09353): m (W + s B A) / |W + s B A|, row by row. Besides, modules that were
trained as a whole, single rows of embeddings, and biases.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from hub.errors import LaunchError, ModelError, first_line
from hub.models.finished import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hub.models.safety import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "default"
"""The adapter's name in PEFT."""

_OF_WEIGHTS = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Values of `init_lora_weights` with which PEFT changes the base when it loads the adapter."""


class UnknownAdapterError(Exception):
    """This adapter has a part that only PEFT can merge."""


@dataclass(frozen=True)
class Change(ABC):
    """What happens to one parameter of the model."""

    @abstractmethod
    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The new weight.

        Args:
            weight: in float32, in the layout of the model's parameter. It may be changed in place.
        """

    @property
    def is_zero(self) -> bool:
        """Whether it leaves every weight as it is."""
        return False


@dataclass(frozen=True)
class Added(Change):
    """A product is added: W + s B A, or its transpose."""

    a: torch.Tensor
    """(..., r, in) float32."""

    b: torch.Tensor
    """(..., out, r)."""

    scaling: float
    is_transposed: bool = False
    """The parameter is (..., in, out)."""

    def delta(self, expert: int | None = None) -> torch.Tensor:
        """What is added: to all, or to one expert (then with a first dimension of 1)."""
        part = slice(None) if expert is None else slice(expert, expert + 1)
        a, b = (self.a, self.b) if expert is None else (self.a[part], self.b[part])
        left, right = (a.mT, b.mT) if self.is_transposed else (b, a)
        return (left @ right).mul_(self.scaling)

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The sum, in place."""
        left, right = (self.a.mT, self.b.mT) if self.is_transposed else (self.b, self.a)
        if weight.ndim == 2:
            return weight.addmm_(left, right, alpha=self.scaling)
        for expert in range(len(weight)):
            weight[expert].addmm_(left[expert], right[expert], alpha=self.scaling)
        return weight

    @property
    def is_zero(self) -> bool:
        """Whether one of the factors is."""
        return not (self.a.any() and self.b.any())


@dataclass(frozen=True)
class Directed(Change):
    """DoRA: the sum has the trained norms, of its rows or (transposed, and of embeddings) of its columns."""

    added: Added
    magnitude: torch.Tensor
    of_columns: bool

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The sum with its norms."""
        weight = self.added.apply(weight)
        dim = 0 if self.of_columns else 1
        return weight.mul_(self.magnitude.reshape(-1).unsqueeze(dim) / torch.linalg.norm(weight, dim=dim, keepdim=True))


@dataclass(frozen=True)
class Replaced(Change):
    """The parameter is another one."""

    tensor: torch.Tensor

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The trained one."""
        return self.tensor.float()

    @property
    def is_zero(self) -> bool:
        """It may be as it was."""
        return True


@dataclass(frozen=True)
class Rows(Change):
    """Some rows are other ones."""

    indices: torch.Tensor
    rows: torch.Tensor

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight with the trained rows."""
        return weight.index_copy_(0, self.indices, self.rows.float())

    @property
    def is_zero(self) -> bool:
        """They may be as they were."""
        return True


@dataclass
class _Found:
    """The changes so far, and which tensors of the adapter they have used."""

    changes: dict[str, Change] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)

    def add(self, name: str, change: Change, *tensors: torch.Tensor) -> None:
        if name in self.changes:
            raise UnknownAdapterError(f"{name} has two adapters")
        self.changes[name] = change
        self.used |= {id(tensor) for tensor in tensors}


def is_loftq(folder: Path) -> bool:
    """Whether an adapter began with what quantization to 4 bits takes from the weights, so that it belongs onto these."""
    return bool(read_json(folder / ADAPTER_CONFIG, str(folder)).get("loftq_config"))


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The config and the tensors of an adapter, in float32.

    Raises:
        ModelError: it can't be read, is no LoRA, or holds numbers that are not finite.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        tensors = {name: tensor.float() for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{folder}: this adapter can't be read ({first_line(error)}). Copy or download it again") from None
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder}: its adapter is {config.get('peft_type')}, and only LoRA can be merged")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"{folder}: {name} holds numbers that are not finite. Training has failed; use an earlier checkpoint"
            )
    return config, tensors


def changes_of(folder: Path, model: "PreTrainedModel") -> dict[str, Change]:
    """What an adapter does to each parameter of its base.

    Args:
        folder: of the adapter.
        model: the base without data (on torch's meta device), with the vocabulary of the adapter. It gets the adapter.

    Returns:
        By the parameter's name in the base.

    Raises:
        ModelError: a tensor of the adapter has no place in the model, or the other way round.
        LaunchError: peft is not installed.
        UnknownAdapterError: it has a part that only PEFT can merge.
    """
    try:
        from peft import LoraConfig, PeftModel
        from peft.utils import set_peft_model_state_dict
    except ImportError:
        raise LaunchError(f"{folder} is an adapter, which needs peft. Type pip install peft") from None
    _, tensors = read_adapter(folder)
    config: Any = LoraConfig.from_pretrained(str(folder))
    if str(config.init_lora_weights).startswith(_OF_WEIGHTS):
        raise UnknownAdapterError(f"init_lora_weights={config.init_lora_weights} changes the base")
    modules, ours = {id(module): name for name, module in model.named_modules()}, dict(model.named_modules())
    loaded: dict[str, torch.Tensor] = {}

    def load(state: dict[str, torch.Tensor], strict: bool = True, assign: bool = False) -> Any:
        loaded.update(state)
        return type(adapted).load_state_dict(adapted, state, strict=False, assign=True)

    try:
        adapted: Any = PeftModel(model, config, adapter_name=NAME, low_cpu_mem_usage=True)
        vars(adapted)["load_state_dict"] = load  # PEFT would move what it has loaded to the device of the base
        result: Any = set_peft_model_state_dict(adapted, tensors, adapter_name=NAME)
    except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"{folder}: this adapter does not fit its base: {_one_line(error)}") from None
    if result.unexpected_keys:
        raise ModelError(f"{folder}: {result.unexpected_keys[0]} has no place in the base, so it can't be merged")
    found = _Found()
    for module in adapted.modules():
        _look_at(module, modules, found)
    _biases(ours, found)
    if getattr(config, "ensure_weight_tying", False):
        _tie(ours, found)
    held = {id(tensor): name for name, tensor in _held(adapted).items()}
    if left := [name for number, name in held.items() if number not in found.used]:
        raise UnknownAdapterError(f"{left[0]} is of a kind that is not known here")
    return found.changes


def _held(adapted: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters that hold data: the base has none."""
    return {name: parameter for name, parameter in adapted.named_parameters() if not parameter.is_meta}


def _look_at(module: Any, modules: Mapping[int, str], found: _Found) -> None:
    """Note what a module of PEFT does to the one that it wraps."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(module, LoraLayer):
        _lora(module, modules, found)
    elif isinstance(module, TrainableTokensWrapper):
        layer, name = module.token_adapter, modules[id(module.original_module)]
        rows = layer.trainable_tokens_delta[NAME]
        _has_data(rows, f"{name}.trainable_tokens_delta")
        found.add(f"{name}.weight", Rows(torch.tensor(layer.token_indices[NAME]), rows.detach()), rows)
    elif isinstance(module, ModulesToSaveWrapper):
        name = modules[id(module.original_module)]
        for inner, parameter in module.modules_to_save[NAME].named_parameters():
            if not parameter.is_meta:
                found.add(f"{name}.{inner}", Replaced(parameter.detach()), parameter)
    elif isinstance(module, AuxiliaryTrainingWrapper):
        raise UnknownAdapterError(f"{type(module).__name__} is not known here")


def _lora(layer: Any, modules: Mapping[int, str], found: _Found) -> None:
    import peft.tuners.lora as peft_lora
    from transformers.pytorch_utils import Conv1D

    lora: Any = peft_lora  # its types name no attributes
    base = layer.get_base_layer()
    name = modules[id(base)]
    if any(getattr(layer, "lora_bias", {}).values()):
        raise UnknownAdapterError(f"{name} has a bias in its adapter")
    if isinstance(layer, lora.layer.Embedding):
        a, b, parameter = layer.lora_embedding_A[NAME], layer.lora_embedding_B[NAME], "weight"
        change = Added(a.detach(), b.detach(), layer.scaling[NAME], is_transposed=True)
    elif type(layer).__name__ == "ParamWrapper":
        a, b, parameter = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, layer.parameter_name
        change = _of_experts(layer, a, b)
    elif isinstance(layer, lora.layer.Linear) and isinstance(base, torch.nn.Linear | Conv1D):
        a, b, parameter = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, "weight"
        change = Added(a.detach(), b.detach(), layer.scaling[NAME], layer.fan_in_fan_out)
    else:
        raise UnknownAdapterError(f"{name} is {type(base).__name__}")
    for side, tensor in (("A", a), ("B", b)):
        _has_data(tensor, f"{name}.{parameter} (lora_{side})")
    variants = getattr(layer, "lora_variant", {})
    if NAME not in variants:
        if layer.use_dora.get(NAME):
            raise UnknownAdapterError(f"{name} has a DoRA of another kind")
        found.add(f"{name}.{parameter}", change, a, b)
        return
    if not layer.use_dora.get(NAME):
        raise UnknownAdapterError(f"{name} has a {type(variants[NAME]).__name__}")
    magnitude = layer.lora_magnitude_vector[NAME].weight
    _has_data(magnitude, f"{name}.lora_magnitude_vector")
    directed = Directed(change, magnitude.detach(), change.is_transposed)
    found.add(f"{name}.{parameter}", directed, a, b, magnitude)


def _of_experts(layer: Any, a: torch.Tensor, b: torch.Tensor) -> Added:
    """The adapter of a tensor of all experts.

    PEFT (`ParamWrapper.get_delta_weight`) stores A as (experts * r, in) with the experts outside, and B as (out, r * experts)
    with the experts inside. Which dimension of the tensor is `in` depends on its release.
    """
    parameter, number = layer.get_param(), layer.num_experts
    if number == 1:
        change = Added(a.detach(), b.detach(), layer.scaling[NAME])
        shape = (len(b), a.shape[1])
        if tuple(parameter.shape) != shape:
            raise UnknownAdapterError(f"{layer.parameter_name} is {list(parameter.shape)}")
        return change
    factors_a = a.detach().reshape(number, -1, a.shape[-1])
    factors_b = b.detach().reshape(len(b), -1, number).permute(2, 0, 1)
    is_swapped = getattr(layer, "_did_swap_in_out_features", False)
    inner, outer = (a.shape[-1], len(b)) if not is_swapped else (len(b), a.shape[-1])
    if tuple(parameter.shape) != (number, inner, outer):
        raise UnknownAdapterError(f"{layer.parameter_name} is {list(parameter.shape)}")
    return Added(factors_a, factors_b, layer.scaling[NAME], is_transposed=not is_swapped)


def _biases(modules: Mapping[str, torch.nn.Module], found: _Found) -> None:
    """Parameters of the base itself that the adapter's file had: biases."""
    for name, module in modules.items():
        for inner, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta and id(parameter) not in found.used:
                found.add(f"{name}.{inner}" if name else inner, Replaced(parameter.detach()), parameter)


def _tie(modules: Mapping[str, torch.nn.Module], found: _Found) -> None:
    """Let weights that PEFT tied in training change alike, though the file may have one of them only."""
    whole = {name: change for name, change in found.changes.items() if isinstance(change, Replaced)}
    for name, change in whole.items():
        weight = _parameter(modules, name)
        for other, module in modules.items():
            for inner, parameter in module._parameters.items():
                if parameter is None or parameter is not weight:
                    continue
                twin = found.changes.setdefault(f"{other}.{inner}", change)
                if not (isinstance(twin, Replaced) and torch.equal(twin.tensor, change.tensor)):
                    raise UnknownAdapterError(f"{name} and {other}.{inner} were trained as one weight, and it holds two")


def _parameter(modules: Mapping[str, torch.nn.Module], name: str) -> torch.Tensor | None:
    module, _, inner = name.rpartition(".")
    return modules[module]._parameters.get(inner)


def _has_data(tensor: torch.Tensor, name: str) -> None:
    if tensor.is_meta:
        raise ModelError(f"the adapter has no weights for {name}, though its config names it. Copy or download it again")


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else first_line(error)
