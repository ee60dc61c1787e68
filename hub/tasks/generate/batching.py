"""Which prompts a model can answer together without changing an answer. Measured on the model itself.

Prompts of different lengths are padded on the left. A model must then leave the padding out of its attention, its convolutions
and its recurrent states, and count positions from each prompt's own first token, also in the steps that use its cache. Whether
it does depends on the family, the kernels and the version of transformers. So two short prompts are run together and alone, and
their logits are compared, those of the step after the first token too.
"""

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from hub.models.structure import max_positions, text_config
from hub.tasks.generate.passes import first_pass, padded, plain_config

PADDED, EQUAL, SINGLE = "padded", "equal", "single"
"""Prompts of any lengths together; prompts of one length together; one prompt at a time."""

_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, AttributeError)
"""What a model raises in a trial that it can't run."""

FLOAT32_LIMIT = 1e-4
"""Largest difference that passes as rounding in float32, as a fraction of the spread of the logits."""

HALF_LIMIT = {torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Largest difference that passes as rounding in half precision, as a fraction of the spread of the logits: the largest that
was measured between prompts of one length."""

MOST_LIMIT = 0.2
"""Difference that never passes as rounding."""

NOISE_FACTOR = 4.0
LENGTHS = (13, 5)
_FIRST = 1
"""The first token of all answers of a trial."""

NUM_TRIES = 3
"""Tries in half precision: a token that rounding sends to another expert changes by more than rounding."""

_moving: "weakref.WeakKeyDictionary[torch.nn.Module, bool]" = weakref.WeakKeyDictionary()
_known: "weakref.WeakKeyDictionary[torch.nn.Module, str]" = weakref.WeakKeyDictionary()
_cached: "weakref.WeakKeyDictionary[torch.nn.Module, bool]" = weakref.WeakKeyDictionary()


def has_cache(model: torch.nn.Module, dtype: torch.dtype) -> bool:
    """Whether a model's cache gives the logits of the whole text. Measured once for each model, by two passes over a prompt.

    Args:
        model: in evaluation mode, without gradients. The caller sets autocast.
        dtype: of the arithmetic.
    """
    if model not in _cached:
        prompt = _random_prompts(model, 0, [LENGTHS[0]])[0]
        try:
            steps = _logits(model, [prompt])[0]
            ids = torch.tensor([[*prompt, _FIRST]], device=next(model.parameters()).device)
            whole: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0, -2:].float().cpu()
            change = (steps - whole).square().mean(dim=-1).sqrt() / whole.std(dim=-1).clamp_min(1e-6)
            _cached[model] = bool(change.max() <= (MOST_LIMIT if dtype in HALF_LIMIT else FLOAT32_LIMIT))
        except _ERRORS as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            _cached[model] = False
    return _cached[model]


def batching_of(model: torch.nn.Module, dtype: torch.dtype) -> str:
    """Which prompts may be in one batch: `PADDED`, `EQUAL` or `SINGLE`. Measured once for each model.

    Args:
        model: in evaluation mode, without gradients. The caller sets autocast.
        dtype: of the arithmetic.
    """
    if model not in _known:
        _known[model] = _measure(model, dtype)
    return _known[model]


def can_move(model: torch.nn.Module, dtype: torch.dtype) -> bool:
    """Whether rows may leave and join a batch of a model while it is generated. Measured once for each model.

    Args:
        model: in evaluation mode, without gradients, and not `SINGLE`. The caller sets autocast.
        dtype: of the arithmetic.
    """
    if model not in _moving:
        padded = batching_of(model, dtype) == PADDED
        tries = NUM_TRIES if dtype in HALF_LIMIT else 1
        _moving[model] = any(_try_moves(model, dtype, seed, padded) for seed in range(tries))
    return _moving[model]


def _try_moves(model: torch.nn.Module, dtype: torch.dtype, seed: int, pads: bool) -> bool:
    """Two prompts begin, the first leaves, and if prompts may be padded it joins again."""
    generator: Any = getattr(model, "module", model)
    long, short, other = _random_prompts(model, seed, (*LENGTHS, LENGTHS[1]))
    first = long if pads else other
    device = next(model.parameters()).device
    alone = [_logits(model, [prompt])[0] for prompt in (short, first)]
    rounding = _difference(model, [short, other], [(0, alone[0])])
    try:
        _, passes = first_pass(generator, [first, short], 0, device)
        if not passes.can_move():
            return False
        passes.keep([1])
        if pads:
            _, more = first_pass(generator, [first], 0, device)
            if not more.can_move():
                return False
            passes.join(more)
        found = passes.step(torch.full((len(passes.lengths),), _FIRST, device=device)).float().cpu()
    except _ERRORS as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False
    return all(_change(row, wanted[1]) <= _limit(dtype, rounding) for row, wanted in zip(found, alone, strict=False))


def _measure(model: torch.nn.Module, dtype: torch.dtype) -> str:
    found = []
    for seed in range(NUM_TRIES if dtype in HALF_LIMIT else 1):
        found.append(_try(model, dtype, seed))
        if found[-1] == PADDED:
            break
    return min(found, key=(PADDED, EQUAL, SINGLE).index)


def _try(model: torch.nn.Module, dtype: torch.dtype, seed: int) -> str:
    long, short, other = _random_prompts(model, seed, (*LENGTHS, LENGTHS[1]))
    alone = [_logits(model, [prompt])[0] for prompt in (long, short)]
    equal = _difference(model, [short, other], [(0, alone[1])])
    if equal > _limit(dtype, 0.0):
        return SINGLE
    padded = _difference(model, [long, short], [(0, alone[0]), (1, alone[1])])
    return PADDED if padded <= _limit(dtype, equal) else EQUAL


def _random_prompts(model: torch.nn.Module, seed: int, lengths: Sequence[int]) -> list[list[int]]:
    vocabulary = int(getattr(text_config(model), "vocab_size", 0)) or 100
    room = max_positions(text_config(model)) or 100
    random = torch.Generator().manual_seed(seed)
    sizes = [min(length, max(2, room // 4)) for length in lengths]
    return [torch.randint(vocabulary, (size,), generator=random).tolist() for size in sizes]


def _limit(dtype: torch.dtype, rounding: float) -> float:
    if dtype not in HALF_LIMIT:
        return FLOAT32_LIMIT
    return min(MOST_LIMIT, max(HALF_LIMIT[dtype], NOISE_FACTOR * rounding)) if rounding else MOST_LIMIT


def _difference(model: torch.nn.Module, prompts: Sequence[list[int]], alone: Sequence[tuple[int, torch.Tensor]]) -> float:
    """Root mean square of the change of logits over their spread, the greatest of some rows and steps. Infinite: it fails."""
    try:
        together = _logits(model, prompts)
    except _ERRORS as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return float("inf")
    worst = 0.0
    for row, expected in alone:
        worst = max(worst, _change(together[row], expected))
    return worst


def _change(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the change of logits over their spread, the greatest of some steps."""
    change = (found - expected).square().mean(dim=-1).sqrt() / expected.std(dim=-1).clamp_min(1e-6)
    return float("inf") if change.isnan().any() else float(change.max())


def _logits(model: torch.nn.Module, prompts: Sequence[list[int]]) -> torch.Tensor:
    """The logits of two steps of generation, with the same first token for all: (prompts, 2, vocabulary) on the CPU."""
    device = next(model.parameters()).device
    input_ids, mask = padded(prompts, 0, device)
    generator: Any = getattr(model, "module", model)
    given = generator.generate(
        input_ids=input_ids,
        attention_mask=mask,
        generation_config=plain_config(max_new_tokens=2, min_new_tokens=2, output_logits=True, return_dict_in_generate=True),
        prefix_allowed_tokens_fn=lambda row, ids: [_FIRST],
    )
    return torch.stack([step.float().cpu() for step in given.logits], dim=1)
