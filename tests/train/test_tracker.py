"""The metrics and the final status that a tracker gets. No network: wandb is offline, mlflow has a store in a file."""

import os
import signal
import socket
import sqlite3
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from hub import compose
from hub.compose.compose import groups
from hub.config.track import TRACKERS
from hub.errors import ConfigError, Interrupted
from hub.launch import trackers as tracker_checks
from hub.launch.launcher import launch
from hub.result import Result
from hub.run import Run
from hub.testing import write_chats
from hub.train import loop
from hub.train.trackers import TOOLS

SECRETS = {"HF_TOKEN": "hf_canaryOneAbcdefghijklmnopqrstuvw", "WANDB_API_KEY": "canary-two-0123456789abcdef" + 13 * "0",
           "MLFLOW_TRACKING_PASSWORD": "canary-three-0123456789"}  # fmt: skip


def needs(package: str):
    spec = find_spec(package)
    return pytest.mark.skipif(spec is None or spec.origin is None, reason=f"the package {package} is not installed")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs four steps with a tracker in an empty folder, with secrets in the environment."""
    monkeypatch.chdir(tmp_path)
    for name, value in {**SECRETS, "HOME": str(tmp_path / "home"), "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    # mlflow allows no brackets in the name of a metric.
    sources = [str(write_chats(tmp_path / f"{name}.jsonl", num_rows=20)) for name in ("my chats (1)", "b")]

    def start(tool: str, *more: str) -> Result:
        data = ",".join(f"{{path: '{source}', weight: 1}}" for source in sources)
        options = [
            "algo=lora_sft",
            "model=tiny",
            f"data.mix=[{data}]",
            "algo.max_steps=4",
            "algo.effective_batch_size=4",
            f"track={tool}",
        ]
        return launch(compose(*options, "launch=inline", "run_name=it", *more))

    return start


@pytest.fixture
def stopped_and_resumed(run, tmp_path, monkeypatch):
    """Run until a signal after the second step, then resume to the end. Between the two `look` is called."""

    def start(tool: str, look=lambda: None) -> None:
        steps = iter(range(1, 100))
        with monkeypatch.context() as patch:
            patch.setattr(loop, "stop_requested", lambda: signal.SIGTERM if next(steps) == 2 else None)
            with pytest.raises(Interrupted):
                run(tool)
        look()
        assert launch(compose(f"resume={tmp_path / 'runs/it'}")).num_steps == 4

    return start


def has_no_secret(folder: Path) -> bool:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    return not [file for file in files if any(value.encode() in file.read_bytes() for value in SECRETS.values())]


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format (blocks of 32 KiB; pieces with 7 bytes before them), after 7 bytes."""
    place, record = 7, b""
    while place + 7 <= len(content):
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def wandb_records(file: Path) -> dict:
    """What one of wandb's own files holds, as far as it is asked for here."""
    from wandb.proto import wandb_internal_pb2 as proto

    found: dict = {"steps": [], "config": {}, "last": {}}
    for data in log_records(file.read_bytes()):
        record = proto.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"id": record.run.run_id, "name": record.run.display_name, "project": record.run.project}
        elif kind == "config":
            found["config"] |= {item.key or ".".join(item.nested_key): item.value_json for item in record.config.update}
        elif kind == "history":
            found["steps"].append(record.history.step.num)
            found["last"] = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


STORES = {
    "tensorboard": "runs",
    "trackio": "trackio",
    "dvclive": "runs/it/dvclive",
    "aim": "runs/.aim",
    "swanlab": "runs/it/swanlog",
}
"""Tracker -> where it stores what the tests send it, without a server."""


@pytest.mark.parametrize("tool", [pytest.param(tool, marks=needs(tool)) for tool in STORES])
def test_a_local_tracker_goes_on_with_a_resumed_run_and_stores_no_secret(stopped_and_resumed, tmp_path, monkeypatch, tool):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("SWANLAB_MODE", "local")
    ids = []
    stopped_and_resumed(tool, lambda: ids.append(Run(tmp_path / "runs/it").plan()["track"]))
    assert Run(tmp_path / "runs/it").plan()["track"] == ids[0]
    assert ids[0]["tool"] == tool
    assert {file.name for file in tmp_path.iterdir()} <= {"runs", "trackio", "home", "b.jsonl", "my chats (1).jsonl"}
    assert has_no_secret(tmp_path / STORES[tool])
    if tool == "dvclive":
        lines = (tmp_path / STORES[tool] / "plots/metrics/loss.tsv").read_text().split()
        assert lines[2::2] == ["1", "2", "3", "4"]
    if tool == "trackio":
        with closing(sqlite3.connect(tmp_path / "trackio/hub.db")) as store:
            assert store.execute("select run_name, step from metrics").fetchall() == [("it", step) for step in (1, 2, 3, 4)]


def test_every_tracker_of_accelerate_can_be_chosen_is_checked_and_has_a_preset():
    assert set(LOGGER_TYPE_TO_CLASS) <= set(TOOLS)
    assert {"none", *TOOLS} == set(TRACKERS) == {"none", *tracker_checks.TRACKERS} == set(groups()["track"])


@pytest.mark.parametrize("tool", TOOLS)
def test_the_package_and_the_credentials_are_checked_before_a_run_starts(tmp_path, monkeypatch, tool):
    needed = tracker_checks.TRACKERS[tool]
    monkeypatch.chdir(tmp_path)
    for name in (*os.environ,):
        if name.startswith(("WANDB", "COMET", "CLEARML", "TRAINS", "SWANLAB", "NETRC")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))

    def problems() -> list[str]:
        return list(tracker_checks.tracker_problems(compose("algo=sft", f"track={tool}")))

    monkeypatch.setattr(tracker_checks, "find_spec", lambda name: None)
    line = f"track={tool} needs the package {needed.package}. Type pip install {needed.distribution} or track=none"
    assert problems() == [line]
    monkeypatch.setattr(tracker_checks, "find_spec", lambda name: SimpleNamespace(origin="here"))
    lacking = [f"track={tool} has no credentials here. {needed.hint}; or type track=none"] if needed.variables else []
    assert problems() == lacking
    for name in needed.variables:
        with monkeypatch.context() as patch:
            patch.setenv(name, "x")
            assert problems() == []
            patch.setenv(name, " ")
            assert problems() == lacking
    for name, values in needed.without:
        with monkeypatch.context() as patch:
            patch.setenv(name, values[0])
            assert problems() == []
            patch.setenv(name, "online")
            assert problems() == lacking
    for file, word in needed.files:
        if file.startswith("$"):
            monkeypatch.setenv(file[1:].partition("/")[0], str(tmp_path / "named"))
        path = Path(os.path.expandvars(os.path.expanduser(file)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("machine example.org login me")  # of another program
        assert problems() == lacking
        path.write_text(f"The {word.upper()} is here")
        assert problems() == []
        path.unlink()
    assert problems() == lacking


@needs("wandb")
def test_wandb_has_options_metrics_and_end_and_goes_on_with_a_resumed_run(stopped_and_resumed, tmp_path):
    stopped_and_resumed("wandb")
    files = sorted((tmp_path / "runs/it/wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    first, second = map(wandb_records, files)
    assert (first["name"], first["project"], first["exit"]) == ("it", "hub", 128 + signal.SIGTERM)
    assert first["config"].items() >= {"algo.name": '"lora_sft"', "algo.lora_r": "16", "model.path": '"tiny:llama"'}.items()
    assert (first["steps"], second["steps"]) == ([1, 2], [3, 4])
    assert second["last"].keys() >= {"loss", "learning_rate", "grad_norm", "tokens_per_second", "num_samples.b"}
    assert (second["id"], second["exit"]) == (first["id"], 0)
    assert not (tmp_path / "wandb").exists()
    assert has_no_secret(tmp_path)


def ask(tmp_path: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        return store.execute(query).fetchall()


@needs("mlflow")
def test_mlflow_has_options_metrics_and_end_and_goes_on_with_a_resumed_run(stopped_and_resumed, tmp_path):
    between = []
    stopped_and_resumed("mlflow", lambda: between.extend(ask(tmp_path, "select name, status from runs")))
    assert between == [("it", "KILLED")]
    assert ask(tmp_path, "select name, status from runs") == [("it", "FINISHED")]
    assert ("hub",) in ask(tmp_path, "select name from experiments")
    options = dict(ask(tmp_path, "select key, value from params"))
    assert options.items() >= {"algo.name": "lora_sft", "algo.lora_r": "16", "model.path": "tiny:llama"}.items()
    assert ask(tmp_path, "select step from metrics where key = 'loss' order by step") == [(1,), (2,), (3,), (4,)]
    assert ("num_samples.my chats _1_",) in ask(tmp_path, "select distinct key from metrics")
    assert has_no_secret(tmp_path)


@needs("mlflow")
def test_mlflow_learns_that_an_error_ended_the_run(run, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("the roof is on fire")

    monkeypatch.setattr(loop, "train_step", fail)
    with pytest.raises(RuntimeError):
        run("mlflow")
    assert ask(tmp_path, "select name, status from runs") == [("it", "FAILED")]


@needs("mlflow")
@pytest.mark.parametrize(("options", "tries"), [({}, 3), ({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}, 1)])
def test_a_server_that_can_not_be_reached_is_a_line_after_few_tries(run, monkeypatch, options, tries):
    came = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            with suppress(OSError):  # the server is closed
                while True:
                    connection, _ = server.accept()
                    came.append(connection.close())

        threading.Thread(target=hang_up, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        for name, value in {"MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0", "NO_PROXY": "127.0.0.1", **options}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=r"^track=mlflow can't be started \(MlflowException: .*or type track=none$"):
            run("mlflow")
    assert len(came) == tries


def test_mlflow_is_given_up_soon_only_while_it_is_opened_and_not_where_the_user_says_how_long(run, monkeypatch):
    names = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")

    def seen() -> list[str | None]:
        return [os.environ.get(name) for name in names]

    def init_trackers(self, project, config=None, init_kwargs=None):
        raise OSError(f"{seen()}")

    monkeypatch.setattr(Accelerator, "init_trackers", init_trackers)
    monkeypatch.delenv(names[0], raising=False)
    monkeypatch.setenv(names[1], "60")
    with pytest.raises(ConfigError, match=r"\['2', '60'\]"):
        run("tensorboard")
    assert seen() == [None, "60"]


def test_a_tracker_that_fails_while_training_goes_on_is_told_no_more(run, monkeypatch, capsys):
    asked = []

    def log(self, values, step):
        asked.append(step)
        raise OSError("no room")

    monkeypatch.setattr(Accelerator, "log", log)
    result = run("tensorboard")
    assert (result.status, len(result.metrics), asked) == ("completed", 4, [1])
    said = capsys.readouterr().out
    assert said.count("track=tensorboard: failed and is turned off (OSError: no room). metrics.jsonl has everything") == 1


@pytest.mark.parametrize("wrong", ["raises", "not installed"])
def test_a_tracker_that_can_not_be_started_is_one_line_before_the_first_step(run, tmp_path, monkeypatch, wrong):
    def init_trackers(self, project, config=None, init_kwargs=None):
        if wrong == "raises":
            raise OSError(f"no way to https://me:{SECRETS['HF_TOKEN']}@there")

    monkeypatch.setattr(Accelerator, "init_trackers", init_trackers)
    monkeypatch.setattr(loop, "train_step", lambda *arguments, **options: pytest.fail("it trains"))
    with pytest.raises(ConfigError) as caught:
        run("tensorboard")
    reasons = {
        "raises": "OSError: no way to https://***@there",
        "not installed": "ImportError: the package tensorboard is not installed for this interpreter",
    }
    assert str(caught.value) == f"track=tensorboard can't be started ({reasons[wrong]}). Or type track=none"
