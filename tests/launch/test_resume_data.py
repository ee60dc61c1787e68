"""Resume in the middle of a pass, with several sources and with streams, on the same and another number of processes."""

import json
import random
import signal
from datetime import date, datetime, timedelta

import numpy as np
import pytest
import torch

from hub import ConfigError, HubError, Interrupted, compose
from hub.compose import runfile
from hub.launch.launcher import launch
from hub.result import Result
from hub.testing import write_chats
from hub.train import loop

pytestmark = pytest.mark.usefixtures("warm_python")

OPTIONS = ["algo=lora_sft", "model=tiny", "model.dtype=float32", "algo.learning_rate=1e-2", "algo.lora_dropout=0.1",
           "algo.effective_batch_size=10", "algo.max_steps=9", "data.max_seq_len=110", "algo.deterministic=true"]  # fmt: skip
STREAM = ["data.streaming=true", "data.shuffle_window=16"]


@pytest.fixture
def options(tmp_path, request):
    own, general = (
        write_chats(tmp_path / f"{name}.jsonl", num_rows=rows, seed=rows) for name, rows in (("own", 40), ("rest", 90))
    )
    data = {
        "mix": [f"data.mix=[{{path: {own}, weight: 0.7}}, {{path: {general}, weight: 0.3}}]"],
        "stream": [f"data.path={general}", *STREAM],
        "mix of streams": [f"data.mix=[{{path: {own}, weight: 0.7}}, {{path: {general}, weight: 0.3}}]", *STREAM],
    }
    return [*OPTIONS, *data[request.param]]


def run(folder, *options: str) -> Result:
    return launch(compose(f"output_dir={folder}", *options))


STOP = 5


def stopped(folder, monkeypatch, *options: str) -> None:
    """A run that a signal ended after its fifth step."""
    seen = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requested", lambda: signal.SIGTERM if next(seen) == STOP else None)
        with pytest.raises(Interrupted):
            run(folder, "launch=inline", "launch.reuse_measurements=false", *options)


def lines(result: Result, *names: str) -> list[tuple]:
    return [tuple(value for name, value in line.items() if name.startswith(names)) for line in result.metrics]


def record(result: Result) -> dict:
    """All that a run leaves, but for times, memory and its own path."""
    measured = ("tokens_per_second", "peak_memory_gb", "seconds", "timeline", "first_step_seconds")
    folder = result.run_path
    metrics = [{name: value for name, value in line.items() if name not in measured} for line in result.metrics]
    metrics[STOP - 1].pop("eval_loss", None)  # a run that is stopped is measured once more
    ended, plan = (json.loads((folder / name).read_text().replace(str(folder), "RUN")) for name in ("result.json", "plan.json"))
    whole = [json.loads((path / "manifest.json").read_text()) for path in sorted(folder.glob("checkpoints/step-*"))]
    files = {path.name: path.read_bytes() for path in (folder / "model").iterdir() if path.name != "README.md"}
    return {
        "metrics": metrics,
        "result": {name: value for name, value in ended.items() if name not in measured},
        "plan": {name: value for name, value in plan.items() if name not in measured},
        "checkpoints": whole,
        "model": files,
    }


ALL = ["algo.eval_every_steps=2", "algo.keep_best=true", "algo.early_stopping_patience=9", "algo.save_every_steps=3",
       "algo.keep_checkpoints=1", "algo.max_steps=14", "algo.lr_scheduler=reduce_lr_on_plateau", "algo.lr_patience=1",
       "algo.learning_rate=0.3"]  # fmt: skip


@pytest.mark.parametrize(
    "options", ["mix", *(pytest.param(name, marks=pytest.mark.slow) for name in ("stream", "mix of streams"))], indirect=True
)
def test_a_resumed_run_leaves_bit_for_bit_all_that_the_one_that_was_not_stopped_leaves(tmp_path, monkeypatch, options):
    options = [*options, *ALL, f"data.eval_path={write_chats(tmp_path / 'held_out.jsonl', num_rows=8, seed=3)}"]
    real = loop.counts_of

    def draw(*given) -> dict[str, float]:
        """What all random generators give goes into the line of the step."""
        return real(*given) | {"numpy": np.random.rand(), "python": random.random(), "torch": torch.rand(()).item()}

    monkeypatch.setattr(loop, "counts_of", draw)
    whole = record(run(tmp_path / "whole", "launch=inline", *options))
    stopped(tmp_path / "stopped", monkeypatch, *options)
    resumed = record(run(tmp_path / "stopped", "launch=inline", "resume=latest", *options))
    for name, values in whole.items():
        assert resumed[name] == values, name
    assert whole["plan"].keys() >= ({"stream"} if "data.streaming=true" in options else {"packed"})
    assert whole["checkpoints"]
    assert "data.streaming=true" in options or len({line["learning_rate"] for line in whole["metrics"]}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("options", ["mix of streams"], indirect=True)
def test_two_processes_see_the_samples_of_one_and_go_on_with_a_run_of_one(tmp_path, monkeypatch, options):
    options = [option for option in options if "dropout" not in option]
    whole = run(tmp_path / "whole", "launch=inline", *options)
    both = run(tmp_path / "both", "launch.nproc_per_node=2", *options)
    stopped(tmp_path / "stopped", monkeypatch, *options)
    resumed = run(tmp_path / "stopped", "launch.nproc_per_node=2", "resume=latest", *options)
    for other in (both, resumed):
        assert lines(whole, "step", "num_") == lines(other, "step", "num_")
        losses = [[value for (value,) in lines(result, "loss")] for result in (whole, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("options", ["stream"], indirect=True)
def test_a_changed_stream_is_refused(tmp_path, monkeypatch, options):
    stopped(tmp_path / "stopped", monkeypatch, *options)
    write_chats(tmp_path / "rest.jsonl", num_rows=91, seed=90)
    with pytest.raises(ConfigError, match="the training data"):
        run(tmp_path / "stopped", "launch=inline", "resume=latest", *options)


@pytest.mark.slow
@pytest.mark.parametrize("options", ["stream"], indirect=True)
def test_a_bad_row_far_in_a_stream_ends_the_run_with_its_line_and_a_checkpoint(tmp_path, monkeypatch, options):
    monkeypatch.setattr("hub.launch.preflight.STREAM_LOOK", 256)  # of the rows that are checked before
    write_chats(tmp_path / "rest.jsonl", num_rows=300)
    with (tmp_path / "rest.jsonl").open("a") as file:
        file.write("{oops\n")
    options = [*options, "algo.effective_batch_size=60", "algo.lora_dropout=0"]
    with pytest.raises(HubError, match=r"^[^\n]*rest\.jsonl:301: broken JSON[^\n]* resume=\S+ data\.on_bad_row=skip[^\n]*$"):
        run(tmp_path / "both", "launch.nproc_per_node=2", *options)
    ended = Result.read(tmp_path / "both" / "latest" / "result.json")
    assert (ended.status, ended.num_steps, ended.model_path.parent.name) == ("failed", 4, "step-00000004")
    resumed = run(tmp_path / "both", "launch=inline", "resume=latest", "data.on_bad_row=skip")
    whole = run(tmp_path / "whole", "launch=inline", *options, "data.on_bad_row=skip")
    assert lines(whole, "step", "num_") == lines(resumed, "step", "num_")
    assert resumed.train_loss == pytest.approx(whole.train_loss, rel=1e-5)


DATED = """{{ strftime_now('%d %b %Y') }}{% for message in messages %}{{ '<|im_start|>' + message.role + message.content }}
{{- '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"""


@pytest.mark.slow
@pytest.mark.parametrize("options", ["mix"], indirect=True)
def test_a_run_whose_template_writes_the_date_is_resumed_on_another_day(tmp_path, monkeypatch, options):
    (tmp_path / "dated.jinja").write_text(DATED)
    options = [*options, f"data.template={tmp_path}/dated.jinja", "data.max_seq_len=200"]
    whole = run(tmp_path / "whole", "launch=inline", *options)
    day = runfile.read(whole.run_path / "run.yaml").data.date
    assert day == date.today().isoformat()
    assert f"The chat template writes a date: {day} (data.date)." in (whole.run_path / "plan.json").read_text()
    stopped(tmp_path / "stopped", monkeypatch, *options)

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=1)

        @classmethod
        def today(cls):
            return cls.now()

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    monkeypatch.setattr("hub.launch.preflight.date", Tomorrow)
    resumed = run(tmp_path / "stopped", "launch=inline", "resume=latest", *options)
    assert lines(whole, "step", "loss", "num_") == lines(resumed, "step", "loss", "num_")
    with pytest.raises(ConfigError, match=r"data\.date=28 Nov is no date\. Allowed: auto, or a day as 2026-11-28"):
        run(tmp_path / "other", *options, "data.date=28 Nov")
