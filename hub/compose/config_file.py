"""A config file of one's own, `python -m hub exp.yaml`: the options of a command line, written as YAML.

A section is the name of a choice (`model: tiny`), the path of a model or of data (`data: chats.jsonl`), a list of sources of
data, or a mapping of options, in which `name` is the choice. Options may also be written with their full names
(`algo.num_epochs: 2`). A run's own run.yaml is such a file. What is typed wins over the file.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf._utils import get_yaml_loader
from yaml import MappingNode, Node, ScalarNode, SequenceNode, YAMLError  # type: ignore[import-untyped]

from hub.compose.compose import hydra_session
from hub.compose.options import GROUPS
from hub.compose.overrides import FromFile, parse, quoted
from hub.compose.presets import group_options, option_keys, yaml_message
from hub.compose.yaml_bounds import MOST_BYTES, check_nodes, check_text
from hub.config.evaluate import CODE
from hub.config.option import leaves
from hub.config.schema import PARTS, RunConfig
from hub.config.trust import RUN_CODE, of_the_machine
from hub.errors import ConfigError
from hub.plugins.registry import registry

ENDINGS = (".yaml", ".yml", ".json")
OF_ONE_RUN = ("run_name", "resume", "resume_with_changes")
"""Options of a run.yaml that are not taken for another run."""
_NUMBER = re.compile(r"[+-]?\d[\d_]*(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)
_KEY = re.compile(r"[\w-]+")


def file_overrides(file: str, typed: Sequence[str], config_dir: str | None = None, measures: bool = True) -> list[FromFile]:
    """The options of a config file as overrides, without those that the command line replaces.

    Args:
        file: a path.
        typed: the overrides of the command line. A choice there (`model=tiny`) replaces that section of the file. A choice of
            `algo` replaces only the options that its preset sets, and in a run.yaml, which has all options, those at the
            defaults of its algorithm.
        config_dir: a further folder with config groups.
        measures: whether what `evaluate.` names will be measured, so that code which it names would run.

    Raises:
        ConfigError: with all mistakes in the form of the file.
    """
    reader = _Reader(file, _text(file))
    found = reader.overrides()
    is_run = all(item.name in reader.sections for item in fields(RunConfig))
    if is_run:
        found = {name: value for name, value in found.items() if name not in OF_ONE_RUN}
        found = {name: value for name, value in found.items() if name in RUN_CODE or not of_the_machine(name)}
    with hydra_session(config_dir) as loader:
        words = parse(typed, loader)
        names = {item.key_or_group for item in words}
        if "experiment" in names:
            raise ConfigError(f"{file} is an experiment itself. Leave experiment= out, or write it into the file")
        _take_paths(loader, found)
        _check_algorithm(file, found, names)
        replaced = set(names)
        for item in words:
            if item.key_or_group == "algo" and isinstance(item.value(), str):
                loaded = loader.repository.load_config(f"algo/{item.value()}")
                if loaded is not None and not loaded.is_schema_source:
                    replaced |= {f"algo.{key}" for key in option_keys(loaded.config)}
                replaced |= _at_default(loader, found) if is_run else set()
    kept = {
        name: value
        for name, value in found.items()
        if name not in replaced and (name.split(".")[0] not in names or name.split(".")[0] == "algo")
    }
    code = [f"{name}={kept[name]}" for name in RUN_CODE if kept.get(name, "null") not in ("null", "false")]
    if measures:
        named = {f"evaluate.{name}": marks for name, marks in CODE.items()}
        code += [f"{name}={kept[name]}" for name in named if any(mark in kept.get(name, "") for mark in named[name])]
    if code:
        raise ConfigError(f"{file} has {' '.join(code)}, which runs code. If you trust the file, type that too")
    return [FromFile(f"{name}={value}", file) for name, value in kept.items()]


def _at_default(loader: ConfigLoaderImpl, found: dict[str, str]) -> set[str]:
    """The options of a run's algorithm that are as it sets them itself, and the backend, which the run has chosen."""
    algorithm = registry().algorithms.get(found.get("algo", ""))
    defaults = {} if algorithm is None else {f"algo.{name}": default for name, _, default, _ in leaves(algorithm.config())}
    values = {name: parse([f"{name}={found[name]}"], loader)[0].value() for name in defaults if name in found}
    return {name for name, value in values.items() if value == defaults[name]} | {"algo.backend"}


def _take_paths(loader: ConfigLoaderImpl, found: dict[str, str]) -> None:
    """Make a model or data that is named by its path the option `path`."""
    for part in ("model", "data"):
        choice = found.get(part, "").strip('"')
        if set("./:") & set(choice) and choice not in group_options(loader, part) and f"{part}.path" not in found:
            found[f"{part}.path"] = found.pop(part)


def _check_algorithm(file: str, found: dict[str, str], typed: set[str]) -> None:
    """Refuse options of an algorithm that nothing chooses. An experiment or a group of one's own may choose it."""
    options = {item.name for item in fields(RunConfig)} - {"algo"}
    chosen = {name for name in {*found, *typed} if "." not in name and name not in options}
    if not chosen and any(name.startswith("algo.") for name in found):
        known = ", ".join(sorted(registry().algorithms)) or "none is installed"
        raise ConfigError(f"{file}: algo: names no algorithm. Write name: NAME in it, or type algo=NAME, one of: {known}")


def _text(file: str) -> str:
    path = os.path.expanduser(file)
    if os.path.isdir(path):
        if os.path.isfile(os.path.join(path, "run.yaml")):
            raise ConfigError(f"{file} is a run folder. Type {file.rstrip('/')}/run.yaml to run it again, or resume={file}")
        raise ConfigError(f"{file} is a folder. Name a config file, or type --config-dir {file} for a folder of presets")
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        others = {os.path.splitext(name)[0]: name for name in names if name.endswith(ENDINGS)}
        near = get_close_matches(os.path.splitext(os.path.basename(path))[0], others, n=1)
        raise ConfigError(f"{file}: there is no such file{f'. Did you mean {others[near[0]]}?' if near else ''}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: this file can't be read, as it is not UTF-8. Save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{file}: this file can't be read ({error.strerror})") from None


class _Reader:
    """Reads a YAML text to overrides. Scalars stay as they are written: the revision 1e10 is no number."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.lines: list[str] = []
        self.sections: set[str] = set()
        check_text(text, file)
        try:
            self.loader = get_yaml_loader()(text)
            self.root = self.loader.get_single_node()
        except YAMLError as error:
            raise ConfigError(f"{file}: {yaml_message(error)}") from None
        except RecursionError:
            raise ConfigError(f"{file}: it is nested too deeply") from None
        check_nodes(self.root, file)

    def overrides(self) -> dict[str, str]:
        """Name -> value in the notation of the command line.

        Raises:
            ConfigError: with all mistakes.
        """
        if not isinstance(self.root, MappingNode):
            raise ConfigError(f"{self.file}: write NAME: VALUE on each line, e.g. algo: lora_sft")
        found: dict[str, str] = {}
        for name, value, place in self._leaves(self.root, ""):
            if name in found:
                self._problem(place, f"{name} is set twice")
            found[name] = value
        if self.lines:
            raise ConfigError(self.lines)
        return found

    def _leaves(self, node: MappingNode, prefix: str) -> Iterator[tuple[str, str, Node]]:
        """Yield each option: full name, value, node."""
        for key, value in self._items(node):
            name = f"{prefix}{key}"
            if not prefix:
                self.sections.add(key)
            is_section = name in (*PARTS, "experiment")
            if not prefix and key == "defaults":
                yield from self._defaults(value)
            elif isinstance(value, MappingNode) and value.value:
                yield from self._leaves(value, f"{name}.")
            elif name == "data" and isinstance(value, SequenceNode):
                yield "data.mix", self._sources(value), value
            elif is_section and isinstance(value, ScalarNode) and self._is_null(value):
                continue  # an empty section
            else:
                part, _, last = name.rpartition(".")
                name = part if part in PARTS and last == "name" else name
                yield name, self._value(value, is_choice=name in GROUPS or not self._is_option(name)), value

    def _sources(self, node: SequenceNode) -> str:
        """The list of sources that stands for the section `data`: each a path, or options with a path."""
        items = (self._value(item) if isinstance(item, MappingNode) else f"{{path:{self._value(item)}}}" for item in node.value)
        return f"[{','.join(items)}]"

    def _defaults(self, node: Node) -> Iterator[tuple[str, str, Node]]:
        """Yield the choices of a defaults list, as experiments in a folder of presets have it."""
        for item in node.value if isinstance(node, SequenceNode) else []:
            if isinstance(item, ScalarNode) and item.value == "_self_":
                continue
            if not isinstance(item, MappingNode):
                self._problem(item, "a choice is written GROUP: NAME, e.g. algo: lora_sft")
                continue
            for key, value in self._items(item, odd=True):
                yield key.split()[-1].lstrip("/"), self._value(value, is_choice=True), value

    @staticmethod
    def _is_option(name: str) -> bool:
        """Whether a name may be an option, not only a group of presets of a plugin."""
        return "." in name or any(item.name == name for item in fields(RunConfig))

    def _items(self, node: MappingNode, odd: bool = False) -> list[tuple[str, Node]]:
        """The keys and values of a mapping, with those merged by `<<`."""
        own = [key.value for key, _ in node.value if isinstance(key, ScalarNode) and key.tag.endswith(":str")]
        for key in dict.fromkeys(key for key in own if own.count(key) > 1):
            self._problem(node, f"{key} is set twice")
        try:
            self.loader.flatten_mapping(node)
        except YAMLError as error:
            self._problem(node, yaml_message(error))
            return []
        items: dict[str, Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, ScalarNode) else ""
            if all(_KEY.fullmatch(part) for part in name.split(".")) or (odd and isinstance(key, ScalarNode)):
                items[name] = value
            else:
                self._problem(key, f"{name or 'this'} is not the name of an option")
        return list(items.items())

    @staticmethod
    def _is_null(node: Node) -> bool:
        return bool(node.tag.endswith(":null"))

    def _value(self, node: Node, is_choice: bool = False) -> str:
        """A value in the notation of the command line."""
        if isinstance(node, SequenceNode):
            return f"[{','.join(self._value(item) for item in node.value)}]"
        if isinstance(node, MappingNode):
            return f"{{{','.join(f'{key}:{self._value(value)}' for key, value in self._items(node))}}}"
        kind = node.tag.rpartition(":")[2]
        if kind == "null":
            return "null"
        if kind == "bool":
            return str(self.loader.construct_yaml_bool(node)).lower()
        if kind in ("int", "float"):
            is_plain = _NUMBER.fullmatch(node.value)
            return str(node.value) if is_plain else str(self._number(kind, node))
        if kind != "str":
            self._problem(node, f"{node.tag} is not allowed in a config file")
        return str(node.value) if is_choice and _KEY.fullmatch(node.value) else quoted(str(node.value))

    def _number(self, kind: str, node: Node) -> Any:
        return self.loader.construct_yaml_int(node) if kind == "int" else self.loader.construct_yaml_float(node)

    def _problem(self, node: Node, text: str) -> None:
        self.lines.append(f"{self.file}: line {node.start_mark.line + 1}: {text}")
