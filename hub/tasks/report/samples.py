"""Training rows of a run, encoded anew with its tokenizer, to be shown with their loss mask. Imports transformers.

Nothing is downloaded, and no code of a model is run: where that would be needed, there are no samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from hub.config.paths import is_hub_id
from hub.config.schema import RunConfig
from hub.data.samples.mix import sources_of
from hub.data.samples.sample import Sample
from hub.errors import HubError, first_line
from hub.secrets import without_secrets
from hub.tasks.report.record import Record, as_mapping

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_TOKENS = 400
"""Tokens of one sample that are shown."""

_BEFORE_LOSS = 60
"""Tokens that are shown ahead of the first one with loss, where that is far from the beginning."""


@dataclass(frozen=True)
class Piece:
    """A token, or several that only together are text."""

    text: str
    has_loss: bool


@dataclass(frozen=True)
class Shown:
    """A sample to show."""

    where: str
    """File, line, and the role within its row."""

    num_tokens: int
    num_loss_tokens: int
    pieces: list[Piece]
    """Empty: its text holds a secret, see `redacted`."""

    redacted: str = ""
    num_before: int = 0
    """Tokens ahead of those that are shown."""

    num_behind: int = 0


def samples_of(record: Record, count: int) -> tuple[list[Shown], str]:
    """Some training rows of a run.

    Args:
        record: the run.
        count: how many rows, spread over its sources.

    Returns:
        The samples, and why there are none (empty: there are some).
    """
    if not count:
        return [], "Not asked for (samples=0)."
    if record.cfg is None:
        return [], "The options of the run can't be read."
    folder = _tokenizer_folder(record)
    if folder is None:
        return [], "The tokenizer of the run is not on this machine."
    sources = sources_of(record.cfg.data)
    gone = [source.path for source in sources if is_hub_id(source.path) or not Path(source.path).expanduser().exists()]
    if gone:
        return [], f"The data of the run is not on this machine: {gone[0]}."
    cfg = replace(record.cfg, model=replace(record.cfg.model, trust_remote_code=False))
    try:
        shown = list(islice(_encoded(cfg, folder, _limit(record), count), count))
    except HubError as error:
        return [], f"The rows can't be encoded: {first_line(error)}"
    except Exception as error:  # of a tokenizer of another version, or of a file that has changed
        return [], f"The rows can't be encoded: {type(error).__name__}: {first_line(error)}"
    return shown, "" if shown else "No row gives a sample."


def _tokenizer_folder(record: Record) -> Path | None:
    """Where the tokenizer of the run is, with the base's config: beside what was trained, else with its base."""
    places = [record.path / "model", record.plan.get("base_model_path"), record.model]
    for place in places:
        folder = Path(str(place)).expanduser() if place else None
        if folder and (folder / "tokenizer_config.json").is_file() and (folder / "config.json").is_file():
            return folder
    return None


def _limit(record: Record) -> int | None:
    limit = as_mapping(record.plan.get("data")).get("max_seq_len")
    return limit if isinstance(limit, int) else None


def _encoded(cfg: RunConfig, folder: Path, limit: int | None, count: int) -> Iterator[Shown]:
    from hub.data.sources.entries import Cursor
    from hub.data.sources.read import rows_after
    from hub.data.tokens.encode import Encoder
    from hub.data.tokens.tokenizer import load_tokenizer
    from hub.parallel.session import quiet_libraries

    quiet_libraries()
    tokenizer = load_tokenizer(cfg, folder)
    sources = sources_of(cfg.data)
    for source in sources:
        encode = Encoder(tokenizer, cfg.data, source, limit)
        entries = rows_after(source.path, Cursor(), source.subset, source.split, stream=cfg.data.streaming)
        wanted = -(-count // len(sources))
        units = (item.unit for items in encode.many(entry for entry, _ in entries) for item in items if item.unit is not None)
        for unit in islice(units, wanted):
            for sample in unit.samples:
                yield _shown(sample, tokenizer)


def _shown(sample: Sample, tokenizer: "PreTrainedTokenizerBase") -> Shown:
    begin = 0
    if sample.loss_mask.any() and (first := int(sample.loss_mask.argmax())) > MOST_TOKENS - _BEFORE_LOSS:
        begin = first - _BEFORE_LOSS
    end = min(len(sample), begin + MOST_TOKENS)
    pieces = list(pieces_of(sample.input_ids[begin:end].tolist(), sample.loss_mask[begin:end].tolist(), tokenizer))
    whole = "".join(piece.text for piece in pieces)
    redacted = without_secrets(whole)
    return Shown(
        f"{Path(sample.where).name}{f' {sample.role}' if sample.role else ''}",
        len(sample),
        int(sample.loss_mask.sum()),
        pieces if redacted == whole else [],
        "" if redacted == whole else redacted,
        begin,
        len(sample) - end,
    )


def pieces_of(ids: list[int], mask: list[bool], tokenizer: "PreTrainedTokenizerBase") -> Iterator[Piece]:
    """Yield the text of each token. Tokens that are text only with those behind them, as parts of a letter, are one piece.

    A token may read differently alone (SentencePiece drops the space of a text's first token), so each is decoded behind its
    neighbors.
    """
    before, done = 0, 0
    for end in range(1, len(ids) + 1):
        known = str(tokenizer.decode(ids[before:done], skip_special_tokens=False))
        now = str(tokenizer.decode(ids[before:end], skip_special_tokens=False))
        if now.endswith("\ufffd") and end < len(ids) and end - done < 8 and mask[end] == mask[done]:
            continue
        yield Piece(now[len(known) :], bool(mask[done]))
        before, done = done, end
