"""Options: dataclass fields with choices and bounds beyond their type. The docstring under a field is its documentation.

Which options exist is in `schema.py` and `data.py`.
"""

import ast
import inspect
import math
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

from hub.errors import did_you_mean

AUTO = "auto"


def option(
    default: Any,
    *,
    choices: tuple[str, ...] = (),
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """Make a dataclass field with the values it allows, beyond its type.

    Args:
        default: the default value. `"auto"` if the hub chooses.
        choices: the allowed words.
        ge: a number must be at least this. `None` and `"auto"` are exempt from bounds if they are the default.
        gt: a number must be above this.
        le: a number must be at most this.
        lt: a number must be below this.
    """
    metadata = {"choices": choices, "ge": ge, "gt": gt, "le": le, "lt": lt}
    return field(default=default, metadata={key: value for key, value in metadata.items() if value not in (None, ())})


def field_problems(part: Any, prefix: str) -> Iterator[str]:
    """One line for each field of a dataclass that violates the choices or bounds of its `option`."""
    for item in fields(part):
        value, rules = getattr(part, item.name), item.metadata
        name = f"{prefix}.{item.name}" if prefix else item.name
        if value is None and item.default is None:
            continue
        if value == "" and item.default not in ("", MISSING):
            # A shell variable that is not set leaves nothing behind the equals sign. That must not choose a default in silence.
            yield f"{name}= is empty. Type {name}=VALUE, or leave it out"
            continue
        if choices := rules.get("choices"):
            if value not in choices:
                near = did_you_mean(str(value), choices)
                yield f"{name}={value} is not allowed. Allowed: {', '.join(choices)}.{near}"
        elif bounds := bounds_words(rules):
            words = f" or {AUTO}" if item.default == AUTO else ""
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value != (AUTO if words else None) and not (is_number and math.isfinite(value) and _within(value, rules)):
                yield f"{name}={value} is not allowed. Allowed: a number {bounds}{words}"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{name}={value} is not allowed. Allowed: a finite number"


def list_item(cls: Any, name: str) -> Any:
    """The dataclass of the items of a list option, or None for any other option."""
    for item in fields(cls) if is_dataclass(cls) else ():
        if item.name == name and get_origin(item.type) is list and is_dataclass(get_args(item.type)[0]):
            return get_args(item.type)[0]
    return None


def type_words(cls: Any, name: str) -> str:
    """The type of an option in words, e.g. `a whole number or auto`. Empty if there is no such option."""
    words = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "str": "a text",
        "None": "null",
        "dict[str, str]": "names with a text for each, like {A: B}",
        "Any": "see there",
        "list[str]": 'a text, or a list like ["A","B"]',
        "list[float]": "a number, or a list like [0.5,1.0]",
    }
    for item in fields(cls) if is_dataclass(cls) else ():
        if item.name == name:
            if part := list_item(cls, name):
                return f"a list of {{{', '.join(inner.name for inner in fields(part))}}}"
            text = item.type.__name__ if isinstance(item.type, type) else str(item.type)
            kinds = [part.strip() for part in text.removeprefix("typing.").split("|")]
            if "str" in kinds and ("int" in kinds or "float" in kinds):
                # Beside a number the only text that is allowed is the default, such as auto.
                words["str"] = item.default if isinstance(item.default, str) else ""
                kinds = [kind for kind in kinds if words.get(kind) != ""]
            return " or ".join(words.get(kind, kind) for kind in kinds)
    return ""


def bounds_words(rules: Any) -> str:
    """The bounds in a field's metadata in words, e.g. `at least 0 and below 1`. Empty if there are none."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{word} {rules[key]:.10g}" for key, word in words.items() if key in rules)


def _within(value: float, rules: Any) -> bool:
    return bool(
        value >= rules.get("ge", -math.inf)
        and value > rules.get("gt", -math.inf)
        and value <= rules.get("le", math.inf)
        and value < rules.get("lt", math.inf)
    )


@cache
def field_docs(cls: type[Any]) -> dict[str, str]:
    """Field name -> its docstring in one line, for all fields of a dataclass, inherited ones included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        try:
            source = inspect.getsource(base)
        except (OSError, TypeError):  # a class of a notebook, or one that was made by a function
            continue
        body = ast.parse(textwrap.dedent(source)).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                docs[statement.target.id] = " ".join(after.value.value.split())
    return {item.name: docs[item.name] for item in fields(cls) if item.name in docs}


def leaves(part: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Each option of a config as (full name, value, default, docstring), nested dataclasses included."""
    docs = field_docs(type(part))  # type: ignore[arg-type]  # mypy takes no class for hashable
    for item in fields(part):
        name, value = f"{prefix}{item.name}", getattr(part, item.name)
        if is_dataclass(value):
            yield from leaves(value, f"{name}.")
        else:
            default = item.default if item.default is not MISSING else None
            if item.default_factory is not MISSING:
                default = item.default_factory()
            yield name, value, default, docs.get(item.name, "")


def conf_dir() -> Path:
    """The hub's own conf/ folder: inside the package in a wheel, at the top of the repository in an editable install."""
    package = Path(__file__).parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"
