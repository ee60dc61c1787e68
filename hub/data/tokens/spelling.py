"""Where the tokens of a tokenizer are in a text, from the bytes that each token stands for.

The bytes of the tokens, one after the other, are those of the text: with a byte-level tokenizer always, with others such as
SentencePiece mostly. Each text is checked. So offsets need not be computed, which takes as long as the tokens themselves.
"""

import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_PROBE = "Does it add a space, or normalize? \u00e9\n"
_SPACE = "\u2581"
"""Stands for a space in the tokens of SentencePiece."""

_BYTE = re.compile("<0x([0-9A-F]{2})>")
"""A token that stands for a byte of a character without a token."""

_ENOUGH_TEXTS = 64
"""Texts after which it is known whether checks are worth their time."""


@dataclass(slots=True)
class Spelling:
    """The bytes of a tokenizer's tokens."""

    lengths: npt.NDArray[np.int64]
    """Bytes of each token, by its id. 0: no token has the id."""

    words: list[bytes] | None
    """The bytes of each token. None: their number tells whether they are those of a text."""

    num_texts: int = 0
    num_others: int = 0
    """Texts whose bytes were not those of their tokens, of so many that were checked."""

    @property
    def is_useful(self) -> bool:
        """Whether most texts can be told from the bytes of their tokens."""
        return self.num_texts < _ENOUGH_TEXTS or 4 * self.num_others < self.num_texts

    def start(self, ids: list[int], num_bytes: int, data: bytes) -> int | None:
        """Where a text begins in the bytes of its tokens: 1 where a space was put before it. None: it is not their bytes.

        Args:
            ids: its tokens.
            num_bytes: of the tokens.
            data: the text.
        """
        if self.words is None:
            return 0 if ids and num_bytes == len(data) else None
        extra = num_bytes - len(data)
        if not ids or extra not in (0, 1):
            return None
        spelled = b"".join(map(self.words.__getitem__, ids))
        return extra if spelled == b" " * extra + data else None


_spellings: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, Spelling | None]]" = weakref.WeakKeyDictionary()


def spelling(tokenizer: "PreTrainedTokenizerBase") -> Spelling | None:
    """The bytes of a tokenizer's tokens. None where they don't say where tokens are."""
    known = _spellings.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        known = _spellings[tokenizer] = len(tokenizer), _compute(tokenizer)
    return known[1]


def encode_fast(
    tokenizer: "PreTrainedTokenizerBase", spelled: Spelling, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]
) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]] | None] | None:
    """The tokens of texts, without offsets and special tokens, and which of them have a character in a span.

    Args:
        tokenizer: any with a `spelling`.
        spelled: this.
        texts: what to encode. All are encoded at once, and the arrays are views of the same two.
        spans: of each text: the first character of each span, and the one behind its last.

    Returns:
        None where the tokenizer is set to cut or pad texts. None for a text whose bytes are not those of its tokens.
    """
    core: Tokenizer = tokenizer.backend_tokenizer
    if core.truncation is not None or core.padding is not None or core.encode_special_tokens:
        return None
    rows = [encoding.ids for encoding in core.encode_batch_fast(list(texts), add_special_tokens=False)]
    stops = [0, *accumulate(map(len, rows))]
    ids = np.fromiter(chain.from_iterable(rows), np.int32, stops[-1])
    ends = spelled.lengths[ids].cumsum()
    bases = np.concatenate(([0], ends))[stops].tolist()
    edges: list[int] = []
    is_whole = []
    for number, (text, some) in enumerate(zip(texts, spans, strict=True)):
        base, data = bases[number], text.encode()
        start = spelled.start(rows[number], bases[number + 1] - base, data)
        is_whole.append(start is not None)
        if start is None:
            continue
        for begin, end in some:
            if len(data) > len(text):
                begin, end = (len(text[:edge].encode()) for edge in (begin, end))
            if end > begin:  # a space that was put before a text belongs to its first character
                edges += base + (start + begin if begin else 0), base + start + end - 1
    spelled.num_texts += len(texts)
    spelled.num_others += len(texts) - sum(is_whole)
    mask = np.zeros(len(ids), np.bool_)
    tokens = ends.searchsorted(edges, "right").tolist()
    for first, last in zip(tokens[::2], tokens[1::2], strict=True):
        mask[first : last + 1] = True
    return [
        (ids[begin:end], mask[begin:end]) if whole else None
        for (begin, end), whole in zip(pairwise(stops), is_whole, strict=True)
    ]


def _compute(tokenizer: "PreTrainedTokenizerBase") -> Spelling | None:
    from tokenizers import decoders, models
    from transformers import PreTrainedTokenizerFast

    if not tokenizer.is_fast or type(tokenizer)._encode_plus is not PreTrainedTokenizerFast._encode_plus:
        return None
    core: Tokenizer = tokenizer.backend_tokenizer
    if not hasattr(core, "encode_batch_fast"):
        return None
    is_byte_level = isinstance(core.decoder, decoders.ByteLevel) and isinstance(core.model, models.BPE)
    falls_back = bool(getattr(core.model, "byte_fallback", False))
    added = {number: token.content for number, token in core.get_added_tokens_decoder().items()}
    vocabulary = core.get_vocab(with_added_tokens=True)
    words = [b""] * (max(vocabulary.values(), default=0) + 1)
    for text, number in vocabulary.items():
        if falls_back and (byte := _BYTE.fullmatch(text)):
            words[number] = bytes.fromhex(byte[1])
        elif number in added:
            words[number] = added[number].encode()  # it is written as it is
        elif is_byte_level:
            words[number] = bytes(len(text))  # a letter of the byte-level alphabet stands for one byte
        else:
            words[number] = text.replace(_SPACE, " ").encode()
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    found = Spelling(lengths, None if is_byte_level else words)
    probe = _PROBE if is_byte_level else _PROBE.encode("ascii", "ignore").decode()  # which it may have no token for
    ids = tokenizer(probe, add_special_tokens=False)["input_ids"]
    # It may change a text, or put a space before it, which only the bytes themselves show.
    return found if found.start(ids, int(lengths[ids].sum()), probe.encode()) is not None else None
