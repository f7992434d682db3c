"""`reference/objects.md`: what hooks are given and what plugins register, from the classes themselves."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

from headrace import config, dialects, exchange, gateway, models, providers, streaming, supervisor, testing

from .source import HEADER, Attribute, attributes, cell, class_node, function_node, prose, signature, string_of

GROUPS: dict[str, tuple[type[Any], ...]] = {
    "A request": (
        exchange.Exchange,
        exchange.Principal,
        exchange.Attempt,
        exchange.UpstreamRequest,
        exchange.Reply,
        exchange.Outcome,
        exchange.Usage,
    ),
    "Streams": (streaming.Tap, streaming.Event, streaming.EventSplitter),
    "What plugins register": (
        providers.Provider,
        providers.HealthCheck,
        providers.Health,
        providers.RoutingPolicy,
        dialects.Endpoint,
        dialects.Dialect,
        dialects.Events,
        supervisor.Process,
    ),
    "The gateway": (gateway.Gateway, models.Model, exchange.Target, config.Secret, config.Strict),
    "The test kit": (testing.Running, testing.FakeBackend),
}
LEFT_OUT = ("assemble", "running", "make_dirs", "from_file", "encode")


def page() -> str:
    """The whole page."""
    parts = [HEADER, "# Objects\n\nWhat hooks are given, what plugins register, and where each is imported from.\n"]
    for title, classes in GROUPS.items():
        parts.append(f"\n## {title}\n")
        parts.extend(_class(cls) for cls in classes)
    parts += [_helper(each) for each in (testing.serve, testing.free_port)]
    return "".join(parts)


def _class(cls: type[Any]) -> str:
    node = class_node(cls)
    rows = "".join(_row(each) for each in [*attributes(node.body), *_set_by_init(node), *_properties(node)])
    table = f"\n| attribute | type | |\n|---|---|---|\n{rows}" if rows else ""
    methods = "".join(_method(each) for each in node.body if _is_public_method(each))
    doc = prose(inspect.cleandoc(cls.__doc__ or ""))
    return f"\n### {cls.__name__}\n\n`from {cls.__module__} import {cls.__name__}`\n\n{doc}\n{table}{methods}"


def _row(attribute: Attribute) -> str:
    default = f" Default: `{attribute.default}`." if attribute.default and len(attribute.default) < 40 else ""
    kind = f"`{cell(attribute.type)}`" if attribute.type else ""
    return f"| `{attribute.name}` | {kind} | {cell(attribute.doc + default).strip()} |\n"


def _set_by_init(node: ast.ClassDef) -> list[Attribute]:
    """Attributes that `__init__` declares with a type, or takes over from an argument of the same name."""
    init = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
    if init is None:
        return []
    kinds = {each.arg: each.annotation for each in (*init.args.args, *init.args.kwonlyargs)}
    return attributes([_annotated(each, kinds) for each in init.body])


def _annotated(statement: ast.stmt, kinds: dict[str, ast.expr | None]) -> ast.stmt:
    if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Attribute):
        return _without_value(statement)
    value = statement.value
    kind = kinds.get(value.id) if isinstance(value, ast.Name) else _kind_of(value)
    return ast.AnnAssign(statement.targets[0], kind or ast.Name(""), None, 0)


def _without_value(statement: ast.stmt) -> ast.stmt:
    if isinstance(statement, ast.AnnAssign):
        return ast.AnnAssign(statement.target, statement.annotation, None, 0)
    return statement


def _kind_of(value: ast.expr) -> ast.expr | None:
    """The type of a constant, or of an object that is made right there."""
    if isinstance(value, ast.Constant) and value.value is not None:
        return ast.Name(type(value.value).__name__)
    if isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2][:1].isupper():
        return value.func
    return None


def _properties(node: ast.ClassDef) -> list[Attribute]:
    return [
        Attribute(each.name, ast.unparse(each.returns) if each.returns else "Any", "", string_of(each.body[0]))
        for each in node.body
        if isinstance(each, ast.FunctionDef) and "property" in map(ast.unparse, each.decorator_list)
    ]


def _is_public_method(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and node.name not in LEFT_OUT
        and not any("property" in ast.unparse(each) for each in node.decorator_list)
    )


def _method(node: Any) -> str:
    doc = ast.get_docstring(node)
    manager = "@asynccontextmanager\n" if any("contextmanager" in ast.unparse(d) for d in node.decorator_list) else ""
    return f"\n```python\n{manager}{signature(node)}: ...\n```\n" + (f"\n{prose(doc)}\n" if doc else "")


def _helper(function: Callable[..., object]) -> str:
    node = function_node(inspect.unwrap(function))
    return f"\n### {node.name}\n\n`from headrace.testing import {node.name}`\n{_method(node)}"
