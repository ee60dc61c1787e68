"""The commands and the Python code that pages and notebooks show, and which of them can't run here."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        *(page for page in ROOT.glob("docs/**/*.md") if page.name not in ("plugins.md", "options.md")),
        *ROOT.glob("plugins/*/README.md"),
        *(page for page in ROOT.glob("examples/notebooks/*.ipynb") if page.stem not in ("lora_sft", "osft")),
    ]
)
"""Pages whose code is run. tests/test_plugins_page.py follows docs/plugins.md, in a folder and processes of its own, and
tests/test_examples.py runs two notebooks in Jupyter's kernel.
"""

BLOCK = re.compile(
    r"^(?P<comment>(?:<!-- not run: [^\n]* -->\n)*)(?P<indent> *)```(?P<language>bash|python|console)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
NOT_RUN = re.compile(r"<!-- not run: (?P<why>[\w ]+?)(?:: (?P<word>.+?))? -->")
"""Above a block, and invisible to readers: why nothing in it is run, or behind a colon a part of the lines that are not."""

REASONS = ("gpu", "network", "processes", "server", "other program", "seen elsewhere", "no whole code")


@dataclass(frozen=True)
class Snippet:
    """A command, or a block of Python code."""

    page: Path
    line: int
    language: str
    text: str
    why_not: str = ""
    """Why it is not run. Empty: it is."""

    shown: tuple[str, ...] = ()
    """Lines that the page says it prints."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {self.text.splitlines()[0]}"


def snippets(page: Path) -> list[Snippet]:
    """What a page shows, in order."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        return cells(page, json.loads(text)["cells"])
    found: list[Snippet] = []
    for block in BLOCK.finditer(text):
        marks = [(mark["why"], mark["word"]) for mark in NOT_RUN.finditer(block["comment"])]
        assert all(why in REASONS for why, _ in marks), f"{page}: {marks}. Allowed: {', '.join(REASONS)}"
        first = text.count("\n", 0, block.start("text")) + 1
        body = re.sub(rf"^{block['indent']}", "", block["text"], flags=re.MULTILINE)
        for line, piece, shown in pieces(block["language"], body):
            why = next((why for why, word in marks if word is None or word in piece), "")
            found.append(Snippet(page, first + line, block["language"], piece, why, shown))
        unused = [word for _, word in marks if word is not None and word not in block["text"]]
        assert not unused, f"{page}: no line has {unused}"
    return found


def cells(page: Path, of_notebook: list[dict[str, Any]]) -> list[Snippet]:
    """The code of a notebook. `line` is the number of the cell; its metadata has `not_run`, if it is not run."""
    found = [
        Snippet(page, number, "python", "".join(cell["source"]), cell["metadata"].get("not_run", ""))
        for number, cell in enumerate(of_notebook, 1)
        if cell["cell_type"] == "code"
    ]
    assert all(not cell.get("outputs") for cell in of_notebook), f"{page}: keep it without outputs"
    assert all(snippet.why_not in ("", *REASONS) for snippet in found)
    return found


def pieces(language: str, body: str) -> list[tuple[int, str, tuple[str, ...]]]:
    """(line within the block, text, lines that it prints): whole Python code, or one command each."""
    if language == "python":
        return [(0, body, ())]
    found: list[tuple[int, str, tuple[str, ...]]] = []
    lines = body.splitlines()
    number = 0
    while number < len(lines):
        first, line = number, lines[number]
        while line.endswith("\\"):
            number += 1
            line = line[:-1] + lines[number]
        number += 1
        printed: list[str] = []
        if language == "console":
            line = line.removeprefix("$ ")
            while number < len(lines) and not lines[number].startswith("$ "):
                printed.append(lines[number])
                number += 1
        command = line.partition("  #")[0].strip()
        if command and not command.startswith("#"):
            found.append((first, command, tuple(printed)))
    return found
