"""Errors in data files: one clear line with the place, or with `data.on_bad_row=skip` left out and counted."""

import gzip
import json

import pytest

from hub.data.sources.read import Cursor, rows_after
from hub.errors import DataError

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
USER, ANSWER = GOOD["messages"]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
ROWS = {
    "nested nulls": ({"messages": [USER, {"role": "assistant", "content": [None]}]}, "message 2 (assistant): a content part"),
    "null messages": ({"messages": [None, ANSWER]}, "message 1 of messages must be an object with role and content, not null"),
    "null content": ({"messages": [USER, {"role": "assistant", "content": None}]}, "content that is null, not a text"),
    "a number for a text": ({"messages": [USER, {"role": "assistant", "content": 7}]}, "content that is a number, not a text"),
    "a number for a role": ({"messages": [{"role": 1, "content": "x"}, ANSWER]}, "message 1 has the role 1. Allowed: system,"),
    "an unknown role": ({"messages": [{"role": "usr", "content": "x"}, ANSWER]}, "has the role 'usr'. Allowed: system, user"),
    "no assistant turn": ({"messages": [USER]}, "no assistant turn, so there is nothing to train on"),
    "two systems": ({"messages": [{"role": "system", "content": "x"}] * 2 + [USER, ANSWER]}, "Only the first may be"),
    "empty content": ({"messages": [USER, {"role": "assistant", "content": "\n"}]}, "message 2 (assistant) has empty content"),
    "a call without its tool": ({"messages": [USER, CALL], "tools": [{"name": "sub"}]}, "message 2 calls add, which is not"),
    "a call without a name": ({"messages": [USER, {**CALL, "tool_calls": [{"function": {}}]}]}, "a tool call must be"),
    "a list for a row": ([GOOD], "a row must be a JSON object {...}, this is a list"),
    "another format": ({"prompt": "a", "completion": "b"}, "this row is not in the format messages"),
    "broken JSON": ('{"messages": [', "broken JSON at column 15"),
    "two rows in a line": (f"{json.dumps(GOOD)} {json.dumps(GOOD)}", "one object per line; more text follows it"),
    "half a character": ('{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "x"}]}', ""),
    "a byte that is no text": (b'{"messages": "\xff"}', "byte 15 of the line (0xff) is not UTF-8"),
    "a zero byte": (b'{"messages": "\0"}', "a zero byte: this is a binary file, not text"),
}


def line(row) -> bytes:
    return row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else json.dumps(row).encode()


def write(file, *rows) -> None:
    file.write_bytes(b"".join(line(row) + b"\n" for row in rows))


COMMAND = ("algo=sft", "model=tiny", "data.path=chats.jsonl", "launch=inline", "algo.max_steps=1")


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_is_refused_with_file_line_and_reason(hub, tmp_path, name):
    row, reason = ROWS[name]
    write(tmp_path / "chats.jsonl", GOOD, row, *[GOOD] * 6)
    refused = hub(*COMMAND)
    assert refused.code == 2
    said = refused.err.splitlines()[-1]
    assert "chats.jsonl:2: " in said
    assert reason in said
    assert len(said) < 500


def test_bad_rows_of_every_kind_are_left_out_when_asked(hub, tmp_path):
    write(tmp_path / "chats.jsonl", *[GOOD] * 7, *(row for row, _ in ROWS.values()), GOOD)
    said = hub(*COMMAND, "data.on_bad_row=skip")
    assert said.code == 0, said.err
    assert f"Left out: {len(ROWS)} bad rows. The first: chats.jsonl:8: " in " ".join(said.out.split())
    assert "Data: 8 samples (messages)" in said.out


@pytest.mark.parametrize(
    ("files", "path", "reason"),
    [
        ({"a.jsonl": b""}, "a.jsonl", "the file holds no rows"),
        ({"a.jsonl": b"\n \n"}, "a.jsonl", "the file holds no rows"),
        ({"a.jsonl": json.dumps(GOOD).encode("utf-16")}, "a.jsonl", "the text is UTF-16. Save it as UTF-8"),
        ({"a.csv": b"messages,messages\n1,2\n"}, "a.csv", "the first row must name the fields, each once"),
        ({"a.jsonl.gz": b"no archive"}, "a.jsonl.gz", "can't be read"),
        ({"a.jsonl.gz": gzip.compress(line(GOOD) * 99)[:-9]}, "a.jsonl.gz", "can't be read"),
        ({"a.parquet": b"PAR1"}, "a.parquet", "can't be read as parquet"),
        ({"a.arrow": b"ARROW1"}, "a.arrow", "can't be read as Arrow"),
        ({"in/notes.md": b"x"}, "in", "no data file in this folder. It holds: notes.md. Allowed: a file (.jsonl"),
        ({"a.xlsx": b"PK"}, "a.xlsx", ".xlsx is no kind of data file"),
        ({}, "no-org/no-data", "no such file here, and"),
        ({"a.jsonl": b'{"question": "x"}\n'}, "a.jsonl", "these fields are of no known format: question"),
        ({"a.jsonl": line(GOOD | {"prompt": "x", "completion": "y"})}, "a.jsonl", "are of several formats (messages, prompt_c"),
        ({"a.jsonl": line({"prompt": "x", "chosen": "y", "rejected": "z"})}, "a.jsonl", "type data.format=chosen"),
    ],
)
def test_a_bad_file_is_one_line(hub, tmp_path, monkeypatch, files, path, reason):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    said = hub("algo=sft", "model=tiny", f"data.path={path}", "launch=inline")
    assert said.code == 2
    assert reason in said.err.splitlines()[-1]


def test_a_broken_line_in_the_middle_of_a_million_is_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n' * 500_000 + '{"a": oops}\n' + '{"a": 1}\n' * 499_999)
    bad = []
    for count, (entry, _) in enumerate(rows_after(str(file), Cursor()), 1):
        if count in (1, 500_001, 1_000_000):
            try:
                entry.read()
            except DataError as error:
                bad.append(str(error))
    assert count == 1_000_000
    assert [said.split(": ")[1] for said in bad] == ["broken JSON at column 7 (Expecting value). The line begins"]
    assert "a.jsonl:500001" in bad[0]


def test_marks_and_line_ends_of_other_systems_are_no_mistakes(hub, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join([line(GOOD)] * 4) + b"\r\n")
    said = hub("algo=sft", "model=tiny", "data.path=a.jsonl", "launch=inline", "algo.max_steps=1")
    assert said.code == 0
    assert "Data: 4 samples (messages)" in said.out


def test_a_line_of_fifty_megabytes_is_left_out_in_seconds(hub, tmp_path):
    long = {"messages": [{"role": "user", "content": "word " * 10_000_000}, ANSWER]}
    write(tmp_path / "a.jsonl", GOOD, long, GOOD)
    said = hub("algo=sft", "model=tiny", "data.path=a.jsonl", "data.max_seq_len=64", "launch=inline", "algo.max_steps=1")
    assert said.code == 0
    assert "Left out: 1 rows longer than 64 tokens" in said.out
    assert "(a.jsonl:2)" in said.out


@pytest.mark.slow
def test_halves_of_characters_and_line_ends_in_what_is_quoted_spoil_no_message(hub, tmp_path):
    rows = [
        {"prompt": "x", "completion": "y", "\ud83d": 1},
        {"prompt": "x", "\ud83d": 1},
        {"prompt": [{"role": "\udc00"}], "completion": "y"},
        {"prompt": "x\ud83d", "completion": "y", "two\nlines": 1},
        {"completion": "y", "two\nlines": 1},
    ]
    write(tmp_path / "a.jsonl", *rows)
    write(tmp_path / "b.jsonl", {"text": "a good text"}, {"text": "x\ud83d"}, {"text": ["\ud83d"]})
    for name, num_good in (("a.jsonl", 1), ("b.jsonl", 1)):
        for words in ((), ("--json",)):
            said = hub("data", "model=tiny", f"data.path={name}", *words)
            assert said.out.encode()
        report = json.loads(said.out)
        assert sum(source["num_rows"] for source in report["sources"]) == num_good
        assert all("\n" not in bad["reason"] for bad in report["bad_rows"])
        trained = hub(
            "algo=sft", "model=tiny", f"data.path={name}", "data.on_bad_row=skip", "launch=inline", "algo.max_steps=1"
        )
        assert (trained.code, trained.err, bool(trained.out.encode())) == (0, "", True)
    refused = hub("algo=sft", "model=tiny", "data.path=b.jsonl", "launch=inline")
    assert refused.err.startswith("hub: b.jsonl:2: text holds half a character (a lone surrogate, as \\ud83d)")
