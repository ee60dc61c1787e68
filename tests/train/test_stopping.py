"""Early stopping, and the best model as the result of a run."""

import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from hub import ConfigError, compose
from hub.errors import Interrupted
from hub.launch.launcher import launch
from hub.result import Result
from hub.train import loop
from hub.train.checkpoints import best_model

# Ten samples and a high rate: the held-out loss falls first and rises later.
OPTIONS = ["algo=sft", "model=tiny", "data=tiny", "data.eval_fraction=0.92", "launch=inline", "model.dtype=float32",
           "algo.effective_batch_size=4", "algo.learning_rate=5e-2", "algo.lr_scheduler=constant", "algo.max_steps=12",
           "algo.eval_every_steps=2", "run_name=it"]  # fmt: skip


def train(folder, *more: str) -> Result:
    return launch(compose(*OPTIONS, f"output_dir={folder}", *more))


def by_script(monkeypatch, values: dict[int, float]) -> None:
    """Let the held-out loss after a step be what a script says, and before training 5."""
    monkeypatch.setattr(loop._Fit, "_measure", lambda self: values.get(self.done, 5.0))


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def is_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_result_is_the_best_model_whole_and_with_the_held_out_loss_that_was_measured(tmp_path):
    result = train(tmp_path, "algo.keep_best=true", "algo.keep_checkpoints=1", "algo.max_steps=4")
    measured = {line["step"]: line["eval_loss"] for line in result.metrics if "eval_loss" in line}
    best = min(measured, key=measured.get)
    assert best < 4, "this run does not overfit"
    assert (result.best_step, result.eval_loss, result.num_steps) == (best, measured[best], 4)
    again = launch(compose(*OPTIONS[2:-1], "algo=sft", f"model.path={result.model_path}", "algo.learning_rate=1e-9",
                           f"output_dir={tmp_path / 'again'}"))  # fmt: skip
    assert again.eval_loss_before == pytest.approx(measured[best], abs=1e-5)
    names = {file.name for file in result.model_path.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_nan_is_never_the_best(tmp_path, monkeypatch):
    by_script(monkeypatch, {2: float("nan"), 4: 3.0, 6: float("nan"), 8: 2.0, 10: float("nan"), 12: float("nan")})
    result = train(tmp_path, "algo.keep_best=true", "algo.keep_checkpoints=1", "algo.save_every_steps=2")
    assert (result.best_step, result.eval_loss) == (8, 2.0)
    assert is_same(weights(result.model_path), weights(result.run_path / "checkpoints/step-00000008/model"))


def test_patience_ends_training_and_the_run_is_completed(tmp_path, monkeypatch, capsys):
    by_script(monkeypatch, {2: 4.0, 4: 3.0, 6: 3.2, 8: 2.95, 10: 1.0})
    patient = ["algo.early_stopping_patience=2", "algo.early_stopping_min_delta=0.1"]
    result = train(tmp_path, *patient)
    assert (result.status, result.num_steps, result.ended_early, result.best_step) == ("completed", 8, True, None)
    assert "training ends after step 8 of 12: 2 evaluations in a row were not better" in capsys.readouterr().out
    kept = train(tmp_path / "kept", "algo.keep_best=true", *patient)
    assert (kept.num_steps, kept.best_step, kept.eval_loss) == (8, 8, 2.95)
    assert is_same(weights(kept.model_path), weights(result.model_path))


@pytest.mark.parametrize("stopped_at", [3, pytest.param(4, marks=pytest.mark.slow), 7])
def test_a_resumed_run_ends_and_keeps_as_the_undisturbed_one(tmp_path, monkeypatch, stopped_at):
    by_script(monkeypatch, {2: 4.0, 3: 0.1, 4: 3.0, 6: 3.5, 7: 0.1, 8: 3.4, 10: 3.3})
    options = ["algo.keep_best=true", "algo.early_stopping_patience=3", "algo.keep_checkpoints=1", "algo.save_every_steps=2"]
    expected = train(tmp_path / "undisturbed", *options)
    assert (expected.num_steps, expected.best_step) == (10, 4)
    steps = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requested", lambda: signal.SIGTERM if next(steps) == stopped_at else None)
        with pytest.raises(Interrupted):
            train(tmp_path, *options)
    found = launch(compose(f"resume={tmp_path / 'it'}"))
    assert (found.num_steps, found.best_step, found.eval_loss) == (10, 4, 3.0)
    assert is_same(weights(found.model_path), weights(expected.model_path))


def test_a_best_checkpoint_that_is_gone_is_said_and_the_last_model_is_the_result(tmp_path, monkeypatch, capsys):
    by_script(monkeypatch, {2: 1.0})
    real, gone = best_model.take_model_of, []

    def after_removal(step, run):
        if not gone:
            gone.append(step)
            shutil.rmtree(run.checkpoints_path / f"step-{step:08d}")
        return real(step, run)

    monkeypatch.setattr(best_model, "take_model_of", after_removal)
    result = train(tmp_path, "algo.keep_best=true")
    assert "the checkpoint of step 2 is gone, so the result is the last model" in capsys.readouterr().out
    assert (result.status, result.best_step, result.eval_loss) == ("completed", None, 5.0)
    assert (result.model_path / "model.safetensors").is_file()
    # The second best is the result, if a checkpoint has it and it is better than the last one.
    gone.clear()
    by_script(monkeypatch, {2: 3.0, 4: 1.0})
    result = train(tmp_path / "second", "algo.keep_best=true", "algo.keep_checkpoints=2", "algo.max_steps=6")
    assert "the checkpoint of step 4 is gone. The best one that is left is of step 2" in capsys.readouterr().out
    assert (result.best_step, result.eval_loss) == (2, 3.0)
    assert is_same(weights(result.model_path), weights(result.run_path / "checkpoints/step-00000002/model"))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["algo.keep_best=true", "data.eval_fraction=0", "algo.eval_every_steps=null"],
            "algo.keep_best=true needs an evaluation set",
        ),
        (
            ["algo.early_stopping_patience=3", "algo.eval_every_steps=null"],
            "needs evaluations during training. Type algo.eval_every",
        ),
        (["algo.early_stopping_min_delta=0.1"], "needs early stopping. Type algo.early_stopping_patience=3"),
        (["algo.keep_best=true", "algo.best_by=f1"], "needs measurements during training. Type evaluate.every_steps=50"),
        (["algo.best_by=f1"], "algo.best_by=f1 has no effect"),
    ],
)
def test_what_can_not_be_watched_is_refused(tmp_path, options, line):
    with pytest.raises(ConfigError, match=line):
        train(tmp_path, *options)
