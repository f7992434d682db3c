"""Which requests may be answered from a cache, and have their answers kept.

`quick` is what every request pays for; the rest is looked at only of those that pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from headrace.exchange import Exchange

ENDPOINTS = frozenset(("chat", "completions", "embeddings", "responses", "messages"))
SEEDED = frozenset(("chat", "completions"))
"""Endpoints that know a seed."""
KEEPING: Mapping[str, tuple[str, ...]] = {
    "chat": ("store",),
    "responses": ("previous_response_id", "conversation", "background", "prompt"),
    "messages": ("container",),
}
"""Fields that have something kept at the backend, or that go on with what was kept: never answered from here."""
SEARCHING: Mapping[str, tuple[str, ...]] = {
    "chat": ("web_search_options", "data_sources", "plugins"),
    "messages": ("mcp_servers",),
}
"""Fields that let a backend look around while it answers."""
OWN_TOOLS = frozenset((None, "function", "custom"))
"""Kinds of tools that the client runs itself."""
PLACES = frozenset(("url", "image_url", "file_url", "video_url", "audio_url"))
"""Members that tell where something is."""
_SEED = re.compile(rb"-?\d{1,20}")
_REMOTE = re.compile(r"\s*(?!data:)[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_NOTHING: tuple[object, ...] = (None, False, "", [], {})


def is_deterministic(exchange: Exchange) -> bool:
    """Whether the same request is meant to have the same answer each time."""
    name = exchange.endpoint.name
    if name == "embeddings" or getattr(exchange.peek, "temperature", None) == 0:
        return True
    if name not in SEEDED or b'"seed"' not in exchange.body:
        return False
    seed = exchange.fields.get("seed")
    return seed is not None and _SEED.fullmatch(bytes(seed)) is not None


def is_kept(exchange: Exchange, fields: Mapping[str, Any]) -> bool:
    """Whether somebody else keeps the answer, so that the next one must be another."""
    name = exchange.endpoint.name
    if name == "responses" and (fields.get("store") is not False or b"item_reference" in exchange.body):
        return True  # left out, it means true
    return any(fields.get(each) not in _NOTHING for each in KEEPING.get(name, ()))


def looks_around(exchange: Exchange, fields: Mapping[str, Any]) -> bool:
    """Whether the answer depends on what is found elsewhere, while it is made."""
    if any(fields.get(each) not in _NOTHING for each in SEARCHING.get(exchange.endpoint.name, ())):
        return True
    tools = fields.get("tools")
    if isinstance(tools, list) and any(_runs_there(tool) for tool in tools):
        return True
    if exchange.endpoint.name == "embeddings" or b"url" not in exchange.body:
        return False
    return any(_fetches(value) for name, value in fields.items() if name not in ("tools", "response_format"))


def _runs_there(tool: object) -> bool:
    kind = tool.get("type") if isinstance(tool, dict) else None
    return not (kind is None or isinstance(kind, str)) or kind not in OWN_TOOLS


def _fetches(value: object) -> bool:
    """Whether there is a picture or the like by its address in it."""
    if isinstance(value, list):
        return any(_fetches(each) for each in value)
    if not isinstance(value, dict):
        return False
    for name, inner in value.items():
        if name in PLACES and isinstance(inner, str) and _REMOTE.match(inner):
            return True
        if isinstance(inner, (dict, list)) and _fetches(inner):
            return True
    return False
