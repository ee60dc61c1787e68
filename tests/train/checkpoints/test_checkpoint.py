"""A checkpoint is complete or absent, whatever ends the process that writes it."""

import json
import os
import sys
import threading
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from hub.models.save import save_whole_model
from hub.parallel.group import Group
from hub.parallel.session import Session
from hub.testing import tiny_model_path, tokenizer
from hub.train.checkpoints import save as save_module
from hub.train.checkpoints.checkpoint import checkpoints, damage, load_checkpoint, newest_valid, read_state
from hub.train.checkpoints.save import Save
from hub.train.checkpoints.snapshot import take_snapshot
from hub.train.checkpoints.writer import CheckpointWriter

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


def writer(folder, model, optimizer, keep=2, say=lambda line: None):
    def save_model(place, weights):
        place.mkdir()
        (place / "config.json").write_text("{}")

    return CheckpointWriter(folder, SESSION, model, optimizer, save_model, keep, say)


def save(folder, number, model, optimizer, keep=2, **state):
    saves = writer(folder, model, optimizer, keep)
    assert saves.save(number, state) is None
    saved = saves.wait()
    saves.close()
    return saved.path, saved.failure


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


def test_what_is_written_is_the_state_at_the_save_although_training_goes_on(tmp_path, monkeypatch):
    from hub.train.checkpoints import save as module

    model, optimizer = make()
    step(model, optimizer)
    expected = [p.clone() for p in model.parameters()]
    moments = [optimizer.state[p]["exp_avg"].clone() for p in model.parameters()]
    go_on, real = threading.Event(), module.save_file
    monkeypatch.setattr(module, "save_file", lambda *args: (go_on.wait(60), real(*args)))
    saves = writer(tmp_path, model, optimizer)
    saves.prepare()
    assert saves.save(1, {}) is None
    step(model, optimizer)
    assert saves.poll() is None
    assert not checkpoints(tmp_path)
    go_on.set()
    saved = saves.wait()
    other, its_optimizer = make(seed=99)
    load_checkpoint(saved.path, SESSION, other, its_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(expected, other.parameters(), strict=True))
    found = [its_optimizer.state[p]["exp_avg"] for p in other.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(moments, found, strict=True))


def test_a_checkpoint_of_two_processes_is_closed_with_the_parts_of_both_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(save_module, "SECONDS_FOR_PARTS", 0.0)
    model, optimizer = make()
    step(model, optimizer)
    sessions = [replace(SESSION, group=Group(rank, 2, rank, torch.device("cpu"))) for rank in (0, 1)]
    snapshot = take_snapshot(1, {}, sessions[0], model, optimizer)
    first, second = (Save(snapshot, tmp_path, session.group, lambda place, weights: place.mkdir(), 2) for session in sessions)
    first.begin()
    first.run()
    assert not first.other_parts_exist()
    second.run()
    assert first.other_parts_exist()
    assert not checkpoints(tmp_path)
    first.finish()
    (found,) = checkpoints(tmp_path)
    names = set(json.loads((found / "manifest.json").read_text())["files"])
    assert {"random-rank0.safetensors", "random-rank1.safetensors", "state.json", "trainable.safetensors"} <= names
    assert {file.name for file in found.iterdir() if file.is_file()} == {*names, "manifest.json"}
    assert damage(found) is None
    # A process whose run fails, and whose other part never comes, leaves none.
    saves = CheckpointWriter(tmp_path, sessions[0], model, optimizer, lambda place, weights: None, 2, print)
    saves.save(2, {})
    assert saves.close() is None
    assert checkpoints(tmp_path) == [found]


def test_without_memory_for_a_copy_training_waits_and_is_told_why(tmp_path, monkeypatch):
    monkeypatch.setattr("hub.train.checkpoints.writer.free_host_memory", lambda: 100)
    model, optimizer = make()
    step(model, optimizer)
    said = []
    saves = writer(tmp_path, model, optimizer, say=said.append)
    for number in (1, 2):
        assert saves.save(number, {}).path == checkpoints(tmp_path)[-1]
    assert len(said) == 1
    assert "training stands still while a checkpoint is written" in said[0]


def test_only_the_newest_and_the_best_stay(tmp_path):
    model, optimizer = make()
    step(model, optimizer)
    for number, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5)):
        save(tmp_path, number, model, optimizer, score=loss)
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "beside", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["beside training", "while training waits"]
)
def test_a_process_that_dies_at_any_file_operation_leaves_a_whole_checkpoint(tmp_path, beside):
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

            saves = writer(tmp_path, model, optimizer, keep=1)
            sys.addaudithook(hook)
            saved = saves.save(2, {}, wait=not beside)
            while saved is None:
                step(model, optimizer)
                saved = saves.poll()
            os._exit(0 if saved.path else 1)
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
        patch.setattr("hub.train.checkpoints.save.save_file", full)
        path, failure = save(tmp_path, 2, model, optimizer)
    assert path is None
    assert "No space left on device" in failure
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        path, failure = save(tmp_path, 2, model, optimizer)
    assert path is None
    assert "No space left on device" in failure
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path):
    model, optimizer = make()
    step(model, optimizer)
    (tmp_path / "file").write_text("")
    saved = writer(tmp_path / "file", model, optimizer).save(1, {})
    assert saved.path is None
    assert "Not a directory" in saved.failure


def test_saving_a_model_leaves_the_one_that_trains_alone(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.float32)
    model.config.use_cache = False
    before = model.config.to_dict()
    save_whole_model(model, tokenizer(), tmp_path, torch.bfloat16, model.state_dict())
    assert model.config.to_dict() == before
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(saved) is type(model)
    assert saved.config.use_cache


def test_nothing_in_a_checkpoint_is_pickled(tmp_path):
    model, optimizer = make()
    step(model, optimizer)
    path, _ = save(tmp_path, 1, model, optimizer)
    files = [file for file in path.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".safetensors", ".json"}
    for file in files:
        if file.suffix == ".json":
            json.loads(file.read_text())
