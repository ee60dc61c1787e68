"""Streams: the order of rows, where a resumed one continues, and the memory."""

import copy
import json
import re
from itertools import islice

import numpy as np
import pytest

from hub.config.data import DataConfig, DataSource
from hub.config.schema import AlgoConfig, ModelConfig, RunConfig
from hub.data.sources.read import read_rows
from hub.data.streaming import windows as stream
from hub.data.streaming.feed import SampleStream
from hub.data.streaming.frames import from_bytes, to_bytes
from hub.data.streaming.windows import content_hash, items, windows
from hub.data.streaming.workers import Processes
from hub.data.tokens.encode import Encoder
from hub.errors import DataError
from hub.plugins.registry import registry
from hub.testing import tiny_model_path, write_chats
from hub.train.setup.samples import words_of

pytestmark = pytest.mark.usefixtures("warm_python")

NUM_ROWS, WINDOW = 25, 10


@pytest.fixture
def chats(tmp_path):
    return write_chats(tmp_path / "chats.jsonl", num_rows=NUM_ROWS)


@pytest.fixture(scope="module")
def tokenizer():
    from hub.testing import tokenizer

    return tokenizer()


def source(path) -> DataSource:
    return DataSource(path=str(path))


def stream_of(path, tokenizer, limit=None, num_shards=1, **options) -> SampleStream:
    """A stream without processes of its own."""
    data = DataConfig(**options)

    def open_shards(window, skip):
        encode = Encoder(tokenizer, data, source(path), limit)
        return [items(encode, windows(source(path), 1, 0, WINDOW, window), skip, n, num_shards) for n in range(num_shards)]

    return SampleStream(str(path), open_shards, data.block_size)


def same(one, other) -> None:
    assert (one is None) == (other is None)
    if one is not None:
        assert one.where == other.where
        assert np.array_equal(one.input_ids, other.input_ids)
        assert np.array_equal(one.loss_mask, other.loss_mask)


def lines(samples) -> list[int]:
    return [int(sample.where.split(":")[1]) for sample in samples]


def test_each_pass_has_every_row_once_window_after_window_in_a_new_order(chats, tokenizer):
    found = lines(stream_of(chats, tokenizer).take(2 * NUM_ROWS))
    for turn in (found[:NUM_ROWS], found[NUM_ROWS:]):
        for begin in range(0, NUM_ROWS, WINDOW):
            assert sorted(turn[begin : begin + WINDOW]) == list(range(begin + 1, min(begin + WINDOW, NUM_ROWS) + 1))
        assert turn != sorted(turn)
    assert found[:NUM_ROWS] != found[NUM_ROWS:]


@pytest.mark.parametrize("taken", [0, 3, 10, 13, 25, 31])
@pytest.mark.parametrize(
    "options",
    [
        {"limit": 60},
        {"limit": 20, "on_long": "split"},
        {"text_column": "text", "block_size": 33},
        {"text_column": "text", "limit": 9},
    ],
)
def test_a_stream_goes_on_exactly_where_its_state_says(tmp_path, chats, tokenizer, taken, options):
    rows = [json.loads(line) | {"text": f"{number} {line}"[: 9 * number + 1]} for number, line in enumerate(chats.open(), 1)]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = stream_of(chats, tokenizer, **options)
    assert len(whole.take(taken)) == taken
    again = stream_of(chats, tokenizer, **options)
    again.restore(json.loads(json.dumps(whole.state())))
    for one, other in zip(whole.take(40), again.take(40), strict=True):
        same(one, other)
    assert whole.state() == again.state()


def test_rows_that_are_too_long_are_counted_as_they_come(chats, tokenizer):
    found = stream_of(chats, tokenizer, limit=60)
    samples = found.take(40)
    assert max(map(len, samples)) <= 60
    num_left_out = found.counts["num_left_out"]
    assert found.counts["num_rows"] == found.counts["num_samples"] + num_left_out == 40 + num_left_out
    assert num_left_out > 5
    assert found.left_out[0]["reason"] == "longer than 60 tokens"
    assert found.counts["num_tokens"] == sum(map(len, samples))


def test_what_is_left_out_is_counted_by_kind_and_goes_on_with_the_state(tmp_path, tokenizer):
    rows = [[("system", "Be kind."), ("user", f"q{n}"), ("assistant", "a" * (300 if n == 2 else 3))] for n in range(6)]
    rows[4] = [("user", "q"), ("assistant", " ")]
    lines = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in rows]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    silent = copy.deepcopy(tokenizer)
    silent.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.role + m.content + '<|im_end|>' }}{% endfor %}"
    found = stream_of(file, silent, limit=100, on_bad_row="skip")
    found.take(4)
    again = stream_of(file, silent, limit=100, on_bad_row="skip")
    again.restore(json.loads(json.dumps(found.state())))
    again.take(4)
    places = {f"chats.jsonl:{n}" for n in (1, 2, 3, 4, 6)}
    assert set(again.texts_omitted) == {"system"}
    assert set(again.texts_omitted["system"]) == places
    assert again.num_texts_omitted == {"system": again.counts["num_rows_with_texts_omitted"]}
    assert {row["where"] for row in again.left_out} == {"chats.jsonl:3"}
    assert {row["where"] for row in again.bad_rows} == {"chats.jsonl:5"}
    line = ", ".join(words_of(again))
    assert re.search(r"\d too long rows left out \(chats.jsonl:3: longer than 100 tokens; ...\), \d bad rows", line)
    assert re.search(r"in \d+ rows the chat template left out the system message \(chats.jsonl:\d, ", line)


def test_a_stream_of_which_nothing_is_left_ends_with_a_line(chats, tokenizer):
    with pytest.raises(DataError, match="no row is left to train on"):
        stream_of(chats, tokenizer, limit=8).take(1)


@pytest.mark.parametrize("num_shards", [2, 3])
def test_the_samples_do_not_depend_on_how_many_processes_share_the_work(chats, tokenizer, num_shards):
    one, several = stream_of(chats, tokenizer, 60), stream_of(chats, tokenizer, 60, num_shards)
    assert lines(one.take(60)) == lines(several.take(60))
    state = several.state()
    again = stream_of(chats, tokenizer, 60, 1)
    again.restore(state)
    assert lines(one.take(20)) == lines(again.take(20))


@pytest.mark.parametrize("num_rows", [100, 1000])
def test_no_more_than_a_window_of_rows_is_read_ahead_however_many_there_are(tmp_path, monkeypatch, num_rows):
    read = []

    def counted(*place):
        for row in original(*place):
            read.append(row)
            yield row

    original = stream.rows_after
    monkeypatch.setattr(stream, "rows_after", counted)
    found = windows(source(write_chats(tmp_path / "chats.jsonl", num_rows=num_rows)), 1, 0, WINDOW)
    for number in range(1, 6):
        _, rows = next(found)
        assert (len(rows), len(read)) == (WINDOW, number * WINDOW)


def test_the_first_rows_of_a_file_decide_on_its_format_even_when_a_run_goes_on_behind_it(tmp_path, tokenizer):
    rows = [{"prompt": "a", "completion": "b"}] + [{"prompt": "a", "completion": "b", "messages": []}] * 5
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encode = Encoder(tokenizer, DataConfig(), source(tmp_path / "a.jsonl"), None)
    last = list(read_rows(str(tmp_path / "a.jsonl")))[-1]
    assert encode(last)[0].unit is not None


def test_frames_carry_windows_items_and_errors(tmp_path, chats, tokenizer):
    encode = Encoder(tokenizer, DataConfig(), source(chats), 60)
    found = list(islice(items(encode, windows(source(chats), 1, 0, WINDOW)), 12))
    file = tmp_path / "frames"
    file.write_bytes(b"".join(map(to_bytes, [*found, DataError("bad row")])))
    with file.open("rb") as data:
        for expected in found:
            got = from_bytes(data.read)
            if isinstance(expected, list):
                for one, other in zip(got, expected, strict=True):
                    same(one.unit, other.unit)
                got, expected = ([item._replace(unit=None) for item in each] for each in (got, expected))
            assert got == expected
        with pytest.raises(DataError, match="bad row"):
            from_bytes(data.read)


def test_processes_make_the_same_samples_and_say_what_is_wrong_with_a_row(tmp_path, chats):
    from transformers import AutoTokenizer

    model = tiny_model_path("llama")
    with chats.open("a") as file:
        file.write("{oops\n")
    cfg = RunConfig(
        algo=registry().algorithm("sft").config(seed=1, max_steps=5),
        model=ModelConfig(path="tiny:llama"),
        data=DataConfig(path=str(chats), streaming=True, shuffle_window=WINDOW),
    )
    processes = Processes(cfg, model, 60, num_shards=2)
    try:
        found, expected = processes.stream(0), stream_of(chats, AutoTokenizer.from_pretrained(model), 60)
        assert lines(found.take(8)) == lines(expected.take(8))
        with pytest.raises(DataError, match=r"chats\.jsonl:26: broken JSON"):
            found.take(40)
    finally:
        processes.close()


def test_the_fingerprint_of_a_stream_sees_its_ends_and_its_size_but_no_times(tmp_path, chats):
    before = content_hash(str(chats), ())
    text = chats.read_text()
    chats.touch()
    assert content_hash(str(chats), ()) == before
    for changed in (text[:-2] + "x\n", "x" + text[1:], text + "\n"):
        chats.write_text(changed)
        assert content_hash(str(chats), ()) != before


def test_each_window_of_each_source_pass_and_seed_has_an_order_of_its_own(tmp_path):
    file = write_chats(tmp_path / "chats.jsonl", num_rows=2 * WINDOW)
    orders = {}
    for seed, number in ((1, 0), (1, 1), (2, 0)):
        for window, rows in islice(windows(source(file), seed, number, WINDOW), 4):
            places = [row.line for row in rows]
            assert sorted(places) == list(range(min(places), min(places) + WINDOW))
            orders[seed, number, window.turn, window.number] = tuple(place - min(places) for place in places)
    assert len(orders) == len(set(orders.values())) == 12
    assert {key[2:] for key in orders} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "data.streaming=true: rows are not counted beforehand, so set the length of the run. Type algo.max_steps=N, or"),
        ({"max_steps": 5, "eval_fraction": 0.1}, "data.eval_fraction=0.1 can't be combined with data.streaming=true"),
        ({"max_steps": 5, "save_every_epochs": 1}, "algo.save_every_epochs=1: the length of a pass over this"),
        ({"streaming": False, "shuffle_window": 5}, "data.shuffle_window=5 needs data.streaming=true"),
        ({"block_size": 64, "num_rows": 5}, "data.block_size=64 joins the rows of a stream, so their"),
        ({"streaming": False, "num_rows": 5}, "data.num_rows=5 needs data.streaming=true"),
        ({"mix": [{"weight": 1, "num_rows": 5}], "num_rows": 5}, "data.num_rows=5 works with data.path only"),
        ({"mix": [{"num_rows": 5}, {}], "max_steps": 5}, "data.mix[1] has neither weight nor num_rows"),
    ],
)
def test_what_a_stream_needs_is_said(options, line):
    algo = AlgoConfig(**{name: options.pop(name) for name in ("max_steps", "save_every_epochs") if name in options})
    mix = [DataSource(path=f"{n}.jsonl", **values) for n, values in enumerate(options.pop("mix", ()))]
    data = DataConfig(**{"path": "" if mix else "a.jsonl", "mix": mix, "streaming": True} | options)
    problems = list(RunConfig(algo=algo, data=data).data_problems())
    assert len(problems) == 1
    assert problems[0].startswith(line)
