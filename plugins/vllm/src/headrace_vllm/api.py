"""`/admin/vllm/BACKEND`: adapters, sleep and wake, for callers with the role `admin`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from headrace.errors import InvalidRequest, PayloadTooLarge

from .desk import Desk

if TYPE_CHECKING:
    from headrace.gateway import Gateway

BODY_BYTES = 65_536

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
T = TypeVar("T")


class Load(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request to load an adapter."""

    name: Name
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    replace: bool = False


class Sleep(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request to sleep."""

    level: Literal[1, 2] = 1


class AdminAPI:
    """The handlers; core has seen to it that whoever asks has the role `admin`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway, self._desk = gateway, Desk(gateway)

    def add_routes(self) -> None:
        base = "/admin/vllm/{backend}"
        for path, handler, methods, summary in (
            (f"{base}/lora", self.adapters, ("GET", "POST"), "List the LoRA adapters of a vLLM backend, or load one"),
            (f"{base}/lora/{{name:path}}", self.adapter, ("DELETE",), "Unload a LoRA adapter"),
            (f"{base}/sleep", self.sleep, ("GET", "POST"), "Whether a vLLM backend sleeps, or put it to sleep"),
            (f"{base}/wake", self.wake, ("POST",), "Wake a vLLM backend"),
        ):
            self._gateway.add_route(path, handler, methods=methods, require="admin", summary=summary)

    async def adapters(self, request: Request) -> Response:
        """`/admin/vllm/BACKEND/lora`."""
        target = self._desk.target(request.path_params["backend"])
        if request.method == "POST":
            wanted = await _body(request, Load)
            await self._desk.load(target, wanted.name, wanted.path, replace=wanted.replace)
        return _json({"backend": target.name, "adapters": await self._desk.adapters(target)})

    async def adapter(self, request: Request) -> Response:
        """`/admin/vllm/BACKEND/lora/NAME`."""
        target = self._desk.target(request.path_params["backend"])
        await self._desk.unload(target, request.path_params["name"])
        return _json({"backend": target.name, "adapters": await self._desk.adapters(target)})

    async def sleep(self, request: Request) -> Response:
        """`/admin/vllm/BACKEND/sleep`."""
        target = self._desk.target(request.path_params["backend"])
        if request.method == "POST":
            await self._desk.sleep(target, (await _body(request, Sleep)).level)
        return _json({"backend": target.name, "sleeping": await self._desk.is_sleeping(target)})

    async def wake(self, request: Request) -> Response:
        """`/admin/vllm/BACKEND/wake`."""
        target = self._desk.target(request.path_params["backend"])
        await self._desk.wake(target)
        return _json({"backend": target.name, "sleeping": await self._desk.is_sleeping(target)})


async def _body(request: Request, kind: type[T]) -> T:
    """The request's body; an empty one is `{}`. Raises InvalidRequest, PayloadTooLarge."""
    data = b""
    try:
        async for part in request.stream():
            data += part
            if len(data) > BODY_BYTES:
                raise PayloadTooLarge(f"The body is larger than {BODY_BYTES} bytes.")
    except ClientDisconnect as error:
        raise InvalidRequest("The body did not come.") from error
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is invalid: {error}.", code="invalid_field") from error


def _json(body: Any) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
