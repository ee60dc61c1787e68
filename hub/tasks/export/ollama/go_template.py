"""An evaluator of Go's template language, as far as the hub writes it: Ollama has its prompts in this language.

The rules are those of https://pkg.go.dev/text/template. Only these are known: `if`, `else if`, `else`, `range`, `end`,
`define`, `template`, variables, fields, some functions, and what cuts whitespace. Anything else is refused, so that no template
passes a check here that Go reads otherwise.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hub.errors import ModelError

_TAG = re.compile(r"(\{\{-\s|\{\{)(.*?)(\s-\}\}|\}\})", re.DOTALL)
_WORD = re.compile(r'\s*("(?:[^"\\]|\\.)*"|:=|=|,|\(|\)|[^\s(),="]+)')
_GO_SPACE = " \t\r\n"
_MAX_DEPTH = 10_000


@dataclass
class _Branch:
    """`if` or `range`: what it asks for, and what stands in it."""

    kind: str
    words: list[str]
    body: list[Any] = field(default_factory=list)
    other: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class _Action:
    words: list[str]


class GoTemplate:
    """A parsed template."""

    def __init__(self, text: str) -> None:
        """Args:
        text: the template.

        Raises:
            ModelError: it has something that is not known here.
        """
        self._defined: dict[str, list[Any]] = {}
        self._tokens = list(_tokens(text))
        self._place = 0
        self._body, ended_by = self._block()
        if ended_by is not None:
            raise _wrong(f"{ended_by[0]} without a beginning")

    def render(self, data: Mapping[str, Any]) -> str:
        """Evaluate the template for `.` = data."""
        out: list[str] = []
        self._run(self._body, data, [{"$": data}], out, 0)
        return "".join(out)

    def _block(self) -> tuple[list[Any], list[str] | None]:
        """The nodes up to an `end` or `else`, and the words of that."""
        nodes: list[Any] = []
        while self._place < len(self._tokens):
            token = self._tokens[self._place]
            self._place += 1
            if isinstance(token, str):
                nodes.append(token)
                continue
            first = token[0] if token else ""
            if first in ("end", "else"):
                return nodes, token
            if first in ("if", "range"):
                nodes.append(self._branch(first, token[1:]))
            elif first == "define":
                body, _ = self._block()
                self._defined[_string(token[1])] = body
            else:
                nodes.append(_Action(token))
        return nodes, None

    def _branch(self, kind: str, words: list[str]) -> _Branch:
        branch = _Branch(kind, words)
        branch.body, end = self._block()
        if end is not None and end[0] == "else":
            if len(end) > 1:  # `else if`: a branch within, which the same `end` closes
                branch.other = [self._branch(end[1], end[2:])]
                return branch
            branch.other, end = self._block()
        if end is None:
            raise _wrong(f"{kind} without end")
        return branch

    def _run(self, nodes: Sequence[Any], dot: Any, scopes: list[dict[str, Any]], out: list[str], depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise _wrong("endless recursion")
        for node in nodes:
            if isinstance(node, str):
                out.append(node)
            elif isinstance(node, _Action):
                self._act(node.words, dot, scopes, out, depth)
            elif node.kind == "if":
                chosen = node.body if _is_true(_value(node.words, dot, scopes)) else node.other
                self._run(chosen, dot, [*scopes, {}], out, depth)
            else:
                self._range(node, dot, scopes, out, depth)

    def _range(self, node: _Branch, dot: Any, scopes: list[dict[str, Any]], out: list[str], depth: int) -> None:
        names, words = [], node.words
        if ":=" in words:
            at = words.index(":=")
            names, words = [word for word in words[:at] if word != ","], words[at + 1 :]
        over = _value(words, dot, scopes) or ()
        pairs = [(key, over[key]) for key in sorted(over)] if isinstance(over, Mapping) else list(enumerate(over))
        for key, value in pairs:
            given = (key, value) if len(names) == 2 else (value,)
            self._run(node.body, value, [*scopes, dict(zip(names, given, strict=False))], out, depth)
        if not pairs:
            self._run(node.other, dot, [*scopes, {}], out, depth)

    def _act(self, words: list[str], dot: Any, scopes: list[dict[str, Any]], out: list[str], depth: int) -> None:
        if not words:
            raise _wrong("an empty action")
        if words[0] == "template":
            given = _value(words[2:], dot, scopes)
            name = _string(words[1])
            if name not in self._defined:
                raise _wrong(f"no template {name}")
            self._run(self._defined[name], given, [{"$": given}], out, depth + 1)
        elif len(words) > 1 and words[1] in (":=", "="):
            value = _value(words[2:], dot, scopes)
            scope = scopes[-1] if words[1] == ":=" else _scope_of(words[0], scopes)
            scope[words[0]] = value
        else:
            out.append(_text(_value(words, dot, scopes)))


def go_json(value: Any) -> str:
    """A value as Go's encoding/json writes it: no spaces, maps in order of their keys, no <, > and & as they are."""
    text = json.dumps(_sorted(value), ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


class Struct(dict[str, Any]):
    """A struct of Go: fields that it lacks are mistakes."""

    json: Mapping[str, Any] | None = None
    """What it is in JSON, its keys in order."""


def _sorted(value: Any) -> Any:
    if isinstance(value, Struct):
        if value.json is None:
            raise _wrong("json of a struct")
        return {key: _sorted(one) for key, one in value.json.items()}
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(one) for one in value] if isinstance(value, list) else value


def _tokens(text: str) -> list[Any]:
    """Texts, and lists of the words of actions."""
    found: list[Any] = []
    place, trims = 0, False
    for tag in _TAG.finditer(text):
        before = text[place : tag.start()]
        before = before.lstrip(_GO_SPACE) if trims else before
        before = before.rstrip(_GO_SPACE) if tag[1] != "{{" else before
        if before:
            found.append(before)
        found.append(_words(tag[2]))
        place, trims = tag.end(), tag[3] != "}}"
    rest = text[place:].lstrip(_GO_SPACE) if trims else text[place:]
    if "{{" in rest:
        raise _wrong("an action that does not end")
    return [*found, rest] if rest else found


def _words(text: str) -> list[str]:
    text = text.strip()
    words, place = [], 0
    while place < len(text):
        word = _WORD.match(text, place)
        if word is None:
            raise _wrong(text)
        words.append(word[1])
        place = word.end()
    return words


def _value(words: Sequence[str], dot: Any, scopes: Sequence[Mapping[str, Any]]) -> Any:
    """The value of a pipeline of one command."""
    value, place = _command(words, 0, dot, scopes)
    if place != len(words):
        raise _wrong(" ".join(words))
    return value


def _command(words: Sequence[str], place: int, dot: Any, scopes: Sequence[Mapping[str, Any]]) -> tuple[Any, int]:
    """The value of a function with its arguments, or of one operand, up to a closing parenthesis."""
    if place >= len(words):
        raise _wrong("an empty action")
    if words[place] in _FUNCTIONS:
        name, place = words[place], place + 1
        arguments: list[Any] = []
        while place < len(words) and words[place] != ")":
            argument, place = _operand(words, place, dot, scopes)
            arguments.append(argument)
        return _FUNCTIONS[name](*arguments), place
    return _operand(words, place, dot, scopes)


def _operand(words: Sequence[str], place: int, dot: Any, scopes: Sequence[Mapping[str, Any]]) -> tuple[Any, int]:
    word = words[place]
    if word == "(":
        value, place = _command(words, place + 1, dot, scopes)
        if place >= len(words) or words[place] != ")":
            raise _wrong(" ".join(words))
        return value, place + 1
    return _one(word, dot, scopes), place + 1


def _one(word: str, dot: Any, scopes: Sequence[Mapping[str, Any]]) -> Any:
    if word.startswith('"'):
        return _string(word)
    if word.lstrip("-").isdigit():
        return int(word)
    if word in ("true", "false"):
        return word == "true"
    name, *fields = word.split(".")
    if name.startswith("$"):
        dot = _scope_of(name, scopes)[name]
    elif name or not word.startswith("."):
        raise _wrong(word)
    for one in filter(None, fields):
        if not isinstance(dot, Mapping) or (isinstance(dot, Struct) and one not in dot):
            raise _wrong(f"no field {one}")
        dot = dot.get(one)
    return dot


def _scope_of(name: str, scopes: Sequence[Any]) -> Any:
    for scope in reversed(scopes):
        if name in scope:
            return scope
    raise _wrong(f"no variable {name}")


def _string(word: str) -> str:
    found = json.loads(word)  # the escapes that the hub writes are those of JSON, too
    assert isinstance(found, str)
    return found


def _is_true(value: Any) -> bool:
    return bool(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(f"a value that is no text ({type(value).__name__})")
    return str(value)


def _slice(value: str, begin: int, end: int | None = None) -> str:
    return value.encode(errors="surrogateescape")[begin:end].decode(errors="surrogateescape")


def _printf(form: str, value: Any) -> str:
    """The name of a type: the only form that is known."""
    if form != "%T":
        raise _wrong(f"printf {form}")
    names = {str: "string", bool: "bool", int: "float64", float: "float64", type(None): "<nil>"}
    if isinstance(value, (Mapping, list)):
        return "map[string]interface {}" if isinstance(value, Mapping) else "[]interface {}"
    return names[type(value)]


def _and(*values: Any) -> Any:
    return next((value for value in values if not _is_true(value)), values[-1])


def _or(*values: Any) -> Any:
    return next((value for value in values if _is_true(value)), values[-1])


def _wrong(what: str) -> ModelError:
    return ModelError(f"Go template: {what}")


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": _and,
    "or": _or,
    "not": lambda value: not _is_true(value),
    "eq": lambda first, *others: first in others,
    "ne": lambda first, second: first != second,
    "gt": lambda first, second: first > second,
    "len": lambda value: len(value.encode(errors="surrogateescape") if isinstance(value, str) else value),
    "slice": _slice,
    "json": go_json,
    "printf": _printf,
}
