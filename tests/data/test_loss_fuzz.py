"""Loss is on the assistant's texts and on nothing else, in random conversations under templates of many families."""

from pathlib import Path

import pytest
from data.fuzz import Talk, check, conversation_of, tokenizer_for

from hub.config.data import TEMPLATES
from hub.data.tokens import chat_template
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
