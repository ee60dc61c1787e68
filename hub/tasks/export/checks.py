"""Checks of what is to be exported, before anything slow is imported."""

from collections.abc import Iterator

from hub.config.schema import RunConfig
from hub.tasks.export.exporters import in_order, problems_of_names


def problems_of(cfg: RunConfig, needs_target: bool = True) -> Iterator[str]:
    """One line for each option, package or tool that stands in the way. Nothing slow is imported."""
    wanted = cfg.export
    yield from wanted.problems(needs_target)
    names = list(problems_of_names(wanted.to))
    yield from names
    if names:
        return
    for one in in_order(wanted.to):
        if obstacle := one.obstacle():
            yield f"export.to={one.name}: {obstacle}"
        else:
            yield from one.problems(cfg)
