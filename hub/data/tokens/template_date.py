"""The date of a run, for chat templates that write today's: Llama 3.2, Llama 4, gpt-oss, Mistral Small.

These call `strftime_now("%d %b %Y")`, a function that transformers gives them. A run keeps the date on which it began,
`data.date`, so its rows are the same when it is resumed on another day, in every process, and from the token cache.
Transformers takes no function from outside. So the call is replaced by its result in the text of the template that is rendered.
A call whose format is a variable is left, and calls a macro of that name, which knows the results of all codes. The template
that is saved with the model stays as it is.
"""

import re
import weakref
from datetime import datetime
from typing import TYPE_CHECKING

from hub.data.json_values import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CALL = re.compile(r"""strftime_now\(\s*(?:"([^"\\]*)"|'([^'\\]*)')\s*\)""")
_ANY_CALL = re.compile(r"strftime_now\s*\(")
_CODES = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBcdDeFGhHIjklmMnpPrRsStTuUVwWxXyYzZ%"]
"""What a format may hold. `%%` comes last, so that what it gives is not read as a code."""
_dates: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, datetime]" = weakref.WeakKeyDictionary()


def set_date(tokenizer: "PreTrainedTokenizerBase", date: str) -> None:
    """Let the chat template of a tokenizer write a date in place of today's.

    Args:
        tokenizer: any.
        date: as 2026-11-28.
    """
    _dates[tokenizer] = datetime.fromisoformat(date)


def dated_template(tokenizer: "PreTrainedTokenizerBase", tools: list[JsonObject] | None) -> str:
    """The chat template that a tokenizer takes for a conversation, with the date of `set_date`.

    Args:
        tokenizer: must have a template. Some have another one for conversations with tools.
        tools: the tools of the conversation.
    """
    text = tokenizer.get_chat_template(tools=tools)
    date = _dates.get(tokenizer)
    if date is None or "strftime_now" not in text:
        return text
    text = _CALL.sub(lambda call: f'"{date.strftime(call[1] or call[2] or "")}"', text)
    return _macro(date) + text if _ANY_CALL.search(text) else text


def _macro(date: datetime) -> str:
    """A macro `strftime_now(format)` that writes a date. Nothing that follows it is changed, not even a line's end."""
    filters = "".join(f'|replace("{code}", "{date.strftime(code)}")' for code in _CODES)
    return f"{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}{{{{ '' }}}}"


def writes_date(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the chat template of a tokenizer asks for the date."""
    return _ANY_CALL.search(str(tokenizer.chat_template)) is not None
