"""The process group: rank, device, and the few collective operations that training needs."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from hub.errors import Interrupted
from hub.system.signals import SAVE_SIGNALS, stop_request

TIMEOUT = timedelta(minutes=30)
"""Timeout of a collective. Long, since rank 0 may prepare data or weights while the others wait."""


@dataclass(frozen=True)
class Group:
    """This process's rank and device in the process group."""

    rank: int
    world: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start_group() -> Group:
    """Initialize the process group if there are several workers. Safe to call again.

    CPU tensors use gloo and GPU tensors NCCL, so that small values are exchanged without a GPU.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
    return Group(rank, world, local_rank, device)


def barrier() -> None:
    """Wait until every rank has called this."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))


def sum_over_ranks(*values: float) -> list[float]:
    """Sum numbers over all ranks in float64. Every rank gets the sums."""
    if not dist.is_initialized():
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return [float(value) for value in sums.tolist()]


def summed_over_ranks(scalar: torch.Tensor) -> torch.Tensor:
    """A scalar summed over all ranks on its own device, without a synchronization. Every rank gets the sum."""
    if dist.is_initialized():
        dist.all_reduce(scalar)
    return scalar


def sum_gradients(parameters: Iterable[torch.nn.Parameter], bucket_bytes: int = 2**28) -> None:
    """All-reduce the gradients in place, in buckets, in at least float32. A missing gradient counts as zero."""
    if not dist.is_initialized():
        return
    bucket: list[torch.Tensor] = []

    def reduce() -> None:
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        dist.all_reduce(flat)
        for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(summed.view_as(gradient))
        bucket.clear()

    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (bucket[0].dtype != parameter.grad.dtype or sum(4 * g.numel() for g in bucket) >= bucket_bytes):
            reduce()
        bucket.append(parameter.grad)
    if bucket:
        reduce()


@torch.no_grad()
def same_on_all_ranks(tensors: Iterable[torch.Tensor]) -> None:
    """Broadcast rank 0's values to every rank, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def max_over_ranks(value: float) -> float:
    """The maximum of a number over all ranks, on every rank."""
    if not dist.is_initialized():
        return value
    largest = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return float(largest.item())


def broadcast_text(text: str) -> str:
    """Rank 0's text on every rank, sent as plain bytes: nothing is unpickled."""
    return broadcast_bytes(text.encode()).decode()


def broadcast_bytes(given: bytes) -> bytes:
    """Rank 0's bytes on every rank."""
    if not dist.is_initialized():
        return given
    size = torch.tensor([len(given)])
    dist.broadcast(size, 0)
    data = torch.empty(int(size.item()), dtype=torch.uint8)
    if dist.get_rank() == 0 and given:
        data.copy_(torch.frombuffer(bytearray(given), dtype=torch.uint8))
    dist.broadcast(data, 0)
    received: bytes = data.numpy().tobytes()
    return received


def stop_requested() -> int | None:
    """The signal that any rank received, so that all act on it after the same step. None: no signal.

    It asks to stop, or (`SAVE_SIGNALS`) for a checkpoint. If ranks received different ones, the one to stop counts.
    """
    stop, save = stop_request.signal_number, stop_request.save_number
    return int(max_over_ranks(_TO_STOP + stop if stop else save or 0)) % _TO_STOP or None


def end_if_stopped() -> None:
    """End on all ranks if a signal to stop came to any of them before training.

    What a model or a library tries before training may take the exception that a signal raises for a failure of its own, and
    choose another way: training must not begin after that. All ranks must call it.

    Raises:
        Interrupted: a signal came.
    """
    number = stop_requested()
    if number is not None and number not in SAVE_SIGNALS:
        raise Interrupted.before_training(number)


_TO_STOP = 1000
"""Added to the number of a signal that asks to stop, so that it is above all others."""
