"""`reference/errors.md`, from the tree in `headrace.errors` and every place that names a code."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from headrace import errors
from headrace.errors import GatewayError

from .source import HEADER, ROOT, cell, workspace_plugins

INTRODUCTION = """\
# Errors

Every error is answered in OpenAI's envelope, whoever makes it: the core, a plugin, nginx, or the embedded engine.

```json
{"error": {"message": "…", "type": "invalid_request_error", "param": "model", "code": "model_not_found"}}
```

`message` is for people, `type` and `code` for programs, `param` names the field of the request, if there is one. Every
answer, errors included, carries `X-Request-ID`: the log's line with that id has what the client was not told.
Errors of a backend that are the caller's own (400, 404, 409, 413, 422 …) pass unaltered, in the backend's words; which
ones do not pass is in [errors and truncated answers](../concepts/errors.md).
"""


class Code(msgspec.Struct, frozen=True, order=True):
    """A `code` that some source names, and the error that carries it."""

    status: int
    code: str
    type: str
    who: str


def page() -> str:
    """The whole page."""
    rows = "".join(_class_row(cls) for cls in tree())
    codes = "".join(f"| {each.status} | `{each.code}` | `{each.type}` | {each.who} |\n" for each in codes_in_use())
    return (
        f"{HEADER}{INTRODUCTION}\n## The tree\n\n```\n{_drawing()}\n```\n\nPlugins raise these from `headrace.errors`. "
        "*Retryable* errors of one backend let the next one be asked.\n\n"
        f"| class | status | type | code | retryable |\n|---|---|---|---|---|\n{rows}"
        f"\n## Every code\n\n| status | code | type | said by |\n|---|---|---|---|\n{codes}"
    )


def tree() -> list[type[GatewayError]]:
    """GatewayError's descendants in `errors.py`, in the order of that file."""
    found = [cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, GatewayError)]
    return [cls for cls in found if cls is not GatewayError]


def _drawing() -> str:
    """The tree as the module's docstring draws it."""
    lines = (errors.__doc__ or "").splitlines()
    drawn = [line for line in lines if line.startswith("    ")]
    return inspect.cleandoc("\n".join(drawn))


def _class_row(cls: type[GatewayError]) -> str:
    return f"| `{cls.__name__}` | {cls.status} | `{cls.type}` | `{cls.code}` | {'yes' if cls.retryable else ''} |\n"


def codes_in_use() -> list[Code]:
    """Every code that core's and the plugins' sources name, by status."""
    found: dict[tuple[int, str, str], set[str]] = {}
    for who, path in _sources():
        for status, code, kind in _codes(path):
            found.setdefault((status, code, kind), set()).add(who)
    return sorted(Code(*key, ", ".join(sorted(who))) for key, who in found.items())


def _sources() -> Iterator[tuple[str, Path]]:
    for who, folder in {"core": ROOT / "core/src", **workspace_plugins()}.items():
        for path in sorted(folder.rglob("*.py")):
            yield who, path


def _codes(path: Path) -> Iterator[tuple[int, str, str]]:
    classes: list[type[GatewayError]] = [GatewayError, *tree()]
    known = {cls.__name__: cls for cls in classes}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known:
            yield from _code_of_call(node, known[node.func.id])
        elif isinstance(node, ast.ClassDef) and any(_name(base) in known for base in node.bases):
            yield _code_of_class(node, path)


def _code_of_call(node: ast.Call, cls: type[GatewayError]) -> Iterator[tuple[int, str, str]]:
    given = {each.arg: each.value.value for each in node.keywords if isinstance(each.value, ast.Constant)}
    code = given.get("code", cls.code)
    if code is not None:
        yield int(str(given.get("status", cls.status))), str(code), str(given.get("type", cls.type))


def _code_of_class(node: ast.ClassDef, path: Path) -> tuple[int, str, str]:
    module = ".".join(
        path.relative_to(path.parents[len(path.parts) - path.parts.index("src") - 2]).with_suffix("").parts
    )
    cls: Any = getattr(importlib.import_module(module), node.name)
    return cls.status, str(cls.code), cls.type


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


__all__ = ["cell", "codes_in_use", "page", "tree"]
