"""Loss is on the assistant's texts and on nothing else, in random conversations under templates of many families."""

import re
from pathlib import Path

import pytest
from data.fuzz import Talk, check, conversation_of, tokenizer_for

from hub.config.data import TEMPLATES
from hub.data.formats.detect import convert
from hub.data.sources.read import Row
from hub.data.tokens import chat_template
from hub.data.tokens.row_forms import RowForms
from hub.data.tokens.template import TEMPLATES_FOLDER, encode
from hub.errors import DataError

ROWS = 24
OWN = {file.stem: file for file in sorted((Path(__file__).parent / "templates").glob("*.jinja"))}
FILES = OWN | {f"hub_{word}": TEMPLATES_FOLDER / f"{word}.jinja" for word in TEMPLATES}


@pytest.mark.parametrize("name", FILES)
def test_each_text_of_the_assistant_has_loss_up_to_its_end_and_no_other_text_has(name):
    tokenizer = tokenizer_for(FILES[name].read_text(encoding="utf-8"))
    wrong, refused, num_trained = [], [], 0
    for number in range(ROWS):
        try:
            found, _ = check(tokenizer, Talk(f"{name}/{number}"))
        except DataError as error:
            refused.append(str(error))
            continue
        num_trained += 1
        wrong += [f"row {number}: {each}" for each in found]
    assert not wrong
    assert num_trained > ROWS / 4
    expected = ("leaves out one of the tool calls", "leaves out the tool calls", "refuses this conversation")
    assert all(any(reason in line for reason in expected) for line in refused)


@pytest.mark.parametrize("name", ["gpt_oss", "qwen3", "apertus", "mistral_v3", "deepseek_r1_distill"])
def test_what_is_known_of_other_rows_changes_nothing(name, monkeypatch):
    text = OWN[name].read_text(encoding="utf-8")
    tokenizer = tokenizer_for(text)
    for number in range(ROWS):
        conversation = conversation_of(Talk(f"again/{number}"))
        try:
            warm = encode(tokenizer, conversation)
        except DataError:
            continue
        with monkeypatch.context() as patch:
            patch.setattr(chat_template.ChatTemplate, "known_edges", lambda self, key: None)
            assert encode(tokenizer, conversation) == warm


@pytest.mark.parametrize("name", ["qwen3", "gpt_oss", "tagged", "hub_chatml", "hub_vicuna"])
def test_a_conversation_of_a_known_form_is_encoded_as_if_it_were_the_first_one(name, monkeypatch):
    tokenizer = tokenizer_for(FILES[name].read_text(encoding="utf-8"))
    found, find = [], RowForms.find

    def counted(self, given, full):
        found.append(find(self, given, full))
        return found[-1]

    for number in range(ROWS):
        talk = Talk(f"form/{number}")
        first, second = conversation_of(talk), conversation_of(talk)
        for message in second.messages:
            message["content"] = re.sub(r"([a-z]+)(\d{3})q", lambda word: word[2] + "é" * len(word[1]), message["content"])
        try:
            with monkeypatch.context() as patch:
                patch.setattr(RowForms, "find", lambda *given: None)
                expected = encode(tokenizer, second)
                encode(tokenizer, first)
        except DataError:
            continue
        with monkeypatch.context() as patch:
            patch.setattr(RowForms, "find", counted)
            assert encode(tokenizer, second) == expected
    assert sum(seen is not None for seen in found) > 5


def test_a_template_that_looks_into_a_text_is_followed_though_the_form_is_known():
    text = (
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content[:20] }}"
        "{{ '!' if 'loud' in message.content }}<|end|>{% endfor %}{{ '<|assistant|>' if add_generation_prompt }}"
    )
    tokenizer = tokenizer_for("{#- eos: <|end|> end: <|end|> -#}" + text)

    def trained(answer):
        messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": answer}]
        encoded = encode(tokenizer, convert(Row({"messages": messages}, "talk.jsonl", 1), "messages"))
        return tokenizer.decode([token for token, flag in zip(encoded.input_ids, encoded.loss_mask, strict=True) if flag])

    rare = chr(0x20000)  # what marks are made of
    for answer in ("Four.", "Five.", f"Six{rare}."):
        assert trained(answer) == f"{answer}<|end|>"
    with pytest.raises(DataError, match="can't be found"):
        trained(rare + chr(0x100000))  # no marks are left
    assert trained("loud") == "loud!<|end|>"
    with pytest.raises(DataError, match="can't be found"):
        trained("Twenty-one characters")
