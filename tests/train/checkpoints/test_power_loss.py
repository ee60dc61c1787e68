"""A power loss at any moment leaves the checkpoint before or the new one, whole; and the new one once it was reported."""

import json
import re
import shutil
from pathlib import Path

import pytest
from train.checkpoints.power_loss import crashes, recording
from train.checkpoints.test_checkpoint import SESSION, make, step, writer

from hub import compose
from hub.launch.preflight import prepare
from hub.launch.resume import open_run
from hub.result import read_metrics
from hub.train.checkpoints.checkpoint import load_checkpoint, newest_valid

NUM_SAVES = 3


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """What a new run and three saves do to the disk."""
    root = tmp_path_factory.mktemp("disk")
    options = ["algo=sft", "model=tiny", "data=tiny", "launch=inline", f"output_dir={root}/runs", "run_name=r"]
    resolved = prepare(compose(*options))
    model, optimizer = make()
    with recording(root) as recorder:
        run = open_run(resolved)
        saves = writer(run.checkpoints_path, model, optimizer, keep=1)
        for number in range(1, NUM_SAVES + 1):
            step(model, optimizer)
            run.log({"step": number})
            assert saves.save(number, {}, wait=True).path is not None
            recorder.mark(str(number))
    return recorder.events


def losses(events, folder: Path):
    """What a power loss would lose, at any moment. Gives one line for each."""
    known: dict[frozenset, str | None] = {}
    for mark, state in crashes(events):
        reported = int(mark or 0)
        key = frozenset((path, content) for path, content in state.items() if "checkpoints/" in path)
        if key not in known:
            known[key] = _newest(state, folder)
        found = known[key]
        allowed = {str(reported or None), str(reported + 1)}
        if str(found) not in allowed:
            yield f"after checkpoint {reported} was reported the newest whole one is {found}"
        if reported and b"run_name: r\n" not in state.get("runs/r/run.yaml", b""):
            yield f"after checkpoint {reported} was reported run.yaml is lost"
        if reported and f'{{"step": {reported}}}\n'.encode() not in state.get("runs/r/metrics.jsonl", b""):
            yield f"after checkpoint {reported} was reported the metrics before it are lost"


def _newest(state: dict[str, bytes], folder: Path) -> str | None:
    """The step that a resume would find, or what it says about damage."""
    shutil.rmtree(folder, ignore_errors=True)
    for path, content in state.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    said: list[str] = []
    found = newest_valid(folder / "runs/r/checkpoints", said.append)
    return said[0] if said else None if found is None else str(int(found.name[-8:]))


def test_a_power_loss_at_any_moment_leaves_a_whole_checkpoint(recorded, tmp_path):
    states = list(crashes(recorded))
    assert len(states) > 300
    assert list(losses(recorded, tmp_path / "after")) == []
    model, optimizer = make(seed=9)
    for found in {content for _, state in states for path, content in state.items() if path.endswith("state.json")}:
        json.loads(found or b"{}")
    _newest(states[-1][1], tmp_path / "after")
    folder = newest_valid(tmp_path / "after/runs/r/checkpoints", pytest.fail)
    assert load_checkpoint(folder, SESSION, model, optimizer)["step"] == NUM_SAVES
    assert [line["step"] for line in read_metrics(tmp_path / "after/runs/r/metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize(
    "left_out",
    [
        r"partial/trainable.safetensors",
        r"partial/(\.state.json.[\d-]+|state.json)",
        r"partial/model/config.json",
        r"partial/model",
        r"partial/\.manifest.json.[\d-]+",
        r"runs/r/checkpoints/\.step-\d+\.partial",
        r"runs/r/checkpoints",
        r"runs/r",
        r"runs",
        r"\.",
        r"runs/r/\.run.yaml.[\d-]+",
        r"runs/r/metrics.jsonl",
    ],
)
def test_leaving_out_what_brings_a_part_to_disk_is_noticed(recorded, tmp_path, left_out):
    part = re.compile(left_out.replace("partial/", r"runs/r/checkpoints/\.step-\d+\.partial/"))
    events = [event for event in recorded if not (event[0] == "fsync" and part.fullmatch(event[1]))]
    assert len(events) < len(recorded)
    assert next(losses(events, tmp_path / "after"), None)


def test_naming_a_folder_before_its_manifest_is_noticed(recorded, tmp_path):
    (place,) = [n for n, event in enumerate(recorded) if event[0] == "rename" and event[-1].endswith("step-00000002")]
    partial, target = recorded[place][1:]
    manifest = [event for event in recorded[:place] if f"{partial}/.manifest" in event[1]]
    assert [event[0] for event in manifest] == ["write", "fsync", "rename"]
    rest = [event for event in recorded[:place] if event not in manifest]
    moved = [tuple(part.replace(partial, target) if isinstance(part, str) else part for part in event) for event in manifest]
    events = [*rest, recorded[place], *moved, *recorded[place + 1 :]]
    assert next(losses(events, tmp_path / "after"), None)
