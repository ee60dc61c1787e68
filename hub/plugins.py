"""Find, load, check and list plugins: installed distributions with an entry point in the group `hub`.

The loader is the hub's own: one plugin that fails to import is a warning and not the end of `--help`, and two plugins that
claim the same name are named instead of one being dropped. `HUB_PLUGINS=a,b` loads those entry points only.
"""

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from hub import hookspecs
from hub.algorithm import Algorithm, Backend
from hub.config import AUTO, AlgoConfig
from hub.errors import PluginError, did_you_mean

GROUP = "hub"
ONLY = "HUB_PLUGINS"


@dataclass
class Plugin:
    """One entry point, loaded or broken."""

    name: str
    distribution: str
    version: str
    module: str
    hooks: list[str] = field(default_factory=list)
    error: str | None = None


@dataclass
class Registry:
    """All that the installed plugins offer."""

    manager: pluggy.PluginManager
    plugins: list[Plugin] = field(default_factory=list)
    algorithms: dict[str, Algorithm] = field(default_factory=dict)
    backends: dict[str, dict[str, Backend]] = field(default_factory=dict)
    """Algorithm name -> backend name -> backend."""
    owners: dict[str, str] = field(default_factory=dict)
    """Algorithm name -> name of the plugin that offers it."""
    config_dirs: list[tuple[str, Path]] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """One line for each plugin that can't be used."""
        return [f"plugin {p.name} ({p.distribution} {p.version}) is left out: {p.error}" for p in self.plugins if p.error]

    def algorithm(self, name: str) -> Algorithm:
        """The algorithm of that name.

        Raises:
            PluginError: there is none; the line says what there is and which broken plugin may be the cause.
        """
        if name in self.algorithms:
            return self.algorithms[name]
        raise PluginError(self.no_algorithm(name))

    def no_algorithm(self, name: str) -> str:
        """The line for an algorithm that does not exist here."""
        known = ", ".join(sorted(self.algorithms)) or "none: install one, e.g. pip install hub-lora-sft"
        broken = "".join(f" {line[0].upper()}{line[1:]}." for line in self.warnings)
        return f"algo={name}: there is no such algorithm. Installed: {known}.{did_you_mean(name, self.algorithms)}{broken}"

    def algorithm_of(self, config: AlgoConfig) -> Algorithm:
        """The algorithm whose options these are."""
        for algorithm in self.algorithms.values():
            if type(config) is algorithm.config:
                return algorithm
        known = " | ".join(sorted(self.algorithms)) or "none is installed; type pip install hub-lora-sft"
        raise PluginError(f"No algorithm is chosen. Type algo=NAME, one of: {known}")

    def backend(self, config: AlgoConfig, check_needs: bool = True) -> tuple[Backend, str]:
        """The backend that will run these options, and why this one.

        Args:
            config: options of an algorithm.
            check_needs: False when the workers use another interpreter, whose packages can't be looked up from here.

        Raises:
            PluginError: none of that name, or none that can run here; the line says what to type.
        """
        algorithm = self.algorithm_of(config)
        offered = self.backends.get(algorithm.name, {})
        if config.backend != AUTO:
            if config.backend not in offered:
                names = ", ".join([AUTO, *sorted(offered)])
                raise PluginError(
                    f"algo.backend={config.backend}: {algorithm.name} has no such backend. Allowed: {names}."
                    + did_you_mean(config.backend, [AUTO, *offered])
                )
            chosen = offered[config.backend]
            if check_needs and (obstacle := chosen.obstacle()):
                raise PluginError(f"algo.backend={chosen.name} can't run here: {obstacle}")
            return chosen, "asked for"
        obstacles = []
        for backend in sorted(offered.values(), key=lambda b: (-b.priority, b.name)):
            obstacle = backend.obstacle() if check_needs else None
            if obstacle is None:
                why = "; ".join(obstacles) or ("the only one" if len(offered) == 1 else "highest priority")
                return backend, why
            obstacles.append(f"{backend.name}: {obstacle}")
        raise PluginError(f"{algorithm.name} has no backend that can run here. {'; '.join(obstacles) or 'None is installed.'}")


@cache
def registry() -> Registry:
    """The plugins of this interpreter, loaded once."""
    only = os.environ.get(ONLY)
    names = None if only is None else {name.strip() for name in only.split(",") if name.strip()}
    found = load(entry_points(group=GROUP), names)
    for line in found.warnings:
        print(f"hub: {line}", file=sys.stderr)
    return found


def load(points: Iterable[EntryPoint], only: set[str] | None = None) -> Registry:
    """Load entry points into a new registry. Nothing that a plugin does wrong leaves this function as an exception."""
    manager = pluggy.PluginManager("hub")
    manager.add_hookspecs(hookspecs)
    found = Registry(manager)
    seen: dict[str, EntryPoint] = {}
    for point in sorted(points, key=lambda p: (p.name, p.value)):
        if only is not None and point.name not in only:
            continue
        distribution = point.dist.name if point.dist else "?"
        if (earlier := seen.get(point.name)) and earlier.value == point.value:
            continue
        plugin = Plugin(point.name, distribution, point.dist.version if point.dist else "?", point.value)
        found.plugins.append(plugin)
        if earlier:
            other = earlier.dist.name if earlier.dist else "?"
            plugin.error = f"{other} has an entry point of this name too; uninstall one of the two"
            continue
        seen[point.name] = point
        try:
            register(found, plugin, point.load())
        except Exception as error:
            plugin.error = f"{type(error).__name__}: {error}"
    if only is not None:
        for name in sorted(only - {plugin.name for plugin in found.plugins}):
            found.plugins.append(Plugin(name, "?", "?", "?", error=f"{ONLY} names it but it is not installed"))
    return found


def register(found: Registry, plugin: Plugin, module: Any) -> None:
    """Add what one plugin object offers to a registry, or raise and leave the registry as it was.

    Raises:
        PluginError: a misspelt hook, or an algorithm, backend or options class that is taken.
    """
    manager = found.manager
    manager.register(module, name=plugin.name)
    try:
        manager.check_pending()
        plugin.hooks = sorted(caller.name for caller in manager.get_hookcallers(module) or [])
        algorithms: list[Algorithm] = list(_ask(found, module, "hub_algorithms"))
        backends: list[Backend] = list(_ask(found, module, "hub_backends"))
        for algorithm in algorithms:
            _check_algorithm(found, algorithm, algorithms)
        for backend in backends:
            if backend.name in found.backends.get(backend.algorithm, {}):
                raise PluginError(f"another plugin has the backend {backend.name} of {backend.algorithm}")
        directory = _ask(found, module, "hub_config_dir", None)
        if directory is not None and not Path(directory).is_dir():
            raise PluginError(f"hub_config_dir() names {directory}, which is no folder")
    except Exception:
        manager.unregister(module)
        plugin.hooks = []
        raise
    for algorithm in algorithms:
        found.algorithms[algorithm.name] = algorithm
        found.owners[algorithm.name] = plugin.name
    for backend in backends:
        found.backends.setdefault(backend.algorithm, {})[backend.name] = backend
    if directory is not None:
        found.config_dirs.append((plugin.name, Path(directory)))


def _ask(found: Registry, module: Any, hook: str, default: Any = ()) -> Any:
    """What this one plugin answers to a hook."""
    others = [other for other in found.manager.get_plugins() if other is not module]
    answers = found.manager.subset_hook_caller(hook, others)()
    return answers[0] if answers else default


def _check_algorithm(found: Registry, algorithm: Algorithm, siblings: list[Algorithm]) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", algorithm.name):
        raise PluginError(f"algorithm name {algorithm.name!r} must be lower case letters, digits and underscores")
    if algorithm.name in found.algorithms:
        raise PluginError(f"plugin {found.owners[algorithm.name]} has an algorithm of the name {algorithm.name} too")
    if not issubclass(algorithm.config, AlgoConfig) or algorithm.config is AlgoConfig:
        raise PluginError(f"the options of {algorithm.name} must be a class of their own that inherits hub.AlgoConfig")
    others = [a for a in [*found.algorithms.values(), *siblings] if a is not algorithm]
    if any(other.config is algorithm.config for other in others):
        raise PluginError(f"the options class of {algorithm.name} belongs to another algorithm too; inherit from it instead")
