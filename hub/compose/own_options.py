"""The options that are a verb's own: typed without a section, `run=latest`, and taken out before presets are composed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar, cast, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hub.compose.options import GROUPS, in_list, is_no_bool
from hub.compose.overrides import parse, text_as_typed
from hub.config.finished import FinishedOptions
from hub.config.option import field_problems, type_words
from hub.config.schema import RunConfig
from hub.errors import ConfigError, did_you_mean

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
    names = {item.name: item.type for item in fields(cls)}
    mine = [word for word in words if word.partition("=")[0] in names]
    node, problems = OmegaConf.structured(cls), list(_misspelled(names, [word for word in words if word not in mine]))
    given: dict[str, tuple[Any, str]] = {}
    for word in mine:
        name, _, shown = word.partition("=")
        if not shown and get_origin(names[name]) is list:
            problems.append(f"{name}= is empty. Type {name}=VALUE, or leave it out")
        elif names[name] in (str, str | None):
            given[name] = (text_as_typed(shown), shown)
        elif get_origin(names[name]) is list:
            try:
                given[name] = (_listed(name, shown, names[name] == list[str]), shown)
            except OmegaConfBaseException:
                problems.append(f"{name}={shown} is not allowed. Allowed: {type_words(cls, name)}")
        else:
            given[name] = (parse([word])[0].value(), shown)
    given |= {name: (value, str(value)) for name, value in (values or {}).items()}
    for name, (value, shown) in given.items():
        try:
            if is_no_bool(cls, name, value):
                raise OmegaConfBaseException
            value = in_list(node, name, value)
            if type(value) is int and float in get_args(names[name]) and int not in get_args(names[name]):
                value = float(value)  # a union takes no other number
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


def _listed(name: str, shown: str, of_texts: bool) -> Any:
    """The value of a list that was typed as `a,b` or `[a,b]`. Texts are as typed: `1e3` may be the name of a run."""
    inner = shown[1:-1] if shown[:1] == "[" and shown[-1:] == "]" else shown
    if of_texts and not set(inner) & set("'\"[]"):
        values: Any = [part.strip() for part in inner.split(",")]
    else:
        values = parse([f"{name}=[{inner}]"])[0].value()
    is_odd = not isinstance(values, list) or any(isinstance(value, list | dict) or value == "" for value in values)
    if is_odd and shown not in ("", "[]"):
        raise OmegaConfBaseException
    return [] if is_odd else values


def _misspelled(names: Mapping[str, Any], words: Sequence[str]) -> Iterator[str]:
    """Yield a line for each word without a section that is nearly an option of the verb, and none of the config."""
    top = [*GROUPS, *(item.name for item in fields(RunConfig))]
    for word in words:
        name = word.partition("=")[0].lstrip("+~")
        if "." not in name and name not in top and did_you_mean(name, names):
            yield f"{name}: there is no such option.{did_you_mean(name, [*names, *top])}"
