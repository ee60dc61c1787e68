"""The added and special tokens of a tokenizer."""

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Tables = tuple[int, dict[str, int], dict[str, int]]
"""Length of a tokenizer, and its tables."""

_added: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, _Tables]" = weakref.WeakKeyDictionary()


def _tables(tokenizer: "PreTrainedTokenizerBase") -> tuple[dict[str, int], dict[str, int]]:
    """Text and id of all added tokens, and of those that are special. Cached, since the tokenizer is slow at it."""
    tables = _added.get(tokenizer)
    if tables is None or tables[0] != len(tokenizer):
        every = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        special.pop(tokenizer.unk_token, None)  # it stands for any text
        tables = _added[tokenizer] = (len(tokenizer), every | special, special)
    return tables[1], tables[2]


def added_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Text and id of all tokens that were added to the vocabulary."""
    return _tables(tokenizer)[0]


def without_second_bos(tokenizer: "PreTrainedTokenizerBase", input_ids: list[int]) -> list[int]:
    """The tokens without a second beginning-of-sequence token: the tokenizer adds one, and the text may begin with it, too."""
    bos = tokenizer.bos_token_id
    return input_ids[1:] if bos is not None and input_ids[:2] == [bos, bos] else input_ids


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Text and id of the tokens with a meaning of their own, such as the end of a turn."""
    return _tables(tokenizer)[1]
