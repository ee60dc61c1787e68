"""`python -m hub [verb] overrides`: parses the command line and calls the verb."""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields

from hub.cli.flags import FLAGS, Flags, Verb
from hub.cli.verbs import DEFAULT_VERB, VERBS
from hub.compose.compose import groups
from hub.compose.options import full_names
from hub.compose.overrides import FromFile, with_spaces
from hub.config.task import TASKS
from hub.errors import ConfigError, HubError, did_you_mean
from hub.plugins.registry import registry
from hub.secrets import without_secrets
from hub.system.saying import say_error
from hub.tasks.verbs import FINISHED
from hub.version import VERSION

OTHER_VERBS = {
    "check": "verify",
    "config": "show",
    "finetune": "train",
    "fit": "train",
    "inspect": "data",
    "list": "--help",
    "ls": "runs",
    "models": "--help",
    "options": "show",
    "run": "train",
    "test": "verify",
    "tune": "train",
}
"""What other programs call a verb -> the verb or flag here."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        The exit code: 0, 2 for a user error, 1 for a failure, 128 + N for signal N that stopped a run.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except HubError as error:
        for line in str(error).splitlines():
            say_error(f"hub: {line}")
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        say_error(without_secrets(traceback.format_exc()))
        return 1


def _run(arguments: list[str]) -> int:
    known, words = _parse(arguments)
    if known.version:
        print(VERSION)
        return 0
    if not arguments:
        from hub.cli.help import overview

        print(overview())
        return 0
    if lines := with_spaces(words):
        raise ConfigError(lines)
    verb = None
    if words and "=" not in words[0] and words[0][:1] not in "~+" and not _is_file(words[0]):
        verb = words.pop(0)
        if verb not in VERBS:
            meant = _meant_by(verb) or f" Allowed: {', '.join(VERBS)}."
            raise ConfigError(f"{verb}: there is no such verb.{meant} Options are written NAME=VALUE, a config file FILE.yaml")
    if known.help:
        return VERBS["help"].run([verb] if verb else [], Flags())
    chosen = VERBS[verb or DEFAULT_VERB]
    flags = Flags(**{item.name: getattr(known, item.name) for item in fields(Flags)})
    _check_flags(verb or DEFAULT_VERB, chosen, flags)
    if "--config" in chosen.flags:
        words = _with_file(verb, words, flags)
    try:
        return chosen.run(words, flags)
    except HubError as error:
        error.args = ("\n".join(_with_place(str(error).splitlines(), words)),)
        raise


def _with_place(problems: list[str], words: list[str]) -> list[str]:
    """Problems with the config file in front of those that begin with an option of it."""
    files = {word.partition("=")[0]: word.file for word in words if isinstance(word, FromFile)}
    names = [(line, re.match(r"[\w.]+(?==)", line)) for line in problems]
    return [f"{files[name[0]]}: {line}" if name and name[0] in files else line for line, name in names]


def _meant_by(word: str) -> str:
    """A sentence on what a word that is no verb may stand for. Empty: nothing comes near."""
    presets = groups()
    group = next((name for name, choices in presets.items() if word in choices), None)
    if group is not None:
        return f" For the preset type {group}={word}."
    if word in presets:
        return f" For a preset type {word}=NAME."
    if os.path.isfile(word):
        return f" For data type data.path={word}."
    if word in ("continue", "restart", "resume"):
        return " To go on with a run type resume=latest."
    return f" Did you mean {OTHER_VERBS[word]}?" if word in OTHER_VERBS else did_you_mean(word, VERBS)


def _with_file(verb: str | None, words: list[str], flags: Flags) -> list[str]:
    """The words of a command line, with the options of its config file in front."""
    files = [*([flags.config] if flags.config is not None else []), *(word for word in words if _is_file(word))]
    if not files:
        return words
    runs = [word for word in files if verb in FINISHED and os.path.isfile(os.path.join(word, "run.yaml"))]
    if runs:
        raise ConfigError(f"{runs[0]} is a run folder. Type python -m hub {verb} run={runs[0]}")
    if len(files) > 1:
        raise ConfigError(f"a command line takes one config file, but has {' and '.join(files)}")
    from hub.compose.config_file import file_overrides

    words = [word for word in words if not _is_file(word)]
    typed = [word for word in words if "=" in word or word[:1] in ("~", "+")]
    if verb in TASKS:
        typed.append(f"task={verb}")
    return [*file_overrides(files[0], typed, flags.config_dir), *words]


def _is_file(word: str) -> bool:
    """Whether a word names a config file, or a folder in its place."""
    return "=" not in word and (word.endswith((".yaml", ".yml", ".json")) or os.sep in word)


def _check_flags(name: str, verb: Verb, flags: Flags) -> None:
    for item in fields(Flags):
        flag = f"--{item.name.replace('_', '-')}"
        if getattr(flags, item.name) not in (None, False) and flag not in verb.flags:
            having = ", ".join(other for other, its in VERBS.items() if flag in its.flags)
            raise ConfigError(f"{flag} works with {having} only, not with {name}")


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and all other words.

    Raises:
        ConfigError: an unknown flag, or one without its value.
    """
    parser = argparse.ArgumentParser(prog="hub", add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag, (value, _) in FLAGS.items():
        names = (flag, "-h") if flag == "--help" else (flag,)
        if value:
            parser.add_argument(*names)
        else:
            parser.add_argument(*names, action="store_true")
    try:
        known, words = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        flag = error.argument_name or ""
        raise ConfigError(f"{flag}: type {flag} {FLAGS[flag][0]}" if flag in FLAGS else str(error)) from None
    for number, word in enumerate(words):
        if word.startswith("-"):
            flag = f"{word}: there is no such flag"
            near = did_you_mean(word, FLAGS)
            raise ConfigError(_as_option(flag, *words[number : number + 2]) or f"{flag}. Allowed: {', '.join(FLAGS)}.{near}")
    return known, words


def _as_option(flag: str, word: str, following: str = "") -> str | None:
    """The error for an option that is written as a flag, as other trainers have it. None: there is no such option."""
    name, equals, value = word.lstrip("-").partition("=")
    found = full_names(name.replace("-", "_"), registry().algorithms)
    if not equals:
        value = "VALUE" if not following or following.startswith("-") or "=" in following else following
    return f"{flag}. Options have no dashes. Type {' or '.join(f'{option}={value}' for option in found)}" if found else None
