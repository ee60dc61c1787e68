"""Preset files: what they set, and why some of them do not compose. Hydra's own messages name its classes, not the mistake."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from hub.compose.options import GROUPS, in_list, place_of, set_option
from hub.config.schema import PARTS, RunConfig
from hub.errors import did_you_mean
from hub.plugins.offers import Algorithm

COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)


def group_options(loader: ConfigLoaderImpl, group: str) -> list[str]:
    """The names of the presets of a group."""
    return sorted(loader.repository.get_group_options(group, ObjectType.CONFIG))


def option_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """The names of the options that a preset's file sets, relative to its section."""
    for key in node:
        if key == "defaults" and not prefix:
            continue
        if OmegaConf.is_dict(node) and OmegaConf.is_dict(node._get_node(key)):
            yield from option_keys(node[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def names_no_algorithm(preset: str, algorithms: Mapping[str, Algorithm]) -> str:
    """The message for a preset of `algo` that starts from no algorithm."""
    return (
        f"algo={preset}: this preset names no algorithm. Its file must begin with: "
        f"defaults: [NAME], one of: {', '.join(sorted(algorithms))}"
    )


YAML_MISTAKES = (
    (r"character '\\t'", "YAML takes no tabs here. Type spaces"),
    (r"mapping values are not allowed|expected <block end>", "the indentation is wrong, or a text with a colon lacks quotes"),
    (r"could not find expected ':'", "write NAME: VALUE, with a space behind the colon, in this line or the one before"),
    (r"unexpected end of stream", "a quote or a bracket is not closed"),
    (r"another document", "--- begins a second document. One file holds the options of one run"),
)
"""What PyYAML says (a regular expression) -> what to do about it."""


def yaml_message(error: YAMLError) -> str:
    """What is wrong with a YAML text, in one line with its place."""
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    advice = next((text for pattern, text in YAML_MISTAKES if re.search(pattern, what)), f"this is not YAML ({what})")
    return f"line {mark.line + 1}: {advice}" if mark else advice


def preset_problems(
    loader: ConfigLoaderImpl, chosen: Sequence[tuple[str, Any]], algorithms: Mapping[str, Algorithm]
) -> list[str]:
    """One line for each mistake in the files of the chosen presets.

    Args:
        loader: Hydra's config loader.
        chosen: group and preset of each choice.
        algorithms: the installed algorithms.
    """
    return list(dict.fromkeys(_Presets(loader, chosen, algorithms).problems()))


def file_that_sets(
    name: str, loader: ConfigLoaderImpl, chosen: Sequence[tuple[str, Any]], algorithms: Mapping[str, Algorithm]
) -> str:
    """The file among the chosen presets that sets an option. `a preset`, if it is not known which.

    Args:
        name: of the option.
        loader: Hydra's config loader.
        chosen: group and preset of each choice.
        algorithms: the installed algorithms.
    """
    presets = _Presets(loader, chosen, algorithms)
    presets.problems()
    for path, loaded in presets.loaded.items():
        prefix = "" if loaded.header.get("package") == "_global_" else f"{path.partition('/')[0]}."
        if not is_dataclass(OmegaConf.get_type(loaded.config)) and name in {
            f"{prefix}{key}" for key in option_keys(loaded.config)
        }:
            return _file(loaded, path)
    return "a preset"


class _Presets:
    """The files of the chosen presets, and those that they name."""

    def __init__(
        self, loader: ConfigLoaderImpl, chosen: Sequence[tuple[str, Any]], algorithms: Mapping[str, Algorithm]
    ) -> None:
        self.loader, self.chosen, self.algorithms = loader, chosen, algorithms
        self.loaded: dict[str, ConfigResult] = {}
        self.lines: list[str] = []

    def problems(self) -> list[str]:
        for group, names in self.chosen:
            for name in names if isinstance(names, list) else [names]:
                if name is not None:
                    self._visit(f"{group}/{name}")
        found = [path.removeprefix("algo/") for path in self.loaded if path.startswith("algo/")]
        algorithm = next((name for name in found if name in self.algorithms), None)
        node = OmegaConf.structured(RunConfig)
        if algorithm is not None:
            node.algo = self.algorithms[algorithm].config()
        elif found:
            self.lines.append(names_no_algorithm(found[0], self.algorithms))
        for path, loaded in self.loaded.items():
            if not is_dataclass(OmegaConf.get_type(loaded.config)) and (algorithm or not path.startswith("algo/")):
                self._check_values(node, path, loaded)
        return self.lines

    def _visit(self, path: str) -> None:
        """Load a preset, and those of its defaults list."""
        if path in self.loaded:
            return
        try:
            loaded = self.loader.repository.load_config(path)
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            self.lines.append(f"{_shown(mark.name) if mark else path}: {yaml_message(error)}")
            return
        except COMPOSE_ERRORS:
            return  # an odd defaults list; Hydra's message says which
        if loaded is None:
            return
        self.loaded[path] = loaded
        for item in loaded.defaults_list or []:
            self._visit_default(path, _file(loaded, path), item)

    def _visit_default(self, path: str, file: str, item: InputDefault) -> None:
        parent = path.rpartition("/")[0]
        if isinstance(item, ConfigDefault) and item.path is not None and item.path != "_self_":
            self._visit(item.path[1:] if item.path.startswith("/") else f"{parent}/{item.path}")
        if not isinstance(item, GroupDefault) or not isinstance(item.value, str):
            return
        written = str(item.group)
        group = written.removeprefix("/")
        if group.split("/")[0] == "hydra":
            return
        known = sorted({*GROUPS, *self.loader.repository.get_group_options("", ObjectType.GROUP)} - {"hydra"})
        if group not in known:
            self.lines.append(f"{file}: {group}: there is no such group.{did_you_mean(group, known)}")
        elif not written.startswith("/") or (group in GROUPS and not item.override):
            self.lines.append(f"{file}: {group}: a choice is written - override /{group}: {item.value}")
        elif (name := str(item.value)) not in (options := group_options(self.loader, group)):
            near = did_you_mean(name, options) or f" Allowed: {', '.join(options)}"
            what = "algorithm" if group == "algo" else "preset"
            self.lines.append(f"{file}: {group}={name}: there is no such {what}.{near}")
        else:
            self._visit(f"{group}/{name}")

    def _check_values(self, node: DictConfig, path: str, loaded: ConfigResult) -> None:
        """Check each option that a file sets."""
        group, file = path.partition("/")[0], _file(loaded, path)
        package = loaded.header.get("package")
        if group == "experiment" and package != "_global_":
            self.lines.append(
                f"{file}: the first line of an experiment is: # @package _global_. "
                f"Without it run the file itself: python -m hub {file}"
            )
            return
        prefix = "" if package == "_global_" else f"{group}."
        for key in option_keys(loaded.config):
            name = f"{prefix}{key}"
            if name.startswith("hydra.") or (group not in PARTS and prefix):
                continue
            value = OmegaConf.select(loaded.config, key, throw_on_missing=False)
            problem = set_option(node, name, value, str(value), self.algorithms)
            if not problem and in_list(*place_of(node, name), value) != value:  # Hydra merges it, and takes a list only
                problem = f"{name}={value} is a list in a preset. Write [{value}]"
            if problem:
                self.lines.append(f"{file}: {problem}")


def _file(loaded: ConfigResult, path: str) -> str:
    return _shown(f"{loaded.path.removeprefix('file://')}/{path}.yaml")


def _shown(file: str) -> str:
    """A file's path, relative if it is within the current folder."""
    file = file.removeprefix("file://")
    inside = os.path.relpath(file)
    return file if inside.startswith("..") else inside
