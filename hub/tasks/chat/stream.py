"""Tokens to text while they come: no character before all its tokens are there, no part of a stop text, thoughts apart."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hub.data.tokens.marks import CLOSE_THOUGHTS, OPEN_THOUGHTS
from hub.tasks.generate.answer_shape import AnswerShape, split_thoughts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4
"""Tokens after which a replacement character is what the model wrote: a character has at most four bytes."""


class TextStream:
    """Shows an answer while it is generated."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        shape: AnswerShape,
        stop: Sequence[str],
        opened: bool,
        show: Callable[[str, bool], None],
    ) -> None:
        """Args:
        tokenizer: of the model.
        shape: what stands around answers.
        stop: texts that end an answer.
        opened: whether the prompt has opened a block of thoughts.
        show: gets each new piece of text, and whether it is of the thoughts.
        """
        self._tokenizer, self._shape, self._opened, self._show = tokenizer, shape, opened, show
        self._stop = (*stop, *shape.stop_texts)
        self.ids: list[int] = []
        """All tokens so far."""

        self._text = ""
        self._begin = self._read = 0
        self.thoughts = self.answer = ""
        """What was shown."""

    def feed(self, ids: list[int]) -> None:
        """Take new tokens, and show what is certain."""
        self.ids += ids
        before, now = self._decoded(self.ids[self._begin : self._read]), self._decoded(self.ids[self._begin :])
        waits = now.endswith(_INCOMPLETE) and len(self.ids) - self._read < _LONGEST_CHARACTER
        if len(now) > len(before) and not waits:
            self._text += now[len(before) :]
            self._begin, self._read = self._read, len(self.ids)
        self._update(final=False)

    def finish(self) -> None:
        """Show the rest."""
        before, now = self._decoded(self.ids[self._begin : self._read]), self._decoded(self.ids[self._begin :])
        self._text += now[len(before) :]
        self._begin = self._read = len(self.ids)
        self._update(final=True)

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode([n for n in ids if n not in self._shape.stop_ids], skip_special_tokens=False))

    def _update(self, final: bool) -> None:
        text, header = self._text, self._shape.header
        if not final and header.startswith(text) and text != header:
            return
        found = [place for word in self._stop if (place := text.find(word)) >= 0]
        text = text[: min(found)] if found else text if final else text[: len(text) - self._held(text)]
        thoughts, answer = split_thoughts(text, header, self._opened)
        for is_thought, whole, shown in ((True, thoughts, self.thoughts), (False, answer, self.answer)):
            if len(whole) > len(shown) and whole.startswith(shown):
                self._show(whole[len(shown) :], is_thought)
        self.thoughts, self.answer = thoughts, answer

    def _held(self, text: str) -> int:
        """How many characters at the end may be the beginning of a mark or of a stop text."""
        marks = (*self._stop, CLOSE_THOUGHTS, OPEN_THOUGHTS)
        return max(size for word in marks for size in range(len(word)) if size == 0 or text.endswith(word[:size]))
