"""Kubernetes: an Indexed Job, with a pod for each machine and, for several, the service by which they find the first one.

It needs no operator. A queue such as Kueue takes such a Job as it is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from hub.config.schema import RunConfig
from hub.launch.clusters.engine import Engine, Job, Started, call, name_problems
from hub.version import VERSION

IMAGE = "finetune-hub:cuda"
"""The image that docker/Dockerfile builds."""

SECRET = "hub"
"""Name of an optional secret. Its values, such as HF_TOKEN, become environment variables of the run."""

PORT = 29500
_STARTS = 20
"""How often a pod that failed is started again. Evictions and preemptions do not count."""


def _problems(cfg: RunConfig, name: str) -> Iterator[str]:
    yield from name_problems(name)


def _text(job: Job) -> str:
    launch = job.cfg.launch
    is_group = launch.nnodes > 1
    words = [word.replace("$(", "$$(") for word in job.words]  # else Kubernetes would put a variable's value there
    if is_group:
        # $(...) is a variable that Kubernetes gives each pod of an Indexed Job.
        words += [f"launch.nnodes={launch.nnodes}", "launch.node_rank=$(JOB_COMPLETION_INDEX)"]
        words += [f"launch.rdzv_endpoint={job.name}-0.{job.name}:{PORT}"]
    limits: dict[str, Any] = {"nvidia.com/gpu": job.gpus} if job.gpus else {}
    cores = {"cpu": launch.cpus_per_node} if launch.cpus_per_node else {}
    resources = {kind: values for kind, values in (("requests", cores), ("limits", limits)) if values}
    image = launch.image or IMAGE
    folders = sorted(launch.volumes)
    claims = {folder: f"volume-{number}" for number, folder in enumerate(folders)}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": round(launch.grace_seconds),
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000},
        "containers": [
            {
                "name": "hub",
                "image": image,
                "args": words,
                "envFrom": [{"secretRef": {"name": SECRET, "optional": True}}],
                **({"resources": resources} if resources else {}),
                "volumeMounts": [
                    *({"name": claims[folder], "mountPath": folder} for folder in folders),
                    {"name": "memory", "mountPath": "/dev/shm"},  # NCCL needs more than the 64 MB of a container
                ],
            }
        ],
        "volumes": [
            *({"name": claims[folder], "persistentVolumeClaim": {"claimName": launch.volumes[folder]}} for folder in folders),
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
    if is_group:
        pod["subdomain"] = job.name
        wait = f"until getent hosts {job.name}-0.{job.name}; do sleep 1; done"  # its name is known once it has an address
        pod["initContainers"] = [{"name": "wait", "image": image, "command": ["sh", "-c", wait]}]
    namespace = {"namespace": launch.namespace} if launch.namespace else {}
    meta = {"name": job.name, **namespace, "labels": {"app.kubernetes.io/name": "finetune-hub"}}
    spec = {
        "completionMode": "Indexed",
        "completions": launch.nnodes,
        "parallelism": launch.nnodes,
        "backoffLimit": _STARTS,
        "podFailurePolicy": {
            "rules": [
                # A wrong option or row: another start would end the same way.
                {"action": "FailJob", "onExitCodes": {"containerName": "hub", "operator": "In", "values": [2]}},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {"metadata": {"labels": {"job": job.name}}, "spec": pod},
    }
    parts: list[dict[str, Any]] = [{"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}]
    if is_group:
        # publishNotReadyAddresses: the pods look for the first one before any of them is ready.
        service: dict[str, Any] = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job": job.name}}
        parts.insert(0, {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service})
    head = f"# {job.summary}. Written by finetune-hub {VERSION}.\n"
    text: str = yaml.safe_dump_all(parts, sort_keys=False, allow_unicode=True, width=120)
    return head + text


def _submit(job: Job, file: Path | None, text: str) -> Started:
    launch = job.cfg.launch
    where = ["--namespace", launch.namespace] if launch.namespace else []
    delete = f"kubectl {' '.join([*where, ''])}delete job,service {job.name} --ignore-not-found"

    def hint(said: str) -> str:
        if "already exists" in said.lower():
            return f"To start it again type {delete}"
        return "kubectl cluster-info says which cluster it asks" if "connection refused" in said.lower() else ""

    install = "Install it (https://kubernetes.io/docs/tasks/tools)"
    call(["kubectl", *where, "create", "--filename", "-"], "launch=kubernetes", hint, install, stdin=text)
    log = " ".join(["kubectl", *where, "logs", "--follow", f"--selector=job={job.name}", "--prefix"])
    return Started(number=f"job/{job.name}", log=log, cancel=delete)


ENGINE = Engine(name="kubernetes", ending="yaml", shares_disk=False, problems=_problems, text=_text, submit=_submit)
