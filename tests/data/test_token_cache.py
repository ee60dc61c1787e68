"""The token cache: several processes encode a large source, and what is read back is what a single process makes."""

import json
import os
import time

import numpy as np
import pytest

from hub.config.data import DataConfig
from hub.config.schema import ModelConfig, RunConfig
from hub.data import token_cache
from hub.data.samples.counts import Counts
from hub.data.samples.mix import sources_of
from hub.data.samples.sample import Group, Sample
from hub.data.samples.units import Units
from hub.data.token_cache import encoded_rows, key_of
from hub.errors import DataError
from hub.plugins.registry import registry
from hub.testing import tiny_model_path, write_chats

pytestmark = pytest.mark.usefixtures("warm_python")


@pytest.fixture
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_path("llama"))


@pytest.fixture
def rows_of(tmp_path, monkeypatch, tokenizer, request):
    """Encodes tmp_path/chats.jsonl, and returns the reported lines, too."""
    monkeypatch.setenv("HUB_CACHE", str(tmp_path / "cache"))
    num_processes = getattr(request, "param", 1)
    monkeypatch.setattr(token_cache, "SMALL_BYTES", 1)
    monkeypatch.setattr(token_cache, "usable_cores", lambda: num_processes)
    write_chats(tmp_path / "chats.jsonl", num_rows=30)

    def encode(limit=60, beside=True, **options):
        cfg = RunConfig(
            algo=registry().algorithm("sft").config(),
            model=ModelConfig(path="tiny:llama"),
            data=DataConfig(path=str(tmp_path / "chats.jsonl"), **options),
        )
        said: list[str] = []
        path = tiny_model_path("llama") if beside else None
        rows = encoded_rows(cfg, sources_of(cfg.data)[0], tokenizer, limit, path, said.append)
        return list(rows), said

    return encode


def test_units_of_the_cache_are_those_in_memory_and_stay_on_disk(rows_of, tmp_path):
    options = {"on_long": "split", "on_bad_row": "skip"}
    with (tmp_path / "chats.jsonl").open("a") as file:
        file.write("{oops\n")
    expected = [item.unit for items in rows_of(beside=False, **options)[0] for item in items if item.unit]
    kept = Counts.of(rows_of(**options)[0], None).units
    odd = Sample(np.arange(3, dtype=np.int32), np.ones(3, np.bool_), "no file")
    both = Units([*kept, odd, Group((odd, odd), "a:1"), *kept])
    assert any("part 2" in unit.where for unit in kept)
    for found in (kept, both[: len(kept)], [both[place] for place in range(-len(kept), 0)], list(both)[-len(kept) :]):
        for unit, other in zip(found, expected, strict=True):
            assert (unit.where, unit.role, len(unit)) == (other.where, "", len(other))
            assert np.array_equal(unit.input_ids, other.input_ids)
            assert np.array_equal(unit.loss_mask, other.loss_mask)
    assert both[len(kept)] is odd
    assert (kept.num_tokens, kept.longest) == (sum(map(len, expected)), max(map(len, expected)))
    assert (both.num_samples, both.num_tokens) == (2 * kept.num_samples + 3, 2 * kept.num_tokens + 9)
    for units in (kept, both):
        assert list(units.sample_lengths()) == [len(sample) for unit in units for sample in unit.samples]
    assert kept[0] is not kept[0], "it is made anew each time"


@pytest.mark.parametrize("rows_of", [2], indirect=True)
def test_several_processes_make_what_one_makes_in_the_order_of_the_rows(rows_of, tmp_path):
    with (tmp_path / "chats.jsonl").open("a") as file:
        file.write("{oops\n")
    options = {"on_long": "split", "on_bad_row": "skip"}
    one, said = rows_of(beside=False, **options)
    assert not said
    several, said = rows_of(**options)
    assert "with 2 process(es)" in said[0]
    again, said = rows_of(**options)
    assert not said
    assert len(one) == 31
    for found in (several, again):
        for items, expected in zip(found, one, strict=True):
            for item, other in zip(items, expected, strict=True):
                assert item._replace(unit=None) == other._replace(unit=None)
                if item.unit is not None:
                    assert np.array_equal(item.unit.input_ids, other.unit.input_ids)
                    assert np.array_equal(item.unit.loss_mask, other.unit.loss_mask)


def test_the_key_of_an_entry_changes_with_all_that_it_depends_on(tmp_path, tokenizer):
    chats = write_chats(tmp_path / "chats.jsonl", num_rows=30)

    def key(limit=60, **options):
        cfg = RunConfig(data=DataConfig(path=str(chats), **options))
        return key_of(cfg, sources_of(cfg.data)[0], tokenizer, limit)

    first = key()
    text = chats.read_text()
    chats.write_text(text.replace("assistant", "ASSISTANT", 1))
    keys = [first, key(), key(61)]
    chats.write_text(text)
    keys += [key(loss_on="last"), key(on_long="split"), key(on_bad_row="skip"), key(format="messages"), key(block_size=64)]
    keys.append(key(columns={"messages": "chat"}))
    assert key(text_column="x") not in keys
    assert key(shuffle_window=7) == key(date="2026-11-28") == key() == first
    tokenizer.chat_template += "{{ strftime_now('%d %b %Y') }}"
    keys += [key(), key(date="2026-11-28"), key(date="2026-11-29")]
    tokenizer.add_tokens(["something"])
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_a_bad_row_is_reported_and_nothing_is_cached(rows_of, tmp_path):
    with (tmp_path / "chats.jsonl").open("a") as file:
        file.write(json.dumps({"messages": []}) + "\n")
    with pytest.raises(DataError, match=r"chats\.jsonl:31: messages is empty"):
        rows_of()
    assert not list((tmp_path / "cache/data").glob("*/rows"))


def test_entries_that_were_not_used_for_long_are_removed(rows_of, tmp_path):
    old, young = (tmp_path / "cache/data" / name / "rows" for name in ("old", "young"))
    for file, days in ((old, 31), (young, 29)):
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (0, time.time() - days * 86400))
    rows_of()
    assert not old.parent.exists()
    assert young.exists()
    assert len(list((tmp_path / "cache/data").glob("*/rows"))) == 2


def test_a_large_source_reports_its_progress_and_that_a_stream_would_not_wait(rows_of, monkeypatch):
    monkeypatch.setattr(token_cache, "SECONDS_BETWEEN_REPORTS", 0.0)
    monkeypatch.setattr(token_cache, "LONG_BYTES", 1)
    _, said = rows_of()
    assert said[0].endswith("data.streaming=true")
    assert said[-1] == "tokenized 30 rows"
