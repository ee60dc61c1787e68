"""The samples of a row: whole, cut or joined, or the reason why there are none."""

import json

import pytest

from hub.config.data import DataConfig, DataSource
from hub.data.samples.blocks import Blocks
from hub.data.samples.sample import Sample
from hub.data.sources.entries import Broken, Row
from hub.data.sources.read import rows_after
from hub.data.tokens.encode import Encoder
from hub.errors import DataError

CHAT = {"messages": [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one two three four five six"}]}


@pytest.fixture(scope="module")
def tokenizer():
    from hub.testing import tokenizer

    return tokenizer()


def encode(tokenizer, value, limit=None, **options):
    entry = value if isinstance(value, Broken) else Row(value, "data/rows.jsonl", 4)
    return Encoder(tokenizer, DataConfig(**options), DataSource(path="data/rows.jsonl", format="auto"), limit)(entry)


@pytest.fixture(autouse=True)
def rows_file(tmp_path, monkeypatch):
    """The first row of the file decides on its format."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()

    def write(value):
        (tmp_path / "data/rows.jsonl").write_text(json.dumps(value) + "\n")

    write(CHAT)
    return write


def text(tokenizer, sample, trained=False):
    return tokenizer.decode(sample.input_ids[sample.loss_mask] if trained else sample.input_ids)


def ids(samples):
    return [number for sample in samples for number in sample.input_ids.tolist()]


def test_a_document_is_trained_as_a_whole_with_its_end(tokenizer, rows_file):
    for value, options in (({"text": "It is 4."}, {}), ({"body": "It is 4.", "text": 3}, {"text_column": "body"})):
        rows_file(value)
        (item,) = encode(tokenizer, value, **options)
        assert text(tokenizer, item.unit, trained=True) == "It is 4.<|im_end|>"
        assert (item.format, item.unit.where) == ("document", "rows.jsonl:4")
    assert item.unused == ("text",)
    with pytest.raises(DataError, match=r"rows\.jsonl:4: this row has no column boddy\. .* Did you mean body\?"):
        encode(tokenizer, value, text_column="boddy")


def test_tokens_are_taken_as_they_are(tokenizer, rows_file):
    value = {"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}
    rows_file(value)
    (item,) = encode(tokenizer, value)
    assert item.unit.input_ids.tolist() == [5, 6, 7]
    assert item.unit.loss_mask.tolist() == [False, False, True]
    assert encode(tokenizer, {"input_ids": [5, 6, 7]})[0].unit.loss_mask.all()
    with pytest.raises(DataError, match=r"input_ids has 9999, but the model's tokenizer has \d+ tokens"):
        encode(tokenizer, {"input_ids": [5, 9999]})
    with pytest.raises(DataError, match="nothing in this row is trained: no token behind the first one has loss"):
        encode(tokenizer, {"input_ids": [5, 6], "labels": [5, -100]})


def test_chosen_answers_are_conversations_when_asked_for(tokenizer, rows_file):
    turns = CHAT["messages"]
    forms = [
        {"prompt": turns[0]["content"], "chosen": turns[1]["content"], "rejected": "x"},
        {"prompt": turns[0]["content"], "chosen": turns, "rejected": turns},
        {"prompt": turns[:1], "chosen": turns[1:], "rejected": turns[1:]},
        {"chosen": turns, "rejected": turns},
        {"chosen": f"\n\nHuman: {turns[0]['content']}\n\nAssistant: {turns[1]['content']}", "rejected": "x"},
    ]
    (expected,) = encode(tokenizer, CHAT)
    for value in forms:
        entry = Row(value, "data/rows.jsonl", 4)
        source = DataSource(path="data/rows.jsonl", format="chosen")
        (item,) = Encoder(tokenizer, DataConfig(loss_on="completion"), source, None)(entry)
        assert item.unit.input_ids.tolist() == expected.unit.input_ids.tolist()
        assert item.unit.loss_mask.tolist() == expected.unit.loss_mask.tolist()


def test_rows_that_are_too_long_are_dropped_cut_split_or_refused(tokenizer):
    (whole,) = encode(tokenizer, CHAT)
    size, begin = whole.num_tokens, int(whole.unit.loss_mask.argmax())
    limit = begin + 3
    (dropped,) = encode(tokenizer, CHAT, limit)
    assert (dropped.unit, dropped.num_tokens, dropped.reason) == (None, size, f"longer than {limit} tokens")
    (cut,) = encode(tokenizer, CHAT, limit, on_long="truncate")
    assert cut.unit.input_ids.tolist() == whole.unit.input_ids[:limit].tolist()
    assert cut.num_cut == size - limit
    assert "<|im_end|>" not in text(tokenizer, cut.unit, trained=True)
    (nothing,) = encode(tokenizer, CHAT, begin, on_long="truncate")
    assert (nothing.unit, nothing.reason) == (None, f"nothing is trained in its first {begin} tokens")
    parts = encode(tokenizer, CHAT, limit, on_long="split")
    assert ids(part.unit for part in parts) == whole.unit.input_ids.tolist()
    assert [part.where for part in parts] == [f"rows.jsonl:4 part {number + 1}" for number in range(len(parts))]
    assert max(part.num_tokens for part in parts) == limit
    with pytest.raises(DataError, match=rf"rows\.jsonl:4: this row has {size} tokens, more than {limit}\. Type data\.on_long"):
        encode(tokenizer, CHAT, limit, on_long="error")


def test_parts_without_loss_are_cut_off_and_counted(tokenizer):
    long = {"messages": [{"role": "user", "content": "Count. " * 40}, CHAT["messages"][1]]}
    (whole,) = encode(tokenizer, long)
    items = encode(tokenizer, long, 16, on_long="split")
    assert items[0].num_cut == whole.num_tokens - sum(item.num_tokens for item in items) > 16
    assert all(item.unit.loss_mask[1:].any() for item in items)
    assert all(item.num_cut == 0 for item in items[1:])


def test_documents_that_are_too_long_are_split_without_being_asked(tokenizer, rows_file):
    value = {"text": "one two three four five " * 10}
    rows_file(value)
    (whole,) = encode(tokenizer, value)
    parts = encode(tokenizer, value, 20)
    kept = ids(part.unit for part in parts)
    # A token that is alone has nothing before it that could foretell it.
    assert (whole.num_tokens % 20, parts[0].num_cut) == (1, 1)
    assert kept == whole.unit.input_ids[:-1].tolist()


def test_bad_rows_are_refused_or_left_out_with_their_place_and_reason(tmp_path, tokenizer):
    (tmp_path / "data/rows.jsonl").write_text(f'{json.dumps(CHAT)}\n{{oops\n{{"messages": []}}\n')
    entries = [entry for entry, _ in rows_after("data/rows.jsonl", *_beginning())]
    source = DataSource(path="data/rows.jsonl")
    skip = Encoder(tokenizer, DataConfig(on_bad_row="skip"), source, None)
    found = [skip(entry)[0] for entry in entries]
    assert [(item.where, item.bad) for item in found] == [
        ("rows.jsonl:1", False), ("rows.jsonl:2", True), ("rows.jsonl:3", True)
    ]  # fmt: skip
    assert "rows.jsonl:2: broken JSON at column 2" in found[1].reason
    refuse = Encoder(tokenizer, DataConfig(), source, None)
    with pytest.raises(DataError, match=r"rows\.jsonl:3: messages is empty"):
        refuse(entries[2])


def _beginning():
    from hub.data.sources.read import Cursor

    return (Cursor(),)


def test_documents_are_joined_to_blocks_of_one_size_and_no_token_is_lost(tokenizer, rows_file):
    rows_file({"text": "x"})
    texts = ["one", "two three " * 30, "four", "five six seven"]
    samples = [encode(tokenizer, {"text": each}, 8, block_size=16)[0].unit for each in texts]
    blocks = Blocks(16)
    found = [block for sample in samples for block in blocks.add(sample)]
    found += blocks.rest()
    assert [len(block) for block in found[:-1]] == [16] * (len(found) - 1)
    assert ids(found) == ids(samples)
    assert all(block.loss_mask.all() for block in found)
    assert "one<|im_end|>two" in text(tokenizer, found[0])
    numbered = [Sample(sample.input_ids, sample.loss_mask, f"a:{number}") for number, sample in enumerate(samples)]
    blocks = Blocks(16)
    found = [block for sample in numbered for block in blocks.add(sample)] + blocks.rest()
    begins = [sum(map(len, numbered[: number + 1])) for number in range(len(numbered))]
    for number, block in enumerate(found):
        assert block.where == f"a:{next(place for place, end in enumerate(begins) if end > 16 * number)}"


def test_a_row_that_is_far_too_long_is_not_even_tokenized(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "_encode_plus", lambda *given, **options: pytest.fail("it is tokenized"))
    long = {"messages": [{"role": "user", "content": "word " * 250_000}, CHAT["messages"][1]]}
    (item,) = encode(tokenizer, long, 512)
    assert (item.unit, item.bad) == (None, False)
    assert item.num_tokens > 512
    assert item.reason.startswith("longer than 512 tokens (1,250,")


def test_rows_encoded_together_are_those_encoded_alone_and_an_error_comes_in_its_turn(tokenizer, monkeypatch):
    monkeypatch.setattr("hub.data.tokens.encode.BATCH_ROWS", 4)
    answers = ["one", "two", "☃ three", "four " * 9, "five", "six"]
    entries = [
        Row(
            {"messages": [{"role": "user", "content": f"Count {word}."}, {"role": "assistant", "content": word}]},
            "rows.jsonl",
            1,
        )
        for word in answers
    ]
    entries.insert(3, Row({"messages": []}, "rows.jsonl", 4))
    source = DataSource(path="data/rows.jsonl", format="messages")
    skip = Encoder(tokenizer, DataConfig(on_bad_row="skip"), source, 40)
    together, alone = list(skip.many(entries)), [skip(entry) for entry in entries]
    assert [items[0].reason for items in together] == [items[0].reason for items in alone]
    assert [items[0].bad for items in together] == [False, False, False, True, False, False, False]
    for (one,), (other,) in zip(together, alone, strict=True):
        assert (one.unit is None) == (other.unit is None)
        if one.unit is not None:
            assert one.unit.input_ids.tolist() == other.unit.input_ids.tolist()
            assert one.unit.loss_mask.tolist() == other.unit.loss_mask.tolist()
    rows = Encoder(tokenizer, DataConfig(), source, 40).many(entries)
    assert [next(rows)[0].bad for _ in range(3)] == [False] * 3
    with pytest.raises(DataError, match=r"rows\.jsonl:4: messages is empty"):
        next(rows)
