"""Compares what a GGUF file says on texts with the tokenizer that the model was trained with. Each difference is one line."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hub.tasks.export.gguf.reader import GgufReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = (
    "Hello there, how are you?  Two  spaces, a\ttab\nand a line.\n\n\nThree more.",
    "It's 12345.678 + 90 = 12435.678; don't 'quote' \"this\" (or that)...!?",
    "Grüße, naïve café — “quotes”, 東京で会いましょう, Привет мир, مرحبا, 안녕하세요, 😀👩‍👩‍👧",
    "def f(x):\n    return x ** 2  # comment\n\tif (a != b && c >= d) { x->y[0]++; }\r\n",
    " leading space", "trailing space ", "", "a", "\n", "   ", "ＦＵＬＬ－ｗｉｄｔｈ ﬁ ½ ² Å",
)  # fmt: skip
"""Texts in which tokenizers differ: spaces, digits, contractions, scripts, code."""


def differences(
    reader: GgufReader,
    tokenizer: "PreTrainedTokenizerBase",
    chats: Iterable[str] = (),
    texts: Iterable[str] = PROBES,
    ends: Sequence[int] = (),
) -> list[str]:
    """All that a GGUF file says otherwise than the tokenizer. Empty: nothing.

    Args:
        reader: of the file.
        tokenizer: of the model in transformers.
        chats: conversations as the template renders them, with the begin token if it writes one.
        texts: plain texts.
        ends: token ids that end an answer in training.
    """
    found = [*_template(reader, tokenizer), *_vocabulary(reader, tokenizer)]
    if reader.is_llama_cpp:  # another program's tokens say nothing on those of llama.cpp
        found += [*_texts(reader, tokenizer, texts), *_chats(reader, tokenizer, chats)]
    elif reader.facts.adds_bos and not all(chat.startswith(tokenizer.bos_token or "") for chat in chats):
        found.append(_begin_token(reader, tokenizer))
    return [*found, *_ends(reader, tokenizer, ends)]


def notes(reader: GgufReader, tokenizer: "PreTrainedTokenizerBase", chats: Iterable[str]) -> list[str]:
    """What is right with llama.cpp, and may go wrong with other programs that read its files."""
    begin = tokenizer.bos_token
    if reader.facts.adds_bos and begin and any(chat.startswith(begin) for chat in chats):
        return [
            f"The chat template writes {begin}, and the file asks for it as well. llama.cpp's chat and server leave one out; "
            "a program that does not gives the model two"
        ]
    return []


def _template(reader: GgufReader, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    expected = tokenizer.chat_template
    if isinstance(expected, dict):
        expected = expected.get("default")
    stored = reader.facts.template
    if expected == stored:
        return []
    if stored is None or expected is None:
        return [f"The chat template is missing in {'the file' if stored is None else 'the tokenizer'}, and the other has one"]
    place = next((i for i, (a, b) in enumerate(zip(expected, stored, strict=False)) if a != b), min(len(expected), len(stored)))
    return [
        f"The chat template differs from character {place} on: the tokenizer has {expected[place : place + 40]!r}, "
        f"the file {stored[place : place + 40]!r}"
    ]


def _vocabulary(reader: GgufReader, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    least = max(tokenizer.get_vocab().values()) + 1
    if reader.facts.num_tokens >= least:
        return []
    return [f"The file has {reader.facts.num_tokens} tokens, and the tokenizer {least}: the last ones are lost"]


def _texts(reader: GgufReader, tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str]) -> list[str]:
    for text in texts:
        expected = tokenizer(text, add_special_tokens=False).input_ids
        if (stored := reader.tokenize(text)) != expected:
            return [f"{_short(text)} is other tokens: {_first_difference(tokenizer, expected, stored)}"]
    return []


def _chats(reader: GgufReader, tokenizer: "PreTrainedTokenizerBase", chats: Iterable[str]) -> list[str]:
    """A chat as llama.cpp's server reads it (common/chat.cpp): begin and end tokens are added as the file asks, none twice."""
    begin, end = tokenizer.bos_token, tokenizer.eos_token
    for chat in chats:
        expected = tokenizer(chat, add_special_tokens=False).input_ids
        text = chat
        if reader.facts.adds_bos and begin:
            text = text.removeprefix(begin)
        if reader.facts.adds_eos and end:
            text = text.removesuffix(end)
        stored = reader.tokenize(text, add_special=True)
        if stored == expected:
            continue
        if stored[1:] == expected and stored[0] == reader.facts.bos:
            return [_begin_token(reader, tokenizer)]
        if stored[:-1] == expected:
            return [f"The file puts the end token {stored[-1]} behind a prompt (add_eos_token=true), and training did not"]
        return [f"The chat {_short(chat)} is other tokens: {_first_difference(tokenizer, expected, stored)}"]
    return []


def _begin_token(reader: GgufReader, tokenizer: "PreTrainedTokenizerBase") -> str:
    token = reader.facts.bos
    return (
        f"The file puts the begin token {token} ({tokenizer.decode([token])!r}) before a chat (add_bos_token=true), "
        "and training did not"
    )


def _ends(reader: GgufReader, tokenizer: "PreTrainedTokenizerBase", ends: Sequence[int]) -> list[str]:
    problems = []
    if reader.facts.eos != -1 and tokenizer.eos_token_id is not None and reader.facts.eos != tokenizer.eos_token_id:
        problems.append(
            f"The end token is {reader.facts.eos} ({tokenizer.decode([reader.facts.eos])!r}) in the file, "
            f"and {tokenizer.eos_token_id} ({tokenizer.eos_token!r}) in the tokenizer"
        )
    deaf = [token for token in ends if token not in reader.facts.ends]
    if deaf:
        words = ", ".join(f"{token} ({tokenizer.decode([token])!r})" for token in deaf)
        problems.append(f"Answers end with token {words}, at which {reader.by} does not stop")
    return problems


def _first_difference(tokenizer: "PreTrainedTokenizerBase", expected: list[int], stored: list[int]) -> str:
    place = next((i for i, (a, b) in enumerate(zip(expected, stored, strict=False)) if a != b), min(len(expected), len(stored)))

    def shown(ids: list[int]) -> str:
        near = ids[place : place + 4]
        return f"{near} {tokenizer.decode(near)!r}" if near else "nothing"

    return f"from token {place} on, the tokenizer gives {shown(expected)}, the file {shown(stored)}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
