"""When an answer has ended: at a token, at a text, or at its bound."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ODD = "a ' b , c"
"""A text that some tokenizers clean up when they make a text of its tokens."""


class Ends:
    """What ends an answer. Only the end of the answer is made a text, and only behind a token that can complete a stop text."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int], texts: Sequence[str]) -> None:
        """Args:
        tokenizer: of the answers.
        stop_ids: tokens that end an answer.
        texts: texts that end one besides.
        """
        self.stop_ids = frozenset(stop_ids)
        self._tokenizer, self._texts = tokenizer, tuple(text for text in texts if text)
        self._last = {text[-1] for text in self._texts} | {"\N{REPLACEMENT CHARACTER}"}  # a part of a character
        # A token is at least a byte of a stop text, and the first token of a text may lose its space.
        self._window = 2 * max((len(text.encode()) for text in self._texts), default=0) + 8
        self._completes: dict[int, bool] = {}
        self._before: list[int] | None = None

    def reached(self, ids: Sequence[int]) -> bool:
        """Whether an answer ends with its last token.

        Args:
            ids: all its tokens. It did not end before.
        """
        last = ids[-1]
        if last in self.stop_ids:
            return True
        if not self._texts:
            return False
        completes = self._completes.get(last)
        if completes is None:
            completes = self._completes[last] = self._can_complete(last)
        if not completes:
            return False
        tail = self._text(ids[-self._window :])
        return any(text in tail for text in self._texts)

    def _can_complete(self, token: int) -> bool:
        """Whether a token brings the last character of a stop text, in any place."""
        if self._before is None:
            odd = list(self._tokenizer(_ODD, add_special_tokens=False)["input_ids"])
            is_plain = self._text(odd) == str(
                self._tokenizer.decode(odd, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            )
            self._before = odd[:1] if is_plain else []
        if not self._before:  # characters before a token may change
            return True
        behind = self._text([*self._before, token])[len(self._text(self._before)) :]
        return not self._last.isdisjoint(behind + self._text([token]))

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
