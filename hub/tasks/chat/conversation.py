"""The turns of a conversation, and which of them still fit into the model's context."""

import json
import os
from pathlib import Path

from hub.data.json_values import JsonObject
from hub.errors import DataError, first_line
from hub.tasks.generate.prompts import Prompter

WHERE = "this conversation"


class Conversation:
    """What was said so far."""

    def __init__(self, system: str | None) -> None:
        self.system = system
        self.turns: list[JsonObject] = []
        """Messages of the user and the assistant, in turn."""

        self.left_out = 0
        """Of the oldest turns, those that did not fit into the context the last time."""

    @property
    def messages(self) -> list[JsonObject]:
        """All messages, the system's in front."""
        return [*self._first(), *self.turns]

    def ask(self, text: str) -> None:
        """Add a question."""
        self.turns.append({"role": "user", "content": text})

    def answer(self, text: str, thoughts: str = "") -> None:
        """Add an answer. Without a text the question is taken back."""
        if not text.strip():
            self.turns.pop()
            return
        message: JsonObject = {"role": "assistant", "content": text}
        self.turns.append(message | {"reasoning_content": thoughts} if thoughts else message)

    def undo(self) -> bool:
        """Take the last question and its answer back. Returns whether there was one."""
        had = bool(self.turns)
        while self.turns and self.turns.pop()["role"] != "user":
            pass
        return had

    def reset(self) -> None:
        """Forget all turns, and keep the system message."""
        self.turns, self.left_out = [], 0

    def prompt(self, prompter: Prompter, max_positions: int | None, max_new_tokens: int) -> list[int]:
        """The tokens of the prompt for the next answer. The oldest turns are left out while there is no room for an answer.

        Args:
            prompter: of the model.
            max_positions: the longest sequence in tokens that the model can hold. None: any.
            max_new_tokens: of an answer.

        Raises:
            DataError: the template refuses it, or the last question alone does not fit.
        """
        room = max_positions - min(max_new_tokens, max_positions // 4) if max_positions is not None else None
        turns, left_out = self.turns, 0
        while True:
            ids = prompter.of_messages([*self._first(), *turns], None, WHERE).ids
            if room is None or len(ids) <= room:
                break
            later = next((place for place, turn in enumerate(turns) if place and turn["role"] == "user"), None)
            if later is None:
                if max_positions is not None and len(ids) >= max_positions:
                    raise DataError(f"this has {len(ids)} tokens, and the model can hold {max_positions} with the answer")
                break
            turns, left_out = turns[later:], left_out + later
        self.left_out = left_out
        return ids

    def save(self, file: str) -> Path:
        """Add the conversation to a JSON lines file, as a row of training data.

        Raises:
            DataError: there is nothing to save, or the file can't be written.
        """
        if not self.turns:
            raise DataError("there is nothing to save yet")
        path = Path(os.path.expanduser(file)).absolute()
        try:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise DataError(f"{path}: can't write there ({error.strerror or first_line(error)})") from None
        return path

    def _first(self) -> list[JsonObject]:
        return [{"role": "system", "content": self.system}] if self.system else []
