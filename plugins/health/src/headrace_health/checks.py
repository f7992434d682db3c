"""Asking a backend how it is, in the words of its engine.

Sources of the formats: llama.cpp's `tools/server/README.md` (`GET /health`; its middleware lets `/v1/models` pass while
the model is loaded); text-generation-inference's `router/src/server.rs` (`/health`); vLLM's
`entrypoints/serve/instrumentator/health.py` and `owned_by` in its protocol; Ollama's `docs/api.md` (`/api/tags`);
https://platform.openai.com/docs/api-reference/models/list.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from headrace.errors import GatewayError, Unavailable
from headrace.exchange import Reply, Target, UpstreamRequest
from headrace.providers import HealthCheck, Provider
from headrace.upstream import Upstream, target_headers

Verdict = Literal["well", "starting", "unready", "unreachable", "failed", "refused"]
"""`unready`: starting if it has not been up before, else failed; `refused`: our key is."""
MOST_NAMES = 1000
"""Models of one backend that are remembered."""
LONGEST_NAME = 256
SECOND_SECONDS = 1.0
"""How long is waited for a second answer that may never come."""


class Found(msgspec.Struct, frozen=True):
    """What a check found."""

    verdict: Verdict
    reason: str = ""
    listed: tuple[str, ...] | None = None
    """The models that it lists; None if it has no list."""
    serves: frozenset[str] | None = None
    """Every name that it answers to; None if nobody knows."""
    owner: str = ""
    """Whose models it says they are."""
    any_model: bool = False
    """Whether an engine of this kind answers to every name."""


Check = Callable[[Target], Awaitable[Found]]


class _Entry(msgspec.Struct):
    id: str
    owned_by: Any = None


class _Models(msgspec.Struct):
    data: list[_Entry] | None = None


class _Tag(msgspec.Struct):
    name: str


class _Tags(msgspec.Struct):
    models: list[_Tag] | None = None


class _Loading(msgspec.Struct):
    class Error(msgspec.Struct):
        type: str = ""
        message: str = ""

    error: Error


class Checks:
    """The checks by kind. Has connections of its own: those of requests may all be taken."""

    def __init__(self) -> None:
        self._upstream = Upstream()
        self._by_kind: dict[str, Check] = {
            "auto": self._engine_by_list,
            "openai": self._openai,
            "vllm": self._vllm,
            "ollama": self._ollama,
            "tgi": self._tgi,
            "llamacpp": self._llamacpp,
            "none": _unasked,
        }

    async def aclose(self) -> None:
        await self._upstream.aclose()

    def choose(self, kind: str, provider: Provider, registered: HealthCheck | None) -> Check:
        """How a backend of this provider is asked; `registered` is what the provider brings."""
        if kind != "auto":
            return self._by_kind[kind]
        if registered is not None:
            return lambda target: _by_provider(registered, provider, target)
        known = self._by_kind.get("auto" if provider.name == "openai" else provider.name)
        return known or (lambda target: _by_names(provider, target))

    async def _get(self, target: Target, url: str) -> Reply:
        request = UpstreamRequest(method="GET", url=url, headers=target_headers(target), body=b"")
        reply = await self._upstream.send(target, request, checked=False)
        await reply.aclose()
        return reply

    async def _openai(self, target: Target) -> Found:
        """`GET /v1/models`: `{"object":"list","data":[{"id":…,"owned_by":…}]}`."""
        reply = await self._get(target, target.base_url + "/models")
        if reply.status != 200:
            return _failed(reply, "/models")
        try:
            entries = msgspec.json.decode(reply.content or b"", type=_Models).data or []
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return Found("failed", "its list of models cannot be read: is its base_url right?")
        owners = {entry.owned_by for entry in entries if isinstance(entry.owned_by, str)}
        listed = usable(entry.id for entry in entries)
        owner = owners.pop() if len(owners) == 1 else ""
        return Found("well", "", listed, frozenset(listed), owner, any_model=owner == "llamacpp")

    async def _engine_by_list(self, target: Target) -> Found:
        """As `openai`; and if the list says that it is vLLM's (`owned_by` is `vllm`) or llama.cpp's (`llamacpp`), its
        `/health` has a say, but no other than 503: what stands in between may not have that path."""
        found = await self._openai(target)
        judge = {"vllm": _vllm_is, "llamacpp": _llamacpp_is}.get(found.owner)
        if judge is not None:
            with contextlib.suppress(GatewayError, TimeoutError):
                async with asyncio.timeout(SECOND_SECONDS):
                    reply = await self._get(target, _root(target) + "/health")
                if reply.status == 503:
                    return judge(reply)
        return found

    async def _vllm(self, target: Target) -> Found:
        return await self._by_health(target, _vllm_is)

    async def _tgi(self, target: Target) -> Found:
        return await self._by_health(target, _tgi_is)

    async def _llamacpp(self, target: Target) -> Found:
        return msgspec.structs.replace(await self._by_health(target, _llamacpp_is), any_model=True)

    async def _by_health(self, target: Target, judge: Callable[[Reply], Found]) -> Found:
        """`/health` at the server's root, which needs no key; then the list of models, which does."""
        reply = await self._get(target, _root(target) + "/health")
        if reply.status != 200:
            return judge(reply)
        found = await self._openai(target)
        return found if found.verdict in ("well", "refused") else Found("well")

    async def _ollama(self, target: Target) -> Found:
        """`GET /api/tags`: `{"models":[{"name":"llama3.2:latest",…}]}`; `llama3.2` means `llama3.2:latest`."""
        reply = await self._get(target, _root(target) + "/api/tags")
        if reply.status != 200:
            return _failed(reply, "/api/tags")
        try:
            tags = msgspec.json.decode(reply.content or b"", type=_Tags).models or []
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return Found("failed", "its list of models cannot be read: is it Ollama?")
        listed = usable(tag.name for tag in tags)
        return Found("well", listed=listed, serves=frozenset((*listed, *(n.removesuffix(":latest") for n in listed))))


def usable(names: Any) -> tuple[str, ...]:
    """Those that can be shown and asked for, each once, and no more than are remembered."""
    kept: dict[str, None] = {}
    for name in names:
        if 0 < len(name) <= LONGEST_NAME and name.isprintable() and name == name.strip() and len(kept) < MOST_NAMES:
            kept[name] = None
    return tuple(kept)


def failure(error: Exception) -> Found:
    """What it means that a check raised this."""
    if isinstance(error, GatewayError):
        if error.code == "upstream_auth":
            return Found("refused", "it refuses our key")
        return Found("unreachable" if isinstance(error, Unavailable) else "failed", error.message)
    return Found("failed", f"the check failed: {type(error).__name__}")


def _failed(reply: Reply, path: str) -> Found:
    status = reply.status
    if status in (401, 403, 407):
        return Found("refused", f"it refuses our key: {status} at {path}")
    if status == 429:
        return Found("well", f"it limits how often we ask: 429 at {path}")
    advice = ": is its base_url right?" if status in (404, 405) or 300 <= status < 400 else ""
    return Found("failed", f"it answers {status} at {path}{advice}")


def _vllm_is(reply: Reply) -> Found:
    """vLLM's port opens once the model is loaded; 503 means that its engine is dead."""
    return Found("failed", "its engine is dead: 503 at /health") if reply.status == 503 else _failed(reply, "/health")


def _tgi_is(reply: Reply) -> Found:
    """503 `{"error":"unhealthy","error_type":"healthcheck"}`, as it warms up and as it fails."""
    return Found("unready", "503 at /health") if reply.status == 503 else _failed(reply, "/health")


def _llamacpp_is(reply: Reply) -> Found:
    """503 `{"error":{"message":"Loading model","type":"unavailable_error","code":503}}` while it loads."""
    if reply.status == 503:
        try:
            error = msgspec.json.decode(reply.content or b"", type=_Loading).error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return _failed(reply, "/health")
        if error.type == "unavailable_error" or error.message == "Loading model":
            return Found("starting", "it loads its model")
    return _failed(reply, "/health")


async def _unasked(target: Target) -> Found:
    """Nobody asks: what requests tell is all that is known."""
    return Found("well")


async def _by_provider(check: HealthCheck, provider: Provider, target: Target) -> Found:
    """By the check that the provider brings, and then its list of models, if it has one."""
    health = await check.check(target)
    if not health.ok:
        return Found("starting" if health.starting else "failed", health.reason)
    try:
        return msgspec.structs.replace(await _by_names(provider, target), reason=health.reason)
    except Exception:
        return Found("well", health.reason)


async def _by_names(provider: Provider, target: Target) -> Found:
    """By what the provider says that it serves."""
    listed = usable(await provider.models(target))
    return Found("well", listed=listed, serves=frozenset(listed))


def _root(target: Target) -> str:
    return target.base_url.removesuffix("/v1")
