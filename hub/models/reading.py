"""Reads of a model's files by transformers: whatever goes wrong becomes one line that names the file and the field.

Each release of transformers checks other fields, and fails in other ways. So the line does not depend on the kind of error: the
field is found by trial. Each file, then each field, is left out of a copy of the folder, until the copy can be read.
"""

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from hub.errors import HubError, ModelError, first_line

T = TypeVar("T")
Read = Callable[[Path], T]
"""Reads something from a model's folder."""

CONFIG, TOKENIZER = "config.json", "tokenizer.json"

SECONDS = 20.0
"""Time for finding the field. Reading a tokenizer of 250,000 tokens takes about a second."""

LARGEST = 2**20
"""Largest file in bytes whose fields are tried one by one. Vocabularies are larger, and are named as a whole."""

_DEPTH, _WIDTH = 4, 64
"""How deep fields are tried, and how many beside each other: vocabularies have more."""

_NAMED_FIELD = re.compile(r"[Ff]ield '(\w+)'|`(\w+)`")


class ModelFileError(ModelError):
    """A file of a model's folder has a value that can't be used."""

    file = field = ""

    @classmethod
    def of(cls, name: str, file: str, field: str, found: str, reason: str) -> "ModelFileError":
        """The error of a value.

        Args:
            name: the model, in messages.
            file: name of the file.
            field: name of the field, with dots. Empty: it is not known.
            found: its value, as in JSON. Empty: it is not known, or too long to repeat.
            reason: what is wrong with it.
        """
        what = f"{file}: {field}{f'={found}' if found else ''} can't be used" if field else f"{file} can't be used"
        error = cls(f"{name}: {what} ({reason}). Correct it, or copy or download the model again")
        error.file, error.field = file, field
        return error


def reading(
    read: Read[T],
    folder: Path,
    name: str,
    file: str = CONFIG,
    known: Callable[[BaseException], str] = lambda error: "",
    trial: Read[Any] | None = None,
) -> T:
    """The result of reading a model's folder.

    Args:
        read: reads it.
        folder: of the model.
        name: of the model, in messages.
        file: which file is named if no trial shows another one.
        known: what to say of an error whose cause is known. Empty: its cause is looked for.
        trial: a read that fails for the same reason. It is called many times with copies of the folder, so it must be quick,
            and run no code of the folder. None: nothing is tried.

    Raises:
        ModelFileError: it can't be read, whatever the reason is.
        HubError: of `read` itself.
    """
    try:
        return read(folder)
    except HubError:
        raise
    except BaseException as error:
        if not is_of_files(error):
            raise
        if line := known(error):
            raise ModelError(f"{name}: {line}") from None
        found = culprit(trial, folder, error, file) if trial is not None else None
        named, field, value = found or (file, "", "")
        raise ModelFileError.of(name, named, field, value, words_of(error)) from None


def is_of_files(error: BaseException) -> bool:
    """Whether an error can come from the content of files. Signals and a lack of memory can't.

    A panic of Rust code is no `Exception`, and can.
    """
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):  # torch's own: it is not imported here
        return False
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def words_of(error: BaseException) -> str:
    """What a library said, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Strict dataclasses of huggingface_hub say what they are on the first line, and what is wrong on the second.
    line = lines[1] if len(lines) > 1 and lines[0].endswith(":") else first_line(error)
    kind = type(error).__name__
    line = line if ":" in line or line == kind or " " in line else f"{kind}: {line}"
    return line if len(line) <= 200 else f"{line[:200]}..."


def shown(value: Any) -> str:
    """A value of a JSON file, for a message. Empty if it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else ""


def culprit(read: Read[Any], folder: Path, error: BaseException, file: str) -> tuple[str, str, str] | None:
    """File, field and value without which a model's folder can be read. None: there is no single one.

    Args:
        read: fails for the same reason. It is called many times with copies of the folder.
        folder: of the model.
        error: why it can't be read.
        file: the likely one.
    """
    until = time.monotonic() + SECONDS
    with tempfile.TemporaryDirectory(prefix="hub-model-") as place:
        trial = _Trial(read, folder, Path(place), until)
        if trial.works("", None):
            return None  # the cause is elsewhere, as in the weights
        for other in _candidates(folder, file):
            if other != file and not trial.works(other, None):
                continue  # it is not this file, or not alone
            values = _values(folder / other)
            keys = list(values) if isinstance(values, dict) else []
            named = {name for match in _NAMED_FIELD.finditer(str(error)) for name in match.groups() if name}
            for key in sorted(keys, key=lambda key: key not in named):
                if trial.works(other, _without(values, (key,))):
                    path = trial.deepest(other, values, (key,))
                    return other, _dotted(path), shown(_at(values, path))
            if other == TOKENIZER:  # which must have some fields, empty as they may be
                for key in keys:
                    if trial.works(other, values | {key: []}):
                        return other, key, shown(values[key])
            if keys and (key := _mentioned(values, str(error))):
                return other, key, shown(values[key])
            if other != file:
                return other, "", ""
    return None


def _mentioned(values: dict[str, Any], text: str) -> str:
    """The field that an error names, with or without its underscores. Empty: it names none."""
    return max((key for key in values if key in text or key.replace("_", " ") in text), key=len, default="")


class _Trial:
    """Reads copies of a folder in which one file has another content."""

    def __init__(self, read: Read[Any], folder: Path, place: Path, until: float) -> None:
        self.read, self.place, self.until = read, place, until
        for entry in folder.absolute().iterdir():
            (place / entry.name).symlink_to(entry)

    def works(self, file: str, values: Any) -> bool:
        """Whether the folder can be read with these values in a file. None: without the file. No file: as it is."""
        if time.monotonic() > self.until:
            return False
        if not file:
            return self._reads()
        copy = self.place / file
        target = os.readlink(copy)
        copy.unlink()
        try:
            if values is not None:
                copy.write_text(json.dumps(values), encoding="utf-8")
            return self._reads()
        finally:
            copy.unlink(missing_ok=True)
            copy.symlink_to(target)

    def _reads(self) -> bool:
        try:
            self.read(self.place)
        except BaseException as error:
            if not is_of_files(error):
                raise
            return False
        return True

    def deepest(self, file: str, values: Any, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
        """The innermost value without which the folder can be read."""
        inner = _at(values, path)
        if len(path) < _DEPTH and (not isinstance(inner, dict | list) or len(inner) <= _WIDTH):
            for key in _keys(inner):
                if self.works(file, _without(values, (*path, key))):
                    return self.deepest(file, values, (*path, key))
        return path


def _candidates(folder: Path, file: str) -> list[str]:
    """The files that may be the cause: templates, which are few, the likely one, then the others. Not those that list weights."""
    others = sorted(path.name for path in folder.glob("*.json") if path.is_file() and not path.name.endswith(".index.json"))
    templates = sorted(path.name for path in folder.glob("*.jinja") if path.is_file())
    return [*templates, *(name for name in dict.fromkeys([file, *others]) if name in others)]


def _values(file: Path) -> Any:
    """The content of a JSON file. None: it is large, or can't be read."""
    try:
        return (
            json.loads(file.read_text(encoding="utf-8")) if file.suffix == ".json" and file.stat().st_size <= LARGEST else None
        )
    except (OSError, ValueError, RecursionError):
        return None


def _keys(value: Any) -> Iterator[str | int]:
    if isinstance(value, dict):
        yield from value
    elif isinstance(value, list):
        yield from range(len(value))


def _at(value: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _without(value: Any, path: tuple[str | int, ...]) -> Any:
    """A copy of a JSON value without one of its parts."""
    key, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {k: _without(v, rest) if k == key else v for k, v in value.items() if k != key or rest}
    return [_without(v, rest) if k == key else v for k, v in enumerate(value) if k != key or rest]


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))
