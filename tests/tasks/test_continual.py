"""Tasks one after another: what is trained on, what is measured, which figures come of it. Tiny models, in this process."""

import json
import os
import sys
from pathlib import Path

import pytest

from hub import ConfigError
from hub.api import ask
from hub.tasks.continual import jobs
from hub.tasks.continual.job import BEFORE, Job, work
from hub.tasks.continual.jobs import run_all
from hub.tasks.continual.metrics import figures
from hub.tasks.continual.study import Method, Study, with_replay
from hub.testing import tiny_model_path


@pytest.fixture
def tasks(tmp_path) -> Path:
    """Two tasks of one answer each, which a tiny model learns in a few steps."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, answer in (("1_red", "red"), ("2_blue", "blue")):
        rows = [
            {"messages": [{"role": "user", "content": f"What is {word}?"}, {"role": "assistant", "content": answer}]}
            for word in ("sky", "snow", "coal", "grass")
        ]
        for part, number in (("train", 8), ("test", 1)):
            (folder / f"{name}_{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * number))
    return folder


def study(tasks: Path, **options: object) -> Study:
    files = {name: [str(tasks / f"{name}_{part}.jsonl") for part in ("train", "test")] for name in ("1_red", "2_blue")}
    model = {"path": str(tiny_model_path("llama")), "dtype": "float32"}
    return Study(**{"model": model, "tasks": files, "text": None, "rows": 32, "test_rows": 4, "replayed": 8,
                    "shuffle": False, **options})  # fmt: skip


def test_figures_are_those_of_their_definitions():
    accuracy = [[0.9, 0.2, 0.1], [0.5, 0.8, 0.3], [0.6, 0.7, 1.0]]
    found = figures(accuracy, [0.1, 0.0, 0.2])
    assert found == pytest.approx(
        {
            "average accuracy": (0.6 + 0.7 + 1.0) / 3,
            "learned": (0.9 + 0.8 + 1.0) / 3,
            "backward transfer": ((0.6 - 0.9) + (0.7 - 0.8)) / 2,
            "forward transfer": ((0.2 - 0.0) + (0.3 - 0.2)) / 2,
            "forgetting": ((0.9 - 0.6) + (0.8 - 0.7)) / 2,
        }
    )
    # The best accuracy need not be that right after the task.
    assert figures([[0.5, 0], [0.7, 1], [0.4, 1]][:2], [0, 0])["forgetting"] == pytest.approx(-0.2)
    assert figures([[0.5]], [0.1])["backward transfer"] == 0


def test_replay_has_rows_of_earlier_tasks_and_as_much_text(tasks):
    one = study(tasks)
    rows = one.train_rows("2_blue")
    mixed = with_replay(one, rows, ["1_red"], seed=1)
    answers = [row["messages"][1]["content"] for row in mixed]
    assert answers.count("red") == 8

    def size(those):
        return sum(len(message["content"]) for row in those for message in row["messages"])

    assert size(rows) - 30 < size(mixed) <= size(rows)
    assert with_replay(one, rows, ["1_red"], seed=1) == mixed != with_replay(one, rows, ["1_red"], seed=2)


def test_a_method_is_an_algorithm_with_its_options():
    method = Method("osft:learning_rate=3e-4;protect_strength=100;subspace=activations")
    assert (method.algorithm, Method("replay:learning_rate=1").algorithm) == ("osft", "sft")
    assert method.words == ["algo.learning_rate=3e-4", "algo.protect_strength=100", "algo.subspace=activations"]
    assert method.options == {"learning_rate": 3e-4, "protect_strength": 100, "subspace": "activations"}
    assert study(Path(), shuffle=True).order(0) != study(Path(), shuffle=True).order(1)


def test_what_would_be_one_run_or_none_is_refused(tasks, tmp_path):
    asked = {"model": str(tiny_model_path("llama")), "tasks": str(tasks), "out": str(tmp_path / "out")}
    with pytest.raises(ConfigError, match=r"^methods has sft more than once, and both would be one run. Type it once\n"
                                          r"seeds has 1 more than once"):  # fmt: skip
        ask("continual", **asked, methods=["sft", "sft"], seeds=[1, 0, 1])
    with pytest.raises(ConfigError, match=r"^methods=osft:protect_strengh=5: algo\.protect_strengh: there is no such option"):
        ask("continual", **asked, methods=["sft", "osft:protect_strengh=5"])
    assert not (tmp_path / "out").exists()


def test_a_run_ends_with_the_command_that_started_it(tasks, tmp_path, monkeypatch):
    over, python = tmp_path / "over", tmp_path / "python"
    os.mkfifo(over)
    python.write_text(f"#!/bin/sh\n[ -p /dev/stdin ] && cat && word=over\necho $word > {over}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))

    def ended(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.time, "sleep", ended)
    with pytest.raises(KeyboardInterrupt):
        run_all([Job(study(tasks), "sft", 0, str(tmp_path / "a"))], 1, None)
    assert over.read_text() == "over\n"


@pytest.mark.slow
def test_a_run_that_fails_is_one_line_and_the_exit_code(tasks, tmp_path, hub):
    row = json.dumps({"messages": [{"role": "user", "content": "What?"}]})
    (tasks / "1_red_train.jsonl").write_text(f"{row}\n")
    before = {"right": {"1_red": 0.0, "2_blue": 0.0}, "containing": {}, "text_loss": None}
    out = tmp_path / "out"
    (out / BEFORE).mkdir(parents=True)
    (out / BEFORE / "state.json").write_text(json.dumps({"measured": [before], "done": True}))
    said = hub("continual", "model=tiny", f"tasks={tasks}", "methods=[sft]", "seeds=[0]", f"out={out}")
    assert said.code == 1
    (line,) = [line for line in said.out.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: sft-seed0: 1-1_red.jsonl:1: no assistant turn, so there is nothing to train on.")


@pytest.mark.slow
@pytest.mark.usefixtures("warm_python")
def test_a_run_learns_each_task_from_the_model_before_and_goes_on_where_it_was(tasks, tmp_path, monkeypatch):
    options = "learning_rate=2e-2;max_steps=12;effective_batch_size=8;protect_strength=0;unfreeze_rank_ratio=1"
    job = Job(study(tasks), f"osft:{options}", 0, str(tmp_path / "out" / "a"))
    real, calls = work.__globals__["_train"], []

    def interrupted(job, method, before, data):
        calls.append(before)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(job, method, before, data)

    monkeypatch.setitem(work.__globals__, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work(job)
    assert not job.is_done
    work(job)
    state = job.state
    assert job.is_done
    assert calls == [None, state["runs"][0], state["runs"][0]]
    assert [one["right"] for one in state["measured"]] == [{"1_red": 1.0, "2_blue": 0.0}, {"1_red": 0.0, "2_blue": 1.0}]
    second = json.loads((Path(state["runs"][1]) / "plan.json").read_text())
    assert any("learned in" in name for name in second["protected"])
    assert not list((Path(state["runs"][0]) / "model").glob("*.safetensors"))
    assert list((Path(state["runs"][1]) / "model").glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.usefixtures("warm_python")
def test_an_adapter_is_merged_after_its_task_and_the_next_one_protects_what_it_learned(tasks, tmp_path):
    options = "learning_rate=2e-2;max_steps=12;effective_batch_size=8;protect=self;unfreeze_rank_ratio=0.9"
    job = Job(study(tasks), f"lora_sft:{options}", 0, str(tmp_path / "a"))
    work(job)
    state = job.state
    assert state["measured"][0]["right"]["1_red"] == state["measured"][1]["right"]["2_blue"] == 1.0
    first, second = (Path(run) for run in state["runs"])
    plan = json.loads((second / "plan.json").read_text())
    assert plan["protected_from"] == str(first / "protected_samples.safetensors")
    assert f"learned in {first.name}" in plan["protected"]
    assert "exports/merged" in (second / "run.yaml").read_text()
    left = [file.parent.name for run in (first, second) for file in run.rglob("*.safetensors") if "protected" not in file.name]
    assert left == ["model"]


@pytest.mark.slow
def test_the_verb_writes_a_table_and_a_report_and_does_nothing_twice(tasks, tmp_path, capsys):
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "one two three four"}) + "\n")
    asked = {"model": str(tiny_model_path("llama")), "tasks": str(tasks), "text": str(text), "seeds": [0], "jobs": 2,
             "methods": ["sft:max_steps=2", "replay:max_steps=2"], "out": str(tmp_path / "out")}  # fmt: skip
    found = ask("continual", **asked)
    assert [row["method"] for row in found.rows] == ["sft:max_steps=2", "replay:max_steps=2"]
    assert found.notes == []
    assert "| replay:max_steps=2 | 1 |" in (found.path / "table.md").read_text()
    page = (found.path / "report.html").read_text()
    assert page.count("<polyline") == 4
    assert BEFORE in {folder.name for folder in found.path.iterdir()}
    capsys.readouterr()
    assert ask("continual", **asked).rows == found.rows
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match=r"has runs of another study \(other tasks, rows or model\)\. Type out=FOLDER"):
        ask("continual", **asked, rows=3)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, r"hub continual: no tasks are named\. Type tasks=FOLDER"),
        ({"tasks": "nowhere"}, r"tasks=nowhere: there is no file NAME_train\.jsonl"),
        ({"methods": []}, r"methods=\[\] leaves nothing to do"),
        ({"methods": ["ofst"]}, r"algo=ofst: there is no such algorithm\. Did you mean osft"),
        ({"methods": ["osft:rate=1"]}, r"algo\.rate"),
        ({"text": "no.jsonl"}, r"text=no\.jsonl: there is no such file"),
    ],
)
def test_mistakes_are_said_before_anything_runs(tasks, tmp_path, options, line):
    named = {"tasks": str(tasks), **options} if options else {}
    with pytest.raises(ConfigError, match=line):
        ask("continual", model="tiny", out=str(tmp_path / "out"), **named)
