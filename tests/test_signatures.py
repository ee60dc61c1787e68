"""hub/__init__.pyi, from which editors and type checkers know the Python calls."""

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path

import hub
from hub.cli.signatures import CALLS, stub
from hub.keywords import NESTED

ROOT = Path(__file__).parents[1]
TREE = ast.parse((ROOT / "hub" / "__init__.pyi").read_text(encoding="utf-8"))
FUNCTIONS = {node.name: node for node in TREE.body if isinstance(node, ast.FunctionDef)}
SET_BY_ARGUMENTS = {"data.path", "data.mix", "model.path", "track.tool"}


def documented(algorithm: str) -> set[str]:
    """The options that docs/options.md has for an algorithm: the last parts of their names."""
    sections = re.split(r"^## ", (ROOT / "docs" / "options.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    others = ("algo=", "hub ")
    own = [text for text in sections if not text.startswith(others) or text.startswith(f"algo={algorithm}:")]
    names = set(re.findall(r"^\| `([\w.]+)` \|", "".join(own), re.MULTILINE))
    nested = {name for name in names if name.split(".")[0] in NESTED}
    return {name.rpartition(".")[2] for name in names - SET_BY_ARGUMENTS - nested} | {*NESTED}


def test_the_signatures_are_those_of_the_options():
    assert stub(CALLS) == (ROOT / "hub" / "__init__.pyi").read_text(encoding="utf-8"), stub.__module__


def test_every_documented_option_is_a_keyword_of_its_call_and_is_taken():
    for name in CALLS:
        keywords = {argument.arg for argument in FUNCTIONS[name].args.kwonlyargs}
        assert keywords - {"model", "data", "track", "nproc"} == documented(name)
        assert len(keywords) > 70
        # A running notebook completes from the functions themselves.
        assert set(inspect.signature(getattr(hub, name)).parameters) == keywords - {"nproc"} | {"options"}
        defaults = hub.show(name)
        values = {option: defaults[option] for option in documented(name) - {*NESTED}}
        values |= {part: {item.name: defaults[f"{part}.{item.name}"] for item in fields(cls)} for part, cls in NESTED.items()}
        shown = hub.show(name, **values)
        assert {option.source for option in shown.options if option.name not in SET_BY_ARGUMENTS} == {"keyword"}
    assert {argument.arg for argument in FUNCTIONS["run"].args.kwonlyargs} >= {"resume", "seed", "model"}
    assert {"resume", "eval_fraction", "model", "seed"} <= inspect.signature(hub.data).parameters.keys()
    assert (ROOT / "hub" / "py.typed").is_file()


def test_every_public_name_is_in_the_stub():
    names = {alias.name for node in TREE.body if isinstance(node, ast.ImportFrom) for alias in node.names} | FUNCTIONS.keys()
    assert set(hub.__all__) <= names
