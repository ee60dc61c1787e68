"""The files for containers and clusters: what they copy is there, they are not root, and their commands compose."""

import fnmatch
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

import hub

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
JOB = yaml.safe_load((ROOT / "examples" / "kubernetes" / "job.yaml").read_text(encoding="utf-8"))
SERVICES = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]
COMMANDS = [JOB["spec"]["template"]["spec"]["containers"][0]["args"], *(service["command"] for service in SERVICES.values())]


def test_the_image_gets_all_that_it_copies_and_is_not_root():
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")]
    copied = [word for words in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for word in words.split()]
    assert len(copied) > 5
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(fnmatch.fnmatch(name, pattern) for pattern in sent), name
    assert all((ROOT / name).is_dir() for name in re.findall(r"\./(plugins/\w+)", DOCKERFILE))
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE) == ["1000"]
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+-slim", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[1])
def test_a_command_of_a_container_composes(words):
    cfg = hub.compose(*words)
    assert [line for line in cfg.problems() if "there is no such file" not in line] == []
    assert cfg.model.path


@pytest.mark.parametrize("script", sorted((ROOT / "examples" / "slurm").glob("*.sbatch")), ids=lambda script: script.stem)
@pytest.mark.parametrize("code", [0, 2, 143])
def test_a_slurm_job_waits_for_its_checkpoint_and_is_queued_again(script, code, tmp_path):
    run = f"trap 'sleep 0.2; touch checkpoint; exit 143' TERM\necho $*\n[ {code} -ne 143 ] && exit {code}\n"
    programs = {
        "python": run + "touch begun\nwhile true; do sleep 0.05; done",
        "scontrol": "echo scontrol $* $(ls checkpoint 2>/dev/null)",
        "srun": 'exec "$@"',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a,b", "SLURM_NNODES": "2", "SLURM_NODEID": "0"}
    env = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job = subprocess.Popen(["bash", script, "algo=sft"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    while code == 143 and not (tmp_path / "begun").exists():
        time.sleep(0.01)
    if code == 143:
        job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == code
    assert "run_name=job-7" in said
    assert ("scontrol requeue 7 checkpoint" in said) == ("requeue" in said) == (code == 143)


def test_a_job_that_is_started_again_goes_on():
    words = COMMANDS[0]
    assert "resume=auto" in words
    assert any(word.startswith("run_name=") for word in words)
    assert any(word.startswith("algo.save_every_steps=") for word in words)
