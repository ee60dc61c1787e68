"""A killed run that is resumed ends bit for bit as the one that was not killed."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hub import ConfigError, compose
from hub.errors import Interrupted, ModelError
from hub.launch.launcher import launch
from hub.launch.lock import release
from hub.launch.preflight import prepare
from hub.launch.resume import config_to_run, open_run
from hub.result import Result, read_metrics
from hub.run import ASKED_FOR
from hub.testing import write_chats

pytestmark = pytest.mark.usefixtures("warm_python")

# Dropout draws random numbers in every step; the data ends in the middle of an epoch, with a smaller step in between.
NUM_STEPS = 200 if torch.cuda.is_available() else 100  # enough that a run does not end before it is killed
OPTIONS = ["algo=lora_sft", "model=tiny", "data=tiny", "model.dtype=float32", "algo.learning_rate=1e-2",
           "algo.lr_scheduler=cosine_with_restarts", "algo.lora_dropout=0.1",
           f"algo.max_steps={NUM_STEPS}", "algo.save_every_steps=3", "algo.eval_every_steps=5",
           "algo.deterministic=true"]  # fmt: skip
NUM_STEPS_HERE = 20
"""Of runs in this process, which are stopped at a step and not killed."""

HERE = [*OPTIONS, f"algo.max_steps={NUM_STEPS_HERE}"]


def run(folder: Path, *more: str) -> Result:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hub", *more, f"output_dir={folder}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return Result.read(folder / "latest" / "result.json")


def kill_after(python: str, folder: Path, num_lines: int, *more: str) -> None:
    """Start a run and kill all its processes once it has logged so many steps."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "hub", *more, f"output_dir={folder}"]
    parent = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(read_metrics(folder / "latest" / "metrics.jsonl")) < num_lines and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and str(folder) in cmdline(pid)]
    for pid in [*workers, parent.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    parent.wait()


def cmdline(pid: str) -> str:
    try:
        text = Path("/proc", pid, "cmdline").read_bytes().decode()
    except OSError:
        return ""
    return text if "hub.launch.worker" in text or "hub.launch.elastic" in text else ""


def same(one: Result, other: Result) -> None:
    first, second = (load_file(result.model_path / "adapter_model.safetensors") for result in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    keys = ("step", "epoch", "loss", "learning_rate", "grad_norm", "num_tokens", "num_loss_tokens", "eval_loss")
    lines = [[{key: line.get(key) for key in keys} for line in result.metrics] for result in (one, other)]
    assert lines[0] == lines[1]
    for key in ("num_steps", "train_loss", "eval_loss_before", "eval_loss"):
        assert getattr(one, key) == getattr(other, key)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"] if torch.cuda.is_available() else ["float32"])
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_kill_and_resume_end_bit_for_bit_as_the_run_that_was_not_killed(tmp_path, warm_python, processes, dtype):
    if 0 < torch.cuda.device_count() < processes:
        pytest.skip(f"needs {processes} GPUs")
    options = [*OPTIONS, f"launch.nproc_per_node={processes}", f"model.dtype={dtype}"]
    whole = run(tmp_path / "whole", *options)
    kill_after(warm_python, tmp_path / "killed", 8, *options)
    assert not (tmp_path / "killed" / "latest" / "result.json").exists(), "the run ended before it was killed"
    # Once with the same options, once with none: what the run was asked for is in its folder.
    resumed = run(tmp_path / "killed", *(options if processes == 1 else []), f"resume={tmp_path / 'killed' / 'latest'}")
    same(whole, resumed)


def test_the_reason_for_the_backend_stays_when_a_run_goes_on(tmp_path):
    resolved = prepare(compose("launch=inline", f"output_dir={tmp_path}", *OPTIONS))
    run = open_run(resolved)
    release(run.path)
    run.write_plan(backend=resolved.backend.name)
    checkpoint = run.checkpoints_path / "step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").touch()
    assert run.plan()["backend_because"] == resolved.backend_because != ASKED_FOR
    again = prepare(config_to_run(compose(f"resume={run.path}")))
    assert again.backend_because == ASKED_FOR
    assert open_run(again).plan()["backend_because"] == resolved.backend_because
    release(run.path)
    run.write_plan(backend="another")
    assert open_run(again).plan()["backend_because"] == ASKED_FOR


@pytest.fixture
def tmp_path(tmp_path):
    """A folder whose name a shell would split."""
    folder = tmp_path / "my runs"
    folder.mkdir()
    return folder


def inline(tmp_path, *more: str):
    return launch(compose("launch=inline", f"output_dir={tmp_path}", *HERE, *more))


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run that was stopped by a signal after its seventh step."""
    from hub.train import loop

    seen = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requested", lambda: signal.SIGTERM if next(seen) == 7 else None)
        with pytest.raises(Interrupted):
            inline(tmp_path)
    return tmp_path / "latest"


def test_a_signal_leaves_a_checkpoint_of_the_step_at_which_it_stopped(stopped):
    result = Result.read(stopped / "result.json")
    assert result.status == "interrupted"
    assert result.num_steps == 7
    assert result.model_path == (stopped / "checkpoints/step-00000007/model").resolve()
    assert (result.model_path / "adapter_model.safetensors").is_file()
    assert f"python -m hub 'resume={stopped.resolve()}'" in result.error


@pytest.mark.slow
def test_a_run_that_goes_on_from_an_earlier_checkpoint_keeps_both_histories(tmp_path, stopped, monkeypatch, capsys):
    from hub.train import loop

    folder = stopped.resolve() / "checkpoints"
    assert [path.name for path in sorted(folder.iterdir())] == ["step-00000006", "step-00000007"]
    before = read_metrics(stopped / "metrics.jsonl")
    changed = ["algo.learning_rate=1e-4", "algo.keep_checkpoints=1", "resume_with_changes=true"]

    def go_on(place, num_steps: int) -> Result:
        """Go on for some steps, until a signal comes."""
        seen = iter(range(1, 100))
        with monkeypatch.context() as patch:
            patch.setattr(loop, "stop_requested", lambda: signal.SIGTERM if next(seen) == num_steps else None)
            with pytest.raises(Interrupted):
                inline(tmp_path, f"resume={place}", *changed)
        return Result.read(stopped / "result.json")

    other = go_on(folder / "step-00000006", 1)
    aside = folder / "set-aside-1/step-00000007"
    line = f"set aside in {aside.parent}: step-00000007. To go on from there instead type resume={aside}"
    assert line in capsys.readouterr().out
    assert other.model_path == folder / "step-00000007/model"
    lines = read_metrics(stopped / "metrics.jsonl")
    assert lines[:6] == before[:6]
    assert (lines[6]["learning_rate"] < 1e-4, len(lines)) == (True, 7)
    # The other history again, beside one that has a checkpoint of the same step.
    assert go_on(aside, 2).num_steps == 9
    assert read_metrics(stopped / "metrics.jsonl")[:7] == before
    kept = sorted(path.relative_to(folder).as_posix() for path in folder.glob("**/step-*"))
    assert kept == ["set-aside-2/step-00000007", "step-00000009"]
    # At the checkpoint itself, where nothing is trained since: it stays, and is not written again.
    seconds = (folder / "step-00000009/manifest.json").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(loop._Fit, "_step", lambda self, step, units: signal.SIGTERM)
        with pytest.raises(Interrupted):
            inline(tmp_path, "resume=latest", *changed)
    assert Result.read(stopped / "result.json").model_path == folder / "step-00000009/model"
    assert (folder / "step-00000009/manifest.json").stat().st_mtime_ns == seconds


def test_changed_options_are_refused_with_what_differs_unless_told_otherwise(tmp_path, stopped):
    with pytest.raises(ConfigError) as caught:
        inline(tmp_path, "resume=latest", "algo.lora_alpha=8", "algo.seed=7", "algo.keep_checkpoints=5")
    assert "algo.lora_alpha: 32.0 then, 8.0 now" in caught.value.problems
    assert "algo.seed: 42 then, 7 now" in caught.value.problems
    assert len(caught.value.problems) == 3


@pytest.mark.slow
def test_options_that_changed_apply_and_are_said_once(tmp_path, stopped, capsys):
    changes = ["algo.learning_rate=1e-4", "algo.weight_decay=0.5", "algo.adam_beta2=0.9", "algo.max_steps=10",
               "algo.lr_scheduler=constant"]  # fmt: skip
    result = inline(tmp_path, "resume=latest", *changes, "resume_with_changes=true")
    assert [line["learning_rate"] for line in result.metrics[7:]] == [1e-4] * 3
    assert result.metrics[6]["learning_rate"] > 1e-3
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("options changed")]
    assert said == [
        "options changed since step 7: algo.learning_rate: 0.01 then, 0.0001 now; "
        f"algo.lr_scheduler: cosine_with_restarts then, constant now; algo.max_steps: {NUM_STEPS_HERE} then, 10 now; "
        "algo.weight_decay: 0.0 then, 0.5 now; algo.adam_beta2: 0.95 then, 0.9 now"
    ]

    def group(step: int) -> dict[str, object]:
        return json.loads((stopped / f"checkpoints/step-{step:08d}/optimizer.json").read_text())["groups"][0]

    now = {"lr": 1e-4, "initial_lr": 1e-4, "betas": [0.9, 0.9], "weight_decay": 0.5}
    assert group(9).items() >= now.items()
    # Another optimizer, and back: neither is given the state of the other.
    for step, changed in ((11, "sgd"), (12, "adamw")):
        more = [f"algo.optimizer={changed}", f"algo.max_steps={step}"]
        kept = [option for option in changes if changed == "adamw" or "adam_" not in option]
        assert inline(tmp_path, "resume=latest", *kept, *more, "resume_with_changes=true").num_steps == step
        assert group(step)["lr"] == 1e-4
    assert group(12).items() >= now.items()
    assert capsys.readouterr().out.count("the new optimizer begins without moments; weights and schedule continue") == 2


def test_what_decides_the_meaning_of_the_trained_numbers_can_not_change(tmp_path, stopped, monkeypatch):
    kind = type(compose(*OPTIONS).algo)
    assert kind.fixed_on_resume == ("init", "protect", "unfreeze_rank_ratio", "protect_strength")
    monkeypatch.setattr(kind, "fixed_on_resume", ("lora_alpha",))
    with pytest.raises(
        ConfigError, match=r"algo.lora_alpha: 32.0 then, 8.0 now. The numbers in .*/step-00000007 mean something"
    ):
        inline(tmp_path, "resume=latest", "algo.lora_alpha=8", "resume_with_changes=true")
    with pytest.raises(
        ConfigError, match=r"5 steps are asked for, and .*/step-00000007 is of step 7\. Type a larger algo\.max"
    ):
        inline(tmp_path, "resume=latest", "algo.max_steps=5", "resume_with_changes=true")
    assert Result.read(stopped / "result.json").status == "interrupted"


def test_changed_data_is_refused(tmp_path, monkeypatch):
    from hub.train import loop

    chats = write_chats(tmp_path / "chats.jsonl", num_rows=64)
    options = [option for option in OPTIONS if not option.startswith(("data", "algo.eval"))] + [f"data.path={chats}"]
    make = [f"output_dir={tmp_path}", "launch=inline", *options]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requested", lambda: signal.SIGTERM)
        with pytest.raises(Interrupted):
            launch(compose(*make))
    lines = chats.read_text().splitlines()
    chats.write_text("\n".join([*lines[1:], lines[0]]) + "\n")
    with pytest.raises(ConfigError, match=r"the training data .* changed since the run began"):
        launch(compose(*make, "resume=latest"))


def test_what_cannot_be_resumed_is_said(tmp_path, stopped):
    for path, meant in (
        ("nowhere", f"latest, or a folder in {tmp_path}"),
        (stopped.resolve().name, f"{tmp_path}/{stopped.resolve().name}"),
        (f"{stopped}/checkpoints", str(stopped.resolve())),
        (f"{stopped}/run.yaml", str(stopped.resolve())),
    ):
        with pytest.raises(ConfigError, match=rf"is not a run folder\. Type resume={re.escape(meant)}$"):
            inline(tmp_path, f"resume={path}")
    (stopped / "checkpoints/step-00000007/trainable.safetensors").write_bytes(b"")
    assert inline(tmp_path, "resume=latest").num_steps == NUM_STEPS_HERE
    with pytest.raises(ConfigError, match="this run is complete"):
        inline(tmp_path, "resume=latest")


def test_options_beside_a_resume_without_algorithm_are_not_dropped_in_silence(tmp_path, stopped):
    with pytest.raises(ConfigError, match=r"data\.max_seq_len, track\.project can't be set"):
        launch(compose(f"resume={stopped}", "data.max_seq_len=64", "track.project=other", f"output_dir={tmp_path}"))
    assert launch(compose(f"resume={stopped}", "launch.mode=inline")).num_steps == NUM_STEPS_HERE


def test_a_checkpoint_of_other_weights_is_refused_by_their_names(tmp_path, stopped):
    with pytest.raises(ModelError) as caught:
        inline(tmp_path, "resume=latest", "algo.lora_r=4", "algo.target_modules=[q_proj]", "resume_with_changes=true")
    assert "24 tensors in the files have no place in it (base_model.model.model.layers.0" in str(caught.value)
    shapes = "q_proj.lora_A.default.weight: [16, 64] in the files, [4, 64] in the model"
    assert shapes in str(caught.value)


@pytest.mark.slow
def test_a_job_that_is_queued_again_begins_goes_on_and_ends_with_one_command(tmp_path, monkeypatch, capsys):
    from hub.train import loop

    command = ["resume=auto", "run_name=job", "algo.max_steps=6"]
    folder = tmp_path / "job"

    def stopped_after(step: int) -> str:
        """Start the job and stop it after a step of this start. Returns what it printed."""
        seen = iter(range(1, 100))
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(loop, "stop_requested", lambda: signal.SIGTERM if next(seen) == step else None)
            with pytest.raises(Interrupted):
                inline(tmp_path, *command)
        return capsys.readouterr().out

    with pytest.raises(ConfigError, match=r"resume=auto finds the run by its name\. Type run_name=NAME too, or resume=latest"):
        inline(tmp_path, "resume=auto")
    folder.mkdir()  # as by a kill right after it
    assert "resuming" not in stopped_after(2)
    assert Result.read(folder / "result.json").num_steps == 2
    shutil.rmtree(folder / "checkpoints")  # as if it had been killed before the first one
    assert "has no checkpoint, so the run begins anew there" in stopped_after(4)
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4]
    with pytest.raises(ConfigError, match="options differ"):
        inline(tmp_path, *command, "algo.lora_alpha=8")
    assert Result.read(folder / "result.json").status == "interrupted"
    ended = inline(tmp_path, *command)
    assert (ended.status, ended.run_path, len(ended.metrics)) == ("completed", folder, 6)
    assert "resuming after step 4" in capsys.readouterr().out
    assert inline(tmp_path, *command) == ended
    assert f"this run is complete. Its model is in {folder}/model" in capsys.readouterr().out
    # Once complete it goes on with more steps, from its end.
    with pytest.raises(ConfigError, match=r"no more are asked for\. Type a larger algo.num_epochs"):
        inline(tmp_path, *command[2:], "resume=latest", "resume_with_changes=true")
    assert Result.read(folder / "result.json") == ended
    further = inline(tmp_path, "algo.max_steps=8", "resume=latest", "resume_with_changes=true")
    assert (further.num_steps, [line["step"] for line in further.metrics]) == (8, [*range(1, 9)])
    assert "resuming after step 6" in capsys.readouterr().out


@pytest.mark.slow
def test_latest_stays_at_the_newest_run_that_began_to_train(tmp_path, hub, monkeypatch):
    options = ["launch=inline", "algo=lora_sft", "model=tiny", "data=tiny", "algo.max_steps=1", "model.dtype=float32"]
    where = [f"output_dir={tmp_path}/other"]
    assert hub("verify", *options, *where, "run_name=first", "algo.effective_batch_size=4").code == 0
    latest = tmp_path / "other/latest"
    assert latest.resolve().name == "first"
    for word in ("resume=latest", "resume=verfied"):
        said = hub(word, *where)
        assert "Type resume=latest" not in said.err
        assert said.code == 2
    assert hub(*options, *where, "run_name=trained").code == 0
    assert hub("verify", *options, *where, "run_name=second", "algo.effective_batch_size=4").code == 0
    assert hub(*options, *where, "run_name=failed", "algo.target_modules=[no_such]").code == 2
    monkeypatch.setattr("hub.models.weights.hub_obstacle", lambda: "it is down")
    said = hub(*options, *where, "run_name=unreachable", "model.path=nobody/none")
    assert "the model hub can't be reached (it is down)" in said.err
    assert not (tmp_path / "other/unreachable").exists()
    assert latest.resolve().name == "trained"
    assert "this run is complete" in hub("resume=latest", *where).err
    assert "has no checkpoint to go on from. To begin again type python -m hub " in hub("resume=other/failed").err


def test_a_disk_that_is_full_at_the_start_is_a_line_and_keeps_no_lock(tmp_path, monkeypatch):
    resolved = prepare(compose("launch=inline", f"output_dir={tmp_path}", "run_name=a", *OPTIONS))

    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("hub.launch.resume.write_text", full)
        with pytest.raises(ConfigError, match=r"my runs/a.*No space left on device"):
            open_run(resolved)
    assert not (tmp_path / "a" / "lock.json").exists()
