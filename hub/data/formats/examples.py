"""What a row can become: a conversation, a document, tokens, or several of these."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hub.data.json_values import JsonObject
from hub.errors import DataError


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template, and where they came from."""

    messages: list[JsonObject]
    """Each has `role`, `content` (a text), and where they apply `tool_calls` (with arguments as objects) and other fields."""

    tools: list[JsonObject] | None
    """JSON schemas of the tools that the model may call."""

    where: str
    """File and line, as `chats.jsonl:17`."""

    format: str = "messages"
    """The format of the row."""

    unused: tuple[str, ...] = ()
    """Fields that nothing reads. Those of messages, as `messages[].score`, are still seen by the chat template."""

    without_loss: frozenset[int] = frozenset()
    """Messages with `"loss": false`."""

    unmask: bool = False
    """Whether everything behind the system message is trained."""

    completion: int | None = None
    """The first message of the completion, where a row has one."""


@dataclass(frozen=True)
class Document:
    """A text that is trained as a whole."""

    text: str
    where: str
    format: str = "document"
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tokens:
    """A row of tokens."""

    input_ids: list[int]
    loss_mask: list[bool]
    where: str
    format: str = "tokens"
    unused: tuple[str, ...] = ()


Example = Conversation | Document | Tokens
"""What becomes one sample."""


@dataclass(frozen=True)
class ExampleGroup:
    """A row with several samples: a plugin's format with roles gives it."""

    examples: dict[str, Example]
    """Role -> what becomes its sample, in the order of the format's roles."""

    where: str
    format: str
    unused: tuple[str, ...] = ()
    """Fields that nothing reads, as `chosen.topic`."""


RowExample = Example | ExampleGroup
"""What a row can become."""


@contextmanager
def naming_role(where: str, role: str) -> Iterator[None]:
    """Add the role of a sample to the errors about it.

    Args:
        where: file and line of the row, with which such an error begins.
        role: which sample of the row is worked on.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {role}: {str(error).removeprefix(f'{where}: ')}") from None
