"""The settings that all runs share: the model, the tasks, and the number of rows."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCUMENT_TOKENS = 1024
"""Maximum number of tokens used of a document, from its beginning."""


@dataclass
class Study:
    """The settings that all runs share. Each child process gets them as JSON."""

    model: str
    tasks: dict[str, list[str]]
    """Training and test file of each task by name."""

    text: list[str]
    """Files with general text: to protect, and to measure."""

    rows: int
    test_rows: int
    batch: int
    epochs: float

    def read(self, task: str, test: bool = False) -> list[list[dict[str, str]]]:
        return [row["messages"] for row in rows_of(self.tasks[task][test])][: self.test_rows if test else self.rows]


def rows_of(file: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]


def write_rows(file: Path, rows: Sequence[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def as_rows(rows: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"messages": messages} for messages in rows]


def chosen(study: Study, task: str, number: int, seed: int) -> list[Any]:
    """Return random rows of an earlier task, the same for every method."""
    rows = study.read(task)
    return random.Random(seed).sample(rows, min(number, len(rows)))
