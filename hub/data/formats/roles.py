"""Refuses rows that an algorithm can't train on: with several samples, judged answers, or without the samples that it needs."""

from typing import NamedTuple

from hub.config.data import DataSource
from hub.config.option import AUTO
from hub.data.formats.detect import PREFERENCE, formats_of, rows_of
from hub.data.formats.examples import ExampleGroup, RowExample
from hub.data.formats.preferences import DESIRABLE, UNDESIRABLE
from hub.errors import DataError
from hub.plugins import registry as plugins
from hub.plugins.offers import SINGLE, Roles


class Wanted(NamedTuple):
    """What an algorithm trains on."""

    algorithm: str
    """Its name."""

    rows: tuple[Roles, ...]
    """The roles that a row may have."""


def check_example(example: RowExample, wanted: Wanted) -> None:
    """Refuse a row with other samples than are wanted.

    Raises:
        DataError: it has.
    """
    present = tuple(example.examples) if isinstance(example, ExampleGroup) else SINGLE
    if present not in wanted.rows:
        raise DataError(refusal(f"{example.where}: this row has", example.format, present, wanted))


def check_format(source: DataSource, wanted: Wanted) -> None:
    """Refuse a source by its format alone.

    Args:
        source: where rows come from. Nothing is known of the format `auto`.
        wanted: what the algorithm trains on.

    Raises:
        DataError: no row of the format has the samples that are wanted.
    """
    possible = rows_of(source.format) if source.format != AUTO else ()
    if possible and not set(possible) & set(wanted.rows):
        raise DataError(refusal(f"{source.path}: each row has", source.format, possible[-1], wanted))


def refusal(where: str, format: str, present: Roles, wanted: Wanted) -> str:
    """The line for rows that have other samples than are wanted.

    Args:
        where: the place, as `chats.jsonl:3: this row has`.
        format: of the rows. Empty: not known.
        present: the roles that they have.
        wanted: what the algorithm trains on.
    """
    if SINGLE in wanted.rows:
        return _several(where.rpartition(":")[0], format, present, wanted.algorithm)
    names = formats_of(wanted.rows)
    todo = f"Type data.format={' or '.join(names)}" if names else "Install a plugin with such a data format"
    has = "one sample" if len(present) == 1 else "the samples"
    named = f"{has} ({present[0]})" if len(present) == 1 and any(present) else f"{has} {', '.join(present)}".rstrip()
    samples = ", or ".join(", ".join(roles) for roles in wanted.rows)
    return f"{where} {named}. algo={wanted.algorithm} trains on rows with the samples {samples}. {todo}"


def _several(place: str, format: str, present: Roles, algorithm: str) -> str:
    gives = f"data.format={format} gives" if format else f"{place}: there are"
    if present in ((DESIRABLE,), (UNDESIRABLE,)):
        return (
            f"{gives} answers that are good or bad; algo={algorithm} would learn both. Take the bad ones out and type "
            "data.format=prompt_completion, or type algo=lora_dpo algo.loss=kto"
        )
    named = f" ({', '.join(present)})" if all(present) else ""
    item = plugins.data_formats().get(format)
    if format == PREFERENCE or (item is not None and "chosen" in item.fields):
        todo = "Type data.format=chosen to train on the chosen answers, or algo=NAME of an algorithm for such rows"
    else:
        todo = "Type data.format=NAME of a format with one sample a row, or algo=NAME of an algorithm for such rows"
    return f"{gives} {len(present)} samples a row{named}; algo={algorithm} trains on one. {todo}"
