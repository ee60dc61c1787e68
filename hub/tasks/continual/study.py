"""What all runs of a study share, and the methods that it compares."""

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

REPLAY = "replay"
MOST_REPLAYED = 0.8
"""Largest fraction of a task's tokens that rows of earlier tasks may take."""


@dataclass(frozen=True)
class Method:
    """One row of the table: an algorithm with options."""

    name: str
    """As it was typed."""

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def algorithm(self) -> str:
        return "sft" if self.kind == REPLAY else self.kind

    @property
    def words(self) -> list[str]:
        """Its options as one types them: `algo.NAME=VALUE`."""
        typed = [word.strip() for word in self.name.partition(":")[2].split(";")]
        return [word if "." in word.partition("=")[0] else f"algo.{word}" for word in typed if word]

    @property
    def options(self) -> dict[str, Any]:
        """Its options as keyword arguments of `hub.run`."""
        pairs = [word.partition("=") for word in self.words]
        return {name.rpartition(".")[2]: _value(value) for name, _, value in pairs}

    @property
    def label(self) -> str:
        """Its name in names of files."""
        return "".join(letter if letter.isalnum() or letter in "-.=" else "_" for letter in self.name)


@dataclass(frozen=True)
class Study:
    """What all runs share. Each process gets it as JSON."""

    model: dict[str, Any]
    """The options of the model that are not as by default, with `path`."""

    tasks: dict[str, list[str]]
    """Training and test file of each task, by name, in the order of the names."""

    text: str | None
    rows: int
    test_rows: int
    replayed: int
    shuffle: bool

    def order(self, seed: int) -> list[str]:
        """The tasks in the order in which they are learned."""
        names = list(self.tasks)
        if self.shuffle:
            random.Random(seed).shuffle(names)
        return names

    def train_rows(self, task: str) -> list[Row]:
        return rows_of(self.tasks[task][0])[: self.rows]

    def questions(self, task: str) -> list[Row]:
        """The test rows: all messages but the last are asked, the last one is the right answer."""
        return rows_of(self.tasks[task][1])[: self.test_rows]

    def documents(self) -> list[str]:
        return [str(row["text"]) for row in rows_of(self.text)[: self.test_rows]] if self.text is not None else []


def _value(text: str) -> Any:
    with suppress(ValueError):
        return json.loads(text)
    return text


def rows_of(file: str) -> list[Row]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").split("\n") if line.strip()]


def write_rows(file: Path, rows: Sequence[Row]) -> Path:
    """Write rows as JSONL."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def with_replay(study: Study, rows: list[Row], earlier: Sequence[str], seed: int) -> list[Row]:
    """Rows of earlier tasks, and as many of the new task as keep the amount of text.

    Args:
        study: the study.
        rows: of the new task.
        earlier: names of the tasks that were learned before.
        seed: chooses the rows.
    """
    old = []
    for task in earlier:
        candidates = study.train_rows(task)
        old += random.Random(seed).sample(candidates, min(study.replayed, len(candidates)))
    random.Random(seed).shuffle(old)
    room = sum(map(_size, rows))
    kept = _within(old, MOST_REPLAYED * room)
    return kept + _within(rows, room - sum(map(_size, kept)))


def _size(row: Row) -> int:
    return sum(len(str(message["content"])) for message in row["messages"])


def _within(rows: Sequence[Row], most: float) -> list[Row]:
    kept: list[Row] = []
    for row in rows:
        most -= _size(row)
        if most < 0:
            break
        kept.append(row)
    return kept
