"""Writes a Modelfile: https://github.com/ollama/ollama/blob/main/docs/modelfile.md."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hub.config.generate import GenerateConfig
from hub.tasks.generate.answer_shape import answer_shape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORTEST = 4096
"""Least tokens of context: what Ollama has where a Modelfile says nothing."""

_STEP = 1024


def modelfile(gguf: str, template: str, parameters: Sequence[tuple[str, str]]) -> str:
    """The text of a Modelfile.

    Args:
        gguf: name of the file, in the same folder.
        template: in Go's language.
        parameters: name and value of each.
    """
    assert '"""' not in template
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{template}"""']
    return "\n".join([*lines, *(f"PARAMETER {name} {value}" for name, value in parameters)]) + "\n"


def read(text: str) -> list[tuple[str, str]]:
    """The commands of a Modelfile as Ollama's parser reads them: a value ends with its line, if its quotes are closed there.

    Characters that are not printed are lost.
    """
    found: list[tuple[str, str]] = []
    name, value = "", None
    for letter in f"{text}\n":
        if value is None:
            name = (name + letter).lstrip()
            if letter in " \t\n" and name.strip():
                first = name.split()
                if first[0] != "PARAMETER" or len(first) == 2:
                    name, value = " ".join(first), ""
        elif letter != "\n":
            value += letter if letter == "\t" or is_printed(letter) else ""
        elif (whole := _unquoted(value.strip())) is not None:
            found.append((name, whole))
            name, value = "", None
        else:
            value += letter
    return found


def is_printed(letter: str) -> bool:
    """Whether Ollama keeps a character of a Modelfile, beside line breaks and tabs: strconv.IsPrint of Go."""
    return letter == " " or unicodedata.category(letter)[0] in "LMNPS"


def _unquoted(value: str) -> str | None:
    """A value without its quotes. None: they are not closed."""
    for mark in ('"""', '"'):
        if value.startswith(mark):
            return value[len(mark) : -len(mark)] if len(value) >= 2 * len(mark) and value.endswith(mark) else None
    return value


def parameters(generate: GenerateConfig, stops: Sequence[str], num_ctx: int) -> list[tuple[str, str]]:
    """The parameters of Ollama for the options of generation."""
    return [
        *(("stop", quoted(stop)) for stop in stops),
        ("temperature", f"{generate.temperature:g}"),
        ("top_p", f"{generate.top_p:g}"),
        ("top_k", str(generate.top_k)),
        ("min_p", f"{generate.min_p:g}"),
        ("repeat_penalty", f"{generate.repetition_penalty:g}"),
        ("repeat_last_n", "-1"),
        ("num_predict", str(generate.max_new_tokens)),
        ("num_ctx", str(num_ctx)),
    ]


def stop_texts(tokenizer: "PreTrainedTokenizerBase", more_ids: Sequence[int], more: Sequence[str]) -> list[str]:
    """The texts that end an answer: as training taught it, and what the model's own settings and the user add."""
    shape = answer_shape(tokenizer)
    tokens = [str(tokenizer.decode([number], skip_special_tokens=False)) for number in sorted(shape.stop_ids | set(more_ids))]
    return [text for text in dict.fromkeys([*tokens, *shape.stop_texts, *more]) if text]


def quoted(text: str) -> str:
    """A value of a Modelfile. It has no escapes, and three quotes around a text with quotes or line breaks."""
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'


def length_of_context(longest: int, most: int | None) -> int:
    """Tokens of context: room for the longest row and its answer, and no more than the model has.

    Args:
        longest: tokens of the longest row with its answer. 0: it is not known.
        most: of the model. None: it is not known.
    """
    wanted = max(SHORTEST, -(-longest // _STEP) * _STEP)
    return wanted if most is None else min(wanted, most)


def name_for_ollama(name: str) -> str:
    """A name that Ollama takes for a model."""
    return re.sub(r"[^a-z0-9._-]+", "-", Path(name).name.lower()).strip("-._") or "model"
