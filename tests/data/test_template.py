"""The trained tokens are the assistant's turns with their end-of-turn token, in templates of many kinds."""

import json
import random
import re
from pathlib import Path

import pytest
from data.fuzz import tokenizer_for
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from hub.config.data import TEMPLATES
from hub.data.formats.detect import convert
from hub.data.sources.read import Row
from hub.data.tokens import template_date
from hub.data.tokens.omissions import omission_lines
from hub.data.tokens.spelling import encode_fast, spelling
from hub.data.tokens.template import encode, fallback_line, load_template, render, require_template, template_report
from hub.data.tokens.tokenize import tokenize
from hub.errors import DataError

SPECIAL = ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<start_of_turn>", "<end_of_turn>"]
SPECIAL += ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|endoftext|>"]
SPECIAL += ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|user|>", "<|assistant|>"]
LINES = [
    "The cat sat on the mat.",
    "What is 2 + 2? It is 4, surely.",
    "user assistant model system tool",
    "Grüße, 世界",
]

CHATML = """
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\n<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA3 = """
{{- bos_token }}{% for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

# No generation prompt; the tools stand before the last user message only, so that earlier turns move.
MISTRAL = """
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}{% for message in messages %}
{%- if message.role == 'user' %}
{%- if tools and message == users[-1] %}{{ '[TOOLS]' + (tools | tojson) + '[/TOOLS]' }}{% endif %}
{{- '[INST] ' + message.content + ' [/INST]' }}
{%- elif message.tool_calls %}{{ '[TOOL_CALLS] ' + (message.tool_calls | tojson) + eos_token }}
{%- elif message.role == 'tool' %}{{ '[RESULT]' + message.content + '[/RESULT]' }}
{%- else %}{{ ' ' + message.content | trim + eos_token }}{% endif %}
{%- endfor %}"""

GEMMA = """
{{- bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{%- set role = 'model' if message.role == 'assistant' else message.role %}
{{- '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

# Thoughts of turns before the last question are left out; the last turn gets a block of thoughts, be it empty.
QWEN3 = """
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' %}
{%- set thoughts, content = '', message.content %}
{%- if '</think>' in content %}
{%- set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{%- if loop.index0 > ns.last and (loop.last or thoughts) %}{{ '<think>\n' + thoughts + '\n</think>\n\n' }}{% endif %}
{{- content }}
{%- for call in message.tool_calls or [] %}
{{- '\n<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}
{%- endfor %}
{%- else %}{{ message.content }}{% endif %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

GPT_OSS = """
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- if message.tool_calls %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start|>assistant to=' + call.name + '<|channel|>commentary<|message|>' + call.arguments | tojson + '<|call|>' }}
{%- else %}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}
{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}
{%- endif %}
{%- else %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

# A second special token closes the conversation, in place of the generation prompt.
PHI3 = """
{%- for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"""

# The generation prompt opens a block of thoughts that no finished turn has.
R1 = """
{{- bos_token }}{% for message in messages %}
{%- if message.role == 'assistant' %}{{ '<|assistant|>' + message.content.split('</think>')[-1] + eos_token }}
{%- else %}{{ '<|user|>' + message.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"""

TAGGED = """
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ message.content + '<|im_end|>\n' }}{% endgeneration %}
{%- else %}{{ message.content + '<|im_end|>\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

NO_END = """
{%- for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""


def byte_level(trim_offsets):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        LINES,
        trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def sentencepiece_like():
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="never")
    alphabet = [chr(number) for number in range(32, 127)] + list("\nüß世界🙂")
    core.train_from_iterator(
        LINES,
        trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", *SPECIAL], initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


class Letters(PreTrainedTokenizer):
    """A tokenizer in Python, without offsets: a token for each character."""

    @property
    def vocab_size(self):
        return 70_000

    def get_vocab(self):
        return {chr(number): number for number in range(128)} | self.added_tokens_encoder

    def _tokenize(self, text, **options):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token)

    def _convert_id_to_token(self, number):
        return chr(number)

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)


TOKENIZERS = {"trimmed offsets": byte_level(True), "full offsets": byte_level(False), "metaspace": sentencepiece_like()}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


def trained(tokenizer, template, messages, tools=None, unmask=False, loss_on="assistant"):
    """The text of each unbroken stretch of trained tokens."""
    tokenizer.chat_template = template
    require_template(tokenizer)
    conversation = convert(Row({"messages": messages, "tools": tools, "unmask": unmask}, "chats.jsonl", 3), "messages")
    encoded = encode(tokenizer, conversation, loss_on)
    whole = tokenizer.apply_chat_template(conversation.messages, tools=tools, tokenize=False)
    assert encoded.input_ids == tokenizer(whole, add_special_tokens=False)["input_ids"]
    stretches, before = [], False
    for number, flag in zip(encoded.input_ids, encoded.loss_mask, strict=True):
        if flag:
            stretches = [*stretches[:-1], [*stretches[-1], number]] if before else [*stretches, [number]]
        before = flag
    return [tokenizer.decode(ids) for ids in stretches]


def chat(*contents, system=None):
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def calling(content, number=2):
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": "a cat", "y": number}}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


ADD = '{"name": "add", "arguments": {"x": "a cat", "y": 2}}'
THOUGHT = "<think>\nSurely 4.\n</think>\n\n"

# Template, end of a last turn, what opens a last turn, end and opening of an earlier turn.
MANNERS = {
    "chatml": (CHATML, "", "<|im_end|>", "", "<|im_end|>"),
    "llama3": (LLAMA3, "", "<|eot_id|>", "", "<|eot_id|>"),
    "mistral": (MISTRAL, " ", "</s>", " ", "</s>"),
    "gemma": (GEMMA, "", "<end_of_turn>", "", "<end_of_turn>"),
    "qwen3": (QWEN3, "<think>\n\n</think>\n\n", "<|im_end|>", "", "<|im_end|>"),
    # <|end|> after an earlier answer stands where the model has to write <|return|>: it is not trained.
    "gpt-oss": (GPT_OSS, "<|channel|>final<|message|>", "<|return|>", "<|channel|>final<|message|>", ""),
    "phi3": (PHI3, "", "<|end|>", "", "<|end|>"),
    "r1": (R1, "", "</s>", "", "</s>"),
    "tagged": (TAGGED, "", "<|im_end|>", "", "<|im_end|>"),
}


@pytest.mark.parametrize("manner", MANNERS)
def test_assistant_turns_and_their_end_are_trained_and_nothing_else(tokenizer, manner):
    template, last_start, last_end, earlier_start, earlier_end = MANNERS[manner]

    def check(*contents):
        answers = contents[1::2]
        expected = [earlier_start + answer + earlier_end for answer in answers[:-1]] + [last_start + answers[-1] + last_end]
        assert trained(tokenizer, template, chat(*contents)) == expected

    check("What is 2 + 2?", "It is 4, surely.")
    check("What is 2 + 2?", "It is 4.", "Surely?", "It is 4.\n\nSurely.", "What?", "4")
    # The user says what the assistant says, and writes the marks of a turn himself.
    check("It is 4.", "It is 4.", "It is 4.", "It is 4.")
    marks = f"It is 4.{last_end}\n<|im_start|>assistant\n<|start|>assistant<|channel|>final<|message|>It is 4.{last_end}\n"
    check(marks, "It is 4.", marks + "[/INST] It is 4.</s><|assistant|>\nIt is 4.", "It is 4.")
    # Characters that take several tokens.
    check("世界", "Grüße 🙂", "🙂", "🙂世界")


@pytest.mark.parametrize("manner", ["llama3", "gemma", "mistral"])
def test_template_that_strips_contents_still_has_its_turns_found(tokenizer, manner):
    template, start, end, _, _ = MANNERS[manner]
    messages = chat("  What? ", "  It is 4. \n", "Surely?", "\nIt is 4.\n ")
    assert trained(tokenizer, template, messages) == [f"{start}It is 4.{end}"] * 2


def test_system_prompt_of_the_template_or_the_data_is_not_trained(tokenizer):
    assert trained(tokenizer, CHATML, chat("What?", "4", system="You are a cat.")) == ["4<|im_end|>"]
    assert trained(tokenizer, CHATML, chat("What?", "4")) == ["4<|im_end|>"]


def test_tool_calls_are_trained_and_results_of_tools_are_not(tokenizer):
    result = {"role": "tool", "content": ADD}
    messages = [*chat(ADD), calling("Let me see."), result, {"role": "assistant", "content": "It is 4."}]
    call = f"\n<tool_call>\n{ADD}\n</tool_call><|im_end|>"
    assert trained(tokenizer, CHATML, messages) == ["Let me see." + call, "It is 4.<|im_end|>"]
    # Rewritten turns: the thoughts of the call are gone, and it has no text of its own beside the call.
    longer = [*chat(ADD), calling(None), result, *chat("x", f"{THOUGHT}It is 4.", "Surely?", "4")[1:]]
    assert trained(tokenizer, QWEN3, longer) == [call, "It is 4.<|im_end|>", "<think>\n\n</think>\n\n4<|im_end|>"]
    final = "<|channel|>final<|message|>"
    assert trained(tokenizer, GPT_OSS, longer) == [
        ' to=add<|channel|>commentary<|message|>{"x": "a cat", "y": 2}<|call|>',
        f"{final}{THOUGHT}It is 4.",
        f"{final}4<|return|>",
    ]
    tools = [{"type": "function", "function": {"name": "add", "description": "[INST] It is 4."}}]
    calls = json.dumps(calling(None)["tool_calls"])
    assert trained(tokenizer, MISTRAL, [*chat(ADD), calling(None), result, *chat("x", "4.", "What?", "4")[1:]], tools) == [
        f"[TOOL_CALLS] {calls}</s>",
        " 4.</s>",
        " 4</s>",
    ]


def test_thoughts_are_trained_where_the_template_keeps_them(tokenizer):
    messages = chat("What?", f"{THOUGHT}It is 4.", "Surely?", f"{THOUGHT}4")
    assert trained(tokenizer, QWEN3, messages) == ["It is 4.<|im_end|>", f"{THOUGHT}4<|im_end|>"]
    assert trained(tokenizer, R1, messages) == ["\n\nIt is 4.</s>", "\n\n4</s>"]


def test_token_that_reaches_over_the_edge_of_a_turn_is_trained(tokenizer):
    # The prompt ends with the space that the first token of the answer begins with.
    assert trained(tokenizer, NO_END, chat("What?", "It is 4.")) == [" It is 4.\n"]
    tagged = TAGGED.replace("<|im_end|>\n' }}{% endgen", "' }}{% endgen")
    assert trained(tokenizer, tagged, chat("What?", "It is 🙂 ", "Surely?", "4 ")) == ["It is 🙂 ", "4 "]


def test_tokenizer_without_offsets_is_trained_on_the_same_text():
    tokenizer = Letters(bos_token="<s>", eos_token="</s>", additional_special_tokens=SPECIAL[2:])
    for template, last_start, last_end, earlier_start, earlier_end in MANNERS.values():
        expected = [f"{earlier_start}It is 4.{earlier_end}", f"{last_start}It is 4.{last_end}"]
        assert trained(tokenizer, template, chat("It is 4.", "It is 4.", "It is 4.", "It is 4.")) == expected


def test_refusal_of_the_template_names_the_row_and_says_what_it_said(tokenizer):
    with pytest.raises(DataError, match=r"chats\.jsonl:3: .*System role not supported"):
        trained(tokenizer, GEMMA, chat("What?", "4", system="You are a cat."))
    with pytest.raises(DataError, match=r"chats\.jsonl:3: .*Roles must alternate"):
        trained(tokenizer, GEMMA, [*chat("What?", "4"), {"role": "assistant", "content": "5"}])
    with pytest.raises(DataError, match=r"chats\.jsonl:3: .*surrogate"):
        trained(tokenizer, CHATML, chat("What?", "\ud83d"))


def test_turn_that_the_template_does_not_show_is_refused(tokenizer):
    silent = "{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}{% endif %}{% endfor %}"
    with pytest.raises(DataError, match=r"chats\.jsonl:3: .* leaves out the content of message 2"):
        trained(tokenizer, silent, chat("What?", "4"))
    twice = "{% for message in messages %}{{ message.content }}{% endfor %}{{ messages[1].content }}"
    with pytest.raises(DataError, match="can't be found"):
        trained(tokenizer, twice, chat("What?", "4", "Surely?", "5"))
    with pytest.raises(DataError, match=r"leaves out the content of message 2"):
        trained(tokenizer, CHATML.replace("+ message.content }}", "}}"), chat("What?", "4"))
    with pytest.raises(DataError, match=r"leaves out the tool calls of message 2"):
        trained(tokenizer, LLAMA3, [*chat("What?"), calling("Let me see.")])


def test_text_beside_tool_calls_that_the_template_leaves_out_is_counted(tokenizer):
    tokenizer.chat_template = MISTRAL
    rows = [Row({"messages": [*chat("What?"), calling(text)]}, "chats.jsonl", 1) for text in ("Let me see.", None)]
    assert [encode(tokenizer, convert(row, "messages")).omitted for row in rows] == [("texts",), ()]


def test_report_names_the_end_of_turn_token_and_warns_when_there_is_none(tokenizer):
    def report(template, answer="It is 4."):
        tokenizer.chat_template = template
        rows = [Row({"messages": chat("What?", "4", "Surely?", answer)}, "chats.jsonl", line) for line in (1, 2)]
        return template_report(tokenizer, [encode(tokenizer, convert(row, "messages")) for row in rows])

    assert "<|eot_id|> included" in report(LLAMA3)
    assert "<|return|> included" in report(GPT_OSS)
    assert "<|end|> included" in report(PHI3)
    assert report(NO_END).startswith("Warning: in 2 of 2 samples")
    # An unknown character is no end of a turn, although its token is special.
    assert report(NO_END.replace("\\n", ""), "4 ☃").startswith("Warning")


def test_template_comes_from_a_file_and_a_base_model_gets_one_that_ends_with_its_end_of_text(tmp_path, tokenizer):
    assert trained(tokenizer, None, chat("What?", "It is 4.", "Surely?", "4")) == [" It is 4.</s>", " 4</s>"]
    assert "User: and Assistant: before the turns and </s> behind an answer" in fallback_line(tokenizer)
    tokenizer.chat_template, end, tokenizer.eos_token = None, tokenizer.eos_token, None
    with pytest.raises(DataError, match=r"no chat template and no end-of-text token.*data\.template=FILE\.jinja"):
        require_template(tokenizer)
    tokenizer.eos_token = end
    file = tmp_path / "chat.jinja"
    file.write_text(GEMMA)
    load_template(tokenizer, str(file))
    require_template(tokenizer)
    assert tokenizer.chat_template == GEMMA
    file.write_text("{% for message in messages %}\n{{ message.content }")
    with pytest.raises(DataError, match=r"chat\.jinja: line 2"):
        load_template(tokenizer, str(file))
    file.write_text(" ")
    with pytest.raises(DataError, match="empty"):
        load_template(tokenizer, str(file))


@pytest.mark.parametrize(
    ("loss_on", "expected"),
    [("assistant", ["One<|im_end|>", "Two<|im_end|>"]), ("last", ["Two<|im_end|>"]), ("completion", ["Two<|im_end|>"])],
)
@pytest.mark.parametrize("template", [CHATML, TAGGED])
def test_what_is_trained_of_a_conversation_can_be_said(tokenizer, template, loss_on, expected):
    messages = chat("What?", "One", "Surely?", "Two", system="Be kind.")
    assert trained(tokenizer, template, messages, loss_on=loss_on) == expected
    # What follows the last answer is not trained in its place.
    assert trained(tokenizer, template, [*messages, *chat("Why?")], loss_on=loss_on) == expected


def test_everything_or_everything_behind_the_system_message_can_be_trained(tokenizer):
    messages = chat("What?", "One", system="Be kind.")
    (whole,) = trained(tokenizer, CHATML, messages, loss_on="all")
    assert whole.startswith("<|im_start|>system")
    assert trained(tokenizer, CHATML, messages, unmask=True) == ["What?<|im_end|>\n<|im_start|>assistant\nOne<|im_end|>"]
    # A system message that the template adds by itself is none of the row's.
    assert trained(tokenizer, CHATML, chat("What?", "One"), unmask=True)[0].startswith("What?")
    assert trained(tokenizer, CHATML, messages, unmask=True, loss_on="all") == [whole]


@pytest.mark.parametrize("manner", ["chatml", "llama3", "gemma", "qwen3", "tagged"])
def test_a_message_can_be_without_loss(tokenizer, manner):
    template, last_start, last_end, earlier_start, earlier_end = MANNERS[manner]
    messages = chat("What?", "One", "Surely?", "Two")
    messages[1]["loss"] = False
    assert trained(tokenizer, template, messages) == [f"{last_start}Two{last_end}"]
    messages[1], messages[3] = {"role": "assistant", "content": "One", "weight": 1}, messages[3] | {"weight": 0}
    assert trained(tokenizer, template, messages, loss_on="last") == []
    assert trained(tokenizer, template, messages) == [f"{earlier_start}One{earlier_end}"]


def test_the_completion_of_a_row_is_told_from_the_answers_in_its_prompt(tokenizer):
    tokenizer.chat_template = CHATML
    turns = chat("What?", "One", "Surely?", "Two", "Why?", "Three")
    row = Row({"prompt": turns[:3], "completion": turns[3:]}, "chats.jsonl", 1)
    encoded = encode(tokenizer, convert(row, "prompt_completion"), "completion")
    text = tokenizer.decode([number for number, flag in zip(encoded.input_ids, encoded.loss_mask, strict=True) if flag])
    assert text == "Two<|im_end|>Three<|im_end|>"


@pytest.mark.parametrize("word", TEMPLATES)
def test_every_template_of_the_hub_has_its_turns_found_in_any_tokenizer(tokenizer, word):
    load_template(tokenizer, word)
    found = trained(tokenizer, tokenizer.chat_template, chat("What?", "It is 4.", "Surely?", "4", system="Be kind."))
    assert [text.split("<")[0].strip() for text in found] == ["It is 4.", "4"]
    # These tokenizers put nothing before a text by themselves.
    begins = tokenizer.apply_chat_template(chat("What?", "4"), tokenize=False).startswith("<s>")
    assert begins == (word in ("gemma", "llama3", "mistral"))
    assert all(text.rstrip().endswith(">") for text in found)


def test_a_template_of_the_hub_begins_with_the_token_that_the_tokenizer_puts_before_every_text():
    core = byte_level(False).backend_tokenizer
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    for word in TEMPLATES:
        load_template(tokenizer, word)
        text = tokenizer.apply_chat_template(chat("What?", "4"), tokenize=False)
        assert text.startswith("<s>")
        assert text.count("<s>") == 1


def read_template(name):
    return (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


PYTHON = """
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content | string }}
{%- for call in message.tool_calls or [] if message.content is none or IS_TOLERANT %}
{{- '<tool_call>' + call.function | tojson + '</tool_call>' }}
{%- endfor %}
{{- messages[0].text }}{{ '<|im_end|>\n' }}
{%- endfor %}"""
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds."}}]


def reasoning(content):
    return {"role": "assistant", "content": content, "thinking": "Surely 4."}


def placed(text, messages, tools=None):
    """What is rendered, with what is trained in brackets."""
    tokenizer = tokenizer_for(text)
    conversation = convert(Row({"messages": messages, "tools": tools}, "chats.jsonl", 3), "messages")
    rendered = render(tokenizer, conversation)
    assert rendered == render(tokenizer, conversation), "what is known of the row changes nothing"
    parts, position = [], 0
    for begin, end in rendered.spans:
        parts += [rendered.text[position:begin], "⟦", rendered.text[begin:end], "⟧"]
        position = end
    return "".join(parts) + rendered.text[position:]


@pytest.mark.parametrize(
    ("name", "messages", "tools", "expected"),
    [
        ("deepseek_r1", chat("What?", f"{THOUGHT}4"), None, {"thoughts"}),
        ("deepseek_r1", chat("What?", "Only 2 + 2.\n</think>\n\n4"), None, {"thoughts"}),
        ("llama31", [*chat("What?"), reasoning("4")], None, {"reasoning"}),
        ("qwen3", chat("What?", f"{THOUGHT}4", "Why?", f"{THOUGHT}5"), None, {"earlier_thoughts"}),
        ("deepseek_r1", chat("What?", f"{THOUGHT}4", "Why?", "5"), None, {"thoughts"}),
        ("llama31", [*chat("What?"), reasoning("4"), *chat("Why?"), reasoning("5")], None, {"reasoning"}),
        ("mistral_v3", chat("What?", "4", system="Be kind."), None, {"system"}),
        ("llama31", chat("What?", "4"), TOOLS, set()),
        ("cohere2", chat("What?", "4"), TOOLS, {"tools"}),
        ("gpt_oss", [*chat("What?"), calling("Let me see."), *chat("", "It is 4.")[1:]], TOOLS, {"texts"}),
        ("cohere2", chat("What?", "4", system="Be kind."), None, set()),
    ],
)
def test_what_the_template_leaves_out_is_named_by_kind_with_what_to_type(name, messages, tools, expected):
    tokenizer = TOKENIZERS["full offsets"]
    tokenizer.chat_template = read_template(name)
    conversation = convert(Row({"messages": messages, "tools": tools}, "chats.jsonl", 3), "messages")
    omitted = encode(tokenizer, conversation).omitted
    assert set(omitted) == expected
    lines = omission_lines({kind: ["chats.jsonl:3"] for kind in omitted}, tokenizer)
    assert all(
        re.search(r"^In 1 row the chat template leaves out .*\(chats\.jsonl:3\)\. .*(data\.template=|a row in)", line)
        for line in lines
    )
    keeps_tags = [line for line in lines if "Write them into the content, as <think>...</think>, which it keeps." in line]
    assert len(keeps_tags) == ("reasoning" in expected)


def test_a_lost_call_or_an_empty_answer_is_refused_under_tags_as_well(tokenizer):
    two = calling(None) | {"tool_calls": [*calling(None)["tool_calls"], *calling(None, 3)["tool_calls"]]}
    two["tool_calls"][1]["function"]["arguments"]["x"] = "a dog"
    with pytest.raises(DataError, match=r"leaves out one of the tool calls of message 2"):
        trained(tokenizer, read_template("gpt_oss"), [*chat("What?"), two])
    with pytest.raises(DataError, match=r"leaves out the tool calls of message 2"):
        trained(tokenizer, TAGGED, [*chat("What?"), calling("Let me see.")])
    with pytest.raises(DataError, match=r"leaves out the content of message 2"):
        trained(tokenizer, R1, chat("What?", f"{THOUGHT} "))
    wide = TAGGED.replace("{%- generation %}{{", "{%- generation %}{{ messages[0].content + ")
    with pytest.raises(DataError, match=r"generation %\} tags of the chat template hold a text of user"):
        trained(tokenizer, wide, chat("What?", "4", "Why?", "5"))


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_calls_that_are_written_only_where_the_content_is_null_are_rendered_and_trained(content):
    two = calling(content) | {"tool_calls": [*calling(None)["tool_calls"], *calling(None, 3)["tool_calls"]]}
    result = {"role": "tool", "content": "6"}
    calls = [f'add\n```json\n{{"x": "a cat", "y": {number}}}\n```' for number in (2, 3)]
    calls = "".join(f"<｜tool▁call▁begin｜>{call}<｜tool▁call▁end｜>" for call in calls)
    messages = [*chat("What?"), two, result, *chat("", "None.", "Why?", "5")[1:]]
    assert placed(read_template("deepseek_r1_distill"), messages) == (
        f"<s><｜User｜>What?<｜Assistant｜>⟦<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>⟧"
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>6<｜tool▁output▁end｜><｜tool▁outputs▁end｜>⟦None.<｜end▁of▁sentence｜>⟧"
        "<｜User｜>Why?<｜Assistant｜>⟦5<｜end▁of▁sentence｜>⟧"
    )
    # A template that writes the calls beside an empty text is given the text, and none is made to write "None".
    assert re.search(r"assistant\s+<tool_call>", placed(PYTHON.replace("IS_TOLERANT", "true"), messages[:2]))
    with pytest.raises(DataError, match="leaves out the tool calls of message 2"):
        placed(PYTHON.replace("IS_TOLERANT", "false"), messages[:2])


def test_a_template_that_takes_contents_as_parts_only_is_given_parts():
    messages = chat("What?", "Who's 'x'?", "What?", "5", system="Be kind.")
    assert placed(read_template("smolvlm"), messages) == (
        "<|im_start|>System: Be kind.<end_of_utterance>\nUser: What?<end_of_utterance>\n"
        "Assistant:⟦ Who's 'x'?<end_of_utterance>⟧\nUser: What?<end_of_utterance>\nAssistant:⟦ 5<end_of_utterance>⟧\n"
    )
    part = "{{ part['text'] }}"
    tags = "{% if message['role'] == 'assistant' %}{% generation %}PART{% endgeneration %}{% else %}PART{% endif %}"
    text = placed(read_template("smolvlm").replace(part, tags.replace("PART", part)), messages)
    assert re.findall("⟦.*?⟧", text) == ["⟦Who's 'x'?⟧", "⟦5⟧"]
    # The parts of some roles only: not of the system (PerceptionLM), or of the user alone.
    mixed = "{{ message['role'] }}: {% if message['role'] in ROLES %}{{ message['content'] | trim }}{% else %}LOOP{% endif %}"
    mixed = mixed.replace(
        "LOOP", "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    )
    for roles in (["system"], ["system", "assistant"]):
        text = placed(
            "{% for message in messages %}" + mixed.replace("ROLES", str(roles)) + "{{ eos_token }}{% endfor %}", messages
        )
        assert (
            re.sub("[⟦⟧]", "", text)
            == "system: Be kind.</s>user: What?</s>assistant: Who's 'x'?</s>user: What?</s>assistant: 5</s>"
        )
    # Parts that would be written as Python writes them are no form of a template.
    with pytest.raises(DataError, match=r"refuses this conversation\. It says: No text"):
        placed(PYTHON + "{% if messages[0].content is string %}{{ raise_exception('No text') }}{% endif %}", messages)


def test_equal_questions_stay_equal_for_a_template_that_compares_them():
    tools = f"[AVAILABLE_TOOLS] {json.dumps(TOOLS)}[/AVAILABLE_TOOLS]"
    assert placed(
        read_template("mistral_v3"), chat("Go on.", "One.", "Go on.", "Two.", "Why?", "So.", "Go on.", "Three."), TOOLS
    ) == (
        f"<s>{tools}[INST] Go on.[/INST]⟦ One.</s>⟧{tools}[INST] Go on.[/INST]⟦ Two.</s>⟧[INST] Why?[/INST]⟦ So.</s>⟧"
        f"{tools}[INST] Go on.[/INST]⟦ Three.</s>⟧"
    )


@pytest.mark.parametrize(
    ("template", "messages", "tools", "expected"),
    [
        ("{{ tools | map(attribute='function') | tojson }}", chat("What?", "4"), TOOLS, r"Put \| list before \| tojson in the"),
        ("{% set _ = messages.append(1) %}", chat("What?", "4"), None, "lets no template change a list. Build a new one"),
        ("{% for tool in tools %}{{ tool.function.name }}{% endfor %}", chat("What?", "4"), None, "takes rows with tools only"),
        (
            "deepseek_r1_distill",
            [*chat("What?"), calling("So.")],
            None,
            "leaves out the tool calls of message 2 .*Take that text out",
        ),
        ("gpt_oss", [*chat("What?"), calling(None)], None, "one call a message"),
        (GEMMA, [*chat("What?"), *chat("Why?", "4")], None, "alternate. It takes no two messages of one role .* Join them"),
    ],
)
def test_a_refusal_says_what_to_change_where_that_is_known(template, messages, tools, expected):
    text = template if template == GEMMA else template + CHATML if "{" in template else read_template(template)
    if template == "gpt_oss":
        messages[1]["tool_calls"] += calling(None, 3)["tool_calls"]
    with pytest.raises(DataError, match=rf"^chats\.jsonl:3: the chat template .*{expected}.* data\.template=FILE\.jinja"):
        placed(text, messages, tools)


def test_a_template_that_takes_no_system_message_is_answered_with_one_that_does(tokenizer):
    with pytest.raises(DataError, match=r"System role not supported. It takes no system message: type data\.template=gemma,"):
        trained(tokenizer, GEMMA, chat("What?", "4", system="You are a cat."))
    tokenizer.chat_template = read_template("mistral_v3")
    assert "Type data.template=mistral, which writes it" in omission_lines({"system": ["a:1"]}, tokenizer)[0]


def test_arguments_of_calls_are_json_whatever_the_template_takes(tokenizer):
    arguments = '{"x": "a cat", "y": 2}'
    for name in ("deepseek_r1", "python_calls", "qwen3"):
        tokenizer.chat_template = read_template(name)
        for given in (json.loads(arguments), arguments):
            call = calling(None)
            call["tool_calls"][0]["function"]["arguments"] = given
            conversation = convert(Row({"messages": [*chat("What?"), call]}, "chats.jsonl", 3), "messages")
            encoded = encode(tokenizer, conversation)
            ids = [number for number, flag in zip(encoded.input_ids, encoded.loss_mask, strict=True) if flag]
            assert arguments in tokenizer.decode(ids)


def test_marks_are_moved_where_a_text_has_their_characters():
    rare = chr(0x20000) + chr(0x20000 + 20_000)
    assert [each.strip("�") for each in trained(TOKENIZERS["full offsets"], CHATML, chat(rare, rare))] == [f"{rare}<|im_end|>"]


@pytest.mark.parametrize("name", ["full offsets", "metaspace"])
def test_masks_from_the_bytes_of_tokens_are_those_from_offsets(name):
    tokenizer, dice, num_told = TOKENIZERS[name], random.Random(1), 0
    letters = [*"abü世🙂\n  ", "<|im_end|>", " cat", "<s>", "\u2581", "é" if name == "full offsets" else "e"]
    texts = ["".join(dice.choices(letters, k=dice.randint(0, 30))) for _ in range(200)]
    edges = [sorted([dice.choice([0, *range(len(text) + 1)]), *dice.choices(range(len(text) + 1), k=3)]) for text in texts]
    spans = [[(a, b), (c, d)] for a, b, c, d in edges]
    for text, given, some in zip(texts, encode_fast(tokenizer, spelling(tokenizer), texts, spans), spans, strict=True):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if given is None:
            assert not text or (name == "metaspace" and "\u2581" in text)
            continue
        num_told += 1
        assert given[0].tolist() == encoded["input_ids"]
        real = [(begin, end) for begin, end in some if end > begin]
        expected = [any(start < end and stop > begin for begin, end in real) for start, stop in encoded["offset_mapping"]]
        assert given[1].tolist() == expected
    assert num_told > 60


def test_a_tokenizer_that_changes_a_text_says_so_by_the_number_of_bytes():
    tokenizer = byte_level(False)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    texts = ["What?", "\ufb01x", "It is 4."]
    found = encode_fast(tokenizer, spelling(tokenizer), texts, [[(0, 1)]] * 3)
    assert [given is None for given in found] == [False, True, False]
    (_, _), (ids, mask), (_, _) = tokenize(tokenizer, texts, [[(0, 1)]] * 3)
    assert tokenizer.decode(ids[mask]) == "fi"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("\n {{ strftime_now('%d %b %Y') }}!\n", "\n 08 Nov 2026!"),
        ("{% set form = '%-d.%m' %}\n\n{{ strftime_now(form) }}", "\n8.11"),
        ("{% macro day(form) %}{{ strftime_now(form) }}{% endmacro %}{{ day('%Y: 100%%') }}", "2026: 100%"),
        ("{% if strftime_now is defined %}{{ strftime_now('%B') }}{% endif %}", "November"),
    ],
)
def test_every_call_for_the_date_writes_that_of_the_run(text, written):
    class Dated:
        chat_template = text

        def get_chat_template(self, tools=None):
            return text

    tokenizer = Dated()
    template_date.set_date(tokenizer, "2026-11-08")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers has it
    environment.globals["strftime_now"] = lambda form: "today"
    assert environment.from_string(template_date.dated_template(tokenizer, None)).render() == written
    assert template_date.writes_date(tokenizer)
