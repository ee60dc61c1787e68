"""What `data.path` stands for: files by their endings, compressed or not, or a dataset of the model hub."""

import bz2
import glob
import gzip
import io
import lzma
import math
import os
import zipfile
from collections.abc import Callable, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import IO, Any, cast

from hub.config.bounds import bounds
from hub.config.paths import COMPRESSED, SUFFIXES, file_kind, is_hub_id, is_pattern
from hub.data.json_values import listed
from hub.data.sources.folders import FEWER_FILES, Files, data_among, entries_of, files_of
from hub.errors import DataError, did_you_mean
from hub.system.links import outside


def _open_zstd(file: Path, mode: str) -> IO[bytes]:
    import pyarrow  # type: ignore[import-untyped]

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(file)), "zstd"))


def _open_zip(file: Path, mode: str) -> IO[bytes]:
    archive = zipfile.ZipFile(file)
    name = _zipped(archive, file)
    try:
        return io.BufferedReader(cast(io.RawIOBase, archive.open(name)))  # lines are read in pieces
    except RuntimeError as error:  # it has a password
        raise DataError(f"{file}: can't be read ({error})") from None


def _zipped(archive: zipfile.ZipFile, file: Path) -> str:
    """The name of the one data file in an archive."""
    inside = {Path(name): name for name in archive.namelist() if not name.startswith("__MACOSX/")}
    names = [inside[path] for path in data_among([path for path in inside if file_kind(path) in _IN_ARCHIVES])]
    if len(names) != 1:
        content = shorten(", ".join(archive.namelist())) or "nothing"
        raise DataError(
            f"{file}: an archive must hold one file ({', '.join(_IN_ARCHIVES)}), this one holds {content}. Unpack it, and give "
            "the folder"
        )
    return names[0]


_IN_ARCHIVES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
_OPENERS: dict[str, Callable[[Path, str], Any]] = dict(
    zip(COMPRESSED, (gzip.open, bz2.open, lzma.open, _open_zstd, _open_zip), strict=True)
)
ALLOWED = (
    f"a file ({', '.join(SUFFIXES)}; texts also as {', '.join(_OPENERS)}), a folder or a pattern (*) of such files, or "
    "ORG/NAME of the model hub"
)
"""What a path of data may be, in words."""

_ALWAYS_ALLOWED = 2**28
"""Bytes that any compressed file may unpack to."""

_PIECE = 2**20
LONGEST_QUOTE = 80


def open_file(file: Path, offset: int = 0) -> IO[bytes]:
    """The bytes of a file, unpacked where it is compressed, from one of them on.

    Raises:
        OSError: it can't be read.
    """
    stream: IO[bytes] = _OPENERS.get(file.suffix.lower(), open)(file, "rb")
    if stream.seekable():
        stream.seek(offset)
        return stream
    while offset > 0 and (skipped := len(stream.read(min(offset, _PIECE)))):
        offset -= skipped
    return stream


def most_unpacked(file: Path) -> float:
    """Bytes that a file may unpack to."""
    if file.suffix.lower() not in _OPENERS:
        return math.inf
    try:
        return max(_ALWAYS_ALLOWED, bounds().max_unpacked_ratio * file.stat().st_size)
    except OSError:
        return math.inf  # opening it says why


def content_kind(file: Path) -> str | None:
    """The ending that decides how a file is read: of an archive, that of the file in it.

    Raises:
        DataError: an archive can't be read, or has no file or several.
    """
    kind = file_kind(file)
    if file.suffix.lower() != ".zip":
        return kind
    try:
        with zipfile.ZipFile(file) as archive:
            return file_kind(Path(_zipped(archive, file)))
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: can't be read ({getattr(error, 'strerror', None) or error})") from None


def data_files(path: str, split: str = "train") -> list[Path]:
    """The local files that `path` stands for. Of a folder those of one split, by their names.

    Args:
        path: a file, a folder, or a pattern for files.
        split: of the files in a folder.

    Raises:
        DataError: no such file or folder, no data file of that split in the folder, or an ending that is not known.
    """
    return _find(path, split).read


def files_line(path: str, split: str = "train") -> str | None:
    """The files that are read of a folder or a pattern, and those that are not, by name. None: `path` is a file.

    Args:
        path: as for `data_files`.
        split: as for `data_files`.
    """
    local = os.path.expanduser(path)
    if is_hub_id(path) or os.path.isfile(local):
        return None
    files, left_out, beside = _find(path, split)
    folder = Path(local) if os.path.isdir(local) else Path(os.path.commonpath([file.parent for file in files]))

    def names(some: Sequence[Path]) -> str:
        return listed(str(file.relative_to(folder)) for file in some)

    line = f"Files of {path}: {names(files)}."
    if left_out:
        line += f" Not read, as they are of other splits or of none: {names(left_out)}."
    if beside:
        line += f" Not read, as they lie beside data files: {names(beside)}."
    return line


def _find(path: str, split: str) -> Files:
    local = Path(os.path.expanduser(path))  # like a shell, it leaves ~name as it is where there is no such user
    if os.path.isdir(local):  # unlike Path's, it takes a name that is too long for one that does not exist
        if all(os.path.isfile(local / name) for name in ("run.yaml", "plan.json")):
            raise DataError(f"{path}: this is the folder of a run, whose own files are no data. Its run.yaml names its data")
        found = _inside(files_of(local, split), local)
        if found is None or not found.read:
            children = [child for child in entries_of(local) if not child.name.startswith(".")]
            inside = [f"{child.name}/" if child.is_dir() else child.name for child in children]
            content = f"It holds: {shorten(', '.join(inside))}" if inside else "It is empty"
            raise DataError(f"{path}: no data file in this folder. {content}. Allowed: {ALLOWED}")
        return found
    if not os.path.exists(local) and is_pattern(path):
        return _matching(path, local)
    if not os.path.exists(local):
        raise DataError(f"{path}: there is no such file or folder.{_near_names(local)} Allowed: {ALLOWED}")
    if not file_kind(local):
        ending = "".join(local.suffixes[-2:]) or "a name without ending"
        raise DataError(f"{path}: {ending} is no kind of data file. Allowed: {ALLOWED}")
    return Files([local])


def _inside(files: Files | None, folder: Path) -> Files | None:
    """The same files, none of which is a link out of the folder: what it leads to may be private, and would be trained on.

    Raises:
        DataError: one is.
    """
    for file in files.read if files is not None else ():
        if problem := outside(file, folder):
            raise DataError(
                f"{folder}: {file.relative_to(folder)} {problem}. Put the file itself there, or name it as the path"
            )
    return files


def _matching(path: str, pattern: Path) -> Files:
    """The data files that match a pattern, as a shell has it. `**` stands for any folders."""
    most = bounds().max_data_files
    matches = list(islice(glob.iglob(str(pattern), recursive=True), most + 1))
    if len(matches) > most:
        raise DataError(f"{path}: more than {most:,} files match this pattern. {FEWER_FILES} (now {most})")
    found = [Path(name) for name in sorted(matches) if os.path.isfile(name)]
    if not found:
        raise DataError(f"{path}: no file matches this pattern.{_near_names(pattern)} Allowed: {ALLOWED}")
    others = [file for file in found if not file_kind(file)]
    if others:
        raise DataError(
            f"{path}: {others[0].name} matches this pattern and is no kind of data file. Allowed: {', '.join(SUFFIXES)}"
        )
    fixed = Path(*takewhile(lambda part: not is_pattern(part), pattern.parts))
    return _inside(Files(found), fixed if pattern.parts else Path()) or Files(found)


def path_problem(option: str, path: str, split: str = "train") -> str | None:
    """What is wrong with the path of an option, and what to type. None: it has data, or may be a dataset of the model hub.

    Args:
        option: its full name, as `data.path` or `data.mix[0].path`.
        path: its value.
        split: of the files in a folder.
    """
    try:
        if not is_hub_id(path):
            data_files(path, split)
    except DataError as error:
        name, in_list, _ = option.partition("[")
        typed = f"{name}=[{{path: FILE, ...}}, ...]" if in_list else f"{option}=FILE"
        return f"{option}={error}. Type {typed}"
    return None


def shorten(text: str) -> str:
    """The beginning of a text, in one line."""
    text = " ".join(text[: 20 * LONGEST_QUOTE].split())
    return text if len(text) <= LONGEST_QUOTE else text[:LONGEST_QUOTE] + "..."


def _near_names(missing: Path) -> str:
    folder = missing.parent
    while not os.path.isdir(folder) and folder != folder.parent:
        missing, folder = folder, folder.parent
    try:
        with os.scandir(folder) as found:
            names = [entry.name for entry in islice(found, bounds().max_data_files)]
    except OSError:
        return ""
    # Names that are alike without their ending come before those that share an ending.
    alike = [name for name in names if Path(name).suffix == missing.suffix and did_you_mean(missing.stem, [Path(name).stem])]
    near = did_you_mean(missing.name, alike or names)
    return near if missing.parent == Path() or not near else f"{near} (in {folder})"
