"""SkyPilot: a task for machines of a cloud or a cluster. As a managed job it is started again when a machine is taken away."""

import os
import shlex
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from hub.config.schema import RunConfig
from hub.launch.clusters.engine import Engine, Job, Started, call, name_problems
from hub.plugins.registry import registry
from hub.version import VERSION

PORT = 29500
SECRETS = ("HF_TOKEN", "WANDB_API_KEY")
"""Environment variables that go with the job if they are set here. They are never written into the task."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml gives it no types
    """Writes scripts as they are, line by line."""

    def represent_script(self, text: str) -> Any:
        """A text with lines as a block."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_script)


def _problems(cfg: RunConfig, name: str) -> Iterator[str]:
    launch = cfg.launch
    yield from name_problems(name)
    wants_gpus = launch.gpus_per_node != 0
    if wants_gpus and not launch.accelerator:
        yield "launch=skypilot needs the kind of GPU. Type launch.accelerator=H100: sky gpus list shows them"
    if launch.accelerator and not wants_gpus:
        yield f"launch.accelerator={launch.accelerator} but launch.gpus_per_node=0. Leave one of them out"


def _text(job: Job) -> str:
    launch = job.cfg.launch
    command = shlex.join(["python", "-m", "hub", *job.words])
    if launch.nnodes > 1:
        command += (
            ' launch.nnodes="$SKYPILOT_NUM_NODES" launch.node_rank="$SKYPILOT_NODE_RANK"'
            f' launch.rdzv_endpoint="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{PORT}"'
        )
    resources: dict[str, Any] = {
        "infra": launch.infra,
        "accelerators": f"{launch.accelerator}:{job.gpus}" if job.gpus else None,
        "cpus": f"{launch.cpus_per_node}+" if launch.cpus_per_node else None,
        "image_id": f"docker:{launch.image}" if launch.image else None,
        "use_spot": launch.spot or None,
    }
    buckets = {folder: name for folder, name in launch.volumes.items() if "://" in name}
    task: dict[str, Any] = {
        "name": job.name,
        "num_nodes": launch.nnodes,
        "resources": {name: value for name, value in resources.items() if value is not None},
        "volumes": {folder: name for folder, name in launch.volumes.items() if folder not in buckets},
        # MOUNT_CACHED writes through a disk of the machine: a run folder needs files that can be renamed.
        "file_mounts": {folder: {"source": name, "mode": "MOUNT_CACHED"} for folder, name in buckets.items()},
        "setup": None if launch.image else f"pip install {' '.join(_distributions(job.cfg))}\n",
        "run": f"{command}\n",
    }
    kept = {name: value for name, value in task.items() if value not in (None, {})}
    text: str = yaml.dump(kept, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return f"# {job.summary}. Written by finetune-hub {VERSION}.\n{text}"


def _distributions(cfg: RunConfig) -> list[str]:
    """What is installed on a machine: the hub and the plugin of the algorithm, in the versions of this machine."""
    plugins = registry()
    owner = plugins.owners[plugins.algorithm_of(cfg.algo).name]
    plugin = next((plugin.distribution for plugin in plugins.plugins if plugin.name == owner), "")
    return [f"finetune-hub=={VERSION}", *([f"{plugin}=={version(plugin)}"] if plugin else [])]


def _submit(job: Job, file: Path | None, text: str) -> Started:
    install = 'Type pip install "skypilot[aws]", or with another cloud'
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as task:
        task.write(text)
        task.flush()
        secrets = [
            word for name in SECRETS if name in os.environ for word in ("--secret", name)
        ]  # sky reads their values itself
        command = ["sky", "jobs", "launch", "--yes", "--detach-run", "--name", job.name, *secrets, task.name]
        call(command, "launch=skypilot", lambda said: "", install)
    return Started(
        number=job.name, log=f"sky jobs logs --follow --name {job.name}", cancel=f"sky jobs cancel --name {job.name}"
    )


ENGINE = Engine(name="skypilot", ending="yaml", shares_disk=False, problems=_problems, text=_text, submit=_submit)
