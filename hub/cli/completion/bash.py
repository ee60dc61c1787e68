"""The completion script for bash."""

import shlex

from hub.cli.completion.words import COMMANDS, Words

_SCRIPT = """\
# Completion of hub and of python -m hub for bash, made by: hub completion bash
_hub_words() {{
    # $1: number of the word hub, or of python -m hub.
    local word="${{COMP_LINE:0:COMP_POINT}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" name values="" files="" IFS=$' \\t\\n'
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
    case "$before" in
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
    ((COMP_CWORD == $1 + 1)) && values="{verbs}"
    [[ "$before" == help ]] && values="{verbs}"
    COMPREPLY=($(compgen -W "$values {options}" -- "$word"))
    if [[ "${{COMPREPLY[*]}}" == *= ]]; then
        compopt -o nospace 2>/dev/null
    elif ((${{#COMPREPLY[@]}} == 0)); then
        COMPREPLY=($(compgen -f -- "$word"))
        compopt -o filenames 2>/dev/null
    fi
}}
_hub() {{ _hub_words 0; }}
complete -F _hub hub

# Behind -m hub the words are the hub's. All else of python's stays with the completion that it has without this script.
_hub_module() {{
    local i
    for ((i = 1; i + 1 < COMP_CWORD; i++)); do
        case "${{COMP_WORDS[i]}}" in
            -c | *.py) break ;;
            -m)
                [[ "${{COMP_WORDS[i+1]}}" == hub ]] || break
                compopt +o default +o bashdefault 2>/dev/null
                _hub_words $((i + 1))
                return ;;
        esac
    done
    _hub_other "$@"
}}
_hub_other() {{
    local name="${{1##*/}}" loader i
    local kept="_hub_spec_${{name//[^A-Za-z0-9]/_}}"
    if [[ -z "${{!kept+set}}" ]]; then
        printf -v "$kept" ''
        loader=$(complete -p -D 2>/dev/null)
        if [[ "$loader" == *" -F "* ]]; then
            # bash-completion loads the completion of a command when it is asked for the first time.
            loader="${{loader#* -F }}"
            "${{loader%% *}}" "$name" "" "" 2>/dev/null
            _hub_take_over
        fi
    fi
    COMPREPLY=()
    local spec=(${{!kept}})
    ((${{#spec[@]}})) || return
    compopt +o default +o bashdefault 2>/dev/null
    for ((i = 0; i + 1 < ${{#spec[@]}}; i++)); do
        [[ "${{spec[i]}}" != -o ]] || compopt -o "${{spec[i+1]}}" 2>/dev/null
        [[ "${{spec[i]}}" != -F ]] || loader="${{spec[i+1]}}"
    done
    "$loader" "$@"
}}
_hub_take_over() {{
    # Complete words of these commands. What they have as their completion now is kept for all words that are not the hub's.
    local name spec
    for name in {commands}; do
        spec=$(complete -p "$name" 2>/dev/null)
        [[ "$spec" != *" -F _hub_module "* ]] || continue
        if [[ -n "$spec" ]]; then
            [[ "$spec" == *" -F "* ]] || continue
            printf -v "_hub_spec_${{name//[^A-Za-z0-9]/_}}" '%s' "$spec"
        fi
        complete -o bashdefault -o default -F _hub_module "$name"
    done
}}
_hub_take_over
"""


def script(words: Words) -> str:
    """The script."""
    cases = []
    for name, values in words.options.items():
        steps = [f"values={shlex.quote(' '.join(values))}"] if values else []
        steps += ["files=1"] if name in words.takes_file else []
        if steps:
            cases.append(f"            {shlex.quote(name)}) {' '.join(steps)} ;;")
    return _SCRIPT.format(
        cases="\n".join(cases),
        shells=" ".join(words.shells),
        flags=" ".join(words.flags),
        verbs=" ".join(words.verbs),
        options=" ".join(f"{name}=" for name in words.options),
        commands=" ".join(COMMANDS),
    )
