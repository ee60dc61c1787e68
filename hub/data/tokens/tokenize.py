"""Texts to tokens, many at once, and which tokens have a character in some spans of their text."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hub.data.tokens.special_tokens import without_second_bos
from hub.data.tokens.spelling import encode_fast, spelling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Spans = list[tuple[int, int]]
"""The first character of each span, and the one behind its last. In order, without overlap."""

Tokenized = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]
"""Token ids and a mask, each of shape (length,)."""


def tokenize(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], spans: Sequence[Spans]) -> list[Tokenized]:
    """Tokenize texts that were rendered, so that no special tokens are added.

    Args:
        tokenizer: any; a fast one takes all texts at once.
        texts: what to tokenize.
        spans: of each text.

    Returns:
        For each text its token ids, and which tokens have a character in one of its spans.
    """
    if not texts:
        return []
    if not tokenizer.is_fast:
        return [_in_parts(tokenizer, text, some) for text, some in zip(texts, spans, strict=True)]
    spelled = spelling(tokenizer)
    encoded = encode_fast(tokenizer, spelled, texts, spans) if spelled is not None and spelled.is_useful else None
    found: list[Tokenized | None] = encoded if encoded is not None else [None] * len(texts)
    missing = [place for place, given in enumerate(found) if given is None]
    others = _with_offsets(tokenizer, [texts[place] for place in missing], [spans[place] for place in missing])
    for place, given in zip(missing, others, strict=True):
        found[place] = given
    return [given for given in found if given is not None]


def _with_offsets(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], spans: Sequence[Spans]) -> list[Tokenized]:
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    found = []
    for ids, offsets, text, some in zip(encoded["input_ids"], encoded["offset_mapping"], texts, spans, strict=True):
        mask = _mask(offsets, len(text.rstrip()), some)
        found.append((np.array(ids, np.int32), mask) if mask is not None else _in_parts(tokenizer, text, some))
    return found


def tokenize_documents(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
    """The tokens of texts that are trained as a whole, with those that the tokenizer adds around a text, and an end."""
    if not texts:
        return []
    end = tokenizer.eos_token_id
    rows = tokenizer(list(texts), return_attention_mask=False, return_token_type_ids=False)["input_ids"]
    rows = [without_second_bos(tokenizer, ids) for ids in rows]
    return [np.array([*ids, end] if end is not None and ids[-1:] != [end] else ids, np.int32) for ids in rows]


def _mask(offsets: list[tuple[int, int]], num_characters: int, spans: Spans) -> npt.NDArray[np.bool_] | None:
    """Which tokens have a character in one of the spans. None when their offsets do not follow the text.

    Byte-level tokenizers leave a token's leading space out of its offsets, so a gap belongs to the token behind it.
    Where a character takes several tokens, all of them have its offsets.
    """
    table = np.array(offsets, np.int64).reshape(-1, 2)
    ends = table[:, 1]
    reached = np.concatenate(([0], ends[:-1]))
    if (table[:, 0] > ends).any() or (ends < reached).any() or (ends[-1] if len(ends) else 0) < num_characters:
        return None
    starts = np.minimum(table[:, 0], reached)
    mask = np.zeros(len(ends), np.bool_)
    for begin, end in spans:
        mask |= (ends > begin) & (starts < end)
    return mask


def _in_parts(tokenizer: "PreTrainedTokenizerBase", text: str, spans: Spans) -> Tokenized:
    """Tokenize the text of each span and what is between them, where tokens can't be told from the whole text."""
    input_ids: list[int] = []
    mask: list[bool] = []
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    for number, (start, end) in enumerate(pairwise(edges)):
        piece = tokenizer(text[start:end], add_special_tokens=False)["input_ids"] if end > start else []
        input_ids += piece
        mask += [number % 2 == 1] * len(piece)
    return np.array(input_ids, np.int32), np.array(mask, np.bool_)
