"""Rows of a data file, one at a time, each with the file and line that it came from.

JSONL, JSON and CSV are read with the standard library alone, so that a broken line is found, with its number, before
anything heavy is imported. Parquet and data sets of the model hub go through `datasets`.
"""

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from hub.errors import DataError, did_you_mean

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LONGEST_QUOTE = 80
_HUB_TIMEOUT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a data file."""

    value: dict[str, Any]
    """The fields."""

    file: str
    """Path of the file, or id of the data set."""

    line: int
    """Line on which the row begins, from 1. For parquet and data sets of the model hub: the number of the row."""

    @property
    def where(self) -> str:
        """`chats.jsonl:17`, for messages."""
        return f"{Path(self.file).name}:{self.line}"


class Checked(NamedTuple):
    """What `check_rows` saw."""

    num_rows: int | None
    """Good rows seen. None where counting them needs `datasets`."""

    complete: bool
    """Whether these are all rows that there are."""


def read_rows(path: str) -> Iterator[Row]:
    """All rows of a file, a folder of files (sorted by name) or a data set of the model hub (its split `train`).

    Raises:
        DataError: nothing is there, or a row can't be read; the message names file and line.
    """
    if is_hub_id(path):
        yield from _read_hub(path)
        return
    for file in data_files(path):
        empty = True
        for row in _READERS[file.suffix.lower()](file):
            empty = False
            yield row
        if empty:
            raise DataError(f"{file}: the file holds no rows. Give a file with at least one, or take it out of the folder")


def check_rows(path: str, format: str, limit: int = 20_000) -> Checked:
    """Read and convert the first rows with no heavy import, to find mistakes before training is started.

    Args:
        path: as for `read_rows`. Of parquet files only the existence is checked, of ids of the model hub nothing.
        format: as `data.format`.
        limit: the number of rows after which to stop.

    Raises:
        DataError: the first mistake, with file and line.
    """
    from hub.data.formats import conversations  # it imports Row from here

    if is_hub_id(path) or any(file.suffix.lower() == ".parquet" for file in data_files(path)):
        return Checked(None, False)
    num_rows = sum(1 for _ in islice(conversations(read_rows(path), format), limit + 1))
    return Checked(min(num_rows, limit), num_rows <= limit)


def num_held_out(num_rows: int, fraction: float) -> int:
    """Rows that `data.eval_fraction` takes from training: at least one, and never all."""
    return min(num_rows - 1, max(1, round(num_rows * fraction))) if fraction else 0


def is_hub_id(path: str) -> bool:
    """Whether `path` is to be asked of the model hub: of the form `org/name`, and nothing local by these names."""
    local = Path(path).expanduser()
    return (
        _HUB_ID.fullmatch(path) is not None
        and local.suffix.lower() not in SUFFIXES
        and not local.exists()
        and not local.parent.exists()
    )


def data_files(path: str) -> list[Path]:
    """The local files that `path` stands for.

    Raises:
        DataError: no such file or folder, no data file in the folder, or a suffix that is not known.
    """
    local = Path(path).expanduser()
    allowed = ", ".join(SUFFIXES)
    if local.is_dir():
        inside = sorted(file for file in local.iterdir() if file.is_file() and not file.name.startswith("."))
        files = [file for file in inside if file.suffix.lower() in SUFFIXES]
        if not files:
            found = f" It holds: {_shorten(', '.join(file.name for file in inside))}" if inside else " It is empty."
            raise DataError(f"{path}: no data file in this folder. Allowed: {allowed}.{found}")
        return files
    if not local.exists():
        raise DataError(f"{path}: there is no such file or folder.{_near_names(local)}")
    if local.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: {local.suffix or 'a name without ending'} is no kind of data file. Allowed: {allowed}")
    return [local]


def _near_names(missing: Path) -> str:
    folder = missing.parent
    while not folder.is_dir() and folder != folder.parent:
        missing, folder = folder, folder.parent
    try:
        names = os.listdir(folder)
    except OSError:
        return ""
    near = did_you_mean(missing.name, names)
    return near if missing.parent == Path() or not near else f"{near} (in {folder})"


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "..."


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line, line end included. Only a line feed ends a line, as in JSONL."""
    try:
        with file.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                if number == 1:
                    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise DataError(f"{file}: the text is UTF-16. Save it as UTF-8")
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if b"\0" in raw:
                    raise DataError(f"{file}:{number}: a zero byte: this is a binary file, not text")
                try:
                    yield number, raw.decode()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{file}:{number}: byte {error.start + 1} of the line (0x{raw[error.start]:02x}) is not UTF-8: "
                        "a binary file, or text in another encoding. Save it as UTF-8"
                    ) from None
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error.strerror})") from None


def _parse(text: str, file: Path, first_line: int, decoder: json.JSONDecoder, start: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at `start`, and the position after it."""
    try:
        return decoder.raw_decode(text, start)
    except RecursionError:
        reason, position = "nested too deeply", start
    except json.JSONDecodeError as error:
        reason, position = error.msg, error.pos
    except ValueError as error:
        reason, position = str(error), start
    line = first_line + text.count("\n", start, position)
    column = position - text.rfind("\n", 0, position)
    begin = start if line == first_line else position - column + 1
    end = text.find("\n", begin)
    quote = _shorten(text[begin : end if end >= 0 else None])
    raise DataError(f"{file}:{line}: broken JSON at column {column} ({reason}). The line begins: {quote}")


def _object(value: Any, file: Path, line: int, text: str) -> Row:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}.get(type(value), "a number")
        raise DataError(f"{file}:{line}: a row must be a JSON object {{...}}, this is {kind}: {_shorten(text)}")
    return Row(value, str(file), line)


def _read_jsonl(file: Path) -> Iterator[Row]:
    decoder = json.JSONDecoder()
    for number, line in _lines(file):
        text = line.strip()
        if not text:
            continue
        value, end = _parse(text, file, number, decoder)
        if text[end:].strip():
            raise DataError(
                f"{file}:{number}: broken JSON at column {end + 1} (one object per line; more text follows it). "
                f"The line begins: {_shorten(text)}"
            )
        yield _object(value, file, number, text)


def _read_json(file: Path) -> Iterator[Row]:
    """A list of objects; or, since many files named .json are that, one object per line."""
    first = next((line.lstrip() for _, line in _lines(file) if line.strip()), "")
    if not first.startswith("["):
        yield from _read_jsonl(file)
        return
    text = "".join(line for _, line in _lines(file))
    decoder = json.JSONDecoder()
    position, line = text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    space = re.compile(r"[ \t\r\n]*")

    def skip(start: int) -> int:
        nonlocal line
        match = space.match(text, start)
        end = match.end() if match else start
        line += text.count("\n", start, end)
        return end

    position = skip(position)
    while not text.startswith("]", position):
        value, end = _parse(text, file, line, decoder, position)
        yield _object(value, file, line, text[position:end])
        line += text.count("\n", position, end)
        position = skip(end)
        if text.startswith(",", position):
            position = skip(position + 1)
        elif not text.startswith("]", position):
            rest = text[position : position + 2 * _LONGEST_QUOTE]
            found = f"here stands: {_shorten(rest)}" if rest else "the file ends here: it seems to be cut short"
            raise DataError(f"{file}:{line}: broken JSON: a comma or ] must follow a row; {found}")
    if text[position + 1 :].strip():
        line += text.count("\n", position, skip(position + 1))
        raise DataError(f"{file}:{line}: broken JSON: more text follows the end of the list")


def _read_csv(file: Path) -> Iterator[Row]:
    """Cells are text. The first row names the fields."""
    csv.field_size_limit(2**31 - 1)
    last_line = 0

    def text_lines() -> Iterator[str]:
        nonlocal last_line
        for number, line in _lines(file):
            last_line = number
            yield line

    table = csv.reader(text_lines(), strict=True)
    header: list[str] | None = None
    begin = 1
    try:
        for cells in table:
            if not any(cells):
                pass
            elif header is None:
                header = cells
                if len(set(header)) < len(header) or "" in header:
                    raise DataError(f"{file}:{begin}: the first row must name the fields, each once: {_shorten(str(header))}")
            elif len(cells) != len(header):
                raise DataError(
                    f"{file}:{begin}: {len(cells)} cells, but the first row names {len(header)} fields. "
                    f"The row begins: {_shorten(','.join(cells))}"
                )
            else:
                yield Row(dict(zip(header, cells, strict=True)), str(file), begin)
            begin = table.line_num + 1
    except csv.Error as error:
        raise DataError(f"{file}:{begin}: broken CSV ({error})") from None


def _read_parquet(file: Path) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        rows = load_dataset("parquet", data_files=str(file), split="train", streaming=True)
        for number, value in enumerate(rows, 1):
            yield Row(dict(value), str(file), number)
    except Exception as error:  # a damaged file shows as one of many classes of pyarrow and datasets
        raise DataError(f"{file}: can't be read as parquet ({_first_line(error)})") from None


def _read_hub(name: str) -> Iterator[Row]:
    from datasets import load_dataset
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if not HF_HUB_OFFLINE:
        # Asked first, since load_dataset retries for half a minute where there is no network.
        try:
            HfApi().dataset_info(name, timeout=_HUB_TIMEOUT_SECONDS)
        except GatedRepoError:
            raise DataError(
                f"{name}: this data set must be asked for. Accept its terms on its page, then: hf auth login"
            ) from None
        except RepositoryNotFoundError:
            raise DataError(
                f"{name}: no such file here, and no such data set on the model hub. If it is private: hf auth login"
            ) from None
        except Exception as error:  # each version of huggingface_hub has other classes for a missing network
            raise DataError(
                f"{name}: no such file here, and the model hub can't be reached ({_first_line(error)}). "
                "Give a local file, or set HF_HUB_OFFLINE=1 to take a data set that was loaded before"
            ) from None
    try:
        rows = load_dataset(name, split="train")
    except Exception as error:  # load_dataset has no class of its own for its errors
        raise DataError(f"{name}: the data set can't be loaded ({_first_line(error)})") from None
    for number, value in enumerate(rows, 1):
        yield Row(dict(value), name, number)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


_READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
