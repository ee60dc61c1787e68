"""What a row of data can become: a conversation, a document, or tokens; and the form in which a plugin adds a format."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Conversation:
    """What a chat template renders, and where it came from."""

    messages: list[dict[str, Any]]
    """`role`, `content` (a text), and where they apply `tool_calls` (their arguments are dicts) and further fields."""

    tools: list[Any] | None
    """JSON schemas of the tools that the model may call."""

    where: str
    """`chats.jsonl:17`."""

    format: str = "messages"
    """The format of the row."""

    unused: tuple[str, ...] = ()
    """Fields that nothing reads; of a message as `messages[].score` (those are still shown to the chat template)."""

    without_loss: frozenset[int] = frozenset()
    """Messages that say `"loss": false` of themselves."""

    unmask: bool = False
    """Everything behind the system message is trained."""

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
    """A row that is tokens already."""

    input_ids: list[int]
    loss_mask: list[bool]
    where: str
    format: str = "tokens"
    unused: tuple[str, ...] = ()


Example = Conversation | Document | Tokens
"""What a row can become."""
