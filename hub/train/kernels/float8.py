"""Products in fp8 with a scale for each row of both matrices, for the layers of `algo.precision=fp8`.

Each row is quantized by its own largest magnitude, since activations differ far more between tokens than within one. The
algorithm decides about the weights: frozen or trained.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hub.config.schema import FP8_HINT, FP8_NEEDS
from hub.errors import ConfigError
from hub.run import ASKED_FOR, Run
from hub.train.kernels.assumed import is_assumed

LARGEST = 439.0
"""A row's largest magnitude in fp8. float8_e4m3fn, which has 3 bits of mantissa and no infinity (arXiv 2209.05433), goes to
448. But a weight from a bfloat16 file, divided by another and multiplied by 448, lies halfway between two fp8 numbers one time
in 200: the smallest change by training then moves the weight in use by a whole fp8 step. Times a prime above 255 none does,
since both have 8 bits."""

SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""Scale of a row of zeros. Gradients of single tokens are tiny, so a larger number would lose them."""

MULTIPLE = 16
"""Both sizes of a weight must be multiples of it (torch._scaled_mm)."""


def scales_of(rows: torch.Tensor) -> torch.Tensor:
    """Return the scale of each row: its largest magnitude over `LARGEST`. A row with NaN has the scale NaN.

    Args:
        rows: (n, k).

    Returns:
        (n, 1) float32.
    """
    scales = rows.float().abs().amax(1, keepdim=True) / LARGEST
    # Not clamp: beside a minimum or maximum that keeps NaN, Triton may write transposed fp8 wrongly (triton-lang/triton#11111).
    return torch.where(scales < SMALLEST_SCALE, SMALLEST_SCALE, scales)


def codes_of(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the rows divided by their scales, (n, 1), as (n, k) float8_e4m3fn."""
    return (rows.float() / scales).to(torch.float8_e4m3fn).contiguous()


def to_fp8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize rows to fp8, each divided by its own scale. Plain torch, so that a compiler makes it one kernel.

    The relative error of an element is at most 2^-4; below 2^-6 scales the error is at most 2^-10 scales (rounding to nearest).

    Args:
        rows: (n, k).

    Returns:
        (n, k) float8_e4m3fn, and (n, 1) float32: their product is the input. A row with NaN or infinity is NaN.
    """
    scales = scales_of(rows)
    return codes_of(rows, scales), scales


def product(a: torch.Tensor, b: torch.Tensor, a_scales: torch.Tensor, b_scales: torch.Tensor) -> torch.Tensor:
    """Compute a b^T of two fp8 matrices whose rows have scales.

    Args:
        a: (t, k) float8_e4m3fn.
        b: (n, k) float8_e4m3fn.
        a_scales: (t, 1) float32.
        b_scales: (n,) float32.

    Returns:
        (t, n) bfloat16. Without a GPU the sums are exact before rounding: a reference for tests.
    """
    if is_assumed():
        return a.new_empty((a.shape[0], b.shape[0]), dtype=torch.bfloat16)
    if a.is_cuda:
        scales = {"scale_a": a_scales, "scale_b": b_scales[None]}
        return torch._scaled_mm(a, b.t(), **scales, out_dtype=torch.bfloat16, use_fast_accum=True)
    return (a.double() @ b.double().t() * a_scales * b_scales).bfloat16()


def input_gradient(gradient: torch.Tensor, weight_t: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Compute the gradient of x in y = x W^T, with the same fp8 weights as in the forward pass.

    Its sum runs over the output rows, whose scales can't be factored out: the gradient of y is multiplied by them first.

    Args:
        gradient: (t, out) of y.
        weight_t: (in, out) float8_e4m3fn: W's codes, transposed.
        scales: (out,) float32, of W's rows.

    Returns:
        (t, in) bfloat16.
    """
    rows, row_scales = to_fp8(gradient.float() * scales)
    return product(rows, weight_t, row_scales, scales.new_ones(weight_t.shape[0]))


def replace_layers(
    model: nn.Module,
    head: nn.Module | None,
    is_meant: Callable[[nn.Module], bool],
    make: Callable[[nn.Linear], nn.Module],
) -> tuple[list[str], list[str]]:
    """Replace linear layers by those of `algo.precision=fp8`, one after the other.

    Args:
        model: that owns the layers.
        head: its output layer, which stays.
        is_meant: whether a linear layer (GPT-2's Conv1D too) should be in fp8.
        make: makes the new layer.

    Returns:
        Names of the layers that are in fp8 now, and of those that should be but can't.

    Raises:
        ConfigError: none could be replaced.
    """

    def is_asked(layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear | Conv1D) and layer is not head and is_meant(layer)

    # Names only: a list of the layers would keep their weights until the last one is replaced.
    names = [name for name, layer in model.named_modules() if is_asked(layer)]
    done: list[str] = []
    for name in names:
        parent, _, last = name.rpartition(".")
        layer = model.get_submodule(name)
        if type(layer) is nn.Linear and not any(size % MULTIPLE for size in layer.weight.shape):
            setattr(model.get_submodule(parent), last, make(layer))
            done.append(name)
    if not done:
        raise ConfigError(
            f"algo.precision=fp8: none of the model's {len(names)} linear layers can be held in fp8, which takes plain linear "
            f"layers whose sizes are multiples of {MULTIPLE}. {FP8_HINT}"
        )
    return done, [name for name in names if name not in set(done)]


def report_layers(run: Run, done: list[str], left: list[str]) -> None:
    """Log which layers are in fp8 and which are not, and write it to plan.json."""
    run.write_plan(precision="fp8", precision_because=ASKED_FOR, fp8_layers=len(done), fp8_layers_left_out=len(left))
    run.say(f"{len(done)} linear layers are in fp8: {_kinds(done)}. The output layer and embeddings are not")
    if left:
        run.say(f"{len(left)} can't be (sizes that are no multiples of {MULTIPLE}, or other layers): {_kinds(left)}")


def _kinds(names: list[str]) -> str:
    own = (name.removesuffix(".base_layer") for name in names)  # as PEFT calls a layer inside its own
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in own))


def check_gpu() -> None:
    """Check that this machine's GPUs have fp8 products with a scale for each row.

    Raises:
        ConfigError: one does not, or there is no GPU.
    """
    if not torch.cuda.is_available() or torch.version.hip:
        raise ConfigError(f"{FP8_NEEDS}, and there is none here. {FP8_HINT}")
    for number in range(torch.cuda.device_count()):
        if torch.cuda.get_device_capability(number)[0] < 9:
            raise ConfigError(f"{FP8_NEEDS}; this one is older: {torch.cuda.get_device_name(number)}. {FP8_HINT}")
