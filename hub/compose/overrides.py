"""Overrides as typed, NAME=VALUE: parsed with Hydra's grammar and checked one by one, with one line per mistake.

`check` reports all mistakes at once: first the choices of presets (algo=, model=, ...), which decide what options exist,
then each option against its type. Clashes of options are found by `RunConfig.problems`.
"""

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import product
from math import prod
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, StringNode

from hub.compose.options import GROUPS, exists, in_list, is_list, library_message, place_of, set_option
from hub.compose.preset_cache import compose_presets
from hub.compose.presets import COMPOSE_ERRORS, file_that_sets, group_options, names_no_algorithm, preset_problems
from hub.config.evaluate import CODE
from hub.config.schema import PARTS, AlgoConfig, RunConfig
from hub.config.trust import RUN_CODE
from hub.errors import ConfigError, did_you_mean
from hub.plugins.registry import Registry

CONFIG_NAME = "config"


class FromFile(str):
    """An override that stands in a file, for messages."""

    file: str

    def __new__(cls, text: str, file: str) -> "FromFile":
        made = super().__new__(cls, text)
        made.file = file
        return made


@dataclass
class Checked:
    """The config of all valid overrides, and the problems of the others."""

    node: DictConfig
    problems: list[str]
    valid: set[str]
    """The sections of the config (`algo`, `model`, ...) whose overrides are all valid."""


def parse(texts: Sequence[str], loader: ConfigLoaderImpl | None = None) -> list[Override]:
    """Parse overrides.

    Args:
        texts: the overrides as typed.
        loader: Hydra's config loader, for `model=glob(*)`.

    Raises:
        ConfigError: with one line for each override that can't be parsed.
    """
    if lines := with_spaces(texts):
        raise ConfigError(lines)
    parser, parsed, problems = OverridesParser.create(config_loader=loader), [], []
    for text, before in zip(texts, ["", *texts], strict=False):
        name, equals, value = text.partition("=")
        try:
            parsed += parser.parse_overrides([text])
        except HydraException as error:
            if not equals:
                problems.append(f"can't read {text!r}: {_meant_by_word(text, before)}")
                continue
            # File names may have characters that the grammar reserves: parentheses, accents, apostrophes.
            try:
                parsed += parser.parse_overrides([f"{name}={quoted(value)}"])
            except HydraException:
                problems.append(f"can't read {text!r}: {library_message(error)}")
    if problems:
        raise ConfigError(problems)
    return parsed


def with_spaces(texts: Sequence[str]) -> list[str]:
    """One line for each option that has spaces around its equals sign, as one word or as several."""
    between = re.findall(r"(?<![^\0])([\w.@+~-]+)(\0=\0?|=\0)([^\0=]+)(?![^\0])", "\0".join(texts))
    found = [(f"{name}{sign}{value}".replace("\0", " "), name, value) for name, sign, value in between]
    within = (re.fullmatch(r"([\w.@+~-]+)( += *)(\S.*)", text) for text in texts)
    found += [(match[0], match[1], match[3]) for match in within if match]
    return [
        f"{typed!r}: options are written without spaces. Type {shlex.quote(f'{name}={value}')}" for typed, name, value in found
    ]


def _meant_by_word(word: str, before: str) -> str:
    """What is wrong with a word that is no option, and what to type.

    Args:
        word: the word.
        before: the one in front of it.
    """
    value = before.partition("=")[2]
    if value and os.path.exists(os.path.expanduser(f"{value} {word}")):
        return f"a value with spaces is written in quotes. Type {shlex.quote(f'{before} {word}')}"
    if word == "latest" or os.path.isfile(os.path.join(word, "run.yaml")):
        return f"options are written NAME=VALUE. For a run type run={word}"
    return "options are written NAME=VALUE without spaces, and a verb comes first"


def quoted(value: str) -> str:
    """Quote a text for Hydra's grammar."""
    escaped = re.sub(r'(\\*)"', lambda match: match[1] * 2 + '\\"', value)
    return '"' + re.sub(r"(\\+)$", lambda match: match[1] * 2, escaped) + '"'


def text_as_typed(shown: str) -> str | None:
    """The value of a text option as it was typed: a question may have commas, brackets and quotes. Quotes around it all go."""
    if shown == "null":
        return None
    if shown[:1] in ("'", '"') and shown[-1:] == shown[:1] and len(shown) > 1:
        try:
            value = parse([f"text={shown}"])[0]._value
        except ConfigError:
            return shown
        return value.text if isinstance(value, QuotedString) else shown
    return shown


def choices(loader: ConfigLoaderImpl, parsed: Sequence[Override]) -> list[str]:
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


def check(loader: ConfigLoaderImpl, parsed: Sequence[Override], values: Mapping[str, Any], plugins: Registry) -> Checked:
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
            problems.append(_place_of_text(item) + problem)
            doubtful |= _parts(item.key_or_group)
        else:
            good.append(item)
    try:
        node = compose_presets(loader, CONFIG_NAME, choices(loader, good), plugins)
    except COMPOSE_ERRORS as error:
        chosen = [(item.key_or_group, item.value()) for item in good if loader.repository.group_exists(item.key_or_group)]
        problems += preset_problems(loader, chosen, plugins.algorithms) or [library_message(error)]
        doubtful |= set(PARTS)
        node = OmegaConf.structured(RunConfig)
    problems += code_problems(loader, node, good, values, plugins)
    algo = next((item.value() for item in reversed(good) if item.key_or_group == "algo"), None)
    if algo is not None and not doubtful and OmegaConf.get_type(node.algo) is AlgoConfig:
        problems.append(names_no_algorithm(str(algo), plugins.algorithms))
        doubtful.add("algo")
    settings = []
    for item in good:
        name = item.key_or_group
        if loader.repository.group_exists(name):
            continue
        if problem := _sweep_problem(node, item):
            problems.append(_place_of_text(item) + problem)
            doubtful |= _parts(name)
        else:
            settings.append((name, _value(node, item), _shown(item), _place_of_text(item)))
    for part, value in values.items():
        inner = {f"{part}.{name}": v for name, v in value.items()} if part in PARTS else {part: value}
        settings += [(name, v, str(v), "") for name, v in inner.items()]
    algorithm_unknown = "algo" in doubtful
    for name, value, shown, place in settings:
        if algorithm_unknown and name.startswith("algo.") and not exists(node, name):
            continue
        if problem := set_option(node, name, value, shown, plugins.algorithms):
            problems.append(place + problem)
            doubtful |= _parts(name)
    return Checked(node, problems, set(PARTS) - doubtful)


def code_problems(
    loader: ConfigLoaderImpl, node: DictConfig, good: Sequence[Override], values: Mapping[str, Any], plugins: Registry
) -> list[str]:
    """One line for each option that runs code, is set by a preset and was not typed. Presets may come from anywhere.

    Args:
        loader: Hydra's config loader.
        node: the composed presets, without overrides.
        good: overrides of the command line.
        values: nested values of a call.
        plugins: the installed plugins.
    """
    typed = {item.key_or_group for item in good} | {f"{part}.{name}" for part in PARTS for name in values.get(part, {})}
    found = {name: OmegaConf.select(node, name) for name in RUN_CODE if name not in typed}
    for name, marks in CODE.items():
        named = [text for text in OmegaConf.select(node, f"evaluate.{name}") or () if any(mark in text for mark in marks)]
        found |= {f"evaluate.{name}": named} if f"evaluate.{name}" not in typed else {}
    lines = []
    for name, value in found.items():
        if value:
            text = "true" if value is True else ",".join(value) if isinstance(value, list) else value
            chosen = [(item.key_or_group, item.value()) for item in good if loader.repository.group_exists(item.key_or_group)]
            file = file_that_sets(name, loader, chosen, plugins.algorithms)
            lines.append(f"{file} sets {name}={text}, which runs code. If you trust it, type that too")
    return lines


def _shown(item: Override) -> str:
    """The value of an override as it was typed, or as it stands in a file."""
    value = item.value() if isinstance(item.input_line, FromFile) else None
    return value if isinstance(value, str) else str(item.get_value_string())


def _place_of_text(item: Override) -> str:
    """The file that an override stands in, before a message. Empty for one that was typed."""
    return f"{item.input_line.file}: " if isinstance(item.input_line, FromFile) else ""


def _parts(name: str) -> set[str]:
    """The sections of the config that an override may affect: all of them if its name is unknown."""
    part = re.split(r"[./]", name)[0]
    return {part} if part in PARTS else set(PARTS)


def _form_problem(loader: ConfigLoaderImpl, item: Override) -> str | None:
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
    if item.is_sweep_override() and loader.repository.group_exists(name):
        return f"{name}={value} has several values. Add --multirun for a run with each"
    return None


def _sweep_problem(node: DictConfig, item: Override) -> str | None:
    """What is wrong with several values for an option. None: there is one value, or they are those of a list."""
    name, value = item.key_or_group, item.get_value_string()
    if not item.is_sweep_override() or not exists(node, name) or _values_of_list(node, item) is not None:
        return None
    place, last = place_of(node, name)
    cls: Any = OmegaConf.get_type(place)
    kind = next((option.type for option in fields(cls) if option.name == last), None) if is_dataclass(cls) else None
    texts = f"a text '{name}={quoted(value)}'"
    forms = f"; a list is written {name}=[{value}], {texts}" if kind is Any else f"; {texts}" if _is_text(node, name) else ""
    if name == "data.path":
        forms = f"; to train on all of them type data.mix=[{','.join(f'{{path:{part}}}' for part in value.split(','))}]"
    return f"{name}={value} has several values. Add --multirun for a run with each{forms}"


def _values_of_list(node: DictConfig, item: Override) -> list[Any] | None:
    """The values of a list option that are typed as `a,b` or `[a,b]`. None: it is no list option, or typed otherwise.

    Outside of a sweep `a,b` can only be the list. Texts are as typed: `1e3` may be the name of a run.
    """
    place, last = place_of(node, item.key_or_group)
    if not is_list(place, last):
        return None
    typed = item._value
    if isinstance(typed, ChoiceSweep):
        if not typed.simple_form or any(isinstance(value, list) for value in typed.list):
            return None
        values = [Override._convert_value(value) for value in typed.list]
    else:
        value = None if item.is_sweep_override() else in_list(place, last, item.value())
        if not isinstance(value, list):
            return None
        values = value
    shown = item.get_value_string()
    texts = shown[1:-1] if shown[:1] == "[" and shown[-1:] == "]" else shown
    parts = [part.strip() for part in texts.split(",")]
    of_texts = place._get_node(last)._metadata.element_type is str
    if of_texts and not set(texts) & set("'\"[]\\") and len(parts) == len(values):
        return [part if isinstance(value, int | float) else value for part, value in zip(parts, values, strict=True)]
    return values


def _choice_problem(loader: ConfigLoaderImpl, item: Override, plugins: Registry) -> str | None:
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
    near = did_you_mean(_as_name(wrong[0]) if name == "model" else wrong[0], options)
    if name == "algo" and not (near and plugins.algorithms):
        return plugins.no_algorithm(wrong[0])
    path = f" For a file, a folder or an id of the model hub type {name}.path={wrong[0] or 'PATH'}"
    allowed = near or f" Allowed: {', '.join(options) or 'none'}."
    if name in ("model", "data"):
        is_path = set("./") & set(wrong[0])
        return f"{name}={wrong[0]}: there is no such preset.{(near if name == 'model' else '') if is_path else allowed}{path}"
    if name == "algo":
        return f"algo={wrong[0]}: there is no such algorithm.{allowed}{plugins.left_out()}"
    return f"{name}={wrong[0]}: there is no such preset.{allowed}"


def _as_name(text: str) -> str:
    """The id of a model, or its name as others write it, as a preset is named. A path is no name: an empty text."""
    is_path = text.startswith((".", "/", "~")) or os.path.exists(text)
    return "" if is_path else re.sub(r"[^a-z0-9]+", "_", text.lower().rpartition("/")[2])


def _value(node: DictConfig, item: Override) -> Any:
    """The value of an override. For a text option it is the text as typed: the revision 1e10 is not a number."""
    if (values := _values_of_list(node, item)) is not None:
        return values
    value = item.value()
    if _is_text(node, item.key_or_group) and isinstance(value, int | float):
        return item.get_value_string()
    return value


def _is_text(node: DictConfig, name: str) -> bool:
    """Whether an option is a text."""
    place, last = place_of(node, name)
    return exists(node, name) and isinstance(place._get_node(last), StringNode)
