import json
import os
import subprocess
import sys
import zipfile

import pytest
from datasets import Dataset

from hub.data.sources.entries import Cursor, Unread
from hub.data.sources.files import files_line, is_hub_id
from hub.data.sources.folders import files_of
from hub.data.sources.read import read_rows, rows_after
from hub.errors import DataError

ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def message_of(path, function=lambda path: list(read_rows(path))):
    with pytest.raises(DataError) as caught:
        function(str(path))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_jsonl_takes_byte_order_mark_crlf_and_blank_lines_and_keeps_line_numbers(tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": "\xe2\x80\xa8\\u2028"}\r\n  \n{"a": 3}')
    rows = list(read_rows(str(file)))
    assert [(row.value["a"], row.where) for row in rows] == [
        (1, "chats.jsonl:1"),
        ("\u2028\u2028", "chats.jsonl:3"),
        (3, "chats.jsonl:5"),
    ]


def test_json_list_tells_the_line_on_which_each_row_begins(tmp_path):
    file = tmp_path / "chats.json"
    file.write_text('\n[\n  {"a": 1},\n\n  {\n    "a": 2\n  }, {"a": 3}\n]\n')
    assert [(row.value["a"], row.line) for row in read_rows(str(file))] == [(1, 3), (2, 5), (3, 7)]
    file.write_text('{"a": 1}\n{"a": 2}\n')
    assert [(row.value["a"], row.line) for row in read_rows(str(file))] == [(1, 1), (2, 2)]


def test_csv_cells_are_text_and_a_quoted_line_break_keeps_line_numbers_right(tmp_path):
    file = tmp_path / "chats.csv"
    file.write_text('instruction,output\n"two\nlines",42\n"say ""hi""",\n')
    assert [(row.value, row.line) for row in read_rows(str(file))] == [
        ({"instruction": "two\nlines", "output": "42"}, 2),
        ({"instruction": 'say "hi"', "output": ""}, 4),
    ]
    file.write_text("instruction,output\na,b\na,b,c\n")
    assert "chats.csv:3: 3 cells" in message_of(file)


def test_folder_gives_its_data_files_sorted_by_name(tmp_path):
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl", "notes.txt"):
        (tmp_path / name).write_text('{"a": 1}\n')
    assert [row.where for row in read_rows(str(tmp_path))] == ["a.jsonl:1", "b.jsonl:1"]


def test_parquet_gives_its_rows_and_a_damaged_one_is_one_line(tmp_path):
    file = tmp_path / "chats.parquet"
    Dataset.from_list([ROW, ROW]).to_parquet(file)
    assert [(row.value, row.line) for row in read_rows(str(file))] == [(ROW, 1), (ROW, 2)]
    file.write_bytes(b"PAR1 no parquet")
    assert "can't be read as parquet" in message_of(file)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": 1, "b" 2}\n', ["a.jsonl:2", "column 14", "Expecting ':'", '{"a": 1, "b" 2}']),
        ("a.jsonl", b'{"a": 1}\n\n{"a": "cut\n', ["a.jsonl:3", "Unterminated", '{"a": "cut']),
        ("a.jsonl", b'{"a": 1} {"a": 2}\n', ["a.jsonl:1", "column 9", "more text"]),
        ("a.jsonl", b'{"a": "' + b"x" * 500 + b"\n", ["a.jsonl:1", "x" * 60 + "..."]),
        ("a.jsonl", b"[" * 100_000, ["a.jsonl:1", "nested too deeply"]),
        ("a.jsonl", b'{"a": 1}\n["a"]\n', ["a.jsonl:2", "a list", '["a"]']),
        ("a.json", b'[{"a": 1},\n{"a": 2}\n{"a": 3}]', ["a.json:3", "comma"]),
        ("a.json", b'[\n{"a": 1},\n{"a": 2,\n "b": }\n]', ["a.json:4", "Expecting value", '"b": }']),
        ("a.json", b'[{"a": 1},\n{"a": 2}', ["a.json:2", "cut short"]),
        ("a.json", b'[{"a": 1},\n 7]', ["a.json:2", "a number: 7"]),
        ("a.json", b'[{"a": 1}]\n\n[]', ["a.json:3", "end of the list"]),
        ("a.jsonl", b"", ["a.jsonl", "no rows"]),
        ("a.json", b"[]", ["a.json", "no rows"]),
        ("a.csv", b"instruction,output\n", ["a.csv", "no rows"]),
        ("a.jsonl", b'{"a": 1}\n{"a": "\x89PNG"}\n', ["a.jsonl:2", "byte 8", "0x89", "UTF-8"]),
        ("a.jsonl", b'{"a": 1}\n\0\0\n', ["a.jsonl:2", "binary"]),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), ["a.jsonl", "UTF-16"]),
        ("a.jsonl", b'{"a": 1}\n{"a": 1, "b": {"c": 1, "c": 2}}\n', ["a.jsonl:2", "the field c is twice in one object"]),
        ("a.jsonl", b"\x1f\x8b\x08\0", ["a.jsonl: the file is compressed with gzip. Let its name end in .gz"]),
        ("a.csv", b"PK\x03\x04", ["a.csv: the file is a zip archive (let its name end in .zip) or a workbook of Excel"]),
        ("a.csv", b'a,b\n"1,2\n3,4\n', ["a.csv:2", "a quote is not closed", "It takes up the lines 2 to 3"]),
        ("a.csv", b"a\xe9,b\n1,2\n", ["a.csv:1", "byte 2 of the line (0xe9) is not UTF-8"]),
        ("a.txt", b'{"a": 1}\n{"a": 2}\n', ["a.txt: its lines are JSON objects", ".jsonl"]),
        ("a.json", b'{"train": [{"a": 1}], "test": [{"a": 1}]}', ["several lists of rows (train, test)"]),
        ("a.json", b'{"a": ["x", "y"], "b": ["z", "w"]}', ["a list for each column in place of rows"]),
        ("a.json", b'{"columns": ["a"], "index": [0], "data": [["x"]]}', ["a table, as DataFrame.to_json(orient='split')"]),
        ("a.json", b'{"0": {"a": "x"}, "1": {"a": "y"}}', ["one object with the rows under 0, 1. Write the rows as a list"]),
        ("a.xlsx", b"PK", ["a.xlsx", ".xlsx", ".jsonl, .ndjson, .json, .csv, .tsv, .txt, .parquet"]),
    ],
)
def test_bad_file_is_one_line_with_place_reason_and_text(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    text = message_of(tmp_path / name)
    assert [part for part in expected if part not in text] == []
    assert len(text) < 400


def test_missing_file_names_near_ones_and_a_folder_without_data_says_what_it_holds(tmp_path):
    (tmp_path / "chats.jsonl").write_text("{}")
    assert "Did you mean chats.jsonl?" in message_of(tmp_path / "chat.jsonl")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "notes.md").write_text("x")
    assert "notes.md" in message_of(tmp_path / "inside")


def test_only_org_slash_name_without_local_folder_is_asked_of_the_model_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("some-org/chats")
    assert not any(map(is_hub_id, ("chats", "some-org/chats.jsonl", "./some-org/chats", "a/b/c", str(tmp_path))))
    (tmp_path / "some-org").mkdir()
    assert not is_hub_id("some-org/chats")


def test_unreachable_data_set_is_one_line():
    code = (
        "import sys\nfrom hub.data.sources.read import read_rows\nfrom hub.errors import DataError\n"
        "try: next(read_rows('some-org/chats'))\nexcept DataError as error: print(error)"
    )
    # A port that nothing listens on stands for a missing network.
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "some-org/chats" in done.stdout
    assert "can't be reached" in done.stdout
    assert done.stdout.count("\n") == 1


def test_rows_can_be_had_from_behind_any_row_in_every_kind_of_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa4"}\r\n\n{"a": "2"}\n')
    (tmp_path / "b.csv").write_text('a\n"3\n3"\n4\n')
    Dataset.from_list([{"a": "5"}, {"a": "6"}]).to_parquet(tmp_path / "c.parquet")

    def rows(cursor):
        return [(row.read() if isinstance(row, Unread) else row, after) for row, after in rows_after(str(tmp_path), cursor)]

    whole = rows(Cursor())
    assert [row for row, _ in whole] == list(read_rows(str(tmp_path)))
    assert [row.where for row, _ in whole] == ["a.jsonl:1", "a.jsonl:3", "b.csv:2", "b.csv:4", "c.parquet:1", "c.parquet:2"]
    for number, (_, cursor) in enumerate(whole, 1):
        assert rows(cursor) == whole[number:]


def test_a_json_list_can_not_be_streamed(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1}]')
    assert "JSONL" in message_of(tmp_path / "a.json", lambda path: list(rows_after(path, Cursor())))


def zstd(file, mode):
    import pyarrow

    return pyarrow.CompressedOutputStream(pyarrow.OSFile(str(file), mode), "zstd")


def test_compressed_files_are_read_as_their_content_and_from_behind_any_row(tmp_path):
    import bz2
    import gzip
    import lzma

    text = b'{"a": "1"}\n{"a": "2"}\n{"a": "3"}\n'
    for ending, opened in (("gz", gzip.open), ("bz2", bz2.open), ("xz", lzma.open), ("zst", zstd)):
        file = tmp_path / f"a.jsonl.{ending}"
        with opened(file, "wb") as stream:
            stream.write(text)
        whole = list(rows_after(str(file), Cursor()))
        assert [(row.read().value["a"], row.read().where) for row, _ in whole] == [
            (str(number), f"a.jsonl.{ending}:{number}") for number in (1, 2, 3)
        ]
        assert list(rows_after(str(file), whole[0][1])) == whole[1:]
        file.write_bytes(file.read_bytes()[:-6])
        assert "can't be read" in message_of(file)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"a\n4\n"))
    assert [row.value for row in read_rows(str(tmp_path / "b.csv.gz"))] == [{"a": "4"}]
    (tmp_path / "c.jsonl.rar").write_bytes(b"x")
    assert ".jsonl.rar is no kind of data file" in message_of(tmp_path / "c.jsonl.rar")


def test_arrow_files_and_folders_that_datasets_wrote_are_read(tmp_path):
    import pyarrow
    from datasets import DatasetDict

    data = Dataset.from_list([ROW, ROW])
    data.save_to_disk(tmp_path / "one")
    DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "several")
    with pyarrow.ipc.new_file(str(tmp_path / "b.arrow"), data.data.table.schema) as file:
        file.write_table(data.data.table)
    for path in ("one", "several", "b.arrow"):
        assert [row.value for row in read_rows(str(tmp_path / path))] == [ROW, ROW]
    (tmp_path / "c.arrow").write_bytes(b"no arrow")
    assert "can't be read as Arrow" in message_of(tmp_path / "c.arrow")
    DatasetDict({"test": data}).save_to_disk(tmp_path / "none")
    assert "none is called train" in message_of(tmp_path / "none")


def test_a_bad_row_stands_in_its_place_and_the_others_can_be_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{oops\n\xff\n\0\n{"a": 5}\n')
    (tmp_path / "b.csv").write_text("a,b\n1,2\n1\n3,4\n")
    (tmp_path / "c.json").write_text('[{"a": 1}, 7, {"a": 2}]')
    (tmp_path / "d.jsonl").write_text('{"a": "cut", \n{"a": 1}\n{"a": 2}\n')
    (tmp_path / "e.csv").write_bytes(b'a,b\ncaf\xe9,1\n"x\n\0",1\n3,4\n')
    good, bad = [], []
    for entry, _ in rows_after(str(tmp_path), Cursor(), stream=False):
        try:
            good.append(entry.read().where)
        except DataError:
            bad.append(f"{entry.file.rsplit('/', 1)[1]}:{entry.line}")
    assert good == ["a.jsonl:1", "a.jsonl:5", "b.csv:2", "b.csv:4", "c.json:1", "c.json:1", "d.jsonl:2", "d.jsonl:3", "e.csv:5"]
    assert bad == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:4", "b.csv:3", "c.json:1", "d.jsonl:1", "e.csv:2", "e.csv:3"]


def files(folder, split="train"):
    found = files_of(folder, split)
    return [[str(file.relative_to(folder)) for file in part] for part in found] if found else None


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        ("train.jsonl test.jsonl README.md LICENSE", "train.jsonl", "test.jsonl"),
        ("train/in/a.jsonl test/in/a.jsonl", "train/in/a.jsonl", "test/in/a.jsonl"),
        ("train-X.parquet test-X.parquet", "train-X.parquet", "test-X.parquet"),
        ("data/train-X.parquet data/test-X.parquet dataset_infos.json", "data/train-X.parquet", "data/test-X.parquet"),
        ("json-train.arrow json-test.arrow cache-9f1.arrow dataset_info.json", "json-train.arrow", "json-test.arrow"),
        ("chats_train_v2.json chats_eval.json chats-dev.json", "chats_train_v2.json", "chats_eval.json"),
        ("a.csv b.csv validation.csv", "a.csv b.csv", None),
        ("a.csv b.csv notes.txt", "a.csv b.csv", "a.csv b.csv"),
        ("train/a.jsonl train/b.jsonl test/a.jsonl", "train/a.jsonl train/b.jsonl", "test/a.jsonl"),
        ("trainer.jsonl latest.jsonl", "latest.jsonl trainer.jsonl", "latest.jsonl trainer.jsonl"),
        ("train_sft-X.parquet train_gen-X.parquet", None, None),
        ("test.jsonl", None, "test.jsonl"),
        ("one/a.jsonl other/a.jsonl", None, None),
    ],
)  # fmt: skip
def test_the_files_of_a_split_are_told_by_their_names(tmp_path, names, train, test):
    names, train, test = (text and text.replace("-X", "-00000-of-00001") for text in (names, train, test))
    for name in names.split():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    data = {name for name in names.split() if not name.endswith((".md", "LICENSE", "s.json", "o.json", ".txt", "1.arrow"))}
    for split, expected in (("train", train), ("test", test)):
        if expected is None:
            with pytest.raises(DataError, match=r"of the split \w+\. It has the splits|several folders in it have data"):
                files(tmp_path, split)
        else:
            read, left_out, _ = files(tmp_path, split)
            assert (read, set(left_out)) == (expected.split(), data - {*read})


def test_a_pattern_stands_for_files_and_what_lies_beside_data_is_named(tmp_path):
    for name in ("a1.jsonl", "a2.jsonl", "b.jsonl", "notes.txt", "dev.jsonl", "more/c.jsonl", "empty/x.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(ROW) + "\n")
    assert [row.where for row in read_rows(f"{tmp_path}/a*.jsonl")] == ["a1.jsonl:1", "a2.jsonl:1"]
    assert [row.where for row in read_rows(f"{tmp_path}/**/c.jsonl")] == ["c.jsonl:1"]
    assert files_line(f"{tmp_path}/*/*.jsonl") == f"Files of {tmp_path}/*/*.jsonl: c.jsonl."
    assert files_line(str(tmp_path)).endswith(
        "Not read, as they are of other splits or of none: dev.jsonl. Not read, as they lie beside data files: notes.txt, more."
    )
    assert files(tmp_path, "dev")[0] == files(tmp_path, "validation")[0] == ["dev.jsonl"]
    assert "no file matches this pattern" in message_of(tmp_path / "x*.jsonl")
    assert "x.md matches this pattern and is no kind of data file" in message_of(tmp_path / "*" / "*")


def test_a_saved_dataset_is_what_its_state_names(tmp_path):
    from datasets import DatasetDict

    data = Dataset.from_list([ROW, ROW])
    DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path)
    (tmp_path / "train" / "cache-1234.arrow").write_bytes(b"no data")
    (tmp_path / "train" / "other.arrow").write_bytes(b"no data")
    assert len(list(read_rows(str(tmp_path)))) == len(list(read_rows(str(tmp_path / "train")))) == 2
    assert len(list(read_rows(str(tmp_path), split="test"))) == 1
    (tmp_path / "train" / "data-00000-of-00001.arrow").unlink()
    assert "names the file data-00000-of-00001.arrow, which is not there" in message_of(tmp_path)


def test_the_files_that_are_read_are_named_with_those_that_are_not(hub, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("train", "test"):
        (tmp_path / "in" / f"{name}.jsonl").write_text(json.dumps(ROW) + "\n")
    command = ("model=tiny", "data.path=in")
    line = f"Files of {tmp_path}/in: train.jsonl. Not read, as they are of other splits or of none: test.jsonl."
    assert line in hub("data", *command).out
    trained = hub("algo=sft", *command, "launch=inline", "algo.max_steps=1", "data.eval_path=in")
    assert trained.out.count(line) == 1
    assert f"Files of {tmp_path}/in: test.jsonl. Not read, as they are of other splits or of none: train.jsonl." in trained.out
    assert (
        hub("data", *command, "data.split=dev").problems[0].startswith(f"data.path={tmp_path}/in: no file in this folder is of")
    )


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("a.json", '{\n  "a": "1",\n  "b": [\n {"c": 2}]\n}\n', ["a.json:1"]),
        ("a.jsonl", '{\n "a": "1"\n}\n{\n "a": "2"\n}\n', ["a.jsonl:1", "a.jsonl:4"]),
        ("a.jsonl", '[{"a": "1"},\n {"a": "2"}]\n', ["a.jsonl:1", "a.jsonl:2"]),
        ("a.json", '{"version": 2, "data": [{"a": "1"}, {"a": "2"}]}', ["a.json:1", "a.json:1"]),
        ("a.json", '\n{\n"data":\n[\n{"a": "1"},\n{"a": "2"}\n], "by": {"a": 1}}', ["a.json:5", "a.json:6"]),
        ("a.json", '{"a": "1", "list": [{"b": 1}]}', ["a.json:1"]),
        ("a.ndjson", '{"a": "1"}\n{"a": "2"}\n', ["a.ndjson:1", "a.ndjson:2"]),
        ("a.tsv", "a\tb\n1\tx;y,z\n2\t\n", ["a.tsv:2", "a.tsv:3"]),
        ("a.csv", '\ufeffa;b\n1;"x, ""y"";"\n2;\n', ["a.csv:2", "a.csv:3"]),
        ("a.csv", "a\tb\n1\tx\n", ["a.csv:2"]),
        ("a.csv", "sep=;\na;b\n1;x\n", ["a.csv:3"]),
        ("a.csv", 'a, b\n1,x\n2,"y\ny"\n', ["a.csv:2", "a.csv:3"]),
        ("a.csv", "a,b,,\n1,x,,\n2,z,,,,\n", ["a.csv:2", "a.csv:3"]),
        ("a.csv", 'a,b\r1,"x\ny"\r2,z\r', ["a.csv:2", "a.csv:3"]),
        ("a.csv", "a\r1\r2", ["a.csv:2", "a.csv:3"]),
        ("a.tsv", "a,b\n1,x\n", ["a.tsv:2"]),
        ("a.jsonl", '{"a": [\n{"b": 1}\n]}\n', ["a.jsonl:1"]),
    ],
)
def test_the_forms_of_json_and_csv_are_told_by_the_file(tmp_path, name, text, places):
    (tmp_path / name).write_bytes(text.encode())
    rows = list(read_rows(str(tmp_path / name)))
    assert [row.where for row in rows] == places
    if "[\n" not in text or "data" in text:
        assert [row.value["a"] for row in rows] == ["1", "2"][: len(rows)]


def test_line_ends_within_cells_stay_as_they_are(tmp_path):
    cells = ["x\r\ny", "x\ny", "x\ry"]
    for end in ("\r", "\n", "\r\n"):
        (tmp_path / "a.csv").write_bytes(end.join(["a,b", *(f'1,"{cell}"' for cell in cells)]).encode())
        assert [row.value["b"] for row in read_rows(str(tmp_path / "a.csv"))] == cells


def test_columns_without_a_name_are_there_only_where_they_hold_something(tmp_path):
    (tmp_path / "a.csv").write_text(",instruction,output,,\n0,A?,B.,,\n1,C?,D.,,x\n")
    first, second = (row.value for row in read_rows(str(tmp_path / "a.csv")))
    assert first == {"column 1": "0", "instruction": "A?", "output": "B."}
    assert second == {"column 1": "1", "instruction": "C?", "output": "D.", "column 5": "x"}


def test_a_text_file_is_one_document_and_a_zip_is_the_file_in_it(tmp_path):
    (tmp_path / "a.txt").write_text("Once upon a time\n\nthere was.\n")
    (row,) = read_rows(str(tmp_path / "a.txt"))
    assert (row.value, row.where) == ({"text": "Once upon a time\n\nthere was.\n"}, "a.txt:1")
    assert "is read as a whole and can't be streamed" in message_of(
        tmp_path / "a.txt", lambda path: list(rows_after(path, Cursor()))
    )
    for name, inner in (("b.zip", "b.jsonl"), ("b.jsonl.zip", "b.jsonl"), ("c.zip", "in/c.csv"), ("d.jsonl.zip", "c.csv")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(inner, "a\n1\n2\n" if "csv" in inner else '{"a": "1"}\n{"a": "2"}\n')
            for beside in ("__MACOSX/._b.jsonl", "README.md", "README.txt", "._b.jsonl", "dataset_info.json"):
                archive.writestr(beside, "x")
        whole = list(rows_after(str(tmp_path / name), Cursor()))
        assert [row.read().value["a"] for row, _ in whole] == ["1", "2"]
        assert list(rows_after(str(tmp_path / name), whole[0][1])) == whole[1:]
    with zipfile.ZipFile(tmp_path / "b.zip", "a") as archive:
        archive.writestr("c.jsonl", "{}")
    assert "an archive must hold one file" in message_of(tmp_path / "b.zip")
    (tmp_path / "b.zip").write_bytes(b"PK no archive")
    assert "can't be read" in message_of(tmp_path / "b.zip")


def test_a_file_of_columns_says_how_to_write_rows(tmp_path):
    (tmp_path / "a.json").write_text('{"prompt": {"0": "x", "1": "y"}, "completion": {"0": "z", "1": "w"}}')
    assert "to_json(orient='records', lines=True)" in message_of(tmp_path / "a.json")
