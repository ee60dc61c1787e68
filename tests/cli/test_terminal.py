"""What the command line shows on a terminal: what to type next, what takes long, and lines that fit."""

import io
import re
import sys

import pytest

from hub.cli.pages import command_of_run
from hub.compose.overrides import FromFile
from hub.system import timeline
from hub.tables import fitted
from hub.train.progress import ProgressLine

TINY = ("algo=lora_sft", "model=tiny", "data=tiny")


def test_what_was_inspected_says_how_it_is_trained():
    assert command_of_run(["model=tiny", "data.path=my chats.jsonl"]) == (
        "python -m hub algo=lora_sft model=tiny 'data.path=my chats.jsonl'"
    )
    words = [FromFile("algo=sft", "exp.yaml"), FromFile("model=tiny", "exp.yaml"), "plan.gpu=rtx4090", "+plan.gpus=2", "a.b=1"]
    assert command_of_run(words, "mine") == "python -m hub --config-dir mine exp.yaml a.b=1"


def test_quiet_leaves_the_result_and_what_to_type_next(hub, tmp_path):
    said = hub(*TINY, "launch=inline", "algo.max_steps=1", "run_name=first", "--quiet")
    assert [line.split(" ")[0] for line in said.out.splitlines()] == ["completed:", "adapter:", "next:", "load"]
    assert "next: python -m hub chat run=runs/first, or report, " in said.out
    assert "after step 1" in (tmp_path / "runs" / "first" / "log.txt").read_text(encoding="utf-8")
    answer = hub("generate", "run=runs/first", "prompt=Hi", "generate.max_new_tokens=1", "--quiet")
    assert (answer.code, answer.err) == (0, "")
    refused = hub("generate", "run=runs/first", "--quiet")
    assert refused.code == 2
    assert len(refused.problems) == 1


def test_a_terminal_is_shown_what_takes_long(hub, monkeypatch):
    begun = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(timeline.Timeline, "begin", lambda self, stage: begun.append(stage))
    hub("report", "run=nothing")
    hub("plan", "algo=none")
    assert begun == ["reading the run", "libraries"]


@pytest.mark.parametrize("width", [80, 140])
def test_the_progress_of_a_run_fits_a_terminal(monkeypatch, width):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    progress = ProgressLine(12345, enabled=True)
    speed = {"tokens_per_second": 116248.0, "mfu": 0.41, "packing_efficiency": 0.98, "peak_memory_gb": 121.3}
    progress.step(3700, {"loss": 2.34567, "learning_rate": 1.5e-4, **speed})
    progress.stop()
    (line,) = {line for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[a-zA-Z]", screen.getvalue()) if "loss" in line}
    assert "…" not in screen.getvalue()
    assert "116,248 tokens/s" in line
    assert "3700/12345" in screen.getvalue().replace(" ", "")
    monkeypatch.setenv("TERM", "dumb")
    plain = ProgressLine(3, enabled=True)
    plain.step(3, {"loss": 2.34567, "learning_rate": 1.5e-4, **speed})
    assert plain.bar is None
    assert ("  lr 1.50e-04  " in screen.getvalue().splitlines()[-1]) == (width == 140)


def test_a_table_fits_a_terminal_and_prose_and_commands_stay_in_one_piece():
    table = "gradients   0.02 GiB  one for each of 4,884,480 trained numbers, float32"
    assert fitted(table, 48) == f"gradients   0.02 GiB  one for each of 4,884,480\n{' ' * 22}trained numbers, float32"
    whole = f"{table}\n{'prose ' * 20}\ntype  it  python -m hub {'x=1 ' * 20}\na{' ' * 50}b c"
    assert fitted(whole, 72) == whole
    assert fitted("first\nlast\n", 80) == "first\nlast\n"
