"""`hub scale` and `hub average`: what they write has the losses that they say."""

import json
import shutil

import pytest

import hub
from hub import ConfigError

OPTIONS = {"model": "tiny", "data": "tiny", "dtype": "float32", "mode": "inline", "effective_batch_size": 8, "max_steps": 6}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two adapters, one of a rate that is too low, and a whole model."""
    folder = tmp_path_factory.mktemp("runs")
    common = OPTIONS | {"output_dir": folder}
    hub.lora_sft(**common, run_name="good", learning_rate=1e-2, save_every_steps=2, keep_checkpoints=3)
    hub.lora_sft(**common, run_name="cold", learning_rate=1e-3, seed=3, lora_r=4)
    hub.sft(**common, run_name="whole", learning_rate=5e-3)
    shutil.copytree(folder / "whole/model", folder / "copy")
    return folder


def held_out(folder, run) -> float:
    """The held-out loss of a model in a folder, as `evaluate` has it, on the run's evaluation set."""
    copy = folder.with_name(f"{folder.name}-run")
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("model", "checkpoints", folder.name))
    shutil.copytree(folder, copy / "model")
    return hub.evaluate(run=copy, against="none", dtype="float32").value("loss", "held-out")


def test_a_strength_that_is_written_has_the_loss_that_was_measured(runs):
    found = hub.scale(run=runs / "cold", retention="auto", limit=8)
    assert [point["alpha"] for point in found.curve] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]
    base = found.curve[0]["losses"]
    for point in found.curve:
        losses = point["losses"]
        assert point["cost"] == pytest.approx(losses["held-out"] + max(0, losses["retention"] - base["retention"]))
    best = min(found.curve, key=lambda point: point["cost"])
    assert found.alpha == best["alpha"] == 1.5
    assert found.gain["value"] == pytest.approx(best["losses"]["held-out"] - found.curve[4]["losses"]["held-out"], abs=1e-6)
    assert found.gain["high"] < 0, "what was trained too little is better when it is scaled up"
    whole = hub.scale(run=runs / "cold", alpha=found.alpha)
    assert held_out(whole.path, runs / "cold") == pytest.approx(whole.curve[-1]["losses"]["held-out"], abs=1e-5)
    assert json.loads((runs / "cold/plan.json").read_text())["scaled"]["alpha"] == found.alpha
    assert f"{found.alpha:g} *" in repr(found)


@pytest.mark.slow
def test_whole_modules_are_scaled_with_the_products(runs):
    options = OPTIONS | {"output_dir": runs, "learning_rate": 3e-2, "max_steps": 3, "modules_to_save": "norm"}
    hub.lora_sft(run_name="modules", add_tokens="<tool>", **options)
    found = hub.scale(run=runs / "modules", alpha=0.5)
    base, halved, trained = (point["losses"]["held-out"] for point in found.curve)
    assert len({round(loss, 3) for loss in (base, halved, trained)}) == 3
    assert held_out(found.path, runs / "modules") == pytest.approx(halved, abs=1e-5)
    with pytest.raises(ConfigError, match=r"To do the same type hub scale model.path=.*modules/model alpha=0.5"):
        hub.average(run=runs / "modules")


@pytest.mark.slow
def test_a_run_and_its_base_are_averaged_half_and_half(runs):
    halved = hub.scale(run=runs / "good", alpha=0.5)
    found = hub.average(run=runs / "good")
    assert [(model["name"], model["weight"]) for model in found.models] == [("base", 0.5), ("good", 0.5), ("average", None)]
    assert found.models[-1]["losses"] == pytest.approx(halved.curve[1]["losses"], abs=1e-5)
    whole = hub.average(run=runs / "whole", base=0.25)
    assert [round(model["weight"] or 0, 3) for model in whole.models] == [0.25, 0.75, 0]
    losses = [model["losses"]["held-out"] for model in whole.models]
    assert held_out(whole.path, runs / "whole") == pytest.approx(losses[2], abs=1e-5)
    assert losses[1] < losses[2] < losses[0]


@pytest.mark.slow
def test_a_greedy_soup_leaves_out_what_does_not_help(runs):
    found = hub.average(runs=[str(runs / "cold"), str(runs / "good")], greedy=True)
    assert [model["weight"] for model in found.models] == [0, 1, None]
    assert found.models[-1]["losses"] == pytest.approx(found.models[1]["losses"], abs=1e-6)
    assert "the same held-out loss as that of the best one, good" in repr(found)
    for name in ("cold", "good"):
        assert json.loads((runs / name / "plan.json").read_text())["averaged"] == json.loads(json.dumps(found.as_json()))


def test_the_last_models_of_a_run_are_its_result_and_its_checkpoints(runs):
    found = hub.average(run=runs / "good", last=3, out=runs / "last")
    assert [model["name"] for model in found.models[:-1]] == ["good", "good/step-00000004", "good/step-00000002"]
    assert found.path == runs / "last"
    page = hub.report(run=runs / "good", out=runs / "good.html").path.read_text()
    section = page[page.index('id="afterwards"') : page.index('id="curves"')]
    for text in ("good/step-00000002", f"{found.models[1]['losses']['held-out']:.4f}", f"Written to <code>{runs}/last"):
        assert text in section


@pytest.mark.slow
def test_folders_are_averaged_too_and_none_is_lost(runs):
    found = hub.average(runs=[runs / "copy", runs / "whole"], weights=[2, 1], out=runs / "mixed")
    assert [model["weight"] for model in found.models[:2]] == pytest.approx([2 / 3, 1 / 3])
    assert found.models[2]["losses"] == pytest.approx(found.models[0]["losses"], abs=1e-6)
    half = hub.scale(run=runs / "good", alpha=0.5).path
    with pytest.raises(ConfigError, match="scaled is one of the models"):
        hub.scale(model=half, alpha=2)
    again = hub.scale(model=half, alpha=2, out=runs / "again")
    assert json.loads((again.path / "adapter_config.json").read_text())["lora_alpha"] == 32
    values = json.loads((half / "tokenizer.json").read_text())
    values["added_tokens"][0]["content"] = "<other>"
    (half / "tokenizer.json").write_text(json.dumps(values))
    other = shutil.copytree(half, runs / "other/good")
    with pytest.raises(ConfigError, match=f"^other/good and {runs.name}/good have different tokens"):
        hub.average(runs=[other, runs / "good"])


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda runs: hub.scale(run=runs / "whole"), "whole is no adapter, so it has no strength"),
        (lambda runs: hub.scale(run=runs / "good", alpha="much"), "Allowed: a number at least 0 or auto"),
        (lambda runs: hub.scale(run=runs / "good", metrics=["f1"]), "is measured by hub evaluate"),
        (lambda runs: hub.average(), "nothing is named"),
        (lambda runs: hub.average(runs=[str(runs / "good"), str(runs / "whole")]), r"adapters \(good\) and whole models"),
        (lambda runs: hub.average(run=runs / "good", last=9), "has its result and 2 other checkpoints. Type last=3"),
        (lambda runs: hub.average(run=runs / "whole", rank=2), "is for adapters, and whole is a whole model"),
        (lambda runs: hub.average(run=runs / "good", out=runs), "it exists, and would be replaced"),
        (lambda runs: hub.average(run=runs / "good", out=runs / "good/model"), "it exists, and would be replaced"),
        (lambda runs: hub.average(run=runs / "good/checkpoints/step-00000002", last=2), "good/step-00000002 is one of them"),
        (lambda runs: hub.average(runs=[runs / "good", runs / "cold"], max_seq_len=9), r"data\.max_seq_len=9 is for data that"),
        (lambda runs: hub.average(runs=[runs / "no", runs / "cold"]), "^runs=.*no: there is no such folder"),
        (lambda runs: hub.average(runs=[runs / "copy"]), "the model that training began with is not known"),
        (lambda runs: hub.average(run=runs / "good", greedy=True), "chooses among several models"),
    ],
)
def test_what_can_not_be_scaled_or_averaged_is_one_line(runs, call, line):
    with pytest.raises(ConfigError, match=line):
        call(runs)
