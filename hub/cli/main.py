"""`python -m hub [verb] overrides`: parses the command line and calls the verb."""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields

from hub.cli.flags import FLAGS, Flags, Verb
from hub.cli.verbs import DEFAULT_VERB, VERBS
from hub.config.task import TASKS
from hub.errors import ConfigError, HubError, did_you_mean
from hub.secrets import without_secrets
from hub.version import VERSION


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
    known, words = _parse(arguments)
    if known.version:
        print(VERSION)
        return 0
    if not arguments:
        from hub.cli.help import overview

        print(overview())
        return 0
    verb = None
    if words and "=" not in words[0] and words[0][:1] not in "~+" and not _is_file(words[0]):
        verb = words.pop(0)
        if verb not in VERBS:
            raise ConfigError(
                f"{verb}: there is no such verb. Allowed: {', '.join(VERBS)}.{did_you_mean(verb, VERBS)} "
                "Options are written NAME=VALUE, a config file FILE.yaml"
            )
    if known.help:
        return VERBS["help"].run([verb] if verb else [], Flags())
    chosen = VERBS[verb or DEFAULT_VERB]
    flags = Flags(**{item.name: getattr(known, item.name) for item in fields(Flags)})
    _check_flags(verb or DEFAULT_VERB, chosen, flags)
    if "--config" in chosen.flags:
        words = _with_file(verb, words, flags)
    return chosen.run(words, flags)


def _with_file(verb: str | None, words: list[str], flags: Flags) -> list[str]:
    """The words of a command line, with the options of its config file in front."""
    files = [*([flags.config] if flags.config is not None else []), *(word for word in words if _is_file(word))]
    if not files:
        return words
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
    if unknown := [word for word in words if word.startswith("-")]:
        near = did_you_mean(unknown[0], FLAGS)
        raise ConfigError(f"{unknown[0]}: there is no such flag. Allowed: {', '.join(FLAGS)}.{near}")
    return known, words
