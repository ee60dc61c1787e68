"""What a conversation looks like: thoughts dimmed, two answers side by side where the terminal is wide enough."""

import os
import shutil
import sys
import textwrap
from itertools import zip_longest

from hub.system.saying import PLAIN_TERMINALS
from hub.tables import for_terminal

WIDE = 100
"""Columns of a terminal from which on two answers stand side by side."""


class Screen:
    """Writes to the terminal or to a pipe."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty() and os.environ.get("TERM") not in PLAIN_TERMINALS
        self._colors = self.is_terminal and "NO_COLOR" not in os.environ
        self._thinking = False

    @property
    def width(self) -> int:
        return shutil.get_terminal_size().columns

    @property
    def is_wide(self) -> bool:
        """Whether two answers have room beside each other."""
        return self.is_terminal and self.width >= WIDE

    def piece(self, text: str, thought: bool) -> None:
        """Write a piece of an answer."""
        if thought != self._thinking:
            self._switch(thought)
        sys.stdout.write(for_terminal(text) if self.is_terminal else text)
        sys.stdout.flush()

    def end(self) -> None:
        """End an answer."""
        if self._thinking:
            self._switch(thought=False)
        sys.stdout.write("\n")
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """Write a heading, dimmed on a terminal."""
        print(f"\033[2m{text}\033[0m" if self._colors else text, flush=True)

    def remark(self, text: str) -> None:
        """Write a line of the hub's own. It is no part of the conversation."""
        print(f"\033[2m{text}\033[0m" if self._colors else text, file=sys.stderr, flush=True)

    def beside(self, left: tuple[str, str], right: tuple[str, str]) -> None:
        """Write two answers side by side.

        Args:
            left: heading and text.
            right: heading and text.
        """
        column = (self.width - 3) // 2
        rows = [wrapped(for_terminal(text), column) for _, text in (left, right)]
        self.line(f"{left[0][:column]:<{column}} | {right[0][:column]}")
        for one, other in zip_longest(*rows, fillvalue=""):
            print(f"{one:<{column}} | {other}", flush=True)

    def _switch(self, thought: bool) -> None:
        self._thinking = thought
        if self._colors:
            sys.stdout.write("\033[2m" if thought else "\033[0m\n\n")
        else:
            sys.stdout.write("(thinking) " if thought else "\n\n")


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a text, none longer than the width."""
    return [part for line in text.splitlines() for part in (textwrap.wrap(line, width) or [""])]
