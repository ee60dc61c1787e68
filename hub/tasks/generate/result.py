"""What `generate` returns: the answers, which show themselves in a terminal and in a notebook."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from hub.tables import as_html


@dataclass(frozen=True, repr=False)
class Answers:
    """The answers to prompts, in the order of the rows. Each is a dictionary with the fields of a line of the file."""

    answers: list[dict[str, Any]]
    path: Path | None = None
    """The file that they were written to."""

    num_new: int = 0
    """Answers that were generated now, those of the model before training included."""

    num_tokens: int = 0
    """Tokens of these."""

    seconds: float = 0.0
    """For these, without loading the model."""

    left_out: list[str] = field(default_factory=list)
    """A line for each row without an answer."""

    single: bool = False
    """Whether one question was asked."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.answers)

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.answers[number]

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second, of all answers together."""
        return self.num_tokens / self.seconds if self.seconds else 0.0

    def __repr__(self) -> str:
        if self.single and self.answers:
            answer = self.answers[0]
            if "base_answer" not in answer:
                return str(answer["answer"])
            return f"before: {answer['base_answer']}\n\ntuned: {answer['answer']}"
        if self.path is None:
            return "\n".join(json.dumps(answer, ensure_ascii=False, default=str) for answer in self.answers)
        return self.summary()

    def summary(self) -> str:
        """One or two lines on what was done."""
        ended = sum(answer["finish_reason"] == "stop" for answer in self.answers)
        where = f" in {self.path}" if self.path is not None else ""
        number = len(self.answers)
        lines = [f"{number:,} {'answer' if number == 1 else 'answers'}{where}, of which {ended:,} ended by themselves"]
        if self.num_new:
            lines[0] += (
                f". New: {self.num_new:,} with {self.num_tokens:,} tokens in {self.seconds:,.1f} s "
                f"({self.tokens_per_second:,.0f} tokens/s)"
            )
        if self.left_out:
            lines.append(left_out_line(self.left_out))
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The answers and what they took, as JSON values."""
        return {
            "answers": self.answers,
            "file": str(self.path) if self.path is not None else None,
            "num_new": self.num_new,
            "num_tokens": self.num_tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "left_out": self.left_out,
        }

    def _repr_html_(self) -> str:
        names = [name for name in ("prompt", "reference", "base_answer", "answer") if any(name in row for row in self.answers)]
        rows = [[str(row.get(name, "")) for name in names] for row in self.answers[:100]]
        return as_html(rows, [name.replace("_", " ") for name in names]) + f"<p>{escape(self.summary())}</p>"


def left_out_line(left_out: Sequence[str]) -> str:
    """A line on rows that were left out.

    Args:
        left_out: why, one line for each. At least one.
    """
    number = len(left_out)
    return f"{number:,} {'row' if number == 1 else 'rows'} without an answer. The first: {left_out[0]}"
