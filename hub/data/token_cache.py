"""The token cache: large sources, encoded once by all cores and then mapped from disk.

An entry's key hashes all that the tokens depend on: the content of the files, the tokenizer with its chat template, the
options, the formats of plugins. Arrays are views of the mapped file, so several processes share them.
"""

import hashlib
import inspect
import json
import mmap
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from hub.config.data import DataSource
from hub.config.option import AUTO
from hub.config.paths import is_hub_id
from hub.config.schema import RunConfig
from hub.data.samples.sample import Item
from hub.data.sources.entries import Cursor
from hub.data.sources.files import data_files
from hub.data.sources.read import rows_after
from hub.data.streaming.frames import mapped_file, mapped_items
from hub.data.streaming.workers import Processes
from hub.data.tokens.encode import Encoder
from hub.data.tokens.template_date import writes_date
from hub.data.tokens.vocabulary import tokens_beyond
from hub.plugins import registry as plugins
from hub.plugins.offers import DataFormat
from hub.system.cache import cache_dir, make_once
from hub.system.cores import usable_cores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RECIPE = 8
"""Raised when the same rows would give other tokens, or when an entry is written in another form."""

SMALL_BYTES = 4 * 2**20
"""Smaller sources are not cached: one process encodes them before others would have started."""

LONG_BYTES = 100 * 2**20
"""Larger sources take minutes on a few cores."""

SECONDS_BETWEEN_REPORTS = 10.0
MAX_PROCESSES = 32
MAX_DAYS = 30
"""Days after which an unused entry is removed."""

OPTIONS = ("text_column", "loss_on", "on_long", "on_bad_row")


def encoded_rows(
    cfg: RunConfig,
    source: DataSource,
    tokenizer: "PreTrainedTokenizerBase",
    limit: int | None,
    base_path: Path | None,
    report: Callable[[str], None],
    max_rows: int | None = None,
) -> Iterable[list[Item]]:
    """The items of each row of a source. They may be iterated over again.

    Args:
        cfg: the run.
        source: where the rows come from.
        tokenizer: the tokenizer of the model.
        limit: tokens of the longest sample.
        base_path: local folder with the same tokenizer, for other processes. None: this process encodes all.
        report: takes a line about something slow.
        max_rows: rows after which to stop. This process then encodes them all. None: all rows.

    Raises:
        DataError: a row can't be used.
    """
    if max_rows is None and base_path is not None and _num_bytes(source) >= SMALL_BYTES:
        return _Stored(cache_tokens(cfg, source, tokenizer, limit, base_path, report))
    encode = Encoder(tokenizer, cfg.data, source, limit)
    entries = rows_after(source.path, Cursor(), source.subset, source.split, stream=max_rows is not None)
    return list(encode.many(entry for entry, _ in islice(entries, max_rows)))


def cache_tokens(
    cfg: RunConfig,
    source: DataSource,
    tokenizer: "PreTrainedTokenizerBase",
    limit: int | None,
    base_path: Path,
    report: Callable[[str], None],
) -> Path:
    """Encode a source into the token cache, unless it is there. Takes the arguments of `encoded_rows`.

    Returns:
        The file with the encoded rows.
    """

    def make(folder: Path) -> None:
        number = max(1, min(MAX_PROCESSES, usable_cores()))
        hint = ". To start at once: data.streaming=true" if _num_bytes(source) >= LONG_BYTES else ""
        report(f"tokenizing {source.path} with {number} process(es) into the token cache {entry.parent}{hint}")
        reported = time.monotonic()
        processes = Processes(cfg, base_path, limit, number)
        try:
            with (folder / "rows").open("wb") as stream:
                for count, frame in enumerate(processes.rows(source), 1):
                    stream.write(frame)
                    if time.monotonic() - reported > SECONDS_BETWEEN_REPORTS:
                        reported = time.monotonic()
                        report(f"tokenized {count:,} rows")
        finally:
            processes.close()

    entry = cache_dir() / "data" / key_of(cfg, source, tokenizer, limit)
    _remove_old(entry.parent)
    file = make_once(entry, make, lambda folder: (folder / "rows").is_file()) / "rows"
    file.touch()
    return file


def is_large(source: DataSource) -> bool:
    """Whether the token cache takes a source."""
    return _num_bytes(source) >= SMALL_BYTES


class _Stored(Iterable[list[Item]]):
    """The rows of an entry. Each pass reads them again, so that memory holds what is kept of them only."""

    def __init__(self, file: Path) -> None:
        """Args:
        file: from `cache_tokens`.
        """
        with file.open("rb") as stream:
            self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._file = mapped_file(self._data)

    def __iter__(self) -> Iterator[list[Item]]:
        """The items of each row."""
        return mapped_items(self._data, self._file)


def _num_bytes(source: DataSource) -> int:
    # Datasets of the model hub have a cache of their own, whose content has no hash here.
    return 0 if is_hub_id(source.path) else sum(file.stat().st_size for file in data_files(source.path, source.split))


def key_of(cfg: RunConfig, source: DataSource, tokenizer: "PreTrainedTokenizerBase", limit: int | None) -> str:
    """The name of a source's entry in the token cache. It changes with everything that changes the tokens."""
    digest = hashlib.sha256()
    for file in data_files(source.path, source.split):
        with file.open("rb") as stream:
            digest.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\0".encode())
    if tokenizer.is_fast:
        vocabulary = tokenizer.backend_tokenizer.to_str()
    else:
        vocabulary = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    options = {name: getattr(cfg.data, name) for name in OPTIONS}
    # Rows with tokens beyond the model's embeddings are refused, so the entry depends on them.
    beyond = list(tokens_beyond(tokenizer))
    options |= {"beyond": beyond} if beyond else {}
    options |= {
        "format": source.format,
        "columns": source.columns,
        "date": cfg.data.date if writes_date(tokenizer) else "",
        "limit": limit,
        "in_blocks": cfg.data.block_size is not None,
        "recipe": RECIPE,
    }
    releases = {name: version(name) for name in ("finetune-hub", "transformers", "tokenizers", "jinja2")}
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    template = tokenizer.chat_template
    digest.update(
        json.dumps(
            [vocabulary, template, special, options, releases, _plugin_formats(source)], sort_keys=True, default=str
        ).encode()
    )
    return digest.hexdigest()[:32]


def _plugin_formats(source: DataSource) -> list[list[object]]:
    """The formats of plugins that the rows of a source may be in, each with a hash of the code that converts them."""
    formats = plugins.data_formats().values()
    return [[item.name, item.fields, item.roles, _code_hash(item)] for item in formats if source.format in (AUTO, item.name)]


def _code_hash(item: DataFormat) -> str:
    try:
        file = inspect.getsourcefile(item.convert)
        return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    except (TypeError, OSError):  # of a built-in function, or of one whose source is gone
        return ""


def _remove_old(folder: Path) -> None:
    for file in folder.glob("*/rows"):
        with suppress(OSError):  # another process may be first
            if file.stat().st_mtime < time.time() - MAX_DAYS * 86400:
                shutil.rmtree(file.parent)
