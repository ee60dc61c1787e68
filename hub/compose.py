"""The Hydra edge: command-line overrides in, a typed RunConfig out. Only this module and cli.py know Hydra.

Overrides are checked here before Hydra sees them, so that all mistakes are found at once and each is one line with the
nearest allowed words. Schemas come from the installed algorithms' dataclasses; YAML files are presets only.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hub.config import AlgoConfig, RunConfig
from hub.errors import ConfigError, did_you_mean
from hub.plugins import conf_dir, registry

CONFIG_NAME = "config"
VERSION_BASE = "1.3"


class HubSearchPath(SearchPathPlugin):
    """Tells Hydra about the config folders of the installed plugins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for name, folder in registry().config_dirs:
            search_path.append(provider=f"hub-plugin-{name}", path=f"file://{folder}")


@cache
def register_schemas() -> None:
    """Give Hydra the dataclasses and the plugins' config folders. Once per process."""
    Plugins.instance().register(HubSearchPath)
    store = ConfigStore.instance()
    store.store(name="hub_schema", node=RunConfig)
    for name, algorithm in registry().algorithms.items():
        store.store(group="algo", name=name, node=algorithm.config, provider=registry().owners[name])


@contextmanager
def hydra_session(config_dir: str | None = None) -> Iterator[Any]:
    """Hydra's config loader over the hub's search path. A Hydra app around us gets its state back afterwards.

    Args:
        config_dir: a further folder with config groups, searched first.
    """
    register_schemas()
    state = GlobalHydra.instance()
    around, state.hydra = state.hydra, None
    try:
        with initialize_config_dir(str(conf_dir()), job_name="hub", version_base=VERSION_BASE):
            loader = state.config_loader()
            if config_dir is not None:
                folder = Path(config_dir).expanduser().absolute()
                if not folder.is_dir():
                    raise ConfigError(f"--config-dir {config_dir}: there is no such folder")
                loader.get_search_path().prepend(provider="command-line", path=f"file://{folder}")
                loader.repository.initialize_sources(loader.get_search_path())
            yield loader
    finally:
        state.hydra = around


def groups(config_dir: str | None = None) -> dict[str, list[str]]:
    """Each config group with the values that may be chosen."""
    with hydra_session(config_dir) as loader:
        return {name: _options(loader, name) for name in ("algo", "model", "data", "launch", "track", "experiment")}


def compose(
    *overrides: str, values: Mapping[str, Any] | None = None, config_dir: str | None = None, check: bool = False
) -> RunConfig:
    """Build a RunConfig from presets and overrides.

    Args:
        overrides: as on the command line: `"algo=lora_sft"`, `"model=tiny"`, `"algo.lora_r=8"`.
        values: nested values that are set last, e.g. `{"data": {"path": "chats.jsonl"}}`. No quoting is needed here.
        config_dir: a further folder with config groups, searched first.
        check: also raise when the values make no sense together (`RunConfig.problems`).

    Raises:
        ConfigError: with every problem that was found.
    """
    with hydra_session(config_dir) as loader:
        parsed = parse(overrides)
        problems = list(_override_problems(loader, parsed))
        if problems:
            raise ConfigError(problems)
        try:
            node = hydra_compose(CONFIG_NAME, overrides=list(overrides))
            if values:
                node = cast(DictConfig, OmegaConf.merge(node, OmegaConf.create(dict(values))))
            cfg = cast(RunConfig, OmegaConf.to_object(node))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_first_line(error)) from None
    if check and (problems := cfg.problems()):
        raise ConfigError(problems)
    return cfg


def from_node(node: DictConfig) -> RunConfig:
    """The typed config in what Hydra hands to a job of a sweep."""
    try:
        return cast(RunConfig, OmegaConf.to_object(node))
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from None


def parse(overrides: Sequence[str]) -> list[Override]:
    """Read overrides by Hydra's grammar.

    Raises:
        ConfigError: with a line for each one that can't be read.
    """
    parser, parsed, problems = OverridesParser.create(), [], []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            if "=" not in text:
                reason = "options are written NAME=VALUE"
            else:
                reason = f"{_first_line(error)}. Quote a value with special characters: '{text.split('=', 1)[0]}=\"...\"'"
            problems.append(f"can't read {text!r}: {reason}")
    if problems:
        raise ConfigError(problems)
    return parsed


def sweep_samples(overrides: Sequence[str]) -> list[list[str]]:
    """For a sweep: override lists in which each swept value occurs once, so that each can be checked before the first run."""
    parsed = parse(overrides)
    choices = [
        [f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()]
        if item.is_sweep_override() and item.is_discrete_sweep()
        else [str(item.input_line)]
        for item in parsed
        if not item.is_sweep_override() or item.is_discrete_sweep()
    ]
    longest = max((len(values) for values in choices), default=1)
    return [[values[min(i, len(values) - 1)] for values in choices] for i in range(longest)]


def origins(*overrides: str, config_dir: str | None = None) -> dict[str, str]:
    """Where each option that is not at its default got its value: a YAML file's path in conf/, or `command line`."""
    found: dict[str, str] = {}
    with hydra_session(config_dir) as loader:
        parsed = parse(overrides)
        defaults = loader.compute_defaults_list(CONFIG_NAME, list(overrides), RunMode.RUN).defaults
        for default in defaults:
            if default.config_path is None or default.config_path.startswith("hydra/"):
                continue
            loaded = loader.repository.load_config(default.config_path)
            if loaded is None or loaded.provider == "schema" or is_dataclass(OmegaConf.get_type(loaded.config)):
                continue
            package = default.package or ""
            place = f"{loaded.provider}:" if loaded.provider.startswith("hub-plugin-") else "conf/"
            for key in _keys(loaded.config):
                found[f"{package}.{key}" if package else key] = place + default.config_path + ".yaml"
        for item in parsed:
            if not loader.repository.group_exists(item.key_or_group):
                found[item.key_or_group] = "command line"
    return found


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key in node:
        if key == "defaults" and not prefix:
            continue
        if OmegaConf.is_dict(node) and OmegaConf.is_dict(node._get_node(key)):
            yield from _keys(node[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _options(loader: Any, group: str) -> list[str]:
    return sorted(loader.repository.get_group_options(group, ObjectType.CONFIG))


def _override_problems(loader: Any, parsed: Sequence[Override]) -> Iterator[str]:
    """Mistakes in overrides: unknown groups' values first, since the allowed options depend on what is chosen there."""
    chosen: list[str] = []
    rest: list[Override] = []
    failed = False
    for item in parsed:
        name = item.key_or_group
        if name.split(".")[0].split("/")[0] == "hydra":
            continue
        if not loader.repository.group_exists(name):
            rest.append(item)
            continue
        value = item.value()
        options = _options(loader, name)
        if value is None or value in options or isinstance(value, dict | list):
            chosen.append(str(item.input_line))
            continue
        failed = True
        if name == "algo":
            yield registry().no_algorithm(str(value)) + (
                f" Presets: {', '.join(o for o in options if o not in registry().algorithms)}"
                if any(o not in registry().algorithms for o in options)
                else ""
            )
        else:
            path = f" For a folder or an id of a hub type {name}.path={value}" if name in ("model", "data") else ""
            allowed = ", ".join(options) or "none"
            yield f"{name}={value}: there is no such preset. Allowed: {allowed}.{did_you_mean(str(value), options)}{path}"
    if failed:
        yield from (line for item in rest if (line := _unknown_part(item)))
        return
    try:
        node = hydra_compose(CONFIG_NAME, overrides=chosen)
    except (HydraException, OmegaConfBaseException) as error:
        yield _first_line(error)
        return
    for item in rest:
        yield from _value_problems(node, item)


def _unknown_part(item: Override) -> str | None:
    first = item.key_or_group.split(".")[0]
    known = [f.name for f in fields(RunConfig)]
    return None if first in known else f"{item.key_or_group}: there is no such option.{did_you_mean(first, known)}"


def _value_problems(node: DictConfig, item: Override) -> Iterator[str]:
    """One override against the schema: does the option exist, and does the value have its type?"""
    key = item.key_or_group
    *parents, last = key.split(".")
    place: Any = node
    for step in parents:
        if not OmegaConf.is_dict(place) or step not in place:
            break
        place = place[step]
    else:
        if OmegaConf.is_dict(place) and last in place:
            if item.is_delete():
                yield f"~{key}: an option can't be removed. Type {key}=VALUE or leave it out"
            elif not item.is_sweep_override():
                try:
                    OmegaConf.update(node, key, item.value())
                except OmegaConfBaseException as error:
                    wanted = _type_words(OmegaConf.get_type(place), last)
                    yield f"{key}={item.get_value_string()} is not allowed. Allowed: {wanted or _first_line(error)}"
            return
    if key.startswith("algo.") and OmegaConf.get_type(node.algo) is AlgoConfig:
        yield f"{key}: choose the algorithm first. Type algo=NAME, one of: {', '.join(sorted(registry().algorithms))}"
        return
    known = [name for name, *_ in _all_names(node)]
    near = did_you_mean(key, known) or did_you_mean(last, [name.rsplit(".", 1)[-1] for name in known])
    groups_note = "" if "." in key else " Groups: algo, model, data, launch, track, experiment."
    yield f"{key}: there is no such option.{near}{'' if near else groups_note} (python -m hub show lists all)"


def _all_names(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key in node:
        inner = node._get_node(key)
        if OmegaConf.is_dict(inner) and is_dataclass(OmegaConf.get_type(inner)):
            yield from _all_names(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _type_words(cls: Any, name: str) -> str:
    """The type of a field in words: `a whole number or "auto"`."""
    if not is_dataclass(cls):
        return ""
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "None": "null"}
    for item in fields(cls):
        if item.name == name:
            text = item.type if isinstance(item.type, str) else getattr(item.type, "__name__", str(item.type))
            text = str(item.type) if "|" in str(item.type) else text
            return " or ".join(words.get(part.strip(), part.strip()) for part in text.split("|"))
    return ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "full_key" not in line]
    return lines[0] if lines else type(error).__name__
