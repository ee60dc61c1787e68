"""Refuses units that an algorithm can't train on, by `hub.data.formats.roles`: of workers, which have samples and no rows."""

from collections.abc import Iterable, Iterator, Sequence

from hub.data.formats.roles import Wanted, refusal
from hub.data.samples.sample import Group, Sample, Unit
from hub.errors import DataError
from hub.plugins.offers import SINGLE, Roles


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
    """The samples of units with one each, one by one: for units that do not fit into memory."""
    for unit in units:
        if isinstance(unit, Group):
            raise DataError(_refusal(unit, Wanted(algorithm, (SINGLE,))))
        yield unit


def check_roles(units: Iterable[Unit], roles: Roles, algorithm: str) -> None:
    """Refuse rows that lack a sample which an algorithm needs.

    Args:
        units: what is to be trained or evaluated on.
        roles: the role of each sample of a row, as `("chosen", "rejected")`.
        algorithm: name of the algorithm.

    Raises:
        DataError: a row has other samples.
    """
    for unit in units:
        if _roles(unit) != roles:
            raise DataError(_refusal(unit, Wanted(algorithm, (roles,))))


def _roles(unit: Unit) -> Roles:
    return tuple(sample.role for sample in unit.samples)


def _refusal(unit: Unit, wanted: Wanted) -> str:
    return refusal(f"{unit.where}: this row has", getattr(unit, "format", ""), _roles(unit), wanted)
