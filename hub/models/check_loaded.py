"""Whether a model has the numbers of the folder that it was loaded from, whoever loaded it."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor

from hub.errors import ModelError
from hub.models.loading_report import NAMED, weight_files
from hub.models.structure import base_of

ROWS = 2
"""Rows of each tensor that are compared, from its middle."""

TOLERANCE = 0.02
"""Largest root mean square difference that rounding to 16 bits explains, as a fraction of the numbers' own."""

_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def check_loaded(model: torch.nn.Module, folder: Path) -> int:
    """Compare a few rows of each tensor of a model with those in its folder. For a backend that loads its model itself.

    Tensors that are quantized, sharded, or stored under another name (such as experts that are fused when they are loaded) are
    left out. Takes seconds at most: only the rows are read.

    Args:
        model: the loaded one, with or without PEFT's adapters.
        folder: with safetensors files.

    Returns:
        How many tensors were compared.

    Raises:
        ModelError: numbers differ, so these weights are not those of the folder; or no tensor could be compared.
    """
    base = base_of(model)
    ours = {name.replace(".base_layer.", "."): weight for name, weight in base.named_parameters(remove_duplicate=False)}
    prefix = f"{base.base_model_prefix}."
    compared, different = 0, []
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dictionary
                known = [same for same in (name, prefix + name, name.removeprefix(prefix)) if same in ours]
                part = opened.get_slice(name)
                weight = ours[known[0]].detach() if known else None
                if weight is None or isinstance(weight, DTensor) or tuple(weight.shape) != tuple(part.get_shape()):
                    continue
                start = max(0, weight.shape[0] // 2 - 1) if weight.ndim else 0
                stored = part[start : start + ROWS] if weight.ndim else opened.get_tensor(name)
                if stored.dtype not in _PLAIN or weight.dtype not in _PLAIN or weight.is_meta:
                    continue
                loaded = (weight[start : start + ROWS] if weight.ndim else weight).to("cpu", torch.float32)
                compared += 1
                if not _rms(loaded - stored.float()) <= TOLERANCE * _rms(stored.float()):
                    different.append(known[0])
    if different:
        names = ", ".join(different[:NAMED]) + (", ..." if len(different) > NAMED else "")
        raise ModelError(f"{len(different)} of {compared} tensors of the loaded model are not those of {folder}: {names}")
    if not compared:
        raise ModelError(f"none of the tensors in {folder} is in the loaded model under its name, so it can't be checked")
    return compared


def _rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())
