"""The options that are a verb's own: typed without a section, `run=latest`, and taken out before presets are composed."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hub.compose.overrides import parse
from hub.config.finished import FinishedOptions
from hub.config.option import field_problems, type_words
from hub.errors import ConfigError

Own = TypeVar("Own", bound=FinishedOptions)


def own_options(cls: type[Own], words: Sequence[str], values: Mapping[str, Any] | None = None) -> tuple[Own, list[str]]:
    """Split the words of a command line into the options of a verb, and the overrides of the config.

    Args:
        cls: the options of the verb.
        words: as typed.
        values: options by name, of a Python call. They win.

    Returns:
        The options, checked, and the other words.

    Raises:
        ConfigError: a value does not fit, with all problems.
    """
    names = {item.name for item in fields(cls)}
    mine = [word for word in words if word.partition("=")[0] in names]
    node, problems = OmegaConf.structured(cls), []
    given = {item.key_or_group: (item.value(), item.get_value_element_as_str()) for item in parse(mine)}
    given |= {name: (value, str(value)) for name, value in (values or {}).items()}
    for name, (value, shown) in given.items():
        try:
            OmegaConf.update(node, name, value)
        except OmegaConfBaseException:
            problems.append(f"{name}={shown} is not allowed. Allowed: {type_words(cls, name)}")
    if problems:
        raise ConfigError(problems)
    options = cast(Own, OmegaConf.to_object(node))
    problems = [*field_problems(options, ""), *options.problems()]
    if problems:
        raise ConfigError(problems)
    return options, [word for word in words if word not in mine]
