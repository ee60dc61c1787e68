"""Values of config.json that would be built before they are compared with the weights: sizes that no file can hold.

A model of 2,000,000,000 layers, or a rotary table for heads of that size, takes all time and memory before its shapes could be
found wrong. So each number that says how many or how large is compared with what the tensors of the files have.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.models.reading import CONFIG, ModelFileError, shown
from hub.models.safety import read_json

if TYPE_CHECKING:
    import torch

PACKED = 8
"""Numbers that one stored number may hold: eight of 4 bits in an int32."""

MOST_POSITIONS = 2**27
"""Tokens. The longest published context is about 10,000,000."""

_COUNT = re.compile(r"^(num|n)_(\w+_)?(layers?|blocks?)$|^(encoder|decoder)_layers$|^depth$")
"""Numbers of modules, each with a tensor of its own."""

_SIZE = re.compile(r"(_size|_dim|_rank|_heads?|_experts?|_groups|_channels|_features|^d_model|^d_ff|^n_embd|^n_inner|^n_head)$")
"""Lengths of a side of a tensor, or factors of them."""

_POSITIONS = re.compile(r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|seq_length)$")
_CHANCE = re.compile(r"(^|_)(p?drop(out)?|dropout_prob|dropout_p)($|_)")
_BASE, _LEAST = re.compile(r"(^|_)theta$"), re.compile(r"_(eps|epsilon)$")
"""Bases of angles, and what keeps a division from 0. Other values give NaN without an error."""


def check_config(folder: Path, name: str, tensors: "Mapping[str, torch.Tensor]") -> None:
    """Check the sizes and dropout rates of config.json.

    Args:
        folder: of the model.
        name: of the model, in messages.
        tensors: of the files, without data.

    Raises:
        ModelFileError: a size is negative or larger than the files can have, or a rate or a divisor is none.
    """
    sizes = [tuple(tensor.shape) for tensor in tensors.values()]
    largest = PACKED * max((math.prod(shape) for shape in sizes), default=0)
    for path, value in _numbers(read_json(folder / CONFIG, name)):
        key = path.rpartition(".")[2]
        reason = ""
        if _CHANCE.search(key) and not isinstance(value, bool) and not key.startswith(("num_", "n_")) and not 0 <= value < 1:
            reason = "a rate of dropout is at least 0 and below 1"
        elif _BASE.search(key) and (value <= 0 or value is True):
            reason = "it must be a number above 0"
        elif _LEAST.search(key) and (value < 0 or isinstance(value, bool)):
            reason = "it must be a number, and not negative"
        elif isinstance(value, int) and not isinstance(value, bool):
            most = len(sizes) if _COUNT.search(key) else largest if _SIZE.search(key) else None
            most = MOST_POSITIONS if _POSITIONS.search(key) else most
            if most is not None and value > most:
                reason = f"with these files it is at most {most:,}"
            elif most is not None and value < 0:
                reason = "it must not be negative"
        if reason:
            raise ModelFileError.of(name, CONFIG, path, shown(value), reason)


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, int | float]]:
    """Each number of a JSON value, and true and false, with its place. Not those of a quantization, which has its own sizes."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key != "quantization_config":
                yield from _numbers(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, int | float):
        yield path, value
