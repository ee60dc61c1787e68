"""JSON files that are read as a whole: a list of rows, a list under a key, objects over several lines."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from hub.data.json_values import JsonValue, listed
from hub.data.sources.entries import Broken, Entry, as_row, parse_value
from hub.data.sources.files import LONGEST_QUOTE, content_kind, shorten
from hub.data.sources.folders import SPLITS
from hub.data.sources.text_files import lines, texts
from hub.errors import DataError

KEYS = ("data", "rows", "examples", "instances", "records", "items", "samples", "dataset", "train")
"""Keys under which a file may have its rows as a list."""

_AS_ROWS = "Write it with to_json(orient='records', lines=True)"
_LONG_LINE = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")


def is_whole(file: Path) -> bool:
    """Whether a JSON file must be read as a whole. Otherwise it has a row on each line, whatever its ending is."""
    present = (line for line in lines(file, cut=True) if line.error or line.text.strip())
    first = next(present, None)
    if first is None or first.error:
        return False
    if first.is_cut:
        # A whole data set in one line. A list of rows, or an object with one in a file that is no JSONL.
        return first.text.lstrip().startswith("[" if content_kind(file) != ".json" else ("[", "{"))
    text, second = first.text.strip(), next(present, None)
    if text.startswith("[") and len(text) > _LONG_LINE:
        return True
    ends_json = ".json" in (ending.lower() for ending in file.suffixes)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if text.startswith("["):
            return error.pos >= len(text) or ends_json
        # It goes on in the next line, unless it is cut in the middle and the next line has a row of its own.
        goes_on = text.endswith(("{", "[")) or not (second and _is_object(second.text))
        return error.pos >= len(text) and goes_on
    except (ValueError, RecursionError):
        return text.startswith("[")
    one_line = second is None
    if isinstance(value, list):
        return one_line or (ends_json and any(isinstance(inner, dict) for inner in value))
    return one_line and (_list_key(value) is not None or _shape(value) is not None)


def read_whole(file: Path) -> Iterator[Entry]:
    """The rows of a JSON file that is a list, an object with a list under a key, or objects over several lines.

    Raises:
        DataError: the file is broken between two rows, or has columns or several lists in place of rows.
    """
    text = "".join(line for _, line in texts(file))
    start = _skip(text, 0)
    if text.startswith("[", start):
        yield from _list(text, file, start)
        return
    is_first = True
    while start < len(text):
        line = 1 + text.count("\n", 0, start)
        value, end = parse_value(text, file, line, start)
        following = _skip(text, end)
        if is_first and following == len(text):
            if (key := _list_key(value)) is not None:
                yield from _list(text, file, _start_of_list(text, file, start, key))
                return
            if (shape := _shape(value)) is not None:
                raise DataError(f"{file}:{line}: {shape}")
        is_first = False
        yield _entry(value, file, line, text[start:end])
        start = following


def _list(text: str, file: Path, start: int) -> Iterator[Entry]:
    """The rows of the list that begins at `start`."""
    line = 1 + text.count("\n", 0, start)
    position = start + 1

    def skip(begin: int) -> int:
        nonlocal line
        end = _skip(text, begin)
        line += text.count("\n", begin, end)
        return end

    position = skip(position)
    while not text.startswith("]", position):
        value, end = parse_value(text, file, line, position)
        yield _entry(value, file, line, text[position:end])
        line += text.count("\n", position, end)
        position = skip(end)
        if text.startswith(",", position):
            position = skip(position + 1)
        elif not text.startswith("]", position):
            rest = text[position : position + 2 * LONGEST_QUOTE]
            content = f"here is: {shorten(rest)}" if rest else "the file ends here: it seems to be cut short"
            raise DataError(f"{file}:{line}: broken JSON: a comma or ] must follow a row; {content}")
    if text[_skip(text, 0)] == "[" and text[position + 1 :].strip():
        skip(position + 1)
        raise DataError(f"{file}:{line}: broken JSON: more text follows the end of the list")


def _entry(value: JsonValue, file: Path, line: int, text: str) -> Entry:
    try:
        return as_row(value, file, line, text)
    except DataError as error:
        return Broken(error, str(file), line)


def _skip(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start


def _list_key(value: JsonValue) -> str | None:
    """The key under which an object has the rows. None: it is a row itself."""
    if not isinstance(value, dict):
        return None
    lists = [key for key, inner in value.items() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    return next((key for key in KEYS if lists == [key]), None)


def _start_of_list(text: str, file: Path, start: int, key: str) -> int:
    """Where the list under a key of an object begins."""
    position = _skip(text, start + 1)
    while True:
        name, end = parse_value(text, file, 1, position)
        position = _skip(text, _skip(text, end) + 1)  # behind the colon
        if name == key:
            return position
        _, end = parse_value(text, file, 1, position)
        position = _skip(text, _skip(text, end) + 1)  # behind the comma


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _shape(value: JsonValue) -> str | None:
    """What the one object of a file has in place of rows, and what to do. None: it is a row itself, or nobody knows."""
    if not isinstance(value, dict) or not value:
        return None
    inner = list(value.values())
    if all(isinstance(item, list) and item and all(isinstance(each, dict) for each in item) for item in inner):
        if len(value) > 1 and all(key in (*KEYS, *(word for words in SPLITS.values() for word in words)) for key in value):
            return f"this file has several lists of rows ({listed(value)}). Write each into a file of its own"
        return None
    if all(isinstance(item, dict) and item and all(key.isdigit() for key in item) for item in inner):
        return f"this file has columns in place of rows, as DataFrame.to_json writes it. {_AS_ROWS}"
    if set(value) == {"columns", "index", "data"}:
        return f"this file has a table, as DataFrame.to_json(orient='split') writes it. {_AS_ROWS}"
    columns = [item for item in inner if isinstance(item, list) and item and all(isinstance(each, str | list) for each in item)]
    if len(columns) == len(inner) and len(set(map(len, columns))) == 1:
        return f"this file has a list for each column in place of rows. {_AS_ROWS}"
    if all(isinstance(item, dict) and item for item in inner) and all(key.isdigit() for key in value):
        return f"this file has one object with the rows under {listed(value)}. Write the rows as a list"
    return None
