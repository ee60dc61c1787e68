"""Writes the notes of a release: the section of its version in CHANGELOG.md. Every file must name that version.

python tests/packaging/notes.py build/notes.md
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def problems(root: Path, version: str) -> Iterator[str]:
    """A line for each file that names another version."""
    for file in sorted(root.glob("plugins/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        hub = next((word for word in project["dependencies"] if word.startswith("finetune-hub")), "no finetune-hub")
        if project["version"] != version or hub != f"finetune-hub=={version}":
            yield f"{file.relative_to(root)} has version {project['version']} and requires {hub}"
    for name, pattern in (("hub/version.py", r'^VERSION.* = "(.+)"$'), ("CITATION.cff", r"^version: (.+)$")):
        found = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        if found is None or found[1] != version:
            yield f"{name} has version {found[1] if found else 'none'}"


def notes(changelog: str, version: str) -> str | None:
    """The section of a version. None: there is none, or it is empty."""
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    found = next((text for text in sections if text.startswith(f"[{version}]")), "")
    return f"## {found.rstrip()}\n" if found.partition("\n")[2].strip() else None


def main(file: Path) -> None:
    """Check the versions, and write the notes."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if wrong := list(problems(ROOT, version)):
        sys.exit("\n".join(f"pyproject.toml has version {version}, but {line}" for line in wrong))
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = notes(text, version)
    if found is None:
        print(f"CHANGELOG.md has no section [{version}]: the notes are those of Unreleased, for a trial")
        found = notes(text, "Unreleased") or ""
    file.parent.mkdir(exist_ok=True)
    file.write_text(found, encoding="utf-8")
    print(f"{file}: {len(found.splitlines())} lines")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
