"""The scripts and notebooks of examples/ run as described, from a folder outside the repository."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.usefixtures("warm_python")

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = [EXAMPLES / "notebooks" / f"{name}.ipynb" for name in ("lora_sft", "osft")]
"""Those that run in Jupyter's kernel. tests/snippets runs the code of the others."""


def run_script(name: str, *options: str, folder: Path) -> str:
    """Run a script and return what it prints."""
    command = [sys.executable, EXAMPLES / "scripts" / name, *options]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize(("name", "file"), [("sft", "config.json"), ("lora_sft", "adapter_config.json")])
def test_the_script_of_an_algorithm_leaves_a_model(name, file, tmp_path):
    printed = run_script(f"{name}.py", "--model", "tiny", "--quick", folder=tmp_path)
    result = json.loads((tmp_path / "runs" / "latest" / "result.json").read_text())
    assert (result["status"], result["algo"], result["num_steps"]) == ("completed", name, 3)
    assert (Path(result["model_path"]) / file).is_file()
    assert f"from_pretrained('{result['model_path']}')" in printed


def test_the_demo_answers_before_and_after_and_says_what_to_type_next(tmp_path):
    printed = run_script("demo.py", "--model", "tiny", "--max-steps", "3", folder=tmp_path)
    result = json.loads((tmp_path / "runs" / "latest" / "result.json").read_text())
    assert result["effective_batch_size"] == 16
    assert result["eval_loss"] < result["eval_loss_before"]
    assert f"Held-out loss: {result['eval_loss_before']:.3f} before, {result['eval_loss']:.3f} after 3 steps" in printed
    assert printed.count("before: ") == printed.count("after:  ") == 4
    assert f"adapter is in {result['model_path']}" in printed
    assert "-m hub algo=lora_sft model=tiny data.path=YOUR.jsonl" in printed


def test_the_demo_asks_what_was_not_trained_on():
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("demo", EXAMPLES / "scripts" / "demo.py")
    demo = module_from_spec(spec)
    spec.loader.exec_module(demo)

    def questions(name: str) -> set[str]:
        lines = (demo.DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        asked = [message["content"] for line in lines for message in json.loads(line)["messages"][::2]]
        return {question.strip().lower().rstrip("?.!") for question in asked}

    prompts = {prompt.lower().rstrip("?.!") for prompt in demo.PROMPTS}
    assert prompts <= questions("test")
    assert not prompts & questions("train")


def test_the_data_is_small_and_its_license_is_with_it():
    folder = EXAMPLES / "data" / "chatterbot_en"
    assert "Redistribution and use" in (folder / "LICENSE").read_text(encoding="utf-8")
    assert "examples/data/chatterbot_en/LICENSE" in (EXAMPLES.parent / "NOTICE").read_text(encoding="utf-8")
    for file in folder.iterdir():
        assert file.stat().st_size < 2**20, file


@pytest.mark.slow
def test_forgetting_is_measured_by_method_and_what_is_done_is_not_done_again(tmp_path):
    options = ["--quick", "--jobs", "2", "--out", "study", "--methods", "given", "lora_sft:learning_rate=1e-2"]
    first = run_script("continual_learning.py", *options, folder=tmp_path)
    assert first.count("done") == 3
    (state,) = (tmp_path / "study").glob("osft*/state.json")
    found = json.loads(state.read_text())
    assert [len(one["right"]) for one in found["measured"]] == [3, 3, 3]
    (plan,) = (tmp_path / "study").glob("osft*/runs/latest/plan.json")
    names = " ".join(json.loads(plan.read_text())["protected"])
    assert "quick-text_train.jsonl" in names
    assert names.count("learned in") == 2
    assert "| lora_sft:learning_rate=1e-2;effective_batch_size=8;max_steps=2 | 1 |" in (tmp_path / "study/table.md").read_text()
    assert "done" not in run_script("continual_learning.py", *options, folder=tmp_path)


@pytest.mark.slow
def test_preferences_are_learned_from_a_start_that_knows_the_tasks_and_what_is_done_is_not_done_again(tmp_path):
    options = ["--quick", "--jobs", "1", "--out", "study", "--algos", "osft_dpo", "--losses", "kto"]
    said = run_script("preference_learning.py", *options, folder=tmp_path)
    start, *learned = map(json.loads, (tmp_path / "study" / "results.jsonl").read_text().splitlines())
    assert [line["algo"] for line in (start, *learned)] == [None, "osft_dpo", "lora_dpo"]
    for line in learned:
        assert line["eval_loss_before"] == pytest.approx(0.5 if line["loss"] == "kto" else math.log(2), abs=1e-6)
        assert line["eval_margin"] > 0.01
        assert len(line["strict"]) == len(line["containing"]) == 3
        assert line["text_loss"] != start["text_loss"]
    assert "| even | dpo | osft_dpo | 5e-05 | 1 | 1.000 | 1.000 | 1.000 |" in said
    assert not list((tmp_path / "study").glob(".run-*"))
    assert " s  even" not in run_script("preference_learning.py", *options, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_and_is_kept_without_its_outputs(file, tmp_path):
    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    (tmp_path / "examples").symlink_to(EXAMPLES)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in shown)
    printed = "".join(output["text"] for output in shown if output.output_type == "stream")
    tables = [output["data"]["text/plain"] for output in shown if "<progress" in output.get("data", {}).get("text/html", "")]
    assert tables
    assert not re.search(r"^step \d", printed, re.MULTILINE)
    if file.stem == "lora_sft":
        (table,) = tables  # the same one for 30 steps
        assert table.startswith("step 30 of 30\n")
        assert [line.split()[0] for line in table.splitlines() if len(line.split()) == 6] == ["10", "20", "30"]
        assert "held-out loss" in printed
        assert printed.count("before: ") == printed.count("after:  ") == 2
        assert (tmp_path / "runs" / "latest" / "model" / "adapter_config.json").is_file()
    if file.stem == "osft":
        sft, weights, activations = (
            float(line.split()[-1].rstrip("%")) for line in printed.splitlines() if "inputs change by" in line
        )
        assert activations < 0.5 * min(sft, weights)
