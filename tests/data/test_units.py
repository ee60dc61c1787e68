"""Rows with several samples: one unit from the file to the step, in memory, from the cache and in streams."""

import json
import os
from dataclasses import replace
from importlib.metadata import entry_points

import numpy as np
import pytest

from hub.config.data import DataConfig, DataSource
from hub.config.schema import AlgoConfig, ModelConfig, RunConfig
from hub.data import token_cache
from hub.data.check import Checked, check_rows
from hub.data.doctor.examine import examine
from hub.data.formats.roles import Wanted
from hub.data.prepare import prepare
from hub.data.samples.roles import check_roles, check_single
from hub.data.samples.sample import Group, Item, Sample, fingerprint, random_samples
from hub.data.streaming.feed import SampleStream
from hub.data.streaming.frames import from_bytes, reader, to_bytes
from hub.data.streaming.windows import items, windows
from hub.data.streaming.workers import Processes
from hub.data.token_cache import encoded_rows, key_of
from hub.data.tokens.encode import Encoder
from hub.errors import DataError
from hub.plugins import registry as plugins
from hub.plugins.offers import SINGLE
from hub.testing import tiny_model_path

pytestmark = pytest.mark.usefixtures("warm_python")

ROLES = ("chosen", "rejected")
NUM_ROWS = 12
PLUGIN = """
from hub import DataFormat, hookimpl

def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

def convert(row):
    BODY
    return {"rejected": chat(row["prompt"], row["rejected"]), "chosen": chat(row["prompt"], row["chosen"])}

@hookimpl
def hub_data_formats():
    return [DataFormat(name="pair", fields=("chosen", "rejected"), convert=convert, roles=("chosen", "rejected"))]
"""


def pair(number, chosen=3, rejected=5):
    return {"prompt": f"Question {number}?", "chosen": f"yes {number} " * chosen, "rejected": f"no {number} " * rejected}


PAIRS = [pair(number, 1 + number % 3, 1 + number % 4) for number in range(NUM_ROWS)]


@pytest.fixture(scope="module")
def tokenizer():
    from hub.testing import tokenizer

    return tokenizer()


@pytest.fixture
def install(plugin_folder, monkeypatch):
    """Installs the plugin with a few lines in front of its conversion, for this process and those that it starts."""

    def add(body="pass", source=PLUGIN):
        folder = plugin_folder(f"site-{os.urandom(4).hex()}")
        folder.add("pair", source.replace("BODY", body))
        monkeypatch.setenv("PYTHONPATH", str(folder.path), prepend=os.pathsep)
        found = plugins.load(entry_points(group="hub"))
        assert not found.warnings
        monkeypatch.setattr(plugins, "registry", lambda: found)

    return add


@pytest.fixture
def pairs(tmp_path, install):
    """A file of pairs, where the plugin is installed."""
    install()
    return write(tmp_path / "pairs.jsonl", PAIRS)


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def config(path, **options):
    return RunConfig(algo=AlgoConfig(seed=1), model=ModelConfig(path="m"), data=DataConfig(path=str(path), **options))


def encode(tokenizer, path, limit=None, number=0, **options):
    """The items of one row."""
    source = DataSource(path=str(path), format=options.pop("format", "auto"))
    entries = token_cache.rows_after(source.path, token_cache.Cursor(), None, "train", stream=False)
    row = [entry for entry, _ in entries][number]
    return Encoder(tokenizer, DataConfig(**options), source, limit)(row)


def same(one, other):
    assert type(one) is type(other)
    assert one.where == other.where
    assert len(one.samples) == len(other.samples)
    if isinstance(one, Group):
        assert one.format == other.format == "pair"
    for mine, theirs in zip(one.samples, other.samples, strict=True):
        assert (mine.where, mine.role) == (theirs.where, theirs.role)
        assert mine.input_ids.tobytes() == theirs.input_ids.tobytes()
        assert mine.loss_mask.tobytes() == theirs.loss_mask.tobytes()


def test_a_plain_row_is_a_sample_that_is_its_own_unit():
    sample = Sample(np.arange(3, dtype=np.int32), np.ones(3, np.bool_), "a.jsonl:1")
    assert sample.samples == (sample,)
    assert sample.role == ""
    group = Group((sample, replace(sample, input_ids=np.arange(2, dtype=np.int32))), "a.jsonl:1")
    assert len(group) == 5


@pytest.mark.parametrize("format", ["auto", "pair"])
def test_a_row_becomes_one_unit_of_its_samples_with_their_roles_in_the_order_of_the_format(tokenizer, pairs, format):
    prepared = prepare(config(pairs, format=format), tokenizer, None)
    assert len(prepared.train) == NUM_ROWS
    for number, unit in enumerate(prepared.train):
        assert isinstance(unit, Group)
        assert unit.where == f"pairs.jsonl:{number + 1}"
        assert [(sample.role, sample.where) for sample in unit.samples] == [(role, unit.where) for role in ROLES]
        assert len(unit) == sum(map(len, unit.samples))
        for role, sample in zip(ROLES, unit.samples, strict=True):
            assert tokenizer.decode(sample.input_ids[sample.loss_mask]).strip() == PAIRS[number][role] + "<|im_end|>"
    assert prepared.longest == max(len(sample) for unit in prepared.train for sample in unit.samples)
    assert prepared.report["train"] == {
        "num_rows": NUM_ROWS,
        "num_units": NUM_ROWS,
        "num_samples": 2 * NUM_ROWS,
        "num_tokens": sum(map(len, prepared.train)),
        "num_loss_tokens": sum(int(sample.loss_mask.sum()) for unit in prepared.train for sample in unit.samples),
        "longest": prepared.longest,
    }
    assert prepared.report["formats"] == ["pair"]
    assert prepared.report["num_samples_repeated"] == 0
    assert prepared.lines[0].startswith(f"Data: {NUM_ROWS} units of {2 * NUM_ROWS} samples (pair), ")
    assert prepared.mix.sizes == (NUM_ROWS,)
    assert prepared.mix.per_pass == NUM_ROWS
    assert "<|im_end|> included" in prepared.lines[-1]


def test_the_built_in_formats_of_such_rows_stay_when_they_are_asked_for_or_no_plugin_is_there(tokenizer, tmp_path, install):
    path = write(tmp_path / "pairs.jsonl", PAIRS)
    with pytest.raises(DataError, match=r"type data\.format=chosen"):
        prepare(config(path), tokenizer, None)
    install()
    prepared = prepare(config(path, format="chosen"), tokenizer, None)
    assert all(isinstance(unit, Sample) and not unit.role for unit in prepared.train)
    both = write(tmp_path / "both.jsonl", [PAIRS[0] | {"messages": []}])
    with pytest.raises(DataError, match=r"several formats \(messages, pair\)"):
        prepare(config(both), tokenizer, None)


def test_the_cache_and_a_stream_give_the_same_units_bit_for_bit(tokenizer, pairs, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    model = tiny_model_path("llama")
    tokenizer = AutoTokenizer.from_pretrained(model)
    monkeypatch.setenv("HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "usable_cores", lambda: 2)
    cfg = config(pairs)
    cfg.algo = plugins.registry().algorithm("sft").config(seed=1, max_steps=5)
    cfg.model = ModelConfig(path="tiny:llama")
    expected = prepare(cfg, tokenizer, 60)
    assert not expected.report["num_left_out"]
    monkeypatch.setattr(token_cache, "SMALL_BYTES", 1)
    reported: list[str] = []
    for _ in range(2):
        cached = prepare(cfg, tokenizer, 60, model, reported.append)
        for one, other in zip(cached.train, expected.train, strict=True):
            same(one, other)
        assert fingerprint(cached.train) == fingerprint(expected.train)
    assert len(reported) == 1
    streamed = replace(cfg, data=DataConfig(path=pairs, streaming=True, shuffle_window=5))
    processes = Processes(streamed, model, 60, num_shards=2)
    try:
        stream = processes.stream(0)
        units = stream.take(NUM_ROWS)
    finally:
        processes.close()
    by_place = {unit.where: unit for unit in expected.train}
    assert sorted(by_place) == sorted(unit.where for unit in units)
    for unit in units:
        same(unit, by_place[unit.where])
    counts = expected.report["train"]
    assert {name: stream.counts[name] for name in counts} == counts


def test_a_stream_goes_on_in_the_middle_of_a_pass_with_whole_units(tokenizer, pairs):
    def stream():
        def open_shards(window, skip):
            source = DataSource(path=pairs)
            return [items(Encoder(tokenizer, DataConfig(), source, None), windows(source, 1, 0, 5, window), skip)]

        return SampleStream(pairs, open_shards)

    whole, again = stream(), stream()
    whole.take(7)
    again.restore(json.loads(json.dumps(whole.state())))
    for one, other in zip(whole.take(20), again.take(20), strict=True):
        same(one, other)
    assert whole.state() == again.state()


def test_frames_carry_groups_beside_samples_and_rows_that_are_left_out(tokenizer, pairs):
    plain = Sample(np.arange(5, dtype=np.int32), np.ones(5, np.bool_), "a.jsonl:3")
    rows = [
        encode(tokenizer, pairs),
        [Item("a.jsonl:3", 5, plain)],
        encode(tokenizer, pairs, limit=8),
        encode(tokenizer, pairs),
    ]
    read = reader(b"".join(map(to_bytes, rows)))
    for expected in rows:
        (got,), (item,) = from_bytes(read), expected
        assert got._replace(unit=None) == item._replace(unit=None)
        assert (got.unit is None) == (item.unit is None)
        if item.unit is not None:
            same(got.unit, item.unit)
    assert from_bytes(read) is None


@pytest.mark.parametrize("long", ROLES)
def test_one_sample_that_is_too_long_leaves_the_whole_row_out_and_counts_it_once(tokenizer, install, tmp_path, long):
    install()
    path = write(tmp_path / "pairs.jsonl", [*PAIRS, pair(99, **{long: 40})])
    (item,) = encode(tokenizer, path, number=NUM_ROWS)
    longest = max(map(len, item.unit.samples))
    assert len(item.unit) > longest > 64
    prepared = prepare(config(path, max_seq_len=64), tokenizer, None)
    assert len(prepared.train) == NUM_ROWS
    assert prepared.report["num_left_out"] == 1
    assert prepared.report["num_tokens_left_out"] == len(item.unit)
    reason = f"{long} is longer than 64 tokens"
    assert prepared.report["left_out"] == [{"where": "pairs.jsonl:13", "num_tokens": len(item.unit), "reason": reason}]
    (line,) = [line for line in prepared.lines if line.startswith("Left out: 1 rows longer than 64 tokens")]
    assert line.endswith(f"type data.max_seq_len={longest}")
    assert len(prepare(config(path, max_seq_len=longest), tokenizer, None).train) == NUM_ROWS + 1


def test_long_samples_are_each_cut_when_asked_and_a_unit_without_loss_in_one_is_left_out(tokenizer, install, tmp_path):
    install()
    path = write(tmp_path / "pairs.jsonl", [pair(1, 40, 30), pair(2, 1, 40), {**pair(3), "prompt": "Question? " * 20}])
    (whole,) = encode(tokenizer, path)
    (item,) = encode(tokenizer, path, 50, on_long="truncate")
    for cut, sample in zip(item.unit.samples, whole.unit.samples, strict=True):
        assert cut.input_ids.tolist() == sample.input_ids[:50].tolist()
        assert cut.loss_mask.tolist() == sample.loss_mask[:50].tolist()
        assert cut.role == sample.role
    assert (item.num_tokens, item.num_cut) == (100, len(whole.unit) - 100)
    (item,) = encode(tokenizer, path, 50, number=1, on_long="truncate")
    assert [len(sample) for sample in item.unit.samples][1] == 50
    assert len(item.unit.samples[0]) < 50
    (item,) = encode(tokenizer, path, 50, number=2, on_long="truncate")
    assert (item.unit, item.reason) == (None, "nothing is trained in the first 50 tokens of chosen")
    prepared = prepare(config(path, max_seq_len=50, on_long="truncate"), tokenizer, None)
    assert (len(prepared.train), prepared.report["num_rows_cut"], prepared.report["num_left_out"]) == (2, 2, 1)


@pytest.mark.parametrize(
    ("on_long", "reason"),
    [
        ("split", "more than 50. A row with several samples can't be split. Type data.on_long=drop or truncate"),
        ("error", "more than 50. Type data.on_long=drop or truncate"),
    ],
)
def test_a_long_row_is_refused_with_the_reason_where_it_can_not_be_split_or_must_not_be_long(
    tokenizer, install, tmp_path, on_long, reason
):
    install()
    path = write(tmp_path / "pairs.jsonl", [pair(1, 2, 40)])
    with pytest.raises(DataError) as caught:
        encode(tokenizer, path, 50, on_long=on_long)
    assert str(caught.value).startswith("pairs.jsonl:1: rejected has ")
    assert str(caught.value).endswith(reason)
    (item,) = encode(tokenizer, path, 50, on_long=on_long, on_bad_row="skip")
    assert (item.unit, item.bad) == (None, True)


def test_a_sample_far_too_long_is_left_out_without_being_tokenized(tokenizer, install, tmp_path, monkeypatch):
    from hub.data.tokens import encode as module

    install()
    monkeypatch.setattr(module, "MIN_CHARACTERS_SKIPPED", 1000)
    path = write(tmp_path / "pairs.jsonl", [pair(1, 2, 4000)])
    (item,) = encode(tokenizer, path, 16)
    assert item.unit is None
    assert item.reason.startswith("longer than 16 tokens (")
    assert not item.bad


def test_a_sample_that_is_bad_or_without_loss_refuses_the_row_and_names_its_role(tokenizer, install, tmp_path):
    install()
    path = write(tmp_path / "pairs.jsonl", [*PAIRS, {**PAIRS[0], "rejected": " "}])
    with pytest.raises(DataError, match=r"^pairs\.jsonl:13: rejected: message 2 \(assistant\) has empty content"):
        prepare(config(path), tokenizer, None)
    prepared = prepare(config(path, on_bad_row="skip"), tokenizer, None)
    assert (len(prepared.train), prepared.report["num_bad_rows"]) == (NUM_ROWS, 1)
    assert prepared.report["bad_rows"][0]["where"] == "pairs.jsonl:13"
    body = "return {'chosen': {'input_ids': [5, 6]}, 'rejected': {'input_ids': [5, 6], 'labels': [5, -100]}}"
    install(body)
    with pytest.raises(DataError, match=r"^pairs\.jsonl:1: rejected: nothing in this row is trained"):
        prepare(config(path), tokenizer, None)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('no\\nanswer')", "no answer"),
        ("raise ValueError", "ValueError"),
        ("row['answer']", "the format pair failed on this row (KeyError: 'answer'). This is a bug in its plugin"),
        ("return None", "the format pair gave null instead of an object. This is a bug in its plugin"),
        ("return {'chosen': {}}", "an object for each of chosen, rejected, but gave chosen: an object. This is a bug in its"),
        (
            "return {'chosen': {}, 'rejected': 'no'}",
            "but gave chosen: an object, rejected: a text. This is a bug in its plugin",
        ),
        ("return {}", "but gave none. This is a bug in its plugin"),
        ("return dict.fromkeys(('chosen', 'rejected', 'other'), {})", "but gave chosen: an object, rejected: an object, other"),
        (
            "return {'chosen': row, 'rejected': row}",
            "chosen: it has several samples itself (chosen, rejected). This is a bug in its plugin",
        ),
        ("return {'chosen': {'x': 1}, 'rejected': {}}", "chosen: these fields are of no known format: x"),
    ],
)
def test_a_broken_conversion_is_one_line_with_the_place(tokenizer, install, tmp_path, body, reason):
    install(body)
    path = write(tmp_path / "pairs.jsonl", PAIRS)
    with pytest.raises(DataError) as caught:
        prepare(config(path), tokenizer, None)
    said = str(caught.value)
    assert said.startswith("pairs.jsonl:1: ")
    assert reason in said
    assert "\n" not in said
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: "):
        check_rows(DataSource(path=path), DataConfig())


def test_a_format_without_roles_may_give_pairs_in_the_hubs_own_format(tokenizer, install, tmp_path):
    install(source=PLUGIN.replace(', roles=("chosen", "rejected")', "").replace("BODY", "return row"))
    path = write(tmp_path / "pairs.jsonl", PAIRS)
    prepared = prepare(config(path), tokenizer, None)
    assert {tuple(sample.role for sample in unit.samples) for unit in prepared.train} == {("chosen", "rejected")}


def test_fields_that_nothing_reads_are_named_with_their_role(tokenizer, install, tmp_path):
    install("return {role: chat('a', row[role]) | {'topic': 1} for role in ('chosen', 'rejected')}")
    prepared = prepare(config(write(tmp_path / "pairs.jsonl", PAIRS)), tokenizer, None)
    assert prepared.report["fields_not_used"] == ["chosen.topic", "rejected.topic"]


def test_rows_of_pairs_are_checked_before_training_without_anything_heavy(pairs):
    assert check_rows(DataSource(path=pairs), DataConfig()) == Checked(NUM_ROWS, True)


def test_rows_with_other_samples_than_are_wanted_are_refused_before_training(pairs, tmp_path):
    both, single = Wanted("dpo", (ROLES,)), Wanted("sft", (SINGLE,))
    assert check_rows(DataSource(path=pairs), DataConfig(), wanted=both) == Checked(NUM_ROWS, True)
    with pytest.raises(
        DataError, match=r"^data\.format=pair gives 2 samples a row \(chosen, rejected\); algo=sft trains on one"
    ):
        check_rows(DataSource(path=pairs), DataConfig(), wanted=single)
    path = write(
        tmp_path / "chats.jsonl", [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    )
    assert check_rows(DataSource(path=path), DataConfig(), wanted=single) == Checked(1, True)
    with pytest.raises(
        DataError, match=r"^chats\.jsonl:1: this row has one sample\. algo=dpo trains on rows with the samples cho"
    ):
        check_rows(DataSource(path=path), DataConfig(on_bad_row="skip"), wanted=both)
    with pytest.raises(DataError, match=r"^org/chats: each row has one sample\. .* Type data\.format=preference or pair$"):
        check_rows(DataSource(path="org/chats", format="messages"), DataConfig(), wanted=both)


def test_duplicates_leaks_and_the_evaluation_set_are_whole_units(tokenizer, install, tmp_path):
    install()
    swapped = {**PAIRS[0], "chosen": PAIRS[0]["rejected"], "rejected": PAIRS[0]["chosen"]}
    other = {**PAIRS[1], "rejected": "something else"}
    path = write(tmp_path / "pairs.jsonl", [*PAIRS, PAIRS[2], swapped, other])
    test = write(tmp_path / "test.jsonl", [PAIRS[5], {**PAIRS[6], "rejected": "something else"}])
    prepared = prepare(config(path, eval_path=test), tokenizer, None)
    assert prepared.report["num_samples_repeated"] == 1
    assert prepared.report["num_held_out_samples_in_training_data"] == 1
    held_out = prepare(config(path, eval_fraction=0.2), tokenizer, None)
    assert (len(held_out.evaluation), len(held_out.train)) == (3, NUM_ROWS)
    assert all(isinstance(unit, Group) for unit in held_out.evaluation)
    assert not {unit.where for unit in held_out.evaluation} & {unit.where for unit in held_out.train}
    assert "Evaluation set: 6 samples." in held_out.lines[0]


def test_the_fingerprint_tells_units_from_their_samples_and_roles_apart(tokenizer, pairs):
    units = prepare(config(pairs), tokenizer, None).train
    first = units[0]
    assert isinstance(first, Group)
    one, two = first.samples
    loose = [replace(one, role=""), replace(two, role="")]
    others = [
        units,
        [*first.samples, *units[1:]],
        [*loose, *units[1:]],
        [Group((two, one), first.where), *units[1:]],
        [Group((replace(one, role="a"), two), first.where), *units[1:]],
        [Group((*first.samples, *units[1].samples), first.where), *units[2:]],
        units[::-1],
    ]
    # A sample that is a unit is identified by its tokens and mask alone.
    assert fingerprint(others[1]) == fingerprint(others[2])
    assert len({fingerprint(each) for each in others}) == len(others) - 1
    assert fingerprint(units) == fingerprint(list(units))


def test_units_are_mixed_with_plain_rows_as_one_each(tokenizer, pairs, tmp_path):
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    chats = write(tmp_path / "chats.jsonl", [chat] * 5)
    mix = [DataSource(path=pairs, weight=1), DataSource(path=chats, weight=3)]
    prepared = prepare(config("", mix=mix), tokenizer, None)
    assert prepared.mix.sizes == (NUM_ROWS, 5)
    assert [source["num_units"] for source in prepared.report["sources"]] == [NUM_ROWS, 5]
    assert [source["num_samples"] for source in prepared.report["sources"]] == [2 * NUM_ROWS, 5]
    assert [isinstance(unit, Group) for unit in prepared.train] == [True] * NUM_ROWS + [False] * 5


def test_documents_of_a_pair_are_neither_joined_nor_split(tokenizer, install, tmp_path):
    install("return {role: {'text': row[role]} for role in ('chosen', 'rejected')}")
    path = write(tmp_path / "pairs.jsonl", [*PAIRS, pair(7, 60, 1)])
    (item,) = encode(tokenizer, path)
    assert [sample.role for sample in item.unit.samples] == list(ROLES)
    prepared = prepare(config(path, max_seq_len=64), tokenizer, None)
    assert (len(prepared.train), prepared.report["num_left_out"]) == (NUM_ROWS, 1)


def test_texts_of_a_format_with_one_sample_a_row_are_split_beside_documents_that_are_joined(tokenizer, install, tmp_path):
    source = PLUGIN.replace(', roles=("chosen", "rejected")', "").replace("BODY", "return {'text': row['chosen']}")
    install(source=source)
    path = write(tmp_path / "pairs.jsonl", [pair(1, 30)])
    parts = encode(tokenizer, path, 16, block_size=16)
    assert len(parts) > 1
    assert max(part.num_tokens for part in parts) == 16
    assert {part.format for part in parts} == {"pair"}


def test_the_cache_does_not_give_what_another_version_of_the_plugin_made(tokenizer, install, tmp_path):
    path = write(tmp_path / "pairs.jsonl", PAIRS)

    def key(**options):
        cfg = config(path, **options)
        return key_of(cfg, DataSource(path=path, format=cfg.data.format), tokenizer, 60)

    without, named = key(), key(format="chosen")
    install()
    first, again = key(), key()
    install("row = dict(row)")
    changed = key()
    install(source=PLUGIN.replace('roles=("chosen", "rejected")', 'roles=("rejected", "chosen")'))
    assert len({without, first, changed, key()}) == 4
    assert first == again
    assert key(format="chosen") == named


def test_the_doctor_inspects_all_samples_of_a_row(tokenizer, install, tmp_path):
    install()
    broken = {**pair(50), "rejected": "caf\ufffd"}
    path = write(tmp_path / "pairs.jsonl", [*PAIRS, PAIRS[3], broken, pair(60, 1, 40)])
    examined = examine(config(path, max_seq_len=64), tokenizer, 512)
    whats = {finding.what: finding for finding in examined.findings}
    assert whats["duplicate rows (exact copies)"].examples == ("pairs.jsonl:13 repeats pairs.jsonl:4",)
    assert whats["rows with a character that could not be decoded (U+FFFD)"].examples == ("pairs.jsonl:14",)
    (left_out,) = [finding for what, finding in whats.items() if what.startswith("rows are longer than 64 tokens")]
    assert left_out.count == 1
    assert examined.lengths["num_rows"] == NUM_ROWS + 3
    (item,) = encode(tokenizer, path, number=NUM_ROWS + 2)
    assert examined.lengths["max"] == max(map(len, item.unit.samples)) < len(item.unit)
    assert [sample.role for sample in examined.samples[:2]] == list(ROLES)
    assert examined.trained["num_units"] == NUM_ROWS + 2
    assert examined.trained["num_samples"] == 2 * (NUM_ROWS + 2)
    json.dumps(examined.report())


def test_an_algorithm_for_single_samples_refuses_groups_in_one_line(tokenizer, pairs, tmp_path):
    units = prepare(config(pairs), tokenizer, None).train
    with pytest.raises(DataError) as caught:
        check_single(units, "sft")
    assert str(caught.value) == (
        "data.format=pair gives 2 samples a row (chosen, rejected); algo=sft trains on one. Type data.format=chosen to train "
        "on the chosen answers, or algo=NAME of an algorithm for such rows"
    )
    check_roles(units, ROLES, "dpo")
    plain = prepare(config(pairs, format="chosen"), tokenizer, None).train
    assert check_single(plain, "sft") == list(plain)
    with pytest.raises(DataError) as caught:
        check_roles([*units, *plain], ROLES, "dpo")
    assert str(caught.value) == (
        "pairs.jsonl:1: this row has one sample. algo=dpo trains on rows with the samples chosen, rejected. Type "
        "data.format=preference or pair"
    )
    rollouts = [Group(tuple(replace(plain[0]) for _ in range(4)), "rollout 1")]
    with pytest.raises(
        DataError, match=r"^rollout 1: there are 4 samples a row; algo=sft trains on one\. Type data\.format=NAME"
    ):
        check_single(rollouts, "sft")


def test_encoded_rows_of_a_stream_are_units(tokenizer, pairs):
    rows = encoded_rows(config(pairs, streaming=True), DataSource(path=pairs), tokenizer, None, None, print, 3)
    assert [len(row) for row in rows] == [1, 1, 1]
    assert all(isinstance(row[0].unit, Group) for row in rows)


def test_random_samples_draw_all_words_and_have_loss_on_all_tokens():
    found = random_samples(3, (50, 20), seed=0)
    assert [len(sample) for sample in found] == [50, 20]
    assert {*found[0].input_ids} == {*found[1].input_ids} == {0, 1, 2}
    assert all(sample.loss_mask.dtype == bool and sample.loss_mask.all() for sample in found)
