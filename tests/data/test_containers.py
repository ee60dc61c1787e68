"""The same rows give the same tokens from whatever holds them: what Arrow adds to a row is not trained."""

import csv
import datetime
import json

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, Features, IterableDataset, Json, List

from hub.config.data import DataConfig, DataSource
from hub.data.formats.detect import read_fields
from hub.data.formats.file_format import FileFormats
from hub.data.sources.entries import Cursor
from hub.data.sources.memory import rows_in_memory
from hub.data.sources.read import rows_after
from hub.data.sources.rows import write_rows
from hub.data.tokens.encode import Encoder
from hub.errors import ConfigError, DataError

TEMPLATE = """{{ tools | tojson }}
{%- for message in messages %}{{ '<|im_start|>' + message.role + ': ' + message.content }}
{%- for call in message.tool_calls or [] %}{{ call | tojson }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"""


def tool(name, **properties):
    schema = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def call(name, **arguments):
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "a1", "type": "function", "function": function}]}


USER, ANSWER = {"role": "user", "content": "When is high tide?"}, {"role": "assistant", "content": "At ten past four."}
TOLD = {"role": "tool", "tool_call_id": "a1", "name": "tide", "content": "04:10"}
TOOLS = [
    tool("tide", harbour={"type": "string", "enum": ["Oban", "Leith"]}),
    tool("moon", day={"type": "string"}, zone={"type": "string"}),
]
ROWS = [
    {"messages": [USER, call("tide", harbour="Oban"), TOLD, ANSWER], "tools": TOOLS},
    {"messages": [USER, call("moon", day="Monday", zone="UTC"), TOLD, ANSWER], "tools": TOOLS[1:]},
    {"messages": [USER, call("tide"), TOLD, ANSWER], "tools": TOOLS},
    {"messages": [USER, ANSWER], "tools": []},
]
"""No two calls have the same arguments, and no two schemas the same properties."""


def jsonl(folder):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder / "a.jsonl"


def json_list(folder):
    (folder / "a.json").write_text(json.dumps(ROWS, indent=2))
    return folder / "a.json"


def parquet(folder):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "a.parquet")
    return folder / "a.parquet"


def arrow(folder):
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(str(folder / "a.arrow"), table.schema) as file:
        file.write_table(table)
    return folder / "a.arrow"


def json_type(folder):
    features = Features({"messages": List(Json()), "tools": List(Json())})
    Dataset.from_list(ROWS, features=features).to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def saved(folder):
    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def saved_dict(folder):
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}).save_to_disk(folder / "saved")
    return folder / "saved"


def csv_of_json_text(folder):
    with (folder / "a.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, ["messages", "tools"])
        table.writeheader()
        table.writerows([{name: json.dumps(value) for name, value in row.items()} for row in ROWS])
    return folder / "a.csv"


def json_of_datasets(folder):
    Dataset.from_list(ROWS).to_json(folder / "a.jsonl")
    return folder / "a.jsonl"


def in_memory(make):
    def written(folder):
        return write_rows(rows_in_memory(make(folder)), folder, read_fields())

    return written


class Foreign:
    """A table of another library."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


class MapStyle:
    def __len__(self):
        return len(ROWS)

    def __getitem__(self, number):
        return ROWS[number]


CONTAINERS = {
    "json": json_list,
    "parquet": parquet,
    "arrow": arrow,
    "parquet with datasets' Json": json_type,
    "save_to_disk": saved,
    "DatasetDict.save_to_disk": saved_dict,
    "csv": csv_of_json_text,
    "Dataset.to_json": json_of_datasets,
    "Dataset.to_list": in_memory(lambda folder: Dataset.from_list(ROWS).to_list()),
    "Dataset without iteration, as torch has": in_memory(lambda folder: MapStyle()),
    "list": in_memory(lambda folder: ROWS),
    "Dataset": in_memory(lambda folder: Dataset.from_list(ROWS)),
    "Dataset with numpy's format": in_memory(lambda folder: Dataset.from_list(ROWS).with_format("numpy")),
    "Dataset with Json": in_memory(lambda folder: Dataset.from_parquet(str(json_type(folder)), cache_dir=str(folder))),
    "IterableDataset": in_memory(lambda folder: Dataset.from_list(ROWS).to_iterable_dataset()),
    "IterableDataset of unknown types": in_memory(lambda folder: IterableDataset.from_generator(lambda: iter(ROWS))),
    "DatasetDict": in_memory(lambda folder: DatasetDict({"test": Dataset.from_list([]), "train": Dataset.from_list(ROWS)})),
    "DataFrame": in_memory(lambda folder: pandas.DataFrame(ROWS)),
    "DataFrame of parquet": in_memory(lambda folder: pandas.read_parquet(parquet(folder))),
    "DataFrame of Arrow": in_memory(lambda folder: pandas.read_parquet(parquet(folder), dtype_backend="pyarrow")),
    "a table in Arrow's C interface, as polars has": in_memory(lambda folder: Foreign(pyarrow.Table.from_pylist(ROWS))),
    "pyarrow Table": in_memory(lambda folder: pyarrow.Table.from_pylist(ROWS)),
}


@pytest.fixture(scope="module")
def tokens():
    """The tokens and masks of all rows of a path."""
    from hub.testing import tokenizer

    known = tokenizer()
    known.chat_template = TEMPLATE

    def encoded(path):
        source = DataSource(path=str(path))
        encode = Encoder(known, DataConfig(), source, None)
        units = [item.unit for entry, _ in rows_after(str(path), Cursor(), stream=False) for item in encode(entry)]
        return [(unit.input_ids.tolist(), unit.loss_mask.tolist()) for unit in units]

    return encoded


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_same_rows_give_the_same_tokens_from_any_container(tmp_path, tokens, name):
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    assert tokens(CONTAINERS[name](tmp_path / "one")) == tokens(jsonl(tmp_path / "other"))


def test_other_forms_give_the_same_tokens_as_text_and_with_the_missing_values_of_pandas(tmp_path, tokens):
    rows = [
        {"prompt": [USER], "completion": [ANSWER], "system": "Be brief.", "tools": TOOLS},
        {"prompt": "When?", "completion": "[{'role' is no list", "system": None, "tools": None},
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "loss_mask": None},
        {"input_ids": [5, 6], "labels": None, "loss_mask": [0, 1]},
        {"messages": [USER, ANSWER], "unmask": True},
        {"messages": [USER, ANSWER], "unmask": None},
        {"instruction": "Add.", "input": None, "output": "3"},
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    ]
    for number, pair in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair))
        with (folder / "b.csv").open("w", newline="") as stream:
            table = csv.DictWriter(stream, list(pair[0]))
            table.writeheader()
            cells = [{name: json.dumps(v) if isinstance(v, list) else v for name, v in row.items()} for row in pair]
            table.writerows(cells)
        frame = pandas.DataFrame(list(pair)).to_dict("records")
        assert tokens(folder / "a.jsonl") == tokens(folder / "b.csv") == tokens(write_rows(rows_in_memory(frame), folder))


def test_a_row_that_can_not_be_written_is_refused_or_left_out_in_its_place(tmp_path):
    good = {"prompt": "x", "completion": "y"}
    half, deep = {"prompt": "\ud83d", "completion": "y"}, good | {"list": []}
    for _ in range(3000):
        deep["list"] = [deep["list"]]
    rows = [None, {"prompt": b"x", "completion": "y"}, half, good | {(1, 2): 3}, deep, good]
    file = write_rows(rows_in_memory(rows), tmp_path, read_fields(), skip_bad=True)
    formats, bad = FileFormats(DataSource(path=str(file)), DataConfig()), []
    for number, (entry, _) in enumerate(rows_after(str(file), Cursor()), 1):
        try:
            formats.example(entry)
        except DataError as error:
            bad.append((number, str(error).removeprefix(f"{file}:{number}: ").removeprefix(f"{file.name}:{number}: ")[:50]))
    assert bad == [
        (1, "a row must be a JSON object {...}, this is a text:"),
        (2, "message 1 (user) has content that is binary data, "),
    ]
    for wrong, said in (
        (
            [[USER, ANSWER]],
            r"row 1 is a list\. Give dictionaries, one for each row: \[{\"messages\": messages} for messages in data\]",
        ),
        (["a text"], r"row 1 is a text\. .*: \[{\"text\": text} for text in data\]"),
        (pandas.Series(["a text"]), "row 1 is a text"),
    ):
        with pytest.raises(ConfigError, match=said):
            write_rows(rows_in_memory(wrong), tmp_path, read_fields())


def test_a_null_that_was_written_stays_where_it_can_be_told_from_one_of_arrow(tmp_path, tokens):
    row = {"messages": [USER, call("tide", harbour=None), ANSWER], "tools": TOOLS}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    Dataset.from_list([row], features=Features({"messages": List(Json()), "tools": List(Json())})).to_parquet(
        tmp_path / "b.parquet"
    )
    written = tokens(tmp_path / "a.jsonl")
    assert written == tokens(tmp_path / "b.parquet") == tokens(write_rows(rows_in_memory([row]), tmp_path))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "c.parquet")
    assert written != tokens(tmp_path / "c.parquet")


def test_columns_that_nothing_reads_may_have_any_type(tmp_path, tokens):
    many = {
        "time": pyarrow.array([2**62] * 4, pyarrow.timestamp("s")),  # beyond Python's years
        "zone": pyarrow.array([1] * 4, pyarrow.timestamp("ns", "Mars/Olympus")),
        "image": pyarrow.array([b"\xff\0"] * 4),
        "map": pyarrow.array([[("a", 1)]] * 4, pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        "price": pyarrow.array([1] * 4, pyarrow.decimal128(9, 2)),
        "kind": pyarrow.array(["a"] * 4).dictionary_encode(),
        "nothing": pyarrow.nulls(4),
    }
    table = pyarrow.Table.from_pylist(ROWS)
    for name, column in many.items():
        table = table.append_column(name, column)
    with pyarrow.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as file:
        file.write_table(table)
    others = {"when": datetime.datetime(2026, 1, 1), "picture": object(), "scores": np.ones(3), "set": {1}}
    written = write_rows(rows_in_memory([row | others for row in ROWS]), tmp_path, read_fields())
    assert json.loads(written.read_text().splitlines()[0])["scores"] == [1.0, 1.0, 1.0]
    assert tokens(tmp_path / "a.arrow") == tokens(written) == tokens(jsonl(tmp_path))
    with pytest.raises(ConfigError, match=r"^data: row 1: messages is a set and can't be written as JSON"):
        write_rows([{"messages": {1}}], tmp_path, read_fields())


def test_a_time_that_a_reader_made_of_a_text_is_refused_where_it_would_be_trained(tmp_path, tokens):
    row = {"messages": [USER, call("moon", day=datetime.date(2026, 1, 1)), ANSWER], "tools": TOOLS}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"^a\.parquet:1: tool_calls of message 2 has a date \(2026-01-01\), which JSON has not"
    ):
        tokens(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": [datetime.date(2026, 1, 1)], "completion": ["x"]}), tmp_path / "b.parquet"
    )
    with pytest.raises(DataError, match="content that is a date, not a text"):
        tokens(tmp_path / "b.parquet")


def test_a_dictionary_is_no_list_of_rows_and_a_table_needs_names(tmp_path):
    data = Dataset.from_list(ROWS)
    for wrong, said in (
        ({"prompt": ["a"], "completion": ["b"]}, "Of a dictionary of columns"),
        (DatasetDict({"test": data, "dev": data}), "data has the datasets test, dev, and none is called train"),
        (pandas.DataFrame([[1, 2]], columns=["a", "a"]), "two columns of one name"),
    ):
        with pytest.raises(ConfigError, match=said):
            list(rows_in_memory(wrong))
    cells = pandas.DataFrame({"prompt": ["a", None], "n": [1, None], "t": [pandas.NaT, pandas.NaT]}, index=[7, 8])
    assert list(rows_in_memory(cells)) == [{"prompt": "a", "n": 1.0, "t": None}, {"prompt": None, "n": None, "t": None}]
