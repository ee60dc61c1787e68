import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hub.config.data import DataSource
from hub.config.schema import AlgoConfig, DataConfig, ModelConfig, RunConfig
from hub.data.prepare import prepare
from hub.data.samples import duplicates
from hub.data.samples.sample import Sample
from hub.errors import ConfigError, DataError

TEMPLATE = """
{%- for message in messages %}{{ '<' + message.role[0] + '>' + message.content + '</s>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<a>' }}{% endif %}"""


@pytest.fixture
def tokenizer():
    """A token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<u>", "<a>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", chat_template=TEMPLATE)


def write(file, lengths, **fields):
    rows = [{"prompt": "", "completion": "x" * length} | fields | {"prompt": f"q{length}"} for length in lengths]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def config(path, seed=42, **options):
    return RunConfig(algo=AlgoConfig(seed=seed), model=ModelConfig(path="m"), data=DataConfig(path=path, **options))


def test_rows_become_samples_and_the_report_counts_them(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [3, 5], topic="z")
    prepared = prepare(config(path), tokenizer, max_positions=None)
    first = prepared.train[0]
    # <u> q 3 </s> <a> x x x </s>
    assert (len(first), first.where) == (9, "a.jsonl:1")
    assert (first.input_ids.dtype, first.loss_mask.dtype) == (np.int32, np.bool_)
    assert first.loss_mask.tolist() == [False] * 5 + [True] * 4
    counts = {"num_rows": 2, "num_units": 2, "num_samples": 2, "num_tokens": 20, "num_loss_tokens": 10, "longest": 11}
    assert prepared.report["train"] == counts
    assert prepared.report["formats"] == ["prompt_completion"]
    assert prepared.report["fields_not_used"] == ["topic"]
    assert "</s> included" in prepared.report["template"]
    assert not prepared.evaluation
    assert any("2 samples" in line and "50%" in line for line in prepared.lines)
    json.dumps(prepared.report)


def test_longer_rows_are_left_out_counted_and_named(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [3, 50, 4, 60])
    prepared = prepare(config(path, max_seq_len=10), tokenizer, max_positions=100)
    assert [sample.where for sample in prepared.train] == ["a.jsonl:1", "a.jsonl:3"]
    assert prepared.report["num_left_out"] == 2
    assert prepared.report["left_out"][0] == {"where": "a.jsonl:2", "num_tokens": 57, "reason": "longer than 10 tokens"}
    line = next(line for line in prepared.lines if line.startswith("Left out"))
    assert "2 rows" in line
    assert "a.jsonl:2, a.jsonl:4" in line
    assert "data.max_seq_len=67" in line
    assert len(prepare(config(path), tokenizer, max_positions=57).train) == 3
    assert len(prepare(config(path), tokenizer, max_positions=None).train) == 4


def test_held_out_rows_depend_on_the_seed_alone_and_are_not_trained_on(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", range(1, 21))

    def held_out(**options):
        prepared = prepare(config(path, **options), tokenizer, None)
        places = [sample.where for sample in prepared.evaluation]
        assert len(prepared.train) + len(places) == 20
        assert not set(places) & {sample.where for sample in prepared.train}
        return places

    assert len(held_out(eval_fraction=0.2)) == 4
    assert held_out(eval_fraction=0.2) == held_out(eval_fraction=0.2, max_seq_len=100)
    assert held_out(eval_fraction=0.2) != held_out(eval_fraction=0.2, seed=1)
    assert len(held_out(eval_fraction=0.001)) == 1
    assert len(held_out(eval_fraction=0.999)) == 19


def test_evaluation_data_can_be_a_file_of_its_own(tmp_path, tokenizer):
    path, other = write(tmp_path / "a.jsonl", [3, 4]), write(tmp_path / "b.jsonl", [5])
    prepared = prepare(config(path, eval_path=other), tokenizer, None)
    assert [sample.where for sample in prepared.evaluation] == ["b.jsonl:1"]
    assert prepared.report["evaluation"]["num_loss_tokens"] == 6
    assert len(prepared.train) == 2


def test_what_leaves_nothing_to_train_on_is_refused(tmp_path, tokenizer):
    path, long = write(tmp_path / "a.jsonl", [30, 40]), write(tmp_path / "b.jsonl", [300])
    with pytest.raises(DataError, match=r"left to train on.*shortest has 37.*data\.max_seq_len=37"):
        prepare(config(path, max_seq_len=20), tokenizer, 100)
    with pytest.raises(DataError, match=r"left to evaluate on.*model can hold no more"):
        prepare(config(path, eval_path=long), tokenizer, 100)
    with pytest.raises(ConfigError, match=r"data\.max_seq_len=200 .*100"):
        prepare(config(path, max_seq_len=200), tokenizer, 100)
    with pytest.raises(DataError, match="one row only"):
        prepare(config(long, eval_fraction=0.5), tokenizer, None)


def test_row_of_which_nothing_is_trained_is_refused(tmp_path, tokenizer):
    file = tmp_path / "chat.jinja"
    file.write_text("{% for message in messages %}{% if false %}{% generation %}{% endgeneration %}{% endif %}x{% endfor %}")
    with pytest.raises(DataError, match=r"a\.jsonl:1: the chat template leaves out the content of message 2"):
        prepare(config(write(tmp_path / "a.jsonl", [3]), template=str(file)), tokenizer, None)


def test_documents_are_joined_and_counted(tmp_path, tokenizer):
    rows = [{"text": "a" * length} for length in (3, 50, 4)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer.chat_template = None
    prepared = prepare(config(str(path), block_size=16), tokenizer, 100)
    # Each text has an end.
    assert [len(sample) for sample in prepared.train] == [16, 16, 16, 12]
    assert prepared.report["train"]["num_loss_tokens"] == 60
    assert "They are 3 documents, joined and cut to 16 tokens." in prepared.lines[0]
    assert prepared.lines[-1] == "Loss is on every token."
    assert tokenizer.chat_template is None
    with pytest.raises(ConfigError, match=r"data\.block_size=200 is more than the 100 tokens"):
        prepare(config(str(path), block_size=200), tokenizer, 100)
    with pytest.raises(ConfigError, match=r"data\.block_size=16 joins raw documents, but these rows are prompt_completion"):
        prepare(config(write(tmp_path / "b.jsonl", [3]), block_size=16), tokenizer, 100)


def test_bad_rows_are_counted_and_named_and_cut_rows_with_their_tokens(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [3, 50, 4])
    with open(path, "a") as file:
        file.write("{oops\n[]\n")
    prepared = prepare(config(path, on_bad_row="skip", max_seq_len=20, on_long="truncate", eval_fraction=0.3), tokenizer, 100)
    assert prepared.report["num_bad_rows"] == 2
    assert [row["where"] for row in prepared.report["bad_rows"]] == ["a.jsonl:4", "a.jsonl:5"]
    assert (prepared.report["num_rows_cut"], prepared.report["num_tokens_cut"]) == (1, 37)
    assert any(line.startswith("Left out: 2 bad rows. The first: ") and "a.jsonl:4" in line for line in prepared.lines)
    assert any(line.startswith("Cut off: 37 tokens of 1 rows (a.jsonl:2)") for line in prepared.lines)
    assert (len(prepared.train), len(prepared.evaluation)) == (2, 1)
    assert not any("Warning" in line for line in prepared.lines)
    with pytest.raises(DataError, match=r"a\.jsonl:4: broken JSON"):
        prepare(config(path), tokenizer, 100)


def test_a_mix_counts_and_holds_out_by_source(tmp_path, tokenizer):
    paths = [write(tmp_path / "a.jsonl", range(1, 11)), write(tmp_path / "b.jsonl", range(1, 31))]
    mix = [DataSource(path=path, weight=weight) for path, weight in zip(paths, (3, 1), strict=True)]
    prepared = prepare(config("", mix=mix, eval_fraction=0.1, max_seq_len=30), tokenizer, 100)
    assert sorted(sample.where.split(":")[0] for sample in prepared.evaluation) == ["a.jsonl"] + ["b.jsonl"] * 3
    by_source = [(part["name"], part["num_samples"], part["num_left_out"]) for part in prepared.report["sources"]]
    assert by_source[0] == ("a", 9, 0)
    assert sum(by_source[1][1:]) == 27
    assert prepared.mix.sizes == tuple(part[1] for part in by_source)
    paths[0] = write(tmp_path / "c.jsonl", [30, 40])
    with pytest.raises(DataError, match=r"No row of .*c\.jsonl is left to train on"):
        prepare(config("", mix=[DataSource(path=path) for path in paths], max_seq_len=30), tokenizer, 100)


def test_a_base_model_gets_a_template_and_is_told_so(tmp_path, tokenizer):
    tokenizer.chat_template = None
    prepared = prepare(config(write(tmp_path / "a.jsonl", [3])), tokenizer, 100)
    said = "The tokenizer has no chat template (a base model?): data.template=plain"
    assert any(line.startswith(said) for line in prepared.lines)
    assert prepared.lines[-1].endswith("</s> included.")


def test_copies_are_found_by_their_whole_hash(monkeypatch):
    def hashed(number):
        return bytes([1] * 14) + {1: b"\1\0", 2: b"\0\1", 3: b"\0\0"}[number]

    monkeypatch.setattr(duplicates, "unit_digest", lambda unit: hashed(len(unit)))
    units = [
        Sample(np.zeros(size, np.int32), np.ones(size, np.bool_), f"{place}") for place, size in enumerate([3, 1, 3, 1, 3])
    ]
    other = Sample(np.zeros(2, np.int32), np.ones(2, np.bool_), "other")
    assert duplicates.find_duplicates(units, [other, units[0]]) == (["2", "3", "4"], ["0"])
    assert duplicates.find_duplicates(units[:2], [other]) == ([], [])
    assert duplicates.find_duplicates([], [other]) == ([], [])
