"""A checkpoint is whole or it is not there, whatever ends the process that writes it."""

import json
import os
import sys

import pytest
import torch
from accelerate import Accelerator

from hub.train.checkpoint import checkpoints, damage, load_checkpoint, newest_valid, read_state, save_checkpoint
from hub.train.distributed import Group
from hub.train.session import Session

SESSION = Session(Group(0, 1, 0, torch.device("cpu")), Accelerator(cpu=True), torch.float32)


def make(seed: int = 0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer


def step(model, optimizer) -> None:
    optimizer.zero_grad()
    (model(torch.randn(5, 8)) ** 2).mean().backward()
    optimizer.step()


def save(folder, number, model, optimizer, keep=2, **state):
    def save_model(place, weights):
        place.mkdir()
        (place / "config.json").write_text("{}")

    return save_checkpoint(folder, number, SESSION, model, optimizer, state, save_model, keep)


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path):
    model, optimizer = make()
    step(model, optimizer)
    path, failure = save(tmp_path, 1, model, optimizer)
    assert not failure
    step(model, optimizer)
    expected = [p.clone() for p in model.parameters()]
    other, its_optimizer = make(seed=99)
    assert load_checkpoint(path, SESSION, other, its_optimizer)["step"] == 1
    step(other, its_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(expected, other.parameters(), strict=True))


def test_only_the_newest_and_the_best_stay(tmp_path):
    model, optimizer = make()
    step(model, optimizer)
    for number, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5)):
        save(tmp_path, number, model, optimizer, eval_loss=loss)
    assert [path.name[-1] for path in checkpoints(tmp_path)] == ["2", "4", "5"]


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("harm", [truncate, flip, lambda file: file.unlink()], ids=["truncated", "flipped", "missing"])
@pytest.mark.parametrize(
    "name", ["trainable.safetensors", "optimizer.safetensors", "state.json", "random-rank0.safetensors", "manifest.json"]
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, name, harm):
    model, optimizer = make()
    step(model, optimizer)
    first, _ = save(tmp_path, 1, model, optimizer)
    second, _ = save(tmp_path, 2, model, optimizer)
    harm(second / name)
    said = []
    assert newest_valid(tmp_path, said.append) == first
    assert damage(second)
    assert name == "manifest.json" or name in said[0]


def test_a_process_that_dies_at_any_file_operation_leaves_a_whole_checkpoint(tmp_path):
    """A child process is ended at its n-th file operation while it writes step 2, for every n until it gets through."""
    model, optimizer = make()
    step(model, optimizer)
    save(tmp_path, 1, model, optimizer)
    step(model, optimizer)
    survived = tried = 0
    for deadline in range(1, 2000):
        child = os.fork()
        if child == 0:
            count = 0

            def hook(event, arguments):
                nonlocal count
                if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
                    count += 1
                    if count == deadline:  # noqa: B023 - the child sees its own value
                        os._exit(77)

            sys.addaudithook(hook)
            path, _ = save(tmp_path, 2, model, optimizer, keep=1)
            os._exit(0 if path else 1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        tried += 1
        found = newest_valid(tmp_path, lambda line: pytest.fail(line))
        assert found is not None
        assert read_state(found)["step"] in (1, 2)
        if code == 0:
            assert read_state(found)["step"] == 2
            break
        assert code == 77
        survived += 1
    assert survived > 20
    print(f"{tried} deaths and saves tried, {survived} deaths survived, 0 checkpoints lost")


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    model, optimizer = make()
    step(model, optimizer)
    save(tmp_path, 1, model, optimizer)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hub.train.checkpoint.save_file", full)
        path, failure = save(tmp_path, 2, model, optimizer)
    assert path is None
    assert "No space left on device" in failure
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        path, failure = save(tmp_path, 2, model, optimizer)
    assert path is None
    assert "No space left on device" in failure
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_nothing_in_a_checkpoint_is_pickled(tmp_path):
    model, optimizer = make()
    step(model, optimizer)
    path, _ = save(tmp_path, 1, model, optimizer)
    files = [file for file in path.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".safetensors", ".json"}
    for file in files:
        if file.suffix == ".json":
            json.loads(file.read_text())
