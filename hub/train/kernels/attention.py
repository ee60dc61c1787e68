"""Attention over a packed row by a variable-length kernel: no mask, and the work grows with each sample's own length."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import cast

import torch
from transformers import AttentionInterface, PretrainedConfig

from hub.models.patches import Edits, Patch, patches_of
from hub.models.structure import base_of
from hub.train.batch.collate import MicroBatch
from hub.train.kernels.assumed import is_assumed

VARLEN = "hub_varlen"
"""Name of the attention by torch's kernel in transformers' registry."""


class UnsuitedError(Exception):
    """A model needs what variable-length attention does not support. It keeps its own attention then."""


@dataclass(frozen=True)
class Kernel:
    """A variable-length kernel and its keywords, which differ between versions of torch."""

    attend: Callable[..., torch.Tensor]
    """Called like `torch.nn.attention.varlen.varlen_attn`."""

    options: frozenset[str]
    """Names of its keywords."""

    fewer_keys: bool = False
    """Whether it takes fewer key heads than query heads, though it has no keyword for it."""

    name: str = VARLEN
    """Name of its attention in transformers' registry. Must not contain `flash`: transformers would make masks for it."""


def flash_attention_4() -> Kernel:
    """Return the kernel of the package flash-attn-4, which must be installed."""
    from hub.train.kernels.flash4 import attend

    return Kernel(attend, frozenset(inspect.signature(attend).parameters), name=f"{VARLEN}_fa4")


def _attend_by_torch() -> Callable[..., torch.Tensor]:
    from torch.nn.attention.varlen import varlen_attn

    return cast(Callable[..., torch.Tensor], varlen_attn)  # it returns a tuple only if auxiliary results are asked for


@cache
def torch_kernel(device: torch.device) -> Kernel:
    """Return torch's own kernel."""
    attend = _attend_by_torch()
    options = frozenset(inspect.signature(attend).parameters)
    return Kernel(attend, options, "enable_gqa" not in options and device.type == "cuda" and _takes_fewer_keys(device))


@torch.enable_grad()
def _takes_fewer_keys(device: torch.device) -> bool:
    """Whether torch's kernel gives the same for key heads that two query heads share and for repeated key heads."""
    attend = _attend_by_torch()
    starts = torch.tensor([0, 5, 16], dtype=torch.int32, device=device)
    numbers = torch.linspace(-1, 1, 16 * 8 * 64, device=device).to(torch.bfloat16).view(16, 8, 64)

    def results(times: int) -> list[torch.Tensor]:
        parts = [part.clone().requires_grad_() for part in numbers.split((4, 2, 2), dim=1)]
        query, key, value = (part.repeat_interleave(times if i else 1, dim=1) for i, part in enumerate(parts))
        output = attend(query, key, value, starts, starts, 16, 16)
        return [output, *torch.autograd.grad(output.float().square().sum(), parts)]

    try:
        shared = results(1)
    except RuntimeError:
        return False
    return all(torch.allclose(one, other, rtol=2e-2, atol=2e-2) for one, other in zip(shared, results(2), strict=True))


def varlen_attention(
    kernel: Kernel,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_k: int | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention within each sample of a packed row, or within each of several rows.

    Rows may be padded on the right: no token sees a later one.

    Args:
        kernel: that computes it.
        module: the attention layer.
        query: (R, heads, T, head size).
        key: (R, key-value heads, T, head size).
        value: the same.
        attention_mask: None. The starts of the samples replace it.
        scaling: factor of the scores. None: one over the root of the head size.
        dropout: of the attention weights. Only 0 is supported.
        cu_seq_lens_q: (n + 1,) int32, the starts of the one row's samples, and the end of the last. None: each row is a sample.
        max_length_q: upper bound of the samples' lengths.
        sliding_window: number of tokens that a token sees, itself included.
        cu_seq_lens_k: the same of the keys, for samples with more keys than queries: these are the last ones. None: as many.
        max_length_k: upper bound of the numbers of keys.
        others: further keywords of some models. Those that change the result are refused.

    Returns:
        (R, T, heads, head size), and None.

    Raises:
        UnsuitedError: the model needs something that is not supported.
    """
    unknown = [name for name in ("softcap", "s_aux") if others.get(name) is not None]
    if unknown or dropout or attention_mask is not None or getattr(module, "is_causal", True) is False:
        raise UnsuitedError(f"variable-length attention without {', '.join(unknown) or 'masks and dropout'}")
    if kernel.name == VARLEN and value.shape[-1] != query.shape[-1]:  # DeepSeek's
        raise UnsuitedError("torch's variable-length attention with values of another size than queries")
    # The trial of packing is not compiled. In a compiled layer its number would make each layer a version of its own.
    if not torch.compiler.is_compiling() and not sliding_window and needs_mask(module):
        raise UnsuitedError("variable-length attention without a window or chunks that only a mask has")
    rows, _, length, _ = query.shape
    if cu_seq_lens_q is None or max_length_q is None:
        cu_seq_lens_q = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=query.device)
        max_length_q, cu_seq_lens_k = length, None
    if cu_seq_lens_k is None or max_length_k is None:
        cu_seq_lens_k, max_length_k = cu_seq_lens_q, max_length_q
    wanted = value.dtype
    if wanted == torch.float32 and torch.is_autocast_enabled(query.device.type):
        wanted = torch.get_autocast_dtype(query.device.type)
    query, key, value = (part.transpose(1, 2).flatten(0, 1).to(wanted) for part in (query, key, value))
    options: dict[str, object] = {}
    if "window_size" in kernel.options:
        options["window_size"] = (sliding_window - 1 if sliding_window else -1, 0)
    elif sliding_window:
        # Also if this row is shorter: rows of training will be longer than the one of the trial.
        raise UnsuitedError("sliding windows with this torch's variable-length attention")
    else:
        options["is_causal"] = True
    if scaling is not None and "scale" in kernel.options:
        options["scale"] = scaling
    elif scaling is not None:
        query = query * (scaling * query.shape[-1] ** 0.5)
    if "enable_gqa" in kernel.options:
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    elif query.shape[1] != key.shape[1] and not (kernel.fewer_keys or is_assumed()):  # a GPU's kernel takes fewer, untried
        groups = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    lengths = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
    return kernel.attend(query, key, value, *lengths, **options).unflatten(0, (rows, length)), None


def needs_mask(module: torch.nn.Module) -> bool:
    """Whether a layer that passes no window on sees fewer tokens than all earlier ones, by its mask alone.

    transformers makes such masks by `layer_types`, or for all layers by `sliding_window` in configs without (Phi-3.5-MoE), and
    chunks in Llama 4. A trial of packing does not show them, since they are longer than its samples.
    """
    config, number = getattr(module, "config", None), getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    if kinds and isinstance(number, int) and number < len(kinds):
        return kinds[number] in ("sliding_attention", "chunked_attention")
    return bool(getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None))


def sample_bounds(batch: MicroBatch) -> dict[str, object]:
    """Return where a packed row's samples begin, under the names that transformers passes on to an attention."""
    longest = 1 << (batch.longest - 1).bit_length()  # few different numbers, so that layers are not compiled again
    return {"cu_seq_lens_q": batch.starts, "cu_seq_lens_k": batch.starts, "max_length_q": longest, "max_length_k": longest}


class PackedAttention(Patch):
    """The model's attention is one of transformers' registry, which takes packed rows without a matrix of tokens x tokens.

    Args:
        model: a transformers model.
        registered: name of the attention in the registry.
        name: for plan.json.
    """

    def __init__(self, model: torch.nn.Module, registered: str, name: str) -> None:
        self._base, self._registered, self._name = base_of(model), registered, name

    def apply(self, edits: Edits) -> None:
        before = [(config, config._attn_implementation) for config in configs_of(self._base)]

        def undo() -> None:
            # A config sets those below it too, so theirs come after it.
            for config, name in before:
                config._attn_implementation = name

        edits.record(self._base, "attention", undo)
        for config, _ in before:
            config._attn_implementation = self._registered

    def report(self, plan: dict[str, object]) -> None:
        plan["attention"] = self._name


class VarlenAttention(PackedAttention):
    """The model's attention is the variable-length kernel.

    Args:
        model: a transformers model.
        name: for plan.json.
        kernel: None: torch's.
    """

    def __init__(self, model: torch.nn.Module, name: str = "variable-length", kernel: Kernel | None = None) -> None:
        super().__init__(model, VARLEN if kernel is None else kernel.name, name)
        self._kernel = kernel

    def apply(self, edits: Edits) -> None:
        kernel = self._kernel or torch_kernel(next(self._base.parameters()).device)
        # Without a mask registered under its name, transformers makes none, nor waits for the GPU to look for packed rows.
        AttentionInterface.register(self._registered, partial(varlen_attention, kernel))
        super().apply(edits)


def uses_varlen(model: torch.nn.Module) -> bool:
    """Whether the model's attention is the variable-length kernel."""
    return patches_of(model).find(VarlenAttention) is not None


def configs_of(base: torch.nn.Module) -> list[PretrainedConfig]:
    """Return the configs of a model's modules and the sub-configs of these: each once, one below another after it."""
    configs: dict[int, PretrainedConfig] = {}

    def add(config: object) -> None:
        if id(config) in configs or not isinstance(config, PretrainedConfig):
            return
        configs[id(config)] = config
        for name in getattr(config, "sub_configs", ()):
            add(getattr(config, name, None))

    for module in base.modules():
        add(getattr(module, "config", None))
    return list(configs.values())
