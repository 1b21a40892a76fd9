"""Measure Python code: expressions per line, and the lines and parameters of each function."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


class Size(NamedTuple):
    """The size of the Python code in a file or a folder."""

    expressions: int
    lines: int  # number of lines without blank lines, comments and docstrings

    @property
    def density(self) -> float:
        """The number of expressions per line of code."""
        return self.expressions / max(1, self.lines)

    def plus(self, other: "Size") -> "Size":
        return Size(self.expressions + other.expressions, self.lines + other.lines)


def size_of(path: Path) -> Size:
    source = path.read_text()
    tree = ast.parse(source)
    expressions = sum(isinstance(node, ast.expr) for node in ast.walk(tree))
    lines = _lines_with_tokens(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED):
            lines -= _docstring_lines(node)
    return Size(expressions, len(lines))


def functions_of(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            yield node


def length_of(function: Function) -> int:
    """Count the lines of a function, with its docstring but without its decorators."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def num_parameters_of(function: Function) -> int:
    """Count the parameters of a function, without `self` or `cls` of a method."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    names = [argument.arg for argument in named if argument.arg not in ("self", "cls")]
    if arguments.vararg is not None:
        names.append(arguments.vararg.arg)
    if arguments.kwarg is not None:
        names.append(arguments.kwarg.arg)
    return len(names)


def walruses_in_arguments(path: Path) -> list[int]:
    """Return the line numbers of calls with an assignment expression in their arguments."""
    lines = []
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call):
            arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
            if any(_has_walrus(argument) for argument in arguments):
                lines.append(call.lineno)
    return lines


def _has_walrus(expression: ast.expr) -> bool:
    return any(isinstance(node, ast.NamedExpr) for node in ast.walk(expression))


def _lines_with_tokens(source: str) -> set[int]:
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            first_line, _ = token.start
            last_line, _ = token.end
            lines.update(range(first_line, last_line + 1))
    return lines


def _docstring_lines(node: ast.Module | ast.ClassDef | Function) -> set[int]:
    if ast.get_docstring(node, clean=False) is None:
        return set()
    docstring = node.body[0]
    assert docstring.end_lineno is not None
    return set(range(docstring.lineno, docstring.end_lineno + 1))
