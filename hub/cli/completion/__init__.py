"""Shell completion: a script for bash, zsh or fish that completes `hub` and `python -m hub`. It starts no Python."""

from collections.abc import Callable, Mapping

from hub.cli.completion import bash, fish, zsh
from hub.cli.completion.words import Words, words_of
from hub.cli.flags import Verb

SHELLS = ("bash", "zsh", "fish")


def script(shell: str, verbs: Mapping[str, Verb], flags: Mapping[str, tuple[str, str]], config_dir: str | None = None) -> str:
    """The script for a shell.

    Args:
        shell: one of SHELLS.
        verbs: name -> verb.
        flags: flag -> (what follows it, meaning).
        config_dir: a further folder with config groups.
    """
    makers: dict[str, Callable[[Words], str]] = {"bash": bash.script, "zsh": zsh.script, "fish": fish.script}
    return makers[shell](words_of(verbs, flags, SHELLS, config_dir))
