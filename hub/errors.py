"""Errors that are the user's to mend. Each is shown as one clear line and ends the program with exit code 2."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from hub.secrets import without_secrets


class HubError(Exception):
    """Base of every error that the hub shows without a traceback.

    The message says what was set, what is allowed and what to type. Secrets in it are blacked out.
    """

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(without_secrets(message))


class ConfigError(HubError):
    """One or more options are wrong. All problems that could be found are listed at once."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [without_secrets(line) for line in ([problems] if isinstance(problems, str) else problems)]
        super().__init__("\n".join(self.problems))


class DataError(HubError):
    """A data file or one of its rows can't be used."""


class ModelError(HubError):
    """A model or tokenizer can't be found, read or trained."""


class NoMemoryError(ModelError):
    """Memory ran out in a pass that the ranks can't begin again. Training can be started again in smaller micro-batches."""

    def __init__(self, message: str, smaller_bound: int) -> None:
        super().__init__(message)
        self.smaller_bound = smaller_bound


class PluginError(HubError):
    """A plugin is broken, missing, or clashes with another one."""


class LaunchError(HubError):
    """Worker processes could not be started, or one of them failed."""

    exit_code = 1


class DivergedError(HubError):
    """Training gave NaN or infinity several times in a row."""

    exit_code = 1


class VerifyError(HubError):
    """`hub verify` found something that does not hold."""

    exit_code = 1


class Interrupted(HubError):
    """The run was stopped by a signal. `exit_code` is 128 + the signal's number, as shells have it."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """A sentence with the nearest allowed words, or an empty string when none is near."""
    near = get_close_matches(word, list(allowed), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def can_not_write(output_dir: str | Path, error: OSError) -> ConfigError:
    """What to tell a user whose `output_dir` takes no files."""
    return ConfigError(f"output_dir={output_dir}: can't write there ({error.strerror}). Type output_dir=FOLDER, one of yours")


def first_line(error: BaseException) -> str:
    """The first line of what an error says; the name of its type if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: BaseException) -> str:
    """An error in one line: the name of its type and the first line of what it says. A PluginError is quoted whole."""
    if isinstance(error, PluginError):
        return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    said, name = first_line(error), type(error).__name__
    return name if said == name else f"{name}: {said}"
