"""Finds, loads and lists plugins: installed distributions with an entry point in the group `hub`.

The hub has a loader of its own: a plugin that fails to import is a warning and does not break `--help`, and if two plugins
claim the same name, both are reported. `HUB_PLUGINS=a,b` loads only these entry points.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from pathlib import Path
from typing import Any

import pluggy

from hub.config.data import FORMATS
from hub.config.option import AUTO, conf_dir
from hub.config.schema import AlgoConfig, RunConfig
from hub.errors import HubError, Interrupted, PluginError, did_you_mean, one_line
from hub.plugins import hookspecs
from hub.plugins.checks import (
    check_algorithm,
    check_backend,
    check_config_dir,
    check_data_format,
    check_exporter,
    check_hooks,
    check_list,
    check_metric,
    check_owner,
    explained,
    preset_names,
)
from hub.plugins.known import FIRST_PLUGIN, belongs_to, missing_algorithm, missing_backend, normalized
from hub.plugins.offers import Algorithm, Backend, DataFormat, Exporter, Metric
from hub.run import ASKED_FOR
from hub.system.environment import already_shown, without_repeats

GROUP = "hub"
ONLY = "HUB_PLUGINS"
HERE = "this process"
"""The owner of an algorithm that `hub.register` has made known."""

HEAVY = {"torch", "transformers", "datasets", "numpy", "peft", "trl", "accelerate"}


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """A config, and what runs it. `hub.launch.preflight.prepare` makes one of a config that is checked."""

    config: RunConfig
    algorithm: Algorithm
    backend: Backend
    backend_because: str
    """Why it is this backend, for plan.json."""


@dataclass
class Plugin:
    """One entry point, loaded or broken."""

    name: str
    source: str
    """Distribution and version."""

    module: str
    distribution: str = ""
    """Its normalized name. Empty: it is not known."""

    is_named: bool = False
    """Whether the user has named the distribution, which then may take the name of a well-known algorithm."""

    hooks: list[str] = field(default_factory=list)
    error: str | None = None
    """Why it could not be loaded. None if it is loaded."""

    warnings: list[str] = field(default_factory=list)
    """Problems of parts of it."""

    heavy: list[str] = field(default_factory=list)
    """Slow libraries that were imported while it was loaded."""


@dataclass
class Registry:
    """What the installed plugins offer."""

    manager: pluggy.PluginManager
    plugins: list[Plugin] = field(default_factory=list)
    algorithms: dict[str, Algorithm] = field(default_factory=dict)
    backends: dict[str, dict[str, Backend]] = field(default_factory=dict)
    """Algorithm name -> backend name -> backend."""
    owners: dict[str, str] = field(default_factory=dict)
    """Algorithm name -> name of the plugin that offers it."""
    data_formats: dict[str, DataFormat] = field(default_factory=dict)
    """Name -> data format."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    """Name -> metric of generated answers."""

    exporters: dict[str, Exporter] = field(default_factory=dict)
    """Name -> exporter."""

    config_dirs: list[tuple[str, Path]] = field(default_factory=list)
    presets: dict[str, str] = field(default_factory=dict)
    """`group/name` of each YAML preset -> the plugin that has it, or `the hub`."""

    only: set[str] | None = None
    """The plugins that HUB_PLUGINS names, by their entry points or distributions. None if it is not set."""

    _switched_off: set[tuple[str, str]] = field(default_factory=set)

    @property
    def warnings(self) -> list[str]:
        """One line for each plugin, or part of a plugin, that can't be used."""
        lines = [f"plugin {p.name} ({p.source}) is left out: {p.error}" for p in self.plugins if p.error]
        lines += [f"plugin {p.name} ({p.source}): {line}" for p in self.plugins for line in p.warnings]
        known = {p.name for p in self.plugins} | {p.distribution for p in self.plugins}
        for name in sorted(name for name in self.only or () if not {name, normalized(name)} & known):
            near = did_you_mean(name, [point.name for point in entry_points(group=GROUP)])
            lines.append(f"{ONLY} names {name}, but no plugin of this name is installed.{near}")
        return lines

    def algorithm(self, name: str) -> Algorithm:
        """The algorithm of this name.

        Raises:
            PluginError: there is none. The line lists what is installed, and plugins that could not be loaded.
        """
        if name in self.algorithms:
            return self.algorithms[name]
        raise PluginError(self.no_algorithm(name))

    def no_algorithm(self, name: str) -> str:
        """The error line for an algorithm that is not installed."""
        if missing := self.not_installed(name):
            return missing
        known = ", ".join(sorted(self.algorithms)) or f"none: install one, e.g. pip install {FIRST_PLUGIN}"
        near = did_you_mean(name, self.algorithms)
        return f"algo={name}: there is no such algorithm. Installed: {known}.{near}{self.left_out()}"

    def not_installed(self, name: str) -> str | None:
        """The error line for a well-known algorithm whose plugin is not installed. None for any other."""
        return None if name in self.algorithms else missing_algorithm(name)

    def left_out(self) -> str:
        """Sentences on plugins that are installed but not loaded, each after a space. Empty if there are none."""
        sentences = [f" {line[0].upper()}{line[1:]}{'' if line.endswith(('.', '?')) else '.'}" for line in self.warnings]
        if self.only is not None:
            sentences.append(f" {ONLY}={','.join(sorted(self.only))} loads these plugins only.")
        return "".join(sentences)

    def algorithm_of(self, config: AlgoConfig) -> Algorithm:
        """The algorithm that a config belongs to."""
        for algorithm in self.algorithms.values():
            if type(config) is algorithm.config:
                return algorithm
        known = " | ".join(sorted(self.algorithms)) or f"none is installed; type pip install {FIRST_PLUGIN}"
        raise PluginError(f"No algorithm is chosen. Type algo=NAME, one of: {known}")

    def backend(self, config: AlgoConfig, check_needs: bool = True) -> tuple[Backend, str]:
        """Choose the backend for the options of an algorithm. Returns it with the reason.

        Args:
            config: the options of an algorithm.
            check_needs: False if the workers use another interpreter, whose packages can't be looked up from here.

        Raises:
            PluginError: there is no backend of this name, or none that can run here. The line says what to type.
        """
        algorithm = self.algorithm_of(config)
        offered = self.backends.get(algorithm.name, {})
        if config.backend != AUTO:
            if config.backend not in offered:
                if missing := missing_backend(algorithm.name, config.backend):
                    raise PluginError(missing)
                names = ", ".join([AUTO, *sorted(offered)])
                raise PluginError(
                    f"algo.backend={config.backend}: {algorithm.name} has no such backend. Allowed: {names}."
                    + did_you_mean(config.backend, [AUTO, *offered])
                    + self.left_out()
                )
            chosen = offered[config.backend]
            if check_needs and (obstacle := chosen.obstacle()):
                raise PluginError(f"algo.backend={chosen.name} can't run here: {obstacle}")
            return chosen, ASKED_FOR
        obstacles: list[str] = []
        for backend in sorted(offered.values(), key=lambda b: (-b.priority, b.name)):
            obstacle = backend.obstacle() if check_needs else None
            if obstacle is None:
                why = "; ".join(obstacles) or ("the only one" if len(offered) == 1 else "highest priority")
                return backend, why
            obstacles.append(f"{backend.name}: {obstacle}")
        raise PluginError(f"{algorithm.name} has no backend that can run here. {'; '.join(obstacles) or 'None is installed.'}")

    def observe(self, hook: str, **values: Any) -> None:
        """Call a hook of every plugin that implements it. After an error it is not called again, and training continues.

        Args:
            hook: `hub_run_start`, `hub_log`, `hub_checkpoint` or `hub_run_end`.
            values: the hook's arguments.

        Raises:
            HubError: a plugin ends the run on purpose. Not raised from `hub_run_end`, where the run has ended already.
        """
        caller = getattr(self.manager.hook, hook)
        for plugin in [implementation.plugin for implementation in caller.get_hookimpls()]:
            name = self.manager.get_name(plugin) or "?"
            if (name, hook) in self._switched_off:
                continue
            try:
                self._ask(plugin, hook, **values)
            except Exception as error:
                if isinstance(error, HubError) and hook != "hub_run_end":
                    raise
                self._switched_off.add((name, hook))
                place = traceback.extract_tb(error.__traceback__)[-1]
                print(
                    f"hub: plugin {name} failed in {hook}, which is not called again: {one_line(error)} "
                    f"({place.filename}, line {place.lineno})",
                    file=sys.stderr,
                    flush=True,
                )

    def _ask(self, plugin: Any, hook: str, **values: Any) -> Any:
        """The return value of one plugin's hook. None if the plugin does not implement it."""
        others = [other for other in self.manager.get_plugins() if other is not plugin]
        answers = self.manager.subset_hook_caller(hook, others)(**values)
        return answers[0] if answers else None


@cache
def registry() -> Registry:
    """The plugins of this interpreter, loaded once per process."""
    only = os.environ.get(ONLY)
    names = None if only is None else {name.strip() for name in only.split(",") if name.strip()}
    loaded = load(entry_points(group=GROUP), names)
    if os.environ.get("RANK", "0") == "0":
        for line in loaded.warnings:
            if line not in already_shown():
                print(f"hub: {line}", file=sys.stderr)
    return loaded


def register_here(algorithm: Algorithm, build: Callable[[Any], Any]) -> None:
    """Add an algorithm that is defined in this process, or replace one that was.

    Args:
        algorithm: its name, options and summary.
        build: the function of the setup that returns its recipe.

    Raises:
        PluginError: its name is taken, its options can't be composed, or `build` is not a function of the setup.
    """
    into, name = registry(), algorithm.name
    if not callable(build):
        raise PluginError(
            f"algorithm {name}: build={build!r:.60} is not a function. Write def build(setup), and register(..., build)"
        )
    try:
        signature(build).bind(None)
    except TypeError:
        raise PluginError(f"algorithm {name}: build takes other arguments than the setup. Write def build(setup)") from None
    except ValueError:
        pass  # a function of an extension module, which has no signature
    others = [other for other in into.algorithms.values() if other.name != name or into.owners[name] != HERE]
    check_algorithm(algorithm, others, into.owners, into.presets)
    into.algorithms[name], into.owners[name] = algorithm, HERE
    into.backends[name] = {"native": Backend(name="native", algorithm=name, build=build)}


def resolve(cfg: RunConfig, check_needs: bool = True) -> ResolvedRun:
    """Find the algorithm and the backend that run a config.

    Args:
        cfg: the config; its values are not checked here.
        check_needs: False when the workers use another interpreter, whose packages can't be looked up from here.

    Raises:
        PluginError: no algorithm is chosen, or no backend can run it; the line says what to type.
    """
    backend, because = registry().backend(cfg.algo, check_needs)
    algorithm = registry().algorithm_of(cfg.algo)
    return ResolvedRun(config=cfg, algorithm=algorithm, backend=backend, backend_because=because)


def data_formats() -> Mapping[str, DataFormat]:
    """The data formats of plugins, by name."""
    return registry().data_formats


def data_format_names() -> tuple[str, ...]:
    """The values that `data.format` knows, those of plugins included."""
    return (*FORMATS, *data_formats())


def warnings_shown() -> dict[str, str]:
    """Environment variables for a child process, so that it does not repeat this process's warnings about plugins."""
    return without_repeats(registry().warnings)


def load(points: Iterable[EntryPoint], only: set[str] | None = None) -> Registry:
    """Load entry points into a new registry. Errors of plugins are recorded in it, not raised.

    Args:
        points: entry points of the group `hub`.
        only: names of the entry points to load. None for all.
    """
    manager = pluggy.PluginManager("hub")
    manager.add_hookspecs(hookspecs)
    loaded = Registry(manager, only=only, presets=dict.fromkeys(preset_names(conf_dir()), "the hub"))
    seen: dict[str, EntryPoint] = {}
    # Where several have the name of a well-known algorithm, the one that it belongs to comes first.
    for point in sorted(points, key=lambda p: (p.name, belongs_to(p.name, _distribution(p)) or "", p.value)):
        by_distribution = only is not None and normalized(_distribution(point)) in {normalized(name) for name in only}
        if only is not None and point.name not in only and not by_distribution:
            continue
        earlier = seen.get(point.name)
        if earlier and earlier.value == point.value and _distribution(earlier) == _distribution(point):
            continue  # the same distribution is on the path twice
        plugin = Plugin(point.name, _source(point), point.value, normalized(_distribution(point)), by_distribution)
        loaded.plugins.append(plugin)
        if earlier:
            plugin.error = f"{_distribution(earlier)} has a plugin of this name too; uninstall one of the two"
            continue
        seen[point.name] = point
        before = set(sys.modules)
        try:
            register(loaded, plugin, point.load())
        except Interrupted:
            raise
        except (Exception, SystemExit) as error:
            plugin.error = explained(error)
        plugin.heavy = sorted((set(sys.modules) - before) & HEAVY)
    return loaded


def register(into: Registry, plugin: Plugin, module: Any) -> None:
    """Add what a plugin offers to a registry. If it raises, the registry is unchanged.

    Raises:
        PluginError: a misspelled hook, or an algorithm, backend, preset or options class whose name is taken.
    """
    manager = into.manager
    check_hooks(manager, module)
    try:
        manager.register(module, name=plugin.name)
        algorithms = check_list("hub_algorithms", into._ask(module, "hub_algorithms") or (), Algorithm)
        backends = check_list("hub_backends", into._ask(module, "hub_backends") or (), Backend)
        formats = check_list("hub_data_formats", into._ask(module, "hub_data_formats") or (), DataFormat)
        for number, item in enumerate(formats):
            check_data_format(item, [*into.data_formats.values(), *formats[:number]])
        metrics = check_list("hub_metrics", into._ask(module, "hub_metrics") or (), Metric)
        for number, metric in enumerate(metrics):
            check_metric(metric, [*into.metrics.values(), *metrics[:number]])
        exporters = check_list("hub_exporters", into._ask(module, "hub_exporters") or (), Exporter)
        for number, exporter in enumerate(exporters):
            check_exporter(exporter, [*into.exporters.values(), *exporters[:number]])
        for number, algorithm in enumerate(algorithms):
            others = [*into.algorithms.values(), *algorithms[:number]]
            check_owner(algorithm.name, plugin.distribution, plugin.is_named, ONLY)
            check_algorithm(algorithm, others, into.owners, into.presets)
        for number, backend in enumerate(backends):
            check_backend(backend, [*into.backends.get(backend.algorithm, {}).values(), *backends[:number]])
        names = [*into.algorithms, *(algorithm.name for algorithm in algorithms)]
        directory, presets, shadowed = check_config_dir(into._ask(module, "hub_config_dir"), names, into.presets)
    except BaseException:
        if manager.is_registered(module):
            manager.unregister(module)
        raise
    plugin.hooks = sorted(caller.name for caller in manager.get_hookcallers(module) or [])
    plugin.warnings = shadowed
    for algorithm in algorithms:
        into.algorithms[algorithm.name] = algorithm
        into.owners[algorithm.name] = plugin.name
    into.data_formats |= {item.name: item for item in formats}
    into.metrics |= {metric.name: metric for metric in metrics}
    into.exporters |= {exporter.name: exporter for exporter in exporters}
    for backend in backends:
        into.backends.setdefault(backend.algorithm, {})[backend.name] = backend
    if directory is not None:
        into.config_dirs.append((plugin.name, directory))
        into.presets |= dict.fromkeys(presets, f"plugin {plugin.name}")


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "an unknown distribution"


def _source(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "of an unknown distribution"
