"""Options of processes and machines, and what can't be combined."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from hub.config.bounds import BoundOptions
from hub.config.cluster import ClusterOptions
from hub.config.disk import DiskOptions
from hub.config.first_step import FirstStepOptions
from hub.config.option import AUTO, option
from hub.config.task import Task

WORK_ON_SHARDS = ("adamw", "sgd")
"""Optimizers that update each element on its own, so that they work on sharded weights (launch.strategy=fsdp)."""
ZERO = ("zero1", "zero2", "zero3")
"""Values of `launch.strategy` that use DeepSpeed."""


@dataclass(kw_only=True)
class LaunchConfig(ClusterOptions, FirstStepOptions, DiskOptions, BoundOptions):
    """Processes and machines."""

    mode: str = option(AUTO, choices=(AUTO, "process", "inline"))
    """process: separate worker processes. inline: in this process, for a debugger; one process only. auto: process."""

    nproc_per_node: int | str = option(AUTO, ge=1)
    """Processes on this machine. auto: one per visible GPU, or one without a GPU."""

    nnodes: int = option(1, ge=1)
    """Number of machines. Run the same command on each of them."""

    node_rank: int = option(0, ge=0)
    """Rank of this machine, from 0 to `nnodes` - 1."""

    rdzv_endpoint: str | None = None
    """host:port for the rendezvous, the same on all machines. null: a free port, on a single machine."""

    rdzv_timeout_seconds: float = option(900.0, gt=0)
    """Time that a machine waits for the others at `rdzv_endpoint` before it gives up."""

    strategy: str = option(AUTO, choices=(AUTO, "ddp", "fsdp", *ZERO, "split"))
    """How the model is placed on several GPUs. ddp: a full copy per process. fsdp: every layer is sharded. zero1, zero2, zero3:
    DeepSpeed shards the optimizer state, also the gradients, also the weights. split: one process with its layers spread over
    the GPUs. auto: ddp if it fits, else fsdp."""

    deepspeed_config: str | None = None
    """With zero1, zero2 or zero3: a DeepSpeed JSON file whose settings override the hub's, except batch size, clipping,
    optimizer and scheduler."""

    cpu_offload: bool = False
    """With fsdp and zero1 to zero3: CPU offload of the optimizer state (fsdp, zero3: also of the weights). Slow, for models
    that do not fit otherwise."""

    gpu_memory_gb: float | None = option(None, gt=0)
    """Memory in GiB that a process may take of its GPU, the driver's part included. Token budget, checkpointed layers, offload
    and tiled MLPs follow from it, in a run and in `plan`. null: all."""

    grace_seconds: float = option(300.0, gt=0)
    """With several processes: time after SIGINT or SIGTERM to finish the step and to write a checkpoint, before they are
    killed. A second signal ends them at once."""

    python: str | None = None
    """Python interpreter of the workers, for a backend in a separate environment. null: this interpreter."""

    def problems(self, optimizer: str, task: Task) -> Iterator[str]:
        """Yield a line for each combination that can't work.

        Args:
            optimizer: `algo.optimizer`.
            task: that the run is for.
        """
        of_the_job = {name: value for name in ("node_rank", "rdzv_endpoint") if (value := getattr(self, name))}
        yield from self.cluster_problems(self.mode, self.nproc_per_node, of_the_job)
        if self.strategy in ("fsdp", *ZERO) and optimizer not in WORK_ON_SHARDS:
            yield f"algo.optimizer={optimizer} does not work on sharded weights. Type algo.optimizer=adamw"
        if self.deepspeed_config and self.strategy not in ZERO:
            yield (
                f"launch.deepspeed_config={self.deepspeed_config} needs launch.strategy={' or '.join(ZERO)}. "
                "Type launch.strategy=zero2"
            )
        elif self.deepspeed_config and not os.path.isfile(os.path.expanduser(self.deepspeed_config)):
            yield f"launch.deepspeed_config={self.deepspeed_config}: there is no such file"
        if self.strategy in ZERO and task.compares_gradients:
            status = task.status
            yield f"launch.strategy={self.strategy} can't be {status}: DeepSpeed hides the gradients. Type launch.strategy=ddp"
        if self.cpu_offload and self.strategy not in (AUTO, "fsdp", *ZERO):
            yield f"launch.cpu_offload=true needs launch.strategy=fsdp or {' or '.join(ZERO)}, but it is {self.strategy}"
        if self.node_rank >= self.nnodes and self.cluster is None:
            yield f"launch.node_rank={self.node_rank} must be below launch.nnodes={self.nnodes}"
        if self.nnodes > 1 and not self.rdzv_endpoint and self.cluster is None:
            yield "launch.nnodes is above 1. Type launch.rdzv_endpoint=HOST:PORT, the same on all machines"
        if self.rdzv_endpoint:
            host, _, port = self.rdzv_endpoint.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                yield f"launch.rdzv_endpoint={self.rdzv_endpoint} is not of the form HOST:PORT"
        elif self.rdzv_timeout_seconds != LaunchConfig.rdzv_timeout_seconds and self.cluster is None:
            yield (
                f"launch.rdzv_timeout_seconds={self.rdzv_timeout_seconds:g} is for several machines that wait for each other. "
                "Leave it out, or type launch.rdzv_endpoint=HOST:PORT"
            )
        if self.mode == "inline" and self.python:
            yield "launch.mode=inline runs in this interpreter. Leave launch.python out, or type launch.mode=process"
        if self.strategy == "split" and (self.nnodes > 1 or self.nproc_per_node not in (AUTO, 1)):
            yield "launch.strategy=split runs in one process. Type launch.nproc_per_node=1, or launch.strategy=fsdp"
        if self.mode == "inline" and (self.nnodes > 1 or self.nproc_per_node not in (AUTO, 1)):
            yield "launch.mode=inline runs in this process only. Type launch.nproc_per_node=1 or launch.mode=process"
        if self.python and not os.path.isfile(self.python):
            yield f"launch.python={self.python}: there is no such interpreter"
