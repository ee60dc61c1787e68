"""Every hook is documented with its signature, and called in real runs with the documented arguments."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hub.errors import HubError, PluginError
from hub.launch.worker import check_takes_setup
from hub.plugins import hookspecs
from hub.plugins.checks import HOOKS
from hub.plugins.registry import load
from hub.result import Result
from hub.run import Run

pytestmark = pytest.mark.usefixtures("warm_python")

DOCS = Path(__file__).parents[2] / "docs" / "plugins.md"

OBSERVER = """
import json
from dataclasses import dataclass
from pathlib import Path
from hub import AlgoConfig, Algorithm, Backend, DataFormat, Exporter, Metric, hookimpl

@dataclass(kw_only=True)
class Options(AlgoConfig):
    pass

def write(**what):
    with (Path.cwd() / "calls.jsonl").open("a") as file:
        file.write(json.dumps(what) + "\\n")

@hookimpl
def hub_algorithms():
    write(hook="hub_algorithms")
    return [Algorithm(name="fall", config=Options, summary="falls")]

@hookimpl
def hub_backends():
    write(hook="hub_backends")
    return [Backend(name="native", algorithm="fall", build=f"{__name__}.train:train")]

@hookimpl
def hub_data_formats():
    write(hook="hub_data_formats")
    return [DataFormat(name="faq", fields=("question", "answer"), convert=dict)]

@hookimpl
def hub_metrics():
    write(hook="hub_metrics")
    return [Metric(name="length", function=f"{__name__}.train:length")]

@hookimpl
def hub_exporters():
    write(hook="hub_exporters")
    return [Exporter(name="npz", function=f"{__name__}.train:length", summary="as NumPy arrays")]

@hookimpl
def hub_config_dir():
    write(hook="hub_config_dir")
    return Path(__file__).parent

@hookimpl
def hub_run_start(cfg, run):
    write(hook="hub_run_start", steps=cfg.algo.max_steps, run=str(run.path), plan=(run.path / "plan.json").is_file())

@hookimpl
def hub_log(run, step, metrics):
    logged = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])
    write(hook="hub_log", step=step, loss=metrics["loss"], written=logged == metrics)

@hookimpl
def hub_checkpoint(run, step, path):
    place = str(path.relative_to(run.path))
    write(hook="hub_checkpoint", step=step, path=place, whole=(path / "manifest.json").is_file())

@hookimpl
def hub_run_end(run, result, error):
    write(
        hook="hub_run_end",
        status=result and result.status,
        model=bool(result) and result.model_path.is_dir(),
        error=error and f"{type(error).__name__}: {error}",
        written=json.loads((run.path / "result.json").read_text())["status"],
    )
"""
FALL = "def train(setup):\n    raise ValueError('fell over')\n"


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """Runs `hub` beside the observing plugin; gives the process and the calls that it wrote down, in order."""
    folder = tmp_path_factory.mktemp("observed")
    package = folder / "site" / "observer_of_tests"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(OBSERVER)
    (package / "train.py").write_text(FALL)
    info = folder / "site" / "observer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: observer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hub]\nobserver = observer_of_tests\n")

    def run(name: str, *words: str) -> tuple[subprocess.CompletedProcess[str], list[dict]]:
        cwd = folder / name
        cwd.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "hub", *words, "model=tiny", "data=tiny"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")])},
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
        )
        calls = (cwd / "calls.jsonl").read_text().splitlines() if (cwd / "calls.jsonl").is_file() else []
        return done, [json.loads(line) for line in calls]

    return run


@pytest.fixture(scope="module")
def completed(observed):
    words = ("algo=lora_sft", "algo.max_steps=3", "algo.log_every_steps=2", "algo.save_every_steps=2")
    return observed("completed", *words)


FIRST = ("hub_algorithms", "hub_backends", "hub_data_formats", "hub_metrics", "hub_exporters", "hub_config_dir")
"""Hooks that are called while plugins are loaded."""


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented_with_its_signature(name):
    hook = getattr(hookspecs, name)
    signature = re.sub(r"['\"]|collections\.abc\.|pathlib\.", "", str(inspect.signature(hook)))
    assert hook.__doc__
    assert f"### `{name}{signature}`\n" in DOCS.read_text(encoding="utf-8")


def test_every_hook_is_called_in_a_run(completed):
    done, calls = completed
    assert done.returncode == 0, done.stderr
    assert {call["hook"] for call in calls} == set(HOOKS)


def test_observers_see_a_run_in_order(completed):
    _, calls = completed
    seen = [call for call in calls if call["hook"] not in FIRST]
    start, *middle, end = seen
    run = Path(start.pop("run"))
    assert start == {"hook": "hub_run_start", "steps": 3, "plan": True}
    losses = {line["step"]: line["loss"] for line in Result.read(run / "result.json").metrics}
    # A checkpoint is reported when it is complete. It is written during training, so that may be some steps later.
    saved = {"hook": "hub_checkpoint", "step": 2, "path": "checkpoints/step-00000002", "whole": True}
    assert middle.index(saved) > 0
    middle.remove(saved)
    middle.remove(saved | {"step": 3, "path": "checkpoints/step-00000003"})
    assert middle == [
        {"hook": "hub_log", "step": 2, "loss": losses[2], "written": True},
        {"hook": "hub_log", "step": 3, "loss": losses[3], "written": True},
    ]
    assert end == {"hook": "hub_run_end", "status": "completed", "model": True, "error": None, "written": "completed"}


def test_the_end_of_a_failed_run_is_seen_with_its_error(observed):
    done, calls = observed("failed", "algo=fall")
    assert done.returncode == 1
    assert "fell over" in done.stderr
    assert calls[-1] == {
        "hook": "hub_run_end",
        "status": None,
        "model": False,
        "error": "ValueError: fell over",
        "written": "failed",
    }
    assert "hub_run_start" not in {call["hook"] for call in calls}


FRAGILE = """
from hub import HubError, hookimpl
@hookimpl
def hub_log(step):
    if step == 7:
        raise HubError("enough is enough")
    raise ValueError("no room")
@hookimpl
def hub_run_end(run):
    raise HubError("too late")
"""
STEADY = """
from hub import hookimpl
steps = []
@hookimpl
def hub_log(step):
    steps.append(step)
"""


def test_an_observer_that_fails_is_switched_off_and_the_others_go_on(plugin_folder, tmp_path, capsys):
    folder = plugin_folder()
    folder.add("fragile", FRAGILE)
    folder.add("steady", STEADY)
    found = load(folder.entry_points)
    for step in (1, 2):
        found.observe("hub_log", run=Run(tmp_path), step=step, metrics={})
    assert found.manager.get_plugin("steady").steps == [1, 2]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hub: plugin fragile failed in hub_log, which is not called again: ValueError: no room (")
    assert line.endswith("__init__.py, line 7)")


def test_an_observer_may_end_the_run_by_a_hub_error_but_not_when_it_is_over(plugin_folder, tmp_path, capsys):
    folder = plugin_folder()
    folder.add("fragile", FRAGILE)
    found = load(folder.entry_points)
    with pytest.raises(HubError, match="enough is enough"):
        found.observe("hub_log", run=Run(tmp_path), step=7, metrics={})
    found.observe("hub_run_end", run=Run(tmp_path), result=None, error=None)
    assert "too late" in capsys.readouterr().err


@pytest.mark.parametrize("signature", ["(cfg, run)", "()", "(setup, *, run)"])
def test_a_build_that_does_not_take_the_setup_alone_is_refused_in_a_line(signature):
    place: dict[str, Any] = {}
    exec(f"def train{signature}: raise AssertionError", place)
    with pytest.raises(PluginError) as error:
        check_takes_setup(place["train"], "fall.recipe:train")
    assert str(error.value) == (
        f"fall.recipe:train{signature} can't be called with the setup alone. Write `def train(setup)`, which returns a "
        "hub.recipe.Recipe"
    )


@pytest.mark.parametrize("function", [lambda setup: None, lambda setup, more=1, **rest: None, lambda *given: None])
def test_a_build_may_have_more_arguments_with_defaults(function):
    check_takes_setup(function, "fall.recipe:build")
