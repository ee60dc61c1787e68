"""Protected samples as a file: what a run leaves in its folder for the next one, and what a model made of itself.

Token ids and loss masks, a few hundred rows. So the next run measures what they need on the model that it begins with, instead
of taking statistics of an earlier model.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from hub.data.samples.sample import Sample
from hub.errors import ModelError

Groups = dict[str, list[Sample]]
"""Samples by where they are from, in words."""


def pack(groups: Mapping[str, Sequence[Sample]], vocabulary: int) -> bytes:
    """Store samples as the bytes of a safetensors file.

    Args:
        groups: samples by where they are from.
        vocabulary: rows of the model's embeddings.
    """
    samples = [sample for group in groups.values() for sample in group]
    names = json.dumps({"groups": {name: len(group) for name, group in groups.items()}, "vocabulary": vocabulary})
    none = np.zeros(0)
    tensors = {
        "ids": np.concatenate([*(sample.input_ids for sample in samples), none]).astype(np.int32),
        "loss_mask": np.concatenate([*(sample.loss_mask for sample in samples), none]).astype(np.bool_),
        "lengths": np.array([len(sample) for sample in samples], dtype=np.int32),
        "names": np.frombuffer(bytearray(names.encode()), dtype=np.uint8),
    }
    return save({name: torch.from_numpy(array) for name, array in tensors.items()})


def unpack(content: bytes, file: str, instead: str, vocabulary: int | None = None) -> Groups:
    """Read samples from what `pack` made.

    Args:
        content: the bytes.
        file: where they are from, for messages.
        instead: what to type if they can't be used.
        vocabulary: rows of the embeddings of the model that reads them. None: not compared.

    Raises:
        ModelError: they are damaged, or of a model with another vocabulary.
    """
    try:
        tensors = {name: tensor.numpy() for name, tensor in load(content).items()}
        names = json.loads(bytes(tensors["names"]))
        ends = np.cumsum(tensors["lengths"])
        pieces = zip(np.split(tensors["ids"], ends)[:-1], np.split(tensors["loss_mask"], ends)[:-1], strict=True)
        samples = [Sample(ids, mask, f"{file}:{number}") for number, (ids, mask) in enumerate(pieces, 1)]
        groups: Groups = {}
        begin = 0
        for name, number in names["groups"].items():
            groups[name] = samples[begin : begin + number]
            begin += number
        stored = int(names["vocabulary"])
        if begin != len(samples):
            raise ValueError
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError):
        raise ModelError(f"{file} is damaged. {instead}") from None
    if vocabulary is not None and stored > vocabulary:
        raise ModelError(
            f"{file}: it protects another vocabulary ({stored:,} rows of embeddings, this model has {vocabulary:,}). {instead}"
        )
    return groups


def write(file: Path, groups: Mapping[str, Sequence[Sample]], vocabulary: int) -> None:
    """Write samples to a file by a rename, so that a reader sees all of it or none.

    Args:
        file: to write.
        groups: samples by where they are from.
        vocabulary: rows of the model's embeddings.
    """
    aside = file.with_suffix(".part")
    aside.write_bytes(pack(groups, vocabulary))
    aside.replace(file)


def read(file: Path, instead: str, vocabulary: int) -> Groups:
    """Read samples of an earlier run.

    Args:
        file: the one that the run left.
        instead: what to type if they can't be used.
        vocabulary: rows of the embeddings of the model that reads them.

    Raises:
        ModelError: the file is damaged, or of a model with another vocabulary.
    """
    return unpack(file.read_bytes(), str(file), instead, vocabulary)
