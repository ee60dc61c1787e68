"""What README.md and the pages tell readers to type exists: commands compose, make targets and files are there.

tests/snippets runs what can run here.
"""

import re
import shlex
from pathlib import Path

import pytest
from snippets.pages import snippets

import hub
from hub.cli.main import VERBS
from hub.compose.own_options import own_options
from hub.launch.finished import _in_full
from hub.plugins.registry import registry
from hub.tasks.verbs import FINISHED

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
# tests/test_plugins_page.py follows docs/plugins.md as an author would.
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(p for p in sorted((ROOT / "docs").glob("**/*.md")) if p.stem != "plugins"),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HUB = re.compile(r"^(?:(?:python|torchrun .*?) -m hub|\.venv/bin/hub|hub(?= completion))\b(.*)$")
NEEDS_A_PLUGIN_OF_HYDRA = "hydra/launcher="


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def typed(page: Path) -> list[str]:
    """The command lines in the blocks of a page, without their comments."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


LINES = typed(ROOT / "README.md")
ALL_LINES = [pytest.param(line, id=f"{page.stem}: {line}") for page in PAGES for line in typed(page)]


def composed(lines: list[str]) -> list[str]:
    """What follows `python -m hub` in the lines that set an option."""
    return [match[1].strip() for line in lines if (match := HUB.match(line)) and "=" in match[1]]


NOT_RUN = {page: [snippet.text for snippet in snippets(page) if snippet.why_not] for page in PAGES if page.name != "README.md"}
"""Commands that tests/snippets does not run."""

OTHER_PROGRAMS = {snippet.text for page in PAGES for snippet in snippets(page) if snippet.why_not}

COMPOSED = [
    pytest.param(command, id=f"{page.stem}: {command}")
    for page in PAGES
    for command in composed(NOT_RUN.get(page, LINES))
    if NEEDS_A_PLUGIN_OF_HYDRA not in command
]


def test_the_commands_to_install_and_run_come_first_and_the_test_command_once():
    assert LINES[:2] == ["make install", ".venv/bin/hub algo=lora_sft model=tiny data=tiny"]
    assert [LINES.count(line) for line in ("make demo", "make test")] == [1, 1]
    assert len(COMPOSED) > 8


def test_readme_installs_and_runs_in_two_commands():
    install = LINES.index("make install")
    assert composed([LINES[install + 1]]) == ["algo=lora_sft model=tiny data=tiny"]


def test_readme_is_short():
    assert len(TEXT.splitlines()) <= 150


@pytest.mark.parametrize("command", COMPOSED)
def test_a_command_line_composes(command):
    words = shlex.split(command)
    verb = words.pop(0) if words[0] in VERBS else ""
    if verb in FINISHED:
        _, rest = own_options(FINISHED[verb].options, list(_in_full(FINISHED[verb], words)))
        assert hub.compose(*rest)
        return
    words = [word for word in words if not word.endswith((".yaml", "algo."))]  # a file, and a word of show
    if verb := FINISHED.get(command.split()[0]):
        options, words = own_options(verb.options, words)
        assert options.run or hub.compose(*words).model.path or not verb.needs_model
        return
    if "--multirun" in words:
        from hub.compose.compose import sweep_combinations

        words.remove("--multirun")
        assert len(sweep_combinations(words)) > 1
    else:
        cfg = hub.compose(*words)
        assert ".yaml" in command or cfg.resume or command.startswith("data ") or registry().algorithm_of(cfg.algo)


@pytest.mark.parametrize("line", ALL_LINES)
def test_every_line_that_is_typed_is_of_a_kind_that_is_checked(line):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    words = shlex.split(line)
    if words[0] == "make":
        assert words[1] in targets, line
    elif "examples/scripts/" in line:
        assert all((ROOT / word).is_file() for word in words if word.startswith("examples/")), line
    else:
        verb = HUB.match(line)
        known = ("source .venv/bin/activate", ".ci/run", ".venv/bin/pre-commit install")
        assert verb or line.startswith(known) or line in OTHER_PROGRAMS, f"{line}: say above its block why it is not run"
        if verb and verb.group(1).strip() and "=" not in verb.group(1):
            word = verb.group(1).split()[0]
            assert word in (*VERBS, "--help", "--version") or word.endswith(".yaml"), line


def test_python_in_the_pages_compiles_and_names_what_hub_offers():
    assert blocks(ROOT / "README.md", "python")
    for page in PAGES:
        for block in blocks(page, "python"):
            compile(block, page.name, "exec")
            for names in re.findall(r"^from hub import (.+)$", block, re.MULTILINE):
                assert {name.strip() for name in names.split(",")} <= set(hub.__all__)


def test_the_tables_name_every_algorithm_and_every_model_preset():
    named = set(re.findall(r"`([a-z0-9_]+)`", TEXT))
    listed = set(re.findall(r"`([a-z0-9_]+)`", (ROOT / "docs" / "models.md").read_text(encoding="utf-8")))
    models = {file.stem for file in (ROOT / "conf" / "model").glob("*.yaml")}
    presets = {file.stem for file in ROOT.glob("plugins/*/hub_*/conf/algo/*.yaml")}
    plugins = {file.parent.name for file in ROOT.glob("plugins/*/pyproject.toml")}
    algorithms = {name for name, owner in registry().owners.items() if owner in plugins}
    assert len(models) > 20
    assert algorithms >= {"sft", "lora_sft"}
    assert not models - listed
    assert not (presets | algorithms) - named


@pytest.mark.parametrize("file", sorted((ROOT / "conf" / "experiment").glob("*.yaml")), ids=lambda file: file.stem)
def test_an_experiment_says_its_command_and_that_command_is_complete(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.jsonl").touch()
    command = re.search(r"^#   python -m hub (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE).group(1)
    assert f"experiment={file.stem}" in command
    assert hub.compose(*shlex.split(command)).problems() == []
