"""A conversation -> token ids with a loss mask: the assistant's turns with their end-of-turn token.

`hub.data.tokens.turns` finds the characters of the turns. Here they become tokens, and what is trained is reported.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from hub.config.data import TEMPLATES
from hub.data.formats.examples import Conversation
from hub.data.tokens.edges import without_space
from hub.data.tokens.special_tokens import special_tokens
from hub.data.tokens.template_limits import RAISED, check_sandbox, limits
from hub.data.tokens.tokenize import Spans, tokenize
from hub.data.tokens.turns import Rendered, find_turns
from hub.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

TEMPLATES_FOLDER = Path(__file__).parent / "templates"
FALLBACK = "plain"
"""The template for a tokenizer without one."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as tokens. Both lists have an entry for each token."""

    input_ids: list[int]
    loss_mask: list[bool]
    """True where the token is trained, that is, where it is a target of the loss."""

    omitted: tuple[str, ...] = ()
    """What the chat template leaves out: keys of `hub.data.tokens.omissions.KINDS`."""


class TrainedText(NamedTuple):
    """One conversation as text."""

    text: str
    spans: Spans
    """The characters that are trained."""

    omitted: tuple[str, ...]
    """What the chat template leaves out: keys of `hub.data.tokens.omissions.KINDS`."""


class Tokens(Protocol):
    """Token ids and their loss mask, such as `Sample`."""

    @property
    def input_ids(self) -> "npt.NDArray[np.int32]":
        """Token ids, shape (length,)."""

    @property
    def loss_mask(self) -> "npt.NDArray[np.bool_]":
        """Whether each token is trained, shape (length,)."""


def encode(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, loss_on: str = "assistant") -> Encoded:
    """Render a conversation with the tokenizer's chat template, tokenize it, and mask the tokens that are not trained.

    Takes the arguments of `render`, and raises its errors.
    """
    with limits(conversation.where):
        rendered = render(tokenizer, conversation, loss_on)
    ((input_ids, mask),) = tokenize(tokenizer, [rendered.text], [rendered.spans])
    return Encoded(input_ids.tolist(), mask.tolist(), rendered.omitted)


def render(
    tokenizer: "PreTrainedTokenizerBase",
    conversation: Conversation,
    loss_on: str = "assistant",
    max_characters: int | None = None,
) -> TrainedText:
    """Render a conversation with the tokenizer's chat template, and find what is trained. The caller sets `limits`.

    Args:
        tokenizer: must have a chat template.
        conversation: what to render. Its `unmask` and `without_loss` change what is trained.
        loss_on: as `data.loss_on`.
        max_characters: longer renderings are refused. None: any length is taken.

    Raises:
        DataError: the template refuses the conversation, leaves out an answer or a call, or a turn of the assistant can't be
            found in what it renders.
        TooLongError: it has more characters than `max_characters`.
    """
    rendered = find_turns(tokenizer, conversation, max_characters)
    spans = _trained_spans(conversation, rendered, loss_on)
    if loss_on == "all" or rendered.behind_system is not None:
        spans = [without_space(tokenizer, rendered.text, *span) for span in spans]
    return TrainedText(rendered.text, spans, rendered.omitted)


def _trained_spans(conversation: Conversation, rendered: Rendered, loss_on: str) -> list[tuple[int, int]]:
    """The characters that are trained."""
    if loss_on == "all":
        return [(0, len(rendered.text))]
    if rendered.behind_system is not None:
        return [(rendered.behind_system, len(rendered.text))]
    last = max(index for index, message in enumerate(conversation.messages) if message["role"] == "assistant")
    spans = []
    for begin, end, owners in rendered.spans:
        without = conversation.without_loss.intersection(owners)
        if without and len(without) < len(owners):
            raise DataError(
                f"{conversation.where}: a message has loss=false, but the chat template marks it together with another one. "
                "Take the row out, or type data.template=FILE.jinja"
            )
        first = last if loss_on in ("last", "completion") else 0
        if loss_on == "completion" and conversation.completion is not None:
            first = conversation.completion
        if not without and any(owner >= first for owner in owners):
            spans.append((begin, end))
    return spans


def load_template(tokenizer: "PreTrainedTokenizerBase", file: str) -> None:
    """Give the tokenizer a chat template, which is then saved with the trained model, too.

    Args:
        tokenizer: gets the template.
        file: a file with a Jinja template, or one of `TEMPLATES`.

    Raises:
        DataError: the file can't be read, is no Jinja template, or does not end.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        path = TEMPLATES_FOLDER / f"{file}.jinja" if file in TEMPLATES else Path(file).expanduser()
        template = path.read_text(encoding="utf-8-sig").removesuffix("\n")
        if file in TEMPLATES and "bos_token" not in template and _adds_bos(tokenizer):
            template = "{{- bos_token }}" + template
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
        return  # it may refuse this conversation; each row is tried and named


def require_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make sure that there is a chat template, and a sandbox to run it in.

    A base model has none. It gets `plain`, whose turns end with the end-of-text token, which the model has seen. The embeddings
    of other special tokens may never have been trained. `fallback_line` reports it.

    Raises:
        DataError: there is none, and no end-of-text token to make one with.
    """
    check_sandbox()
    if tokenizer.chat_template:
        return
    if tokenizer.eos_token is None:
        raise DataError(
            "The model's tokenizer has no chat template and no end-of-text token, so conversations can't be rendered. "
            "Use the instruct (chat) version of the model, or type data.template=FILE.jinja"
        )
    load_template(tokenizer, FALLBACK)


def fallback_line(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The report to a user whose tokenizer has no chat template."""
    return (
        f"The tokenizer has no chat template (a base model?): data.template={FALLBACK} is taken, which writes User: and "
        f"Assistant: before the turns and {tokenizer.eos_token} behind an answer. It is saved with the model"
    )


def _adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer itself puts a token before every text, which the model then expects."""
    return tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]


def template_report(tokenizer: "PreTrainedTokenizerBase", samples: Iterable[Tokens], loss_on: str = "assistant") -> str:
    """Check on encoded samples that the model learns to end its turns.

    Args:
        tokenizer: the one that encoded them.
        samples: whole ones, not cut.
        loss_on: as `data.loss_on`.

    Returns:
        One sentence on what is trained, with the end-of-turn tokens. Or a warning that the last turn of some samples has no
        such token with loss.
    """
    import numpy as np

    special = {number: text for text, number in special_tokens(tokenizer).items()}
    ends: dict[str, int] = {}
    num_samples = num_ended = 0
    for sample in samples:
        trained = np.flatnonzero(sample.loss_mask)
        num_samples += 1
        last = special.get(int(sample.input_ids[trained[-1]])) if len(trained) else None
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
    what = {
        "last": "the assistant's last turn only, its",
        "completion": "the completion only, its",
        "all": "every token, the",
    }.get(loss_on, "the assistant's turns only, their")
    return f"Loss is on {what} end-of-turn token {names} included." if names else f"Loss is on {what.split(',')[0]}."
