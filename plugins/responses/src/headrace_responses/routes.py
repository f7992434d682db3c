"""What is kept can be read and deleted, by whoever it belongs to
(https://platform.openai.com/docs/api-reference/responses/get)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.errors import Forbidden, InvalidRequest, NotFound

from .dialect import NAME, PATH
from .items import head_of
from .shelf import Shelf
from .store import Entry

if TYPE_CHECKING:
    from headrace.exchange import Principal
    from headrace.gateway import Gateway, Handler

ONE = PATH + "/{response_id}"
DEFAULT_LIMIT, MOST = 20, 100
LONGEST_ID = 256
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


class Routes:
    """The handlers. Without a shelf nothing is ever found."""

    def __init__(self, shelf: Shelf | None) -> None:
        self._shelf = shelf

    def add_to(self, gateway: Gateway) -> None:
        def add(path: str, handler: Handler, methods: Sequence[str], summary: str) -> None:
            gateway.add_route(path, handler, methods=methods, require="user", summary=summary)

        add(ONE, self._one, ("GET", "DELETE"), "An answer that is kept: read it, or have it forgotten")
        add(ONE + "/input_items", self._input_items, ("GET",), "What it answered")
        add(ONE + "/cancel", self._cancel, ("POST",), "Refused: nothing is answered in the background")

    async def _one(self, request: Request) -> Response:
        if request.method == "DELETE":
            return await self._delete(request)
        if request.query_params.get("stream", "false").lower() not in ("false", "0"):
            raise InvalidRequest("Only background responses can be streamed anew, and there are none.", param="stream")
        return _json((await self._found(request)).body)

    async def _delete(self, request: Request) -> Response:
        name = _name(request)
        if self._shelf is None or not await self._shelf.delete(_caller(request).id, name):
            raise _not_found(name)
        return _json(msgspec.json.encode({"id": name, "object": "response", "deleted": True}))

    async def _input_items(self, request: Request) -> Response:
        limit, ascending, after = _page(request)
        entry = await self._found(request)
        items = [_told(raw, number, entry.id) for number, raw in enumerate(_items(entry.items))]
        if not ascending:
            items.reverse()
        if after is not None:
            at = next((number for number, item in enumerate(items) if item["id"] == after), None)
            if at is None:
                raise InvalidRequest(f"There is no item {after!r} in this response.", param="after")
            items = items[at + 1 :]
        page = items[:limit]
        ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        said = {"object": "list", "data": page, **ends, "has_more": len(items) > limit}
        return _json(msgspec.json.encode(said))

    async def _cancel(self, request: Request) -> Response:
        await self._found(request)
        raise InvalidRequest("Cannot cancel a synchronous response.")

    async def _found(self, request: Request) -> Entry:
        name, caller = _name(request), _caller(request)
        entry = await self._shelf.get(caller.id, name) if self._shelf is not None else None
        if entry is None:
            raise _not_found(name)
        return entry


def _name(request: Request) -> str:
    name: str = request.path_params["response_id"]
    return name[:LONGEST_ID]


def _caller(request: Request) -> Principal:
    """Raises Forbidden: the key is for other endpoints."""
    principal: Principal = request.state.principal
    if principal.endpoints is not None and NAME not in principal.endpoints:
        raise Forbidden(f"This key may not use {PATH}.")
    return principal


def _not_found(name: str) -> NotFound:
    return NotFound(f"Response with id '{name}' not found.")


def _page(request: Request) -> tuple[int, bool, str | None]:
    """How many, whether the oldest first, and after which."""
    query = request.query_params
    order, limit = query.get("order", "desc"), query.get("limit", str(DEFAULT_LIMIT))
    if order not in ("asc", "desc"):
        raise InvalidRequest("order is asc or desc.", param="order")
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:4]) <= MOST):
        raise InvalidRequest(f"limit is a number from 1 to {MOST}.", param="limit")
    return int(limit), order == "asc", query.get("after")


def _told(raw: msgspec.Raw, number: int, response: str) -> dict[str, Any]:
    """An item as it is listed: with an id, and a message with parts, however it came."""
    item: dict[str, Any] = msgspec.json.decode(raw)
    kind = head_of(raw).kind
    prefix = PREFIXES.get(kind, "item")
    told = {"id": f"{prefix}_{response.removeprefix('resp_')}_{number}", "type": kind, **item}
    if kind == "message" and isinstance(item.get("content"), str):
        part: dict[str, Any] = {"type": "input_text", "text": item["content"]}
        if item.get("role") == "assistant":
            part = {"type": "output_text", "text": item["content"], "annotations": []}
        told["content"] = [part]
    if kind == "message":
        told.setdefault("status", "completed")
    return told


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
