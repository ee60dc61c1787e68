"""What README.md tells people to type exists: commands compose, make targets and files are there."""

import re
import shlex
from pathlib import Path

import pytest

import hub
from hub.cli import VERBS
from hub.plugins import registry

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
        from hub.compose import sweep_combinations

        words.remove("--multirun")
        assert len(sweep_combinations(words)) > 1
    else:
        cfg = hub.compose(*words)
        assert registry().algorithm_of(cfg.algo)


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
            known = ("pip install", "source ", ".ci/run", "python -m pip install")
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
    links = [link for link in re.findall(r"\]\(([^)#]+)", TEXT) if "://" not in link]
    tree = next(block for _, block in BLOCKS if block.startswith("hub/"))
    listed, parents = [], [""]
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth + 1 :] = []
        for name in re.split(r",? ", line.strip().split("   ")[0]):
            listed.append("".join(parents) + name)
        if line.strip().split("   ")[0].endswith("/"):
            parents.append(line.strip().split("   ")[0])
    assert len(listed) > 20
    for name in [*links, *listed]:
        assert (ROOT / name).exists(), name


def test_the_tables_name_every_algorithm_and_every_model_preset():
    from hub.compose import groups

    found = groups()
    # Names in code marks, with {a, b} for endings.
    named = set(re.findall(r"`([a-z0-9_]+)`", TEXT))
    missing = {*found["algo"], *found["model"]} - named
    installed = {name for name in missing if registry().owners.get(name) in (None, "sft", "lora_sft")}
    assert not installed
