"""Overrides as typed, NAME=VALUE: parsed with Hydra's grammar and checked one by one, with one line per mistake.

`check` reports all mistakes at once: first the choices of presets (algo=, model=, ...), which decide what options exist,
then each option against its type. Clashes of options are found by `RunConfig.problems`.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from itertools import product
from math import prod
from typing import Any

from hydra import compose as hydra_compose
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, StringNode
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from hub.config.option import list_item, type_words
from hub.config.schema import PARTS, AlgoConfig, RunConfig
from hub.errors import ConfigError, did_you_mean
from hub.plugins.offers import Algorithm
from hub.plugins.registry import Registry

CONFIG_NAME = "config"
GROUPS = (*PARTS, "experiment")
"""The groups in the defaults list of conf/config.yaml. Plugins and --config-dir may add others."""

COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)


@dataclass
class Checked:
    """The config of all valid overrides, and the problems of the others."""

    node: DictConfig
    problems: list[str]
    valid: set[str]
    """The sections of the config (`algo`, `model`, ...) whose overrides are all valid."""


def parse(texts: Sequence[str], loader: Any = None) -> list[Override]:
    """Parse overrides.

    Args:
        texts: the overrides as typed.
        loader: Hydra's config loader, for `model=glob(*)`.

    Raises:
        ConfigError: with one line for each override that can't be parsed.
    """
    parser, parsed, problems = OverridesParser.create(config_loader=loader), [], []
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            parsed += parser.parse_overrides([text])
        except HydraException as error:
            if not equals:
                problems.append(f"can't read {text!r}: options are written NAME=VALUE, and a verb comes first")
                continue
            # File names may have characters that the grammar reserves: parentheses, accents, apostrophes.
            try:
                parsed += parser.parse_overrides([f"{name}={quoted(value)}"])
            except HydraException:
                problems.append(f"can't read {text!r}: {hydra_message(error)}")
    if problems:
        raise ConfigError(problems)
    return parsed


def quoted(value: str) -> str:
    """Quote a text for Hydra's grammar."""
    escaped = re.sub(r'(\\*)"', lambda match: match[1] * 2 + '\\"', value)
    return '"' + re.sub(r"(\\+)$", lambda match: match[1] * 2, escaped) + '"'


def choices(loader: Any, parsed: Sequence[Override]) -> list[str]:
    """The overrides that choose a preset, in Hydra's notation."""
    texts = {}
    for item in parsed:
        name = item.key_or_group
        if item.is_hydra_override() or not loader.repository.group_exists(name):
            continue
        nothing = item.is_delete() or item.value() is None
        if name not in GROUPS:
            texts[name] = None if nothing else f"+{name}={item.get_value_string()}"
        else:
            texts[name] = f"~{name}" if nothing else f"{name}={item.get_value_string()}"
    return [text for text in texts.values() if text]


def combinations(parsed: Sequence[Override], limit: int = 50) -> Iterator[list[Override]]:
    """Yield the overrides of each run of a sweep.

    All combinations, or, if there are more than `limit`, enough of them to have each value once. Continuous ranges are left
    out, since only the sweeper knows their values.
    """
    values = [_values_of(item) for item in parsed if not item.is_interval_sweep()]
    if prod(len(list_) for list_ in values) <= limit:
        yield from (list(combination) for combination in product(*values))
    else:
        for number in range(max(len(list_) for list_ in values)):
            yield [list_[min(number, len(list_) - 1)] for list_ in values]


def _values_of(item: Override) -> list[Override]:
    """One override for each value of a sweep."""
    if not item.is_sweep_override():
        return [item]
    parser = OverridesParser.create()
    return [parser.parse_override(f"{item.get_key_element()}={value}") for value in item.sweep_string_iterator()]


def check(loader: Any, parsed: Sequence[Override], values: Mapping[str, Any], plugins: Registry) -> Checked:
    """Compose the valid overrides, and report the problems of the others.

    Args:
        loader: Hydra's config loader.
        parsed: overrides of the command line.
        values: nested values that are set last.
        plugins: the installed plugins, for the algorithms and their options.
    """
    good: list[Override] = []
    problems: list[str] = []
    doubtful: set[str] = set()
    for item in parsed:
        if problem := _form_problem(loader, item) or _choice_problem(loader, item, plugins):
            problems.append(problem)
            doubtful |= _parts(item.key_or_group)
        else:
            good.append(item)
    try:
        node = hydra_compose(CONFIG_NAME, overrides=choices(loader, good))
    except COMPOSE_ERRORS as error:
        problems.append(hydra_message(error))
        doubtful |= set(PARTS)
        node = OmegaConf.structured(RunConfig)
    chosen = [item for item in good if item.key_or_group == "algo"][-1:]
    if chosen and chosen[0].value() is not None and not doubtful and OmegaConf.get_type(node.algo) is AlgoConfig:
        problems.append(
            f"algo={chosen[0].get_value_string()}: this preset names no algorithm. Its file must begin with: "
            f"defaults: [NAME], one of: {', '.join(sorted(plugins.algorithms))}"
        )
        doubtful.add("algo")
    settings = [
        (item.key_or_group, _value(node, item), item.get_value_string())
        for item in good
        if not loader.repository.group_exists(item.key_or_group)
    ]
    for part, value in values.items():
        inner = {f"{part}.{name}": v for name, v in value.items()} if part in PARTS else {part: value}
        settings += [(name, v, str(v)) for name, v in inner.items()]
    algorithm_unknown = "algo" in doubtful
    for name, value, shown in settings:
        if algorithm_unknown and name.startswith("algo.") and not _exists(node, name):
            continue
        if problem := _set(node, name, value, shown, plugins.algorithms):
            problems.append(problem)
            doubtful |= _parts(name)
    return Checked(node, problems, set(PARTS) - doubtful)


def group_options(loader: Any, group: str) -> list[str]:
    """The names of the presets of a group."""
    return sorted(loader.repository.get_group_options(group, ObjectType.CONFIG))


def hydra_message(error: Exception) -> str:
    """What Hydra or OmegaConf said, without its details about itself, in one line."""
    lines = [line.strip() for line in str(error).partition("\nConfig search path")[0].splitlines()]
    message = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type="))]
    return " ".join(message) or type(error).__name__


def _parts(name: str) -> set[str]:
    """The sections of the config that an override may affect: all of them if its name is unknown."""
    part = re.split(r"[./]", name)[0]
    return {part} if part in PARTS else set(PARTS)


def _form_problem(loader: Any, item: Override) -> str | None:
    """What is wrong with the form of an override, regardless of its value."""
    name = item.key_or_group
    if item.is_delete():
        is_option = not loader.repository.group_exists(name)
        return f"~{name}: an option can't be removed. Type {name}=VALUE or leave it out" if is_option else None
    value = item.get_value_string()
    if item.is_hydra_override():
        return f"{name}: Hydra's own options are for sweeps. Add --multirun, or leave it out"
    if item.package is not None:
        return f"{item.get_key_element()}: a choice can't be put elsewhere. Type {name}={value}"
    if item.is_sweep_override():
        forms = f"; a list is written {name}=[{value}], a text '{name}={quoted(value)}'" if "." in name else ""
        return f"{name}={value} has several values. Add --multirun for a run with each{forms}"
    return None


def _choice_problem(loader: Any, item: Override, plugins: Registry) -> str | None:
    """What is wrong with the choice of a preset. None also for overrides that choose none."""
    name = item.key_or_group
    if not loader.repository.group_exists(name) or item.is_delete() or item.value() is None:
        return None
    value, options = item.value(), group_options(loader, name)
    if isinstance(value, dict) or (isinstance(value, list) and name in PARTS):
        return f"{name}={item.get_value_string()}: name one preset. Type {name}=NAME, and {name}.OPTION=VALUE"
    wrong = [str(word) for word in (value if isinstance(value, list) else [value]) if word not in options]
    if not wrong:
        return None
    if name == "algo" and (missing := plugins.not_installed(wrong[0])):
        return missing
    near = did_you_mean(wrong[0], options)
    if name == "algo" and not (near and plugins.algorithms):
        return plugins.no_algorithm(wrong[0])
    path = f" For a file, a folder or an id of the model hub type {name}.path={wrong[0] or 'PATH'}"
    allowed = near or f" Allowed: {', '.join(options) or 'none'}."
    if name in ("model", "data"):
        return f"{name}={wrong[0]}: there is no such preset.{path if set('./') & set(wrong[0]) else allowed + path}"
    if name == "algo":
        return f"algo={wrong[0]}: there is no such algorithm.{allowed}{plugins.left_out()}"
    return f"{name}={wrong[0]}: there is no such preset.{allowed}"


def _value(node: DictConfig, item: Override) -> Any:
    """The value of an override. For a text option it is the text as typed: the revision 1e10 is not a number."""
    value = item.value()
    place, last = _place(node, item.key_or_group)
    is_text = _exists(node, item.key_or_group) and isinstance(place._get_node(last), StringNode)
    if is_text and isinstance(value, int | float):
        return item.get_value_string()
    return value


def _place(node: DictConfig, name: str) -> tuple[Any, str]:
    """The section of the config that contains an option, or None, and the option's last name."""
    *parents, last = name.split(".")
    place: Any = node
    for step in parents:
        place = place[step] if OmegaConf.is_dict(place) and step in place else None
    return (place if OmegaConf.is_dict(place) else None), last


def _exists(node: DictConfig, name: str) -> bool:
    place, last = _place(node, name)
    return place is not None and last in place


def _set(node: DictConfig, name: str, value: Any, shown: str, algorithms: Mapping[str, Algorithm]) -> str | None:
    """Set one option. Returns the problem if that fails."""
    place, last = _place(node, name)
    # data.columns has arbitrary keys, and a plugin's option may have them, too.
    is_open = place is not None and not is_dataclass(OmegaConf.get_type(place))
    if not (is_open or _exists(node, name)):
        return _unknown(node, name, algorithms)
    if (item_type := list_item(OmegaConf.get_type(place), last)) and (problem := _list_problem(item_type, name, value, shown)):
        return problem
    try:
        if value == "???":
            raise OmegaConfBaseException("??? marks a missing value")
        OmegaConf.update(node, name, value, force_add=is_open or _is_open(place, last))
    except OmegaConfBaseException as error:
        return f"{name}={shown} is not allowed. Allowed: {type_words(OmegaConf.get_type(place), last) or hydra_message(error)}"
    return None


def _is_open(place: Any, last: str) -> bool:
    """Whether an option is a dict with arbitrary keys."""
    current = place._get_node(last) if last in place else None
    return OmegaConf.is_dict(current) and not is_dataclass(OmegaConf.get_type(current))


def _list_problem(item_type: Any, name: str, value: Any, shown: str) -> str | None:
    """What is wrong with a list of dataclasses such as data.mix, down to a single option of an item."""
    known = [item.name for item in fields(item_type)]
    form = f"Allowed: a list of {{{', '.join(known)}}}, e.g. {name}=[{{{known[0]}: VALUE}}, ...]"
    if not isinstance(value, list | tuple):
        return f"{name}={shown} is not allowed. {form}"
    for number, part in enumerate(value):
        if not isinstance(part, Mapping):
            return f"{name}[{number}]={part} is not allowed. {form}"
        for key, inner in part.items():
            if key not in known:
                near = did_you_mean(str(key), known) or f" Allowed: {', '.join(known)}"
                return f"{name}[{number}].{key}: there is no such option.{near}"
            try:
                OmegaConf.update(OmegaConf.structured(item_type), key, inner)
            except OmegaConfBaseException:
                return f"{name}[{number}].{key}={inner} is not allowed. Allowed: {type_words(item_type, key)}"
    return None


def _option_names(options: Any) -> set[str]:
    return {item.name for item in fields(options)}


def _unknown(node: DictConfig, name: str, algorithms: Mapping[str, Algorithm]) -> str:
    """The error line for an option that does not exist."""
    own: Any = OmegaConf.get_type(node.algo)
    first, _, last = name.rpartition(".")
    having = sorted(a for a, algorithm in algorithms.items() if last in _option_names(algorithm.config))
    if own is AlgoConfig and first == "algo" and (having or not algorithms):
        return f"{name}: choose the algorithm first. Type algo=NAME, one of: {', '.join(having) or 'none is installed'}"
    if first in ("", "algo") and having and last not in _option_names(own) and own is not AlgoConfig:
        return f"{name}: this algorithm has no such option; algo.{last} is of algo={' and algo='.join(having)}"
    known = list(_names(RunConfig, own))
    if own is AlgoConfig:
        known += [f"algo.{item.name}" for algorithm in algorithms.values() for item in fields(algorithm.config)]
    near = did_you_mean(name, [*GROUPS, *(word for word in known if "." not in word)]) if not first else ""
    near = near or _nearest(name, known)
    return f"{name}: there is no such option.{near or ' python -m hub show algo=NAME lists all.'}"


def _nearest(name: str, known: Collection[str]) -> str:
    """A sentence with the full names of the options nearest to a name: compared as a whole, else by the last word."""
    if whole := get_close_matches(name, known, n=1, cutoff=0.8):
        return f" Did you mean {whole[0]}?"
    by_last: dict[str, list[str]] = {}
    for option in dict.fromkeys(known):
        by_last.setdefault(option.rsplit(".", 1)[-1], []).append(option)
    last = name.rsplit(".", 1)[-1]
    words = [last] if last in by_last else get_close_matches(last, by_last, n=2, cutoff=0.6)
    options = [option for word in words for option in by_last[word]]
    same_part = [option for option in options if option.split(".")[0] == name.split(".")[0]]
    return f" Did you mean {' or '.join((same_part or options)[:3])}?" if options else ""


def _names(cls: Any, algo: Any, prefix: str = "") -> Iterator[str]:
    for item in fields(cls):
        part = algo if item.name == "algo" and not prefix else item.type
        if is_dataclass(part):
            yield from _names(part, algo, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}"
