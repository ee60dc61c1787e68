"""GPU optimizations of a run: which ones it uses, and why. Each is tried on the model itself before it stays on."""

from dataclasses import dataclass

import torch

from hub.config.option import AUTO
from hub.models.patches import ModelPatches
from hub.models.structure import base_of, output_layer, text_config
from hub.run import ASKED_FOR
from hub.system.answers import measured
from hub.train.batch.collate import MicroBatch, pack
from hub.train.kernels import flash4
from hub.train.kernels.attention import Kernel, VarlenAttention, flash_attention_4
from hub.train.kernels.head import FusedHead, kernel_problem
from hub.train.layout.isolation import Trial, random_samples
from hub.train.losses.causal_lm import causal_lm_loss, takes_positions

WORTH_COMPILING = 5e15
"""Parameters times tokens of a run from which on compiling (half a minute or so) pays."""

HEAD_TOLERANCE = 2e-2
"""Largest relative difference of the fused loss that passes as rounding of the half-precision logits."""


@dataclass(frozen=True)
class Attention:
    """A run's attention, and whether it isolates packed samples."""

    name: str
    """`variable-length`, with the kernel's name if it is not torch's, or the model's own."""

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
    runs that are worth compiling it, or torch's.

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
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or own == "eager":
        because = "variable-length attention needs a GPU, half precision, and a model that is not set to eager attention"
        return Attention(own, because, *trial.can_pack())
    config = text_config(model)
    problem = flash4.problem(config, device, dtype) if long else "the run is too short to compile it"
    because = f"torch's; not FlashAttention 4: {problem or 'packed samples would see each other'}"
    candidates: list[tuple[str, str, Kernel | None]] = [("variable-length", because, None)]
    if not problem:
        because = "the fastest known for this GPU and heads of this size"
        candidates.insert(0, ("variable-length, FlashAttention 4", because, flash_attention_4()))
    for name, because, kernel in candidates:
        patch = VarlenAttention(model, name, kernel)
        with patches.temporarily(patch):
            packed, packed_because = trial.can_pack()
        if packed:
            patches.apply(patch)
            return Attention(name, because, packed, packed_because, variable_length=True)
    because = "packed samples would see each other with variable-length attention, or it lacks what the model needs"
    return Attention(own, because, *trial.can_pack())


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
    patch = FusedHead(head)

    def compare() -> float:
        plain_loss = _loss(model, batch, dtype)
        with patches.temporarily(patch):
            fused_loss = _loss(model, batch, dtype)
        return abs(fused_loss - plain_loss) / max(abs(plain_loss), 1e-6)

    difference = measured("equality", compare, float)
    if not difference <= HEAD_TOLERANCE:
        return False, f"the fused layer's loss differs (relative difference {difference:.0e})"
    patches.apply(patch)
    problem = kernel_problem(device.type)
    slower = f". Its loss is made of plain operations, which is slower: {problem}" if problem else ""
    return True, f"same loss as the plain layer's (relative difference {difference:.0e}){slower}"


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


@torch.no_grad()
def _loss(model: torch.nn.Module, batch: MicroBatch, dtype: torch.dtype) -> float:
    was_training = model.training
    model.eval()
    try:
        with torch.autocast(batch.input_ids.device.type, dtype, enabled=dtype != torch.float32):
            return float(causal_lm_loss(model, batch))
    finally:
        model.train(was_training)
