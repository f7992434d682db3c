"""What can be asked of a running Ollama beside answers: which models it has, to get others, to let them go.

https://docs.ollama.com/api
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from headrace.config import TargetTimeouts
from headrace.errors import GatewayError, InvalidRequest, NotFound, UpstreamError
from headrace.exchange import Reply, Target, UpstreamRequest
from headrace.upstream import target_headers

from .provider import NAMES, Tag, own_root, tags
from .stream import Lines

if TYPE_CHECKING:
    from headrace.gateway import Gateway

T = TypeVar("T")
PULL_IDLE_SECONDS = 3600.0
"""Ollama says nothing while it checks what it has downloaded."""
DONE = "success"


class Progress(msgspec.Struct):
    """One line of what a download tells."""

    status: str = ""
    digest: str = ""
    total: int = 0
    completed: int = 0
    error: str = ""


class Details(msgspec.Struct):
    family: str = ""
    parameter_size: str = ""
    quantization_level: str = ""


class Thinking(msgspec.Struct):
    values: list[bool | str] = []
    default: bool | str | None = None


class Shown(msgspec.Struct):
    """What `POST /api/show` tells of a model."""

    details: Details = msgspec.field(default_factory=Details)
    capabilities: list[str] = []
    """`completion`, `tools`, `vision`, `thinking`, `embedding`, `insert`; none of an Ollama before 0.6.4."""
    model_info: dict[str, msgspec.Raw] = {}
    parameters: str = ""
    thinking: Thinking | None = None
    remote_host: str = ""

    @property
    def context_length(self) -> int | None:
        """Tokens that it was made for."""
        found = next((each for name, each in self.model_info.items() if name.endswith(".context_length")), None)
        return None if found is None else msgspec.json.decode(found, type=int | None)


class Running(msgspec.Struct):
    """One of `GET /api/ps`."""

    name: str
    size: int = 0
    size_vram: int = 0
    context_length: int | None = None
    expires_at: str = ""


class _Running(msgspec.Struct):
    models: list[Running] = []


class _Refusal(msgspec.Struct):
    error: str = ""


class Desk:
    """Asks servers. The gateway must be running. Every method raises GatewayError."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def targets(self) -> Mapping[str, Target]:
        """The backends that are Ollama's, by name: each once, whatever models they serve."""
        return {target.name: target for target in self._gateway.models.targets if target.provider in NAMES}

    async def models(self, target: Target) -> list[Tag]:
        """Those it has."""
        return (await tags(self._gateway, target)).models

    async def show(self, target: Target, model: str) -> Shown:
        return _read(await self._ask(target, "POST", "/api/show", {"model": model}), Shown)

    async def running(self, target: Target) -> list[Running]:
        """Those in memory."""
        return _read(await self._ask(target, "GET", "/api/ps"), _Running).models

    async def remove(self, target: Target, model: str) -> None:
        await self._ask(target, "DELETE", "/api/delete", {"model": model})

    async def unload(self, target: Target, model: str) -> None:
        """Have it give the model's memory back."""
        await self._ask(target, "POST", "/api/generate", {"model": model, "keep_alive": 0, "stream": False})

    async def pull(self, target: Target, model: str, told: Callable[[Progress], None]) -> None:
        """Have it download a model; `told` is called with each of its words."""
        limits = TargetTimeouts(
            connect=target.timeouts.connect, first_byte=target.timeouts.first_byte, idle=PULL_IDLE_SECONDS
        )
        patient = msgspec.structs.replace(target, timeouts=limits)
        reply = await self._send(patient, "POST", "/api/pull", {"model": model, "stream": True})
        status = ""
        try:
            async for line in _lines(reply):
                progress = _read(line, Progress)
                if progress.error:
                    raise UpstreamError(f"{target.name}: {progress.error}")
                told(progress)
                status = progress.status
        finally:
            await reply.aclose()
        if status != DONE:
            raise UpstreamError(f"{target.name} stopped before {model} was complete: ask again, it goes on from there.")

    async def _ask(self, target: Target, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        reply = await self._send(target, method, path, body)
        await reply.aclose()
        return reply.content or b""

    async def _send(self, target: Target, method: str, path: str, body: dict[str, Any] | None) -> Reply:
        request = UpstreamRequest(
            method=method,
            url=own_root(target) + path,
            headers={"Content-Type": "application/json", **target_headers(target)},
            body=b"" if body is None else msgspec.json.encode(body),
        )
        reply = await self._gateway.upstream.send(target, request, checked=False, streaming=True)
        if not reply.ok:
            await reply.aclose()
            raise _refused(target, reply.status, reply.content or b"")
        return reply


async def _lines(reply: Reply) -> AsyncIterator[bytes]:
    lines = Lines()
    if reply.stream is None:
        chunks = [reply.content or b""]
        for line in (*lines.feed(chunks[0]), lines.rest()):
            if line.strip():
                yield line
        return
    async for chunk in reply.stream:
        for line in lines.feed(chunk):
            if line.strip():
                yield line
    if rest := lines.rest().strip():
        yield rest


def _read(content: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UpstreamError("The answer cannot be read: is it Ollama?", detail=str(error)) from error


def _refused(target: Target, status: int, content: bytes) -> GatewayError:
    """An answer that is no success, in Ollama's words where there are any."""
    try:
        words = msgspec.json.decode(content, type=_Refusal).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        words = ""
    said = f"{target.name}: {words}" if words else f"{target.name} answers {status}: is it Ollama?"
    if status in (401, 403):
        return UpstreamError(f"{target.name} refuses our key.", code="upstream_auth")
    if status == 404:
        return NotFound(said)
    return InvalidRequest(said) if 400 <= status < 500 else UpstreamError(said)
