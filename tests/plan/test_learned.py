"""What runs measured is found by the next plan of the same kind, whatever happens to the file."""

import json
import threading
from dataclasses import replace

import pytest

import hub.plan.learned as learned
from hub.compose.compose import compose
from hub.config.schema import RunConfig
from hub.launch.launcher import launch
from hub.launch.planning import plan
from hub.plan.learned import Measured, key_of, learned_file, recall, remember, steady_speed
from hub.tasks.train.prediction import Prediction

SHAPE = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "_name_or_path": "/home/somebody/model", "bos": 1}
RUN = Measured(
    peak_bytes=10 * 2**30, tokens_per_second=1000.0, first_step_seconds=30.0, longest=500, max_tokens=4096, num_checkpointed=0
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HUB_CACHE", str(tmp_path))
    return tmp_path


def key(length=500, gpu="h100", world=1, algorithm="a", **options):
    cfg = RunConfig()
    cfg.model.path, cfg.data.path, cfg.output_dir = "/home/somebody/model", "/home/somebody/chats.jsonl", "/home/somebody"
    for name, value in options.items():
        section, _, option = name.partition("__")
        setattr(getattr(cfg, section), option, value)
    return key_of(algorithm, cfg, SHAPE, gpu, world, length)


def test_the_next_plan_of_the_same_kind_finds_it():
    assert recall(key()).tokens_per_second is None
    for speed in (1000.0, 1200.0, 5000.0):
        assert remember(key(), replace(RUN, tokens_per_second=speed, predicted_peak_bytes=8 * 2**30))
    found = recall(key(length=400))
    assert found.tokens_per_second == 1200, "the median: one odd run decides nothing"
    assert found.first_step_seconds == [30.0] * 3
    assert found.peak_factor() == pytest.approx(1.25)
    assert found.because == "measured by 3 earlier runs of this kind on this machine"


def test_the_speed_of_a_run_is_that_of_its_steady_steps():
    steps = [{"step": step, "tokens_per_second": speed} for step, speed in enumerate((1.0, 50.0, 90.0, 100.0, 110.0), 1)]
    assert steady_speed(steps) == 100
    assert steady_speed(steps[:2]) is None
    assert remember(key(), replace(RUN, tokens_per_second=0.0))
    assert recall(key()).tokens_per_second is None
    assert recall(key()).first_step_seconds == [30.0], "a short run has a first step"


@pytest.mark.slow
def test_a_plan_begins_from_a_run_of_the_same_kind(tmp_path, monkeypatch):
    """A run on a CPU that takes itself for one on a GPU: both must come to the same kind, each from its own config."""
    monkeypatch.setattr(Prediction, "_gpu", lambda self: "h100")
    monkeypatch.setattr(Prediction, "_start", lambda self: None)
    words = ["algo=lora_sft", "model=tiny", "data=tiny", "algo.max_steps=5", "algo.log_every_steps=1"]
    result = launch(compose(*words, "launch.mode=inline", f"output_dir={tmp_path}"))
    (line,) = learned_file().read_text().splitlines()
    held = json.loads(line)
    assert held["tokens_per_second"] == steady_speed(result.metrics)
    assert held["first_step_seconds"] > 0
    line = json.dumps(held | {"predicted_peak_bytes": held["peak_bytes"] // 2})
    learned_file().write_text(line + "\n")
    found = plan([*words, "plan.gpu=h100"])
    assert found.as_json()["learned_from"] == 1
    assert found.chosen.speed.middle == held["tokens_per_second"]
    assert found.chosen.first_step[1] == held["first_step_seconds"]
    assert found.chosen.cost.first_step == found.chosen.first_step
    assert "measured by 1 earlier run of this kind" in repr(found)
    parts = [part for part in found.chosen.memory.parts if part.in_torch]
    assert parts[-1].num_bytes == pytest.approx(sum(part.num_bytes for part in parts[:-1])), "twice the predicted peak"


@pytest.mark.parametrize(
    "other",
    [
        {"length": 5000},
        {"gpu": "h200"},
        {"world": 2},
        {"algorithm": "b"},
        {"algo__gradient_checkpointing": "all"},
        {"algo__optimizer": "sgd"},
        {"launch__strategy": "fsdp"},
        {"model__quantization": "bnb-4bit"},
    ],
)
def test_another_kind_does_not(other):
    remember(key(), RUN)
    assert not recall(key(**other)).runs


def test_options_that_decide_neither_memory_nor_speed_are_of_the_same_kind():
    remember(key(), RUN)
    assert recall(key(algo__learning_rate=1.0, algo__seed=7, algo__log_every_steps=3)).runs


def test_the_file_names_no_person_and_no_place():
    remember(key(), RUN)
    text = learned_file().read_text()
    assert "somebody" not in text
    assert "/" not in text
    assert "llama" in text


def test_another_version_of_a_library_is_another_kind(monkeypatch):
    remember(key(), RUN)
    monkeypatch.setattr(learned, "version", lambda name: "0.0")
    assert not recall(key()).runs


def test_damaged_lines_are_ignored_and_said():
    remember(key(), RUN)
    with learned_file().open("ab") as file:
        file.write(
            b'{"kind": 3}\n\xff\xfe{\n[]\n' + json.dumps({"kind": "x", "peak_bytes": float("nan")}).encode() + b"\nhalf a li"
        )
    assert remember(key(), RUN), "the next run begins a new line"
    found = recall(key())
    assert len(found.runs) == 2
    assert "5 damaged lines are ignored" in found.lines[0]


def test_numbers_that_are_none_are_not_kept():
    assert not remember(key(), replace(RUN, tokens_per_second=float("nan")))
    assert not learned_file().exists()


def test_a_cache_that_can_not_be_written_ends_no_run(cache, monkeypatch):
    (cache / "learned").write_text("a file in the way")
    assert not remember(key(), RUN)
    assert recall(key()).lines


def test_the_file_stays_small(monkeypatch):
    monkeypatch.setattr(learned, "MAX_LINES", 20)
    for number in range(60):
        remember(key(), replace(RUN, peak_bytes=number + 1))
    lines = learned_file().read_text().splitlines()
    assert len(lines) <= 20
    assert json.loads(lines[-1])["peak_bytes"] == 60, "the newest stay"
    assert [path.name for path in learned_file().parent.iterdir() if path.name.startswith(".runs")] == []


def _write(count):
    for number in range(count):
        assert remember(key(), replace(RUN, peak_bytes=number + 1))


def test_writers_take_turns_and_lose_nothing(monkeypatch):
    remember(key(), RUN)
    writers = [threading.Thread(target=_write, args=(20,)) for _ in range(2)]
    with learned._locked(learned_file()):
        for writer in writers:
            writer.start()
        writers[0].join(0.3)
        assert len(learned_file().read_text().splitlines()) == 1, "they wait"
    for writer in writers:
        writer.join()
    assert len(recall(key()).runs) == learned.NEWEST
    assert len(learned_file().read_text().splitlines()) == 41
