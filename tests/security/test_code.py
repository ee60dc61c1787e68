"""What the project's own code never does, and what a config can't make it do."""

import ast
import json
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from hub import compose
from hub.compose import runfile
from hub.errors import ConfigError
from hub.testing import tiny_model_path

ROOT = Path(__file__).parents[2]
SOURCES = [file for part in ("hub", "plugins", "examples") for file in (ROOT / part).rglob("*.py")
           if not {"tests", "build", ".venv"} & set(file.relative_to(ROOT).parts)]  # fmt: skip
TINY = ("algo=lora_sft", "model=tiny", "data=tiny")

MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "imp"}
"""Unpickling runs code."""

CALLS = {"eval", "exec", "compile", "__import__"}
"""Builtins that run text as code."""

METHODS = {
    ("torch", "load"), ("torch", "save"), ("os", "system"), ("os", "popen"), ("subprocess", "getoutput"),
    ("subprocess", "getstatusoutput"),
    *(("yaml", name) for name in ("load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all")),
}  # fmt: skip

ATTRIBUTES = {
    "broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list", "send_object_list",  # pickles
    "FileSystemReader", "FileSystemWriter", "load_state", "save_state", "instantiate", "get_class", "get_method",
    "read_pickle", "create_subprocess_shell", "from_pickle",
}  # fmt: skip


def faults(source: str) -> list[str]:
    """What a module does that it must not, with the line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [module] if module.split(".")[0] in MODULES else []
            pairs = [(module.split(".")[0], alias.name) for alias in node.names]
            names += [name for top, name in pairs if (top, name) in METHODS or name in ATTRIBUTES]
        elif isinstance(node, ast.Name) and node.id in CALLS:
            names = [node.id]
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            names = [f"{owner}.{node.attr}"] if (owner, node.attr) in METHODS or node.attr in ATTRIBUTES else []
        elif isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle", "trust_remote_code", "weights_only"):
            off = isinstance(node.value, ast.Constant) and node.value.value is False
            asked = node.arg == "trust_remote_code" and not isinstance(node.value, ast.Constant)
            names = [] if (off or asked) and node.arg != "weights_only" else [f"{node.arg}="]
        found += [f"{node.lineno}: {name}" for name in names]
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_module_unpickles_evaluates_or_starts_a_shell(file):
    assert faults(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "yaml.load(x)", "from yaml import unsafe_load",
        "import cloudpickle.cloudpickle", "eval('1')",
        "run = exec", "torch.load('x')", "from torch import load", "import os; os.system('x')", "from os import system",
        "subprocess.run('x', shell=True)", "subprocess.run('x', shell=yes)", "np.load('x', allow_pickle=True)",
        "M.from_pretrained(x, trust_remote_code=True)", "dist.broadcast_object_list([x])", "accelerator.load_state(x)",
        "from hydra.utils import instantiate", "hydra.utils.get_class(x)", "f(weights_only=True)", "__import__('x')",
    ],
)  # fmt: skip
def test_the_check_itself_finds_each_fault(source):
    assert faults(source)


def test_the_check_leaves_harmless_code_alone():
    assert faults("model.eval()\nmodel.compile()\nM.f(x, trust_remote_code=cfg.trust_remote_code, shell=False)") == []


@pytest.mark.parametrize("option", ["_target_", "model._target_", "algo._target_", "+algo._target_", "++track._target_"])
def test_no_option_names_code(hub, option):
    said = hub(*TINY, f"{option}=os.system")
    assert (said.code, len(said.problems)) == (2, 1)
    assert "there is no such option" in said.problems[0]


@pytest.mark.parametrize("group", ["algo", "model", "data", "launch", "track", "experiment"])
def test_no_preset_names_code(hub, canary, tmp_path, group):
    preset = tmp_path / "conf" / group / "evil.yaml"
    preset.parent.mkdir(parents=True)
    head = {"algo": "defaults: [lora_sft]\n", "experiment": "# @package _global_\n"}.get(group, "")
    preset.write_text(f"{head}_target_: subprocess.run\nargs: [touch, {canary.path}]\n")
    said = hub(*TINY, f"{group}=evil", "--config-dir", "conf")
    assert (said.code, len(said.problems)) == (2, 2)
    for line, name in zip(said.problems, ("_target_", "args"), strict=True):
        assert line.startswith(f"conf/{group}/evil.yaml: ")
        assert f"{name}: there is no such option" in line
    assert not canary.appeared()


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("callbacks", "{x: {_target_: logging.FileHandler, filename: CANARY}}"),
        ("hydra_logging", "{handlers: {console: {(): logging.FileHandler, filename: CANARY}}}"),
        ("job_logging", "{handlers: {console: {class: logging.FileHandler, filename: CANARY}}}"),
        ("launcher", "{_target_: logging.FileHandler, filename: CANARY}"),
        ("sweeper", "{_target_: logging.FileHandler, filename: CANARY}"),
    ],
)
def test_no_preset_of_a_sweep_names_code_to_hydra(hub, canary, tmp_path, part, value):
    preset = tmp_path / "conf/experiment/evil.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text(f"# @package _global_\nhydra:\n  {part}: {value.replace('CANARY', str(canary.path))}\n")
    said = hub("--multirun", *TINY, "algo.lora_r=8,16", "experiment=evil", "--config-dir", "conf", "launch.python=/bin/false")
    assert said.code == 2
    assert not canary.appeared()


def test_a_run_yaml_that_names_code_is_refused():
    text = runfile.to_text(compose(*TINY))
    for part in ("algo", "model", "track"):
        assert f"{part}:\n" in text
        with pytest.raises(ConfigError, match="_target_"):
            runfile.from_text(text.replace(f"{part}:\n", f"{part}:\n  _target_: os.system\n"))
    for text in ("!!python/object/apply:os.system ['true']", "- a", "text"):
        with pytest.raises(ConfigError, match="damaged or of another version"):
            runfile.from_text(text)


@pytest.mark.parametrize(("package", "floor"), [("torch", "2.10"), ("transformers", "5.3")])
def test_releases_with_known_holes_are_not_allowed(package, floor):
    """torch < 2.10: CVE-2026-24747, CVE-2025-32434. transformers < 5.3: CVE-2026-4372, CVE-2026-1839."""
    seen = []
    for file in [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]:
        for line in tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]:
            requirement = Requirement(line)
            if requirement.name == package:
                floors = [Version(rule.version) for rule in requirement.specifier if rule.operator == ">="]
                assert floors, f"{file}: {line}"
                assert min(floors) >= Version(floor), f"{file}: {line}"
                seen.append(file)
    assert ROOT / "pyproject.toml" in seen
    assert Version(version(package).split("+")[0]) >= Version(floor)


def test_the_page_on_security_names_tests_that_there_are():
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    tests = "".join(file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("test_*.py"))
    assert len(named) > 20
    assert named <= set(re.findall(r"^def (test_\w+)", tests, re.MULTILINE))


@pytest.mark.parametrize(("option", "value"), [("metrics", "mine.py:f"), ("tasks", "mine.yaml")])
def test_code_that_a_run_names_is_not_run(hub, tmp_path, option, value):
    (tmp_path / value.partition(":")[0]).write_text("raise SystemExit", encoding="utf-8")
    folder = tmp_path / "run"
    folder.mkdir()
    text = runfile.to_text(compose(*TINY, f"evaluate.{option}=[{value}]"))
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    done = {"status": "completed", "algo": "sft", "backend": "native", "model": "tiny", "run_path": str(folder)}
    (folder / "result.json").write_text(json.dumps(done), encoding="utf-8")
    (folder / "model").symlink_to(tiny_model_path("llama"))
    said = hub("evaluate", f"run={folder}")
    assert (said.code, len(said.problems)) == (2, 1)
    assert f"evaluate.{option}={value}: the config of the run names a file with code" in said.problems[0]
