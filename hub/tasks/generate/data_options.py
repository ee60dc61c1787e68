"""Which options of the data hold for questions to a finished model. Those of its run are about the training data."""

from collections.abc import Collection
from dataclasses import fields, replace

from hub.config.data import DataConfig
from hub.errors import ConfigError
from hub.models.finished import Asked

OF_PROMPTS = ("template", "date")
"""Options that decide how a prompt is rendered. Those of a run hold for its model."""

READ = ("path", "mix", "subset", "split", "format", "columns", "text_column", "on_bad_row", "eval_fraction", *OF_PROMPTS)
"""Options that decide which prompts a file has, and `eval_fraction`, which presets of data set: all rows are asked."""


def check_data_options(asked: Asked, read: Collection[str]) -> None:
    """Refuse options of the data that were typed and that nothing reads.

    Args:
        asked: what was asked.
        read: the names of those that are read.

    Raises:
        ConfigError: with a line for each.
    """
    plain = DataConfig()
    unread = [
        f"data.{item.name} is about training and changes no answer. Leave it out"
        for item in fields(DataConfig)
        if item.name not in read and not _of_run(asked, item.name)
        if getattr(asked.cfg.data, item.name) != getattr(plain, item.name)
    ]
    if unread:
        raise ConfigError(unread)


def data_asked(asked: Asked) -> tuple[DataConfig, DataConfig | None]:
    """The data options for questions, without those of the run that made the model, and those of that run."""
    data = asked.cfg.data
    if not asked.from_run:
        return data, None
    plain = DataConfig()
    kept = {
        item.name: getattr(data, item.name)
        for item in fields(DataConfig)
        if item.name in OF_PROMPTS or not _of_run(asked, item.name)
    }
    return replace(plain, **kept), data


def _of_run(asked: Asked, name: str) -> bool:
    """Whether an option of the data is the run's, and was not typed."""
    return any(full.split(".")[:2] == ["data", name] for full in asked.from_run)
