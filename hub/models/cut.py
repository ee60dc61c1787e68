"""A model cut to its first layers: a small folder with the names, shapes, tokenizer and template of the whole one."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hub.errors import ModelError

_LAYER = re.compile(r"(?P<stack>.*?\b(?:layers|h|blocks|block|layer)\.)(?P<number>\d+)\.")
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_NO_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", ".*", "original")


def cut_model(folder: Path, out: Path, num_layers: int) -> int:
    """Copy a model folder with its first layers only.

    Args:
        folder: a model as transformers stores it, in safetensors files.
        out: the folder that is made.
        num_layers: layers that are kept of the text model.

    Returns:
        The number of layers of the whole model. 0: it is not known, and all of it was copied.

    Raises:
        ModelError: the folder can't be read.
    """
    total = copy_cut(folder, out, num_layers)
    keep = keeps_layers(list(_names(folder)), total, num_layers)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys() if keep(name)}  # noqa: SIM118 - no mapping
        if tensors:
            save_file(tensors, out / file.name, {"format": "pt"})
    _write_index(out)
    return total


def copy_cut(folder: Path, out: Path, num_layers: int) -> int:
    """Copy a model folder without its weights, with a config of fewer layers. See `cut_model`."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns(*_NO_WEIGHTS))
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: config.json can't be read ({error})") from None
    total = _cut_config(config, num_layers)
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return total


def cut_adapter(folder: Path, out: Path, total: int, num_layers: int, seed: int = 0) -> None:
    """Copy an adapter folder with its first layers only, and let what is zero in it, such as B of LoRA, be random.

    Args:
        folder: an adapter as peft stores it.
        out: the folder that is made.
        total: layers of the whole model.
        num_layers: layers that are kept.
        seed: of the random numbers.
    """
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"))
    file = folder / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(seed)
    with safe_open(file, "pt") as stored:
        keep = keeps_layers(list(stored.keys()), total, num_layers)
        tensors = {name: stored.get_tensor(name) for name in stored.keys() if keep(name)}  # noqa: SIM118 - no mapping
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.any():
            noise = torch.randn(tensor.shape, generator=generator) * tensor.shape[-1] ** -0.5
            tensors[name] = noise.to(tensor.dtype)
    save_file(tensors, out / file.name, {"format": "pt"})


def keeps_layers(names: list[str], total: int, num_layers: int) -> Callable[[str], bool]:
    """A function that says whether a tensor stays: layers of other stacks, such as a vision tower's, all stay."""
    highest: dict[str, int] = {}
    for name in names:
        if found := _LAYER.match(name):
            highest[found["stack"]] = max(highest.get(found["stack"], 0), int(found["number"]))
    # An adapter may leave out the last layers.
    stacks = {stack for stack, number in highest.items() if total and num_layers <= number < total}

    def keep(name: str) -> bool:
        found = _LAYER.match(name)
        return found is None or found["stack"] not in stacks or int(found["number"]) < num_layers

    return keep


def _cut_config(config: dict[str, Any], num_layers: int) -> int:
    """Let a config have fewer layers, and lists with an entry for each layer fewer entries. Returns the number before."""
    text = config.get("text_config", config)
    name = next((name for name in _COUNTS if isinstance(text.get(name), int)), None)
    if name is None:
        return 0
    total = int(text[name])
    text[name] = min(num_layers, total)
    for key, value in text.items():
        if isinstance(value, list) and len(value) == total and total > num_layers:
            text[key] = value[:num_layers]
    return total


def _names(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            yield from stored.keys()


def _write_index(out: Path) -> None:
    """Write the index of several files anew."""
    files = sorted(out.glob("*.safetensors"))
    if len(files) < 2:
        for file in files:
            file.rename(out / "model.safetensors")
        return
    places: dict[str, str] = {}
    size = 0
    for file in files:
        with safe_open(file, "pt") as stored:
            places |= dict.fromkeys(stored.keys(), file.name)
        size += file.stat().st_size
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (out / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
