"""`reference/configuration.md`, from the Structs of the core and of every plugin in this repository."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect as types

from headrace.config import Config, Secret, Strict
from headrace.registry import plugin_class

from .source import HEADER, attributes, cell, class_node, workspace_plugins

INTRODUCTION = """\
# Configuration

One TOML file says everything. `headrace config check FILE` reports every problem in it at once, each with its table and
key; an unknown key is a problem. `headrace config show` prints the file as it was understood, with defaults filled in
and secrets masked, and `headrace config schema` its JSON Schema.

The file is the one named by `--config FILE` or `HEADRACE_CONFIG`, else the first that exists of `headrace.toml`,
`conf/headrace.toml` and `/etc/headrace/headrace.toml`.

**Values from elsewhere.** Any value may be written as a reference:

| written | means |
|---|---|
| `{ env = "NAME" }` | the environment variable; that it is not set is a problem |
| `{ env = "NAME", default = 8443 }` | the same, with a value for when it is not set |
| `{ env = "NAMES", split = "," }` | a list: the variable's text, split; may have a `default` too |
| `{ file = "/run/secrets/key" }` | the file's text, without white space around it |

A backend that no model uses may name environment variables that are not set.

**Plugins.** A plugin is loaded if its table `[plugins.NAME]` stands in the file; `enabled = false` in it parks the
plugin, whose code is then not even imported. The hooks of plugins run in the order of these tables.

Where a key has no default it may be left out, unless it is marked *required*.
"""


def page() -> str:
    """The whole page."""
    sections = [*_sections(Config, (), set())]
    for name in workspace_plugins():
        struct = getattr(plugin_class(name), "Config", None)
        if struct is not None:
            sections.extend(_sections(struct, ("plugins", name), set()))
    return HEADER + INTRODUCTION + "".join(sections)


def structs() -> Iterator[type[Any]]:
    """Every Struct that a configuration file is read into."""
    seen: set[type[Any]] = set()
    for root in (Config, *(plugin_class(name).Config for name in workspace_plugins())):
        list(_sections(root, (), seen))
    yield from sorted(seen, key=lambda struct: f"{struct.__module__}.{struct.__name__}")


def _sections(struct: type[Any], path: tuple[str, ...], seen: set[type[Any]]) -> Iterator[str]:
    """The section of one Struct, and those of the tables inside it, each Struct once."""
    seen.add(struct)
    yield _section(struct, path)
    for field in types.type_info(struct).fields:  # type: ignore[attr-defined]
        inner, step = _table_in(field.type)
        if inner is not None and inner not in seen:
            yield from _sections(inner, (*path, field.encode_name, *step), seen)


def _table_in(kind: types.Type) -> tuple[type[Any] | None, tuple[str, ...]]:
    if isinstance(kind, types.StructType):
        return kind.cls, ()
    if isinstance(kind, types.DictType) and isinstance(kind.value_type, types.StructType):
        return kind.value_type.cls, ("NAME",)
    if isinstance(kind, types.VarTupleType | types.ListType) and isinstance(kind.item_type, types.StructType):
        return kind.item_type.cls, ("",)
    return None, ()


def _section(struct: type[Any], path: tuple[str, ...]) -> str:
    title = f"`[{'.'.join(path)}]`" if path else "The tables of the file"
    if path and not path[-1]:  # one of several
        title = f"`[[{'.'.join(path[:-1])}]]`"
    bases = [base for base in reversed(struct.__mro__) if issubclass(base, Strict) and base is not Strict]
    docs = {each.name: each.doc for base in bases or [struct] for each in attributes(class_node(base).body)}
    hints = typing.get_type_hints(struct)
    rows = [
        _row(field, _type(field.type, hints[field.name]), docs[field.name])
        for field in types.type_info(struct).fields  # type: ignore[attr-defined]
    ]
    lines = ["", f"## {title}", *_paragraphs(struct)]
    if rows:
        lines += ["", "| key | type | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _paragraphs(struct: type[Any]) -> list[str]:
    text = " ".join((struct.__doc__ or "").split())
    stripped = text.split("]`:", 1)[1].strip() if text.startswith("`[") and "]`:" in text else text
    return ["", stripped[:1].upper() + stripped[1:]] if not stripped.startswith("`[") else []


def _row(field: types.Field, kind: str, doc: str) -> str:
    return f"| `{field.encode_name}` | {cell(kind)} | {cell(_default(field))} | {cell(doc)} |"


def _default(field: types.Field) -> str:
    if field.required:
        return "*required*"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if value is None or isinstance(value, msgspec.Struct):
        return ""
    if isinstance(value, Secret):  # one that stands in the source is none
        value = value.reveal()
    return f"`{json.dumps(value, ensure_ascii=False)}`"  # TOML writes such values as JSON does


NAMES: dict[type[types.Type], str] = {
    types.StrType: "string",
    types.BoolType: "boolean",
    types.IntType: "integer",
    types.FloatType: "number",
    types.AnyType: "any value",
}


def _type(kind: types.Type, hint: Any = None) -> str:
    """A type in TOML's words, with its limits. `hint` is the annotation, which keeps the order of alternatives."""
    if isinstance(kind, types.UnionType):
        return " or ".join(_type(each, hint) for each in kind.types if not isinstance(each, types.NoneType))
    if isinstance(kind, types.LiteralType):
        return " or ".join(f'`"{value}"`' for value in _choices(hint) or kind.values)
    if isinstance(kind, types.ListType | types.VarTupleType):
        return f"array of {_plural(kind.item_type)}"
    if isinstance(kind, types.DictType):
        return f"table of {_plural(kind.value_type)}"
    if isinstance(kind, types.StructType):
        return "table"
    if isinstance(kind, types.CustomType) and kind.cls is Secret:
        return "string (secret)"
    return NAMES[type(kind)] + _limits(kind)


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal, or of one inside a union, in the order in which they were written."""
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    return next(filter(None, map(_choices, typing.get_args(hint))), ())


def _plural(kind: types.Type) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_plural(each) for each in kind.types)
    if isinstance(kind, types.AnyType):
        return "any values"
    word, _, limits = _type(kind).partition(" ")
    return f"{word}s{' ' + limits if limits else ''}" if not isinstance(kind, types.ListType) else f"arrays {limits}"


LIMITS = {"ge": "≥ ", "gt": "> ", "le": "≤ ", "lt": "< ", "min_length": "length ≥ ", "max_length": "length ≤ "}


def _limits(kind: types.Type) -> str:
    found = [f"{words}{getattr(kind, name)}" for name, words in LIMITS.items() if getattr(kind, name, None) is not None]
    return f" {', '.join(found)}" if found else ""
