"""Rows of preferences: pairs in all their forms, answers with scores, judged answers, and the rows that are none."""

import json

import pytest

from hub.config.data import DataConfig, DataSource
from hub.config.schema import RunConfig
from hub.data.check import check_rows
from hub.data.formats.detect import convert
from hub.data.formats.examples import ExampleGroup
from hub.data.prepare import prepare
from hub.data.sources.entries import Row
from hub.errors import DataError
from hub.models.load import load_tokenizer
from hub.testing import tiny_model_path

ASK = {"role": "user", "content": "why?"}
SYSTEM = {"role": "system", "content": "be kind"}
GOOD, BAD = {"role": "assistant", "content": "since"}, {"role": "assistant", "content": "no"}
MORE, GOOD2, BAD2 = (
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "so"},
    {"role": "assistant", "content": "eh"},
)
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
HH = "\n\nHuman: why?\n\nAssistant: "


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(RunConfig().model, tiny_model_path("llama"))


def converted(value, format="preference") -> ExampleGroup:
    return convert(Row(value, "p.jsonl", 1), format)


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        ({"prompt": "why?", "chosen": "since", "rejected": "no"}, [ASK], [GOOD], [BAD]),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, [ASK], [GOOD], [BAD]),
        ({"prompt": [SYSTEM, ASK], "chosen": "since", "rejected": [BAD]}, [SYSTEM, ASK], [GOOD], [BAD]),
        ({"system": "be kind", "prompt": "why?", "chosen": "since", "rejected": "no"}, [SYSTEM, ASK], [GOOD], [BAD]),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, [ASK], [GOOD], [BAD]),
        ({"chosen": [ASK, GOOD, MORE, GOOD2], "rejected": [ASK, GOOD, MORE, BAD2]}, [ASK, GOOD, MORE], [GOOD2], [BAD2]),
        ({"chosen": [ASK, GOOD, MORE, GOOD2], "rejected": [ASK, BAD]}, [ASK], [GOOD, MORE, GOOD2], [BAD]),
        ({"chosen": HH + "since", "rejected": HH + "no"}, [ASK], [GOOD], [BAD]),
        (  # UltraFeedback, binarized
            {"prompt": "why?", "messages": [ASK, GOOD], "score_chosen": 8.0, "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
            [ASK],
            [GOOD],
            [BAD],
        ),
        (  # UltraFeedback as it was made
            {"instruction": "why?", "completions": [{"response": r, "overall_score": s} for r, s in (("no", 2), ("since", 7))]},
            [ASK],
            [GOOD],
            [BAD],
        ),
        ({"prompt": "why?", "responses": ["eh", "since", "no"], "scores": [3, 4.5, -1]}, [ASK], [GOOD], [BAD]),
        ({"prompt": "why?", "completions": [[GOOD], [BAD]], "ratings": "[1, 0]"}, [ASK], [GOOD], [BAD]),
    ],
)  # fmt: skip
def test_a_pair_has_its_prompt_and_loss_on_the_answers_behind_it(row, prompt, chosen, rejected):
    group = converted(row)
    assert list(group.examples) == ["chosen", "rejected"]
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        example = group.examples[name]
        assert example.messages == prompt + answer
        assert example.completion == len(prompt)
        assert example.without_loss == set(range(len(prompt)))


def test_tools_are_those_of_both_answers():
    group = converted({"prompt": "why?", "chosen": [CALL], "rejected": "no", "tools": TOOLS})
    assert group.examples["chosen"].tools == group.examples["rejected"].tools == TOOLS
    assert group.examples["chosen"].messages[-1]["tool_calls"][0]["function"]["name"] == "look"


def test_the_tokens_with_loss_are_the_answer_and_its_end(tokenizer, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"chosen": [ASK, GOOD, MORE, GOOD2], "rejected": [ASK, GOOD, MORE, BAD2]}) + "\n")
    cfg = RunConfig(data=DataConfig(path=str(file), format="preference"))
    (unit,) = prepare(cfg, tokenizer, None).train
    texts = [tokenizer.decode(sample.input_ids[sample.loss_mask].tolist()) for sample in unit.samples]
    assert texts == ["so<|im_end|>", "eh<|im_end|>"]
    chosen, rejected = unit.samples
    first = int(chosen.loss_mask.argmax())
    assert (chosen.input_ids[:first] == rejected.input_ids[:first]).all()


@pytest.mark.parametrize(
    ("row", "role"),
    [
        ({"prompt": "why?", "completion": "since", "label": True}, "desirable"),
        ({"prompt": [ASK], "completion": [BAD], "label": "False"}, "undesirable"),
    ],
)
def test_a_judged_answer_is_one_sample(row, role):
    group = converted(row, "judged")
    assert list(group.examples) == [role]
    assert group.examples[role].completion == 1
    assert list(converted({"prompt": "why?", "chosen": "since", "rejected": "no"}, "judged").examples) == ["chosen", "rejected"]


PAIR = {"prompt": "why?", "chosen": "since", "rejected": "no"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (PAIR | {"rejected": "since"}, "chosen and rejected are the same, so nothing says which is better. Take the row out"),
        (PAIR | {"rejected": None}, "this row has no rejected answer. A row of the format preference has chosen and rejected"),
        ({"prompt": "why?", "chosen": "since"}, "this row has no rejected answer"),
        ({"messages": [ASK, GOOD]}, "this row has no chosen answer. A row of the format preference has chosen and rejected"),
        (
            {"chosen": [ASK, GOOD], "rejected": [MORE, BAD]},
            "chosen and rejected have different prompts: message 1 is 'why?' in",
        ),
        ({"chosen": [SYSTEM, ASK, GOOD], "rejected": [SYSTEM, MORE, BAD]}, "different prompts: message 2 is 'why?' in the one"),
        ({"chosen": [ASK, GOOD, MORE, GOOD2], "rejected": [ASK, GOOD]}, "rejected is only the beginning of the other one"),
        ({"chosen": "since", "rejected": "no"}, "chosen: chosen without a prompt must be a list of messages, or a text that"),
        (PAIR | {"chosen": "since", "rejected": " "}, "rejected: message 2 (assistant) has empty content"),
        (
            {"prompt": "why?", "completions": ["a"], "scores": [1]},
            "completions must be a list of two answers or more, each with",
        ),
        (
            {"prompt": "why?", "completions": ["a", "b"], "scores": [1]},
            "completions has 2 answers, scores has 1. Each answer needs",
        ),
        ({"prompt": "why?", "completions": ["a", "b"], "scores": [1, "x"]}, "the score of answer 2 is 'x', not a number"),
        (
            {"prompt": "why?", "completions": ["a", "b"], "scores": [1, 1]},
            "all completions have the score 1, so none is better",
        ),
    ],
)
def test_a_row_that_is_no_pair_is_one_line(row, reason):
    with pytest.raises(DataError) as caught:
        converted(row)
    assert str(caught.value).startswith("p.jsonl:1: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": 1}, "label is 1. Allowed: true (a good completion) or false (a bad one)"),
        ({"label": "good"}, "label is 'good'. Allowed: true"),
        ({"label": None}, "this row has no label. A row of the format judged has prompt, completion and label"),
        ({"completion": None}, "this row has no completion"),
    ],
)
def test_a_row_that_is_not_judged_is_one_line(change, reason):
    with pytest.raises(DataError, match=r"^p\.jsonl:1: ") as caught:
        converted({"prompt": "why?", "completion": "since", "label": True} | change, "judged")
    assert reason in str(caught.value)


def test_without_an_algorithm_for_them_rows_of_preferences_are_refused_at_once(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(PAIR) + "\n")
    with pytest.raises(
        DataError, match=r"This algorithm trains on answers, not on preferences\. To train on the chosen ones type"
    ):
        check_rows(DataSource(path=str(file)), DataConfig())
    assert check_rows(DataSource(path=str(file), format="preference"), DataConfig()).num_rows == 1


@pytest.mark.parametrize(
    ("on_long", "lengths"), [("auto", [None]), ("truncate", [30, 30]), ("error", "rejected has 43 tokens, more than 30")]
)
def test_a_pair_is_left_out_or_cut_as_one(tokenizer, tmp_path, on_long, lengths):
    file = tmp_path / "p.jsonl"
    rows = [PAIR | {"rejected": "no " * 20}, {"prompt": "how?", "chosen": "so", "rejected": "no"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = RunConfig(data=DataConfig(path=str(file), format="preference", max_seq_len=30, on_long=on_long))
    if on_long == "error":
        with pytest.raises(DataError, match=r"p\.jsonl:1: rejected has \d+ tokens, more than 30"):
            prepare(cfg, tokenizer, None)
        return
    prepared = prepare(cfg, tokenizer, None)
    assert len(prepared.train) == (1 if on_long == "auto" else 2)
    assert all(len(sample) <= 30 for unit in prepared.train for sample in unit.samples)
