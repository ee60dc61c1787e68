"""What the pages about plugins say is true: docs/plugins.md is followed as an author would (its files are written, its
commands run, its output compared), and the READMEs' tables of options are compared with the options.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from hub_lora_sft.config import LoraSftConfig
from hub_osft.config import OsftConfig
from hub_sft.config import SftConfig

from hub.config.schema import AlgoConfig

pytestmark = pytest.mark.usefixtures("warm_python")

PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^# (\S+\.\w+)$", re.MULTILINE)
"""The comment at the top of a block that says which file it is."""

PUBLISHING = ("pip install build", "python -m build")
"""Commands of the page that need an index; tests/packaging builds and installs wheels."""


def install(folder: Path) -> None:
    """What `pip install -e .` leaves behind, without an index: the metadata that importlib reads."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "".join(f"{name} = {module}\n" for name, module in project["entry-points"]["hub"].items())
    (info / "entry_points.txt").write_text(f"[hub]\n{points}")


def run(command: str, folder: Path) -> str:
    """Run one command of the page in the author's folder."""
    words = shlex.split(command)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, *words[1:]] if words[0] == "python" else [sys.executable, "-m", *words]
    done = subprocess.run(
        words,
        env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout


def occurs(expected: str, output: str) -> bool:
    """Whether a line of the page is in the output; `...` stands for anything."""
    pattern = ".*".join(re.escape(" ".join(part.split())) for part in expected.split("..."))
    return any(re.search(pattern.replace(r"\ .*", ".*"), " ".join(line.split())) for line in output.splitlines())


@pytest.mark.slow
def test_an_author_who_follows_the_page_has_a_working_plugin(tmp_path):
    num_files = num_commands = 0
    for language, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language != "console":
            file = tmp_path / FILE.search(text).group(1)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            num_files += 1
            continue
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, *expected = part.splitlines()
            if command in PUBLISHING:
                continue
            if command == "pip install -e .":
                install(tmp_path)
                continue
            output = run(command, tmp_path)
            num_commands += 1
            for line in expected:
                assert occurs(line, output), f"$ {command}\nthe page says: {line}\nbut it prints:\n{output}"
    assert num_files == 19
    assert num_commands == 13


@pytest.mark.parametrize(("plugin", "config"), [("sft", SftConfig), ("lora_sft", LoraSftConfig), ("osft", OsftConfig)])
def test_a_readme_lists_the_options_of_its_algorithm_with_their_defaults(plugin, config):
    text = (PAGE.parents[1] / "plugins" / plugin / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `algo\.(\w+)` \| `(.*?)` \|", text, re.MULTILINE))
    common = {item.name: item.default for item in fields(AlgoConfig)}
    own = {item.name: item.default if item.default_factory is MISSING else item.default_factory() for item in fields(config)}
    assert listed == {name: str(own[name]) for name in own if name not in common or own[name] != common[name]}
