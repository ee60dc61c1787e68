"""docs/architecture.md names what is there, and nothing else."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_architecture_page_has_a_line_for_every_module():
    modules = {str(file.relative_to(ROOT / "hub")) for file in (ROOT / "hub").rglob("*.py")}
    assert set(re.findall(r"^\| `([\w/]+\.py)` \|", TEXT, re.MULTILINE)) == modules


def test_the_architecture_page_names_every_folder_of_the_project():
    folders = {file.parent.name for file in ROOT.glob("*/*") if file.is_file() or file.parent.name in ("examples", "plugins")}
    folders -= {"runs", "build", "dist", *(name for name in folders if name.startswith((".", "__")))}
    folders |= {f"plugins/{file.parent.name}" for file in ROOT.glob("plugins/*/pyproject.toml")}
    assert len(folders) > 6
    assert not {name for name in folders if not re.search(rf"(`|^### ){name}/", TEXT, re.MULTILINE)}
