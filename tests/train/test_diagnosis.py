"""What the curves of a run say about it: nothing on healthy runs, and each fault with the options to change."""

import json
import random
from pathlib import Path

import pytest

from hub import compose
from hub.launch.launcher import launch
from hub.train.curves import read_curves
from hub.train.diagnosis import diagnose

STORED = json.loads((Path(__file__).parent / "diagnosed_runs.json").read_text(encoding="utf-8"))
"""Logged lines of real runs of tiny models, with the options that made each: name -> {options, lines, ...}."""


def of_stored(name: str) -> list:
    run = STORED[name]
    lines = [dict(zip(run["names"], values, strict=True)) for values in run["lines"]]
    lines = [{key: value for key, value in line.items() if value is not None} for line in lines]
    return diagnose(lines, run["algo"], run["num_steps"], run["batch_size"], run["num_units"])


def made(seed: int, shape, noise: float, num_steps: int, held_out=None, every: int = 20, epochs: float = 1.0, tail=False):
    """The lines of a made-up run: `shape` and `held_out` are functions of the part of the run that is done."""
    draw = random.Random(seed)
    lines = []
    for step in range(1, num_steps + 1):
        done = step / num_steps
        scatter = draw.lognormvariate(0, noise) - 1 if tail else draw.gauss(0, noise)
        line = {
            "step": step,
            "loss": max(0.0, shape(done - 1 / num_steps) * (1 + scatter)),
            "learning_rate": 1e-4 * (1.02 - done),
        }
        line |= {"grad_norm": draw.lognormvariate(0, 0.5), "epoch": epochs * done}
        if held_out is not None and (step % every == 0 or step == num_steps):
            line["eval_loss"] = held_out(done) * (1 + draw.gauss(0, 0.002))
        lines.append(line)
    if held_out is not None:
        lines[0]["eval_loss_before"] = held_out(0)
    return lines


WORDS = "the cat sat on a mat while seven birds sang quietly near an old stone bridge under grey winter skies"
ALGO = {"learning_rate": 1e-4, "num_epochs": 3.0, "max_steps": None, "effective_batch_size": 16, "max_grad_norm": 1.0,
        "weight_decay": 0.0, "lora_r": 16, "lora_alpha": 32.0, "lora_dropout": 0.0, "keep_best": False}  # fmt: skip


def said(lines, **more) -> list:
    return diagnose(lines, ALGO | more.pop("algo", {}), num_steps=len(lines), batch_size=more.pop("batch_size", 16), **more)


HEALTHY = {
    "a power law": (lambda x: 2.5 - 0.9 * x**0.2, 0.03, 200, lambda x: 2.6 - 0.9 * x**0.2),
    "an exponential": (lambda x: 1.2 + 1.5 * 2.7 ** (-6 * x), 0.05, 300, lambda x: 1.25 + 1.5 * 2.7 ** (-6 * x)),
    "a plateau after a quick fall": (lambda x: 1.3 + max(0, 0.4 - 8 * x), 0.1, 500, lambda x: 1.35 + max(0, 0.4 - 8 * x)),
    "no held-out set": (lambda x: 2.0 - 0.5 * x**0.25, 0.08, 150, None),
    "three passes, with steps down": (lambda x: 1.4 - 0.12 * int(3 * x - 1e-9) - 0.2 * x**0.2, 0.04, 300,
                                      lambda x: 1.4 - 0.2 * x**0.3),
    "held out of another kind": (lambda x: 0.9 - 0.2 * x**0.3, 0.05, 200, lambda x: 3.1 - 0.4 * x**0.3),
    "a task that is solved": (lambda x: 0.01 + 2 * 2.7 ** (-12 * x), 0.2, 200, lambda x: 0.02 + 2 * 2.7 ** (-12 * x)),
    "a slow power law": (lambda x: 2.0 - 0.5 * x**0.3, 0.01, 300, None),
    "short": (lambda x: 2.0 - 0.4 * x**0.4, 0.1, 12, lambda x: 2.0 - 0.4 * x**0.4),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_found_on_healthy_runs(name):
    shape, noise, num_steps, held_out = HEALTHY[name]
    kinds = ((False, 1.0, 16), (True, 1.0, 16), (True, 4.0, 1))  # the last: batches of one row
    for seed, epochs in [(seed, epochs) for seed in range(6) for epochs in ((3,) if "passes" in name else (1, 3))]:
        for (tail, scale, size), every in [(kind, every) for kind in kinds for every in (20, num_steps)]:
            lines = made(seed, shape, noise * scale, num_steps, held_out, every, epochs, tail)
            found = said(lines, batch_size=size)
            assert not found, (seed, epochs, tail, scale, every, [one.line() for one in found])


@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [
        ("overfit", "overfitting", ["algo.num_epochs=8 ", "algo.learning_rate=0.0015 ", "algo.weight_decay=0.1"]),
        ("memorized", "memorized", ["algo.num_epochs=10 ", "algo.learning_rate=0.0025 ", "algo.weight_decay=0.1"]),
        ("underfit", "underfitting", ["algo.learning_rate=6e-5 ", "algo.num_epochs=4 ", "algo.effective_batch_size=2 "]),
        ("nothing", "rate_too_low", ["algo.learning_rate=1e-7 ", "algo.num_epochs=2 "]),
        ("nothing_lora", "rate_too_low", ["algo.learning_rate=1e-6 ", "algo.num_epochs=2 "]),
        ("high2", "rate_too_high", ["algo.learning_rate=0.1 "]),
        ("high_lora", "rate_too_high", ["algo.learning_rate=0.1 "]),
        ("small_batch2", "batch_too_small", ["algo.effective_batch_size=8 ", "algo.learning_rate=0.0033 "]),
    ],
)
def test_real_runs_that_were_made_to_fail_are_recognized_with_what_to_type(name, kind, changes):
    first = of_stored(name)[0]
    assert first.kind == kind
    shown = [f"{change} " for change in map(str, first.changes)]
    assert len(shown) == len(changes)
    assert all(text.startswith(start) for text, start in zip(shown, changes, strict=True)), shown


@pytest.mark.parametrize("name", [name for name in STORED if name.startswith("healthy")])
def test_real_healthy_runs_are_left_alone(name):
    assert not of_stored(name)


FAULTS = {
    "overfitting": (lambda x: 2.0 - 0.7 * x, 0.03, lambda x: 2.0 - 1.0 * min(x, 0.4) + 0.5 * max(0, x - 0.4)),
    "memorized": (lambda x: 0.02 + 2.2 * 2.7 ** (-7 * x), 0.05, lambda x: 1.5 + 0.8 * 2.7 ** (-9 * x)),
    "underfitting": (lambda x: 3.0 - 0.4 * (1 - (1 - x) ** 2), 0.01, lambda x: 3.0 - 0.4 * (1 - (1 - x) ** 2)),
    "rate_too_low": (lambda x: 2.0 - 0.001 * x, 0.02, lambda x: 2.0 - 0.001 * x),
    "rate_too_high": (lambda x: 2.0 - 3 * x if x < 0.3 else 1.1 + 0.8 * (x > 0.5), 0.05, None),
    "a rate too high, with jumps": (lambda x: 1.5 - 0.3 * x + 1.5 * (int(100 * x) % 33 in (30, 31)), 0.03, None),
}


@pytest.mark.parametrize("name", FAULTS)
def test_made_up_faults_are_found_whatever_the_noise_draws(name):
    shape, noise, held_out = FAULTS[name]
    for seed in range(12):
        lines = made(seed, shape, noise, 200, held_out, epochs=1 if name == "underfitting" else 3)
        found = said(lines)
        expected = "rate_too_high" if "jumps" in name else name
        assert [one.kind for one in found] == [expected], [one.line() for one in found]
        # With the algorithm's options gone there is nothing to type, and the evidence stays.
        assert diagnose(lines, {}, 200)[0].evidence == found[0].evidence


def test_a_finding_names_the_options_of_the_algorithm_and_the_verbs_that_there_are():
    shape, noise, held_out = FAULTS["overfitting"]
    (found,) = said(made(0, shape, noise, 200, held_out, epochs=3), num_units=1000)
    assert [str(change) for change in found.changes] == [
        "algo.num_epochs=1.2 (the held-out loss was lowest after step 80 of 200)",
        "algo.keep_best=true (the model of the lowest held-out loss)",
        "algo.learning_rate=5e-5 (2 times lower than 0.0001)",
        "algo.lora_dropout=0.05",
        "algo.weight_decay=0.1",
    ]
    line = found.line(("scale",), "runs/a")
    assert "More rows than these 1,000 help most. For this model: python -m hub scale run=runs/a." in line
    assert "average" not in line
    assert "hub scale" not in found.line()
    (by_steps,) = said(made(0, shape, noise, 200, held_out, epochs=3), algo={"max_steps": 200})
    assert str(by_steps.changes[0]).startswith("algo.max_steps=80 ")
    assert json.loads(json.dumps(found.as_json()))["changes"][0]["option"] == "algo.num_epochs"


def test_of_a_run_that_has_not_ended_nobody_says_that_it_learned_too_little():
    shape, noise, held_out = FAULTS["underfitting"]
    lines = made(0, shape, noise, 200, held_out)
    assert [one.kind for one in diagnose(lines, ALGO, num_steps=200)] == ["underfitting"]
    assert not diagnose(lines, ALGO, num_steps=400)
    shape, noise, held_out = FAULTS["overfitting"]
    assert diagnose(made(0, shape, noise, 200, held_out, epochs=3), ALGO, num_steps=400)[0].kind == "overfitting"


def test_a_loss_that_is_the_same_in_every_step_is_a_model_that_one_step_has_destroyed():
    lines = made(0, lambda x: 6.2383 if x else 6.6, 1e-7, 30, lambda x: 6.2383 if x else 6.6)
    (found,) = said(lines)
    assert found.kind == "rate_too_high"
    assert "the training loss is 6.238 in every step" in found.evidence
    assert said(made(0, lambda x: 6.6, 1e-7, 30))[0].kind == "rate_too_low", "one row, and nothing is learned"


def test_growing_gradients_that_are_clipped_and_do_not_help_are_a_rate_too_high():
    lines = made(0, lambda x: 1.5 + 0.2 * x, 0.01, 200)
    for line in lines:
        line["grad_norm"] *= 0.3 * 40 ** (line["step"] / 200)
    (found,) = said(lines)
    assert "of them clipped" in found.evidence
    assert str(found.changes[0]).startswith("algo.learning_rate=3.3e-5 ")


def test_lines_that_a_resumed_run_has_logged_again_count_once_and_odd_lines_break_nothing():
    lines = made(0, HEALTHY["short"][0], 0.1, 12)
    curves = read_curves([*lines[:9], *lines[6:]])
    assert curves.steps.tolist() == [*range(1, 13)]
    draw = random.Random(0)
    odd = [None, "nan", "inf", -1.0, 0.0, 1e300, 2.0, "text", True]
    for length in (0, 1, 2, 3, 5, 30, 60):
        for _ in range(20):
            lines = [
                {"step": step} | {name: draw.choice(odd) for name in draw.sample(
                    ["loss", "eval_loss", "grad_norm", "learning_rate", "epoch", "skipped", "eval_loss_before"], 5)}
                for step in range(length)
            ]  # fmt: skip
            for found in said(lines):
                assert found.line()


def test_a_run_that_was_made_to_overfit_does_so_and_says_it(tmp_path, capsys):
    words = WORDS.split()
    draw = random.Random(1)
    with (tmp_path / "rows.jsonl").open("w") as file:
        for _ in range(48):
            user, answer = (" ".join(draw.choices(words, k=length)) for length in (6, 8))
            messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    options = [*STORED["overfit"]["options"], f"data.path={tmp_path}/rows.jsonl", "model=tiny", "launch=inline"]
    result = launch(compose(*options, "model.dtype=float32", f"output_dir={tmp_path}"))
    found = result.diagnosis
    assert [one["kind"] for one in found] == ["overfitting", "memorized"]
    assert found[0]["changes"][0]["option"] == "algo.num_epochs"
    assert json.loads((result.run_path / "plan.json").read_text())["diagnosis"] == found
    said_lines = [line for line in capsys.readouterr().out.splitlines() if "overfitting: " in line]
    assert [line.split(": ")[0] for line in said_lines] == ["step 80", "overfitting"]  # as soon as it shows, and at the end
    assert said_lines[-1].startswith(f"overfitting: {found[0]['evidence']}")


def test_chosen_answers_that_lose_their_probability_are_said_though_the_margin_grows():
    algo = {"learning_rate": 1e-5, "beta": None, "sft_weight": None, "num_epochs": 1.0}

    def of(fall):
        losses = made(1, lambda done: 0.69 - 0.4 * done, 0.05, 40)
        return diagnose([line | {"log_ratio_chosen": -fall * line["step"] / 40} for line in losses], algo, 40, 16, 640)

    (found,) = [one for one in of(0.8) if one.kind == "chosen_collapsed"]
    assert "a token of a chosen answer has 46% of its probability under the reference" in found.evidence
    assert [str(change).split(" ")[0] for change in found.changes][:2] == ["algo.sft_weight=1", "algo.beta=0.3"]
    assert not [one for one in of(0.1) if one.kind == "chosen_collapsed"]
