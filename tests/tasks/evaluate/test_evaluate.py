"""`hub evaluate` on runs of a tiny model: what it measures, what it compares, what it refuses."""

import json
import math
import shutil
from pathlib import Path

import pytest

import hub
from hub.tasks.evaluate.report import Evaluation
from hub.tasks.evaluate.stored import store
from hub.testing import tiny_model_path, write_chats

OPTIONS = {
    "data": "tiny", "mode": "inline", "nproc_per_node": 1, "max_steps": 3, "learning_rate": 0.01, "dtype": "float32",
    "seed": 7, "effective_batch_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for algo, name in (("sft", "whole"), ("lora_sft", "adapter")):
        hub.run(algo, model="tiny", output_dir=folder, run_name=name, **OPTIONS)
    return folder


@pytest.mark.parametrize("name", ["whole", "adapter"])
def test_the_loss_of_a_run_before_and_after_is_that_of_its_training(runs, name):
    result = hub.Result.read(runs / name / "result.json")
    found = hub.evaluate(run=runs / name, output_dir=runs)
    assert isinstance(found, Evaluation)
    (loss, perplexity) = found.rows
    after, before = (value["value"] for value in loss["values"])
    assert before == pytest.approx(result.eval_loss_before, abs=1e-5)
    assert after == pytest.approx(result.eval_loss, abs=1e-5)
    assert perplexity["values"][0]["value"] == pytest.approx(math.exp(after))
    assert (loss["set"], loss["role"], loss["unit"], loss["n"]) == ("held-out", "learnt", "nats/token", 13)
    difference = loss["difference"]
    assert difference["value"] == pytest.approx(after - before)
    assert difference["low"] < difference["value"] < difference["high"] < 0
    assert difference["p"] < 0.01
    written = json.loads((runs / name / "evaluation.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(found.as_json()))
    assert [model["name"] for model in written["models"]] == [name, "base" if name == "adapter" else "before training"]
    if name == "adapter":
        assert hub.evaluate(run=runs / name, output_dir=runs, limit=2).written == runs / name / "evaluation-limit-2.json"
    lines = repr(found).splitlines()
    assert max(map(len, lines[:4])) <= 80
    assert lines[2].startswith("held-out  loss")


def test_rows_that_are_typed_are_measured_whole_and_answers_are_compared(runs, tmp_path, capsys):
    rows = write_chats(tmp_path / "other.jsonl", num_rows=6)
    leveled = [json.dumps(json.loads(line) | {"level": 2, "nobody": 3}) for line in rows.read_text().splitlines()]
    rows.write_text("\n".join(leveled), encoding="utf-8")
    function = tmp_path / "mine.py"
    function.write_text("def number(answer, level):\n    return level or 2\n", encoding="utf-8")
    shutil.copytree(runs / "whole", tmp_path / "retention", ignore=shutil.ignore_patterns("model", "checkpoints"))
    also = [str(place) for place in (runs / "whole", runs / "whole", tmp_path / "retention")]
    found = hub.evaluate(
        run=runs / "adapter", data=rows, output_dir=runs, against=str(runs / "whole"), out=str(tmp_path / "result.json"),
        metrics=["contains", f"{function}:number", "contains"], max_new_tokens=4, retention="auto", also=also, limit=5,
    )  # fmt: skip
    sets = {(row["set"], row["role"]): row["n"] for row in found.rows}
    assert sets == {("held-out", "learnt"): 5, ("retention", "kept"): 5, ("whole", "kept"): 5,
                    (f"{tmp_path.name}/retention", "kept"): 5}  # fmt: skip
    assert len({(row["set"], row["metric"]) for row in found.rows}) == len(found.rows)
    assert found.value(f"{function}:number", "held-out") == 2
    said = capsys.readouterr().out
    assert "Unused fields: nobody\n" in said
    assert "level" not in said.partition("Unused fields")[2]
    assert found.models[1]["name"] == "whole"
    assert (tmp_path / "result.json").is_file()
    assert found.settings["limit"] == 5
    assert {"torch", "transformers", "lm_eval"} <= set(found.settings["versions"])


def test_a_result_is_never_lost_for_a_smaller_one(tmp_path):
    file = tmp_path / "evaluation.json"

    def result(*metrics: str, n: int = 13, limit: int | None = None, data: str = "a", models: int = 2) -> dict:
        rows = [{"set": "held-out", "kind": "loss", "metric": metric, "n": n} for metric in metrics]
        settings = {"limit": limit, "sets": {"held-out": {"sha256": data}}}
        return {"version": 1, "models": [{"path": str(place)} for place in range(models)], "settings": settings, "rows": rows}

    def read(name: str) -> dict:
        return json.loads((tmp_path / name).read_text(encoding="utf-8"))

    assert store(file, result("loss", n=3, limit=3)) == (file, "")
    training = {"steps": [1], "examples": [2]}
    whole = result("loss", "f1") | training
    assert store(file, whole) == (file, "")
    part = result("loss", "f1", "chrf", n=4, limit=4)
    assert store(file, part) == (tmp_path / "evaluation-limit-4.json", "evaluation.json has more rows of the same, so it stays")
    assert (read("evaluation.json"), read("evaluation-limit-4.json")) == (whole, part)
    more = result("loss", "f1", "chrf", limit=20)
    assert store(file, more) == (file, "")
    assert read("evaluation.json") == more | training
    for number, other in enumerate(
        [result("loss"), result("loss", data="b"), result("loss", data="b", models=1), result("loss", data="b", n=2)], start=1
    ):
        had = read("evaluation.json")
        assert store(file, other) == (file, f"what evaluation.json had before is in evaluation-{number}.json")
        assert (read(f"evaluation-{number}.json"), read("evaluation.json")) == (had, other | training)
    file.write_text('{"version": 0, "models": 3, "rows": [7]}', encoding="utf-8")
    assert store(file, part)[1].endswith("is in evaluation-5.json")


def test_what_can_not_be_measured_is_one_line(hub, runs, tmp_path):
    model = f"model.path={tiny_model_path('llama')}"
    run = f"run={runs / 'adapter'}"
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a text"}\n{"text": "another text"}\n', encoding="utf-8")
    chats = write_chats(tmp_path / "chats.jsonl", num_rows=3)
    function = tmp_path / "mine.py"
    function.write_text("def f(answer, level):\n    return 1\n", encoding="utf-8")
    other = tmp_path / "prompts.json"
    other.write_text('[{"prompt": "Hi"}]', encoding="utf-8")
    for words, line in {
        model: "no rows are named, so there is nothing to measure. Type data.path=FILE, evaluate.retention=auto or",
        f"{run} evaluate.metrics=[exact_mach]": "evaluate.metrics=exact_mach: there is no such metric.",
        f"{run} evaluate.tasks=[none.yaml]": "evaluate.tasks=none.yaml: there is no such file",
        f"{run} data.eval_fraction=0.5": "data.eval_fraction: rows that this run was trained on would be measured",
        f"{run} evaluate.num_fewshot=2": "evaluate.num_fewshot is for tasks of lm-eval. Leave it out, or type evaluate.tasks=",
        f"{run} evaluate.retention=none.txt": "evaluate.retention=none.txt: there is no such file.",
        f"{run} evaluate.also=[none]": "evaluate.also=none:",
        f"{run} against=none_such": "against=none_such: there is no such run, folder or preset. Type base, none, a run or a",
        f"{model} data.path={chats} against=base": "is a whole model whose base is not known. Type against=FOLDER, a run, or",
        f"{run} out=table.txt": "out=table.txt: the result is JSON. Type out=FILE.json",
        f"{run} out={other}": "is there already and holds no evaluation, so it is not overwritten. Type out=OTHER.json",
        f"{run} out=no/where.json": "out=no/where.json: there is no folder",
        f"{model} data.path={texts} evaluate.metrics=[f1]": "evaluate.metrics=f1: no row has an answer to compare with.",
        f"{model} data.path={chats} evaluate.metrics=[{function}:f]": "it needs the field level, which no row has. Fields of",
    }.items():
        said = hub("evaluate", *words.split())
        assert said.code == 2, words
        problems = [text for text in said.err.splitlines() if text.startswith("hub: ")]
        assert len(problems) == 1, said.err
        assert line in problems[0], problems


def test_a_stopped_evaluation_writes_nothing(hub, runs, monkeypatch):
    (runs / "adapter" / "evaluation.json").unlink(missing_ok=True)

    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("hub.tasks.evaluate.evaluate._measured", stopped)
    said = hub("evaluate", f"run={runs / 'adapter'}")
    assert (said.code, said.problems) == (130, ["stopped: nothing was measured to the end, and nothing is written"])
    assert not (runs / "adapter" / "evaluation.json").exists()
