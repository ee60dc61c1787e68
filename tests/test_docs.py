"""The pages: what they link, list and name is there, docs/index.md has them all, and each says what kind of page it is."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import compatibility
from hub.tasks.export.compressed.exporter import CALIBRATED
from hub.tasks.export.compressed.write import LIMIT_NATS
from hub.tasks.export.gguf.kinds import KINDS, LIMITS
from hub.tasks.export.job import LIMIT
from hub.version import VERSION

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
INDEX = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
DOCS = sorted((ROOT / "docs").glob("**/*.md"))
READMES = sorted([*ROOT.glob("plugins/*/README.md"), *ROOT.glob("examples/**/README.md"), *ROOT.glob("[a-z]*/README.md")])
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS, *READMES]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KIND = re.compile(r"^\*\*(Tutorial|How-to|Reference|Explanation)\.\*\*", re.MULTILINE)
HEADINGS = {"Tutorials": "Tutorial", "How-to guides": "How-to", "Reference": "Reference", "Explanation": "Explanation"}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links(page: Path) -> list[str]:
    """The relative links of a page, those in code left out."""
    prose = re.sub(r"`[^`\n]*`", "", BLOCK.sub("", page.read_text(encoding="utf-8")))
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """The anchors that a Markdown host gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    found: dict[str, int] = {}
    for heading in headings:
        anchor = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found[anchor] = found.get(anchor, -1) + 1
        if found[anchor]:
            found[f"{anchor}-{found[anchor]}"] = 0
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_and_anchor_resolves(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_pages_link_many_files():
    assert len({link for page in PAGES for link in links(page)}) > 20


def test_a_tree_in_a_page_names_files_that_exist():
    for page in PAGES:
        trees = [block for _, block in BLOCK.findall(page.read_text(encoding="utf-8")) if block.startswith("hub/")]
        for entry in (path for tree in trees for path in entries(tree)):
            assert (ROOT / entry).exists(), f"{name(page)}: {entry}"


def entries(tree: str) -> list[str]:
    """The paths in a listing that is indented by depth, with or without lines drawn between folder and file."""
    found: list[str] = []
    above: list[tuple[int, str]] = []
    for line in re.sub(r"[│├└─]", " ", tree).splitlines():
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        above = [(other, path) for other, path in above if other < depth]
        path = (above[-1][1] if above else "") + line.split()[0]
        above.append((depth, path))
        found.append(path)
    return found


@pytest.mark.usefixtures("warm_python_here")
def test_the_first_run_prints_what_the_tutorial_and_the_readme_show(tmp_path):
    command = "algo=lora_sft model=tiny data=tiny run_name=first"
    tutorial = (ROOT / "docs" / "first_run.md").read_text(encoding="utf-8")
    assert command in tutorial
    done = subprocess.run(
        [sys.executable, "-m", "hub", *command.split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    printed = [without_figures(line) for line in done.stdout.splitlines()]
    for page, text in (("first_run.md", tutorial), ("README.md", (ROOT / "README.md").read_text(encoding="utf-8"))):
        shown = next(block for language, block in BLOCK.findall(text) if not language and block.startswith("hub: "))
        for line in shown.splitlines():
            if not line.startswith("arithmetic in "):  # depends on the CPU
                start = without_figures(line.removesuffix(" ..."))
                assert any(other.startswith(start) for other in printed), f"{page}: {line}\n{done.stdout}"
    listed = re.search(r"^\$ ls runs/first\n(.+)$", tutorial, re.MULTILINE)[1].split()
    assert listed == sorted(file.name for file in (tmp_path / "runs" / "first").iterdir())


def without_figures(line: str) -> str:
    """The line with each number and each path replaced, since these depend on the machine."""
    return re.sub(r"\d[\d,.:e+-]*", "N", re.sub(r"/[\w./-]+/runs/[\w.-]+", "RUN", line))


def test_the_page_on_exports_has_every_kind_with_its_bound():
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    listed = re.search(r"^`quant=` takes (.*?)\. Those from `(\w+)` on that begin with `iq`, and `q2_k_s`,", page, re.M | re.S)
    assert re.findall(r"`(\w+)`", listed[1]) == [*KINDS]
    noisy = [name for name in [*KINDS][[*KINDS].index(listed[2]) :] if name.startswith("iq") or name == "q2_k_s"]
    assert [name for name, kind in KINDS.items() if kind.needs_imatrix] == noisy
    bounds = re.findall(r"^\| `(\w+)` \| ([\d.]+)( of the change)? \| [\d.]+", page, re.MULTILINE)
    assert len(bounds) == 8
    for name, bound, _ in bounds:
        assert float(bound) == (KINDS[name].limit_nats or LIMIT), name
    others = {name for name in KINDS if name not in LIMITS and KINDS[name].is_quantized}
    assert {KINDS[name].limit_nats for name in others} == {0.5}
    assert re.search(r"^`q5_k_s` and `q5_1` have the bound 0.3, all kinds of fewer bits 0.5.", page, re.MULTILINE)
    assert {name for name, limit in LIMITS.items() if limit == 0.3} == {"q5_k_s", "q5_1", "q5_k_m", "q5_0"}
    schemes = re.findall(r"^\| `(w\w+)`.*\| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert {name: float(bound) for name, bound, _ in schemes} == LIMIT_NATS
    calibrated = set(re.findall(r"^\| `(w\w+)`.*\| on training rows \|", page, re.MULTILINE))
    assert calibrated == CALIBRATED


def test_an_option_that_a_page_names_exists():
    listed = set(re.findall(r"^\| `(\w+\.\w+)` \|", (ROOT / "docs" / "options.md").read_text(encoding="utf-8"), re.MULTILINE))
    for page in [*(ROOT / "docs" / "howto").glob("*.md"), *(ROOT / "docs" / "tutorials").glob("*.md")]:
        prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
        named = set(re.findall(r"\b((?:algo|data|model|launch|track|evaluate|generate|export|plan)\.[a-z]\w+)", prose))
        assert not {option for option in named if not option.endswith((".md", ".json"))} - listed, name(page)


def test_every_file_names_this_version_and_the_notes_of_a_release_are_its_section():
    spec = importlib.util.spec_from_file_location("notes", ROOT / "tests" / "packaging" / "notes.py")
    notes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notes)
    assert list(notes.problems(ROOT, VERSION)) == []
    assert len(list(notes.problems(ROOT, "99"))) == 2 + len(list(ROOT.glob("plugins/*/pyproject.toml")))
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["license"] == "Apache-2.0"
    log = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2027-01-01\n\n- new\n\n## [0.1.0] - 2026-12-01\n\n- old\n"
    found = [notes.notes(log, version) for version in ("Unreleased", "0.2.0", "0.1.0", "0.3.0")]
    assert found == [None, "## [0.2.0] - 2027-01-01\n\n- new\n", "## [0.1.0] - 2026-12-01\n\n- old\n", None]


def test_a_run_with_other_versions_is_one_row_of_the_table():
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert all(
        pair.startswith(word)
        for pair, word in zip(compatibility.ends_of_range("oldest"), ("torch==", "transformers=="), strict=True)
    )
    rows = [["9.10.0", "5.4.0", "1", "3", "CPU", passed, "0", "0", "day"] for passed in ("41", "42")]
    rows.append(["9.9.0", "5.30.0", "1", "3", "CPU", "43", "0", "0", "day"])
    for row in rows:
        page = compatibility.with_row(page, row)
    assert page.partition(compatibility.END)[0].splitlines()[-2:] == [f"| {' | '.join(row)} |" for row in (rows[2], rows[1])]


def test_every_page_is_in_the_index():
    linked = {(ROOT / "docs" / link.partition("#")[0]).resolve() for link in links(ROOT / "docs" / "index.md")}
    assert not {name(page) for page in DOCS} - {name(page) for page in linked}


@pytest.mark.parametrize("page", [*DOCS, ROOT / "CONTRIBUTING.md"], ids=name)
def test_a_page_says_what_kind_it_is_and_the_index_has_it_there(page):
    kinds = KIND.findall("\n".join(page.read_text(encoding="utf-8").splitlines()[:5]))
    sections = re.split(r"^## (.+)$", INDEX, flags=re.MULTILINE)[1:]
    by_kind = {HEADINGS[heading]: text for heading, text in zip(sections[::2], sections[1::2], strict=True)}
    assert by_kind.keys() == set(HEADINGS.values())
    link = os.path.relpath(page, ROOT / "docs")
    expected = [kind for kind, text in by_kind.items() if f"]({link})" in text]
    assert kinds == expected, f"one of the first five lines of {name(page)} begins with **{' or '.join(expected)}.**"


def test_the_architecture_page_has_a_line_for_every_module():
    modules = {str(file.relative_to(ROOT / "hub")) for file in (ROOT / "hub").rglob("*.py")}
    assert set(re.findall(r"^\| `([\w/]+\.py)` \|", TEXT, re.MULTILINE)) == modules


def test_the_architecture_page_names_every_folder_of_the_project():
    folders = {file.parent.name for file in ROOT.glob("*/*") if file.is_file() or file.parent.name in ("examples", "plugins")}
    folders -= {"runs", "build", "dist", *(name for name in folders if name.startswith((".", "__")))}
    folders |= {f"plugins/{file.parent.name}" for file in ROOT.glob("plugins/*/pyproject.toml")}
    assert len(folders) > 6
    assert not {name for name in folders if not re.search(rf"(`|^### ){name}/", TEXT, re.MULTILINE)}


def test_the_tests_that_pages_name_exist():
    sources = [path.read_text(encoding="utf-8") for path in [*ROOT.glob("tests/**/*.py"), *ROOT.glob("plugins/*/tests/*.py")]]
    there = {found for source in sources for found in re.findall(r"^def (test_\w+)\(", source, re.MULTILINE)}
    text = "\n".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("security.md", "trust.md", "verify.md"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 50
    assert named <= there
    places = set(re.findall(r"\b(?:tests|plugins/\w+/tests)(?:/\w+)*(?:\.py)?\b", text))
    assert [place for place in places if not (ROOT / place).exists()] == []
