"""Checks of a plugin while it is loaded, with one line for its author. Nothing here imports torch."""

import inspect
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pluggy

from hub.config.data import FORMATS
from hub.config.evaluate import METRICS
from hub.config.export import EXPORTERS
from hub.config.option import AUTO
from hub.config.schema import AlgoConfig, DataConfig, LaunchConfig, ModelConfig, RunConfig, TrackConfig
from hub.errors import PluginError, did_you_mean, one_line
from hub.plugins import hookspecs
from hub.plugins.known import belongs_to
from hub.plugins.offers import Algorithm, Backend, DataFormat, Exporter, Metric

HOOKS: dict[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(spec).parameters)
    for name, spec in vars(hookspecs).items()
    if name.startswith("hub_") and inspect.isfunction(spec)
}
"""Name of each hook -> the names of its arguments."""

_CONFIGS: tuple[type[Any], ...] = (DataConfig, ModelConfig, LaunchConfig, TrackConfig, RunConfig)
RESERVED = {item.name for part in _CONFIGS for item in fields(part)} | {"name", "nproc"}
"""Names that an option of an algorithm can't have: `hub.run(...)` takes all options as keywords, by their last name."""


def explained(error: BaseException) -> str:
    """What a plugin raised, in one line. An unknown field of what it offers: with the fields that there are."""
    found = re.fullmatch(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    offers: dict[str, type[Any]] = {item.__name__: item for item in (Algorithm, Backend, DataFormat, Metric, Exporter)}
    if not isinstance(error, TypeError) or found is None or found[1] not in offers:
        return one_line(error)
    kind, name = found.groups()
    names = [item.name for item in fields(offers[kind])]
    text = f"hub.{kind} has no field {name}. Allowed: {', '.join(names)}.{did_you_mean(name, names)}"
    if kind == "Backend":
        text += ' Write build="package.module:function" for a function of the setup that returns a hub.recipe.Recipe'
    return text


def check_hooks(manager: pluggy.PluginManager, module: Any) -> None:
    """Refuse hooks that would never be called.

    Raises:
        PluginError: a misspelled hook, a hook without @hookimpl, an unknown argument, or no hook at all.
    """
    num_hooks = 0
    for attribute in dir(module):
        member = getattr(module, attribute, None)
        options = manager.parse_hookimpl_opts(module, attribute)
        if options is None:
            if attribute in HOOKS and inspect.isroutine(member):
                raise PluginError(f"{attribute}() is not decorated. Write @hookimpl above it (from hub import hookimpl)")
            continue
        name = options.get("specname") or attribute
        if name not in HOOKS:
            raise PluginError(f"there is no hook {name}. Allowed: {', '.join(HOOKS)}.{did_you_mean(name, HOOKS)}")
        for argument in inspect.signature(member).parameters:  # type: ignore[arg-type]
            if argument not in HOOKS[name]:
                allowed = ", ".join(HOOKS[name]) or "none"
                raise PluginError(f"{name}() has no argument {argument}. Allowed: {allowed}, and any may be left out")
        num_hooks += 1
    if not num_hooks:
        raise PluginError(f"it has no hook, so it adds nothing. Allowed: {', '.join(HOOKS)}")


def check_list(hook: str, answer: Any, kind: type) -> list[Any]:
    """The return value of a hook as a list of `kind`.

    Raises:
        PluginError: it is anything else.
    """
    items = list(answer) if isinstance(answer, Iterable) and not isinstance(answer, str | bytes | Mapping) else None
    if items is None or not all(isinstance(item, kind) for item in items):
        raise PluginError(f"{hook}() must return a list of hub.{kind.__name__}, but returned {answer!r:.80}")
    return items


def check_algorithm(
    algorithm: Algorithm, others: Collection[Algorithm], owners: Mapping[str, str], presets: Mapping[str, str]
) -> None:
    """Refuse an algorithm that clashes with another one, or whose options can't be composed.

    Args:
        algorithm: the new algorithm.
        others: the algorithms so far, those of the same plugin included.
        owners: algorithm name -> plugin.
        presets: `group/name` -> plugin with this preset.

    Raises:
        PluginError: what is wrong.
    """
    name, config = algorithm.name, algorithm.config
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise PluginError(f"algorithm name {name!r} is not allowed. Allowed: lower case letters, digits and underscores")
    for other in others:
        if other.name == name:
            place = f"plugin {owners[name]} has" if name in owners else "it has"
            raise PluginError(f"{place} an algorithm of the name {name} too; uninstall one or rename it")
        if other.config is config:
            raise PluginError(
                f"{name} and {other.name} share the options class {config.__name__}, which tells them apart. "
                f"Write class {config.__name__}Too({config.__name__}) for one of them"
            )
    if owner := presets.get(f"algo/{name}"):
        raise PluginError(f"{owner} has a preset algo={name}, so an algorithm can't have this name")
    if not inspect.isclass(config) or not issubclass(config, AlgoConfig) or config is AlgoConfig:
        raise PluginError(f"the options of {name} must be a class of their own that inherits hub.AlgoConfig")
    if "__dataclass_fields__" not in vars(config):
        raise PluginError(f"the options class {config.__name__} is not decorated. Write @dataclass(kw_only=True) above it")
    common = {item.name for item in fields(AlgoConfig)}
    for item in fields(config):
        if item.name not in common and item.name in RESERVED:
            raise PluginError(f"the option {config.__name__}.{item.name} has a name that the hub uses elsewhere; rename it")
    _check_composes(config)


def _check_composes(config: type[AlgoConfig]) -> None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config()
        OmegaConf.structured(config)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise PluginError(
            f"the options class {config.__name__} can't be composed: {one_line(error)}. Every option needs a "
            "default, and a type: int, float, bool, str, None or a union of these, list[...], dict[str, ...], Any"
        ) from None


def check_owner(algorithm: str, distribution: str, is_named: bool, variable: str) -> None:
    """Refuse a plugin that takes the name of a well-known algorithm, unless the user has named its distribution.

    Args:
        algorithm: its name.
        distribution: the one that offers it. Empty: it is not known.
        is_named: whether the user has named it.
        variable: the environment variable that names it.

    Raises:
        PluginError: the name belongs to another one.
    """
    owner = belongs_to(algorithm, distribution)
    if owner and distribution and not is_named:
        raise PluginError(
            f"the algorithm {algorithm} belongs to {owner}, and {distribution} would take its place. Uninstall it, or, if you "
            f"want that, name its distribution: {variable}={distribution}"
        )


def check_backend(backend: Backend, others: Collection[Backend]) -> None:
    """Refuse a backend that clashes with another one, or that could not be imported later.

    Raises:
        PluginError: what is wrong.
    """
    name = f"backend {backend.name!r} of {backend.algorithm}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", backend.name) or backend.name == AUTO:
        raise PluginError(f"{name}: this name is not allowed. Allowed: lower case letters, digits, underscores; not {AUTO}")
    if any(other.name == backend.name and other.algorithm == backend.algorithm for other in others):
        raise PluginError(f"{name}: there is a backend of this name already; uninstall one of the two, or rename it")
    if not isinstance(backend.build, str) or not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", backend.build):
        raise PluginError(f"{name}: build={backend.build!r} is not allowed. Write it as 'package.module:function'")
    if not isinstance(backend.needs, tuple) or not all(isinstance(word, str) and word.isidentifier() for word in backend.needs):
        raise PluginError(f"{name}: needs={backend.needs!r} is not allowed. Write top-level modules as a tuple: ('peft',)")


def check_metric(item: Metric, others: Collection[Metric]) -> None:
    """Refuse a metric that clashes with another one, or whose function could not be imported later.

    Raises:
        PluginError: what is wrong.
    """
    _check_name("metric", item.name, {*METRICS, *(other.name for other in others)})
    named = isinstance(item.function, str) and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", item.function)
    if not named and not callable(item.function):
        raise PluginError(
            f"metric {item.name}: function={item.function!r:.60} is not allowed. Write it as 'package.module:function'"
        )
    if item.better not in ("higher", "lower"):
        raise PluginError(f"metric {item.name}: better={item.better!r} is not allowed. Allowed: higher, lower")


def check_exporter(item: Exporter, others: Collection[Exporter]) -> None:
    """Refuse an exporter that clashes with another one, or whose function could not be imported later.

    Raises:
        PluginError: what is wrong.
    """
    _check_name("exporter", item.name, {*EXPORTERS, *(other.name for other in others)})
    functions = {"function": item.function} | ({} if item.ready is None else {"ready": item.ready})
    for name, value in functions.items():
        if not callable(value) and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", str(value)):
            raise PluginError(
                f"exporter {item.name}: {name}={value!r:.60} is not allowed. Write it as 'package.module:function'"
            )


def check_data_format(item: DataFormat, others: Collection[DataFormat]) -> None:
    """Refuse a data format that clashes with another one.

    Raises:
        PluginError: what is wrong.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", item.name) or item.name == AUTO:
        raise PluginError(
            f"data format {item.name!r}: this name is not allowed. Allowed: lower case letters, digits, underscores"
        )
    if item.name in FORMATS or any(other.name == item.name for other in others):
        raise PluginError(f"data format {item.name}: there is one of this name already; rename it")
    if not item.fields or not isinstance(item.fields, tuple) or not all(isinstance(name, str) for name in item.fields):
        raise PluginError(
            f"data format {item.name}: fields={item.fields!r} is not allowed. Write names as a tuple: ('question',)"
        )
    if not _are_roles(item.roles):
        raise PluginError(
            f"data format {item.name}: roles={item.roles!r} is not allowed. Write two or more different names as a tuple, of "
            "lower case letters, digits and underscores: ('chosen', 'rejected'). Leave roles out where a row is one sample"
        )
    if any(set(other.fields) == set(item.fields) for other in others):
        raise PluginError(f"data format {item.name}: another plugin has a format with these fields; uninstall one of the two")


def _are_roles(roles: object) -> bool:
    """Whether these can be the roles of a data format. None at all can: then a row is one sample."""
    if not isinstance(roles, tuple):
        return False
    names = [name for name in roles if isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", name)]
    return not roles or (len(names) == len(roles) == len(set(names)) and len(names) > 1)


def check_config_dir(
    answer: Any, algorithms: Iterable[str], presets: Mapping[str, str]
) -> tuple[Path | None, list[str], list[str]]:
    """Check a plugin's config folder.

    Args:
        answer: the return value of `hub_config_dir()`.
        algorithms: names of all algorithms, those of the plugin itself included.
        presets: `group/name` -> plugin with this preset.

    Returns:
        The folder, its presets as `group/name`, and a line for each preset that is shadowed by another one.

    Raises:
        PluginError: there is no such folder, or a preset has the name of an algorithm.
    """
    if answer is None:
        return None, [], []
    if not isinstance(answer, Path) or not answer.is_dir():
        raise PluginError(f"hub_config_dir() must return the Path of a folder, but returned {answer!r}")
    folder = answer.absolute()
    usable, shadowed = [], []
    for preset in preset_names(folder):
        group, _, name = preset.rpartition("/")
        if group == "algo" and name in algorithms:
            raise PluginError(f"{folder}/{preset}.yaml: a preset can't have the name of an algorithm; rename the file")
        if owner := presets.get(preset):
            shadowed.append(f"its {preset}.yaml is not used, for {owner} has a {group} preset of this name; rename the file")
        else:
            usable.append(preset)
    return folder, usable, shadowed


def preset_names(folder: Path) -> list[str]:
    """The presets in a config folder, each as `group/name`."""
    return sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.glob("*/**/*.yaml"))


def _check_name(kind: str, name: str, taken: Collection[str]) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise PluginError(f"{kind} {name!r}: this name is not allowed. Allowed: lower case letters, digits, underscores")
    if name in taken:
        raise PluginError(f"{kind} {name}: there is one of this name already; rename it")
