"""`hub export` when something goes wrong: a full disk, a killed call, a base that has changed, a plugin that errs."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from zoo.zoo import zoo_model

import hub as hub_api
from hub import ModelError
from hub.config.export import ExportConfig
from hub.models import merging
from hub.models.fingerprint import fingerprint
from hub.plugins.offers import Exporter
from hub.plugins.registry import registry
from hub.tasks.export import export, gate, places, room
from hub.tasks.export.exporters import in_order
from hub.tasks.export.job import Written
from hub.tasks.export.shared_model import SharedModel

WEIGHTS = "model.safetensors"
SMALL = ("to=merged", "num_check_rows=2", "num_check_tokens=64")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a base, a run that trained an adapter on it, and one that trained it whole."""
    folder = tmp_path_factory.mktemp("mishaps")
    base = shutil.copytree(zoo_model("llama"), folder / "base")
    common = {
        "model": base,
        "data": "tiny",
        "dtype": "float32",
        "mode": "inline",
        "effective_batch_size": 8,
        "eval_fraction": 0.2,
        "max_steps": 1,
        "save_every_steps": 1,
        "output_dir": folder,
    }
    hub_api.lora_sft(**common, run_name="adapter")
    hub_api.sft(**common, run_name="whole")
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """The run with an adapter, in a folder of its own."""
    return shutil.copytree(trained / "adapter", tmp_path / "my rün 1")


@pytest.fixture
def base(trained):
    """The base, as it was again after the test."""
    kept = shutil.copytree(trained / "base", trained / "kept")
    yield trained / "base"
    shutil.rmtree(trained / "base", ignore_errors=True)
    kept.rename(trained / "base")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def changed(folder):
    weights = load_file(folder / WEIGHTS)
    os.chmod(folder / WEIGHTS, 0o644)
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.slow
def test_a_base_that_has_changed_is_noticed(trained, run, base, hub):
    changed(base)
    said = hub("export", f"run={run}", *SMALL)
    assert said.code == 2
    assert said.problems == [
        f"my rün 1: the base {base} has changed since training: its weights are others. Put it back as it was. To export the "
        "adapter on the new one, type --force"
    ]
    assert hub("export", f"run={run}", *SMALL, "--force").code == 0
    assert "has changed since training" in json.loads((run / "exports/export.json").read_text())["notes"][0]
    said = hub("generate", f"run={run}", "prompt=a", "generate.max_new_tokens=1")
    assert said.code == 0
    assert "has changed since training" in said.err
    assert hub("export", f"run={trained / 'whole'}", *SMALL, "out=whole").code == 0, "a whole model has no need of its base"


def test_a_fingerprint_is_of_what_a_model_computes_and_not_of_its_files(trained, tmp_path):
    folder = shutil.copytree(trained / "base", tmp_path / "model")
    before = fingerprint(folder)
    weights = load_file(folder / WEIGHTS)
    first = dict(list(weights.items())[:3])
    (folder / WEIGHTS).unlink()
    save_file(first, folder / "a.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if name not in first}, folder / "b.safetensors")
    index = {"weight_map": {name: "a.safetensors" if name in first else "b.safetensors" for name in weights}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "9"}))
    assert fingerprint(folder) == before
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    now = fingerprint(folder)
    assert (now["weights"] == before["weights"], now["config"] == before["config"]) == (True, False)
    (folder / "a.safetensors").unlink()
    assert fingerprint(folder) == {}


def test_a_resumed_run_has_the_base_it_began_with(trained, run, base, hub):
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"status": "interrupted"}))
    changed(base)
    said = hub(f"resume={run}")
    assert said.code == 2
    assert "has changed since training: its weights are others. Put it back, or type resume_with_changes=true" in said.err


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_there_before(run, hub, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert hub("export", f"run={run}", *SMALL).code == 0
    before = {path: path.stat().st_ino for path in (run / "exports").rglob("*")}
    for module, name in ((gate, "reserve"), (merging, "write_shards"), (merging, "write_beside"), (export, "write_cards")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, full)
            said = hub("export", f"run={run}", *SMALL)
        assert said.code == 2
        assert len(said.problems) == 1
        assert "free" in said.problems[0]
        assert ".partial" not in said.err
        assert {path: path.stat().st_ino for path in (run / "exports").rglob("*")} == before, name


@pytest.mark.parametrize(
    ("options", "needed"),
    [({"to": ["ollama"]}, "6.0 MiB"), ({"to": ["merged"], "dtype": "float32"}, "3.0 MiB"), ({"to": ["hub"]}, None)],
)
def test_room_for_all_that_is_on_the_disk_at_once_is_asked_first(tmp_path, monkeypatch, options, needed):
    (tmp_path / WEIGHTS).write_bytes(bytes(3 * 2**20))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2**21))
    wanted = ExportConfig(**options)
    with pytest.raises(hub_api.ConfigError, match=f"needs {needed}, and 2.0 MiB are free") if needed else nullcontext():
        room.check_room(wanted, {one.name for one in in_order(wanted.to)}, tmp_path, tmp_path)


def test_the_merged_model_is_made_once_and_let_go(tmp_path):
    made = []

    def make(folder):
        assert not folder.exists()
        folder.mkdir()
        for name in (WEIGHTS, "config.json"):
            (folder / name).touch()
        made.append(folder)

    model = SharedModel(tmp_path / "model", make)
    assert model.whole() == model.whole() == model.settings()
    model.let_go()
    assert (names(model.settings()), len(made)) == (["config.json"], 1)
    assert (names(model.whole()), len(made)) == (["config.json", WEIGHTS], 2)


def test_a_child_on_a_leash_ends_with_its_parent(tmp_path):
    (tmp_path / "child.py").write_text("import time\ntime.sleep(300)")
    (tmp_path / "parent.py").write_text(
        "import os, subprocess, sys\nfrom hub.system import leash\nwith leash.leash() as stdin:\n"
        f"    subprocess.Popen([sys.executable, leash.__file__, {str(tmp_path / 'child.py')!r}], stdin=stdin)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    # It returns when nobody has its output open any more.
    said = subprocess.run([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, timeout=120, check=False)
    assert said.returncode == -signal.SIGKILL


def test_space_for_the_check_is_taken_before_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2**20))
    with pytest.raises(hub_api.ConfigError, match=r"the check \(1024 tokens with 512 .* needs 2\.0 MiB, and 1\.0 MiB are free"):
        gate._on_disk(tmp_path / "kept", (1024, 512))
    monkeypatch.undo()
    gate._on_disk(tmp_path / "kept", (64, 512))
    assert (tmp_path / "kept").stat().st_blocks * 512 >= 4 * 64 * 512, "a hole would end the process when the disk is full"


def test_what_a_killed_call_left_is_removed_and_what_another_writes_is_not(tmp_path):
    with places.aside_of(tmp_path) as others:
        left = tmp_path / ".partial-left"
        left.mkdir()
        (tmp_path / ".merged.before").mkdir()  # killed while it replaced an export
        (tmp_path / ".merged.before/config.json").touch()
        with places.aside_of(tmp_path) as own:
            assert others.is_dir()
            assert own.is_dir()
            assert not left.exists()
            assert names(tmp_path / "merged") == ["config.json"]
            with places.in_turn(tmp_path):
                (own / "made").mkdir()
                places.put_in_place(own / "made", tmp_path / "merged")
    assert names(tmp_path) == ["merged"]
    assert not names(tmp_path / "merged")


def test_a_signal_leaves_nothing_half_written(run, hub, monkeypatch):
    number = signal.SIGTERM
    monkeypatch.setattr(merging, "write_beside", lambda *args: os.kill(os.getpid(), number))
    said = hub("export", f"run={run}", *SMALL)
    assert said.code == 128 + number
    assert said.problems == [f"stopped: exports that were finished before are in {run / 'exports'}"]
    assert not names(run / "exports")


def raises(job):
    raise RuntimeError("no\nway")


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (raises, "the plugin's exporter failed (RuntimeError: no)"),
        (lambda job: None, "the exporter returned None, and not a list"),
        (lambda job: ["file"], "the exporter returned str in its list"),
        (lambda job: [Written(kind="x", path=job.out / "x")], "the exporter returned x, which it has not written"),
        (
            lambda job: [Written(kind="x", path=Path(__file__))],
            f"the exporter returned {__file__}, which is not in the folder of its job",
        ),
    ],
)
def test_a_plugin_that_errs_is_named_and_exports_before_it_stay(run, hub, monkeypatch, function, line):
    mine = Exporter(name="mine", function=function, summary="mine", after=("merged",), writes_model=False)
    monkeypatch.setitem(registry().exporters, "mine", mine)
    (run / "exports/merged").mkdir(parents=True)
    said = hub("export", f"run={run}", "to=mine")
    assert said.code == 2
    assert f"export.to=mine: {line}" in said.err
    assert len(said.problems) == 1
    assert names(run / "exports") == ["merged"]


def test_a_folder_that_no_export_wrote_is_not_replaced(run, hub, tmp_path):
    (tmp_path / "own/merged").mkdir(parents=True)
    (tmp_path / "own/merged/thesis.txt").touch()
    said = hub("export", f"run={run}", *SMALL, "out=own")
    assert said.problems == [
        f"out={tmp_path / 'own'}: {tmp_path / 'own/merged'} exists, and no export wrote it. Type out=FOLDER, a new one"
    ]
    (run / "plan.json").write_text("{")  # such as a run of somebody else, which can't be written
    said = hub("export", f"run={run}", *SMALL, "out=new")
    assert said.code == 0, said.err
    assert "plan.json does not tell of it" in said.out
    export._refuse_to_replace(tmp_path / "new", ["merged"])  # this one an export wrote


def test_a_model_of_no_numbers_is_told_apart_from_a_bad_export(trained, tmp_path, hub):
    run = shutil.copytree(trained / "whole", tmp_path / "run")
    weights = load_file(run / "model" / WEIGHTS)
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, run / "model" / WEIGHTS, {"format": "pt"})
    with pytest.raises(ModelError, match="the model that was trained gives numbers that are not finite"):
        hub_api.export(run=run, to=["merged"], num_check_rows=1)
