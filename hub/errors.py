"""Errors for the user, shown as one line without a traceback. The default exit code is 2."""

import re
import signal
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from hub.secrets import without_secrets

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters by which a file or an option that an error quotes could command the terminal. Not tabs and line feeds."""


def printable(text: str) -> str:
    """The text with escapes for what a terminal would obey, and for lone surrogates, which no terminal and no file can take."""
    text = _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)
    return text.encode("utf-8", "backslashreplace").decode()


class HubError(Exception):
    """Base class of all errors that are shown without a traceback.

    The message says what was set, what is allowed and what to type. Secrets in it are redacted. Every class can be made of a
    text alone, as libraries raise an error again (`type(error)(text)`). A copy or a pickle has all that the error has.
    """

    exit_code = 2
    outcome: object = None
    """What a run had reached before it, a `hub.run.Outcome`. None: nothing, or it is not known."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(without_secrets(message)))

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and pickles, without `__init__`: what it has made of its arguments is here already."""
        return _made_again, (type(self), self.args), self.__dict__


def _made_again(kind: type[HubError], args: tuple[object, ...]) -> HubError:
    return kind.__new__(kind, *args)


class ConfigError(HubError):
    """One or more options are wrong. The message lists all problems."""

    def __init__(self, problems: str | Iterable[str] = ()) -> None:
        lines = [problems] if isinstance(problems, str) else problems
        self.problems = [printable(" ".join(without_secrets(line).splitlines())) for line in lines]
        super().__init__("\n".join(self.problems))


class DataError(HubError):
    """A data file or a row of it can't be used. It is one line, whatever the texts that it quotes are."""

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(message.splitlines()))


class ModelError(HubError):
    """A model or tokenizer can't be found, read or trained."""


class NoMemoryError(ModelError):
    """Out of memory in a pass that the ranks can't retry in place. Training can be restarted with smaller micro-batches."""

    def __init__(self, message: str = "", smaller_bound: int | None = None) -> None:
        super().__init__(message)
        self.smaller_bound = smaller_bound
        """Tokens in a micro-batch. None: it is not known."""


class PluginError(HubError):
    """A plugin is broken, missing, or clashes with another one."""


class LaunchError(HubError):
    """Worker processes could not be started, or one of them failed."""

    exit_code = 1


LOST_CONNECTION = "the connection to another process of this run was lost: it has ended (killed, or out of CPU memory?)"
"""What a process says of which another one has ended, and that knows no more."""


class DivergedError(HubError):
    """Loss or gradients were NaN or infinite in several steps in a row."""

    exit_code = 1


class VerifyError(HubError):
    """A check of `hub verify` failed."""

    exit_code = 1


class Interrupted(HubError):
    """The run was stopped by a signal. `exit_code` is 128 + the number of the signal, as in shells."""

    def __init__(self, message: str = "", signal_number: int | None = None) -> None:
        """Args:
        message: what was stopped.
        signal_number: None: a library raises it again, which knows the type and a text. It stays the error that is handled.
        """
        first = sys.exception() if signal_number is None else None
        if isinstance(first, Interrupted):
            message, signal_number = str(first), first.signal_number
        super().__init__(message)
        self.signal_number: int = signal.SIGINT if signal_number is None else signal_number
        self.exit_code = 128 + self.signal_number

    @classmethod
    def before_training(cls, signal_number: int) -> "Interrupted":
        """The error of a run that a signal stops before its first step."""
        return cls(f"stopped by {signal.Signals(signal_number).name} before training began", signal_number)


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """A sentence with the nearest allowed words, whatever their case. Empty if none is near."""
    by_lower = {name.lower(): name for name in allowed}
    lower = word.lower()
    near = [by_lower[name] for name in ([lower] if lower in by_lower else get_close_matches(lower, by_lower, n=3, cutoff=0.6))]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def can_not_write(output_dir: str | Path, error: OSError) -> ConfigError:
    """The error for an `output_dir` that is not writable."""
    return ConfigError(
        f"output_dir={output_dir}: can't write there ({error.strerror}). Type output_dir=FOLDER with a writable folder"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message. If it has none, the name of its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: BaseException) -> str:
    """An error in one line: the name of its type, and the first line of its message. For a PluginError the whole message."""
    if isinstance(error, PluginError):
        return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
