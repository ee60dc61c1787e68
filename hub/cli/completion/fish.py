"""The completion script for fish."""

from hub.cli.completion.words import COMMANDS, Words

_SCRIPT = """\
# Completion of hub and of python -m hub for fish, made by: hub completion fish
function __hub_before
    # The word before the one at the cursor is one of these.
    set -l words (commandline -opc)
    contains -- $words[-1] $argv
end
function __hub_is_first
    test (count (commandline -opc)) -eq 1
end
function __hub_is_name
    # The word at the cursor is the name of an option, not its value.
    not __hub_before --config --config-dir --keep completion
    and not string match -q -- '*=*' (commandline -ct)
end
function __hub_values
    set -l name (string split -m 1 = -- (commandline -ct))[1]
    set -l values
    switch $name
{cases}
    end
    test (count $values) -eq 0
    or printf "$name=%s\\n" $values
end
function __hub_is_file
    set -l parts (string split -m 1 = -- (commandline -ct))
    test (count $parts) -eq 2
    and contains -- $parts[1] {files}
end
function __hub_module
    # The words behind -m hub as a command line of hub. No status 0 elsewhere.
    set -l words (commandline -opc)
    set -l rest
    set -l place 0
    for i in (seq 2 (count $words))
        if test $place -gt 0
            test $i -gt (math $place + 1)
            and set -a rest $words[$i]
        else if test "$words[$i]" = -m
            set place $i
        else if test "$words[$i]" = -c
            or string match -q -- '*.py' $words[$i]
            return 1
        end
    end
    test $place -gt 0 -a $place -lt (count $words)
    and test $words[(math $place + 1)] = hub
    or return 1
    echo hub (string escape -- $rest) (commandline -ct)
end
complete -c hub -f
{lines}
complete -c hub -n 'string match -q -- "*=*" (commandline -ct)' -a '(__hub_values)'
complete -c hub -n __hub_is_file -F
complete -c hub -n '__hub_is_name; and test -n (commandline -ct)' -a '(__fish_complete_suffix .yaml)'
for name in {commands}
    complete -c $name -n '__hub_module >/dev/null' -f -a '(complete -C (__hub_module))'
end
"""


def script(words: Words) -> str:
    """The script."""
    cases = [
        f"        case {_quoted(name)}\n            set values {' '.join(map(_quoted, values))}"
        for name, values in words.options.items()
        if values
    ]
    more = {"--config": " -r -F", "--config-dir": " -x -a '(__fish_complete_directories)'", "--keep": " -x"}
    lines = [f"complete -c hub -n __hub_is_first -a {name} -d {_quoted(text)}" for name, text in words.verbs.items()]
    lines.append(f"complete -c hub -n '__hub_before help' -a '{' '.join(words.verbs)}'")
    lines.append(f"complete -c hub -n '__hub_before completion' -a '{' '.join(words.shells)}'")
    lines += [
        f"complete -c hub -l {name.removeprefix('--')}{more.get(name, '')} -d {_quoted(text)}"
        for name, text in words.flags.items()
    ]
    for name in words.options:
        about = f" -d {_quoted(words.meanings[name])}" if words.meanings.get(name) else ""
        lines.append(f"complete -c hub -n __hub_is_name -a {_quoted(f'{name}=')}{about}")
    return _SCRIPT.format(
        cases="\n".join(cases), files=" ".join(sorted(words.takes_file)), lines="\n".join(lines), commands=" ".join(COMMANDS)
    )


def _quoted(text: str) -> str:
    """A text in fish's single quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
