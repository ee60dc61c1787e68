"""The doctor reports problems that were put into the data, with their places."""

import copy
import json

import numpy as np
import pytest

from hub.config.data import DataConfig
from hub.config.schema import AlgoConfig, ModelConfig, RunConfig
from hub.data.doctor.examine import examine
from hub.data.doctor.near_duplicates import near_duplicates
from hub.data.samples.histogram import lengths_of
from hub.models.tiny import CHATML
from hub.testing import write_chats

LONG = "The quick brown fox jumps over the lazy dog and runs away from the very angry farmer who owns the land"


def chat(*contents, roles=("user", "assistant") * 5, **fields):
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]} | fields


def call(**arguments):
    calls = [{"type": "function", "function": {"name": "tide", "arguments": arguments}}]
    messages = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    return {"messages": messages, "tools": [{"name": "tide", "parameters": {"properties": {"day": {"type": "integer"}}}}]}


GOOD = [chat(f"What is {number} + 1?", str(number + 1)) for number in range(40)]


@pytest.fixture(scope="module")
def tokenizer():
    from hub.testing import tokenizer

    return tokenizer()


@pytest.fixture
def found(tmp_path, tokenizer):
    """What the doctor says about these rows in front of 40 good ones."""

    def examined(*rows, evaluation=(), **options):
        def write(name, rows):
            text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
            (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
            return str(tmp_path / name)

        data = DataConfig(path=write("train.jsonl", [*rows, *GOOD]), **options)
        if evaluation:
            data.eval_path = write("test.jsonl", evaluation)
        cfg = RunConfig(algo=AlgoConfig(seed=1), model=ModelConfig(path="m"), data=data)
        return examine(cfg, tokenizer, 512)

    return examined


def test_good_data_has_no_findings_and_is_counted(found):
    examined = found()
    assert (examined.findings, examined.spoils) == ([], False)
    (source,) = examined.report()["sources"]
    assert (source["name"], source["formats"], source["num_rows"]) == ("train", ["messages"], 40)
    assert 0 < source["num_loss_tokens"] < source["num_tokens"]
    assert "<|im_end|> included" in examined.template
    json.dumps(examined.report())


@pytest.mark.parametrize(
    ("rows", "options", "level", "words", "examples"),
    [
        (["{oops"], {}, "bad", "rows can't be used", ["train.jsonl:1: broken JSON"]),
        (["{oops"], {"on_bad_row": "skip"}, "look", "rows can't be used", ["train.jsonl:1: broken JSON"]),
        ([chat("a", " ")], {}, "bad", "rows can't be used", ["message 2 (assistant) has empty content"]),
        ([chat("a", "b" * 400)], {"max_seq_len": 64}, "look", "rows are longer than 64 tokens", ["train.jsonl:1 ("]),
        ([chat("a", "b" * 400)] * 9, {"max_seq_len": 64}, "bad", "rows are longer than 64 tokens", ["train.jsonl:1 ("]),
        ([chat("a", "b" * 400)], {"max_seq_len": 64, "on_long": "error"}, "bad", "rows are longer than 64 tokens", []),
        ([chat("a", "b" * 400)], {"max_seq_len": 64, "on_long": "truncate"}, "look", "rows are cut, by ", ["train.jsonl:1"]),
        (
            [chat("a", "b"), chat("a", "b")],
            {},
            "look",
            "duplicate rows (exact copies)",
            ["train.jsonl:2 repeats train.jsonl:1"],
        ),
        ([chat(LONG, "b"), chat(LONG + "!", "b")], {}, "look", "near duplicates", ["train.jsonl:1 ~ train.jsonl:2"]),
        ([chat("a", "b"), chat("a", "c")], {}, "look", "several different answers", ["train.jsonl:1 / train.jsonl:2"]),
        ([chat("a", "caf\ufffd")], {}, "look", "could not be decoded (U+FFFD)", ["train.jsonl:1"]),
        ([chat("a", "caf\u00c3\u00a9")], {}, "look", "UTF-8 that was read as another encoding", ["train.jsonl:1"]),
        ([chat("a", "it\u00e2\u20ac\u2122s")], {}, "look", "UTF-8 that was read as another encoding", ["train.jsonl:1"]),
        ([chat("a", "b\x07")], {}, "look", "a control character", ["train.jsonl:1"]),
        ([chat("a", "\ufeffb")], {}, "look", "a byte order mark", ["train.jsonl:1"]),
        ([chat("b", roles=("assistant",))], {}, "look", "the assistant speaks first", ["train.jsonl:1"]),
        ([chat("a", "b", "c")], {}, "look", "the last message is the user's", ["train.jsonl:1"]),
        ([chat("a", "b", "c", roles=("user", "user", "assistant"))], {}, "look", "the user speaks twice", ["train.jsonl:1"]),
        ([chat("a", "b", "c", roles=("user", "assistant", "assistant"))], {}, "look", "the assistant speaks twice", []),
        ([chat("a", "b", "c", roles=("user", "tool", "assistant"))], {}, "look", "a tool answers that was not called", []),
        ([chat("a", "b", topic=1)], {}, "look", "fields that nothing reads: topic", []),
        ([call(day=None)], {"template": "chatml"}, "look", "an argument of a call is null", ["train.jsonl:1"]),
        (
            [call(day=3.0)],
            {"template": "chatml"},
            "look",
            "an argument is a fraction such as 3.0, and its schema says integer",
            ["train.jsonl:1"],
        ),
        ([], {"columns": {"tools": "functoins"}}, "bad", "data.columns.tools=functoins: no row has a field functoins", []),
    ],
)
def test_what_is_wrong_is_found_with_its_place(found, rows, options, level, words, examples):
    examined = found(*rows, **options)
    finding = next(finding for finding in examined.findings if words in finding.what)
    assert finding.level == level
    assert examined.spoils == (level == "bad")
    assert all(any(expected in example for example in finding.examples) for expected in examples)
    assert all(other is finding or other.level == "look" for other in examined.findings)


def test_rows_of_the_evaluation_set_in_the_training_data_spoil_it(found):
    examined = found(evaluation=[GOOD[3], chat("What is 5 + 1?", "seven"), chat("new", "row")])
    leak = next(finding for finding in examined.findings if "rows of the evaluation set are in" in finding.what)
    assert (leak.level, leak.count, leak.examples) == ("bad", 1, ("test.jsonl:1 = train.jsonl:4",))
    asked = next(finding for finding in examined.findings if "have a prompt of the training data" in finding.what)
    assert (asked.level, asked.count, asked.examples) == ("look", 1, ("test.jsonl:2 / train.jsonl:6",))
    repeated = found(*GOOD, eval_fraction=0.2)
    assert any("rows of the evaluation set are in" in finding.what for finding in repeated.findings)


def test_a_template_without_end_spoils_training(found, tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text("{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}")
    examined = found(template=str(file))
    assert any(finding.level == "bad" and "may not learn to stop" in finding.what for finding in examined.findings)


def with_bos(tokenizer):
    """The same tokenizer, which begins each text with a token."""
    from tokenizers import processors

    twin = copy.deepcopy(tokenizer)
    twin.chat_template = CHATML  # other tests change it
    number = twin.convert_tokens_to_ids("<|endoftext|>")
    twin.bos_token = "<|endoftext|>"
    twin.backend_tokenizer.post_processor = processors.TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", number)])
    return twin


@pytest.mark.parametrize(
    ("row", "level", "words"),
    [
        (
            {"prompt": "<|im_start|>user\nIs ice cold?<|im_end|>\n<|im_start|>assistant\n", "completion": "It is."},
            "bad",
            ["rows whose prompt begins with the marker of a turn (<|im_start|>): rendered before"],
        ),
        ({"prompt": "[INST] Is ice cold? [/INST]", "completion": "It is."}, "bad", ["marker of a turn ([INST]): rendered"]),
        (
            {"prompt": "Is ice cold?", "completion": "It is.<|im_end|>\n"},
            "bad",
            ["answer ends with a special token (<|im_end|>)"],
        ),
        ({"prompt": "What is <|im_end|>?", "completion": "<|im_end|> ends."}, "look", ["the text of special tokens within"]),
        (
            {"text": "<|endoftext|><|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>"},
            "look",
            ["documents with special tokens or markers of turns (<|im_end|>, <|im_start|>)", "Loss is on the questions, too"],
        ),
        ({"text": "<|start_header_id|>user<|end_header_id|>"}, "look", ["markers of turns (<|start_header_id|>)"]),
        ({"prompt": "<|begin_of_text|><|start_header_id|>user", "completion": "Yes."}, "bad", ["turn (<|start_header_id|>)"]),
        ({"prompt": "Below is an instruction.\n\n### Instruction:\nX", "completion": "Y"}, "bad", ["(### Instruction:)"]),
        ({"prompt": "Is it?", "completion": "Yes.</s>"}, "bad", ["answer ends with a special token (</s>)"]),
        ({"prompt": "Strike it.", "completion": "<s>It</s>"}, None, []),
        ({"text": "<|endoftext|>Ice is cold.<|im_end|>"}, None, []),
        ({"input_ids": [0, 0, 7]}, "look", ["rows whose input_ids begin with two tokens <|endoftext|>"]),
        ({"prompt": "Is 1 < 2 | 3 > 2?", "completion": "<b>Yes.</b>"}, None, []),
    ],
)
def test_what_was_rendered_before_is_told_by_the_doctor_and_in_the_log(tmp_path, tokenizer, row, level, words):
    from hub.data.prepare import prepare

    known = with_bos(tokenizer)
    (tmp_path / "a.jsonl").write_text((json.dumps(row) + "\n") * 2)
    cfg = RunConfig(algo=AlgoConfig(seed=1), model=ModelConfig(path="m"), data=DataConfig(path=str(tmp_path / "a.jsonl")))
    findings = [finding for finding in examine(cfg, known, 512).findings if "duplicate" not in finding.what]
    assert [(finding.level, finding.count) for finding in findings] == ([(level, 2)] if level else [])
    prepared = prepare(cfg, known, 512)
    for line in [findings[0].what] if level else []:
        assert all(word in line for word in words)
        assert any(line in said and said.startswith("Warning" if level == "bad" else "Note") for said in prepared.lines)
    if "text" in row:  # the beginning and the end are there once
        ids = prepared.train[0].input_ids.tolist()
        assert (ids[0], ids[1] == ids[0], ids[-2] == ids[-1]) == (known.bos_token_id, False, False)


def test_an_answer_may_end_with_a_special_token_that_the_template_does_not_write(tmp_path, tokenizer):
    (tmp_path / "chat.jinja").write_text("{% for message in messages %}{{ message.role + ': ' + message.content }}{% endfor %}")
    (tmp_path / "a.jsonl").write_text(json.dumps(chat("Is ice cold?", "It is.<|im_end|>")))
    data = DataConfig(path=str(tmp_path / "a.jsonl"), template=str(tmp_path / "chat.jinja"))
    assert not examine(RunConfig(model=ModelConfig(path="m"), data=data), copy.deepcopy(tokenizer), 512).findings


def test_every_token_has_loss_is_said_only_where_it_is_so(found, tmp_path, tokenizer):
    from hub.data.prepare import prepare

    for labels, said in (
        ([-100, 6, 7], "Loss is on the tokens that the labels or masks of the rows name."),
        ([5, 6, 7], "Loss is on every token."),
    ):
        (tmp_path / "a.jsonl").write_text(json.dumps({"input_ids": [5, 6, 7], "labels": labels}))
        cfg = RunConfig(model=ModelConfig(path="m"), data=DataConfig(path=str(tmp_path / "a.jsonl")))
        assert examine(cfg, tokenizer, 512).template == prepare(cfg, tokenizer, 512).report["template"] == said


def test_lengths_have_percentiles_a_histogram_of_all_rows_and_a_recommendation():
    lengths = lengths_of([*range(1, 100), 5000], None)
    assert (lengths["median"], lengths["p95"], lengths["p99"], lengths["max"]) == (51, 96, 5000, 5000)
    assert sum(part["num_rows"] for part in lengths["histogram"]) == 100
    assert lengths_of([*range(1, 1000), 5000], None)["recommended_max_seq_len"] == 1024
    assert lengths_of([100, 110, 120], None)["recommended_max_seq_len"] == 128
    assert lengths_of([100, 110, 120], 96)["recommended_max_seq_len"] == 96
    assert lengths_of([], None) == {"num_rows": 0}


def test_near_duplicates_are_pairs_with_four_fifths_in_common_and_no_others():
    words = [f"word{number}" for number in range(60)]
    near = [*words[:57], "other", "words", "here"]
    far = [*words[:40], *(f"else{number}" for number in range(20))]
    texts = [" ".join(words), " ".join(near).upper() + "!", " ".join(far), "too short", "too short"]
    assert near_duplicates(texts) == [(0, 1)]


def test_without_colors_marks_tell_what_is_trained():
    from io import StringIO

    from rich.console import Console

    from hub.data.doctor.page import has_colors

    def colors(**environ):
        return has_colors(Console(file=StringIO(), force_terminal=True, _environ=environ))

    assert colors(TERM="xterm")
    assert not colors(TERM="dumb")
    assert not colors(TERM="xterm", NO_COLOR="1")


def test_bold_of_the_place_does_not_hide_which_special_tokens_are_trained(tokenizer):
    from hub.data.doctor.page import _shown
    from hub.data.samples.sample import Sample

    end = tokenizer.eos_token_id
    sample = Sample(np.array([end, 50, end]), np.array([False, True, True]), where="a.jsonl:1")
    text = _shown(sample, tokenizer, has_color=True)
    assert not text.style
    assert [str(span.style) for span in text.spans] == ["bold", "cyan", "green", "bold cyan"]


def run(hub, *words):
    said = hub("data", "model=tiny", *words)
    return said.code, said.out, said.err


def test_the_command_prints_a_page_or_json_and_ends_with_1_when_something_would_spoil_training(hub, tmp_path):
    write_chats(tmp_path / "chats.jsonl", num_rows=20)
    code, out, err = run(hub, "data.path=chats.jsonl")
    assert (code, err) == (0, "")
    assert "tokens per row: mean" in out
    assert "[[" in out
    code, out, _ = run(hub, "data.path=chats.jsonl", "--json")
    report = json.loads(out)
    assert (code, report["spoils_training"], report["sources"][0]["num_rows"]) == (0, False, 20)
    with (tmp_path / "chats.jsonl").open("a") as file:
        file.write("{oops\n")
    code, out, _ = run(hub, "data.path=chats.jsonl", "--json")
    assert (code, json.loads(out)["num_bad_rows"]) == (1, 1)
    assert run(hub, "data.path=nowhere.jsonl")[0] == 2


def test_training_reports_copies_and_samples_of_the_evaluation_set_in_the_training_data(tmp_path, tokenizer):
    from hub.data.prepare import prepare

    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*GOOD, *GOOD[:4]]))
    (tmp_path / "b.jsonl").write_text(json.dumps(GOOD[7]) + "\n")
    data = DataConfig(path=str(tmp_path / "a.jsonl"), eval_path=str(tmp_path / "b.jsonl"))
    prepared = prepare(RunConfig(data=data), tokenizer, 512)
    assert any(
        line.startswith("Note: 4 of 44 training samples are exact copies of another one (a.jsonl:41") for line in prepared.lines
    )
    assert any(
        line.startswith("Warning: 1 of 1 samples of the evaluation set are in the training data") for line in prepared.lines
    )


def test_pairs_whose_labels_may_be_swapped_and_a_bias_to_long_answers_are_found(tmp_path, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHATML  # other tests change it

    def examined(rows):
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        cfg = RunConfig(model=ModelConfig(path="m"), data=DataConfig(path=str(tmp_path / "pairs.jsonl")))
        return {finding.what: finding for finding in examine(cfg, tokenizer, 512).findings}

    def pair(number, chosen, rejected, **fields):
        return {"prompt": f"What is {number} + 1?", "chosen": chosen, "rejected": rejected} | fields

    good = [pair(n, str(n + 1), f"{n - 1} it is") if n % 2 else pair(n, f"it is {n + 1}", "no") for n in range(40)]
    assert [finding.level for finding in examined(good).values()] == ["look"]  # that they are preferences
    long = [pair(100 + n, f"{101 + n}, of course", "no") for n in range(40)]
    spoilt = [
        pair(1, "0 it is", "2"),
        pair(300, "Yes  it is", "yes it is"),
        pair(301, "a", "b", score_chosen=1.0, score_rejected=4.0),
    ]
    found = examined([*good, *long, *spoilt, pair(302, "same", "same")])
    starts = {
        "pairs in which the chosen answer has the lower score, of 1 with scores": ("bad", 1),
        "pairs are contradicted by another one": ("bad", 1),
        "pairs whose answers differ in case and spaces only": ("look", 1),
        "pairs in which the chosen answer is the longer one, of": ("look", 61),
        "rows can't be used": ("bad", 1),
    }
    for start, (level, count) in starts.items():
        (finding,) = [each for what, each in found.items() if what.startswith(start)]
        assert finding.level == level, start
        assert abs(finding.count - count) <= (2 if count > 1 else 0), start
