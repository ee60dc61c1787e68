"""Generates hub/__init__.pyi, the signatures of the Python calls: `python -m hub.cli.signatures ALGORITHM... > FILE`.

Every option is a keyword there, with type, default and docstring, so that an editor completes it and a type checker knows it.
"""

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from pathlib import Path
from typing import Any

import hub
from hub import api
from hub.compose.compose import compose
from hub.config.finished import FinishedVerb
from hub.config.option import bounds_words, field_docs
from hub.config.schema import AlgoConfig, DataConfig, LaunchConfig, ModelConfig, RunConfig, TrackConfig
from hub.keywords import ALIASES, BY_ARGUMENT, NESTED, PARTS, TOP
from hub.tasks.verbs import FINISHED

WIDTH = 128
COMMAND = "python -m hub.cli.signatures {names} > hub/__init__.pyi"
HEAD = '''"""The signatures of the hub's Python calls, for editors and type checkers. Generated from the options by

`{command}`.
"""
'''
PATH = "str | PathLike[str]"
COMMON: tuple[Any, ...] = (DataConfig, ModelConfig, LaunchConfig, TrackConfig)
CALLS = ("sft", "lora_sft", "osft", "dpo", "lora_dpo", "osft_dpo")
"""Calls for one algorithm: they have exactly its options, and all are keywords."""
FUNCTIONS = {"data": "check_data", "plan": "plan_run"}
RESULTS = {"data": "DataReport", "plan": "Any", "show": "Options"}
OPEN = "options of the algorithm that are not listed here."


@dataclass(frozen=True)
class Argument:
    """One argument of a call, as source."""

    type: str
    default: str
    """With its equals sign. Empty: it is required."""

    meaning: str


def stub(algorithms: Sequence[str]) -> str:
    """The whole file.

    Args:
        algorithms: names of installed algorithms that have a call of their own in `hub/api.py`.

    Raises:
        ConfigError: one of them is not installed.
    """
    lines = [HEAD.format(command=COMMAND.format(names=" ".join(algorithms))), *_imports(), ""]
    lines += [f"__version__: str\n\n{_exported()}\n"]
    for name in algorithms:
        lines += [*_function(name, type(compose(f"algo={name}").algo)), ""]
    for name in ("run", "verify", "show", "data", "plan"):
        lines += [*_function(name, AlgoConfig), ""]
    lines += [
        "def register(",
        "    name: str,",
        "    build: Callable[[Setup], Recipe],",
        "    *,",
        "    config: type[AlgoConfig] | None = None,",
        "    summary: str | None = None,",
        ") -> None:",
        *_docstring(api.register.__doc__ or ""),
        "",
    ]
    for verb in FINISHED.values():
        lines += [*_of_finished(verb), ""]
    return "\n".join(lines).rstrip() + "\n"


def _imports() -> Iterator[str]:
    """Yield the imports of hub/__init__.py that are no calls, and those of the signatures."""
    yield "from collections.abc import Callable"
    yield "from os import PathLike"
    yield "from typing import Any, Literal"
    yield ""
    source = Path(hub.__file__ or "").read_text(encoding="utf-8").partition("__version__")[0]
    lines = re.findall(r"^ *(from hub\.(?!api|version|system)[\w.]+ import .+)$", source, re.MULTILINE)
    yield from sorted([*lines, "from hub.keywords import Data as _Data", "from hub.recipe import Recipe, Setup"])


def _exported() -> str:
    return "\n".join(["__all__ = [", *(f'    "{name}",' for name in hub.__all__), "]"])


def _function(name: str, options: type[AlgoConfig]) -> Iterator[str]:
    """Yield the lines of one call."""
    leading, keywords = _leading(name), dict(_keywords(options, name))
    is_open = name not in CALLS
    arguments = [f"    {key}: {one.type}{one.default}," for key, one in leading.items()]
    arguments.insert(1 if is_open else 0, "    *,")
    yield f"def {name}("
    yield from arguments
    yield from (f"    {key}: {one.type}{one.default}," for key, one in keywords.items())
    if is_open:
        yield "    **options: Any,"
    yield f") -> {RESULTS.get(name, 'Result')}:"
    yield from _docstring(_with_arguments(getattr(api, FUNCTIONS.get(name, name)).__doc__ or "", leading, keywords))


def _of_finished(verb: FinishedVerb) -> Iterator[str]:
    """Yield the lines of the call of a verb on finished models."""
    keywords = {"run": Argument(f"{PATH} | None", " = None", "")}
    if "model" in verb.sections:
        keywords["model"] = Argument(f"{PATH} | None", " = None", "")
    if "data" in verb.sections:
        keywords["data"] = Argument("_Data | None", " = None", "")
    of_ask = _sections(api.ask.__doc__ or "")[1]
    keywords = {name: replace(one, meaning=of_ask[name]) for name, one in keywords.items()}
    for part in (verb.options, *(cls for name, cls in (NESTED | PARTS).items() if name in verb.sections)):
        keywords |= dict(_options_of(part, is_open=True))
    yield f"def {verb.name}("
    yield "    *,"
    yield from (f"    {key}: {one.type}{one.default}," for key, one in keywords.items())
    yield ") -> Any:"
    rest = _sections(api.ask.__doc__ or "")[2]
    yield from _docstring(
        "\n".join([verb.summary, "", "Args:", *_wrapped({name: one.meaning for name, one in keywords.items()}), "", rest])
    )


def _options_of(part: Any, is_open: bool) -> Iterator[tuple[str, Argument]]:
    """Yield the options of one section as keywords. Those of the config have the value that they have without being typed."""
    docs = field_docs(part)
    for item in fields(part):
        if item.name not in (*BY_ARGUMENT, "run"):
            yield item.name, _option(item, docs[item.name], is_open)


def _option(item: Field[Any], doc: str, is_open: bool) -> Argument:
    """One option as a keyword."""
    default = item.default if item.default_factory is MISSING else item.default_factory()
    meaning = re.sub(r"\bnull\b", "None", doc)
    if bounds := bounds_words(item.metadata):
        meaning += f" {bounds[0].upper()}{bounds[1:]}."
    return Argument(_type(item, meaning, is_open), " = ..." if is_open else f" = {_quoted(default)}", meaning)


def _leading(name: str) -> dict[str, Argument]:
    """The arguments of a call that are no options. The first one of a call for any algorithm may be positional."""
    may_miss = name in ("run", "show")
    kind, default = (" | None", " = None") if may_miss else ("", "")
    model, data = Argument(f"{PATH}{kind}", default, ""), Argument(f"_Data{kind}", default, "")
    algo = Argument("str" if name == "verify" else "str | None", "" if name == "verify" else " = None", "")
    if name == "data":
        return {"data": data, "model": model, "algo": algo}
    if name == "plan":
        return {"algo": Argument("str", "", ""), "model": model, "data": Argument("_Data | None", " = None", "")}
    first = {} if name in CALLS else {"algo": algo}
    return first | {"model": model, "data": data, "track": Argument("str | None", ' = "none"', "")}


def _keywords(options: type[AlgoConfig], name: str) -> Iterator[tuple[str, Argument]]:
    """Yield each option, with its keyword."""
    for part in (options, *COMMON, RunConfig):
        docs = field_docs(part)
        for item in fields(part):
            if item.name in BY_ARGUMENT or (part is RunConfig and item.name not in TOP):
                continue
            if name == "verify" and item.name == "task":
                continue
            # A call for any algorithm has the defaults of the one that it gets.
            option = _option(item, docs[item.name], is_open=name not in CALLS)
            for alias in (other for other, full in ALIASES.items() if full == item.name):
                yield alias, replace(option, meaning=f"same as `{item.name}`.")
            yield item.name, option
    for section, cls in NESTED.items():
        meaning = f"options of the section {section}: {', '.join(item.name for item in fields(cls))}."
        yield section, Argument("dict[str, Any]", " = ...", meaning)


def _type(item: Field[Any], meaning: str, is_open: bool) -> str:
    """The type of an option as Python has it: words that are allowed as literals, and texts that may be paths as these."""
    text = item.type.__name__ if isinstance(item.type, type) else str(item.type).replace("typing.", "")
    if choices := item.metadata.get("choices"):
        return _literal(choices, item.default is None)
    if one := re.fullmatch(r"list\[(str|float)\]", text):
        return f"{text} | {one[1]}"  # a single value stands for a list of one
    kinds = [kind.strip() for kind in text.split("|")]
    if "str" in kinds and ("int" in kinds or "float" in kinds):
        if is_open:
            return text
        # Beside a number the only text that is allowed is the default, such as auto.
        word = [_literal((item.default,), False)] if isinstance(item.default, str) else []
        return " | ".join([*(kind for kind in kinds if kind != "str"), *word])
    is_path = re.search(r"\b(file|folder|path|paths|interpreter)\b", meaning, re.IGNORECASE)
    return text.replace("str", PATH) if is_path and "str" in kinds else text


def _literal(words: Sequence[str], or_none: bool) -> str:
    return f"Literal[{', '.join(map(_quoted, words))}]{' | None' if or_none else ''}"


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _with_arguments(doc: str, leading: Mapping[str, Argument], keywords: Mapping[str, Argument]) -> str:
    """A docstring of the API with a line for each option. A call that has no section of arguments has those of `run`."""
    summary, arguments, rest = _sections(doc)
    _, of_run, rest_of_run = _sections(api.run.__doc__ or "")
    known = {name: argument.meaning for name, argument in leading.items()} | of_run | arguments
    listed = {name: known[name] for name in leading} | {name: argument.meaning for name, argument in keywords.items()}
    if "options" in arguments:
        listed["options"] = OPEN
    return "\n".join([summary, "", "Args:", *_wrapped(listed), "", rest if arguments else rest_of_run])


def _wrapped(meanings: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of a section of arguments."""
    for name, meaning in meanings.items():
        yield from textwrap.wrap(
            f"{name}: {meaning}",
            WIDTH - 4,
            initial_indent="    ",
            subsequent_indent="        ",
            break_long_words=False,
            break_on_hyphens=False,
        )


def _sections(doc: str) -> tuple[str, dict[str, str], str]:
    """What a docstring says before its arguments, the arguments, and what comes behind them."""
    text = inspect.cleandoc(doc)
    summary, _, rest = text.partition("\n\nArgs:\n")
    arguments, _, tail = rest.partition("\n\n")
    found = re.findall(r"^    (\w+): (.+(?:\n        .+)*)", arguments, re.MULTILINE)
    summary = re.sub(r" See `run`[^.]*\.", "", summary)
    return summary, {name: " ".join(meaning.split()) for name, meaning in found}, tail


def _docstring(doc: str) -> Iterator[str]:
    """Yield the lines of a docstring."""
    lines = inspect.cleandoc(doc).replace("\\", "\\\\").splitlines()
    yield f'    """{lines[0]}'
    yield from (f"    {line}".rstrip() for line in lines[1:])
    yield '    """'


if __name__ == "__main__":
    sys.stdout.write(stub(sys.argv[1:]))
