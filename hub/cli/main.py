"""`python -m hub [verb] overrides`: parses the command line and calls the verb.

Each task of hub/config/task.py is a verb, and VERBS has some more. Slow libraries are imported within verbs, so that `--help`
and every error message take about a second.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from hub.config.task import TASKS
from hub.errors import ConfigError, HubError, did_you_mean
from hub.secrets import without_secrets
from hub.version import VERSION

DEFAULT_VERB = "train"


@dataclass(frozen=True)
class Flags:
    """The flags of the command line."""

    multirun: bool = False
    json: bool = False
    config_dir: str | None = None


@dataclass(frozen=True)
class Verb:
    """What a verb does, and its line in the help."""

    run: Callable[[list[str], Flags], int]
    summary: str


def run_task(task: str, overrides: list[str], flags: Flags) -> int:
    """Run a task of hub/config/task.py on the recipe that the overrides choose."""
    if task != DEFAULT_VERB:
        overrides = [*overrides, f"task={task}"]
    if "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ:
        from hub.cli.pages import print_result
        from hub.launch.torchrun import join_group

        return join_group(overrides, flags.config_dir, print_result)
    if flags.multirun:
        from hub.launch.sweep import sweep

        return sweep(overrides, flags.config_dir)
    from hub.cli.pages import print_result
    from hub.compose.compose import compose
    from hub.launch.launcher import launch

    cfg = compose(*overrides, config_dir=flags.config_dir)
    print_result(launch(cfg))
    return 0


def data(overrides: list[str], flags: Flags) -> int:
    """Inspect the data of a run: lengths, trained tokens, errors. With --json for scripts. Exit code 1 if there are errors."""
    import contextlib

    from hub.compose.compose import compose
    from hub.launch.preflight import prepare_data

    cfg = prepare_data(compose(*overrides, config_dir=flags.config_dir))
    from hub.data.doctor.examine import examine
    from hub.data.doctor.page import print_examined
    from hub.data.tokens.tokenizer import load_tokenizer
    from hub.models.load import load_config
    from hub.models.structure import max_positions
    from hub.models.weights import local_tokenizer
    from hub.parallel.session import quiet_libraries

    quiet_libraries()
    with contextlib.redirect_stdout(sys.stderr):
        path = local_tokenizer(cfg.model, print)
        tokenizer = load_tokenizer(cfg, path)
        positions = max_positions(load_config(cfg.model, path))
        report = examine(cfg, tokenizer, positions)
    print_examined(report, tokenizer, flags.json)
    return 1 if report.spoils else 0


def show(overrides: list[str], flags: Flags) -> int:
    """Print the composed config: each option, its value, its source, its meaning."""
    from hub.cli.pages import show_config

    show_config(overrides, flags.config_dir)
    return 0


def plugins(overrides: list[str], flags: Flags) -> int:
    """List the installed plugins, their distributions and hooks."""
    from hub.cli.pages import show_plugins

    if overrides:
        raise ConfigError(f"hub plugins takes no options, but got {' '.join(overrides)}")
    show_plugins()
    return 0


VERBS = {task.name: Verb(partial(run_task, task.name), task.summary) for task in TASKS.values()} | {
    "data": Verb(
        data,
        "Inspect the data of a run: lengths, trained tokens, errors. With --json for scripts. Exit code 1 if there are errors.",
    ),
    "show": Verb(show, "Print the composed config: each option, its value, its source, its meaning."),
    "plugins": Verb(plugins, "List the installed plugins, their distributions and hooks."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        The exit code: 0, 2 for a user error, 1 for a failure, 128 + N for signal N.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except HubError as error:
        for line in str(error).splitlines():
            print(f"hub: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("hub: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        print(without_secrets(traceback.format_exc()), file=sys.stderr)
        return 1


def _run(arguments: list[str]) -> int:
    from hub.cli.pages import overview, usage

    known, words = _parse(arguments)
    if known.version:
        print(VERSION)
        return 0
    if known.help:
        print(usage({name: verb.summary for name, verb in VERBS.items()}))
        return 0
    if not arguments:
        print(overview())
        return 0
    verb = DEFAULT_VERB
    if words and "=" not in words[0] and words[0][:1] not in "~+":
        verb = words.pop(0)
        if verb not in VERBS:
            raise ConfigError(
                f"{verb}: there is no such verb. Allowed: {', '.join(VERBS)}.{did_you_mean(verb, VERBS)} "
                "Options are written NAME=VALUE"
            )
    if known.multirun and verb != DEFAULT_VERB:
        raise ConfigError(f"--multirun works with {DEFAULT_VERB} only, not with {verb}")
    if known.json and verb != "data":
        raise ConfigError(f"--json works with data only, not with {verb}")
    return VERBS[verb].run(words, Flags(multirun=known.multirun, json=known.json, config_dir=known.config_dir))


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and all other words.

    Raises:
        ConfigError: an unknown flag, or one without its value.
    """
    parser = argparse.ArgumentParser(prog="hub", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--multirun", action="store_true")
    parser.add_argument("--config-dir")
    parser.add_argument("--json", action="store_true")
    try:
        known, words = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from None
    if unknown := [word for word in words if word.startswith("-")]:
        flags = ["--help", "--version", "--multirun", "--config-dir", "--json"]
        near = did_you_mean(unknown[0], flags)
        raise ConfigError(f"{unknown[0]}: there is no such flag. Allowed: {', '.join(flags)}.{near}")
    return known, words
