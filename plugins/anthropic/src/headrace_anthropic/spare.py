"""What of a Messages request a chat has no place for, by name: `top_k`, `messages.cache_control`."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from typing import Any

from headrace.errors import InvalidRequest

from . import wire

REFUSED = {
    "container": "containers run at Anthropic alone",
    "mcp_servers": "the MCP connector is Anthropic's own: call MCP servers from the client",
    "inference_geo": "where the backend computes is the operator's choice",
}
"""Fields without which the request would mean something else."""
NOTHING: tuple[object, ...] = (None, [], {})


def _fields(struct: type[Any]) -> frozenset[str]:
    return frozenset((*struct.__struct_fields__, "type"))


def _by_tag(kinds: Iterable[type[Any]]) -> dict[object, frozenset[str]]:
    return {kind.__struct_config__.tag: _fields(kind) for kind in kinds}


BLOCKS = _by_tag(typing.get_args(wire.Block))
SOURCES = _by_tag((wire.Base64Source, wire.URLSource, wire.FileSource, wire.TextSource, wire.ContentSource))
REQUEST = frozenset((*wire.Request.__struct_fields__, *REFUSED))
MESSAGE = frozenset(wire.Message.__struct_fields__)
TOOL = _fields(wire.Tool)
TABLES = {
    "tool_choice": _fields(wire.ToolChoice),
    "thinking": _fields(wire.Thinking),
    "metadata": frozenset(wire.Metadata.__struct_fields__),
    "output_config": frozenset(wire.OutputConfig.__struct_fields__),
    "output_format": _fields(wire.Format),
    "output_config.format": _fields(wire.Format),
}


def spare(body: Any) -> list[str]:
    """The names, each once, in order.

    Raises:
        InvalidRequest: what cannot be carried must not be left out, either.
    """
    if not isinstance(body, dict):
        return []
    for name, reason in REFUSED.items():
        if body.get(name) not in NOTHING:
            raise InvalidRequest(f"The field {name!r} cannot be carried to this backend: {reason}.", param=name)
    found = _Found()
    found.fields(body, REQUEST, "")
    found.blocks(body.get("system"), "system", "system")
    for number, message in enumerate(_list(body.get("messages"))):
        found.fields(message, MESSAGE, "messages.")
        found.blocks(_get(message, "content"), "messages", f"messages[{number}].content")
    for tool in _list(body.get("tools")):
        found.fields(tool, TOOL, "tools.")
    for path, known in TABLES.items():
        table = body
        for name in path.split("."):
            table = _get(table, name)
        found.fields(table, known, f"{path}.")
    return list(found.names)


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


class _Found:
    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def fields(self, value: Any, known: frozenset[str], path: str) -> None:
        if isinstance(value, Mapping):
            for name, given in value.items():
                if name not in known and given is not None:
                    self.names[path + name] = None

    def blocks(self, blocks: Any, path: str, place: str) -> None:
        """Those of one message, and what is in them. Raises InvalidRequest."""
        for number, block in enumerate(_list(blocks)):
            kind = _get(block, "type")
            if not isinstance(kind, str):
                continue  # wrong in a way that is told of later
            if kind not in BLOCKS:
                message = f"Content of the type {kind!r} cannot be carried to this backend."
                raise InvalidRequest(message, param=f"{place}[{number}].type")
            self.fields(block, BLOCKS[kind], f"{path}.")
            self._inside(block, kind, path, f"{place}[{number}]")

    def _inside(self, block: dict[str, Any], kind: str, path: str, place: str) -> None:
        if kind == "redacted_thinking":
            self.names[f"{path}.redacted_thinking"] = None
        elif kind == "thinking" and block.get("signature"):
            self.names[f"{path}.signature"] = None
        self.blocks(block.get("content"), path, f"{place}.content")
        source = block.get("source")
        if isinstance(source, dict):
            origin = source.get("type")
            if isinstance(origin, str) and origin in SOURCES:
                self.fields(source, SOURCES[origin], f"{path}.source.")
            self.blocks(source.get("content"), path, f"{place}.source.content")
