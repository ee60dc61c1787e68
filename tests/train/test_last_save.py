"""The last save of a run whose disk is full: nothing that was learnt is lost while there is room anywhere."""

import itertools
import signal
from pathlib import Path

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file

from hub import LaunchError, compose
from hub.launch.launcher import launch
from hub.result import Result, read_metrics
from hub.system.signals import stop_request
from hub.train import last_save, loop
from hub.train.checkpoints import save
from hub.train.setup import setup

FULL = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def train(folder: Path, *options: str) -> Result:
    words = [
        "algo=sft",
        "model=tiny",
        "data=tiny",
        "launch.mode=inline",
        "algo.max_steps=2",
        f"output_dir={folder}",
        "run_name=r",
    ]
    return launch(compose(*words, "algo.num_epochs=1", *options))


def full_disk(monkeypatch, tries: int, where: str) -> list[Path]:
    """After training, the disk of a folder refuses the first so many saves of a model. Returns where they were tried."""
    real, tried = setup.Setup.complete_folder, []

    def complete(self, folder: Path) -> None:
        if stop_request.in_loop and where in str(folder):  # before training the model is saved once, to try it
            tried.append(folder)
            if len(tried) <= tries:
                raise FULL
        real(self, folder)

    monkeypatch.setattr(setup.Setup, "complete_folder", complete)
    monkeypatch.setattr(last_save, "SECONDS_BETWEEN_TRIES", 0.01)
    return tried


def test_the_model_waits_in_memory_until_there_is_room(tmp_path, monkeypatch, capsys):
    tried = full_disk(monkeypatch, 2, "/runs/")
    result = train(tmp_path / "runs")
    assert (result.status, result.num_steps, len(tried)) == ("completed", 2, 3)
    assert load_file(result.model_path / "model.safetensors")
    out = capsys.readouterr().out
    assert out.count(f"the model can't be written into {tmp_path / 'runs/r'}: ") == 1
    assert "The run waits for up to launch.wait_for_disk_minutes=30" in out
    assert not [path for path in result.run_path.iterdir() if path.name.startswith(".")]


def test_where_there_is_no_room_in_time_the_model_goes_to_the_spare_folder(tmp_path, monkeypatch):
    full_disk(monkeypatch, 99, "/runs/")
    (tmp_path / "spare").mkdir()
    wait = "launch.wait_for_disk_minutes=0"
    result = train(tmp_path / "runs", wait, f"launch.spare_dir={tmp_path / 'spare'}")
    assert (result.status, result.model_path) == ("completed", tmp_path / "spare" / "r" / "model")
    assert load_file(result.model_path / "model.safetensors")
    assert not (tmp_path / "runs/r/model").exists()  # nor half of it
    with pytest.raises(LaunchError, match=r"^the model \(.*\) could not be saved in .*/runs/s: .*launch\.spare_dir=FOLDER"):
        train(tmp_path / "runs", wait, "run_name=s")


@pytest.mark.parametrize("tries", [1, 99])
def test_a_run_that_is_stopped_on_a_full_disk_leaves_a_checkpoint_or_at_least_its_model(tmp_path, monkeypatch, tries):
    seen, real = itertools.count(1), save.seal

    def full(folder: Path, files: list[Path]) -> object:
        if next(seen) <= tries:
            raise OSError(28, "No space left on device")
        return real(folder, files)

    monkeypatch.setattr(loop, "stop_requested", lambda: signal.SIGTERM)
    monkeypatch.setattr(save, "seal", full)
    monkeypatch.setattr(last_save, "SECONDS_BETWEEN_TRIES", 0.01)
    with pytest.raises(Exception, match="stopped by SIGTERM after step 1"):
        train(tmp_path, f"launch.wait_for_disk_minutes={1 if tries == 1 else 0}")
    result = Result.read(tmp_path / "r" / "result.json")
    expected = "checkpoints/step-00000001/model" if tries == 1 else "model"
    assert (result.status, result.model_path) == ("interrupted", tmp_path / "r" / expected)
    assert load_file(result.model_path / "model.safetensors")


def test_a_signal_to_save_writes_a_checkpoint_and_training_goes_on(tmp_path, monkeypatch):
    asked = iter([signal.SIGUSR1, None])
    monkeypatch.setattr(loop, "stop_requested", lambda: next(asked))
    result = train(tmp_path)
    assert (result.status, len(read_metrics(result.run_path / "metrics.jsonl"))) == ("completed", 2)
    assert [path.name for path in (result.run_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_room_for_the_end_is_watched(tmp_path, monkeypatch, capsys):
    free = iter([10**12, 100, 100, 10**12])
    monkeypatch.setattr(last_save, "free_space", lambda folder: next(free))
    monkeypatch.setattr(last_save, "SECONDS_BETWEEN_LOOKS", 0)
    train(tmp_path, "algo.max_steps=4", "algo.log_every_steps=1")
    lines = [
        line for line in capsys.readouterr().out.splitlines() if str(tmp_path / "r") in line and "the end of the run" in line
    ]
    assert len(lines) == 2
    assert "0.0 MiB are free, and the end of the run needs 0.3 MiB. Free 0.3 MiB. Training continues" in lines[0]
    assert lines[1].endswith("has room for the end of the run again")
