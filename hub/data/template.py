"""A conversation -> token ids, and which of them are trained: the assistant's turns with their end-of-turn token.

`hub.data.turns` finds the characters of the turns; here they become tokens, and what is trained is told to the user.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from hub.data.formats import Conversation
from hub.data.limits import RAISED, check_sandbox, limits
from hub.data.turns import find_turns, special_tokens
from hub.errors import DataError


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as tokens; both lists have an entry for each."""

    input_ids: list[int]
    loss_mask: list[bool]
    """True where the token is trained, that is, where it is a target of the loss."""

    num_omitted: int = 0
    """Texts beside tool calls that the chat template leaves out."""


class Tokens(Protocol):
    """Anything with token ids and their mask, such as `Encoded`."""

    @property
    def input_ids(self) -> Any:
        """Token ids, shape (length,)."""

    @property
    def loss_mask(self) -> Any:
        """Whether each token is trained, shape (length,)."""


def encode(tokenizer: Any, conversation: Conversation) -> Encoded:
    """Render a conversation with the tokenizer's chat template and tell the trained tokens from the others.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        conversation: what to render.

    Raises:
        DataError: the template refuses the conversation, or a turn of the assistant can't be found in what it renders.
    """
    rendered = find_turns(tokenizer, conversation)
    input_ids, mask = _tokenise(tokenizer, rendered.text, rendered.spans)
    _drop_trailing_space(tokenizer, input_ids, mask)
    return Encoded(input_ids, mask, rendered.num_omitted)


def _tokenise(tokenizer: Any, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[bool]]:
    """Token ids of the text, and which tokens have a character in one of the spans (in order, without overlap)."""
    if tokenizer.is_fast:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        extents = _extents(encoding["offset_mapping"], len(text.rstrip()))
        if extents is not None:
            mask, current = [False] * len(extents), 0
            for position, (start, end) in enumerate(extents):
                while current < len(spans) and spans[current][1] <= start:
                    current += 1
                mask[position] = current < len(spans) and end > spans[current][0]
            return list(encoding["input_ids"]), mask
    input_ids: list[int] = []
    mask = []
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    for number, (start, end) in enumerate(pairwise(edges)):
        piece = tokenizer(text[start:end], add_special_tokens=False)["input_ids"] if end > start else []
        input_ids += piece
        mask += [number % 2 == 1] * len(piece)
    return input_ids, mask


def _extents(offsets: list[tuple[int, int]], num_characters: int) -> list[tuple[int, int]] | None:
    """Offsets without gaps; None when they do not follow the text.

    Byte-level tokenizers leave a token's leading space out of its offsets, so a gap belongs to the token behind it. The
    tokens of one character that takes several all have the offsets of that character.
    """
    extents: list[tuple[int, int]] = []
    reached = 0
    for start, end in offsets:
        if start > end or end < reached:
            return None
        extents.append((min(start, reached), end))
        reached = end
    return extents if reached >= num_characters else None


def _drop_trailing_space(tokenizer: Any, input_ids: list[int], mask: list[bool]) -> None:
    """Take the loss off the whitespace behind a turn's last special token: it is never generated."""
    special = set(special_tokens(tokenizer).values())
    for position in range(len(mask) - 1, -1, -1):
        if mask[position] and (position + 1 == len(mask) or not mask[position + 1]):
            last = position
            while last > 0 and mask[last - 1] and input_ids[last] not in special:
                if tokenizer.decode([input_ids[last]]).strip():
                    break
                last -= 1
            if input_ids[last] in special:
                mask[last + 1 : position + 1] = [False] * (position - last)


def load_template(tokenizer: Any, file: str) -> None:
    """Give the tokenizer the chat template that a file holds. It is then saved with the trained model, too.

    Raises:
        DataError: the file can't be read, is no Jinja template, or does not end.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        template = Path(file).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.template={file}: can't be read ({error})") from None
    if not template.strip():
        raise DataError(f"data.template={file}: the file is empty. It must hold a Jinja chat template")
    check_sandbox()
    tokenizer.chat_template = template
    try:
        with limits(f"data.template={file}"):
            tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise DataError(f"data.template={file}: line {error.lineno} is no valid Jinja ({error.message})") from None
    except (TemplateError, *RAISED):
        return  # it may well refuse this conversation; each row is tried and named


def require_template(tokenizer: Any, model_path: str) -> None:
    """Check that there is a chat template, and a sandbox to run it in.

    Raises:
        DataError: there is none.
    """
    check_sandbox()
    if not tokenizer.chat_template:
        raise DataError(
            f"model.path={model_path}: its tokenizer has no chat template, so conversations can't be rendered. "
            "Take the instruct (chat) version of the model, or type data.template=FILE.jinja"
        )


def template_report(tokenizer: Any, samples: Iterable[Tokens]) -> str:
    """Prove on encoded samples that the model learns to end its turns.

    Returns:
        One sentence: what is trained, with the end-of-turn tokens; or a warning that the last turn of some samples has
        none among its trained tokens.
    """
    special = {number: text for text, number in special_tokens(tokenizer).items()}
    ends: dict[str, int] = {}
    num_samples = num_ended = 0
    for sample in samples:
        num_samples += 1
        mask = list(sample.loss_mask)
        if not any(mask):
            continue
        last = special.get(int(sample.input_ids[len(mask) - 1 - mask[::-1].index(True)]))
        if last is not None:
            num_ended += 1
            ends[last] = ends.get(last, 0) + 1
    if num_ended < num_samples:
        return (
            f"Warning: in {num_samples - num_ended} of {num_samples} samples the assistant's last turn ends without a "
            "special token that is trained, so the model may not learn to stop. Type data.template=FILE.jinja with a "
            "template that ends its turns with one"
        )
    names = " or ".join(sorted(ends, key=lambda name: -ends[name]))
    return f"Loss is on the assistant's turns only, their end-of-turn token {names} included."
