"""The file of answers: written while they are generated, continued by the next call, in the order of the rows at the end."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from hub.errors import ConfigError, DataError

Record = dict[str, Any]
_INSTEAD = "Type out=OTHER.jsonl, or overwrite=true to begin anew"


def fingerprint(values: Mapping[str, object]) -> str:
    """A short text that differs when any of the settings of answers differs."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


class AnswersFile:
    """Answers by the number of their row. Without a path they are held in memory only."""

    def __init__(self, path: str | None, settings: str, overwrite: bool) -> None:
        """Args:
        path: the file. None: none.
        settings: `fingerprint` of what decides the answers.
        overwrite: whether to forget what is in the file.

        Raises:
            ConfigError: it can't be written, is no file of answers, or has answers of other settings.
        """
        self.path = Path(os.path.expanduser(path)).absolute() if path is not None else None
        self.records: dict[int, Record] = {}
        self._settings = settings
        self._stream: TextIO | None = None
        if self.path is not None and self.path.exists():
            self._read(self.path, only_first=overwrite)

    def done(self, number: int, asked: Mapping[str, Any], field: str) -> bool:
        """Whether a row has an answer already.

        Args:
            number: of the row.
            asked: what the row asks.
            field: `answer` or `base_answer`.

        Raises:
            ConfigError: the file has an answer to something else.
        """
        record = self.records.get(number)
        if record is None:
            return False
        before = {name: record.get(name) for name in asked}
        if before != json.loads(json.dumps(asked, default=str)):
            raise ConfigError(f"out={self.path} has an answer of row {number} to another prompt. {_INSTEAD}")
        return field in record

    def add(self, records: Iterable[Record]) -> None:
        """Write answers behind the others, at once."""
        for record in records:
            line = record | {"settings": self._settings}
            self.records[record["row"]] = self.records.get(record["row"], {}) | line
            if self._stream is not None:
                self._stream.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        if self._stream is not None:
            self._stream.flush()

    def __enter__(self) -> Self:
        if self.path is not None:
            self._refuse_another_writer(self.path)
            try:
                self._write()  # without a last line that was cut off
                self._stream = self.path.open("a", encoding="utf-8", errors="surrogateescape")
                _locked(self._stream)
            except OSError as error:
                raise ConfigError(f"out={self.path}: can't write there ({error.strerror}). Type out=FILE.jsonl") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Put the answers into the order of the rows."""
        if self._stream is not None:
            self._stream.close()
            self._write()

    def _refuse_another_writer(self, path: Path) -> None:
        with suppress(OSError), path.open(encoding="utf-8") as stream:
            if not _locked(stream):
                raise ConfigError(f"out={path}: another process is writing answers to it. Wait for it, or type out=OTHER.jsonl")

    def _write(self) -> None:
        assert self.path is not None
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with aside.open("w", encoding="utf-8", errors="surrogateescape") as stream:
            for number in sorted(self.records):
                stream.write(json.dumps(self.records[number], ensure_ascii=False, default=str) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(self.path)

    def _read(self, path: Path, only_first: bool) -> None:
        """Read the answers. With `only_first` only check that it is a file of answers, which may be overwritten."""
        try:
            # Not splitlines: an answer may have other characters that Python takes for ends of lines, such as U+2028.
            lines = path.read_text(encoding="utf-8", errors="surrogateescape").removesuffix("\n").split("\n")
        except OSError as error:
            raise ConfigError(f"out={path}: can't be read ({error.strerror}). Type out=OTHER.jsonl") from None
        for place, line in enumerate(lines if lines != [""] else [], 1):
            try:
                record = json.loads(line)
                number, settings = record["row"], record["settings"]
            except (ValueError, KeyError, TypeError):
                if place == len(lines) and self.records:
                    break  # the process was killed while it wrote this line
                instead = _INSTEAD if place > 1 else "Type out=OTHER.jsonl"
                raise ConfigError(f"out={path} is not a file of answers (line {place}). {instead}") from None
            if only_first:
                return
            if settings != self._settings:
                raise ConfigError(f"out={path} has answers of another model or other settings. {_INSTEAD}")
            self.records[number] = self.records.get(number, {}) | record


def _locked(stream: TextIO) -> bool:
    """Lock a file until it is closed. Returns whether no other process has locked it."""
    with suppress(ImportError, OSError):  # not all systems and file systems have locks
        from fcntl import LOCK_EX, LOCK_NB, flock

        try:
            flock(stream, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            return False
    return True


def refuse_own_data(out: str | None, data: str) -> None:
    """Refuse to write answers over the prompts.

    Raises:
        DataError: `out` is the data, or would be read as data by the next call.
    """
    if out is None:
        return
    file, source = (Path(os.path.realpath(os.path.expanduser(path))) for path in (out, data))
    if file == source:
        raise DataError(f"out={out} is the file of the prompts. Type another name")
    if source.is_dir() and file.is_relative_to(source):
        raise DataError(f"out={out} is in the folder of the prompts, whose files are all read. Type out=FILE.jsonl elsewhere")
    if not source.exists() and fnmatch(str(file), str(source)):
        raise DataError(f"out={out} is one of the files that data.path={data} reads. Type another name")
