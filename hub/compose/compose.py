"""Composes overrides and presets into a typed RunConfig, with Hydra.

Hydra and its DictConfig are used in this folder and in launch/sweep.py only. Schemas come from the
dataclasses of the installed algorithms. YAML files are presets only.
"""

import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from hub.compose.options import GROUPS, library_message
from hub.compose.overrides import CONFIG_NAME, FromFile, choices, combinations, parse
from hub.compose.overrides import check as check_overrides
from hub.compose.presets import group_options, option_keys
from hub.config.option import conf_dir
from hub.config.schema import PARTS, AlgoConfig, RunConfig
from hub.errors import ConfigError
from hub.plugins.registry import data_format_names, registry

VERSION_BASE = "1.3"
_hydra_in_use = threading.RLock()
"""Held by the thread that composes: Hydra has one state for the whole process."""


class HubSearchPath(SearchPathPlugin):
    """Adds the config folders of the installed plugins to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for name, folder in registry().config_dirs:
            search_path.append(provider=f"plugin {name}: conf", path=f"file://{folder}")


@cache
def register_schemas() -> None:
    """Register the dataclasses and the plugins' config folders with Hydra, once per process."""
    Plugins.instance().register(HubSearchPath)
    store = ConfigStore.instance()
    store.store(name="hub_schema", node=RunConfig)
    for name, algorithm in registry().algorithms.items():
        store.store(group="algo", name=name, node=algorithm.config, provider=registry().owners[name])


def store_schema(algorithm: str) -> None:
    """Register the dataclass of an algorithm that was added to the registry later, or replaced."""
    register_schemas()
    found = registry()
    ConfigStore.instance().store(
        group="algo", name=algorithm, node=found.algorithms[algorithm].config, provider=found.owners[algorithm]
    )


@contextmanager
def hydra_session(config_dir: str | None = None) -> Iterator[ConfigLoaderImpl]:
    """Yield Hydra's config loader with the hub's search path. The state of an enclosing Hydra app is restored at the end.

    Threads take turns.

    Args:
        config_dir: a further folder with config groups, searched first.
    """
    with _hydra_in_use:
        register_schemas()
        state = GlobalHydra.instance()
        around, state.hydra = state.hydra, None
        try:
            with initialize_config_dir(str(conf_dir()), job_name="hub", version_base=VERSION_BASE):
                loader = cast(ConfigLoaderImpl, state.config_loader())
                if config_dir is not None:
                    folder = Path(os.path.expanduser(config_dir)).absolute()
                    if not os.path.isdir(folder):
                        raise ConfigError(f"--config-dir {config_dir}: there is no such folder")
                    if (folder / f"{CONFIG_NAME}.yaml").is_file():
                        own = os.path.join(config_dir, f"{CONFIG_NAME}.yaml")
                        raise ConfigError(
                            f"--config-dir {config_dir}: {own} would replace the hub's own. If it holds options of a run, type "
                            f"python -m hub {own}. Else give it another name"
                        )
                    loader.get_search_path().prepend(provider="command-line", path=f"file://{folder}")
                    loader.repository.initialize_sources(loader.get_search_path())
                yield loader
        finally:
            GlobalHydra.instance().hydra = around  # initialize_config_dir has put another instance in place


def groups(config_dir: str | None = None) -> dict[str, list[str]]:
    """Config group -> the values to choose from: the hub's own groups first, then those of plugins."""
    with hydra_session(config_dir) as loader:
        names = loader.repository.get_group_options("", ObjectType.GROUP)
        further = sorted(name for name in names if name not in GROUPS and name != "hydra")
        return {name: group_options(loader, name) for name in (*GROUPS, *further)}


def compose(
    *overrides: str,
    values: Mapping[str, Any] | None = None,
    config_dir: str | None = None,
    check: bool = False,
    parts: Collection[str] = PARTS,
) -> RunConfig:
    """Build a RunConfig from presets and overrides.

    Args:
        overrides: as on the command line: `"algo=NAME"`, `"model=tiny"`, `"algo.num_epochs=2"`.
        values: nested values that are set last, e.g. `{"data": {"path": "chats.jsonl"}}`. No quoting is needed here.
        config_dir: a further folder with config groups, searched first.
        check: also raise if options clash (`RunConfig.problems`).
        parts: the sections that count. Problems of the others are not reported.

    Raises:
        ConfigError: with all problems.
    """
    with hydra_session(config_dir) as loader:
        checked = check_overrides(loader, parse(overrides, loader), values or {}, registry())
        try:
            cfg = cast(RunConfig, OmegaConf.to_object(checked.node))
        except InterpolationKeyError as error:
            raise ConfigError([*checked.problems, f"{error.full_key}: {library_message(error)}"]) from None
        except OmegaConfBaseException as error:
            raise ConfigError(checked.problems or library_message(error)) from None
    if checked.problems and cfg.resume not in (None, "", "auto") and type(cfg.algo) is AlgoConfig:
        raise ConfigError(checked.problems)  # model and data are those of the run
    if checked.problems:
        raise ConfigError(checked.problems + cfg.problems(checked.valid & set(parts), data_format_names()))
    if check and (problems := cfg.problems(data_formats=data_format_names())):
        raise ConfigError(problems)
    return cfg


def sweep_combinations(overrides: Sequence[str], config_dir: str | None = None) -> list[RunConfig]:
    """The configs of a sweep, as far as they are known beforehand: see `overrides.combinations`.

    Raises:
        ConfigError: with the problems of all of them.
    """
    with hydra_session(config_dir) as loader:
        listed = list(combinations(parse(overrides, loader)))
    configs, problems = [], []
    for items in listed:
        texts = [str(item.input_line) for item in items]
        try:
            configs.append(compose(*texts, config_dir=config_dir))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return configs


def origins(*overrides: str, config_dir: str | None = None) -> dict[str, str]:
    """Option -> source of its value: the path of a YAML file, or `command line`. Options at their default are left out."""
    sources: dict[str, str] = {}
    with hydra_session(config_dir) as loader:
        parsed = parse(overrides, loader)
        defaults = loader.compute_defaults_list(CONFIG_NAME, choices(loader, parsed), RunMode.RUN).defaults
        for default in defaults:
            if default.config_path is None or default.config_path.startswith("hydra/"):
                continue
            loaded = loader.repository.load_config(default.config_path)
            if loaded is None or is_dataclass(OmegaConf.get_type(loaded.config)):
                continue
            package = default.package or ""
            folder = {"main": "conf", "command-line": config_dir}.get(loaded.provider, loaded.provider)
            for key in option_keys(loaded.config):
                sources[f"{package}.{key}" if package else key] = f"{folder}/{default.config_path}.yaml"
        for item in parsed:
            if not loader.repository.group_exists(item.key_or_group):
                text = item.input_line
                sources[item.key_or_group] = text.file if isinstance(text, FromFile) else "command line"
                sources.setdefault(item.key_or_group.rpartition(".")[0], "command line")  # of data.columns
    return sources
