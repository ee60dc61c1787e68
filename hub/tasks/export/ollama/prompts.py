"""The template of a model for Ollama, with what was found when its prompts were compared."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hub.data.tokens.template_date import writes_date
from hub.errors import DataError
from hub.tasks.export.ollama.compare import EDGE, differences, references, samples
from hub.tasks.export.ollama.derive import derive
from hub.tasks.export.ollama.probe import Found, UnknownFormError, probe
from hub.tasks.export.ollama.tree import AmbiguousError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPLETION = "{{ .Prompt }}"
"""For a model without a chat template: it completes texts."""


@dataclass
class Prompts:
    """A template in Go's language, and how its prompts compare with those of training."""

    template: str
    failures: list[str] = field(default_factory=list)
    """A line for each sample chat whose prompt is not that of training."""

    notes: list[str] = field(default_factory=list)
    """Lines for the user on what is left out."""

    num_compared: int = 0
    """Sample chats whose prompts have the same token ids."""


def find_prompts(tokenizer: "PreTrainedTokenizerBase", bos: str) -> Prompts:
    """Write the template for Ollama, with tools if their prompts are those of training.

    Args:
        tokenizer: of the model.
        bos: what Ollama puts before each prompt by itself. Empty: nothing.
    """
    if not tokenizer.chat_template:
        return Prompts(COMPLETION, notes=["the model has no chat template, so it completes texts"])
    with_tools = _attempt(tokenizer, bos, True)
    if not with_tools.failures:
        return with_tools
    without = _attempt(tokenizer, bos, False)
    if without.template:
        without.notes.insert(0, f"without tools: {with_tools.failures[0]}")
    return without


def _attempt(tokenizer: "PreTrainedTokenizerBase", bos: str, with_tools: bool) -> Prompts:
    try:
        found = probe(tokenizer, with_tools)
        template = derive(found, bos)
    except UnknownFormError as error:
        return Prompts("", [f"the chat template {error}"])
    except AmbiguousError as error:
        return Prompts("", [f"the chat template writes {error} at places that templates of Ollama can't tell apart"])
    except DataError as error:
        return Prompts("", [str(error)])
    known = references(tokenizer)
    wrong = list(differences(template, tokenizer, bos, known))
    wrong = [one for one in wrong if with_tools or one.sample.tools is None]
    compared = [one for one in samples() if one.name in known and (with_tools or one.tools is None)]
    prompts = Prompts(template, [one.line for one in wrong if one.sample.about != EDGE])
    prompts.num_compared = len(compared) - len(wrong)
    prompts.notes = [*_notes(tokenizer, found), *(one.line for one in wrong if one.sample.about == EDGE)]
    return prompts


def _notes(tokenizer: "PreTrainedTokenizerBase", found: Found) -> Iterator[str]:
    if found.refuses_system:
        yield "the chat template takes no system prompt: Ollama writes it before the first question, which no training row has"
    if writes_date(tokenizer):
        yield "the chat template writes the date: in the Modelfile it is that of the run"
