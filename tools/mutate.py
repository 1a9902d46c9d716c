"""Small mistakes, made by rule: every way in which one place of a function's source can be a little wrong."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

OPERATORS = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult, ast.FloorDiv),
    ast.FloorDiv: (ast.Div,),
    ast.Pow: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.MatMult: (ast.Mult,),
}
ORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Pow, ast.MatMult)  # swapping the two sides changes the value
COMPARISONS = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
TWINS = {
    "sum": "mean",
    "mean": "sum",
    "max": "min",
    "min": "max",
    "argmax": "argmin",
    "argmin": "argmax",
    "triu": "tril",
    "tril": "triu",
    "zeros": "ones",
    "ones": "zeros",
    "floor": "ceil",
    "ceil": "floor",
    "append": "extend",
    "sqrt": "square",
    "log": "exp",
    "exp": "log",
    "repeat_interleave": "repeat",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
}
CHECKED = {"dtype", "device"}  # options that change no value of a right answer
KEPT = {"len", "range", "zip", "enumerate", "list", "dict", "set", "super", "isinstance", "tuple", "sorted"}
CONVERSIONS = {"float", "int", "double", "to", "tolist", "item", "numpy", "detach", "tensor", "as_tensor", "contiguous"}
CONVERSIONS |= {"array", "asarray", "copy", "ascontiguousarray"}
COMMUTATIVE = {"min", "max", "minimum", "maximum", "dot", "add", "mul", "cosine_similarity", "mse_loss", "MSELoss"}


@dataclass(frozen=True)
class Mutant:
    """A source with one mistake in it; `change` shows the statement before and after."""

    change: str
    source: str


def mutants(source: str, gradients: bool = False) -> Iterator[Mutant]:
    """Every mutant of a cell, function, class or lambda, each changed one once.

    `gradients` says that something is trained through the result, so that `detach` is a mistake.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "strict"]
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(getattr(node, "body", None), list):
            node.body = [part for part in node.body if not isinstance(part, ast.Assert)] or [ast.Pass()]
        if isinstance(node, ast.Raise):
            node.exc, node.cause = ast.Call(_raised(node), [], []) if node.exc else None, None
    original = ast.unparse(tree)
    seen = {original}
    nodes = list(ast.walk(tree))
    for index, node in enumerate(nodes):
        for number in range(len(list(_changes(node)))):
            other = copy.deepcopy(tree)
            target = list(ast.walk(other))[index]
            new = list(_changes(target))[number]()
            if new is not None and not _replaced(other, target, new):
                continue
            ast.fix_missing_locations(other)
            text = ast.unparse(other)
            if text in seen or not _compiles(text):
                continue
            seen.add(text)
            if gradients or ".detach()" not in text or text.count(".detach()") <= original.count(".detach()"):
                yield Mutant(_difference(original, text), text)


def _raised(node: ast.Raise) -> ast.expr:
    """What is raised, without its words."""
    return node.exc.func if isinstance(node.exc, ast.Call) else node.exc


def _changes(node: ast.AST) -> Iterator[Callable[[], ast.AST | None]]:
    """The changes of a node, each as a function that makes it in place (None) or returns what stands there instead."""
    for kind, rule in RULES.items():
        if isinstance(node, kind):
            yield from rule(node)


def _set(node: ast.AST, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(node, name, value)


def _binary(node: ast.BinOp) -> Iterator[Callable]:
    for kind in OPERATORS.get(type(node.op), ()):
        yield _set(node, "op", kind())
    yield lambda: node.left
    yield lambda: node.right
    if isinstance(node.op, ORDERED):
        yield lambda: ast.BinOp(node.right, node.op, node.left)


def _constant(node: ast.Constant) -> Iterator[Callable]:
    if isinstance(node.value, bool):
        yield _set(node, "value", not node.value)
    elif isinstance(node.value, int | float):
        yield _set(node, "value", node.value + 1)
        yield _set(node, "value", node.value - 1)


def _compare(node: ast.Compare) -> Iterator[Callable]:
    for i, operator in enumerate(node.ops):
        for kind in COMPARISONS[type(operator)]:
            yield _set(node, "ops", [*node.ops[:i], kind(), *node.ops[i + 1 :]])


def _boolean(node: ast.BoolOp) -> Iterator[Callable]:
    yield _set(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
    for value in node.values:
        yield lambda value=value: value


def _unary(node: ast.UnaryOp) -> Iterator[Callable]:
    yield lambda: node.operand


def _call(node: ast.Call) -> Iterator[Callable]:
    function, named = node.func, node.func.id if isinstance(node.func, ast.Name) else ""
    plain = not any(isinstance(argument, ast.Starred) for argument in node.args)
    if (function.attr if isinstance(function, ast.Attribute) else named) in CONVERSIONS:
        return  # the same value in another form
    if isinstance(function, ast.Attribute):
        if function.attr in TWINS:
            yield lambda: setattr(function, "attr", TWINS[function.attr])
        if not isinstance(function.value, ast.Name) or function.value.id not in ("torch", "np", "math", "F", "nn"):
            yield lambda: function.value
    elif named in TWINS:
        yield lambda: setattr(function, "id", TWINS[named])
    if len(node.args) == 1 and plain and named not in KEPT:
        yield lambda: node.args[0]
    name = function.attr if isinstance(function, ast.Attribute) else named
    for i in range(len(node.args) - 1 if plain and name not in COMMUTATIVE else 0):
        yield _set(node, "args", [*node.args[:i], node.args[i + 1], node.args[i], *node.args[i + 2 :]])
    for i in range(len(node.args) if plain and len(node.args) > 1 else 0):
        yield _set(node, "args", [*node.args[:i], *node.args[i + 1 :]])
    for i in (i for i, keyword in enumerate(node.keywords) if keyword.arg not in CHECKED):
        yield _set(node, "keywords", [*node.keywords[:i], *node.keywords[i + 1 :]])


def _attribute(node: ast.Attribute) -> Iterator[Callable]:
    if node.attr in ("T", "mT", "data"):
        yield lambda: node.value
    if node.attr in ("in_features", "out_features"):
        yield _set(node, "attr", "out_features" if node.attr == "in_features" else "in_features")


def _subscript(node: ast.Subscript) -> Iterator[Callable]:
    if isinstance(node.ctx, ast.Load):
        yield lambda: node.value
    place = node.slice
    if isinstance(place, ast.Slice):
        for name in ("lower", "upper"):
            end = getattr(place, name)
            if end is not None and not isinstance(end, ast.Constant):
                yield lambda name=name, end=end: setattr(place, name, ast.BinOp(end, ast.Add(), ast.Constant(1)))
                yield lambda name=name, end=end: setattr(place, name, ast.BinOp(end, ast.Sub(), ast.Constant(1)))
            if end is not None and place.lower is not None and place.upper is not None:
                yield lambda name=name: setattr(place, name, None)


def _either(node: ast.IfExp) -> Iterator[Callable]:
    yield lambda: node.body
    yield lambda: node.orelse


def _if(node: ast.If) -> Iterator[Callable]:
    for value in (True, False):
        yield _set(node, "test", ast.Constant(value))


def _loop(node: ast.For | ast.comprehension) -> Iterator[Callable]:
    for part in (ast.Slice(ast.Constant(1), None), ast.Slice(None, ast.UnaryOp(ast.USub(), ast.Constant(1)))):
        listed = ast.Call(ast.Name("list", ast.Load()), [node.iter], [])
        yield _set(node, "iter", ast.Subscript(listed, part, ast.Load()))
    for i in range(len(getattr(node, "ifs", ()))):
        yield _set(node, "ifs", [*node.ifs[:i], *node.ifs[i + 1 :]])


def _body(node: ast.AST) -> Iterator[Callable]:
    for i, statement in enumerate(node.body):
        if isinstance(statement, ast.Expr | ast.AugAssign | ast.If | ast.With) and not _is_words(statement):
            yield _set(node, "body", [*node.body[:i], *(node.body[i + 1 :] or [ast.Pass()])])


def _augmented(node: ast.AugAssign) -> Iterator[Callable]:
    for kind in OPERATORS.get(type(node.op), ()):
        yield _set(node, "op", kind())


def _function(node: ast.FunctionDef | ast.Lambda) -> Iterator[Callable]:
    yield from _body(node) if isinstance(node, ast.FunctionDef) else ()
    names = node.args.args
    for i in range(1 if names and names[0].arg == "self" else 0, len(names) - 1):
        yield _set(node.args, "args", [*names[:i], names[i + 1], names[i], *names[i + 2 :]])


def _returned(node: ast.Return) -> Iterator[Callable]:
    """A result without its gradient, or with its parts in another order."""
    if isinstance(node.value, ast.Tuple) and len(node.value.elts) > 1:
        parts = node.value.elts
        yield _set(node.value, "elts", [parts[1], parts[0], *parts[2:]])
    elif isinstance(node.value, ast.BinOp | ast.Call):
        yield _set(node, "value", ast.Call(ast.Attribute(node.value, "detach", ast.Load()), [], []))


RULES: dict[type, Callable[[ast.AST], Iterator[Callable]]] = {
    ast.BinOp: _binary,
    ast.Constant: _constant,
    ast.Compare: _compare,
    ast.BoolOp: _boolean,
    ast.UnaryOp: _unary,
    ast.Call: _call,
    ast.Attribute: _attribute,
    ast.Subscript: _subscript,
    ast.IfExp: _either,
    ast.If: _if,
    ast.For: _loop,
    ast.comprehension: _loop,
    ast.With: _body,
    ast.While: _body,
    ast.AugAssign: _augmented,
    ast.FunctionDef: _function,
    ast.Lambda: _function,
    ast.Return: _returned,
}


def _is_words(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _replaced(tree: ast.AST, old: ast.AST, new: ast.AST) -> bool:
    """Put a node in another one's place; whether that was found."""
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
                return True
            if isinstance(value, list) and any(part is old for part in value):
                setattr(parent, name, [new if part is old else part for part in value])
                return True
    return False


def _difference(before: str, after: str) -> str:
    """The lines that differ, as "old → new"."""
    old, new = before.splitlines(), after.splitlines()
    start = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    parts = (" ".join(line.strip() for line in lines[start : len(lines) - end]) for lines in (old, new))
    return " → ".join(part or "(nothing)" for part in parts)


def _compiles(text: str) -> bool:
    try:
        compile(text, "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return True
