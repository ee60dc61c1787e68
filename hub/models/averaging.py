"""The weighted average of whole models, in float32, one tensor at a time.

Averages of models that were trained from one start, "model soups": Wortsman et al. 2022, arXiv 2203.05482.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hub.errors import ConfigError, ModelError, first_line
from hub.models.loading_report import stored_tensors, weight_files
from hub.models.rounding import rounded
from hub.system.space import free_space, is_full, size_text


def average_models(folders: Sequence[Path], weights: Sequence[float], out: Path) -> None:
    """Write the average of whole models. In memory there is one shard of the result, and one tensor of each model.

    Args:
        folders: of safetensors. The result has the files, the shards and the types of the first one.
        weights: of each, with the sum 1.
        out: folder of the result, which appears whole or not at all.

    Raises:
        ConfigError: the models have other tensors, or weights that are quantized.
        ModelError: a file can't be read.
    """
    check_alike(folders)
    shards = weight_files(folders[0])
    with appears_whole(out) as aside, ExitStack() as stack:
        shutil.copytree(folders[0], aside, ignore=shutil.ignore_patterns(*(shard.name for shard in shards)))
        where = [_readers(stack, folder) for folder in folders]
        for shard in shards:
            with safe_open(shard, framework="pt") as first:
                metadata, names = first.metadata(), list(first.keys())
            averaged = {name: _averaged([readers[name].get_tensor(name) for readers in where], weights, name) for name in names}
            save_file(averaged, aside / shard.name, metadata or {"format": "pt"})


@contextmanager
def appears_whole(folder: Path) -> Iterator[Path]:
    """A folder that is written aside and appears, in place of an older one, whole or not at all.

    Raises:
        ConfigError: it can't be written, such as on a full disk. Nothing of it stays.
    """
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        yield aside
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        reason = getattr(error, "strerror", None) or first_line(error)
        shutil.rmtree(aside, ignore_errors=True)
        free = f"{reason}, {size_text(free_space(folder))} are free" if is_full(error) else reason
        raise ConfigError(f"{folder.parent}: can't write there ({free}). Free space, or type out=FOLDER elsewhere") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _readers(stack: ExitStack, folder: Path) -> dict[str, "safe_open"]:
    """Tensor name -> the open file that has it."""
    found: dict[str, safe_open] = {}
    for file in weight_files(folder):
        reader = stack.enter_context(safe_open(file, framework="pt"))
        found |= dict.fromkeys(reader.keys(), reader)
    return found


def _averaged(tensors: Sequence[torch.Tensor], weights: Sequence[float], name: str) -> torch.Tensor:
    """The average in the type of the first one.

    Models of one start differ by few steps of bfloat16. The nearest number to 0.7 of one step is the whole step, and to 0.3 of
    it none, so the average is rounded by chance.
    """
    first = tensors[0]
    if not first.is_floating_point():
        return first.contiguous()
    # As the first and differences, so that a number that all models have is exact.
    total = begin = first.float()
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total = total + weight * (tensor.float() - begin)
    return rounded(total, first.dtype, name)


def check_alike(folders: Sequence[Path]) -> None:
    """Refuse whole models that can't be averaged, by the headers of their files.

    Raises:
        ConfigError: they have other tensors, or weights that are quantized.
        ModelError: tensors of other shapes.
    """
    first = stored_tensors(folders[0])
    for folder in folders:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if "quantization_config" in config:
            raise ConfigError(f"{folder} is quantized, so it can't be averaged. Name a folder with weights in full")
        other = stored_tensors(folder)
        if odd := sorted(first.keys() ^ other.keys()):
            raise ConfigError(f"{folder} and {folders[0]} are different models ({odd[0]} is in one of them only)")
        for name, tensor in first.items():
            if other[name].shape != tensor.shape:
                raise ModelError(
                    f"{folder} and {folders[0]} are different models: {name} is {tuple(other[name].shape)} and "
                    f"{tuple(tensor.shape)}"
                )
