"""Where the tokens of a byte-level tokenizer are in a text, from the lengths of the tokens alone.

Such a tokenizer loses nothing: the bytes of its tokens, one after the other, are those of the text. So it need not compute
offsets, which takes as long as the tokens themselves.
"""

import weakref
from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Lengths = npt.NDArray[np.int64]
"""Bytes of each token, by its id. 0: no token has the id."""

_PROBE = "Does it add a space, or normalize? \u00e9\n"

_lengths: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, Lengths | None]]" = weakref.WeakKeyDictionary()


def byte_lengths(tokenizer: "PreTrainedTokenizerBase") -> Lengths | None:
    """The lengths of a tokenizer's tokens. None where they don't say where tokens are."""
    known = _lengths.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        known = _lengths[tokenizer] = len(tokenizer), _compute(tokenizer)
    return known[1]


def encode_fast(
    tokenizer: "PreTrainedTokenizerBase", lengths: Lengths, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]
) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]] | None] | None:
    """The tokens of texts, without offsets and special tokens, and which of them have a character in a span.

    Args:
        tokenizer: any with `byte_lengths`.
        lengths: these.
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
    ends = lengths[ids].cumsum()
    bases = np.concatenate(([0], ends))[stops].tolist()
    edges: list[int] = []
    is_lossless = []
    for number, (text, some) in enumerate(zip(texts, spans, strict=True)):
        base, is_ascii = bases[number], text.isascii()
        num_bytes = len(text) if is_ascii else len(text.encode())
        is_lossless.append(bool(rows[number]) and bases[number + 1] - base == num_bytes)
        if is_lossless[-1]:
            for begin, end in some:
                if not is_ascii:
                    begin, end = (len(text[:edge].encode()) for edge in (begin, end))
                if end > begin:
                    edges += base + begin, base + end - 1
    mask = np.zeros(len(ids), np.bool_)
    tokens = ends.searchsorted(edges, "right").tolist()
    for first, last in zip(tokens[::2], tokens[1::2], strict=True):
        mask[first : last + 1] = True
    return [
        (ids[start:stop], mask[start:stop]) if is_whole else None
        for (start, stop), is_whole in zip(pairwise(stops), is_lossless, strict=True)
    ]


def _compute(tokenizer: "PreTrainedTokenizerBase") -> Lengths | None:
    from tokenizers import decoders, models
    from transformers import PreTrainedTokenizerFast

    if not tokenizer.is_fast or type(tokenizer)._encode_plus is not PreTrainedTokenizerFast._encode_plus:
        return None
    core: Tokenizer = tokenizer.backend_tokenizer
    is_byte_level = isinstance(core.decoder, decoders.ByteLevel) and isinstance(core.model, models.BPE)
    if not is_byte_level or not hasattr(core, "encode_batch_fast"):
        return None
    added = {number: token.content for number, token in core.get_added_tokens_decoder().items()}
    vocabulary = core.get_vocab(with_added_tokens=True)
    lengths = np.zeros(max(vocabulary.values(), default=0) + 1, np.int64)
    for text, number in vocabulary.items():
        # A letter of the byte-level alphabet stands for one byte. Added tokens are written as they are.
        lengths[number] = len(added[number].encode()) if number in added else len(text)
    ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    return lengths if lengths[ids].sum() == len(_PROBE.encode()) else None  # it may put a space before a text
