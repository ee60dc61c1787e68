"""The sample of a row, or its several samples, as they are, cut to a length, split, or left out."""

from collections.abc import Sequence
from dataclasses import replace

from hub.config.data import DataConfig
from hub.config.option import AUTO
from hub.data.formats.examples import Document, Example, ExampleGroup
from hub.data.samples.sample import Group, Item, Sample
from hub.errors import DataError


def has_loss(sample: Sample) -> bool:
    """Whether a token is trained. The first can't be: nothing before it predicts it."""
    return bool(sample.loss_mask[1:].any())


def cut(example: Example, sample: Sample, omitted: tuple[str, ...], limit: int | None, data: DataConfig) -> list[Item]:
    """The sample as it is, cut, split or left out.

    Args:
        example: what the row is.
        sample: its tokens.
        omitted: what the chat template leaves out of it.
        limit: tokens of the longest sample. None: any.
        data: `on_long` and `block_size` are read.

    Raises:
        DataError: it is too long, and data.on_long=error.
    """
    item = Item(sample.where, len(sample), sample, omitted=omitted, format=example.format, unused=example.unused)
    size = len(sample)
    in_blocks = example.format == "document" and data.block_size is not None
    if limit is None or size <= limit or in_blocks:
        return [item]
    on_long = data.on_long
    if on_long == AUTO:
        on_long = "split" if isinstance(example, Document) else "drop"
    if on_long == "error":
        raise DataError(
            f"{sample.where}: this row has {size:,} tokens, more than {limit:,}. Type data.on_long=drop, truncate or split"
        )
    if on_long == "drop":
        return [item._replace(unit=None, reason=f"longer than {limit} tokens")]
    starts = range(0, size if on_long == "split" else 1, limit)
    pieces = [_piece(sample, start, limit, len(starts)) for start in starts]
    trained = [piece for piece in pieces if has_loss(piece)]
    if not trained:
        return [item._replace(unit=None, reason=f"nothing is trained in its first {limit} tokens")]
    num_cut = size - sum(map(len, trained))
    items = [Item(piece.where, len(piece), piece, format=example.format, unused=example.unused) for piece in trained]
    return [items[0]._replace(num_cut=num_cut, omitted=omitted), *items[1:]]


def cut_group(
    row: ExampleGroup, samples: Sequence[Sample], omitted: tuple[str, ...], limit: int | None, on_long: str
) -> list[Item]:
    """The samples of a row as one unit: all of them whole, all of them cut to the limit, or none.

    Args:
        row: what the row is.
        samples: its samples.
        omitted: what the chat template leaves out of them.
        limit: tokens of the longest sample. None: any.
        on_long: as `data.on_long`.

    Raises:
        DataError: one is too long, and `on_long` doesn't say what to do.
    """
    group = Group(tuple(samples), row.where, row.format)
    longest = max(samples, key=len)
    size = len(longest)
    item = Item(row.where, len(group), group, omitted=omitted, format=row.format, unused=row.unused, longest=size)
    if limit is None or size <= limit:
        return [item]
    if on_long in ("error", "split"):
        todo = "A row with several samples can't be split. " if on_long == "split" else ""
        raise DataError(
            f"{row.where}: {longest.role} has {size:,} tokens, more than {limit:,}. {todo}Type data.on_long=drop or truncate"
        )
    if on_long != "truncate":
        return [item._replace(unit=None, reason=f"{longest.role} is longer than {limit} tokens")]
    shorter = Group(tuple(_piece(sample, 0, limit, 1) for sample in samples), row.where, row.format)
    if empty := [sample.role for sample in shorter.samples if not has_loss(sample)]:
        return [item._replace(unit=None, reason=f"nothing is trained in the first {limit} tokens of {empty[0]}")]
    return [item._replace(unit=shorter, num_tokens=len(shorter), num_cut=len(group) - len(shorter))]


def _piece(sample: Sample, start: int, size: int, num_pieces: int) -> Sample:
    stop = start + size
    where = f"{sample.where} part {start // size + 1}" if num_pieces > 1 else sample.where
    return replace(sample, input_ids=sample.input_ids[start:stop], loss_mask=sample.loss_mask[start:stop], where=where)
