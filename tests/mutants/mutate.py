"""Mutants of a module: its syntax tree with one small mistake each, such as `<` in place of `<=`, or a statement left out.

Nothing is written: a mutant is compiled from the tree. Texts, annotations, docstrings and what an error says have none.
"""

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True)
class Mutant:
    """One mistake in one file."""

    number: int
    """Its place among the mutants of the file."""

    line: int
    statement: int
    """The first line of the statement that it is in."""

    before: str
    after: str
    in_function: bool
    """Whether it is in the body of a function. If not, it acts when the module is imported."""

    change: Callable[[], Callable[[], None]]
    """Makes the mistake in the tree. Returns what undoes it."""

    def __str__(self) -> str:
        return f"{_short(self.before)}  ->  {_short(self.after)}"


class Module:
    """A source file and its mutants."""

    def __init__(self, source: str, name: str) -> None:
        """Args:
        source: the text.
        name: the path that tracebacks and code objects have.
        """
        self.source, self.name = source, name
        self.tree = ast.parse(source)
        self.mutants: list[Mutant] = []
        self._statement = 1
        self._of_node(self.tree, in_function=False)

    def code(self, mutant: Mutant | None = None) -> CodeType:
        """The compiled module, with the mistake of a mutant."""
        if mutant is None:
            return compile(self.tree, self.name, "exec")
        with _made(mutant):
            return compile(self.tree, self.name, "exec")

    def _add(self, node: ast.AST, before: str, after: str, in_function: bool, change: Callable[[], Callable[[], None]]) -> None:
        line: int = node.lineno  # type: ignore[attr-defined]
        self.mutants.append(Mutant(len(self.mutants), line, self._statement, before, after, in_function, change))

    def _replace(self, owner: ast.AST, field: str, index: int | None, new: ast.AST | None, in_function: bool) -> None:
        """A mutant with another node in a field, or in a place of a list in that field. None: without it."""
        value = getattr(owner, field)
        old = value if index is None else value[index]
        where = old if hasattr(old, "lineno") else owner
        if new is not None:
            for node in ast.walk(new):
                if not hasattr(node, "lineno"):
                    ast.copy_location(node, where)
            ast.fix_missing_locations(new)
        shown = owner if isinstance(old, (ast.operator, ast.cmpop, ast.boolop, ast.keyword)) else old
        before = ast.unparse(shown)

        def change() -> Callable[[], None]:
            if index is None:
                setattr(owner, field, new)
                return lambda: setattr(owner, field, old)
            if new is None:
                del value[index]
                return lambda: value.insert(index, old)
            value[index] = new

            def undo() -> None:
                value[index] = old

            return undo

        undo = change()
        made = owner if shown is owner else new
        after = "" if made is None else ast.unparse(made)
        undo()
        self._add(where, before, after, in_function, change)

    def _of_node(self, node: ast.AST, in_function: bool) -> None:
        """Find the mutants of everything below a node."""
        for field, value in ast.iter_fields(node):
            inside = in_function or (isinstance(node, FUNCTIONS) and field == "body")
            if field in ("annotation", "returns", "decorator_list", "type_params") or isinstance(node, ast.JoinedStr):
                continue
            for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(child, ast.AST) and not _is_text(child) and not _is_strict(child):
                    self._of_place(node, field, index, child, inside)

    def _of_place(self, owner: ast.AST, field: str, index: int | None, node: ast.AST, inside: bool) -> None:
        """Find the mutants of one node and of all below it."""
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            return
        if isinstance(node, ast.AnnAssign) and node.value is None:
            return
        if isinstance(node, ast.stmt):
            self._statement = node.lineno
        if index is not None and field in ("body", "orelse", "finalbody") and isinstance(node, ast.stmt):
            for new in _statements(node):
                self._replace(owner, field, index, new, inside)
        if isinstance(node, ast.Raise):  # what it says is no matter of logic
            return
        if isinstance(node, ast.expr):
            for new in _expressions(node):
                self._replace(owner, field, index, new, inside)
        self._within(node, inside)
        self._of_node(node, inside)

    def _within(self, node: ast.AST, inside: bool) -> None:
        """Find mutants that leave the node in its place and change its parts."""
        if isinstance(node, ast.Compare):
            for number, operation in enumerate(node.ops):
                self._replace(node, "ops", number, COMPARISONS[type(operation)](), inside)
        elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OPERATORS:
            self._replace(node, "op", None, OPERATORS[type(node.op)](), inside)
        elif isinstance(node, ast.BoolOp):
            self._replace(node, "op", None, ast.Or() if isinstance(node.op, ast.And) else ast.And(), inside)
        elif isinstance(node, ast.Call):
            for number, keyword in enumerate(node.keywords):
                if keyword.arg is not None and not _is_strict(keyword):
                    self._replace(node, "keywords", number, None, inside)
            if isinstance(node.func, (ast.Name, ast.Attribute)):
                field = "id" if isinstance(node.func, ast.Name) else "attr"
                if (other := NAMES.get(name := getattr(node.func, field))) is not None:
                    self._rename(node.func, field, name, other, inside)
        elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
            for value in (True, False):
                if not isinstance(node, ast.While) or not value:
                    self._replace(node, "test", None, ast.Constant(value), inside)
        elif isinstance(node, ast.comprehension):
            for number in range(len(node.ifs)):
                self._replace(node, "ifs", number, ast.Constant(True), inside)

    def _rename(self, node: ast.AST, field: str, before: str, after: str, inside: bool) -> None:
        def change() -> Callable[[], None]:
            setattr(node, field, after)
            return lambda: setattr(node, field, before)

        self._add(node, before, after, inside, change)


def _statements(node: ast.stmt) -> Iterator[ast.stmt]:
    """What stands in the place of a statement."""
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Await))
    stores = isinstance(node, ast.Assign) and all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets)
    if is_call or stores or isinstance(node, (ast.AugAssign, ast.Raise, ast.Delete)):
        yield ast.Pass()
    elif isinstance(node, ast.Continue):
        yield ast.Break()
    elif isinstance(node, ast.Break):
        yield ast.Continue()
    elif isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield ast.Return(None)


def _expressions(node: ast.expr) -> Iterator[ast.expr]:
    """What stands in the place of an expression."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, int):
            yield ast.Constant(node.value + 1)
        elif isinstance(node.value, float):
            yield ast.Constant(node.value * 2 or 1.0)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand


def _is_text(node: ast.AST) -> bool:
    """Whether it is a docstring, or the text under a field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_strict(node: ast.AST) -> bool:
    """Whether it is the `strict` of `zip`, which checks and changes nothing."""
    return isinstance(node, ast.keyword) and node.arg == "strict"


@contextmanager
def _made(mutant: Mutant) -> Iterator[None]:
    undo = mutant.change()
    try:
        yield
    finally:
        undo()


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 90 else f"{line[:87]}..."
