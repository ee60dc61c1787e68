"""The command line as its users see it, in this process unless a test needs workers."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from functools import partial
from pathlib import Path

import pytest

import hub as package
from hub.cli.main import VERBS
from hub.cli.pages import result_lines
from hub.compose import runfile

TINY = ("algo=lora_sft", "model=tiny", "data=tiny")
LONG = (*TINY, "algo.max_steps=100000", "algo.num_epochs=100000")


started: list[subprocess.Popen[str]] = []


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "hub", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    started.append(process)
    return process


@pytest.fixture(autouse=True)
def nothing_runs_on():
    """What a test started and could not end is killed, and its workers notice that."""
    yield
    while started:
        process = started.pop()
        process.kill()
        process.communicate()


INTERRUPT = """
import os, signal, sys

class Finder:
    def find_spec(name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            exec("os.kill(os.getpid(), signal.SIGINT)")  # as namedtuple runs code

sys.meta_path.insert(0, Finder)
"""
"""Sends Ctrl-C's signal when a module is imported."""


@pytest.mark.parametrize("place", ["omegaconf", "hub.cli.main", "hub.cli.help"])
@pytest.mark.parametrize("command", ["-m", "hub"])
def test_ctrl_c_while_python_imports_is_one_line(tmp_path, command, place):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT)
    (tmp_path / "hub").write_text("import sys\nfrom hub.__main__ import run\nsys.exit(run())\n")  # as pip writes it
    words = ["-m", "hub"] if command == "-m" else [str(tmp_path / "hub")]
    path = os.pathsep.join([str(tmp_path), *(folder for folder in sys.path if folder)])
    env = os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "INTERRUPT_AT": place}
    # Where the tests run in the background, a shell has SIGINT ignored, which child processes inherit.
    options = {
        "env": env,
        "capture_output": True,
        "text": True,
        "preexec_fn": partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    }
    done = subprocess.run([sys.executable, *words, "--help"], cwd=tmp_path, check=False, **options)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "hub: stopped\n")
    program = "try:\n    import hub\nexcept KeyboardInterrupt:\n    print('raised')"
    if (command, place) == ("-m", "omegaconf"):  # a program that imports the hub gets its exception
        done = subprocess.run([sys.executable, "-c", program], check=False, **options)
        assert (done.stdout, done.stderr) == ("raised\n", "")


def wait_for(what, seconds: float = 90.0):
    """Poll until `what()` is true, and return that."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def processes_of(folder: Path) -> list[int]:
    """Processes that have this folder on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def run_folder(folder: Path) -> Path | None:
    return next((path.parent for path in folder.glob("runs/*/run.yaml") if not path.parent.is_symlink()), None)


def test_no_argument_says_what_to_type(hub):
    said = hub()
    assert said.code == 0
    assert said.err == ""
    for word in ("lora_sft", "sft", "llama3_8b", "smollm2_135m", "python -m hub --help"):
        assert word in said.out
    assert said.out.count("  python -m hub algo=") == 3


def test_every_example_of_the_overview_is_right(hub, tmp_path):
    (tmp_path / "chats.jsonl").write_text('{"prompt": "Hi", "completion": "Ho"}\n' * 40)
    examples = [line.split()[3:] for line in hub().out.splitlines() if line.startswith("  python -m hub algo=")]
    assert len(examples) == 3
    for words in examples:
        assert "can't run" not in hub("show", *words).out


def test_help_lists_verbs_algorithms_models_groups_and_flags(hub):
    said = hub("--help")
    assert said.code == 0
    for word in (*VERBS, "lora_sft", "qlora_sft", "llama3_8b", "launch=", "track=", "experiment=", "--multirun"):
        assert word in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    assert hub("-h").out == hub("help").out == said.out


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_a_help_with_its_flags_and_examples(hub, verb):
    said = hub(verb, "--help")
    assert said.code == 0
    assert said.out == hub("help", verb).out
    assert said.out.startswith(f"usage: python -m hub {verb}")
    assert all(flag in said.out for flag in VERBS[verb].flags)
    assert max(map(len, said.out.splitlines())) <= 88  # commands are not broken
    for _, command in VERBS[verb].examples:
        assert f"  {command}" in said.out


def test_version(hub):
    assert hub("--version").out.strip() == package.__version__
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == package.__version__


def test_plugins_are_listed_with_distribution_hooks_and_backends(hub):
    said = hub("plugins")
    assert said.code == 0
    for text in ("hub-sft 0.1.0", "hub-lora-sft 0.1.0", "hub_config_dir", "algo=lora_sft", "backend native of sft"):
        assert text in said.out
    assert hub("plugins", "algo=sft").problems == ["hub plugins takes no options, but got algo=sft"]
    values = json.loads(hub("plugins", "--json").out)
    assert {"name": "sft", "distribution": "hub-sft 0.1.0"}.items() <= {p["name"]: p for p in values["plugins"]}["sft"].items()
    assert ("native", "sft") in [(backend["name"], backend["algorithm"]) for backend in values["backends"]]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["sho"], "sho: there is no such verb. Did you mean show? Options are"),
        (
            ["--halp"],
            "--halp: there is no such flag. Allowed: --config, --config-dir, --multirun, --json, --quiet, --keep, --yes, ",
        ),
        (
            ["algo=sft", "--learning-rate=1"],
            "--learning-rate=1: there is no such flag. Options have no dashes. Type algo.learning_rate=1",
        ),
        (["--lora_r", "8"], "--lora_r: there is no such flag. Options have no dashes. Type algo.lora_r=8"),
        (["--bf16", "model=tiny"], "--bf16: there is no such flag. Options have no dashes. Type model.dtype=VALUE"),
        (["lora_sft"], "lora_sft: there is no such verb. For the preset type algo=lora_sft."),
        (["model"], "model: there is no such verb. For a preset type model=NAME."),
        (["run", "algo=sft"], "run: there is no such verb. Did you mean train?"),
        (["xyz"], f"xyz: there is no such verb. Allowed: {', '.join(VERBS)}. Options are written NAME=VALUE"),
        (["resume"], "resume: there is no such verb. To go on with a run type resume=latest."),
        (["help", "sho"], "sho: there is no such verb."),
        (["algo.lora_r", "=", "8"], "'algo.lora_r = 8': options are written without spaces. Type algo.lora_r=8"),
        (["algo.lora_r=", "8", "model=tiny"], "'algo.lora_r= 8': options are written without spaces. Type algo.lora_r=8"),
        (["algo.lora_r", "=8"], "'algo.lora_r =8': options are written without spaces. Type algo.lora_r=8"),
        (["algo = lora_sft"], "'algo = lora_sft': options are written without spaces. Type algo=lora_sft"),
        (["chat", "runs/one"], "runs/one is a run folder. Type python -m hub chat run=runs/one"),
        (["chat", "latest"], "can't read 'latest': options are written NAME=VALUE. For a run type run=latest"),
        (["help", "show", "data"], "hub help takes one verb, but got show data. Type hub help show"),
        (
            ["show", "resume=latest"],
            "resume=latest: this shows options, and resumes no run. For the options of a run type runs/latest/run.yaml",
        ),
        (
            ["data", "resume=a/b"],
            "resume=a/b: this inspects data, and resumes no run. For the options of a run type a/b/run.yaml",
        ),
        (
            ["plugins", "--config-dir", "x"],
            "--config-dir works with train, verify, ",
        ),
        (["data", "--keep", "3"], "--keep works with runs only, not with data"),
        (["--config-dir"], "--config-dir: type --config-dir DIR"),
        (["--config-dir", "nowhere", "algo=sft"], "--config-dir nowhere: there is no such folder"),
        (["algo=sft", "show"], "can't read 'show': options are written NAME=VALUE without spaces, and a verb comes first"),
        (
            ["chat", "run=latest", "--json"],
            "--json works with train, verify, generate, evaluate, report, export, scale, average, continual, ",
        ),
        (["serve", "--json"], "--json works with train, verify, generate, "),
        (["serve", "--quiet"], "--quiet works with train, verify, generate, "),
        (["show", "--multirun"], "--multirun works with train only, not with show"),
        (["--multirun", *TINY], "--multirun but no option has several values. Type e.g. algo.learning_rate=1e-4,2e-4"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line_and_exit_code_2(hub, tmp_path, words, text):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "run.yaml").touch()
    said = hub(*words)
    assert said.code == 2
    assert len(said.problems) == 1
    assert said.problems[0].startswith(text)


@pytest.mark.parametrize(
    ("swept", "problems"),
    [
        (["algo.lora_r=8,x"], ["algo.lora_r=x is not allowed. Allowed: a whole number"]),
        (["algo.lora_r=8,0"], ["algo.lora_r=0 is not allowed. Allowed: a number at least 1"]),
        (["algo.max_steps=9,3", "algo.warmup_steps=2,5"], ["algo.warmup_steps=5 is not shorter than the run"]),
        (["algo=lora_sft,sft", "algo.lora_r=8,16"], ["algo.lora_r: this algorithm has no such option"]),
        (["model=tiny,tinny"], ["model=tinny: there is no such preset. Did you mean tiny?"]),
        (["model=tiny,null"], ["model: null can't be one of several choices. Type model=tiny"]),
        (["data.path=a.jsonl,b.jsonl"], ["data.path=a.jsonl: there is no such", "data.path=b.jsonl: there is no such"]),
        (["output_dir=a,b"], ["output_dir can't be swept"]),
        (
            ["algo.lora_r=1,2", "hydra/launcher=nope"],
            ["hydra/launcher=nope: Hydra has no such launcher here. Installed: basic."],
        ),
        (
            ["algo.lora_r=1,2", "hydra/launcher=submitit_slurm", "hydra/sweeper=optuna"],
            [
                "hydra/launcher=submitit_slurm: Hydra has no such launcher here. Installed: basic. Type pip install hydra-subm",
                "hydra/sweeper=optuna: Hydra has no such sweeper here. Installed: basic. Type pip install hydra-optuna-sweeper",
            ],
        ),
        (["algo.lora_r=interval(1,9)"], ["algo.lora_r=interval(1,9): Hydra's own sweeper takes lists only. List the values"]),
    ],
)
def test_a_sweep_finds_a_failing_value_before_its_first_run(hub, tmp_path, swept, problems):
    said = hub("--multirun", *TINY, *swept)
    assert said.code == 2
    assert len(said.problems) == len(problems)
    for line, text in zip(said.problems, problems, strict=True):
        assert line.startswith(text)
    assert not list(tmp_path.glob("runs/sweep*"))


@pytest.mark.slow
@pytest.mark.usefixtures("warm_python_here")
def test_a_run_that_fails_in_a_sweep_is_told_and_does_not_stop_the_others(tmp_path):
    process = start(tmp_path, "--multirun", *TINY, "algo.max_steps=1", "run_name=try", "algo.target_modules=[nope],[q_proj]")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "hub: run 0 failed: algo.target_modules: no linear layer is called nope." in err
    assert "Traceback" not in out + err
    first, second = (json.loads((tmp_path / f"runs/try/{n}/result.json").read_text()) for n in (0, 1))
    assert (first["status"], second["status"]) == ("failed", "completed")
    table = out[out.index("run  ") :].splitlines()
    assert table[0].split()[:5] == ["run", "algo.target_modules", "status", "train_loss", "eval_loss"]
    assert table[1].split() == ["0", "[nope]", "failed"]
    assert table[2].split()[:4] == ["1", "*", "[q_proj]", "completed"]
    assert (tmp_path / "runs/latest").resolve() == tmp_path / "runs/try"


@pytest.mark.slow
@pytest.mark.parametrize("addressee", ["the launcher", "all at once"])
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_ends_all_processes_saves_the_model_and_the_run_folder_says_so(tmp_path, request, processes, addressee):
    if addressee == "the launcher":
        request.getfixturevalue("warm_python_here")
    process = start(tmp_path, *LONG, f"launch.nproc_per_node={processes}")
    folder = wait_for(lambda: run_folder(tmp_path))
    wait_for(lambda: (folder / "metrics.jsonl").is_file())
    # A scheduler signals every process, and each passes it on. SIGUSR1 asks for a checkpoint first, SIGHUP for nothing.
    others = processes_of(folder) if addressee == "all at once" else []
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
        for pid in (process.pid, *others):
            os.kill(pid, number)
        if number == signal.SIGUSR1:
            wait_for(lambda: list(folder.glob("checkpoints/step-*")))
            assert process.poll() is None
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert len(err.splitlines()) == 1
    assert err.startswith("hub: stopped by SIGTERM after step ")
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert result["num_steps"] >= 2
    assert Path(result["model_path"]).parent.name == f"step-{result['num_steps']:08d}"
    assert "SIGHUP: the terminal is gone. The run goes on" in (folder / "log.txt").read_text()
    assert Path(result["model_path"], "adapter_config.json").is_file()
    wait_for(lambda: not processes_of(folder), 20)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_right_after_the_start_is_not_lost(tmp_path, number):
    process = start(tmp_path, *LONG)
    folder = wait_for(lambda: run_folder(tmp_path))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    wait_for(lambda: not processes_of(folder), 20)


SLOW_RANK_1 = """
import os, sys, time

class Finder:
    def find_spec(name, path=None, target=None):
        if name == "hub.parallel.session" and os.environ.get("RANK") == "1":
            open(os.environ["HUB_TEST_FILE"], "w").close()
            time.sleep(100)

sys.meta_path.insert(0, Finder)
"""
"""Rank 1 does not get to the process group, for which rank 0 waits in C++."""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["workers not started", "workers start", "rank 0 waits in C++"])
def test_a_killed_launcher_leaves_no_worker_behind_and_a_result(tmp_path, monkeypatch, moment):
    if moment == "rank 0 waits in C++":
        (tmp_path / "sitecustomize.py").write_text(SLOW_RANK_1)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
        monkeypatch.setenv("HUB_TEST_FILE", str(tmp_path / "rank 1 waits"))
    process = start(tmp_path, *LONG, "launch.nproc_per_node=2")
    folder = wait_for(lambda: run_folder(tmp_path))
    wait_for(lambda: len(processes_of(folder)) >= (1 if moment == "workers not started" else 3))  # the agent, two workers
    if moment == "rank 0 waits in C++":
        wait_for((tmp_path / "rank 1 waits").exists)
        time.sleep(2)  # rank 0 is as far as rank 1 when it does not wait yet
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    wait_for(lambda: not processes_of(folder), 40)
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_lies_where_the_link_to_the_latest_run_goes_stays(tmp_path, is_folder, capsys):
    latest = tmp_path / "latest"
    latest.mkdir() if is_folder else latest.write_text("mine")
    run = package.Run.create(tmp_path, "it")
    run.begin()
    assert f"{latest} is no link, so it stays as it is" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"it", "latest"}
    assert latest.is_dir() if is_folder else latest.read_text() == "mine"


def test_the_line_that_loads_a_model_trusts_its_code_if_the_run_did(tmp_path):
    for trusted in (False, True):
        run = package.Run.create(tmp_path, f"run-{trusted}")
        cfg = package.compose(*TINY, f"model.trust_remote_code={str(trusted).lower()}")
        run.config_file.write_text(runfile.to_text(cfg), encoding="utf-8")
        run.model_path.mkdir()
        result = package.Result(
            status="completed", algo="lora_sft", backend="native", model="x", run_path=run.path, model_path=run.model_path
        )
        code = ", trust_remote_code=True" if trusted else ""
        assert (
            result_lines(result)[-1] == f"load it: transformers.AutoModelForCausalLM.from_pretrained('{run.model_path}'{code})"
        )
