"""Encoded sources, kept in the user's cache: made by all cores once, then read as they lie on the disk.

The key is of all that the tokens depend on: the content of the files, the tokenizer with its chat template, the options. The
arrays lie in the file's pages, so several processes share them, and memory that is needed elsewhere is given back.
"""

import hashlib
import json
import mmap
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from hub.config.data import DataSource
from hub.config.paths import is_hub_id
from hub.config.schema import RunConfig
from hub.data.samples.sample import Item
from hub.data.sources.files import data_files
from hub.data.sources.read import Cursor, rows_after
from hub.data.streaming.frames import from_bytes, reader, to_bytes
from hub.data.streaming.workers import Processes, num_cores
from hub.data.tokens.encode import Encoder
from hub.system.cache import cache_dir, make_once

RECIPE = 1
"""Raised when other tokens would be made of the same rows."""

SMALL_BYTES = 4 * 2**20
"""Below this a single process is done before others have started."""

LONG_BYTES = 100 * 2**20
"""From here on it takes minutes on a few cores."""

SECONDS_BETWEEN_LINES = 10.0
MOST_PROCESSES = 32
MOST_DAYS = 30
"""Days after which what was not used is removed."""

OPTIONS = ("text_column", "loss_on", "on_long", "on_bad_row")


def encoded_rows(
    cfg: RunConfig,
    source: DataSource,
    tokenizer: Any,
    limit: int | None,
    base_path: Path | None,
    say: Callable[[str], None],
    most: int | None = None,
) -> Sequence[list[Item]]:
    """The items of each row of a source.

    Args:
        cfg: the run.
        source: where the rows come from.
        tokenizer: a Hugging Face tokenizer.
        limit: tokens of the longest sample.
        base_path: local folder with the same tokenizer, for other processes. None: all is done in this one.
        say: takes a line when it will take a while.
        most: rows after which to stop; then all is done in this process.

    Raises:
        DataError: a row can't be used.
    """
    if most is None and base_path is not None and _num_bytes(source) >= SMALL_BYTES:
        return _read(keep(cfg, source, tokenizer, limit, base_path, say))
    encode = Encoder(tokenizer, cfg.data, source, limit)
    entries = rows_after(source.path, Cursor(), source.subset, source.split, stream=most is not None)
    return [encode(entry) for entry, _ in islice(entries, most)]


def keep(
    cfg: RunConfig, source: DataSource, tokenizer: Any, limit: int | None, base_path: Path, say: Callable[[str], None]
) -> Path:
    """The file with the encoded rows of a source, made when it is not there. See `encoded_rows`."""

    def make(folder: Path) -> None:
        number = max(1, min(MOST_PROCESSES, num_cores()))
        hint = ". A stream begins at once: data.streaming=true" if _num_bytes(source) >= LONG_BYTES else ""
        say(f"tokenising {source.path} with {number} process(es); kept in {kept.parent}{hint}")
        said = time.monotonic()
        processes = Processes(cfg, base_path, limit, number)
        try:
            with (folder / "rows").open("wb") as stream:
                for count, items in enumerate(processes.rows(source), 1):
                    stream.write(to_bytes(items))
                    if time.monotonic() - said > SECONDS_BETWEEN_LINES:
                        said = time.monotonic()
                        say(f"tokenised {count:,} rows")
        finally:
            processes.close()

    kept = cache_dir() / "data" / key_of(cfg, source, tokenizer, limit)
    _remove_old(kept.parent)
    file = make_once(kept, make, lambda folder: (folder / "rows").is_file()) / "rows"
    file.touch()
    return file


def is_large(source: DataSource) -> bool:
    """Whether the encoded rows of a source are kept."""
    return _num_bytes(source) >= SMALL_BYTES


def _read(file: Path) -> list[list[Item]]:
    with file.open("rb") as stream:
        read = reader(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)))
    rows: list[list[Item]] = []
    while isinstance(items := from_bytes(read), list):
        rows.append(items)
    return rows


def _num_bytes(source: DataSource) -> int:
    # Data sets of the model hub lie in a cache of their own, whose content has no name here.
    return 0 if is_hub_id(source.path) else sum(file.stat().st_size for file in data_files(source.path))


def key_of(cfg: RunConfig, source: DataSource, tokenizer: Any, limit: int | None) -> str:
    """The name under which the encoded rows of a source are kept: another one when other tokens would come out."""
    found = hashlib.sha256()
    for file in data_files(source.path):
        with file.open("rb") as stream:
            found.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\0".encode())
    if tokenizer.is_fast:
        words = tokenizer.backend_tokenizer.to_str()
    else:
        words = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    options = {name: getattr(cfg.data, name) for name in OPTIONS}
    options |= {"format": source.format, "limit": limit, "in_blocks": cfg.data.block_size is not None, "recipe": RECIPE}
    releases = {name: version(name) for name in ("finetune-hub", "transformers", "tokenizers", "jinja2")}
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    template = tokenizer.chat_template
    found.update(json.dumps([words, template, special, options, releases], sort_keys=True, default=str).encode())
    return found.hexdigest()[:32]


def _remove_old(folder: Path) -> None:
    for kept in folder.glob("*/rows"):
        with suppress(OSError):  # another process may be first
            if kept.stat().st_mtime < time.time() - MOST_DAYS * 86400:
                shutil.rmtree(kept.parent)
