"""What README.md tells people to type exists: commands compose, make targets and files are there."""

import re
import shlex
from pathlib import Path

import pytest

import hub
from hub.cli.main import VERBS
from hub.plugins.registry import registry

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
LINES = [
    line.partition("  #")[0].strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]
HUB = re.compile(r"^(?:python|torchrun .*?) -m hub\b(.*)$")
COMMANDS = [match.group(1).strip() for line in LINES if (match := HUB.match(line))]
COMPOSED = [command for command in COMMANDS if "=" in command]


def test_the_two_commands_come_first():
    assert LINES[:2] == ["make demo", "make test"]
    assert len(COMPOSED) > 8


@pytest.mark.parametrize("command", COMPOSED)
def test_a_command_line_composes(command):
    words = shlex.split(command)
    if words[0] in VERBS:
        words.pop(0)
    if "--multirun" in words:
        from hub.compose.compose import sweep_combinations

        words.remove("--multirun")
        assert len(sweep_combinations(words)) > 1
    else:
        cfg = hub.compose(*words)
        assert cfg.resume or registry().algorithm_of(cfg.algo)


def test_every_line_that_is_typed_is_of_a_kind_that_is_checked():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in LINES:
        words = shlex.split(line)
        if words[0] == "make":
            assert words[1] in targets, line
        elif "examples/scripts/" in line:
            assert all((ROOT / word).is_file() for word in words if word.startswith("examples/")), line
        else:
            verb = HUB.match(line)
            known = (
                "source .venv/bin/activate",
                ".ci/run",
                ".venv/bin/pre-commit install",
                "python -m pip install -r ",
            )
            assert verb or line.startswith(known), line
            if verb and verb.group(1).strip() and "=" not in verb.group(1):
                assert verb.group(1).split()[0] in (*VERBS, "--help", "--version"), line


def test_python_in_the_page_compiles_and_names_what_hub_offers():
    blocks = [block for language, block in BLOCKS if language == "python"]
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")
        for names in re.findall(r"^from hub import (.+)$", block, re.MULTILINE):
            assert {name.strip() for name in names.split(",")} <= set(hub.__all__)


def test_files_that_are_linked_or_listed_exist():
    named = [link for link in re.findall(r"\]\(([^)#]+)", TEXT) if "://" not in link]
    tree = next(block for _, block in BLOCKS if block.startswith("hub/"))
    parent = ""
    for line in tree.splitlines():
        name = line.split()[0]
        if line.startswith(" "):
            named.append(parent + name)
        else:
            parent = name
            named.append(name)
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).exists(), name


def test_the_tables_name_every_algorithm_and_every_model_preset():
    named = set(re.findall(r"`([a-z0-9_]+)`", TEXT))
    models = {file.stem for file in (ROOT / "conf" / "model").glob("*.yaml")}
    presets = {file.stem for file in ROOT.glob("plugins/*/hub_*/conf/algo/*.yaml")}
    plugins = {file.parent.name for file in ROOT.glob("plugins/*/pyproject.toml")}
    algorithms = {name for name, owner in registry().owners.items() if owner in plugins}
    assert len(models) > 20
    assert algorithms >= {"sft", "lora_sft"}
    assert not (models | presets | algorithms) - named


@pytest.mark.parametrize("file", sorted((ROOT / "conf" / "experiment").glob("*.yaml")), ids=lambda file: file.stem)
def test_an_experiment_says_its_command_and_that_command_is_complete(file):
    command = re.search(r"^#   python -m hub (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE).group(1)
    assert f"experiment={file.stem}" in command
    assert hub.compose(*shlex.split(command)).problems() == []
