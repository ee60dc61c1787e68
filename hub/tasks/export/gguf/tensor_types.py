"""Which type each tensor of a quantized file gets, as llama.cpp chooses it.

A translation of llama.cpp's src/llama-quant.cpp (releases b10605 to v0.4.0): `tensor_allows_quantization`,
`llama_tensor_get_type_impl`, `tensor_type_fallback`, `tensor_requires_imatrix`. A test compares whole files with those of
llama.cpp's own function.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hub.errors import ModelError
from hub.tasks.export.gguf.container import Container, Tensor
from hub.tasks.export.gguf.kinds import BLOCKS, Kind
from hub.tasks.export.gguf.kinds import TensorType as T

_NEVER = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
]
_POSITIONS = ("position_embd.weight", "token_types.weight")
_FALLBACKS = {
    **dict.fromkeys((T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S, T.IQ4_XS), T.IQ4_NL),
    **dict.fromkeys((T.Q2_K, T.Q3_K, T.TQ1_0, T.TQ2_0), T.Q4_0),
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
}
_NOISE_WITHOUT_IMATRIX = (T.IQ3_XXS, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ1_M, T.IQ1_S)
_VERY_FEW_BITS = ("iq2_xxs", "iq2_xs", "iq1_s", "iq2_s", "iq2_m", "iq1_m")
_SEVENTY_BILLION = {"llama": 80, "deci": 80, "jais2": 68, "olmo": 80, "qwen2": 80}
_CATEGORIES = (
    ("attn_qkv.weight", "qkv"),
    ("attn_kv_b.weight", "kv_b"),
    ("attn_v.weight", "v"),
    ("attn_k.weight", "k"),
    ("attn_q.weight", "q"),
    ("attn_output.weight", "attention_output"),
    ("ffn_up", "up"),
    ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)


def _category(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "embedding"
    return next((category for part, category in _CATEGORIES if part in name), "other")


def num_dims(tensor: Tensor) -> int:
    """Dimensions as ggml counts them: those of length 1 at the end are none."""
    sizes = list(tensor.shape)
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return len(sizes)


def is_quantized_at_all(tensor: Tensor) -> bool:
    """Whether a tensor is a matrix of weights, which gets another type. All others stay as they are."""
    name = tensor.name
    if num_dims(tensor) < 2 or not name.endswith("weight") or name in _POSITIONS:
        return False
    return not any(part in name for part in _NEVER)


def needs_imatrix(tensor: Tensor, kind: Kind) -> bool:
    """Whether a tensor of a file of this kind is noise without an importance matrix.

    Args:
        tensor: with the type that it will have.
        kind: of the file.
    """
    if _category(tensor.name) in ("output", "embedding"):
        return False
    return tensor.type in _NOISE_WITHOUT_IMATRIX or (tensor.type == T.Q2_K and kind.name == "q2_k_s")


def choose_types(container: Container, tensors: Sequence[Tensor], kind: Kind, has_imatrix: bool) -> tuple[list[T], list[str]]:
    """The type of each tensor in a file of this kind, and the names of those that get another one because their rows don't fit.

    Args:
        container: metadata of the model.
        tensors: in llama.cpp's order: sorted by layer, then by name. The choice depends on it.
        kind: of the file.
        has_imatrix: whether there is an importance matrix. Some types depend on it.

    Raises:
        ModelError: a tensor of a model with experts names no layer.
    """
    model = _Model.of(container)
    attention_values = sum(_category(tensor.name) in ("v", "qkv", "kv_b") for tensor in tensors)
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    mix = _Mix(model, kind, has_imatrix, attention_values, tied)
    types, unfit = [], []
    for tensor in tensors:
        if not is_quantized_at_all(tensor):
            types.append(tensor.type)
        elif not kind.is_quantized:
            types.append(kind.tensor_type)
        else:
            chosen = mix.choose(tensor)
            types.append(_fitting(tensor, chosen))
            if types[-1] != chosen:
                unfit.append(tensor.name)
    return types, unfit


def _fitting(tensor: Tensor, chosen: T) -> T:
    """A type whose blocks fit into a row: the one chosen, or llama.cpp's next one. float16 fits always."""
    candidates = (chosen, _FALLBACKS.get(chosen, T.F16))
    return next((each for each in candidates if tensor.row % BLOCKS[each][0] == 0), T.F16)


@dataclass(frozen=True)
class _Model:
    """What the choice depends on."""

    architecture: str
    num_layers: int
    num_experts: int
    queries_per_key: int
    is_70b: bool

    @classmethod
    def of(cls, container: Container) -> "_Model":
        name = container.architecture

        def number(key: str, default: int) -> int:
            value: Any = container.value(f"{name}.{key}", default)
            return int(value[0] if isinstance(value, list) else value)

        layers, heads = number("block_count", 0), number("attention.head_count", 0)
        key_heads = number("attention.head_count_kv", heads)
        is_70b = layers - number("nextn_predict_layers", 0) == _SEVENTY_BILLION.get(name) and not (
            name == "llama" and heads == key_heads
        )
        return cls(name, layers, number("expert_count", 0), heads // key_heads if key_heads else 0, is_70b)


@dataclass
class _Mix:
    """The mix of types in a file. Tensors are asked for in order: some types depend on how many of a category came before."""

    model: _Model
    kind: Kind
    has_imatrix: bool
    num_values: int
    tied: bool
    came: dict[str, int] = field(default_factory=lambda: {"values": 0, "down": 0, "gate": 0, "up": 0})

    def choose(self, tensor: Tensor) -> T:
        """The type of the next tensor, before it is tried whether its rows fit."""
        category, kind = _category(tensor.name), self.kind
        if category == "output" or (self.tied and category == "embedding"):
            return self._output(tensor)
        if kind.name == "mxfp4_moe":
            return self._mxfp4(tensor, category)
        if category == "embedding":
            return self._embedding()
        if kind.name in _VERY_FEW_BITS:
            return self._very_few_bits(category)
        if category in ("v", "qkv", "kv_b"):
            return self._values()
        if category in ("k", "q"):
            return self._queries_and_keys(category)
        if category == "attention_output":
            return self._attention_output()
        if category == "down":
            return self._down(*self._layer("down", tensor.name))
        if category in ("gate", "up"):
            layer, layers = self._layer(category, tensor.name)
            inner = layers // 8 <= layer < 7 * layers // 8
            return T.IQ3_XXS if kind.name == "iq3_xs" and inner else kind.tensor_type
        return kind.tensor_type

    def _output(self, tensor: Tensor) -> T:
        chosen = self.kind.tensor_type
        fits = tensor.row % BLOCKS[chosen][0] == 0
        if self.kind.name == "mxfp4_moe" or self.model.architecture == "falcon" or not fits:
            return T.Q8_0
        if self.kind.name in (*_VERY_FEW_BITS, "iq3_xxs"):
            return T.Q5_K
        return chosen if chosen == T.Q8_0 else T.Q6_K

    def _mxfp4(self, tensor: Tensor, category: str) -> T:
        are_experts = len(tensor.shape) > 2 and tensor.shape[2] > 1
        if self.model.architecture == "bailingmoe3":
            are_experts &= category in ("up", "gate", "down")
        return T.MXFP4 if are_experts else T.Q8_0

    def _embedding(self) -> T:
        by_name = {
            **dict.fromkeys(("iq2_xxs", "iq2_xs", "iq1_s", "iq1_m"), T.Q2_K),
            **dict.fromkeys(("iq2_s", "iq2_m", "iq3_xxs"), T.IQ3_S),
            **dict.fromkeys(("tq1_0", "tq2_0"), T.Q4_K),
        }
        return by_name.get(self.kind.name, self.kind.tensor_type)

    def _very_few_bits(self, category: str) -> T:
        name, model, chosen = self.kind.name, self.model, self.kind.tensor_type
        more = T.IQ3_S if name in ("iq2_s", "iq2_m") else T.Q2_K
        if category in ("v", "qkv", "kv_b"):
            self.came["values"] += 1
            return T.Q4_K if model.queries_per_key >= 4 or model.num_experts >= 4 else more
        if category == "k" and model.num_experts == 8:
            return T.Q4_K
        if category == "down":
            before = self.came["down"]
            self.came["down"] += 1
            return more if before < model.num_layers // 8 else chosen
        if category == "attention_output":
            if model.num_experts == 8:
                return T.Q5_K
            return {"iq1_s": T.IQ2_XXS, "iq1_m": T.IQ2_XXS, "iq2_s": T.IQ3_S, "iq2_m": T.IQ3_S}.get(name, chosen)
        return chosen

    def _values(self) -> T:
        name, shared = self.kind.name, self.model.queries_per_key >= 4
        before = self.came["values"]
        self.came["values"] += 1
        chosen = self.kind.tensor_type
        if name == "q2_k":
            chosen = T.Q4_K if shared else T.Q3_K
        elif name == "iq3_xxs":
            chosen = T.Q4_K if shared else T.IQ3_XXS if self.has_imatrix else T.IQ3_S
        elif (name in ("q2_k_s", "iq3_xs", "iq3_s") and shared) or name == "iq3_m":
            chosen = T.Q4_K
        elif name == "q3_k_m":
            chosen = T.Q5_K if before < 2 else T.Q4_K
        elif name == "q3_k_l" or (name in ("iq4_nl", "iq4_xs") and shared) or (name == "q4_k_s" and before < 4):
            chosen = T.Q5_K
        elif name in ("q4_k_m", "q5_k_m") and _more_bits(before, self.num_values):
            chosen = T.Q6_K
        if self.model.is_70b and chosen in (T.Q3_K, T.Q4_K):
            chosen = T.Q5_K
        return T.Q8_0 if self.model.num_experts == 8 else chosen

    def _queries_and_keys(self, category: str) -> T:
        if category == "k" and self.model.num_experts == 8:
            return T.Q8_0
        return {"iq3_xs": T.IQ3_XXS, "iq3_xxs": T.IQ2_S}.get(self.kind.name, self.kind.tensor_type)

    def _attention_output(self) -> T:
        name, chosen = self.kind.name, self.kind.tensor_type
        if self.model.architecture == "falcon":
            return T.Q4_K if name == "q3_k_l" else chosen
        if self.model.num_experts == 8:
            few = ["q2_k", "iq3_xs", "iq3_xxs", "q3_k_s", "q3_k_m", "iq4_nl", "q4_k_s", "q4_k_m", "iq3_s", "iq3_m", "iq4_xs"]
            return T.Q5_K if name in few else chosen
        by_name = {"q2_k": T.Q3_K, "iq3_xxs": T.IQ3_S, "q3_k_m": T.Q4_K, "q3_k_l": T.Q5_K, "iq3_m": T.Q4_K}
        return by_name.get(name, chosen)

    def _down(self, layer: int, layers: int) -> T:
        name, chosen, falcon = self.kind.name, self.kind.tensor_type, self.model.architecture == "falcon"
        first, more = layer < layers // 8, _more_bits(layer, layers)
        if falcon and name in ("q3_k_m", "q3_k_l", "q4_k_m", "q4_k_s"):
            return _falcon_down(name, layer < layers // 16, more, chosen)
        by_name = {
            "q2_k": T.Q3_K,
            "q2_k_s": T.Q4_K if first else chosen,
            "q3_k_m": T.Q5_K if layer < layers // 16 else T.Q4_K,
            "iq3_m": T.Q4_K if first or (self.model.num_experts == 8 and more) else chosen,
            "q3_k_l": T.Q5_K,
            "q4_k_m": T.Q6_K if more else chosen,
            "q5_k_m": T.Q6_K if more else chosen,
            "q4_k_s": T.Q5_K if first else chosen,
        }
        if self.has_imatrix:
            by_name |= {"q4_0": T.Q4_1, "q5_0": T.Q5_1} if first else {}
        else:
            by_name["iq3_xxs"] = T.Q4_K if first else T.Q3_K
            by_name |= {"iq4_nl": T.Q5_K, "iq4_xs": T.Q5_K} if first else {}
        return by_name.get(name, chosen)

    def _layer(self, category: str, tensor: str) -> tuple[int, int]:
        """The layer of a tensor of an MLP, and the number of layers."""
        layer, layers = self.came[category], self.model.num_layers
        self.came[category] += 1
        if self.model.num_experts > 1:  # experts of a layer may be apart, so they can't be counted
            match = re.match(r"blk\.(\d+)\.", tensor)
            if match is None or int(match[1]) >= layers:
                raise ModelError(f"{tensor} is in none of the {layers} layers of the model, so its type can't be chosen")
            layer = int(match[1])
        return layer, layers


def _more_bits(layer: int, layers: int) -> bool:
    """Whether a layer gets more bits: the first and the last eighth, and each third one between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _falcon_down(name: str, is_first: bool, more: bool, chosen: T) -> T:
    if name == "q3_k_m":
        return T.Q5_K if is_first else T.Q4_K if more else T.Q3_K
    if name == "q4_k_m":
        return T.Q6_K if is_first else T.Q5_K if more else T.Q4_K
    return T.Q4_K if name == "q3_k_l" else chosen
