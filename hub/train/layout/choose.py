"""GPU optimizations of a run: which ones it uses, and why. Each is tried on the model itself before it stays on."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from hub.config.option import AUTO
from hub.data.samples.sample import random_samples
from hub.models.patches import ModelPatches
from hub.models.structure import base_of, output_layer, text_config, waits_for_others
from hub.parallel.group import max_over_ranks
from hub.run import ASKED_FOR
from hub.system.answers import is_known, measured
from hub.system.memory import is_out_of_memory
from hub.train.attempts import twice
from hub.train.batch.collate import MicroBatch, pack
from hub.train.kernels import flash4
from hub.train.kernels.attention import Kernel, VarlenAttention, flash_attention_4
from hub.train.kernels.flex import FlexAttention, observed
from hub.train.kernels.flex_kernel import problem as flex_problem
from hub.train.kernels.head import FusedHead, kernel_problem
from hub.train.kernels.logit_map import AS_THEY_ARE, LogitMap, measured_map
from hub.train.layout.isolation import Trial
from hub.train.losses.causal_lm import causal_lm_loss, model_inputs, takes_positions

WORTH_COMPILING = 5e15
"""Parameters times tokens of a run from which on compiling (half a minute or so) pays."""

HEAD_TOLERANCE = 2e-2
"""Largest relative difference of the fused loss that passes as rounding of the half-precision logits."""


@dataclass(frozen=True)
class Attention:
    """A run's attention, and whether it isolates packed samples."""

    name: str
    """`variable-length`, with the kernel's name if it is not torch's, `FlexAttention`, or the model's own."""

    because: str
    packed: bool
    """Whether several samples are packed into a row."""

    packed_because: str
    variable_length: bool = False
    """Whether the work on a packed row grows with each sample's own length, not with the row's."""


def choose_attention(
    patches: ModelPatches,
    model: torch.nn.Module,
    vocab_size: int,
    device: torch.device,
    dtype: torch.dtype,
    long: bool = False,
    most_tokens: int = 0,
) -> Attention:
    """Choose the attention of a run, turn it on, and find out whether samples can be packed with it.

    On a GPU in half precision it is variable-length attention if the model isolates packed samples with it: FlashAttention 4 in
    runs that are worth compiling it, or torch's. If they lack what the model needs, it is FlexAttention, on the same condition.

    Args:
        patches: the owner of the model's patches. The decision goes to it as well.
        model: a causal language model.
        vocab_size: of the model.
        device: of the model.
        dtype: of the arithmetic.
        long: whether the run is worth compiling FlashAttention 4.
        most_tokens: of a packed row.
    """
    own = str(getattr(base_of(model).config, "_attn_implementation", None))
    trial = Trial(model, vocab_size, device, dtype, most_tokens=most_tokens)
    attention = _choose_attention(patches, model, own, trial, device, dtype, long)
    patches.decide("attention", own, attention.because)
    return attention


def _choose_attention(
    patches: ModelPatches,
    model: torch.nn.Module,
    own: str,
    trial: Trial,
    device: torch.device,
    dtype: torch.dtype,
    long: bool,
) -> Attention:
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        because = "variable-length attention and FlexAttention need a GPU and half precision"
        return Attention(own, because, *trial.can_pack())
    refused = "the model is made for eager attention"  # a soft cap, sinks: the kernels lack it
    for name, because, kernel in [] if own == "eager" else _varlen_kernels(model, device, dtype, long):
        patch = VarlenAttention(model, name, kernel)
        with patches.temporarily(patch):
            packed, packed_because = trial.can_pack()
        if packed:
            patches.apply(patch)
            return Attention(name, because, packed, packed_because, variable_length=True)
        refused = packed_because
    problem, packed_because = use_flex(patches, model, trial, device, dtype)
    if not problem:
        because = f"torch's FlexAttention; not variable-length attention: {refused}"
        return Attention("FlexAttention", because, True, packed_because, variable_length=True)
    because = f"not variable-length attention: {refused}; not FlexAttention: {problem}"
    return Attention(own, because, *trial.can_pack())


def use_flex(
    patches: ModelPatches, model: torch.nn.Module, trial: Trial, device: torch.device, dtype: torch.dtype
) -> tuple[str, str]:
    """Turn FlexAttention on, if packed samples are isolated by it and have what the model's own attention gives them alone.

    All ranks must call it.

    Args:
        patches: the owner of the model's patches.
        model: a causal language model.
        trial: of packing, with the model's own attention.
        device: of the model.
        dtype: of the arithmetic.

    Returns:
        Why it is not on, empty if it is; and why samples can be packed, or not.
    """
    flex = FlexAttention(model)
    with patches.temporarily(flex), observed() as kinds:
        # Its rounding differs from eager attention's, which sends some tokens to other experts. So each has its own measure.
        own_trial = trial.again()
        packed, packed_because = own_trial.can_pack()
        if packed and not is_known("equality"):
            own_trial.run_once()  # what the model asks for shows in a pass, and a trial whose outcome is known has none

    def compare() -> str:
        apart = trial.difference(own_trial)
        return flex_problem(kinds, device, dtype) if apart.passes else f"samples alone have something else by it ({apart})"

    problem = measured("equality", compare, str) if packed else packed_because
    if max_over_ranks(float(bool(problem))) > 0:
        return problem or "another process can not use it", packed_because
    patches.apply(flex)
    return "", packed_because


def _varlen_kernels(
    model: torch.nn.Module, device: torch.device, dtype: torch.dtype, long: bool
) -> list[tuple[str, str, Kernel | None]]:
    """The variable-length kernels to try, the fastest first: name, why it is this one, and the kernel (None: torch's)."""
    problem = flash4.problem(text_config(model), device, dtype) if long else "the run is too short to compile it"
    because = f"torch's; not FlashAttention 4: {problem or 'packed samples would see each other'}"
    torchs: tuple[str, str, Kernel | None] = ("variable-length", because, None)
    if problem:
        return [torchs]
    because = "the fastest known for this GPU and heads of this size"
    return [("variable-length, FlashAttention 4", because, flash_attention_4()), torchs]


@dataclass(frozen=True)
class Compared:
    """The fused output layer beside the plain one."""

    problem: str
    """Why it can't be used. Empty: it can."""

    logit_map: LogitMap
    difference: float
    """Of the losses, relative."""

    def write(self) -> list[Any]:
        """As JSON holds it."""
        return [self.problem, self.logit_map.scale, self.logit_map.cap, self.difference]

    @classmethod
    def read(cls, held: list[Any]) -> "Compared":
        """What `write` has written."""
        problem, scale, cap, difference = held
        return cls(str(problem), LogitMap(float(scale), None if cap is None else float(cap)), float(difference))


def choose_head(
    patches: ModelPatches, model: torch.nn.Module, vocab_size: int, device: torch.device, dtype: torch.dtype, packed: bool
) -> bool:
    """Decide whether the output layer is fused with its loss, and turn it on. The decision goes to the patches' owner.

    Args:
        patches: the owner of the model's patches.
        model: a causal language model.
        vocab_size: of the model.
        device: of the model.
        dtype: of the arithmetic.
        packed: whether samples are packed.
    """
    fused, because = _try_fused_head(patches, model, vocab_size, device, dtype, packed)
    patches.decide("fused_head", False, because)
    return fused


def _try_fused_head(
    patches: ModelPatches, model: torch.nn.Module, vocab_size: int, device: torch.device, dtype: torch.dtype, packed: bool
) -> tuple[bool, str]:
    if device.type != "cuda":
        return False, "it runs on a GPU only"
    head = output_layer(model)
    if not packed or not takes_positions(model) or head is None:
        return False, "samples are padded, or the model's output layer is of another kind"
    batch = pack(random_samples(vocab_size, (19, 40), 0)).to(device)

    def logits() -> torch.Tensor:
        with _trying(model, device, dtype):
            made: torch.Tensor = model(**model_inputs(model, batch)).logits
            return made

    def compare() -> tuple[LogitMap | None, float]:
        logit_map = measured_map(patches, head, logits)
        if logit_map is None:
            return None, math.inf
        plain_loss = _loss(model, batch, dtype)
        with patches.temporarily(FusedHead(head, model, logit_map)):
            fused_loss = _loss(model, batch, dtype)
        return logit_map, abs(fused_loss - plain_loss) / max(abs(plain_loss), 1e-6)

    def compared() -> Compared:
        logit_map, difference, short = None, math.inf, False
        try:
            logit_map, difference = twice(model, compare)
        except Exception as error:
            if not is_out_of_memory(error) or waits_for_others(model):
                raise
            short = True
        problem = ""
        # On every rank the same decision.
        if max_over_ranks(float(short)):
            problem = "memory is too short to compare it with the plain layer"
        elif max_over_ranks(float(logit_map is None)):
            problem = "the model changes its output layer's result by something else than a scale and a soft cap"
        elif max_over_ranks(float(not difference <= HEAD_TOLERANCE)):
            problem = f"the fused layer's loss differs (relative difference {difference:.0e})"
        return Compared(problem, logit_map or AS_THEY_ARE, difference)

    found = measured("equality", compared, Compared.read, Compared.write)
    if found.problem:
        return False, found.problem
    patches.apply(FusedHead(head, model, found.logit_map))
    problem = kernel_problem(device.type)
    slower = f". Its loss is made of plain operations, which is slower: {problem}" if problem else ""
    mapped = "" if found.logit_map.is_identity else f". Logits are {found.logit_map}, as measured"
    return True, f"same loss as the plain layer's (relative difference {found.difference:.0e}){mapped}{slower}"


def choose_compile(requested: str, num_parameters: int, num_tokens: float, device: torch.device) -> tuple[bool, str]:
    """Decide whether the layers are compiled.

    Args:
        requested: auto, layers or none.
        num_parameters: of the model.
        num_tokens: of the whole training.
        device: of the training.

    Returns:
        The decision, and the reason.
    """
    if requested != AUTO:
        return requested == "layers", ASKED_FOR
    if device.type != "cuda":
        return False, "it pays on a GPU only"
    work = num_parameters * num_tokens
    return work >= WORTH_COMPILING, f"parameters times tokens is {work:.0e}, compiling pays from {WORTH_COMPILING:.0e} on"


def _loss(model: torch.nn.Module, batch: MicroBatch, dtype: torch.dtype) -> float:
    with _trying(model, batch.input_ids.device, dtype):
        return float(causal_lm_loss(model, batch))


@contextmanager
def _trying(model: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Run the model as a trial: without gradient and dropout."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            yield
    finally:
        model.train(was_training)
