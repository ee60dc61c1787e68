"""Pages beside docs/ in the site: READMEs, CONTRIBUTING and the files that pages link become pages and files below project/.

The search of the site works from a disk, without a script from another host.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PLACE = "project"
"""The folder of the site for what lies outside docs/."""

FROM_ELSEWHERE, WORKER = "https://unpkg.com/iframe-worker/shim", "assets/worker.js"
"""The script that the theme would load for its search on a disk, and ours."""

CODE_OR_LINK = re.compile(r"^ *```.*?^ *```$|`[^`\n]*`|(?<=\]\()[^)\s]+(?=\))", re.MULTILINE | re.DOTALL)
LISTS = re.compile(r"(?<=^)((?!\s*(?:[-*+]|\d+\.) |\s*$|#|\|).*\n)(?=(?:[-*]|\d+\.) )", re.MULTILINE)
"""A line of text with an item of a list right below it. Python-Markdown wants an empty line between them."""

FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


def links(text: str) -> Iterator[re.Match[str]]:
    """Yield the relative links of a page, those in code left out."""
    for match in CODE_OR_LINK.finditer(text):
        link = match[0]
        if not link.startswith(("`", "#")) and "```" not in link and "://" not in link and not link.startswith("mailto:"):
            yield match


def target_of(page: Path, link: str) -> Path:
    """The file that a link of a page leads to. For a folder it is its README."""
    target = (page.parent / link.partition("#")[0]).resolve()
    readme = target / "README.md"
    return readme if target.is_dir() and readme.is_file() else target


def place_of(file: Path) -> str:
    """Where a file of the project is in the site."""
    return str(file.relative_to(DOCS)) if DOCS in file.parents else f"{PLACE}/{file.relative_to(ROOT)}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link outside docs/, and what these pages link."""
    for name in ("worker.js", "site.css"):
        files.append(File.generated(config, f"assets/{name}", abs_src_path=str(DOCS / "_site" / name)))
    waiting = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        for match in links(page.read_text(encoding="utf-8")):
            target = target_of(page, match[0])
            if target in seen or not target.is_file() or not target.is_relative_to(ROOT) or DOCS in target.parents:
                continue
            seen.add(target)
            files.append(File.generated(config, place_of(target), abs_src_path=str(target)))
            if target.suffix == ".md":
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to the places in the site, and lists begin where GitHub begins them."""
    source = Path(page.file.abs_src_path or "")
    here = os.path.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        link = match[0]
        if link.startswith(("`", "#")) or "```" in link or "://" in link or link.startswith("mailto:"):
            return link
        _, hash_sign, anchor = link.partition("#")
        target = target_of(source, link)
        if target.is_dir():
            raise PluginError(f"{page.file.src_uri}: {link} is a folder without a README.md")
        if not target.is_file():
            return link  # mkdocs says it
        return os.path.relpath(place_of(target), here or ".") + hash_sign + anchor

    text = CODE_OR_LINK.sub(moved, markdown)
    parts = FENCED.split(text)
    return "".join(part if number % 2 else LISTS.sub(r"\1\n", part) for number, part in enumerate(parts))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Let a page load our script in place of the theme's."""
    if FROM_ELSEWHERE not in output:
        raise PluginError(f"the theme no longer loads {FROM_ELSEWHERE}: see docs/_site/worker.js")
    return output.replace(FROM_ELSEWHERE, os.path.relpath(WORKER, os.path.dirname(page.file.dest_uri) or "."))


def on_post_template(output: str, template_name: str, config: MkDocsConfig) -> str:
    """Let pages of the theme, such as 404.html, load our script in place of the theme's."""
    return output.replace(FROM_ELSEWHERE, f"/{WORKER}")
