"""Reads a compressed model in the environment that made it, in a process of its own."""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from hub.errors import ModelError
from hub.tasks.export.compressed import read_model
from hub.tasks.export.compressed.interpreter import command, environment

_SECONDS_TO_END = 10


class RemoteReader:
    """A model that another process has loaded."""

    def __init__(self, questions: IO[str], answers: IO[str], folder: Path) -> None:
        self._questions, self._answers, self._folder = questions, answers, folder
        found = self._answer()
        self.name: str = found["name"]
        self._template: str | None = found["template"]
        self._ends = frozenset(int(number) for number in found["ends"])

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """The logits behind each token: (tokens, vocabulary), float32, on the CPU."""
        return self._array(self._ask(ids=list(ids)))

    def hidden(self, ids: Sequence[int]) -> list[torch.Tensor] | None:
        """The hidden states behind the embedding and behind each layer: (tokens, width) each."""
        found = self._ask(ids=list(ids), hidden=True)
        return None if found["file"] is None else list(self._array(found))

    def tokens(self, text: str) -> list[int]:
        """Token ids of a rendered prompt."""
        return [int(number) for number in self._ask(text=text)["ids"]]

    def differences(self) -> list[str]:
        """Nothing else."""
        return []

    @property
    def template(self) -> str | None:
        """The chat template."""
        return self._template

    @property
    def ends(self) -> frozenset[int]:
        """Ids of the tokens that end an answer."""
        return self._ends

    def _ask(self, **question: Any) -> dict[str, Any]:
        try:
            self._questions.write(json.dumps(question) + "\n")
            self._questions.flush()
        except BrokenPipeError:
            raise ModelError(f"{self._folder}: the process that reads it ended. Is there enough memory?") from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise ModelError(f"{self._folder}: the process that reads it ended. Is there enough memory?")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise ModelError(f"{self._folder}: can't be read again: {found['error']}")
        return found

    @staticmethod
    def _array(found: dict[str, Any]) -> torch.Tensor:
        file = Path(found["file"])
        values = torch.from_numpy(np.load(file))
        file.unlink()
        return values


@contextmanager
def open_compressed(folder: Path, python: str | None, trust_remote_code: bool = False) -> Iterator[RemoteReader]:
    """Open a model folder in another process.

    Args:
        folder: of the model.
        python: of the environment that can read it. None: this one.
        trust_remote_code: whether its own code may run.

    Raises:
        ModelError: it can't be read.
    """
    with tempfile.TemporaryDirectory() as out, open(f"{out}/log", "w+", encoding="utf-8") as log:
        child = subprocess.Popen(
            [command(python), read_model.__file__, str(folder), str(trust_remote_code), out],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment(python),
            cwd=out,
            text=True,
            encoding="utf-8",
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            yield RemoteReader(child.stdin, child.stdout, folder)
        finally:
            _end(child)


def _end(child: "subprocess.Popen[str]") -> None:
    """Let the process end, or end it."""
    assert child.stdin is not None
    assert child.stdout is not None
    with suppress(BrokenPipeError):
        child.stdin.close()
    try:
        child.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    child.stdout.close()
