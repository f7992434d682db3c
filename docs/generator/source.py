"""What only the source text knows: the string below an attribute, a signature as it was written."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[2]
HEADING = re.compile(r"(Args|Attributes|Raises|Returns):")
ITEM = re.compile(r"    ([\w, ]+): ")
WIDTH = 120
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Attribute(msgspec.Struct, frozen=True):
    """An annotated attribute of a class: its type and default as written, and the string below it."""

    name: str
    type: str
    default: str
    doc: str


def workspace_plugins() -> dict[str, Path]:
    """The plugins of this repository by name, with the folders of their sources, sorted."""
    found = {}
    for file in sorted(ROOT.glob("plugins/*/pyproject.toml")):
        points = tomllib.loads(file.read_text("utf-8"))["project"].get("entry-points", {})
        found.update(dict.fromkeys(points.get("headrace.plugins", {}), file.parent / "src"))
    return dict(sorted(found.items()))


@functools.cache
def module_tree(name: str) -> ast.Module:
    """The syntax tree of an importable module."""
    return ast.parse(inspect.getsource(importlib.import_module(name)))


def class_node(cls: type[Any]) -> ast.ClassDef:
    """The definition of a class at the top level of its module."""
    return next(
        node
        for node in module_tree(cls.__module__).body
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )


def function_node(function: Any) -> Function:
    """The definition of a function at the top level of its module."""
    return next(
        node
        for node in module_tree(function.__module__).body
        if isinstance(node, Function) and node.name == function.__name__
    )


def signature(node: Function) -> str:
    """`async def name(arguments) -> result` as it was written, without `self`, wrapped as ruff would wrap it."""
    colour = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    result = f" -> {_written(node.returns)}" if node.returns else ""
    arguments = [each for each in _arguments(node.args) if each not in ("self", "cls")]
    line = f"{colour} {node.name}({', '.join(arguments)}){result}"
    if len(line) + len(": ...") <= WIDTH:
        return line
    inner = ", ".join(arguments)
    folded = f"    {inner}\n" if len(inner) + 4 <= WIDTH else "".join(f"    {each},\n" for each in arguments)
    return f"{colour} {node.name}(\n{folded}){result}"


def _arguments(given: ast.arguments) -> Iterator[str]:
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    for number, (argument, default) in enumerate(zip(positional, defaults, strict=True), 1):
        yield _argument(argument, default)
        if number == len(given.posonlyargs):
            yield "/"
    if given.vararg or given.kwonlyargs:
        yield f"*{_argument(given.vararg, None) if given.vararg else ''}"
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield _argument(argument, default)
    if given.kwarg:
        yield f"**{_argument(given.kwarg, None)}"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    annotation = f": {_written(argument.annotation)}" if argument.annotation else ""
    return f"{argument.arg}{annotation}{f' = {_written(default)}' if default else ''}"


def _written(node: ast.expr) -> str:
    return ast.unparse(node).replace("'", '"')


def attributes(body: Sequence[ast.stmt]) -> list[Attribute]:
    """The public annotated attributes of a class's body, or those that its `__init__` sets on `self`."""
    return [found for statement, after in _pairs(body) if (found := _attribute(statement, after)) is not None]


def _pairs(body: Sequence[ast.stmt]) -> Iterator[tuple[ast.stmt, ast.stmt | None]]:
    yield from zip(body, [*body[1:], None], strict=True)


def _attribute(statement: ast.stmt, after: ast.stmt | None) -> Attribute | None:
    if not isinstance(statement, ast.AnnAssign):
        return None
    target = statement.target
    name = target.id if isinstance(target, ast.Name) else target.attr if isinstance(target, ast.Attribute) else "_"
    if name.startswith("_"):
        return None
    default = _written(statement.value) if statement.value is not None else ""
    return Attribute(name, _written(statement.annotation), default, string_of(after))


def string_of(statement: ast.stmt | None) -> str:
    """The text of a statement that is nothing but a string, on one line; else empty."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        value = statement.value.value
        return " ".join(value.split()) if isinstance(value, str) else ""
    return ""


def prose(doc: str) -> str:
    """A docstring as Markdown: `Args:`, `Raises:` and their like become lists."""
    lines: list[str] = []
    for line in doc.splitlines():
        if HEADING.fullmatch(line):
            lines += [line, ""]
        elif ITEM.match(line):
            lines.append(ITEM.sub(r"- `\1`: ", line))
        else:
            lines.append(line.replace("    ", "  ", 1) if line.startswith("        ") else line.strip())
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


HEADER = "<!-- Generated by docs/generate.py: change the source and run it, not this page. -->\n\n"
