"""Tools, and which of them may be called."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from headrace import chat
from headrace.dialects import invalid_field
from headrace.errors import InvalidRequest

from .naming import Dropped

Choice: TypeAlias = Literal["none", "auto", "required"] | chat.NamedTool | None


class _Kind(msgspec.Struct):
    type: str


class _Function(msgspec.Struct):
    type: str
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Allowed(msgspec.Struct):
    mode: Literal["auto", "required"]
    tools: list[_Kind]


class _Named(msgspec.Struct):
    name: str


class _AllowedNames(msgspec.Struct):
    tools: list[_Named]


_kind = msgspec.json.Decoder(_Kind).decode
_function = msgspec.json.Decoder(_Function).decode
_allowed = msgspec.json.Decoder(_Allowed).decode
_allowed_names = msgspec.json.Decoder(_AllowedNames).decode
_named = msgspec.json.Decoder(_Named).decode
_word = msgspec.json.Decoder(Literal["none", "auto", "required"]).decode


def read_tools(tools: list[msgspec.Raw], dropped: Dropped) -> list[chat.Tool]:
    """Functions, as a chat has them. Raises InvalidRequest for any other."""
    return [_tool(raw, f"tools[{number}]", dropped) for number, raw in enumerate(tools)]


def _tool(raw: msgspec.Raw, place: str, dropped: Dropped) -> chat.Tool:
    try:
        kind = _kind(raw).type
        if kind != "function":
            raise _foreign(kind, f"{place}.type")
        given = _function(raw)
    except msgspec.ValidationError as error:
        raise invalid_field(error, place) from error
    dropped.unknown(raw, _Function.__struct_fields__, "tools")
    return chat.Tool(chat.Function(given.name, given.description, given.parameters, given.strict))


def _foreign(kind: str, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"This model's backend has no tool of the type {kind[:64]!r}: it knows functions alone.",
        param=param,
        code="unsupported_tool",
    )


def read_choice(raw: msgspec.Raw, tools: list[chat.Tool]) -> tuple[Choice, list[chat.Tool]]:
    """Which tool is to be called, and the tools there are to choose from. Raises InvalidRequest."""
    if bytes(raw) == b"null":
        return None, tools
    try:
        if bytes(memoryview(raw)[:1]) == b'"':
            word = _word(raw)
            return (word if tools or word == "required" else None), tools
        kind = _kind(raw).type
        if kind == "function":
            return chat.NamedTool(chat.FunctionName(_named(raw).name)), tools
        if kind == "allowed_tools":
            return _of_allowed(raw, tools)
    except msgspec.ValidationError as error:
        raise invalid_field(error, "tool_choice") from error
    raise _foreign(kind, "tool_choice.type")


def _of_allowed(raw: msgspec.Raw, tools: list[chat.Tool]) -> tuple[Choice, list[chat.Tool]]:
    """The others are not told of: a chat has no other way to forbid them."""
    given = _allowed(raw)
    for number, each in enumerate(given.tools):
        if each.type != "function":
            raise _foreign(each.type, f"tool_choice.tools[{number}].type")
    names = [each.name for each in _allowed_names(raw).tools]
    known = {tool.function.name for tool in tools}
    for number, name in enumerate(names):
        if name not in known:
            message = f"There is no tool {name[:64]!r} among the request's tools."
            raise InvalidRequest(message, param=f"tool_choice.tools[{number}].name", code="invalid_value")
    return given.mode, [tool for tool in tools if tool.function.name in names]
