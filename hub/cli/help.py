"""The help of the command line: the overview, the page of `--help`, and a page for each verb."""

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import fields

from hub.cli.flags import Verb
from hub.config.option import field_docs
from hub.config.schema import RunConfig
from hub.plugins.known import EXAMPLES, INSTALL_ONE
from hub.plugins.registry import registry

WIDTH = 80


def overview() -> str:
    """The page without arguments: algorithms, models, examples."""
    from hub.compose.compose import groups

    lines = ["Fine-tune a language model. Type:", "", "python -m hub algo=ALGORITHM model=MODEL data.path=FILE.jsonl", ""]
    lines += ["algorithms (algo=)"]
    lines += _listed((name, algorithm.summary) for name, algorithm in sorted(registry().algorithms.items()))
    if not registry().algorithms:
        lines += [f"  none is installed. {INSTALL_ONE}"]
    lines += ["", "models (model=, or model.path=FOLDER_OR_HUB_ID)", *_wrapped(groups()["model"]), "", "examples"]
    lines += _examples(EXAMPLES)
    return "\n".join([*lines, "", "python -m hub --help lists the rest."])


def usage(verbs: Mapping[str, Verb], flags: Mapping[str, tuple[str, str]]) -> str:
    """The page of `--help`.

    Args:
        verbs: name -> verb.
        flags: flag -> (what follows it, meaning).
    """
    from hub.compose.compose import groups

    choices = groups()
    algorithms = registry().algorithms
    lines = ["usage: python -m hub [verb] [FILE.yaml] [group=choice] [option=value] [flags]", "", "verbs"]
    lines += _listed((name, verb.summary) for name, verb in verbs.items())
    lines += ["", "algorithms (algo=)"]
    lines += _listed((name, algorithm.summary) for name, algorithm in sorted(algorithms.items()))
    presets = [name for name in choices["algo"] if name not in algorithms]
    if presets:
        lines += _listed([("presets of these", ", ".join(presets))])
    lines += ["", "models (model=, or model.path=FOLDER_OR_HUB_ID)", *_wrapped(choices["model"])]
    for group in (name for name in choices if name not in ("algo", "model")):
        lines += ["", f"{group} ({group}=)", *_wrapped(choices[group] or ["no presets"])]
    lines += ["", "flags", *_flags(flags, flags)]
    lines += [
        "",
        "python -m hub VERB --help       a verb's own help",
        "python -m hub show algo=NAME    every option with its value and meaning",
    ]
    return "\n".join(lines)


def verb_help(name: str, verb: Verb, flags: Mapping[str, tuple[str, str]]) -> str:
    """The help of one verb."""
    words = " ".join(part for part in (name, verb.words, "[flags]" if verb.flags else "") if part)
    lines = [f"usage: python -m hub {words}", "", *_text(verb.summary), *_text(verb.notes)]
    if verb.options is not None:
        docs = field_docs(verb.options)  # type: ignore[arg-type]  # mypy takes no class for hashable
        names = [(item.name, docs.get(item.name, "")) for item in fields(verb.options)]
        if verb.section is not None:
            section = {item.name: item.type for item in fields(RunConfig)}[verb.section]
            names += list(field_docs(section).items())  # type: ignore[arg-type]  # as above
        lines += ["", "options", *_listed((f"{name}=", meaning) for name, meaning in names)]
    if verb.examples:
        lines += ["", "examples", *_examples(verb.examples)]
    if verb.flags:
        lines += ["", "flags", *_flags(verb.flags, flags)]
    if "--config" in verb.flags:
        lines += ["", "python -m hub --help lists algorithms, models and the other groups."]
    return "\n".join(lines)


def _text(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


def _flags(names: Iterable[str], flags: Mapping[str, tuple[str, str]]) -> list[str]:
    return _listed((f"{name} {flags[name][0]}".strip(), flags[name][1]) for name in names)


def _examples(examples: Iterable[tuple[str, str]]) -> list[str]:
    lines = []
    for meaning, command in examples:
        lines += [f"  # {meaning}", f"  {command}"]
    return lines


def _listed(entries: Iterable[tuple[str, str]]) -> list[str]:
    """Names with a wrapped text beside each."""
    lines: list[str] = []
    for name, text in entries:
        lines += textwrap.wrap(text, WIDTH, initial_indent=f"  {name:<18}", subsequent_indent=" " * 20)
    return lines


def _wrapped(names: list[str]) -> list[str]:
    return textwrap.wrap(" ".join(names), WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
