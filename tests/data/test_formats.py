import json

import pytest

from hub.config.data import DataConfig, DataSource
from hub.data.formats.columns import column_problems
from hub.data.formats.detect import convert, detect, read_fields
from hub.data.formats.file_format import FileFormats
from hub.data.sources.read import Cursor, Row, rows_after
from hub.errors import DataError

USER = {"role": "user", "content": "What is 2 + 2?"}
ANSWER = {"role": "assistant", "content": "4"}
CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": 2}}}
NAN = {"function": {"name": "add", "arguments": {"a": float("nan")}}}


def row(value, line=7):
    return Row(value, "data/chats.jsonl", line)


def one(value):
    return convert(row(value), detect(row(value)))


def refusal(value):
    with pytest.raises(DataError) as caught:
        convert(row(value, 1), detect(row(value, 1)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("messages", {"messages": [USER, ANSWER]}),
        ("messages", {"messages": json.dumps([USER, ANSWER])}),
        (
            "sharegpt",
            {
                "conversations": [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": "4"}],
                "system": "",
            },
        ),
        ("sharegpt", {"conversations": [USER, ANSWER]}),
        ("alpaca", {"instruction": USER["content"], "input": "", "output": "4"}),
        ("prompt_completion", {"prompt": USER["content"], "completion": "4"}),
        ("prompt_completion", {"prompt": [USER], "completion": [ANSWER]}),
    ],
)
def test_each_format_is_detected_and_becomes_the_same_messages(name, value):
    conversation = one(value)
    assert detect(row(value)) == name == conversation.format
    assert conversation.messages == [USER, ANSWER]
    assert conversation.where == "chats.jsonl:7"


def test_alpaca_joins_input_and_puts_system_and_history_first():
    value = {"instruction": "Add", "input": "2, 2", "output": "4", "system": "Be brief", "history": [["Hi", "Hello"]]}
    assert [(message["role"], message["content"]) for message in one(value).messages] == [
        ("system", "Be brief"),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Add\n\n2, 2"),
        ("assistant", "4"),
    ]


def test_tools_and_tool_calls_are_kept_with_arguments_as_dicts():
    tools = [{"type": "function", "function": {"name": "add"}}]
    call = CALL | {"function": {"name": "add", "arguments": '{"a": 2}'}}
    told = {"role": "tool", "content": "", "tool_call_id": "c1"}
    for given in (tools, json.dumps(tools)):
        value = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, told, ANSWER]}
        conversation = one(value | {"tools": given})
        assert conversation.tools == tools
        assert conversation.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
        assert conversation.messages[2] == told
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "x"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "4"},
        ]
    }
    by_role = [{"role": turn["from"], "content": turn["value"]} for turn in sharegpt["conversations"]]
    for value in (sharegpt, {"conversations": by_role}):
        messages = one(value).messages
        assert messages[1]["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]
        assert messages[1]["content"] == ""
        assert messages[2] == {"role": "tool", "content": "4"}


def test_text_parts_are_joined_and_null_fields_count_as_absent():
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}]
    value = {
        "messages": [{"role": "user", "content": parts, "tool_calls": None}, ANSWER],
        "tools": None,
        "prompt": None,
    }
    assert one(value).messages == [USER, ANSWER]
    assert one(value).tools is None


def test_fields_that_nothing_reads_are_told():
    value = {"messages": [USER, ANSWER | {"score": 0}], "id": 3, "source": None}
    assert one(value).unused == ("id", "messages[].score")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": [{"role": "asistant", "content": "x"}]}, "Did you mean assistant?"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "Allowed: system, user, assistant, tool"),
        ({"messages": [{"content": "x"}]}, "no role"),
        ({"messages": [{"from": "human", "value": "x"}]}, "with from and value type data.columns.conversations=messages"),
        ({"messages": [USER, ANSWER | {"role": "gpt"}]}, "Did you mean assistant?"),
        ({"messages": [USER, ANSWER | {"thinking": "a", "reasoning": "b"}]}, "other thoughts in thinking than in reasoning"),
        ({"messages": [{"role": "system", "content": "x"}, USER, ANSWER], "system": "y"}, "the field system and a message of"),
        ({"messages": [USER, {"role": "assistant", "content": float("nan")}]}, "content that is NaN (a missing value)"),
        ({"messages": [USER, {"tool_calls": [NAN]} | ANSWER]}, "tool_calls of message 2 has a number that is NaN or infinite"),
        ({"messages": "[{'role': 'user', 'content': 'x'}]"}, "This is how Python prints objects. Write the rows as JSONL"),
        ({"prompt": "[{'role': 'user', 'content': 'x'}]", "completion": "y"}, "prompt is a list of messages that is no JSON"),
        ({"role": "user", "content": "x"}, 'This is a message: a row has a list of them, {"messages": [...]}'),
        ({"questions": [{"a": 1}]}, "If questions has the rows, write a file with that list alone"),
        ({"text": ["x"]}, "text must be a text, not a list"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "['user']"),
        ({"messages": [{"role": "user", "content": None}, ANSWER]}, "message 1 (user) has content that is null"),
        (
            {"messages": [USER, {"role": "assistant", "content": None}]},
            "message 2 (assistant) has content that is null",
        ),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "empty content"),
        ({"messages": [{"role": "user"}, ANSWER]}, "no content"),
        ({"messages": [USER, {"role": "assistant", "content": 4}]}, "a number"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, ANSWER]}, "'image'"),
        ({"messages": [USER, {"role": "system", "content": "x"}, ANSWER]}, "Only the first"),
        ({"messages": []}, "messages is empty"),
        ({"messages": None}, "not null"),
        ({"messages": {"role": "user"}}, "not an object"),
        ({"messages": ["hi"]}, "not a text"),
        ({"messages": "[oops"}, "no JSON"),
        ({"messages": [USER | {"tool_calls": [CALL]}, ANSWER]}, "Only an assistant can call"),
        ({"messages": [USER, ANSWER | {"tool_calls": [{"function": {}}]}]}, "a tool call must be"),
        (
            {"messages": [USER, ANSWER | {"tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
            "not a list",
        ),
        ({"messages": [USER, ANSWER], "tools": "x y"}, "tools is a text"),
        ({"conversations": [{"from": "humen", "value": "x"}]}, "Did you mean human"),
        ({"conversations": [{"speaker": "x"}]}, "needs the fields from and value"),
        ({"instruction": "x", "output": None}, "message 2 (assistant) has content that is null"),
        ({"instruction": "x", "output": "y", "history": ["z"]}, "list of pairs"),
        ({"prompt": "x", "completion": 3}, "a number"),
        ({"mesages": []}, "Did you mean messages?"),
        ({"texts": "x"}, "these fields are of no known format: texts. Allowed: messages has messages; sharegpt"),
        ({"texts": "x"}, "document has text or document. For a column with texts type data.text_column=NAME"),
        ({"messages": [USER, ANSWER], "chosen": "x", "rejected": "y"}, "are of several formats (messages, preference)"),
        ({"messages": [USER, ANSWER], "unmask": "yes"}, "unmask is a text. Allowed: true or false"),
        ({"messages": [USER, ANSWER | {"loss": "no"}]}, 'message 2 has loss="no". Allowed: true, false, 0, 1'),
        ({"messages": [USER | {"loss": True}, ANSWER]}, "message 1 (user) has loss=true. Only the assistant's"),
        ({"messages": [USER, ANSWER | {"tool_calls": [CALL]}], "tools": [{"name": "sub"}]}, "message 2 calls add, which is"),
        ({"text": " "}, "text is empty"),
        ({"text": "", "document": None}, "text is empty"),
        ({"document": "a", "text": 3}, "text must be a text, not a number"),
        ({"input_ids": "1 2"}, "input_ids is a text that is no JSON"),
        ({"input_ids": []}, "input_ids is empty"),
        ({"input_ids": [1, 2.5]}, "input_ids must be a list of whole numbers"),
        ({"input_ids": [1, -2]}, "input_ids has -2"),
        ({"input_ids": [1, 2], "labels": [1]}, "labels has 1 numbers, input_ids has 2"),
        ({"input_ids": [1, 2], "labels": [2, -100]}, "labels[0] is 2, input_ids[0] is 1"),
        ({"input_ids": [1, 2], "attention_mask": [1, 0]}, "attention_mask must be 1 everywhere"),
        ({"input_ids": [1, 2], "completion_mask": [1]}, "completion_mask has 1 numbers, input_ids has 2"),
        ({"input_ids": [1, 2], "loss_mask": [0, 7]}, "loss_mask must be a list of 0 and 1"),
        ({"input_ids": [1, 2], "prompt_mask": [1, 0]}, "prompt_mask is a mask that nothing reads. Allowed: labels (-100 for"),
    ],
)
def test_bad_row_is_refused_with_its_place_and_what_is_wrong(value, expected):
    text = refusal(value)
    assert text.startswith("chats.jsonl:1: ")
    assert expected in text


def test_a_system_message_may_be_beside_the_others():
    system = {"role": "system", "content": "Be kind."}
    for value, format in (
        ({"messages": [USER, ANSWER]}, "messages"),
        ({"prompt": USER["content"], "completion": "4"}, "prompt_completion"),
        ({"prompt": USER["content"], "chosen": "4", "rejected": "5"}, "chosen"),
        ({"prompt": "", "chosen": json.dumps([USER, ANSWER]), "rejected": ""}, "chosen"),
    ):
        conversation = convert(Row(value | {"system": "Be kind."}, "a.jsonl", 1), format)
        assert conversation.messages == [system, USER, ANSWER]
        assert conversation.unused == ()
        assert conversation.completion in (None, 2)
        assert convert(Row(value | {"system": ""}, "a.jsonl", 1), format).messages == [USER, ANSWER]


def test_masks_beside_input_ids_say_what_is_trained():
    ids = {"input_ids": [5, 6, 7, 8], "special_tokens_mask": [0, 0, 0, 1]}
    for name in ("completion_mask", "assistant_masks", "loss_mask"):
        assert one(ids | {name: [0, 0, 1, True]}).loss_mask == [False, False, True, True]
    both = one(ids | {"completion_mask": "[0, 1, 1, 1]", "assistant_masks": [1, 1, 0, 1], "labels": [5, -100, 7, 8]})
    assert (both.loss_mask, both.unused) == ([False, False, False, True], ("special_tokens_mask",))


def test_a_row_of_another_format_than_its_file_is_refused_with_its_line():
    with pytest.raises(DataError, match=r"chats\.jsonl:7: this row is not in the format messages, which has messages"):
        convert(row({"instruction": "x", "output": "y"}), "messages")


PLUGIN = """
from hub import DataFormat, hookimpl
def convert(row):
    if not row["answer"]:
        raise ValueError("answer is empty")
    return {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]}
@hookimpl
def hub_data_formats():
    return [DataFormat(name="faq", fields=("question", "answer"), convert=convert)]
"""


def test_a_plugin_adds_a_format_that_is_found_by_its_fields_or_asked_for(plugin_folder, monkeypatch):
    from hub.config.schema import RunConfig
    from hub.plugins import registry as plugins

    folder = plugin_folder()
    folder.add("faq", PLUGIN)
    found = plugins.load(folder.entry_points)
    assert not found.warnings
    monkeypatch.setattr(plugins, "registry", lambda: found)
    conversation = one({"question": USER["content"], "answer": "4"})
    assert (conversation.messages, conversation.format) == ([USER, ANSWER], "faq")
    assert refusal({"question": "x", "answer": ""}) == "chats.jsonl:1: answer is empty"
    names = plugins.data_format_names()
    assert not list(RunConfig(data=DataConfig(path="a.jsonl", format="faq")).data_problems(names))
    problem = next(RunConfig(data=DataConfig(path="a.jsonl", format="fag")).data_problems(names))
    assert "Allowed: auto, messages," in problem
    assert ", faq." in problem


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name="faq"', 'name="messages"', "data format messages: there is one of this name already"),
        ('name="faq"', 'name="f a q"', "data format 'f a q': this name is not allowed"),
        ('("question", "answer")', '"question"', "data format faq: fields='question' is not allowed"),
        ("[DataFormat", "[str, DataFormat", "hub_data_formats() must return a list of hub.DataFormat"),
    ],
)
def test_a_format_of_a_plugin_that_can_not_be_told_from_others_is_refused(plugin_folder, old, new, said):
    from hub.plugins import registry as plugins

    folder = plugin_folder()
    folder.add("faq", PLUGIN.replace(old, new))
    (line,) = plugins.load(folder.entry_points).warnings
    assert said in line


def test_roles_and_fields_of_older_forms_are_those_of_today():
    call = {"name": "add", "arguments": '{"x": 2}'}
    forms = [
        [{"role": "assistant", "content": None, "function_call": call}, {"role": "function", "name": "add", "content": "4"}],
        [{"role": "function_call", "content": json.dumps(call)}, {"role": "observation", "name": "add", "content": "4"}],
        [{"role": "tool_call", "content": json.dumps([call])}, {"role": "ipython", "name": "add", "content": "4"}],
    ]
    today = [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"x": 2}}}],
        },
        {"role": "tool", "name": "add", "content": "4"},
    ]
    end = {"role": "assistant", "content": "It is 4.", "reasoning": "Surely."}
    for form in forms:
        messages = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "What?"}, *form, end]
        conversation = convert(Row({"messages": messages}, "a.jsonl", 1), "messages")
        assert conversation.messages[0] == {"role": "system", "content": "Be kind."}
        assert conversation.messages[2:4] == today
        assert conversation.messages[4]["reasoning_content"] == conversation.messages[4]["thinking"] == "Surely."
        assert conversation.unused == ()
    with pytest.raises(DataError, match=r"a\.jsonl:1: message 2 has the role developer\. Only the first may be"):
        convert(Row({"messages": [{"role": "system", "content": "x"}, *messages]}, "a.jsonl", 1), "messages")
    both = forms[0][0] | {"tool_calls": [call]}
    with pytest.raises(DataError, match="has function_call and tool_calls"):
        convert(Row({"messages": [{"role": "user", "content": "x"}, both]}, "a.jsonl", 1), "messages")


def example(folder, rows, columns, **options):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = DataSource(path=str(folder / "a.jsonl"), columns=columns)
    formats = FileFormats(source, DataConfig(**options))
    return [formats.example(entry) for entry, _ in rows_after(source.path, Cursor())]


@pytest.mark.parametrize(
    ("value", "columns", "format"),
    [
        ({"question": USER["content"], "answer": "4"}, {"prompt": "question", "completion": "answer"}, "prompt_completion"),
        ({"completion": USER["content"], "prompt": "4"}, {"prompt": "completion", "completion": "prompt"}, "prompt_completion"),
        ({"Instruction": USER["content"], "output": "4"}, {"instruction": "Instruction", "input": "Input"}, "alpaca"),
        (
            {"dialog": [{"who": "human", "text": USER["content"]}, {"who": "gpt", "text": "4"}]},
            {"conversations": "dialog", "from": "who", "value": "text"},
            "sharegpt",
        ),
        (
            {"conversations": [{"who": "human", "text": USER["content"]}, {"who": "gpt", "text": "4"}]},
            {"role": "who", "content": "text"},
            "sharegpt",
        ),
        (
            {"dialog": json.dumps([{"who": "user", "text": USER["content"]}, {"who": "assistant", "text": "4"}])},
            {"messages": "dialog", "role": "who", "content": "text"},
            "messages",
        ),
    ],
)
def test_columns_of_other_names_are_read_under_those_of_a_format(tmp_path, value, columns, format):
    (conversation,) = example(tmp_path, [value | {"id": 7}], columns)
    assert (conversation.messages, conversation.format, conversation.unused) == ([USER, ANSWER], format, ("id",))


def test_a_column_that_is_not_there_is_named_with_the_option_and_the_nearest(tmp_path):
    with pytest.raises(DataError, match=r"a\.jsonl:1: data\.columns\.prompt=quest: this row has no field quest\..* question\?"):
        example(tmp_path, [{"question": "x", "completion": "y"}], {"prompt": "quest"})
    lines = list(column_problems({"Question": "prompt", "role": "a", "content": "a"}, "data.columns", read_fields()))
    assert lines[0].startswith("data.columns.Question=prompt: no format reads Question. Allowed: ")
    assert lines[0].endswith("Type data.columns.prompt=Question")
    assert lines[1:] == ["data.columns: two names stand for the column a. Give each its own"]


def test_the_format_of_a_file_is_that_of_most_of_its_first_rows(tmp_path):
    rows = [{"junk": 1}, {"text": "alone"}, *[{"prompt": USER["content"], "completion": "4"}] * 3]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    formats = FileFormats(DataSource(path=str(tmp_path / "a.jsonl")), DataConfig())
    good, bad = [], []
    for entry, _ in rows_after(str(tmp_path / "a.jsonl"), Cursor()):
        try:
            good.append(formats.example(entry).where)
        except DataError as error:
            bad.append(str(error).split(" ")[0])
    assert (good, bad) == (["a.jsonl:3", "a.jsonl:4", "a.jsonl:5"], ["a.jsonl:1:", "a.jsonl:2:"])
    (tmp_path / "b.jsonl").write_text('{"junk": 1}\n' * 2)
    formats = FileFormats(DataSource(path=str(tmp_path / "b.jsonl")), DataConfig())
    for number, (entry, _) in enumerate(rows_after(str(tmp_path / "b.jsonl"), Cursor()), 1):
        with pytest.raises(DataError, match=rf"^b\.jsonl:{number}: these fields are of no known format"):
            formats.example(entry)
