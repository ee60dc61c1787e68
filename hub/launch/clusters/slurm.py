"""Slurm: one batch script, which starts the run on each node by srun and queues itself again before its time is over."""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from hub.config.schema import RunConfig
from hub.errors import LaunchError
from hub.launch.clusters.engine import Engine, Job, Started, call, paths_read
from hub.version import VERSION

_SCRIPT = r"""#!/bin/bash
# @summary@. Written by finetune-hub @version@.
@options@
set -uo pipefail
cd @folder@ || exit 2
command=(@command@)
# From version 22.05 on srun does not take the number of cores from the job.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
# What the run reads, and where it writes, must be the same for all nodes.
look='for path; do [ -e "$path" ] || { echo "hub: $(hostname) does not see $path: use a shared disk" >&2; exit 2; }; done'
srun bash -c "$look" look @seen@ || exit 2
@address@# USR1 comes before the time limit: the run writes a checkpoint and ends, and the job is queued again by its number.
# TERM comes when it is canceled or preempted: then Slurm itself decides whether it is queued again.
time_is_over=
trap 'time_is_over=1; kill -TERM "$step"' USR1
trap 'kill -TERM "$step"' TERM
# No node is killed because another has ended: it may still write its checkpoint.
srun --kill-on-bad-exit=0 @start@ &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a signal ends a wait
wait "$step"
code=$?
[ -z "$time_is_over" ] || [ "$code" -ne 143 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$code"
"""

_ADDRESS = r"""first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
command+=(launch.nnodes="$SLURM_NNODES" launch.rdzv_endpoint="$first:$((10000 + SLURM_JOB_ID % 20000))")
"""
_ON_ONE, _ON_SEVERAL = (
    '"${command[@]}"',
    r"""bash -c 'exec "$@" launch.node_rank="$SLURM_NODEID"' run "${command[@]}" """.rstrip(),
)


def _problems(cfg: RunConfig, name: str) -> Iterator[str]:
    output_dir = cfg.output_dir
    if not os.path.isabs(os.path.expanduser(output_dir)):
        yield (
            f"output_dir={output_dir} is relative, and the nodes of a job need one folder that all of them see. Type "
            f"output_dir={os.path.abspath(output_dir)}, if that is on a shared disk"
        )
    elif not re.fullmatch(r"[\w./+@~-]+", output_dir):
        yield f"output_dir={output_dir!r}: Slurm reads it from the job file. Name a folder without spaces and signs such as %"
    hours, grace = cfg.launch.hours, cfg.launch.grace_seconds
    if hours is not None and hours * 3600 <= grace:
        yield (
            f"launch.hours={hours:g}: the run saves and ends launch.grace_seconds={grace:g} before the time is over, and here "
            "that is at once, again and again. Type more hours, or launch.grace_seconds=60"
        )
    if not re.fullmatch(r"[\w.+@-]+", name):
        yield f"run_name={name!r}: it is the name of the job too. Type one of letters, digits and .+@-_"


def _text(job: Job) -> str:
    launch = job.cfg.launch
    folder = Path(job.cfg.output_dir, "jobs")
    options = [
        f"--job-name={job.name}",
        f"--nodes={launch.nnodes} --ntasks-per-node=1",
        f"--gpus-per-node={job.gpus}" if job.gpus else "",
        f"--cpus-per-task={launch.cpus_per_node}" if launch.cpus_per_node else "",
        f"--time={_clock(launch.hours)}" if launch.hours else "",
        f"--partition={launch.partition}" if launch.partition else "",
        f"--account={launch.account}" if launch.account else "",
        *(f"--{name}" if value.lower() == "true" else f"--{name}={value}" for name, value in launch.sbatch.items()),
        f"--output={folder}/{job.name}-%j.log --open-mode=append",
        f"--signal=B:USR1@{round(launch.grace_seconds)}",
        "--requeue",
    ]
    seen = [str(folder / f"{job.name}.sbatch"), *(path for _, path in paths_read(job.cfg) if os.path.exists(path))]
    parts = {
        "summary": job.summary,
        "version": VERSION,
        "options": "\n".join(f"#SBATCH {option}" for option in options if option),
        "folder": shlex.quote(os.getcwd()),
        "command": shlex.join([sys.executable, "-m", "hub", *job.words]),
        "seen": shlex.join(seen),
        "address": _ADDRESS if launch.nnodes > 1 else "",
        "start": _ON_SEVERAL if launch.nnodes > 1 else _ON_ONE,
    }
    return re.sub(r"@(\w+)@", lambda part: parts.get(part[1], part[0]), _SCRIPT)


def _clock(hours: float) -> str:
    """A time in hours as Slurm writes it, HH:MM:SS."""
    seconds = round(hours * 3600)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _hint(said: str) -> str:
    """A sentence on what to type, by what sbatch said. Empty: none."""
    if "partition" in said.lower():
        return "Type launch.partition=NAME: sinfo lists them"
    if "account" in said.lower():
        return "Type launch.account=NAME: sacctmgr show associations user=$USER lists them"
    return ""


def _submit(job: Job, file: Path | None, text: str) -> Started:
    assert file is not None
    install = "Type it where sbatch is, on a login node of the cluster"
    said = call(["sbatch", "--parsable", str(file)], "launch=slurm", _hint, install).strip()
    number = said.partition(";")[0]
    if not number.isdigit():
        raise LaunchError(f"launch=slurm: sbatch printed no number of a job, but {said!r}. squeue --me shows what it did")
    return Started(number=number, log=f"tail -F {file.parent / job.name}-{number}.log", cancel=f"scancel {number}")


ENGINE = Engine(name="slurm", ending="sbatch", shares_disk=True, problems=_problems, text=_text, submit=_submit)
