"""A checkpoint of a GPU's state: the copy overlaps with the next pass, and has the values from the time of the save."""

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from hub.parallel.group import Group
from hub.parallel.session import Session
from hub.train.checkpoints.checkpoint import load_checkpoint
from hub.train.checkpoints.writer import CheckpointWriter

SESSION = Session(Group(0, 1, 0, torch.device("cuda", 0)), Accelerator(), torch.float32)


def make(seed: int):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(*[torch.nn.Linear(4096, 4096, device="cuda") for _ in range(8)])
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def step(model, optimizer) -> None:
    model(torch.ones(4, 4096, device="cuda")).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def save_model(folder, weights) -> None:
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")


def state(model, optimizer) -> dict[str, torch.Tensor]:
    moments = {f"{n}/{key}": t for n, p in model.named_parameters() for key, t in optimizer.state[p].items()}
    return {name: tensor.detach().clone() for name, tensor in {**dict(model.named_parameters()), **moments}.items()}


def test_what_is_written_is_the_state_at_the_save_although_the_optimizer_steps_on(tmp_path):
    model, optimizer = make(0)
    writer = CheckpointWriter(tmp_path, SESSION, model, optimizer, save_model, 2, print)
    step(model, optimizer)
    writer.prepare()
    for number in (1, 2):
        step(model, optimizer)
        expected = state(model, optimizer)
        assert writer.save(number, {}) is None
        # The first optimizer step waits for the copy; without that it would change what is still to be copied.
        for _ in range(20):
            step(model, optimizer)
        path = writer.wait().path
        other, its_optimizer = make(7)
        load_checkpoint(path, SESSION, other, its_optimizer)
        found = state(other, its_optimizer)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert writer._copies._pinned, "the CPU memory was not pinned: copies would block the program"
    writer.close()


def test_the_copy_does_not_stop_the_program(tmp_path):
    model, optimizer = make(0)
    writer = CheckpointWriter(tmp_path, SESSION, model, optimizer, save_model, 2, print)
    step(model, optimizer)
    writer.prepare()
    assert writer.save(1, {}) is None
    writer.wait()
    torch.cuda.synchronize()
    torch.cuda._sleep(2**31)  # about a second: the copy can't have begun before it is over
    assert writer.save(2, {}) is None
    assert not torch.cuda.current_stream().query(), "save waited for the GPU"
    assert writer.wait().path is not None
    writer.close()
