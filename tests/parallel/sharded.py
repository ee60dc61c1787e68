"""Trains, saves and loads a small model that is sharded over the ranks. Started by test_sharded_tensors.py.

python -m torch.distributed.run --nproc-per-node=4 sharded.py FOLDER save|load|fail
"""

import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import fully_shard

from hub.parallel.group import barrier, start_group
from hub.parallel.optimizer_state import flat_optimizer_state
from hub.parallel.session import Session
from hub.parallel.strategy import full
from hub.system.signals import end_process
from hub.train.checkpoints import save
from hub.train.checkpoints.checkpoint import load_checkpoint
from hub.train.checkpoints.writer import CheckpointWriter


def make(seed: int = 0) -> torch.nn.Sequential:
    """No size can be divided by 4, and one dimension is smaller than the number of ranks."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 13), torch.nn.Linear(13, 3))


def step(model, optimizer) -> None:
    optimizer.zero_grad()
    (model(torch.arange(12.0).view(2, 6) / 12) ** 2).sum().backward()
    optimizer.step()


def whole(model, optimizer) -> dict[str, torch.Tensor]:
    """All weights and moments, gathered by torch."""
    found = {f"trainable/{name}": full(p) for name, p in model.named_parameters()}
    moments, _ = flat_optimizer_state(model, optimizer)
    return found | {f"optimizer/{name}": full(tensor) for name, tensor in moments.items()}


def save_model(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")


@contextmanager
def full_disk():
    def full(*args):
        raise OSError(28, "No space left on device")

    real, save.seal = save.seal, full
    yield
    save.seal = real


def main(folder: Path, what: str) -> None:
    group = start_group()
    session = Session(group, Accelerator(cpu=True), torch.float32)
    model = make(seed=7 if what == "load" else 0)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    writer = CheckpointWriter(folder, session, model, optimizer, save_model, 2, print)
    if what == "fail":
        step(model, optimizer)
        with full_disk() if group.rank == 1 else nullcontext():
            assert writer.save(1, {}) is None
            saved = writer.wait()
        assert saved.path is None, saved
        assert not group.is_main or not list(folder.iterdir())
        # As after an error, when the other ranks may be gone: nobody is asked.
        assert writer.save(2, {}) is None
        saved = writer.close()
        assert (saved.path == folder / "step-00000002") if group.is_main else saved is None
    elif what == "save":
        step(model, optimizer)
        writer.prepare()
        step(model, optimizer)
        expected = whole(model, optimizer)
        if group.is_main:
            save_file(expected, folder / "expected.safetensors")
        assert writer.save(2, {}) is None
        step(model, optimizer)
        saved = writer.wait()
        assert saved.path == folder / "step-00000002", saved
        assert writer.close() is None
    else:
        load_checkpoint(folder / "step-00000002", session, model, optimizer)
        expected, found = load_file(folder / "expected.safetensors"), whole(model, optimizer)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        step(model, optimizer)
    barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    end_process(0)
