"""Checkpoints of sharded models: each rank writes its own shards. Any number of ranks can read them, and so can torch."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from hub import ModelError
from hub.parallel.group import Group
from hub.parallel.session import Session
from hub.parallel.sharded_tensors import StoredTensors
from hub.train.checkpoints.checkpoint import damage, load_checkpoint
from hub.train.checkpoints.writer import CheckpointWriter

pytestmark = pytest.mark.usefixtures("warm_python")

SCRIPT = Path(__file__).with_name("sharded.py")


def shared_out(folder: Path, ranks: int, what: str) -> None:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run([*run, str(SCRIPT), str(folder), what], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("shared_out", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a checkpoint of four ranks, and what is in it."""
    path = tmp_path_factory.mktemp("shares")
    shared_out(path, 4, "save")
    return path


def alone(script, seed: int):
    model = script.make(seed)
    session = Session(Group(0, 1, 0, torch.device("cpu")), Accelerator(cpu=True), torch.float32)
    return session, model, torch.optim.AdamW(model.parameters(), lr=0.1)


def test_each_rank_writes_its_shares_and_the_model_is_whole(folder):
    checkpoint, expected = folder / "step-00000002", load_file(folder / "expected.safetensors")
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    assert {f"{part}/rank{rank:05d}.safetensors" for part in ("trainable", "optimizer") for rank in range(4)} < files.keys()
    assert {f"random-rank{rank}.safetensors" for rank in range(4)} < files.keys()
    assert files.keys() == {str(f.relative_to(checkpoint)) for f in checkpoint.rglob("*") if f.is_file()} - {"manifest.json"}
    assert damage(checkpoint) is None
    assert not list(folder.glob(".*"))
    for name, tensor in load_file(checkpoint / "model/model.safetensors").items():
        assert torch.equal(tensor, expected[f"trainable/{name}"])


def test_another_number_of_ranks_reads_them(folder):
    shared_out(folder, 2, "load")


def test_one_process_reads_them_and_the_other_way_round(folder, script, tmp_path):
    session, model, optimizer = alone(script, seed=7)
    load_checkpoint(folder / "step-00000002", session, model, optimizer)
    expected, found = load_file(folder / "expected.safetensors"), script.whole(model, optimizer)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    saved = CheckpointWriter(tmp_path, session, model, optimizer, script.save_model, 2, print).save(2, {}, wait=True)
    assert (saved.path / "trainable.safetensors").is_file()
    save_file(expected, tmp_path / "expected.safetensors")
    shared_out(tmp_path, 4, "load")


@pytest.mark.parametrize("part", ["trainable", "optimizer"])
def test_torch_reads_them_as_its_own_distributed_checkpoint(folder, part):
    expected = {n: t for n, t in load_file(folder / "expected.safetensors").items() if n.startswith(part)}
    found = {name.partition("/")[2]: torch.zeros_like(tensor) for name, tensor in expected.items()}
    reader = dcp.HuggingFaceStorageReader(str(folder / "step-00000002" / part))
    dcp.load(found, storage_reader=reader, no_dist=True)
    assert all(torch.equal(found[name.partition("/")[2]], tensor) for name, tensor in expected.items())


def test_a_rank_that_cannot_write_and_an_error_that_ends_the_run_leave_whole_checkpoints(tmp_path):
    shared_out(tmp_path, 2, "fail")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    assert damage(tmp_path / "step-00000002") is None


def test_a_missing_share_is_refused(folder, tmp_path):
    inside = tmp_path / "trainable"
    inside.mkdir()
    for file in (folder / "step-00000002/trainable").glob("*[02].safetensors"):
        (inside / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match=r"shards of .* are missing"):
        StoredTensors(tmp_path, "trainable")
