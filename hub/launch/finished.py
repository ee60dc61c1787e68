"""Verbs on finished models: from what was typed to what the verb's function is asked. Nothing here imports torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from importlib import import_module
from typing import Any, get_origin

from hub.compose.compose import compose
from hub.compose.config_file import file_overrides
from hub.compose.options import GROUPS
from hub.compose.own_options import own_options
from hub.config.bounds import BOUNDS, use_bounds
from hub.config.finished import FinishedVerb
from hub.config.option import field_problems
from hub.config.rules import format_problems
from hub.config.schema import PARTS, RunConfig
from hub.errors import ConfigError, did_you_mean
from hub.launch.preflight import check_paths, with_absolute_paths
from hub.models.finished import Asked, Finished, adapter_folder, finished_adapter, finished_model, finished_run, run_folder
from hub.plugins.registry import data_format_names
from hub.tasks.verbs import FINISHED

OF_THE_RUN = ("generate", "evaluate", "export")
"""Sections of a run that hold for questions about its model, beside `model` and `data`."""


def ask(
    verb: FinishedVerb,
    words: Sequence[str],
    config_dir: str | None = None,
    values: Mapping[str, Any] | None = None,
    own: Mapping[str, Any] | None = None,
) -> Any:
    """Run a verb on a finished model. Returns what its function returns.

    Args:
        verb: the verb.
        words: overrides as typed, with the options of the verb among them.
        config_dir: a further folder with config groups.
        values: nested values of the config that are set last, of a Python call.
        own: options of the verb by name, of a Python call.

    Raises:
        HubError: what is wrong, one line each.
    """
    asked = asked_for(verb, words, config_dir, values, own)
    module, _, function = verb.function.partition(":")
    return getattr(import_module(module), function)(asked)


def asked_for(
    verb: FinishedVerb,
    words: Sequence[str],
    config_dir: str | None = None,
    values: Mapping[str, Any] | None = None,
    own: Mapping[str, Any] | None = None,
) -> Asked:
    """Check what was typed, and find the model. Takes the arguments of `ask` and raises its errors. Fast."""
    options, rest = own_options(verb.options, list(_in_full(verb, words)), own)
    typed = {*(word.partition("=")[0].lstrip("+~") for word in rest), *_names(values or {})}
    _check_sections(verb, typed)
    output_dir = _output_dir(rest, values or {})
    if options.run is not None and (both := typed & {"model", "model.path"}):
        raise ConfigError(f"run={options.run} and {both.pop()} name two models. Leave one of them out")
    from_run: frozenset[str] = frozenset()
    if options.run is not None and not verb.reads_run:
        folder = run_folder(options.run, output_dir)
        of_file = [
            item
            for item in file_overrides(str(folder / "run.yaml"), rest, config_dir, measures=False)
            if item.partition("=")[0].split(".")[0] in ("algo", "model", "data", *OF_THE_RUN)
        ]
        from_run = frozenset(item.partition("=")[0] for item in of_file) - typed
        rest = [*of_file, *rest]
    cfg = compose(*rest, values=values, config_dir=config_dir, parts=())
    finished = _finished(verb, options.run, output_dir, cfg)
    cfg = _checked(verb, cfg, finished, from_run)
    return Asked(options=options, cfg=cfg, finished=finished, from_run=from_run, verbs=frozenset(FINISHED))


def _finished(verb: FinishedVerb, run: str | None, output_dir: str, cfg: RunConfig) -> Finished | None:
    if run is not None and not verb.reads_run:
        return finished_run(run, output_dir, cfg)
    if not cfg.model.path:
        if not verb.needs_model:
            return None
        raise ConfigError(
            f"hub {verb.name}: no model is named. Type run=latest or run=RUN_FOLDER for what a run has trained, model=NAME, or "
            "model.path=FOLDER_OR_HUB_ID"
        )
    if folder := adapter_folder(cfg.model.path):
        return finished_adapter(folder, cfg.model)
    return finished_model(cfg.model)


def _checked(verb: FinishedVerb, cfg: RunConfig, finished: Finished | None, from_run: frozenset[str]) -> RunConfig:
    """Check the sections that the verb reads, and make their paths absolute."""
    problems: list[str] = []
    use_bounds(cfg.launch)
    for part in (*verb.sections, "launch"):
        problems += field_problems(getattr(cfg, part), part)
    if "generate" in verb.sections:
        problems += cfg.generate.problems()
    if finished is not None:
        problems += finished.base.problems(cfg)
        cfg = replace(cfg, model=finished.base)
    if "data" in verb.sections and (cfg.data.path or cfg.data.mix or cfg.data.eval_path):
        problems += format_problems(cfg.data, data_format_names())
    if problems:
        raise ConfigError(problems)
    cfg = with_absolute_paths(cfg)
    if "data" in verb.sections and not {"data.path", "data.mix", "data.eval_path"} & from_run:
        check_paths(cfg)
    return cfg


def _check_sections(verb: FinishedVerb, typed: set[str]) -> None:
    """Refuse options that the verb does not read, in place of ignoring them."""
    allowed = {*verb.sections, "output_dir", "experiment"}
    for name in sorted(typed):
        part = name.split(".")[0]
        reads = part in allowed or (name in BOUNDS and "model" in allowed)
        if (part in PARTS and not reads) or name in ("resume", "resume_with_changes", "run_name", "task"):
            sections = ", ".join(f"{section}." for section in verb.sections)
            taken = f"options of {sections} and its own" if sections else "its own options"
            raise ConfigError(
                f"{name}: hub {verb.name} does not read it. It takes {taken}. Type python -m hub {verb.name} --help"
            )


def _in_full(verb: FinishedVerb, words: Sequence[str]) -> Iterator[str]:
    """Yield words with the section of options that may be typed without it. A list may be typed without brackets."""
    if verb.own_section is None:
        yield from words
        return
    section = {item.name: item.type for item in fields(RunConfig)}[verb.own_section]
    known = {item.name: get_origin(item.type) for item in fields(section)}  # type: ignore[arg-type]  # a dataclass
    for word in words:
        name, _, value = word.partition("=")
        short = name.removeprefix(f"{verb.own_section}.")
        if short not in known or "=" not in word:
            near = did_you_mean(name, known) if "." not in name else ""
            if near and name not in {item.name for item in (*fields(verb.options), *fields(RunConfig))} and name not in GROUPS:
                raise ConfigError(f"{name}: there is no such option.{near}")
            yield word
            continue
        if known[short] is list and value and value[0] != "[":
            value = f"[{value}]"
        yield f"{verb.own_section}.{short}={value}"


def _names(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the full names of nested options."""
    for part, value in values.items():
        yield from (f"{part}.{name}" for name in value) if isinstance(value, Mapping) else (part,)


def _output_dir(words: Sequence[str], values: Mapping[str, Any]) -> str:
    named = [word.partition("=")[2] for word in words if word.partition("=")[0] == "output_dir"]
    return str(values.get("output_dir", named[-1] if named else RunConfig().output_dir))
