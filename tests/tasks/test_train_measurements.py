"""What training measures around itself: the figures are those of `hub evaluate`, and training does not notice."""

import json
import signal

import pytest

import hub
from hub import ConfigError, compose
from hub.errors import Interrupted
from hub.launch.launcher import launch
from hub.testing import write_chats
from hub.train import loop

MEASURED = ["evaluate.retention=auto", "evaluate.metrics=[contains,f1]", "evaluate.max_new_tokens=6", "evaluate.limit=5"]
OPTIONS = ["algo=lora_sft", "model=tiny", "data=tiny", "launch=inline", "model.dtype=float32", "algo.effective_batch_size=8",
           "algo.learning_rate=3e-2", "algo.lora_dropout=0.1", "algo.max_steps=4", "run_name=it"]  # fmt: skip


def train(folder, *more: str):
    return launch(compose(*OPTIONS, f"output_dir={folder}", *more))


def by_name(rows: list[dict]) -> dict:
    return {(row["set"], row["metric"]): row for row in rows}


@pytest.mark.slow
def test_the_figures_are_those_of_evaluate_and_training_does_not_notice(tmp_path, capsys):
    plain = train(tmp_path / "plain")
    result = train(tmp_path, *MEASURED, "evaluate.every_steps=2")
    said = capsys.readouterr().out
    assert [line["loss"] for line in result.metrics] == [line["loss"] for line in plain.metrics]
    written = json.loads((result.run_path / "evaluation.json").read_text())
    rows = by_name(written["rows"])
    assert set(rows) == {*((part, metric) for part in ("held-out", "retention") for metric in ("loss", "perplexity")),
                         ("held-out", "contains"), ("held-out", "f1")}  # fmt: skip
    again = by_name(hub.evaluate(run=result.run_path, dtype="float32", out=tmp_path / "again.json").rows)
    for name, row in rows.items():
        for mine, theirs in zip(row["values"], again[name]["values"], strict=True):
            assert mine["value"] == pytest.approx(theirs["value"], rel=1e-4), name
        for bound in ("value", "low", "high"):
            assert row["difference"][bound] == pytest.approx(again[name]["difference"][bound], rel=1e-3, abs=1e-4), name
    held_out = rows["held-out", "loss"]
    assert held_out["difference"]["high"] < 0
    assert f"learnt: held-out loss {held_out['values'][1]['value']:.4g} -> {held_out['values'][0]['value']:.4g}" in said
    assert [one["step"] for one in written["steps"]] == [2, 4]
    assert result.metrics[1]["held-out/loss"] == by_name(written["steps"][0]["rows"])["held-out", "loss"]["values"][0]["value"]
    assert len(written["examples"]) == 5
    assert {"prompt", "reference", "before", "after", "set"} == set(written["examples"][0])


def test_what_is_measured_at_a_step_that_is_not_due_to_be_logged_is_logged(tmp_path, capsys):
    rows = write_chats(tmp_path / "rows.jsonl", num_rows=9)
    rows.write_text("".join(f'{{"level": 1, "nobody": 2, {line[1:]}\n' for line in rows.read_text().splitlines()))
    (tmp_path / "mine.py").write_text("def number(answer, level):\n    return level\n")
    result = train(tmp_path, f"evaluate.metrics={tmp_path}/mine.py:number", "evaluate.every_steps=5", "evaluate.limit=1",
                   "evaluate.max_new_tokens=1", "algo.max_steps=6", "algo.log_every_steps=4", "algo.eval_every_steps=3",
                   "data.eval_fraction=0.3", f"data.path={rows}", "algo.effective_batch_size=2")  # fmt: skip
    number = f"held-out/{tmp_path}/mine.py:number"
    held = {line["step"]: ("eval_loss" in line, line.get(number)) for line in result.metrics}
    assert held == {3: (True, None), 4: (False, None), 5: (False, 1.0), 6: (True, 1.0)}
    assert "Unused fields: nobody\n" in capsys.readouterr().out
    assert json.loads((result.run_path / "plan.json").read_text())["data"]["fields_not_used"] == ["nobody"]


@pytest.mark.slow
def test_a_resumed_run_compares_with_what_was_measured_before_training(tmp_path, monkeypatch):
    options = [*MEASURED[:1], MEASURED[3], "evaluate.every_steps=1"]
    expected = train(tmp_path / "undisturbed", *options)
    steps = iter(range(1, 9))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requested", lambda: signal.SIGTERM if next(steps) == 2 else None)
        with pytest.raises(Interrupted):
            train(tmp_path, *options)
    assert not (tmp_path / "it/evaluation.json").exists()
    found = launch(compose(f"resume={tmp_path / 'it'}"))
    resumed, undisturbed = (json.loads((run.run_path / "evaluation.json").read_text()) for run in (found, expected))
    assert resumed["rows"] == undisturbed["rows"]
    assert all(row["difference"] is not None for row in resumed["rows"])
    assert resumed["steps"] == undisturbed["steps"]
    assert [one["step"] for one in resumed["steps"]] == [1, 2, 3, 4]


def test_the_best_model_may_be_chosen_by_any_figure(tmp_path):
    options = [*MEASURED[:1], MEASURED[3], "evaluate.every_steps=1", "algo.keep_best=true", "algo.best_by=retention/loss",
               "algo.eval_every_steps=1"]  # fmt: skip
    result = train(tmp_path, *options, "algo.learning_rate=20.0", "algo.lr_scheduler=constant")
    values = {line["step"]: line["retention/loss"] for line in result.metrics}
    best = min(values, key=values.get)
    assert result.best_step == best < 4, "this run does not get worse"
    assert result.eval_loss == result.metrics[best - 1]["eval_loss"]
    written = json.loads((result.run_path / "evaluation.json").read_text())
    assert [one["step"] for one in written["steps"]] == [1, 2, 3, 4]
    after = by_name(written["rows"])["retention", "loss"]["values"][0]
    assert after["value"] == pytest.approx(values[best], abs=1e-5)
    with pytest.raises(ConfigError, match=r"algo\.best_by=bleu"):
        train(tmp_path / "no", *options, "algo.best_by=bleu")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["evaluate.metrics=[f2]"], "evaluate.metrics=f2: there is no such metric"),
        (["evaluate.every_steps=3"], "evaluate.every_steps=3, but nothing is measured"),
        (["evaluate.metrics=[f1]", "data.eval_fraction=0"], "evaluate.metrics=f1 needs an evaluation set"),
        (["evaluate.retention=nix.txt"], "evaluate.retention=nix.txt: there is no such file"),
        (
            ["evaluate.metrics=[f1]", "algo.keep_best=true", "algo.best_by=bleu", "evaluate.every_steps=1"],
            r"algo\.best_by=bleu is not measured\. Allowed: loss, perplexity, f1",
        ),
        (
            ["evaluate.metrics=[f1,chrf]", "launch.strategy=zero3"],
            r"^evaluate.metrics=f1,chrf needs all weights on each process, and launch.strategy=zero3 shards them\. Type "
            r"launch.strategy=ddp if .* python -m hub evaluate run=latest evaluate.metrics=f1,chrf\n",
        ),
        (["evaluate.also=[nix]"], "evaluate.also=nix: there is no such folder"),
    ],
)
def test_what_can_not_be_measured_is_refused_before_the_run(tmp_path, options, line):
    with pytest.raises(ConfigError, match=line):
        train(tmp_path, *options)
    assert not (tmp_path / "it").exists()
