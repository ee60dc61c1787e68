"""Runs as users start them: worker processes, several of them, torchrun. Real processes over gloo."""

import gc
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub import LaunchError, compose
from hub.launch import launcher, worker
from hub.launch.workers import Forwarding
from hub.result import Result, read_metrics
from hub.run import Failure, Run
from hub.system.signals import ECHO_SECONDS, END_NOW

OPTIONS = ["algo=lora_sft", "model=tiny", "data=tiny", "model.dtype=float32", "algo.learning_rate=1e-3", "algo.max_steps=6"]


def start(folder: Path, *command: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with the plugins in `site` beside the installed ones."""
    path = os.pathsep.join(filter(None, [str(site or ""), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)


def result_of(folder: Path) -> Result:
    runs = [path for path in (folder / "runs").iterdir() if not path.is_symlink()]
    assert len(runs) == 1, "all processes share one run folder"
    assert (folder / "runs" / "latest").resolve() == runs[0]
    return Result.read(runs[0] / "result.json")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Result:
    folder = tmp_path_factory.mktemp("one")
    done = start(folder, sys.executable, "-m", "hub", *OPTIONS)
    assert done.returncode == 0, done.stderr
    return result_of(folder)


def test_runs_in_this_process_leave_no_model_to_the_next_one(tmp_path, monkeypatch):
    class Model:
        def __init__(self) -> None:
            self.itself = self

    def models() -> set[int]:
        return {id(one) for one in gc.get_objects() if type(one) is Model}

    def work(resolved, run):
        assert not models(), "one that failed before is gone"
        Model()
        return one_that_was

    monkeypatch.setattr(worker, "work", work)
    one_that_was = Result(status="completed", algo="sft", backend="native", model="tiny", run_path=tmp_path)
    Model()
    launcher.launch(compose(*OPTIONS, "launch=inline", f"output_dir={tmp_path}"))
    assert not models()


def test_a_signal_that_comes_before_the_workers_reaches_them():
    signals = Forwarding()
    with signals.installed():
        signal.raise_signal(signal.SIGTERM)
        workers = launcher.Workers([sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ), signals)
        assert workers.wait() == -signal.SIGTERM
    assert signals.stopped_by == signal.SIGTERM


@pytest.mark.slow
def test_a_run_leaves_all_that_it_promises(one_process):
    folder = one_process.run_path
    assert {path.name for path in folder.iterdir()} == {
        "run.yaml",
        "plan.json",
        "metrics.jsonl",
        "log.txt",
        "result.json",
        "model",
    }
    written = json.loads((folder / "result.json").read_text())
    for key in ("status", "algo", "backend", "model", "num_steps", "effective_batch_size", "train_loss", "eval_loss_before",
                "eval_loss", "tokens_per_second", "peak_memory_gb", "seconds", "model_path", "base_model_path"):  # fmt: skip
        assert written[key] is not None, key
    assert Path(written["base_model_path"], "config.json").is_file()
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for key in ("step", "loss", "learning_rate", "grad_norm", "num_samples", "num_tokens", "num_loss_tokens",
                "tokens_per_second", "peak_memory_gb"):  # fmt: skip
        assert all(key in line for line in lines), key
    assert lines[-1]["eval_loss"] == written["eval_loss"] < written["eval_loss_before"]
    assert written["train_loss"] == pytest.approx(sum(line["loss"] for line in lines) / 6)
    assert one_process.metrics == lines
    plan = json.loads((folder / "plan.json").read_text())
    # The worker's clock goes on where that of the command ended.
    assert list(plan["timeline"])[:5] == ["start", "checks", "process", "imports", "device"]
    assert all(seconds >= 0 for seconds in plan["timeline"].values())
    assert 0 < plan["first_step_seconds"] < 600


@pytest.mark.slow
@pytest.mark.parametrize("how", ["launch.nproc_per_node=2", "torchrun"])
def test_two_processes_walk_the_same_path_as_one(tmp_path, one_process, plugin_folder, how, request):
    if how != "torchrun":
        request.getfixturevalue("warm_python_here")
    site = plugin_folder()
    site.add("broken", "import no_such_module_anywhere")
    if how == "torchrun":
        run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "hub", *OPTIONS)
    else:
        run = ("-m", "hub", *OPTIONS, how)
    done = start(tmp_path, sys.executable, *run, site=site.path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("plugin broken (dist-broken 1.0) is left out") == 1
    result = result_of(tmp_path)
    assert done.stdout.count("completed: 6 steps") == 1
    for mine, theirs in zip(result.metrics, one_process.metrics, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        for count in ("num_samples", "num_tokens", "num_loss_tokens", "learning_rate"):
            assert mine[count] == theirs[count]
    assert result.eval_loss == pytest.approx(one_process.eval_loss, rel=1e-5)


def test_a_mistake_under_torchrun_is_one_line_and_leaves_no_run_folder(tmp_path):
    run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "hub")
    done = start(tmp_path, sys.executable, *run, *OPTIONS, "algo.lora_rr=3")
    assert done.returncode != 0
    assert done.stderr.count("hub: algo.lora_rr: there is no such option. Did you mean algo.lora_r") == 1
    assert not (tmp_path / "runs").exists()


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "hub")
DEADLY = """
import os, time
from hub import Backend, ConfigError, hookimpl

@hookimpl
def hub_backends():
    return [Backend(name="deadly", algorithm="lora_sft", build=f"{__name__}:train")]

def train(setup):
    from hub.parallel.group import barrier, start_group
    run = setup.run
    rank, way = start_group().rank, os.environ["WAY"]
    barrier()
    if rank == 1 and way == "killed":
        os.kill(os.getpid(), 9)
    if rank == 1 and way == "in a line":
        raise ConfigError("this disk is full")
    if rank == 1 and way in ("unforeseen", "while rank 0 sleeps"):
        raise RuntimeError("the roof is on fire")
    if way == "signalled while it writes that":
        write, run.write_result = run.write_result, lambda result: (os.kill(os.getpid(), 15), write(result))
        raise ConfigError("this disk is full")
    if way in ("in a line", "unforeseen", "killed"):
        barrier()
    (run.path / f"asleep-{rank}").touch()
    time.sleep(100)
"""


@pytest.fixture
def deadly(plugin_folder, monkeypatch):
    """Makes an environment with a backend whose rank 1 ends in some way, while rank 0 waits for it or sleeps."""

    def make(way: str) -> Path:
        site = plugin_folder()
        site.add("deadly", DEADLY)
        monkeypatch.setenv("WAY", way)
        return site.path

    return make


@pytest.mark.usefixtures("warm_python_here")
@pytest.mark.parametrize(
    ("way", "code", "said"),
    [
        ("unforeseen", 1, "rank 1 failed: RuntimeError: the roof is on fire (see "),
        ("while rank 0 sleeps", 1, "rank 1 failed: RuntimeError: the roof is on fire (see "),
        ("in a line", 2, "this disk is full"),
        ("signalled while it writes that", 2, "this disk is full"),
        ("killed", 1, "rank 1 was killed by SIGKILL and left no report (out of CPU memory?)"),
    ],
)
def test_a_dead_worker_ends_the_others_and_the_launcher_says_how_it_died(tmp_path, deadly, way, code, said):
    site = deadly(way)
    command = [sys.executable, "-m", "hub", *OPTIONS, "algo.backend=deadly", "launch.nproc_per_node=2"]
    done = start(tmp_path, *command, site=site)
    assert done.returncode == code
    assert f"hub: {said}" in done.stderr
    assert ("Traceback" in done.stderr) == (code == 1 and way != "killed")
    result = result_of(tmp_path)
    assert result.status == "failed"
    if way != "unforeseen":
        assert result.error.startswith(said)


@pytest.mark.usefixtures("warm_python_here")
@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("while rank 0 sleeps", "rank 1 failed: RuntimeError: the roof is on fire (see "),
        ("in a line", "this disk is full"),
    ],
)
def test_under_torchrun_too_a_run_has_failed_of_what_another_rank_died_of(tmp_path, deadly, way, said):
    done = start(tmp_path, sys.executable, *TORCHRUN, *OPTIONS, "algo.backend=deadly", site=deadly(way))
    assert done.returncode == 1
    assert done.stderr.count(f"hub: {said}") == 1
    assert "stopped by" not in done.stderr
    result = result_of(tmp_path)
    assert result.status == "failed"
    assert result.error.startswith(said)
    assert json.loads((result.run_path / "error-rank1.json").read_text())["message"] in said


@pytest.mark.usefixtures("warm_python_here")
def test_a_run_that_is_stopped_under_torchrun_was_interrupted(tmp_path, deadly):
    path = os.pathsep.join([str(deadly("stopped")), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, *TORCHRUN, *OPTIONS, "algo.backend=deadly"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
    ) as torchrun:
        while len(list(tmp_path.glob("runs/latest/asleep-*"))) < 2:
            assert torchrun.poll() is None
            time.sleep(0.05)
        torchrun.send_signal(signal.SIGTERM)
    result = result_of(tmp_path)
    assert (result.status, result.error) == ("interrupted", "stopped by SIGTERM before training began")


class Ended:
    """Workers as they may leave a run folder."""

    leaves: Callable[[Run], int]

    def __init__(self, command: list[str], env: dict[str, str], signals: Forwarding) -> None:
        self.run = Run(Path(command[-1]))

    def wait(self) -> int:
        return type(self).leaves(self.run)


def ended(run: Run, status: str, error: str | None = None) -> None:
    run.write_result(Result(algo="", backend="", model="", run_path=run.path, status=status, error=error, seconds=1.0))


def test_a_run_whose_main_rank_was_ended_since_another_had_failed_has_failed(tmp_path, monkeypatch):
    def leaves(run: Run) -> int:
        ended(run, "interrupted", "stopped by SIGTERM")
        run.write_failure(Failure(rank=0, message="stopped", exit_code=143, time=2.0, signal_number=15))
        run.write_failure(Failure(rank=1, message="on fire", exit_code=1, time=1.0, traceback="..."))
        return 1

    monkeypatch.setattr(Ended, "leaves", leaves, raising=False)
    monkeypatch.setattr(launcher, "Workers", Ended)
    with pytest.raises(LaunchError, match=r"^rank 1 failed: on fire"):
        launcher.launch(compose(*OPTIONS, "launch.nproc_per_node=2", f"output_dir={tmp_path}", "run_name=it"))
    found = Result.read(tmp_path / "it" / "result.json")
    assert (found.status, found.seconds) == ("failed", 1.0)
    assert found.error.startswith("rank 1 failed: on fire")
    assert not (tmp_path / "it" / "lock.json").exists()


@pytest.mark.parametrize("exit_code", [143, -15])
def test_a_signal_after_the_end_changes_nothing(tmp_path, monkeypatch, exit_code):
    def leaves(run: Run) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        ended(run, "completed")
        return exit_code

    monkeypatch.setattr(Ended, "leaves", leaves, raising=False)
    monkeypatch.setattr(launcher, "Workers", Ended)
    assert launcher.launch(compose(*OPTIONS, f"output_dir={tmp_path}")).status == "completed"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_second_of_two_requests_ends_the_workers_at_once_and_an_echo_does_not():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        sent: list[int] = []
        signals = Forwarding()
        signals.child = SimpleNamespace(poll=child.poll, send_signal=sent.append)
        with signals.installed():
            for number in (signal.SIGUSR2, signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
                signal.raise_signal(number)
            assert sent == [signal.SIGUSR2, signal.SIGTERM]
            signals._time -= ECHO_SECONDS
            signal.raise_signal(signal.SIGINT)
        assert sent == [signal.SIGUSR2, signal.SIGTERM, END_NOW]


def test_a_rendezvous_port_in_use_is_said_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        done = start(
            tmp_path, sys.executable, "-m", "hub", *OPTIONS, "launch.nproc_per_node=2", f"launch.rdzv_endpoint={endpoint}"
        )
    assert done.returncode == 2
    assert f"launch.rdzv_endpoint={endpoint}: this port can't be used" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("warm_python_here")
def test_two_machines_meet_in_one_run_folder_and_walk_the_same_path(tmp_path, one_process):
    """Two launchers, each with a process of its own, as on two machines that share a disk."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    shared = ["launch.nnodes=2", f"launch.rdzv_endpoint={endpoint}", "launch.nproc_per_node=1", "algo.save_every_steps=4"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    machines = [
        subprocess.Popen(
            [sys.executable, "-m", "hub", *OPTIONS, *shared, f"launch.node_rank={rank}"],
            cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (1, 0)
    ]  # fmt: skip
    said = [machine.communicate(timeout=200)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    result = result_of(tmp_path)
    assert (result.run_path / "checkpoints" / "step-00000004" / "random-rank1.safetensors").is_file()
    assert result.eval_loss == pytest.approx(one_process.eval_loss, rel=1e-5)
    assert all("completed: 6 steps" in text for text in said)


def test_a_run_that_is_done_and_whose_result_the_disk_refuses_does_not_end_as_completed(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "work", lambda resolved, run: Result.read(run.result_file))
    monkeypatch.setattr(
        Result, "read", lambda file: Result(algo="", backend="", model="", run_path=tmp_path, status="completed")
    )
    monkeypatch.setattr(Run, "write_what_waits", lambda self, spare_dir, minutes: f"result.json, {minutes:g} minutes")
    with pytest.raises(LaunchError, match=r"^the run is done, but result\.json, 30 minutes$"):
        launcher.launch(compose(*OPTIONS, "launch=inline", f"output_dir={tmp_path}", "run_name=it"))


@pytest.mark.parametrize("of", ["hub.train.setup.setup.find_weights", "hub.train.loop.make_optimizer"])
def test_a_run_folder_that_is_removed_at_work_is_one_line(hub, tmp_path, monkeypatch, of):
    module, _, name = of.rpartition(".")
    before = getattr(importlib.import_module(module), name)

    def removed(*given):
        shutil.rmtree(tmp_path / "runs" / "mine")
        return before(*given)

    monkeypatch.setattr(of, removed)
    said = hub("algo=sft", "model=tiny", "data=tiny", "run_name=mine", "algo.max_steps=1", "launch.mode=inline")
    assert said.code == 1
    assert said.err.endswith(
        f"{tmp_path}/runs/mine: the run folder is gone, it was removed or renamed while the run was at work\n"
    )
    assert "Traceback" not in said.err
