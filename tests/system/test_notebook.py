"""In a notebook a run is one table, from the worker's steps to the cell."""

import contextlib
import io
import os
import sys
from types import SimpleNamespace

import pytest

from hub.launch.workers import Forwarding, Workers
from hub.system import notebook
from hub.train.progress import ProgressLine

METRICS = {"loss": 2.0, "learning_rate": 1e-4, "tokens_per_second": 900.0, "packing_efficiency": 1.0, "peak_memory_gb": 0.5}


@pytest.fixture
def cell(monkeypatch) -> list[str]:
    """What the cell of a notebook shows, as text: each update appends what stands there then."""
    shown: list[str] = []

    def display(table, display_id):
        shown.append(repr(table))
        return SimpleNamespace(update=lambda table: shown.append(repr(table)))

    fake = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()), display=SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setitem(sys.modules, "IPython.display", fake.display)
    return shown


def test_steps_of_a_worker_are_a_table_and_its_other_lines_stay_lines(cell, monkeypatch):
    assert notebook.is_notebook()
    program = (
        "from hub.train.progress import ProgressLine\n"
        "line = ProgressLine(2, enabled=True)\n"
        f"line.step(1, {METRICS}); line.say('between'); line.step(2, {METRICS | {'eval_loss': 1.5}}); line.stop()\n"
        "assert not ProgressLine(2, enabled=False).has_table"
    )
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert Workers([sys.executable, "-c", program], dict(os.environ), Forwarding()).wait() == 0
    assert out.getvalue() == "between\n"
    assert cell[0].startswith("step 1 of 2, 0:0")
    head, titles, first, last = cell[-1].splitlines()
    assert head == "step 2 of 2"
    assert titles.split() == ["step", "loss", "held-out", "loss", "learning", "rate", "tokens/s", "GB"]
    assert [first.split()[:2], last.split()[:3]] == [["1", "2.0000"], ["2", "2.0000", "1.5000"]]


def test_a_run_in_the_notebooks_own_process_is_a_table_and_without_a_notebook_it_is_lines(cell, capsys, monkeypatch):
    for steps in range(1, 3):
        progress = ProgressLine(steps, enabled=True)
        progress.step(steps, METRICS)
        progress.stop()
        assert cell[-1].startswith(f"step {steps} of {steps}\n")
    assert capsys.readouterr().out == ""
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: object()))  # IPython in a terminal
    ProgressLine(2, enabled=True).step(2, METRICS)
    assert capsys.readouterr().out.startswith("step 2/2  loss 2.0000")


@pytest.mark.parametrize("every", [1, 7, 10**6])
def test_a_long_run_keeps_few_rows_its_first_step_and_its_last_one(cell, every):
    table = notebook.StepTable()
    for step in range(1, 1001):
        evaluated = {"eval_loss": 3.0} if step % every == 0 else {}
        table.step({"step": step, "total": 1000, "left": "0:01", "loss": 1.0, **evaluated})
    table.close()
    steps = [int(line.split()[0].replace(",", "")) for line in cell[-1].splitlines()[2:]]
    assert steps == sorted(steps)
    assert 5 < len(steps) <= notebook.MOST_ROWS
    assert (steps[0], steps[-1]) == (1, 1000)
    assert table._repr_html_().count("<tr>") == len(steps) + 1
