"""Shell completion: a script for bash, zsh or fish with the verbs, flags, presets and options that are installed.

The scripts start no Python when a word is completed.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args

from hub.cli.flags import Verb
from hub.compose.compose import groups
from hub.config.option import AUTO, field_docs
from hub.config.schema import RunConfig
from hub.plugins.registry import registry
from hub.tasks.verbs import FINISHED

SHELLS = ("bash", "zsh", "fish")
FILES = "<files>"
"""Stands for names of files among the values of an option."""


@dataclass(frozen=True)
class Words:
    """What can be completed."""

    verbs: dict[str, str]
    """Verb -> summary."""

    flags: dict[str, str]
    """Flag -> meaning."""

    values: dict[str, list[str]]
    """Option or group -> its values. Empty: any value."""

    meanings: dict[str, str]
    """Option -> meaning."""


def script(shell: str, verbs: Mapping[str, Verb], flags: Mapping[str, tuple[str, str]], config_dir: str | None = None) -> str:
    """The script for a shell.

    Args:
        shell: one of SHELLS.
        verbs: name -> verb.
        flags: flag -> (what follows it, meaning).
        config_dir: a further folder with config groups.
    """
    makers: dict[str, Callable[[Words], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    values, meanings = _options(config_dir)
    summaries = {name: verb.summary for name, verb in verbs.items()}
    return makers[shell](Words(summaries, {name: meaning for name, (_, meaning) in flags.items()}, values, meanings))


def _options(config_dir: str | None) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The values and the meanings of all options, those of every algorithm included."""
    values: dict[str, list[str]] = dict(groups(config_dir))
    meanings: dict[str, str] = {}
    parts: list[tuple[str, Any]] = [("", RunConfig)]
    parts += [("algo.", algorithm.config) for algorithm in registry().algorithms.values()]
    parts += [("", verb.options) for verb in FINISHED.values()]
    while parts:
        prefix, cls = parts.pop()
        docs = field_docs(cls)
        for item in fields(cls):
            name = f"{prefix}{item.name}"
            if is_dataclass(item.type):
                parts.append((f"{name}.", item.type))
            elif name != "task":
                values.setdefault(name, list(_values(name, item)))
                meanings.setdefault(name, docs.get(item.name, ""))
    return values, meanings


def _values(name: str, item: Any) -> Iterator[str]:
    """Yield the values of an option that are known beforehand."""
    yield from item.metadata.get("choices", ())
    if item.type is bool:
        yield from ("true", "false")
    elif item.default == AUTO and not item.metadata.get("choices"):
        yield AUTO
    if item.default is None or type(None) in get_args(item.type):
        yield "null"
    last = name.rpartition(".")[2]
    if last.endswith(("path", "_dir", "_config")) or last in ("resume", "python", "template"):
        yield FILES


_BASH = """\
# Completion of the command hub for bash, made by: hub completion bash
_hub() {{
    local word="${{COMP_LINE:0:COMP_POINT}}" name values="" files="" IFS=$' \\t\\n'
    word="${{word##*[[:space:]]}}"
    COMPREPLY=()
    if [[ "$word" == *=* ]]; then
        name="${{word%%=*}}"
        case "$name" in
{cases}
        esac
        local typed="${{word#*=}}"
        COMPREPLY=($(compgen -W "$values" -- "$typed"))
        if [[ -n "$files" ]]; then
            COMPREPLY+=($(compgen -f -- "$typed"))
            compopt -o filenames 2>/dev/null
        fi
        # Where bash takes = for the end of a word, the reply is what follows it.
        [[ "$COMP_WORDBREAKS" == *=* ]] || COMPREPLY=("${{COMPREPLY[@]/#/$name=}}")
        return
    fi
    case "${{COMP_WORDS[COMP_CWORD-1]}}" in
        --config | --config-dir)
            COMPREPLY=($(compgen -f -- "$word"))
            compopt -o filenames 2>/dev/null
            return ;;
        completion) COMPREPLY=($(compgen -W "{shells}" -- "$word")); return ;;
    esac
    if [[ "$word" == -* ]]; then
        COMPREPLY=($(compgen -W "{flags}" -- "$word"))
        return
    fi
    ((COMP_CWORD == 1)) && values="{verbs}"
    [[ "${{COMP_WORDS[COMP_CWORD-1]}}" == help ]] && values="{verbs}"
    COMPREPLY=($(compgen -W "$values {options}" -- "$word"))
    if [[ "${{COMPREPLY[*]}}" == *= ]]; then
        compopt -o nospace 2>/dev/null
    elif ((${{#COMPREPLY[@]}} == 0)); then
        COMPREPLY=($(compgen -f -- "$word"))
        compopt -o filenames 2>/dev/null
    fi
}}
complete -F _hub hub
"""


def _bash(words: Words) -> str:
    cases = []
    for name, values in words.values.items():
        plain = " ".join(value for value in values if value != FILES)
        more = " files=1" if FILES in values else ""
        if values:
            cases.append(f"            {shlex.quote(name)}) values={shlex.quote(plain)}{more} ;;")
    return _BASH.format(
        cases="\n".join(cases),
        shells=" ".join(SHELLS),
        flags=" ".join(words.flags),
        verbs=" ".join(words.verbs),
        options=" ".join(f"{name}=" for name in words.values),
    )


_ZSH = """\
#compdef hub
# Completion of the command hub for zsh, made by: hub completion zsh
_hub() {{
    local name
    if [[ "$PREFIX" == *=* ]]; then
        name="${{PREFIX%%=*}}"
        compset -P '*='
        case "$name" in
{cases}
        esac
    elif [[ "$PREFIX" == -* ]]; then
        compadd -- {flags}
    elif [[ "${{words[CURRENT-1]}}" == completion ]]; then
        compadd -- {shells}
    else
        (( CURRENT == 2 )) && compadd -- {verbs}
        [[ "${{words[CURRENT-1]}}" == help ]] && compadd -- {verbs}
        compadd -S '' -- {options}
        _files -g '*.(yaml|yml)'
    fi
}}
if [[ "${{funcstack[1]}}" == _hub ]]; then
    _hub "$@"
else
    compdef _hub hub
fi
"""


def _zsh(words: Words) -> str:
    cases = []
    for name, values in words.values.items():
        known = " ".join(shlex.quote(value) for value in values if value != FILES)
        steps = [f"compadd -- {known}"] if known else []
        steps += ["_files"] if FILES in values else []
        if steps:
            cases.append(f"            {shlex.quote(name)}) {'; '.join(steps)} ;;")
    return _ZSH.format(
        cases="\n".join(cases),
        flags=" ".join(words.flags),
        shells=" ".join(SHELLS),
        verbs=" ".join(words.verbs),
        options=" ".join(shlex.quote(f"{name}=") for name in words.values),
    )


def _fish(words: Words) -> str:
    first = "-n '__fish_use_subcommand'"
    lines = ["# Completion of the command hub for fish, made by: hub completion fish", "complete -c hub -f"]
    lines += [f"complete -c hub {first} -a {name} -d {_fish_text(text)}" for name, text in words.verbs.items()]
    lines += [f"complete -c hub -l {name.removeprefix('--')} -d {_fish_text(text)}" for name, text in words.flags.items()]
    lines.append(f"complete -c hub -n '__fish_seen_subcommand_from completion' -a '{' '.join(SHELLS)}'")
    for name, values in words.values.items():
        known = [f"{name}={value}" for value in values if value != FILES]
        if FILES in values:
            lines.append(f"complete -c hub -n 'string match -q -- \"{name}=*\" (commandline -ct)' -F")
        text = words.meanings.get(name)
        about = f" -d {_fish_text(text)}" if text else ""
        lines.append(f"complete -c hub -a {_fish_text(' '.join(known or [f'{name}=']))}{about}")
    return "\n".join(lines) + "\n"


def _fish_text(text: str) -> str:
    """A text in fish's single quotes, shortened to its first sentence."""
    first = text.partition(". ")[0]
    return "'" + first.replace("\\", "\\\\").replace("'", "\\'") + "'"
