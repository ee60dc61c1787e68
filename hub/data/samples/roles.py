"""Refuses units that an algorithm can't train on: with several samples, or without the roles that it needs."""

from collections.abc import Iterable, Iterator, Sequence

from hub.data.formats.detect import PREFERENCE, formats_of
from hub.data.samples.sample import Group, Sample, Unit
from hub.errors import DataError
from hub.plugins import registry as plugins


def check_single(units: Sequence[Unit], algorithm: str) -> list[Sample]:
    """Refuse rows with several samples.

    Args:
        units: what is to be trained or evaluated on.
        algorithm: name of the algorithm, which trains on one sample a row.

    Returns:
        The units, each a sample.

    Raises:
        DataError: one of them has several samples.
    """
    return list(singles(units, algorithm))


def singles(units: Iterable[Unit], algorithm: str) -> Iterator[Sample]:
    """The same one by one, for units that do not fit into memory."""
    for unit in units:
        if isinstance(unit, Group):
            raise DataError(_several(unit, algorithm))
        yield unit


def check_roles(units: Iterable[Unit], roles: tuple[str, ...], algorithm: str) -> None:
    """Refuse rows that lack a sample which an algorithm needs.

    Args:
        units: what is to be trained or evaluated on.
        roles: the role of each sample of a row, as `("chosen", "rejected")`.
        algorithm: name of the algorithm.

    Raises:
        DataError: a row has other samples.
    """
    for unit in units:
        present = tuple(sample.role for sample in unit.samples)
        if present == roles:
            continue
        names = formats_of(roles)
        todo = f"Type data.format={' or '.join(names)}" if names else "Install a plugin with such a data format"
        has = f"the samples {', '.join(present)}" if any(present) else "one sample"
        raise DataError(
            f"{unit.where}: this row has {has}. algo={algorithm} trains on rows with the samples {', '.join(roles)}. {todo}"
        )


def _several(group: Group, algorithm: str) -> str:
    roles = [sample.role for sample in group.samples]
    gives = f"data.format={group.format} gives" if group.format else f"{group.where}: there are"
    named = f" ({', '.join(roles)})" if all(roles) else ""
    item = plugins.data_formats().get(group.format)
    if group.format == PREFERENCE or (item is not None and "chosen" in item.fields):
        todo = "Type data.format=chosen to train on the chosen answers, or algo=NAME of an algorithm for such rows"
    else:
        todo = "Type data.format=NAME of a format with one sample a row, or algo=NAME of an algorithm for such rows"
    return f"{gives} {len(roles)} samples a row{named}; algo={algorithm} trains on one. {todo}"
