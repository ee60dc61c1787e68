"""Checks of a config against this machine: GPUs, processes, ports, packages. Nothing here imports torch."""

import os
import socket
from collections.abc import Iterator
from importlib.util import find_spec

from hub.config.launch import ZERO
from hub.config.schema import RunConfig
from hub.system.gpus import num_visible_gpus

BITSANDBYTES_OPTIMIZERS = ("adamw_8bit", "paged_adamw", "paged_adamw_8bit")


def machine_problems(cfg: RunConfig) -> Iterator[str]:
    """One line for each option that does not fit the GPUs, the number of processes or the ports of this machine."""
    nproc = int(cfg.launch.nproc_per_node)
    gpus = num_visible_gpus()
    if gpus and nproc > gpus:
        yield f"launch.nproc_per_node={nproc} but {gpus} GPU(s) are visible. Type launch.nproc_per_node={gpus}"
    if cfg.launch.strategy == "split" and gpus < 2:
        yield f"launch.strategy=split spreads the layers over several GPUs, but {gpus} are visible. Type launch.strategy=auto"
    world = nproc * cfg.launch.nnodes
    if cfg.launch.strategy in ("fsdp", *ZERO) and world == 1:
        yield (
            f"launch.strategy={cfg.launch.strategy} shards a model over several processes, and there is only one. "
            "Type launch.nproc_per_node=2 or launch.strategy=auto"
        )
    batch = cfg.algo.effective_batch_size
    if isinstance(batch, int) and 0 < batch < world:
        yield (
            f"algo.effective_batch_size={batch} is below the number of processes ({world}): "
            f"one of them would be idle. Type algo.effective_batch_size={world} or fewer processes"
        )
    if (spare := cfg.launch.spare_dir) and not os.path.isdir(os.path.expanduser(spare)):
        yield f"launch.spare_dir={spare}: there is no such folder. Make it, or leave it out"
    if cfg.launch.rdzv_endpoint:
        yield from _endpoint_problem(cfg.launch.rdzv_endpoint, cfg.launch.node_rank == 0)


def missing_packages(cfg: RunConfig) -> Iterator[str]:
    """One line for each option that needs a package that is not installed."""
    if cfg.algo.optimizer in BITSANDBYTES_OPTIMIZERS and find_spec("bitsandbytes") is None:
        yield (f"algo.optimizer={cfg.algo.optimizer} needs bitsandbytes. Type pip install bitsandbytes or algo.optimizer=adamw")
    if cfg.launch.strategy in ZERO and find_spec("deepspeed") is None:
        yield f"launch.strategy={cfg.launch.strategy} needs deepspeed. Type pip install deepspeed or launch.strategy=fsdp"
    if (stored := cfg.model.quantization) and find_spec("bitsandbytes") is None:
        yield f"model.path={cfg.model.path} is stored as {stored}, which needs bitsandbytes. Type pip install bitsandbytes"


def _endpoint_problem(endpoint: str, is_host: bool) -> Iterator[str]:
    """One line if the host of the rendezvous is not known, or if it is this machine and its port is in use."""
    host, _, port = endpoint.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 65536):
        return
    try:
        address = socket.gethostbyname(host)
    except (OSError, UnicodeError):  # UnicodeError: the name is too long to look up
        yield f"launch.rdzv_endpoint={endpoint}: the host {host} is not known. Type an address that all machines know"
        return
    if not is_host:
        return
    with socket.socket() as probe:
        # As torch does: connections of a run that has just ended do not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, int(port)))
        except OSError as error:
            yield f"launch.rdzv_endpoint={endpoint}: this port can't be used ({error.strerror}). Type another"
