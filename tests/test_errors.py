"""Errors for the user: copied, sent to another process, raised again by a library that knows their type and text alone."""

import copy
import importlib
import pickle
import signal

import pytest
from omegaconf._utils import format_and_raise

from hub.errors import ConfigError, DataError, HubError, Interrupted, NoMemoryError
from hub.models.reading import ModelFileError

for name in ("hub.tasks.export.hub.repository", "hub.data.tokens.chat_template", "hub.data.tokens.omissions"):
    importlib.import_module(name)


class TwoPartsError(HubError):
    """As a plugin may have one."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}. {advice}")
        self.what = what


def classes(of: type[HubError] = HubError) -> list[type[HubError]]:
    return [of, *(kind for child in of.__subclasses__() for kind in classes(child) if kind.__module__.startswith("hub."))]


@pytest.mark.parametrize("kind", classes())
def test_every_error_is_made_of_a_text_and_a_copy_has_all_of_it(kind):
    error = kind("what, and what to type")
    error.outcome = ["steps", 3]
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is kind
        assert (str(other), vars(other), other.exit_code) == (str(error), vars(error), error.exit_code)


@pytest.mark.parametrize(
    "error",
    [
        Interrupted.before_training(signal.SIGTERM),
        NoMemoryError("too large", 256),
        TwoPartsError("it is red", "Paint it"),
        ModelFileError.of("model.path=m", "config.json", "vocab_size", "-1", "it must be positive"),
    ],
)
def test_a_copy_has_what_came_beside_the_text(error):
    other = pickle.loads(pickle.dumps(error))
    assert (str(other), vars(other), other.exit_code) == (str(error), vars(error), error.exit_code)
    assert len(vars(error)) > 0


@pytest.mark.parametrize("kind", [ConfigError, DataError])
def test_a_quoted_text_is_one_line_and_commands_no_terminal(kind):
    error = kind("data.path=a\x9b\nb\x1b[2J\rc: there is no such file")
    assert str(error) == "data.path=a\\x9b b\\x1b[2J c: there is no such file"
    assert kind is DataError or error.problems == [str(error)]


def test_a_library_that_raises_a_signals_error_again_keeps_the_signal():
    def raised_again():
        try:
            raise Interrupted.before_training(signal.SIGTERM)
        except Interrupted as error:
            format_and_raise(node=None, key="key", value=1, msg=str(error), cause=error)

    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM before training began$") as raised:
        raised_again()
    assert raised.value.exit_code == 128 + signal.SIGTERM
    assert Interrupted("stopped").exit_code == 128 + signal.SIGINT
