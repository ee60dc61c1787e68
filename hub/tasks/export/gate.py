"""The check of an export: how far it is from the model that was trained, as a share of what training changed.

At tokens of held-out rows the probabilities of all words are compared: KL(tuned || export) / KL(tuned || base). 0 is the model
that was trained, 1 is its base. Where training changed little, rounding would be a large share of it, so no denominator is
smaller than `LEAST_CHANGE`. Prompts are compared as well: how sample chats are rendered, their token ids, and what ends an
answer.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from hub.errors import ModelError
from hub.system.space import check_space, is_full, reserve, too_full
from hub.system.waiting import counted, silent
from hub.tasks.export.job import Reader, ReaderOfSeveral, Say, Written

LEAST_CHANGE = 0.05
"""Smallest denominator in nats per token. Arithmetic in bfloat16, as llama.cpp has it for such files, is worth 0.0003
(SmolLM2)."""

ROUNDING_LIMIT = 0.1
"""Largest share of what training changed that may be the rounding of the program that reads an export."""

LAYER_LIMIT = 0.05
"""How much a single layer may add to the difference of hidden states, as a share of their size. A layer of little weight can be
wrong and hardly move a probability. Rounding to bfloat16 adds up to 0.01 in the last layer (SmolLM2), swapped queries and keys
0.2."""

_FIRST = 0.1
"""Share of the largest difference from which a layer is the first that differs."""

_LAYER_TOKENS = 64
_SHOWN = 60


@dataclass(frozen=True)
class Row:
    """A row on which models are compared."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    """Positions whose next word is compared."""


@dataclass(frozen=True)
class Chat:
    """A sample chat as the tuned model's own tokenizer renders it."""

    name: str
    text: str
    ids: tuple[int, ...]


@dataclass
class Reference:
    """The model that was trained, as far as exports are compared with it."""

    rows: Sequence[Row]
    log_probabilities: np.ndarray[Any, np.dtype[np.float32]]
    """(positions, vocabulary), on disk."""

    chats: Sequence[Chat]
    template: str | None
    ends: frozenset[int]
    hidden: list[torch.Tensor] | None
    """Hidden states of the first tokens of the first row."""

    what: str
    """What the rows are."""

    arithmetic: str = "float32"
    kl_base: float | None = None
    """KL(tuned || base) in nats per token. None: the base is not known."""


def keep(tuned: Reader, rows: Sequence[Row], chats: Sequence[Chat], folder: Path, what: str, say: Say = silent) -> Reference:
    """Keep what exports are compared with.

    Args:
        tuned: the model that was trained.
        rows: where words are compared.
        chats: sample chats.
        folder: for a file with all log-probabilities.
        what: what the rows are.
        say: receives a line now and then.

    Raises:
        ConfigError: the disk is full.
        ModelError: its probabilities are not finite.
    """
    values: Any = None
    place, count = 0, sum(len(row.positions) for row in rows)
    for found in counted(log_probabilities(tuned, rows), len(rows), "hub: reference: {} rows", say):
        if found.isnan().any():
            raise ModelError(
                "the model that was trained gives numbers that are not finite, so there is nothing to export. Training has "
                "failed; use an earlier checkpoint: run=RUN_FOLDER/checkpoints/step-N"
            )
        if values is None:
            values = _on_disk(folder / "log-probabilities", (count, found.shape[1]))
        values[place : place + len(found)] = found.numpy()
        place += len(found)
    hidden = tuned.hidden(rows[0].ids[:_LAYER_TOKENS])
    return Reference(rows, values, chats, tuned.template, tuned.ends, hidden, what)


def _on_disk(file: Path, shape: tuple[int, int]) -> Any:
    """Numbers in a file.

    Raises:
        ConfigError: the disk is full.
    """
    size = 4 * shape[0] * shape[1]
    what = f"the check ({shape[0]} tokens with {shape[1]} probabilities each; num_check_tokens=N takes less)"
    check_space(file.parent, what, size)
    try:
        with file.open("wb") as stream:
            reserve(stream, size)
    except OSError as error:
        if not is_full(error):
            raise
        file.unlink()
        raise too_full(file.parent, what, size) from None
    return np.memmap(file, np.float32, "r+", shape=shape)


def measure(reference: Reference, reader: Reader, say: Say = silent) -> tuple[float, float]:
    """KL(tuned || other) in nats per token, and the share of positions where both have the same most likely word."""
    total, same, place = 0.0, 0, 0
    rows = reference.rows
    for other in counted(log_probabilities(reader, rows), len(rows), "hub: compared on {} rows", say):
        tuned = torch.from_numpy(np.array(reference.log_probabilities[place : place + len(other)]))
        total += float(divergence(tuned, other).sum())
        same += int((tuned.argmax(-1) == other.argmax(-1)).sum())
        place += len(other)
    return total / place, same / place


def log_probabilities(reader: Reader, rows: Sequence[Row]) -> Iterator[torch.Tensor]:
    """Yield log-probabilities of the next word at the positions of each row: (positions, vocabulary), float32."""
    ids = [row.ids for row in rows]
    several = reader.logits_of(ids) if isinstance(reader, ReaderOfSeveral) else map(reader.logits, ids)
    for row, logits in zip(rows, several, strict=True):
        yield torch.log_softmax(logits[list(row.positions)].float(), dim=-1)


def divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """KL(first || second) in nats at each position, from log-probabilities of (positions, vocabulary).

    Rows of padding that only one of the two has behind its vocabulary are left out.
    """
    width = min(first.shape[-1], second.shape[-1])
    one, other = (torch.log_softmax(part[..., :width].double(), dim=-1) for part in (first, second))
    return (one.exp() * (one - other)).sum(dim=-1)


def check(reference: Reference, written: Written, reader: Reader, say: Say = silent) -> dict[str, Any]:
    """Compare an export with the model that was trained.

    Args:
        reference: that model.
        written: the export.
        reader: the export, opened.
        say: receives a line now and then.

    Returns:
        `kl` and `kl_base` in nats per token, `ratio`, `limit` or `limit_nats`, `top1` (the share of positions with the same
        most likely word), `reader`, `passed`, and `differs`: what differs first, if it did not pass. `rounding`, if it was
        asked for: what the reader's arithmetic costs, in nats per token.
    """
    words = [*differences_of_chats(reference, reader), *reader.differences()]
    kl, top1 = measure(reference, reader, say)
    ratio = kl / max(reference.kl_base or 0.0, LEAST_CHANGE)
    of_bits = written.limit_nats is not None
    close = bool(kl <= (written.limit_nats or 0.0)) if of_bits else bool(ratio <= written.limit)  # NaN is not close
    rounding = None
    if not close and not of_bits and written.rounding is not None and ratio <= ROUNDING_LIMIT:
        rounding = written.rounding()
        close = kl <= rounding
    shares = [] if of_bits and close else _layers(reference, reader)
    jumps = [number for number, share in enumerate(_steps(shares)) if not share <= LAYER_LIMIT]
    whole = close and not words and (of_bits or not jumps)
    differs = None
    if not whole:
        differs = words[0] if words else _first(shares, jumps, close)
        differs = differs or (written.explain() if written.explain is not None else None)
    return {
        "kl": kl,
        "kl_base": reference.kl_base,
        "ratio": ratio,
        **({"limit_nats": written.limit_nats} if of_bits else {"limit": written.limit}),
        **({} if rounding is None else {"rounding": rounding}),
        "top1": top1,
        "positions": len(reference.log_probabilities),
        "rows": len(reference.rows),
        "on": reference.what,
        "arithmetic": reference.arithmetic,
        "reader": reader.name,
        "passed": whole,
        "differs": differs,
    }


def differences_of_chats(reference: Reference, reader: Reader) -> Iterator[str]:
    """Yield a line for each way in which prompts of the export are not those of training."""
    template = reader.template
    if reference.template is not None and template is None:
        yield "it has no chat template"
    elif reference.template is not None and template != reference.template:
        place = next(
            (i for i, (a, b) in enumerate(zip(reference.template, template or "", strict=False)) if a != b),
            min(len(reference.template), len(template or "")),
        )
        yield f"its chat template differs from character {place} on: {(template or '')[place : place + _SHOWN]!r}"
    for chat in reference.chats:
        ids = reader.tokens(chat.text)
        if ids is None or tuple(ids) == chat.ids:
            continue
        place = next((i for i, (a, b) in enumerate(zip(ids, chat.ids, strict=False)) if a != b), min(len(ids), len(chat.ids)))
        theirs, own = list(ids[place : place + 4]), list(chat.ids[place : place + 4])
        yield f"{chat.name}: token {place} and on are {theirs}, and {own} in training"
        break
    if missing := sorted(reference.ends - reader.ends):
        yield f"an answer does not end at {'token' if len(missing) == 1 else 'tokens'} {', '.join(map(str, missing))}"


def _layers(reference: Reference, reader: Reader) -> list[float]:
    """The difference of hidden states behind the embedding and each layer, as a share of their size: the median over tokens.

    Empty: they can't be seen. NaN: they have another shape, or values that are no numbers.
    """
    if reference.hidden is None:
        return []
    states = reader.hidden(reference.rows[0].ids[:_LAYER_TOKENS])
    if not states or len(states) != len(reference.hidden):
        return []
    shares = []
    for one, other in zip(reference.hidden, states, strict=True):
        if one.shape != other.shape:
            shares.append(math.nan)
            continue
        share = (one - other).norm(dim=-1) / one.norm(dim=-1).clamp_min(1e-9)
        shares.append(float(share.median()))
    return shares


def _steps(shares: Sequence[float]) -> list[float]:
    return [one - before for before, one in zip([0.0, *shares], shares, strict=False)]


def _first(shares: Sequence[float], jumps: Sequence[int], close: bool) -> str | None:
    """The first layer whose output differs."""
    if not shares:
        return None
    number = jumps[0] if jumps else next(i for i, share in enumerate(shares) if share >= _FIRST * max(shares))
    if not jumps and max(shares) < LAYER_LIMIT / 50 and not close:
        return "all layers are the same, so the output layer differs"
    return f"{_name_of_layer(number)} differs first, of {len(shares) - 1} layers"


def _name_of_layer(number: int) -> str:
    return "the embedding" if number == 0 else f"layer {number - 1}"


SAMPLES: Mapping[str, list[dict[str, Any]]] = {
    "a question": [{"role": "user", "content": "Name a color."}],
    "a question behind a system prompt": [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Name a color."},
    ],
    "a chat of several turns": [
        {"role": "user", "content": "Name a color."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Another one, and why?\n\nBe brief."},
    ],
}
"""Sample chats. A template that refuses one of them is not asked for it."""


def sample_chats(tokenizer: PreTrainedTokenizerBase) -> list[Chat]:
    """Sample chats as a tokenizer renders them. Empty: it has no chat template."""
    chats = []
    for name, messages in SAMPLES.items():
        if not tokenizer.chat_template:
            break
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception:  # a template may raise whatever it likes
            continue
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        chats.append(Chat(name, text, tuple(int(number) for number in ids)))
    return chats
