"""Containers and jobs on a cluster: images copy what is there, job files are what the engines take, and a job goes on."""

import fnmatch
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import hub as package
from hub.compose.typed import FOR_INFORMATION, typed
from hub.config.option import leaves
from hub.config.schema import LaunchConfig
from hub.config.task import TASKS
from hub.errors import LaunchError
from hub.launch.auto_resume import decide
from hub.launch.clusters.engine import Job
from hub.launch.clusters.submit import ENGINES

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
SERVICES = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]
COMMANDS = [service["command"] for service in SERVICES.values()]
TINY = ("algo=lora_sft", "model=tiny", "data=tiny")
ON_CLAIMS = ("algo=lora_sft", "model=llama3_1_8b", "data.path=/data/chats.jsonl", "output_dir=/runs", "run_name=weekly")
CLAIMS = "launch.volumes={/runs:runs,/data:data}"


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
    cfg = package.compose(*words)
    assert [line for line in cfg.problems() if "there is no such file" not in line] == []
    assert cfg.model.path


def test_a_config_as_typed_composes_to_the_same_config():
    mix = 'data.mix=[{path: a.jsonl, weight: 2, columns: {prompt: "the question"}}, {path: "b, c.jsonl"}]'
    cfg = package.compose(
        "algo=lora_sft", "model=qwen3_8b", mix, "track=tensorboard", 'track.project="It\'s \\"a, b\\" {c}: null"',
        "launch=single",
        "algo.target_modules=[q_proj,v_proj]", "algo.learning_rate=1e-5", "run_name='true'", "model.revision='1e10'",
    )  # fmt: skip
    pairs = zip(leaves(cfg), leaves(package.compose(*typed(cfg))), strict=True)
    assert [(one, other) for one, other in pairs if one[1] != other[1] and one[0] not in FOR_INFORMATION] == []


def programs(folder, **texts):
    """A folder with executable bash scripts, at the begin of PATH."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("code", "number", "nnodes"), [(143, signal.SIGUSR1, 2), (143, signal.SIGTERM, 1), (2, signal.SIGUSR1, 1)]
)
def test_a_slurm_job_waits_for_its_checkpoint_and_is_queued_again_if_its_time_is_over(
    hub, tmp_path, monkeypatch, code, number, nnodes
):
    path = programs(
        tmp_path / "bin",
        python=f"trap 'sleep 0.2; touch checkpoint; exit {code}' TERM\necho $*; touch begun\nwhile true; do sleep 0.05; done",
        scontrol='[ "$1" = show ] && echo first || echo scontrol $* $(ls checkpoint 2>/dev/null)',
        srun='[[ "$1" == --* ]] && shift\nexec "$@"',
    )
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    words = [
        f"output_dir={tmp_path}/runs",
        "run_name=it",
        f"launch.nnodes={nnodes}",
        "launch.gpus_per_node=4",
        "launch.hours=1.5",
    ]
    (tmp_path / "keep.jsonl").write_text('{"text": "a b"}\n', encoding="utf-8")
    words += [f"algo.protect={tmp_path}/keep.jsonl"]
    said = hub("launch=slurm", *TINY, *words, "launch.dry_run=true", "launch.grace_seconds=120", "launch.sbatch.qos=high")
    assert said.code == 0, said.err
    script = tmp_path / "runs" / "jobs" / "it.sbatch"
    assert said.out == script.read_text(encoding="utf-8")
    assert f'srun bash -c "$look" look {script} {tmp_path}/keep.jsonl ||' in said.out
    for option in (
        f"--nodes={nnodes} --ntasks-per-node=1",
        "--gpus-per-node=4",
        "--time=01:30:00",
        "--signal=B:USR1@120",
        "--qos=high",
    ):
        assert f"\n#SBATCH {option}\n" in said.out
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a,b", "SLURM_NNODES": str(nnodes), "SLURM_NODEID": "0"}
    env = os.environ | slurm | {"PATH": path}
    job = subprocess.Popen(["bash", script], cwd="/", env=env, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    job.send_signal(number)
    printed, _ = job.communicate(timeout=60)
    assert job.returncode == code
    assert "run_name=it resume=auto" in printed
    group = " launch.nnodes=2 launch.rdzv_endpoint=first:10007 launch.node_rank=0"
    assert (group in printed) == (nnodes == 2)
    assert ("scontrol requeue 7 checkpoint" in printed) == ("requeue" in printed) == ((code, number) == (143, signal.SIGUSR1))


def test_a_submitted_job_says_where_its_log_and_its_run_will_be(hub, tmp_path, monkeypatch):
    refused = (
        "echo 'sbatch: error: Batch job submission failed: No partition specified or system default partition' >&2; exit 1"
    )
    monkeypatch.setenv(
        "PATH", programs(tmp_path / "bin", sbatch=f'grep -q "SBATCH --partition=gpu$" "$2" || {{ {refused}; }}\necho "47;a"')
    )
    words = [
        "launch=slurm",
        *TINY,
        f"output_dir={tmp_path}/runs",
        "run_name=it",
        "launch.nproc_per_node=2",
        "algo.save_every_steps=9",
    ]
    said = hub(*words)
    assert said.code == 1
    assert said.problems == [
        "launch=slurm: sbatch refused the job: sbatch: error: Batch job submission failed: No partition specified or system "
        "default partition. Type launch.partition=NAME: sinfo lists them"
    ]
    said = hub(*words, "launch.partition=gpu")
    assert said.code == 0
    assert said.out.splitlines() == [
        "job: 47",
        f"job file: {tmp_path}/runs/jobs/it.sbatch",
        f"log: tail -F {tmp_path}/runs/jobs/it-47.log",
        "end it: scancel 47",
        f"run folder: {tmp_path}/runs/it",
        f"its report: python -m hub report run={tmp_path}/runs/it",
    ]
    assert f"--output={tmp_path}/runs/jobs/it-%j.log" in (tmp_path / "runs" / "jobs" / "it.sbatch").read_text(encoding="utf-8")


def test_the_manifest_of_a_kubernetes_job_has_what_it_needs_and_fits_the_schema(hub):
    words = [
        "launch=kubernetes",
        *ON_CLAIMS,
        CLAIMS,
        "launch.gpus_per_node=8",
        "launch.dry_run=true",
        "algo.save_every_steps=200",
    ]
    words += [
        "launch.nnodes=2",
        "launch.cpus_per_node=16",
        "launch.namespace=ml",
        "launch.image=ours/hub:1",
        "track=tensorboard",
    ]
    said = hub(*words, "track.project='$(HOME)'")
    assert said.code == 0, said.err
    service, job = yaml.safe_load_all(said.out)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"] == {"requests": {"cpu": 16}, "limits": {"nvidia.com/gpu": 8}}
    assert container["image"] == pod["initContainers"][0]["image"] == "ours/hub:1"
    group = ["launch.nnodes=2", "launch.node_rank=$(JOB_COMPLETION_INDEX)", "launch.rdzv_endpoint=weekly-0.weekly:29500"]
    assert container["args"][-3:] == group
    assert 'track.project="$$(HOME)"' in container["args"]
    cfg = package.compose(*container["args"][:-3])
    assert (cfg.resume, cfg.run_name, cfg.output_dir, cfg.launch.cluster, cfg.launch.volumes) == (
        "auto",
        "weekly",
        "/runs",
        None,
        {},
    )
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert (service["metadata"]["name"], service["metadata"]["namespace"]) == (pod["subdomain"], "ml")
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/runs", "/data", "/dev/shm"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    validator = pytest.importorskip("kubernetes_validate")
    for part in (service, job):
        for version in ("1.31", "1.37"):
            validator.validate(part, version, strict=True)


def test_a_task_of_skypilot_has_what_it_needs(hub):
    words = ["launch=skypilot", *ON_CLAIMS, 'launch.volumes={/runs:"s3://runs",/data:data}', "launch.dry_run=true"]
    said = hub(
        *words, "launch.accelerator=H100", "launch.gpus_per_node=8", "launch.nnodes=2", "launch.spot=true", "launch.infra=aws"
    )
    assert said.code == 0, said.err
    task = yaml.safe_load(said.out)
    assert task["resources"] == {"infra": "aws", "accelerators": "H100:8", "use_spot": True}
    assert (task["num_nodes"], task["volumes"]) == (2, {"/data": "data"})
    assert task["file_mounts"] == {"/runs": {"source": "s3://runs", "mode": "MOUNT_CACHED"}}
    assert task["setup"] == f"pip install finetune-hub=={package.__version__} hub-lora-sft=={package.__version__}\n"
    env = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    run = task["run"].replace("python -m hub", "printf '%s\\n'")
    done = subprocess.run(["bash", "-c", run], env=os.environ | env, capture_output=True, text=True, check=True)
    launch = package.compose(*done.stdout.splitlines()).launch
    assert (launch.nnodes, launch.node_rank, launch.rdzv_endpoint) == (2, 1, "10.0.0.1:29500")


def test_options_of_a_job_that_clash_are_one_line_each():
    of_slurm = {"cluster": "slurm", "gpus_per_node": 1}
    for options, line in {
        (
            ("dry_run", True),
        ): "launch.dry_run=true is for a job on a cluster. Type launch=slurm or launch=kubernetes or launch=skypilot",
        (
            ("cluster", "slurm"),
        ): "launch=slurm asks for machines, and nothing says how many GPUs each has. Type launch.gpus_per_node=8",
        (*of_slurm.items(), ("mode", "inline")): "launch.mode=inline runs in this process, and launch=slurm on other machines.",
        (
            *of_slurm.items(),
            ("nnodes", 2),
            ("node_rank", 1),
        ): "launch.node_rank=1 is set by the job on each of its machines. Leave",
        (
            *of_slurm.items(),
            ("nproc_per_node", 2),
        ): "launch.nproc_per_node=2 but launch.gpus_per_node=1. Leave nproc_per_node out",
        (*of_slurm.items(), ("image", "a")): "launch.image=a is for kubernetes and skypilot, not for slurm. Leave it out",
        (
            *of_slurm.items(),
            ("partition", "a\n#SBATCH b"),
        ): "launch.partition='a\\n#SBATCH b' is not a name. Allowed: letters, digits",
    }.items():
        (problem,) = LaunchConfig(**dict(options)).problems("adamw", TASKS["train"])
        assert problem.startswith(line)
    for more in ({"wrap": "ls"}, {"qos": "a b"}):
        (problem,) = LaunchConfig(**of_slurm, sbatch=more).problems("adamw", TASKS["train"])
        assert problem.startswith("launch.sbatch.")


def test_paths_that_the_machines_of_a_job_do_not_see_are_refused(hub, tmp_path):
    said = hub("launch=slurm", *TINY, "launch.gpus_per_node=four", "resume=latest")
    assert said.problems == ["launch.gpus_per_node=four is not allowed. Allowed: a whole number or null"]
    said = hub("launch=slurm", *TINY, "launch.gpus_per_node=0", "resume=latest")
    assert [line.partition(". ")[0] for line in said.problems] == [
        "resume=latest: a job resumes the run of its own name",
        "output_dir=runs is relative, and the nodes of a job need one folder that all of them see",
    ]
    said = hub("launch=slurm", *TINY, "launch.gpus_per_node=0", f"output_dir={tmp_path}", "launch.hours=0.05")
    assert [line.partition(":")[0] for line in said.problems] == ["launch.hours=0.05"]
    words = ["launch=kubernetes", *ON_CLAIMS, "launch.gpus_per_node=1", "model.path=/home/me/llama", "data.path=chats.jsonl"]
    said = hub(*words, CLAIMS, "run_name=A_b")
    assert [line.partition(". ")[0] for line in said.problems] == [
        "run_name=A_b: it is the name of the job too",
        "model.path=/home/me/llama: the machines of the job see /runs, /data only (launch.volumes)",
        "data.path=chats.jsonl: the machines of the job see /runs, /data only (launch.volumes)",
    ]
    (tmp_path / "mine.jinja").write_text("", encoding="utf-8")
    words = ["launch=kubernetes", *ON_CLAIMS, "launch.gpus_per_node=1", CLAIMS, "launch.dry_run=true"]
    said = hub(*words, f"algo.protect=[/data/keep.jsonl,{tmp_path}/keep.jsonl]", f"data.template={tmp_path}/mine.jinja")
    assert [line.partition(": ")[0] for line in said.problems if "the machines of the job see" in line] == [
        f"data.template={tmp_path}/mine.jinja",
        f"algo.protect={tmp_path}/keep.jsonl",
    ]
    said = hub(*words, "algo.protect=[/data/keep.jsonl]", "data.template=/data/mine.jinja")
    assert said.code == 0, said.err
    said = hub(*words, "algo=osft", "algo.protect_from=/runs/first")
    assert said.code == 0, said.err
    said = hub(*words, "algo=osft", "algo.protect_from=/home/me/first")
    assert any(line.startswith("algo.protect_from=/home/me/first: the machines of the job see") for line in said.problems)
    assert not (tmp_path / "runs").exists()


def test_an_engine_gets_the_job_file_and_one_that_is_not_here_is_one_line(tmp_path, monkeypatch):
    before = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path))
    job = Job(cfg=package.RunConfig(), name="it", words=(), summary="")
    for engine, program in (("slurm", "sbatch"), ("kubernetes", "kubectl"), ("skypilot", "sky")):
        with pytest.raises(
            LaunchError, match=f"^launch={engine} needs {program}, which is not on this machine. .*launch.dry_run=true"
        ):
            ENGINES[engine].submit(job, tmp_path / "it.sbatch", "")
    monkeypatch.setenv("PATH", before)
    monkeypatch.setenv("HF_TOKEN", "a secret")
    took = f'echo "$*" > {tmp_path}/words; cat "${{!#}}" > {tmp_path}/job'
    monkeypatch.setenv("PATH", programs(tmp_path / "bin", kubectl=took.replace('"${!#}"', ""), sky=took))
    log = "kubectl logs --follow --selector=job=it --prefix"
    for engine, words, follow in (
        ("kubernetes", "create --filename -", log),
        ("skypilot", "jobs launch --yes --detach-run --name it --secret HF_TOKEN /", "sky jobs logs --follow --name it"),
    ):
        started = ENGINES[engine].submit(job, None, f"the job of {engine}")
        assert (tmp_path / "words").read_text(encoding="utf-8").startswith(words)
        assert (tmp_path / "job").read_text(encoding="utf-8") == f"the job of {engine}"
        assert started.log == follow


def test_a_machine_does_not_refuse_the_run_folder_that_machine_0_is_making(tmp_path):
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "lock.json").write_text("{}", encoding="utf-8")
    cfg = package.RunConfig(output_dir=str(tmp_path), run_name="it", resume="auto", launch=LaunchConfig(nnodes=2, node_rank=1))
    assert decide(cfg) == (replace(cfg, resume=None), None, None)


def test_what_a_sweep_and_a_file_of_another_must_not_decide(hub, tmp_path):
    said = hub("--multirun", "launch=slurm", *TINY, f"output_dir={tmp_path}/runs", "launch.gpus_per_node=0", "algo.lora_r=2,4")
    assert said.problems == [line for line in said.problems if line.startswith("launch=slurm is for a single run. For a sweep")]
    assert said.code == 2
    (tmp_path / "exp.yaml").write_text("launch: {cluster: kubernetes, image: evil}\n", encoding="utf-8")
    said = hub("exp.yaml", *TINY)
    assert said.problems == ['exp.yaml has launch.image="evil", which runs code. If you trust the file, type that too']


@pytest.mark.slow
@pytest.mark.usefixtures("warm_python_here")
def test_a_job_on_two_nodes_whose_time_is_over_ends_with_the_model_of_one_that_was_not_disturbed(hub, tmp_path):
    each = 'for node in "${nodes[@]}"; do\n'
    several = 'for node in 0 1; do SLURM_NODEID=$node "$@" & nodes+=($!); done\ntrap \'kill -TERM "${nodes[@]}"\' TERM\n'
    waits = f"code=0\n{each}" + "while kill -0 $node 2>/dev/null; do wait $node; done\nwait $node || code=$?\ndone"
    path = programs(
        tmp_path / "bin",
        srun=f'nodes=()\n[[ "$1" == --* ]] && shift\n{several}{waits}\nexit $code',
        scontrol=f'[ "$1" = show ] && echo 127.0.0.1 || echo $* >> {tmp_path}/queued',
        sbatch="echo 7",
    )
    with socket.socket() as probe:
        port = next(port for port in range(12000, 30000, 7) if probe.connect_ex(("127.0.0.1", port)))
    env = os.environ | {"PATH": path, "SLURM_JOB_ID": str(port - 10000), "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "x"}
    words = [*TINY, "model.dtype=float32", "algo.max_steps=150", "algo.effective_batch_size=4", f"output_dir={tmp_path}/runs"]

    def job(name: str, *signals: int) -> list[int]:
        said = hub(
            "launch=slurm", *words, f"run_name={name}", "launch.gpus_per_node=0", "launch.nnodes=2", "launch.dry_run=true"
        )
        assert said.code == 0, said.err
        codes = []
        for number in (*signals, None):
            process = subprocess.Popen(
                ["bash", tmp_path / "runs" / "jobs" / f"{name}.sbatch"], env=env, stdout=subprocess.DEVNULL
            )
            metrics = tmp_path / "runs" / name / "metrics.jsonl"
            while number and process.poll() is None and not metrics.is_file():
                time.sleep(0.01)
            if number:
                process.send_signal(number)
            codes.append(process.wait(timeout=300))
        return codes

    assert job("disturbed", signal.SIGUSR1) == [143, 0]
    assert (tmp_path / "queued").read_text(encoding="utf-8") == f"requeue {port - 10000}\n"
    assert job("plain") == [0]
    results = [package.Result.read(tmp_path / "runs" / name / "result.json") for name in ("disturbed", "plain")]
    losses = [[line["loss"] for line in result.metrics] for result in results]
    assert len(losses[0]) == 150
    assert losses[0] == losses[1]
    files = [(result.model_path / "adapter_model.safetensors").read_bytes() for result in results]
    assert files[0] == files[1]
    assert replace(results[0], run_path=results[1].run_path).num_steps == results[1].num_steps == 150
