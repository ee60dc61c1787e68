"""Tokens of a run's data: counted like a run, or from a sample whose error covers the truth."""

import gzip
import json
import random
from statistics import fmean

import pytest

from hub.config.schema import RunConfig
from hub.data.tokens.tokenizer import load_tokenizer
from hub.errors import ConfigError, DataError
from hub.plan.data_tokens import data_tokens
from hub.plan.sampled_rows import sample_rows
from hub.testing import tiny_model_path


def config(path="", **options):
    cfg = RunConfig()
    cfg.data.path = str(path)
    cfg.model.path = str(tiny_model_path("llama"))
    for name, value in options.items():
        setattr(cfg.data, name, value)
    return cfg


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(config(), tiny_model_path("llama"))


def write(file, count, seed=0):
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = ["ab", "the", "x", "mountain"]
        texts = [" ".join(draw.choices(words, k=int(draw.lognormvariate(2.5, 1)) + 1)) for _ in range(2)]
        rows.append({"messages": [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[1]}]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "chats.jsonl"
    write(file, 500)
    return file


@pytest.fixture(scope="module")
def counted(chats, tokenizer):
    return data_tokens(config(chats), tokenizer, None)


def test_small_data_is_counted_as_a_run_counts_it(counted, chats, tokenizer):
    from hub.data.prepare import prepare

    prepared = prepare(config(chats), tokenizer, None)
    assert counted.exact
    assert counted.per_pass == len(prepared.train) == 500
    assert counted.tokens_per_pass == pytest.approx(prepared.report["train"]["num_tokens"])
    assert counted.loss_share == pytest.approx(
        prepared.report["train"]["num_loss_tokens"] / prepared.report["train"]["num_tokens"]
    )
    assert counted.longest == prepared.longest == max(counted.population)
    assert counted.lines == tuple(prepared.lines)
    assert counted.share_longer(counted.longest - 1) == pytest.approx(1 / 500)
    assert counted.spread == (1, 1)


def test_the_error_of_a_sample_covers_the_truth(counted, chats, tokenizer, monkeypatch):
    monkeypatch.setattr("hub.plan.sampled_rows.MAX_ROWS", 60)
    off, errors = [], []
    for seed in range(12):
        cfg = config(chats)
        cfg.algo.seed = seed
        found = data_tokens(cfg, tokenizer, None, exact_bytes=0)
        assert not found.exact
        assert found.per_pass == 500, "lines are counted, so units are exact where each row is one"
        assert found.longest == counted.longest, "the longest rows are always among them"
        off.append(found.tokens_per_unit / counted.tokens_per_unit - 1)
        errors.append(found.error)
    assert 0 < fmean(errors) < 0.05
    assert sum(abs(each) <= 2 * error for each, error in zip(off, errors, strict=True)) >= 9, (off, errors)
    assert abs(fmean(off)) < fmean(errors), "without bias toward long rows"
    again = [data_tokens(config(chats), tokenizer, None, exact_bytes=0).tokens_per_unit for _ in range(2)]
    assert again[0] == again[1], "the seed decides"


def test_lengths_of_a_sample_are_those_of_the_rows_not_of_the_bytes(counted, chats, tokenizer):
    found = data_tokens(config(chats), tokenizer, None, exact_bytes=0)
    median = sorted(counted.population)[250]
    assert found.share_longer(median) == pytest.approx(0.5, abs=0.07)
    assert found.mean_square == pytest.approx(counted.mean_square, rel=0.2)


def test_a_file_too_large_to_scan_has_a_good_guess_of_its_rows(chats, tokenizer, monkeypatch, counted):
    monkeypatch.setattr("hub.plan.sampled_rows.SCANNED_BYTES", 0)
    found = data_tokens(config(chats), tokenizer, None, exact_bytes=0)
    assert found.per_pass == pytest.approx(500, rel=0.1)
    assert found.tokens_per_pass == pytest.approx(counted.tokens_per_pass, rel=0.05)
    assert "about" in found.how


def test_other_kinds_of_files_are_sampled_too(tmp_path, tokenizer):
    rows = write(tmp_path / "chats.jsonl", 200)
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress((tmp_path / "chats.jsonl").read_bytes()))
    (tmp_path / "list.json").write_text(json.dumps(rows))
    expected = data_tokens(config(tmp_path / "chats.jsonl"), tokenizer, None)
    for name in ("packed.jsonl.gz", "list.json"):
        found = data_tokens(config(tmp_path / name), tokenizer, None, exact_bytes=0)
        assert found.tokens_per_pass == pytest.approx(expected.tokens_per_pass), name
        assert found.exact, "every row was in the sample"


def test_only_the_first_rows_read_widens_the_error(tmp_path, tokenizer, monkeypatch):
    rows = write(tmp_path / "chats.jsonl", 200)
    (tmp_path / "list.json").write_text(json.dumps(rows))
    monkeypatch.setattr("hub.plan.sampled_rows.MAX_READ", 50)
    found = data_tokens(config(tmp_path / "list.json"), tokenizer, None, exact_bytes=0)
    assert found.error >= 0.1
    assert "later rows may be unlike them" in found.how
    assert found.num_rows == pytest.approx(200, rel=0.6)


@pytest.mark.slow
def test_held_out_rows_mixes_and_blocks_count_as_in_a_run(chats, tmp_path, tokenizer):
    write(tmp_path / "other.jsonl", 100, seed=1)
    mix = [{"path": str(chats), "weight": 1.0}, {"path": str(tmp_path / "other.jsonl"), "weight": 3.0}]
    from hub.config.data import DataSource

    for options in (
        {"eval_fraction": 0.25},
        {"path": "", "mix": [DataSource(**source) for source in mix]},
        {"eval_path": str(tmp_path / "other.jsonl")},
    ):
        cfg = config(chats)
        for name, value in options.items():
            setattr(cfg.data, name, value)
        expected = data_tokens(cfg, tokenizer, None)
        found = data_tokens(cfg, tokenizer, None, exact_bytes=0)
        assert found.per_pass == expected.per_pass, options
        assert found.tokens_per_unit == pytest.approx(expected.tokens_per_unit, rel=0.06), options
        assert found.num_eval_tokens == pytest.approx(expected.num_eval_tokens, rel=0.1), options
        assert 0.3 < expected.loss_share < 0.7, options
        assert found.loss_share == pytest.approx(expected.loss_share, rel=0.06), options
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": "ab the x " * n}) + "\n" for n in range(1, 200)))
    blocks = config(tmp_path / "texts.jsonl", block_size=64)
    expected = data_tokens(blocks, tokenizer, None)
    assert data_tokens(blocks, tokenizer, None, exact_bytes=0).per_pass == pytest.approx(expected.per_pass, rel=0.03)


def test_without_a_tokenizer_bytes_are_counted_and_the_range_is_wide(chats):
    found = data_tokens(config(chats), None, None)
    assert found.guessed
    assert not found.exact
    low, high = found.spread
    assert low < 0.75
    assert high > 1.7
    assert "no tokenizer" in found.how


def test_what_is_wrong_with_data_is_said_as_in_a_run(tmp_path, chats, tokenizer):
    with chats.open() as stream:
        good = stream.readlines()
    (tmp_path / "bad.jsonl").write_text("".join([*good[:40], '{"messages": 3}\n', *good[40:50]]))
    for tokens, exact in ((tokenizer, 2**20), (tokenizer, 0), (None, 0)):
        with pytest.raises(DataError, match=r"bad\.jsonl:41: "):
            data_tokens(config(tmp_path / "bad.jsonl"), tokens, None, exact_bytes=exact)
        found = data_tokens(config(tmp_path / "bad.jsonl", on_bad_row="skip"), tokens, None, exact_bytes=exact)
        assert found.num_left_out == pytest.approx(1, abs=1)
        assert found.per_pass == pytest.approx(50, abs=1)
    with pytest.raises(DataError, match="there is no such file"):
        data_tokens(config(tmp_path / "none.jsonl"), tokenizer, None)
    with pytest.raises(ConfigError, match=r"data\.max_seq_len=999"):
        data_tokens(config(chats, max_seq_len=999), tokenizer, 512)


def test_no_data_and_data_of_the_model_hub_are_not_counted(tokenizer):
    assert data_tokens(config(), tokenizer, None) is None
    assert data_tokens(config("somebody/chats"), tokenizer, None) is None


def test_a_row_knows_its_line_and_its_weight(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": "x" * (n % 37 + 1), "n": n}) + "\n" + "\n" * (n % 3) for n in range(3000)))
    cfg = config(file)
    from hub.data.samples.mix import sources_of

    sampled = sample_rows(sources_of(cfg.data)[0], seed=3)
    assert sampled.num_rows == 3000
    assert sum(picked.weight for picked in sampled.rows) == pytest.approx(3000, rel=0.15)
    lines = file.read_text().split("\n")
    for picked in sampled.rows:
        assert json.loads(lines[picked.entry.line - 1])["n"] == picked.entry.read().value["n"]
