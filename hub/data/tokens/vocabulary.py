"""Which tokens of a tokenizer the model has embeddings for. A tokenizer may have more tokens than the model has rows."""

import weakref
from typing import TYPE_CHECKING

from hub.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

MORE_ROWS = "Type model.resize_vocab=true, which adds an embedding for each token of the tokenizer"

_limits: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, dict[int, str]]]" = weakref.WeakKeyDictionary()
"""Rows of the embeddings, and the tokens beyond them. A tokenizer without an entry is not checked."""


def limit_to(tokenizer: "PreTrainedTokenizerBase", num_embeddings: int) -> None:
    """Let the encoder refuse rows with a token that the model has no embedding for.

    Args:
        tokenizer: the tokenizer of the run.
        num_embeddings: rows of the model's input embeddings.
    """
    beyond = {number: word for word, number in tokenizer.get_vocab().items() if number >= num_embeddings}
    _limits[tokenizer] = (num_embeddings, dict(sorted(beyond.items())))


def tokens_beyond(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """The tokens that have no embedding, by id."""
    return _limits[tokenizer][1] if tokenizer in _limits else {}


def tokens_beyond_line(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """A line about tokens that have no embedding, for a log. None: every token has one."""
    if not (beyond := tokens_beyond(tokenizer)):
        return None
    words = ", ".join([*list(beyond.values())[:3], *(["..."] if len(beyond) > 3 else [])])
    return (
        f"{len(beyond):,} tokens of the tokenizer have no embedding in the model ({words}): a row that has one can't be used. "
        "Type model.resize_vocab=true to train them"
    )


def check_embedded(tokenizer: "PreTrainedTokenizerBase", input_ids: "npt.NDArray[np.int32]", where: str) -> None:
    """Refuse tokens that have no embedding, which would end training with an IndexError.

    Args:
        tokenizer: the tokenizer of the run.
        input_ids: tokens of a row.
        where: file and line of the row.

    Raises:
        DataError: the first token that has none.
    """
    if tokenizer not in _limits:
        return
    num_embeddings, beyond = _limits[tokenizer]
    if not beyond or not len(input_ids) or input_ids.max() < num_embeddings:
        return
    number = int(input_ids[input_ids >= num_embeddings][0])
    raise DataError(
        f"{where}: the token {beyond.get(number, '?')} has id {number}, but the model has embeddings for {num_embeddings} "
        f"tokens only. {MORE_ROWS}"
    )
