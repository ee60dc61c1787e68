"""Passes of a model over data to protect, without training on it: batches of samples, and the model's device."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from transformers import PreTrainedModel

from hub.data.prepare import Sample
from hub.models.structure import waits_for_others
from hub.train.attempts import on_all_ranks, too_little
from hub.train.setup.less_memory import instead
from hub.train.setup.setup import Setup

NUM_TOKENS = 8
"""Length of a text that only shows how layers are connected."""


def batches(samples: Sequence[Sample], max_tokens: int, rank: int, world: int) -> Iterator[list[Sample]]:
    """This rank's samples in groups of similar length. Every rank has the same number of groups; the last may be empty.

    Args:
        samples: the same on all ranks.
        max_tokens: maximum tokens of a group, including padding. A longer sample gets a separate group.
        rank: of this process.
        world: number of processes.
    """
    ordered = sorted(samples, key=len)
    groups: list[list[Sample]] = []
    for sample in ordered:
        if not groups or (len(groups[-1]) + 1) * len(sample) > max_tokens:
            groups.append([])
        groups[-1].append(sample)
    groups += [[] for _ in range(-len(groups) % world)]
    yield from groups[rank::world]


def in_smaller_passes(setup: Setup, model: torch.nn.Module, run: Callable[[int], bool], max_tokens: int, longest: int) -> None:
    """Run passes over data. If memory runs out on any rank, begin anew with half as many tokens in each.

    Args:
        setup: of the run.
        model: of the passes.
        run: runs all of them, given the most tokens of one. Each call begins anew.
        max_tokens: to begin with.
        longest: tokens of the longest sample.

    Raises:
        ModelError: not even the longest sample fits alone.
    """
    if waits_for_others(model):
        run(max_tokens)
        return
    while True:
        _, shortage = on_all_ranks(partial(run, max_tokens))
        if shortage is None:
            return
        if max_tokens <= longest:
            what = f"a pass over a sample of {longest:,} tokens to protect does not fit"
            raise too_little(what, shortage, instead(setup.cfg))
        max_tokens = max(longest, max_tokens // 2)
        setup.run.say(f"out of memory: the data to protect is run in passes of at most {max_tokens:,} tokens")


def same_inputs(model: PreTrainedModel, names: Sequence[str]) -> dict[str, str]:
    """Find the layers that read the same input as an earlier one, by a pass over a few tokens.

    Args:
        model: may be without data, on torch's meta device. What it can't compute there is judged by layers whose names differ
            in numbers only.
        names: linear layers of it, in the order of the model.

    Returns:
        Layer -> the first layer that reads its input, for those that are not the first themselves.
    """
    recent: list[tuple[str, torch.Tensor]] = []
    owners: dict[str, str] = {}

    def watch(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            owner = next((earlier for earlier, seen in recent if seen is inputs[0]), name)
            owners.setdefault(name, owner)
            if owner == name:
                recent[:] = [*recent[-3:], (name, inputs[0])]

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    device = next(model.parameters()).device
    tokens = torch.zeros(1, NUM_TOKENS, dtype=torch.int64, device=device)
    mask = torch.zeros(1, 1, NUM_TOKENS, NUM_TOKENS, device=device)  # one with all dimensions is taken as it is
    try:
        with torch.no_grad():
            model(input_ids=tokens, attention_mask=mask, position_ids=tokens, use_cache=False)
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError, AssertionError):
        pass
    finally:
        for handle in handles:
            handle.remove()
    kinds = {_kind(name): _kind(owner) for name, owner in owners.items()}
    places = {(_kind(name), _numbers(name)): name for name in names}
    same: dict[str, str] = {}
    for name in names:
        kind = _kind(name)
        owner = owners.get(name) or places.get((kinds.get(kind, kind), _numbers(name)), name)
        if owner != name:
            same[name] = owner
    return same


def _kind(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _numbers(name: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+", name))


@contextmanager
def on_device(setup: Setup, model: torch.nn.Module) -> Iterator[None]:
    """Hold a model on the run's device in this context. One that will be sharded is on the CPU before and after it."""
    device = setup.session.device
    original = next(model.parameters()).device
    if original == device or any(hasattr(p, "placements") for p in model.parameters()):
        yield
        return
    model.to(device)
    try:
        yield
    finally:
        model.to(original)
