"""A tokenizer's chat template: renders conversations in the sandbox of transformers, and has what is known of the template."""

import re
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, cast

from hub.data.json_values import JsonObject
from hub.data.tokens.forms import Form, reads_null, reads_parts
from hub.data.tokens.marks import CLOSE_THOUGHTS, OPEN_THOUGHTS
from hub.data.tokens.row_forms import RowForms
from hub.data.tokens.template_date import dated_template
from hub.data.tokens.template_limits import RAISED
from hub.errors import DataError

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_LITERAL = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
_TAG_LIKE = re.compile(r"(?=.*[<\[|/])\S{3,64}")
"""What a template may look for in a content, cut there or strip: `</think>`, `/no_think`, `[TOOL_CALLS]`."""

_MAX_CACHED = 20_000
_NEVER = 1_000_000_000
_PLAIN = frozenset((str, int, float, bool, type(None)))
_NUM_COMPARED = 16
"""Renderings of the compiled template that are compared with those of transformers, before it is relied on."""

RenderWithSpans = Callable[..., tuple[list[str], list[list[tuple[int, int]]]]]
"""What `render_jinja_template` of transformers is: it declares a text, but returns texts and the spans of their turns."""


class RefusedError(DataError):
    """A template refuses a conversation."""


class Compiled(NamedTuple):
    """A template of Jinja, and the names that it sees in each conversation."""

    template: "Template"
    known: dict[str, object]


Edges = tuple[int, int]
"""How many characters before and behind the texts of a turn belong to it: see `hub.data.tokens.turns`."""


class ChatTemplate:
    """One template of one tokenizer."""

    def __init__(self, text: str) -> None:
        """Args:
        text: the Jinja source, with the date of the run.
        """
        self.text = text
        self.is_tagged = bool(_GENERATION_TAG.search(text))
        """Whether it has `{% generation %}` tags around what is trained."""

        self.reads_parts, self.reads_null = reads_parts(text), reads_null(text)
        self.form: Form | None = None
        """The form in which it takes messages, as small conversations show. None: not tried yet."""

        literals = {(single or double).replace("\\n", "\n").strip() for single, double in _LITERAL.findall(text)}
        separators = {literal for literal in literals if _TAG_LIKE.fullmatch(literal)} | {OPEN_THOUGHTS, CLOSE_THOUGHTS}
        self.separators = re.compile("|".join(map(re.escape, sorted(separators, key=len, reverse=True))))
        self.row_forms: defaultdict[Form, RowForms] = defaultdict(RowForms)
        """What it renders of rows of one form, if it is given their messages in the form of the key."""

        self._edges: dict[object, Edges] = {}
        self._compiled: Compiled | None = None
        self._num_compared = 0

    def known_edges(self, key: object) -> Edges | None:
        """The edges of a turn that was seen before, in the same surroundings."""
        return self._edges.get(key)

    def remember(self, key: object, edges: Edges) -> None:
        """Store the edges of a turn."""
        if len(self._edges) >= _MAX_CACHED:
            self._edges.clear()
        self._edges[key] = edges

    def render(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        messages: list[JsonObject],
        tools: list[JsonObject] | None,
        where: str,
        prompt: bool = False,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Render messages.

        Args:
            tokenizer: the one of this template.
            messages: checked ones, in a form of `hub.data.tokens.forms`.
            tools: the tools of the row.
            where: the row, for messages.
            prompt: whether the generation prompt follows.
            variables: what the template sees besides, such as `enable_thinking`.

        Raises:
            RefusedError: with the row, and the template's own message.
            DataError: the template is no valid Jinja.
        """
        from jinja2 import TemplateError, TemplateSyntaxError

        quick = None if variables else self._render_compiled(tokenizer, messages, tools, prompt)
        if quick is not None and self._num_compared >= _NUM_COMPARED:
            return quick
        try:
            text = self._render_plain(tokenizer, messages, tools, prompt, variables or {})
        except TemplateSyntaxError as error:
            raise DataError(f"the chat template can't be read (its line {error.lineno}: {error.message})") from None
        except (TemplateError, *RAISED) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RefusedError(f"{where}: the chat template refuses this conversation. It says: {reason}") from None
        if not variables:
            self._num_compared = self._num_compared + 1 if quick == text else -_NEVER
        return text

    def _render_plain(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        messages: list[JsonObject],
        tools: list[JsonObject] | None,
        prompt: bool,
        variables: Mapping[str, object],
    ) -> str:
        """Render as transformers does."""
        if any(message["content"] is None for message in messages):  # apply_chat_template would drop the key
            return self._render_by_function(tokenizer, messages, tools, add_generation_prompt=prompt, **variables)[0][0]
        # transformers declares the fields of messages as texts, but passes them to the template as they are.
        render = cast(Callable[..., str], tokenizer.apply_chat_template)
        more = {"tools": tools, "chat_template": self.text, "add_generation_prompt": prompt, **variables}
        return str(render(messages, tokenize=False, **more))

    def _render_by_function(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        messages: list[JsonObject],
        tools: list[JsonObject] | None,
        **choices: object,
    ) -> tuple[list[str], list[list[tuple[int, int]]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        return cast(RenderWithSpans, render_jinja_template)(
            conversations=[messages], tools=tools, chat_template=self.text, **choices, **tokenizer.special_tokens_map
        )

    def _render_compiled(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        messages: list[JsonObject],
        tools: list[JsonObject] | None,
        prompt: bool,
    ) -> str | None:
        """Render with the template that transformers has compiled, without what it does around each rendering.

        That copies all that the template sees, which takes several times as long as a short rendering. Here the messages must
        be plain JSON, so that the template gets no object with methods of its own, and the sandbox forbids changing them.

        Returns:
            None: the template refuses the messages, or this way is not open.
        """
        from jinja2 import TemplateError

        if self._num_compared < 0 or not (_is_plain(messages) and _is_plain(tools)):
            return None
        try:
            if self._compiled is None:
                from transformers.utils.chat_template_utils import _compile_jinja_template

                template = _compile_jinja_template(self.text)
                known = {**template.globals, **tokenizer.special_tokens_map, "documents": None}
                self._compiled = Compiled(template, known)
            template, known = self._compiled
            seen = known | {"messages": messages, "tools": tools, "add_generation_prompt": prompt}
            return "".join(template.root_render_func(template.new_context(seen, shared=True)))
        except ImportError:
            self._num_compared = -_NEVER
            return None
        except (TemplateError, *RAISED):
            return None

    def tagged_spans(
        self, tokenizer: "PreTrainedTokenizerBase", messages: list[JsonObject], tools: list[JsonObject] | None
    ) -> list[tuple[int, int]]:
        """The characters within `{% generation %}` tags of messages that can be rendered.

        Transformers' own mask of tokens is not used: where a byte-level tokenizer leaves spaces out of its offsets, or
        a character takes several tokens, it loses turns or runs on into the next message.
        """
        return self._render_by_function(tokenizer, messages, tools, return_assistant_tokens_mask=True)[1][0]


def _is_plain(value: object) -> bool:
    """Whether a value is made of JSON's own types, and of no subclass of them."""
    kind = type(value)
    if kind is dict:
        return all(map(_is_plain, value.values()))  # type: ignore[attr-defined]
    if kind is list:
        return all(map(_is_plain, value))  # type: ignore[call-overload]
    return kind in _PLAIN


_templates: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, dict[object, ChatTemplate]]" = weakref.WeakKeyDictionary()


def chat_template(tokenizer: "PreTrainedTokenizerBase", tools: list[JsonObject] | None) -> ChatTemplate:
    """The template that a tokenizer takes for a conversation. Some have another one for conversations with tools.

    Args:
        tokenizer: must have a template.
        tools: the tools of the conversation.
    """
    text = dated_template(tokenizer, tools)
    key = text, tokenizer.bos_token, tokenizer.eos_token, len(tokenizer)
    known = _templates.setdefault(tokenizer, {})
    if key not in known:
        known[key] = ChatTemplate(text)
    return known[key]
