"""A cache of what Hydra composes from presets: the same choices of the same files give the same config, ten times as fast."""

import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from hydra import compose as hydra_compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig

from hub.config.option import conf_dir
from hub.plugins.registry import Registry

MAX_CONFIGS = 64
"""Most configs in the cache. The oldest ones leave it first. Each takes about 0.1 MB."""

HYDRA_ITSELF = {"pkg://hydra.conf", "structured://"}
"""Where Hydra searches for its own configs and for the registered dataclasses."""

_cached: dict[object, DictConfig] = {}


def compose_presets(loader: ConfigLoaderImpl, config_name: str, choices: Sequence[str], plugins: Registry) -> DictConfig:
    """Compose presets, without any other override, or take the config from the cache.

    Args:
        loader: Hydra's config loader in the session around this call. Sessions take turns, so the cache needs no lock.
        config_name: the file to begin with.
        choices: of presets, in Hydra's notation.
        plugins: the installed plugins, whose folders of presets and algorithms Hydra has been given.

    Returns:
        A copy of the config, which the caller may change.

    Raises:
        HydraException, OmegaConfBaseException, YAMLError: a preset can't be composed. Nothing is cached then.
    """
    folders = {str(conf_dir()), *(str(folder) for _, folder in plugins.config_dirs)}
    searched = tuple(item.path.removeprefix("file://") for item in loader.get_search_path().get_path())
    if not {*searched} <= folders | HYDRA_ITSELF:  # a folder of --config-dir may be large, so its files are not listed
        return hydra_compose(config_name, overrides=list(choices))
    files = tuple(state for folder in searched if folder in folders for state in _states_of_files(folder))
    key = (config_name, tuple(choices), searched, files, _schemas(plugins.algorithms))
    if key not in _cached:
        _cached[key] = hydra_compose(config_name, overrides=list(choices))
        while len(_cached) > MAX_CONFIGS:
            del _cached[next(iter(_cached))]
    return deepcopy(_cached[key])


def _schemas(algorithms: Mapping[str, Any]) -> tuple[tuple[str, type], ...]:
    """The name and options class of each algorithm: a plugin may be registered, or replaced, at any time."""
    return tuple((name, algorithm.config) for name, algorithm in algorithms.items())


def _states_of_files(folder: str) -> Iterator[tuple[str, int, int, int]]:
    """(path, inode, size in bytes, time of the last change in ns) of each file in a folder, at any depth."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _states_of_files(entry.path)
            else:
                state = entry.stat()
                yield entry.path, state.st_ino, state.st_size, state.st_mtime_ns
