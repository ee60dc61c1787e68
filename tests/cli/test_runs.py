"""`hub runs`: what a folder of runs has, and what `--keep N` removes. Nothing is removed by accident."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

DAY = 24 * 3600.0


@pytest.fixture
def make(tmp_path):
    """Makes a run folder that began some days ago."""

    def run(name: str, days: float, model: str = "tiny:llama", result: bool = True, **values: object) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        if values.get("status") != "verified":
            (folder / "model").mkdir()
            (folder / "model/weights").write_bytes(b"0" * 3000)
        (folder / "run.yaml").write_text(f"algo:\n  name: lora_sft\nmodel:\n  path: {model}\n")
        if result:
            values = {"status": "completed", "algo": "lora_sft", "model": model, "train_loss": 2.5, **values}
            (folder / "result.json").write_text(json.dumps(values))
        then = time.time() - days * DAY
        for file in [*folder.rglob("*"), folder]:
            os.utime(file, (then, then), follow_symlinks=False)
        return folder

    return run


def names(hub, *words: str) -> list[str]:
    return [entry["name"] for entry in json.loads(hub("runs", "--json", *words).out)]


def test_runs_are_listed_with_age_algorithm_model_status_loss_and_size(hub, make, tmp_path):
    make("2026-11-28_20-27-55-859542", 0.5, eval_loss=1.25)
    make("old", 3, status="failed", train_loss=None, model="/models/own")
    make("dead", 2, result=False)
    make("new", 0, result=False)
    (tmp_path / "runs/data").mkdir()
    (tmp_path / "runs/latest").symlink_to("new")
    lines = hub("runs").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines[:-1]] == [
        ["run", "age", "what", "status", "loss", "size"],
        ["new", "*", "0", "s", "lora_sft", "tiny:llama", "unfinished", "3.0", "kB"],
        ["2026-11-28_20-27-55-859542", "12", "h", "lora_sft", "tiny:llama", "completed", "1.25", "3.2", "kB"],
        ["dead", "2", "d", "lora_sft", "tiny:llama", "killed", "3.0", "kB"],
        ["old", "3", "d", "lora_sft", "own", "failed", "3.1", "kB"],
    ]
    assert lines[-1].startswith("4 runs, 12 kB.")
    assert names(hub, "output_dir=runs") == ["new", "2026-11-28_20-27-55-859542", "dead", "old"]


def test_a_name_by_date_stays_in_one_piece_on_80_columns(make, monkeypatch):
    import io

    from hub.cli.runs import list_runs

    name = "2026-11-29_14-51-49-603047"
    run = make(name, 1, model="HuggingFaceTB/SmolLM2-135M-Instruct", status="interrupted")
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "80")
    list_runs(str(run.parent), as_json=False)
    lines = screen.getvalue().splitlines()
    assert name in lines[1]
    assert max(map(len, lines[:-1])) <= 80


def test_keep_lists_what_would_go_and_removes_it_only_with_yes(hub, make, tmp_path):
    for days in range(5):
        make(f"run{days}", days)
    (tmp_path / "runs/run4/elsewhere").symlink_to(tmp_path)
    (tmp_path / "runs/notes").mkdir()
    said = hub("runs", "--keep", "2")
    assert "3 runs of 5, 9.4 kB, would go. To remove them type: hub runs --keep 2 --yes" in said.out
    assert len(names(hub)) == 5
    assert hub("runs", "--keep", "2", "--yes").out.splitlines()[-1] == "removed 3 runs, 9.4 kB"
    assert names(hub) == ["run0", "run1"]
    assert (tmp_path / "runs/notes").is_dir()
    assert hub("runs", "--keep", "2", "--yes").out == "nothing to remove: 2 runs in runs, --keep 2\n"


def test_runs_without_a_model_displace_none(hub, make, tmp_path):
    for days in range(3):
        make(f"trained{days}", days + 3)
        make(f"verified{days}", days, status="verified")
    (tmp_path / "runs/trained1/model").rename(tmp_path / "runs/trained1/checkpoints")
    (tmp_path / "runs/trained1/checkpoints/weights").rename(tmp_path / "runs/trained1/checkpoints/step-00000001")
    assert "removed 2 runs," in hub("runs", "--keep", "2", "--yes").out
    assert names(hub) == ["verified0", "verified1", "trained0", "trained1"]


def test_the_latest_a_run_that_may_run_and_a_base_of_a_kept_run_stay(hub, make, tmp_path):
    base, top = make("base", 9), make("top", 1)
    chain = make("chain", 5, model=f"{base}/model")
    make("own_model", 0, model=f"{chain}/checkpoints/step-00000010/model")
    make("new_files", 6, result=False)
    (tmp_path / "runs/new_files/metrics.jsonl").touch()
    make("gone", 7)
    make("gone_too", 8, result=False)
    make("pointed_to", 10)
    (tmp_path / "runs/latest").symlink_to("pointed_to")
    (tmp_path / "runs/link").symlink_to(top)
    busy = make("busy", 30, result=False)
    with subprocess.Popen(
        [sys.executable, "-c", "print(); input()", str(busy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()  # it has started
        out = hub("runs", "--keep", "1", "--yes").out
        process.communicate(b"\n")
    assert {
        line.split(",")[0].removeprefix("kept: "): line.partition(", ")[2] for line in out.splitlines() if "kept" in line
    } == {
        "new_files": "which is unfinished and may still be written to",
        "pointed_to": "which latest points to",
        "busy": "which is running and may still be written to",
        "chain": "whose model own_model trained on",
        "base": "whose model chain trained on",
    }
    assert names(hub) == ["own_model", "chain", "new_files", "base", "pointed_to", "busy"]


def test_a_sweep_is_one_entry_with_its_best_loss_and_stays_while_one_run_may_run(hub, make, tmp_path):
    make("sweep/0", 3, eval_loss=2.0)
    make("sweep/1", 3, eval_loss=1.0)
    make("sweep/2", 3, result=False)
    for number in range(3):
        (tmp_path / f"runs/sweep/{number}/overrides.json").write_text("[]")
    make("newer", 0)
    assert "3 x lora_sft tiny:llama  unfinished  1 " in hub("runs").out
    assert "kept: sweep, which is unfinished" in hub("runs", "--keep", "1", "--yes").out
    (tmp_path / "runs/sweep/2/result.json").write_text('{"status": "interrupted"}')
    assert "removed 1 run," in hub("runs", "--keep", "1", "--yes").out
    assert names(hub) == ["newer"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "there is no folder nowhere. Type hub runs FOLDER with the output_dir of your runs"),
        (["a", "b"], "hub runs takes one folder, but got a b. Type hub runs, or hub runs FOLDER"),
        (["algo=sft"], "hub runs takes one folder, but got algo=sft. Type hub runs, or hub runs FOLDER"),
        (["--keep", "0"], "--keep 0 is not allowed. Allowed: a whole number at least 1"),
        (["--keep", "x"], "--keep x is not allowed. Allowed: a whole number at least 1"),
        (["--yes"], "--yes is for --keep. Type hub runs --keep N --yes"),
        (["--keep", "1", "--json"], "--json lists runs, --keep removes them. Leave one of them out"),
    ],
)
def test_a_wrong_word_is_one_line(hub, words, line):
    said = hub("runs", *words)
    assert (said.code, said.problems) == (2, [line])


def test_a_folder_without_runs(hub):
    assert hub("runs").out == "there is no run in the folder runs; for another type hub runs FOLDER\n"
    assert names(hub) == []
