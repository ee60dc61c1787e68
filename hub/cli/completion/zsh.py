"""The completion script for zsh."""

import shlex
from collections.abc import Mapping

from hub.cli.completion.words import COMMANDS, Words

_SCRIPT = """\
#compdef hub {commands}
# Completion of hub and of python -m hub for zsh, made by: hub completion zsh
_hub_words() {{
    local name before="${{words[CURRENT-1]}}"
    local -a verbs flags
    verbs=({verbs})
    flags=({flags})
    if [[ "$PREFIX" == *=* ]]; then
        name="${{PREFIX%%=*}}"
        compset -P 1 '*='
        case "$name" in
{cases}
        esac
    elif [[ "$before" == --config ]]; then
        _files
    elif [[ "$before" == --config-dir ]]; then
        _files -/
    elif [[ "$PREFIX" == -* ]]; then
        _describe -o flag flags
    elif [[ "$before" == completion ]]; then
        compadd -- {shells}
    else
        (( CURRENT == 2 )) || [[ "$before" == help ]] && _describe verb verbs
        compadd -S '' -- {options}
        _files -g '*.(yaml|yml|json)'
    fi
}}
# Behind -m hub the words are the hub's. All else of python's stays with the completion that it has without this script.
_hub_module() {{
    local -i i
    for (( i = 2; i + 1 < CURRENT; i++ )); do
        case "${{words[i]}}" in
            -c | *.py) break ;;
            -m)
                [[ "${{words[i+1]}}" == hub ]] || break
                words=("${{(@)words[i+1,-1]}}")
                (( CURRENT -= i ))
                _hub_words
                return ;;
        esac
    done
    local other="${{_hub_others[$service]}}"
    [[ -n "$other" || "$service" != python* ]] || other=_python
    (( $+functions[$other] )) || other=_default
    $other "$@"
}}
_hub() {{
    if [[ "$service" == hub ]]; then
        _hub_words
    else
        _hub_module "$@"
    fi
}}
typeset -gA _hub_others
if [[ "${{funcstack[1]}}" == _hub ]]; then
    _hub "$@"
else
    () {{
        local name
        for name in {commands}; do
            [[ "${{_comps[$name]}}" == _hub ]] || _hub_others[$name]="${{_comps[$name]}}"
        done
    }}
    compdef _hub hub {commands}
fi
"""


def script(words: Words) -> str:
    """The script."""
    cases = []
    for name, values in words.options.items():
        steps = [f"compadd -- {' '.join(map(shlex.quote, values))}"] if values else []
        steps += ["_files"] if name in words.takes_file else []
        if steps:
            cases.append(f"            {shlex.quote(name)}) {'; '.join(steps)} ;;")
    return _SCRIPT.format(
        commands=" ".join(COMMANDS),
        verbs=_described(words.verbs),
        flags=_described(words.flags),
        cases="\n".join(cases),
        shells=" ".join(words.shells),
        options=" ".join(shlex.quote(f"{name}=") for name in words.options),
    )


def _described(words: Mapping[str, str]) -> str:
    """Words and meanings, as `_describe` takes them."""
    return " ".join(shlex.quote(f"{word}:{meaning}") for word, meaning in words.items())
