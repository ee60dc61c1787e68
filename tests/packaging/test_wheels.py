"""Builds the wheels, installs them with plain pip into an empty environment, and uses them there like a user.

It needs minutes and a package index, so it runs only if named: `pytest tests/packaging`.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OF_THE_PACKAGE = ("*.py", "*.pyi", "*.jinja", "*.jsonl", "*.css", "*.js", "*.yaml", "py.typed")
"""Files of hub/ that a wheel holds."""
EXAMPLE = ROOT / "examples" / "plugins" / "hub-example"
PROJECTS = {
    "finetune_hub": ROOT,
    "hub_sft": ROOT / "plugins" / "sft",
    "hub_lora_sft": ROOT / "plugins" / "lora_sft",
    "hub_osft": ROOT / "plugins" / "osft",
    "hub_unsloth": ROOT / "plugins" / "unsloth",
    "hub_dpo": ROOT / "plugins" / "dpo",
    "hub_example": EXAMPLE,
}


def run(*words: str | Path, cwd: Path, exit_code: int = 0) -> str:
    """Run a command as from a fresh shell, in a folder that is not the project's. Returns what it prints."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HUB_", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(word) for word in words],
        env=env,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == exit_code, f"$ {' '.join(map(str, words))}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    """Name of each distribution -> its wheel, newly built."""
    folder = tmp_path_factory.mktemp("wheels")
    for project in PROJECTS.values():
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, project, cwd=folder)
    built = {file.name.split("-")[0]: file for file in folder.glob("*.whl")}
    assert built.keys() == PROJECTS.keys()
    return built


@pytest.fixture(scope="module")
def python(wheels, tmp_path_factory) -> Path:
    """The interpreter of an environment that holds the wheels, what they depend on, and pytest."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "venv", with_pip=True, symlinks=True)
    interpreter = folder / "venv" / "bin" / "python"
    install = (interpreter, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt")
    run(*install, *wheels.values(), "pytest", cwd=folder)
    run(interpreter, "-m", "pip", "check", cwd=folder)
    return interpreter


def files_below(folder: Path, *patterns: str) -> set[str]:
    return {str(file.relative_to(folder)) for pattern in patterns for file in folder.rglob(pattern)}


def test_a_wheel_holds_its_package_with_conf_and_nothing_else(wheels):
    for name, wheel in wheels.items():
        held = {file for file in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in file}
        if name == "finetune_hub":
            expected = {f"hub/{file}" for file in files_below(ROOT / "hub", *OF_THE_PACKAGE)}
            expected |= {f"hub/conf/{file}" for file in files_below(ROOT / "conf", "*.yaml", "*.md")}
            assert "hub/conf/config.yaml" in held
        else:
            expected = {f"{name}/{file}" for file in files_below(PROJECTS[name] / name, "*.py", "*.yaml")}
        assert held == expected, name


def test_license_and_entry_points_are_in_the_wheels(wheels):
    for name, wheel in wheels.items():
        with zipfile.ZipFile(wheel) as archive:
            text = {
                file.split(".dist-info/")[1]: archive.read(file).decode()
                for file in archive.namelist()
                if ".dist-info/" in file
            }
        assert "License-Expression: Apache-2.0" in text["METADATA"], name
        assert ("[console_scripts]" if name == "finetune_hub" else "[hub]") in text["entry_points.txt"], name
        if name in ("finetune_hub", "hub_example"):
            assert "licenses/LICENSE" in text


def test_the_command_line_answers_from_an_empty_folder(python, tmp_path):
    overview = run(python, "-m", "hub", cwd=tmp_path)
    for word in ("lora_sft", "sft", "bitfit", "llama3_8b", "smollm2_135m"):
        assert f" {word} " in overview
    assert "norm_tuning, qlora_dpo, qlora_sft" in run(python, "-m", "hub", "--help", cwd=tmp_path)
    listed = run(python, "-m", "hub", "plugins", cwd=tmp_path)
    for line in (
        "example  hub-example 0.1.0  (hub_example)",
        "sft  hub-sft 0.1.0  (hub_sft)",
        "lora_sft  hub-lora-sft 0.1.0",
        "osft  hub-osft 0.1.0",
        "dpo  hub-dpo 0.1.0",
        "backend unsloth of lora_sft (priority -10): not installed: unsloth, unsloth_zoo. Type: pip install",
    ):
        assert line in listed
    assert "left out" not in listed
    assert run(python.with_name("hub"), "--version", cwd=tmp_path) == run(python, "-m", "hub", "--version", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_preset_of_the_project_is_found(python, tmp_path):
    code = "import json; from hub.compose.compose import groups; print(json.dumps(groups()))"
    found = json.loads(run(python, "-c", code, cwd=tmp_path).splitlines()[-1])
    for group in ("model", "data", "launch", "track"):
        assert {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")} <= set(found[group])
    shown = run(python, "-m", "hub", "show", "algo=norm_tuning", "model=llama3_8b", "data.path=chats.jsonl", cwd=tmp_path)
    assert "plugin example: conf/algo/norm_tuning.yaml" in shown
    assert "conf/model/llama3_8b.yaml" in shown


@pytest.mark.parametrize(
    ("algo", "load"),
    [("bitfit", "transformers.AutoModelForCausalLM"), ("lora_sft", "peft.PeftModel")],
)
def test_a_run_leaves_a_model_that_loads(algo, load, python, tmp_path):
    printed = run(python, "-m", "hub", f"algo={algo}", "model=tiny", "data=tiny", "algo.max_steps=2", cwd=tmp_path)
    assert f"load it: {load}.from_pretrained(" in printed
    result = json.loads((tmp_path / "runs" / "latest" / "result.json").read_text())
    assert result["status"] == "completed"
    assert result["algo"] == algo
    call = printed.splitlines()[-1].removeprefix("load it: ")
    code = (
        f"import torch, transformers, {load.split('.')[0]}\n"
        f"model = {call}\n"
        "ids = torch.tensor([[1, 5, 9]])\n"
        "assert torch.isfinite(model(input_ids=ids).logits).all()\n"
        f"transformers.AutoTokenizer.from_pretrained({result['model_path']!r})\n"
        "print('loads')\n"
    )
    assert run(python, "-c", code, cwd=tmp_path).splitlines()[-1] == "loads"


def test_the_tests_of_the_example_plugin_pass_where_it_is_installed(python, tmp_path):
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    assert " passed" in run(python, "-m", "pytest", "-p", "no:cacheprovider", "tests", cwd=tmp_path)


def test_an_editable_install_finds_its_presets_from_another_folder(tmp_path):
    place = run(sys.executable, "-c", "from hub.plugins.registry import conf_dir; print(conf_dir())", cwd=tmp_path)
    assert Path(place.strip()) == ROOT / "conf"
    assert "conf/model/llama3_8b.yaml" in run(sys.executable, "-m", "hub", "show", "model=llama3_8b", cwd=tmp_path)
