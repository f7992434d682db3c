"""`/admin/keys`: managing keys over HTTP. Asks the database for every request, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from headrace.audit import about
from headrace.errors import (
    GatewayError,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    PluginError,
    RequestTimeout,
    Unavailable,
)
from headrace.exchange import Principal

from . import desk, keyformat
from .changes import Changes, known
from .record import Record, described
from .store import Store

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from . import Plugin

logger = logging.getLogger("headrace.keys")

BODY_BYTES = 65_536
PAGE = 100
LARGEST_PAGE = 1000
DAY = 86_400.0
YEAR = 365 * DAY
ID = re.compile(f"[{keyformat.ID_ALPHABET}]{{{keyformat.ID_LENGTH}}}")

T = TypeVar("T")


class Rotate(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a rotation, which may be empty."""

    grace_seconds: Annotated[float, msgspec.Meta(ge=0, le=YEAR)] = DAY


class AdminAPI:
    """The handlers; core has seen to it that whoever asks has the role `admin`."""

    def __init__(self, plugin: Plugin, gateway: Gateway) -> None:
        self._plugin = plugin
        self._gateway = gateway

    def register(self) -> None:
        """Add the routes."""
        routes = (
            ("/admin/keys", self.keys, ("GET", "POST"), "List API keys, or create one"),
            ("/admin/keys/{id}", self.key, ("GET", "PATCH", "DELETE"), "Show, change or revoke an API key"),
            ("/admin/keys/{id}/rotate", self.rotate, ("POST",), "Give an API key a new secret"),
        )
        for path, handler, methods, summary in routes:
            self._gateway.add_route(path, handler, methods=methods, require="admin", summary=summary)

    async def keys(self, request: Request) -> Response:
        """`/admin/keys`."""
        return await (self._create(request) if request.method == "POST" else self._list(request))

    async def key(self, request: Request) -> Response:
        """`/admin/keys/ID`."""
        if request.method == "PATCH":
            return await self._change(request)
        if request.method == "DELETE":
            return await self._revoke(request)
        _parameters(request)
        record = await asyncio.to_thread(lambda: _found(self._records(), request))
        return _json(self._described(record))

    async def rotate(self, request: Request) -> Response:
        """`/admin/keys/ID/rotate`."""
        _parameters(request)
        wanted = _decoded(await self._body(request) or b"{}", Rotate)

        def work(at: desk.Desk) -> desk.Rotation:
            return at.rotate(_found(at.records, request), wanted.grace_seconds)

        done = await self._changing(request, work)
        return _json({**self._described(done.record), "key": done.key.reveal()})

    async def _list(self, request: Request) -> Response:
        asked = _parameters(request, "limit", "after", "team")
        size = _page_size(asked.get("limit"))
        records = await asyncio.to_thread(self._records)
        if "team" in asked:
            records = [record for record in records if record.team == asked["team"]]
        if "after" in asked:
            records = _following(records, asked["after"])
        page = [self._described(record) for record in records[:size]]
        last = page[-1]["id"] if page else None
        return _json({"object": "list", "data": page, "has_more": len(records) > size, "last_id": last})

    async def _create(self, request: Request) -> Response:
        _parameters(request)
        changes, warnings = known(_decoded(await self._body(request), Changes), self._gateway)
        if changes.name is msgspec.UNSET:
            raise InvalidRequest("The field 'name' is missing.", param="name")
        record, key = await self._changing(request, lambda at: at.create(changes))
        about(request, f"/admin/keys/{record.id}")
        body = {**self._described(record), "key": key.reveal(), "warnings": warnings}
        return _json(body, 201)

    async def _change(self, request: Request) -> Response:
        force = _force(request)
        changes, warnings = known(_decoded(await self._body(request), Changes), self._gateway)
        caller: Principal = request.state.principal

        def work(at: desk.Desk) -> Record:
            after = at.change(_found(at.records, request), changes)
            locked_out = after.role != "admin" or after.state(at.now, development=True) != "active"
            if after.id == caller.id and locked_out and not force:
                raise desk.Refused("This would lock you out: it is the key you are using. Add ?force=true to mean it.")
            return after

        record = await self._changing(request, work)
        return _json({**self._described(record), "warnings": warnings})

    async def _revoke(self, request: Request) -> Response:
        force = _force(request)
        caller: Principal = request.state.principal

        def work(at: desk.Desk) -> Record:
            record = _found(at.records, request)
            if record.id == caller.id and not force:
                raise desk.Refused("This is the key you are using. Add ?force=true to revoke it all the same.")
            return at.revoke(record)

        return _json(self._described(await self._changing(request, work)))

    async def _changing(self, request: Request, work: Callable[[desk.Desk], T]) -> T:
        """Do something to the keys; it is in force here before the answer is out, even if the client has left."""
        caller: Principal = request.state.principal
        who = f"API, {caller.id!r} ({caller.name!r}), request {request.scope['headrace.id']}:"

        def change() -> T:
            with _answered(), desk.at_desk(self._plugin.database, who) as at:
                done = work(at)
            self._look()
            return done

        return await asyncio.shield(asyncio.to_thread(change))

    def _look(self) -> None:
        try:
            if self._plugin.mirror is not None:
                self._plugin.mirror.look()
        except PluginError as error:  # it is written: the next look will see it
            logger.warning("a change of the keys is not in force yet: %s", error)

    def _records(self) -> list[Record]:
        with _answered(), Store.open(self._plugin.database) as store:
            return store.records()

    def _described(self, record: Record) -> dict[str, Any]:
        return described(record, time.time(), development=self._plugin.config.development_key)

    async def _body(self, request: Request) -> bytes:
        """The whole body, if it is small and comes in time."""
        parts = bytearray()
        try:
            async with asyncio.timeout(self._gateway.config.server.body_timeout):
                async for part in request.stream():
                    parts += part
                    if len(parts) > BODY_BYTES:
                        raise PayloadTooLarge(f"The body is larger than {BODY_BYTES} bytes.")
        except TimeoutError:
            raise RequestTimeout("The request's body did not arrive in time.") from None
        except ClientDisconnect:
            raise InvalidRequest("The request's body is not complete.") from None
        return bytes(parts)


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    """What cannot be done, as answers."""
    try:
        yield
    except desk.UnknownKey as error:
        raise NotFound("There is no key with this id.", param="id") from error
    except desk.Refused as error:
        raise GatewayError(str(error), status=409, type="invalid_request_error", code="conflict") from error
    except PluginError as error:
        logger.error("the admin API cannot use the database: %s", error)
        raise Unavailable("The database of keys cannot be used now: the gateway's log says why.") from error


def _found(records: list[Record], request: Request) -> Record:
    id = request.path_params["id"]
    if ID.fullmatch(id):
        for record in records:
            if record.id == id:
                return record
    raise NotFound("There is no key with this id.", param="id")


def _decoded(body: bytes, kind: type[T]) -> T:
    """A JSON body as a Struct. Raises InvalidRequest."""
    try:
        body.decode("utf-8")
        return msgspec.json.decode(body, type=kind)
    except UnicodeDecodeError as error:
        raise InvalidRequest("The body is not valid UTF-8.", code="invalid_encoding") from error
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        if "unknown field" in text and not path:
            text += f"; there are {', '.join(kind.__struct_fields__)}"  # type: ignore[attr-defined]
        raise InvalidRequest(f"{text}.", param=path.rstrip("`").lstrip(".") or None) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest("The body is not valid JSON.", code="invalid_json") from error


def _parameters(request: Request, *names: str) -> dict[str, str]:
    """The query's parameters. Raises InvalidRequest: one is unknown, or given twice."""
    given = request.query_params.multi_items()
    for name, _ in given:
        if name not in names:
            allowed = ", ".join(names) or "none"
            raise InvalidRequest(f"The parameter {name[:40]!r} is not known here (known: {allowed}).", param=name[:40])
    if len(dict(given)) != len(given):
        raise InvalidRequest("A parameter is given twice.")
    return dict(given)


def _force(request: Request) -> bool:
    value = _parameters(request, "force").get("force", "false")
    if value not in ("true", "false"):
        raise InvalidRequest("The parameter 'force' is 'true' or 'false'.", param="force")
    return value == "true"


def _page_size(text: str | None) -> int:
    if text is None:
        return PAGE
    if not re.fullmatch(r"[0-9]{1,4}", text, re.ASCII) or not 1 <= int(text) <= LARGEST_PAGE:
        raise InvalidRequest(f"The parameter 'limit' is a number from 1 to {LARGEST_PAGE}.", param="limit")
    return int(text)


def _following(records: list[Record], id: str) -> list[Record]:
    for position, record in enumerate(records):
        if record.id == id:
            return records[position + 1 :]
    raise InvalidRequest("The parameter 'after' is the id of a key that is in the list.", param="after")


def _json(body: Any, status: int = 200) -> Response:
    headers = {"Cache-Control": "no-store"}  # some of it is a secret
    return Response(msgspec.json.encode(body), status, headers, "application/json")
