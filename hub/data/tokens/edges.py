"""The edges of a turn: how far two renderings agree around it, and where its end ends."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hub.data.tokens.special_tokens import added_tokens, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def without_space(tokenizer: "PreTrainedTokenizerBase", text: str, begin: int, end: int) -> tuple[int, int]:
    """A span without the whitespace behind its last special token: it is never generated.

    Args:
        tokenizer: says which tokens are special.
        text: what was rendered.
        begin: the first character of the span.
        end: the character behind its last.
    """
    body = text[begin:end].rstrip()
    return (begin, begin + len(body)) if ends_with(body, special_tokens(tokenizer)) else (begin, end)


def end_of(tokenizer: "PreTrainedTokenizerBase", tail: str) -> int:
    """The length of the end of a turn, of which `tail` is what every end has: up to the token that stops, or all of it."""
    stop = tokenizer.eos_token
    if isinstance(stop, str) and stop in tail:
        return tail.index(stop) + len(stop)
    return len(tail)


def last_end(tokenizer: "PreTrainedTokenizerBase", tail: str, followed: str | None) -> int:
    """The length of the end of a last turn. Some templates close the conversation with a further token.

    Args:
        tokenizer: says which tokens end a text.
        tail: what is rendered behind its texts.
        followed: the same, when a question follows. None: the template refuses that.
    """
    stop, special = tokenizer.eos_token, special_tokens(tokenizer)
    if followed is None:
        common = tail if isinstance(stop, str) and stop in tail else ""
    else:
        common = tail[: agreement(tokenizer, tail, followed)]
    if any(token in common for token in special):
        return end_of(tokenizer, common)
    stops = [(place, place + len(token)) for token in special if (place := tail.find(token)) >= 0]
    return min(stops)[1] if stops else len(tail)


def agreement(tokenizer: "PreTrainedTokenizerBase", here: str, there: str) -> int:
    """Number of equal characters at the start. An added token counts as a whole or not at all.

    Whitespace behind a content may be stripped in one of the two only, and counts as equal then.
    """
    body, other = here.lstrip(), there.lstrip()
    if body and other and (len(body) < len(here) or len(other) < len(there)) and not _common_prefix(here, there):
        agreed = agreement(tokenizer, body, other)
        return len(here) - len(body) + agreed if agreed else 0
    agreed = _common_prefix(here, there)
    added = added_tokens(tokenizer)
    for begin in range(max(0, agreed - max(map(len, added), default=0)), agreed):
        for text in (here, there):
            if any(text[begin:stop] in added for stop in range(agreed + 1, min(len(text), begin + 64) + 1)):
                return begin
    return agreed


def _common_prefix(first: str, second: str) -> int:
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def ends_with(text: str, tokens: Iterable[str]) -> bool:
    """Whether a text ends with one of some tokens."""
    return text.endswith(tuple(filter(None, tokens)))
