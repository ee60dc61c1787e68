"""Which files of a folder are data, and which of them are of one split: by their names, as `datasets.load_dataset` takes them.

A file or folder that is called train, test or validation (or a word for these) belongs to that split, and so does one whose
name has the word between dots, dashes, underscores, spaces or digits. NAME-00000-of-00001 is of the split NAME.
"""

import json
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from hub.config.bounds import bounds
from hub.config.paths import file_kind
from hub.errors import DataError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> the words for it, those of `datasets.data_files`."""

DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
"""JSON files that describe the data beside them, and are none."""

FEWER_FILES = "Write their rows into fewer files, or type a larger launch.max_data_files"

_DEPTH = 2
"""How deep folders beside data files are searched for others."""

_TEXTS = re.compile(r"(readme|license|licence|notice|requirements|changelog|citation)\b.*", re.IGNORECASE)
_CACHE = re.compile(r"(cache|tmp)-?.*\.arrow")
"""What `Dataset.map` and others write beside a dataset."""

_WORD = re.compile(
    rf"(?:^|[-._ 0-9])({'|'.join(word for words in SPLITS.values() for word in words)})(?=$|[-._ 0-9])", re.IGNORECASE
)
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\b.*")


class Files(NamedTuple):
    """The data files of a folder."""

    read: list[Path]
    left_out: Sequence[Path] = ()
    """Those of other splits, and those of none beside them."""

    beside: Sequence[Path] = ()
    """Folders with data and texts that lie beside data files, and don't count there."""


def files_of(folder: Path, split: str) -> Files | None:
    """The files of one split, sorted by name. None: the folder has no data file.

    Where no file is of any split, all are taken for train and for test. Where none is of train, those of no split are it.

    Args:
        folder: an existing folder. Data files in one of its folders are found where it has none itself.
        split: name of the split.

    Raises:
        DataError: there are other splits only, several folders with data, or a saved dataset lacks a file.
    """
    if (folder / "dataset_dict.json").is_file():
        return _of_saved_dict(folder, split)
    if (folder / "state.json").is_file() and (named := _named_by_state(folder)):
        _check_saved_split(folder, split)
        return Files(named)
    files = _data_in(folder)
    if not files:
        return _of_inner_folders(folder, split)
    by_split: dict[str | None, list[Path]] = {}
    for file in files:
        by_split.setdefault(split_of(file.name), []).append(file)
    chosen = _choose(folder, by_split, split)
    texts = [file for file in _files_in(folder) if file_kind(file) == ".txt" and not _TEXTS.fullmatch(file.name)]
    inner = [child for child in _folders_in(folder) if _has_data(child, _DEPTH)]
    return chosen._replace(beside=[path for path in (*texts, *inner) if path not in files])


def split_of(name: str) -> str | None:
    """The split that a file or folder belongs to by its name. None: any."""
    if shard := _SHARD.fullmatch(name):
        base = shard[1]
        words = list(_WORD.finditer(base))
        # As json-train, which datasets writes. But train_sft is the name of a split.
        return _split_named(words[-1][1]) if words and words[-1].end() == len(base) else base
    found = _WORD.search(name)
    return _split_named(found[1]) if found else None


def _split_named(word: str) -> str:
    return next(split for split, words in SPLITS.items() if word.lower() in words)


def _choose(folder: Path, by_split: dict[str | None, list[Path]], split: str) -> Files:
    every = [file for files in by_split.values() for file in files]
    chosen = by_split.get(split)
    if chosen is None and split.lower() in (word for words in SPLITS.values() for word in words):
        chosen = by_split.get(_split_named(split))
    if chosen is None and (split == "train" or (split == "test" and set(by_split) == {None})):
        chosen = by_split.get(None)
    if chosen is None:
        names = sorted(name or "train" for name in by_split)
        has = f"It has the splits {', '.join(names)}" if set(by_split) != {None} else "Its files are of no split"
        raise DataError(
            f"{folder}: no file in this folder is of the split {split}. {has}. Type data.split=NAME (for data.eval_path: "
            "data.eval_split=NAME), or name a file"
        )
    return Files(sorted(chosen), sorted(set(every) - set(chosen)))


def _of_saved_dict(folder: Path, split: str) -> Files:
    """The files of a split that `DatasetDict.save_to_disk` wrote."""
    inner = folder / split
    if not (inner / "state.json").is_file():
        splits = sorted(child.name for child in entries_of(folder) if (child / "state.json").is_file())
        raise DataError(
            f"{folder}: this folder has the datasets {', '.join(splits) or 'none'}, and none is called {split}. Type "
            f"data.split=NAME (for data.eval_path: data.eval_split=NAME), or name one of its folders"
        )
    return Files(_named_by_state(inner) or _data_in(inner))


def _check_saved_split(folder: Path, split: str) -> None:
    """Refuse a split that a saved dataset is not. Without `data.split` the split is train, or test for an evaluation set."""
    if (
        split not in ("train", "test")
        and json.loads((folder / "state.json").read_text(encoding="utf-8")).get("_split") != split
    ):
        raise DataError(f"{folder}: this folder is one saved dataset without splits. Leave data.split={split} out")


def _named_by_state(folder: Path) -> list[Path]:
    """The files that state.json of a saved dataset names. Whatever lies beside them is a cache.

    Raises:
        DataError: one of them is missing, or is none of this folder.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [item["filename"] for item in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # of another program
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            raise DataError(f"{folder}: state.json names the file {name}, which is not there. Save or copy the dataset again")
    return [folder / name for name in names]


def _data_in(folder: Path) -> list[Path]:
    """The data files directly in a folder, of all splits. Texts count where there is nothing else."""
    return data_among(_files_in(folder))


def _files_in(folder: Path) -> list[Path]:
    return [child for child in entries_of(folder) if child.is_file() and not child.name.startswith(".")]


def _folders_in(folder: Path) -> list[Path]:
    """The folders in a folder. Links to folders are not followed: they may lead anywhere, or in circles."""
    inner = [child for child in entries_of(folder) if child.is_dir() and not child.name.startswith((".", "_"))]
    for child in inner:
        if child.is_symlink():
            raise DataError(
                f"{folder}: {child.name} is a link to a folder, which is not followed. Remove it, or name {child.resolve()}"
            )
    return inner


def entries_of(folder: Path) -> list[Path]:
    """What lies in a folder, sorted by name.

    Raises:
        DataError: it is too much.
    """
    most = bounds().max_data_files
    with os.scandir(folder) as entries:
        found = [folder / entry.name for entry in islice(entries, most + 1)]
    if len(found) > most:
        raise DataError(f"{folder}: more than {most:,} files lie in this folder. {FEWER_FILES} (now {most})")
    return sorted(found)


def data_among(files: Sequence[Path]) -> list[Path]:
    """Those of some files that are data, by their names. Texts count where there is nothing else."""
    files = [file for file in files if not file.name.startswith(".") and file_kind(file)]
    files = [file for file in files if file.name not in DESCRIPTIONS and not _CACHE.fullmatch(file.name)]
    texts = [file for file in files if file_kind(file) == ".txt"]
    tables = [file for file in files if file not in texts]
    return tables or [file for file in texts if not _TEXTS.fullmatch(file.name)]


def _of_inner_folders(folder: Path, split: str) -> Files | None:
    """The files in the one folder inside that has any, or in the folders of one split."""
    having = [child for child in _folders_in(folder) if _has_data(child)]
    if not having:
        return None
    by_split: dict[str | None, list[Path]] = {}
    for child in having:
        by_split.setdefault(split_of(child.name), []).append(child)
    if None not in by_split:
        chosen = _choose(folder, by_split, split)
        return Files(_everything_in(chosen.read), _everything_in(chosen.left_out))
    if len(having) > 1:
        names = ", ".join(child.name for child in having)
        raise DataError(f"{folder}: several folders in it have data ({names}). Name one of them, or list them in data.mix")
    return files_of(having[0], split)


def _everything_in(folders: Sequence[Path]) -> list[Path]:
    return [file for folder in folders for file in _data_in(folder) or _everything_in(_folders_in(folder))]


def _has_data(folder: Path, depth: int | None = None) -> bool:
    """Whether a folder has a data file, in itself or in its folders down to a depth."""
    if _data_in(folder):
        return True
    return depth != 0 and any(_has_data(child, None if depth is None else depth - 1) for child in _folders_in(folder))
