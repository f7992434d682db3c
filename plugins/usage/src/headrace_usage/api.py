"""`/admin/usage`: reports and single requests over HTTP. Asks the database in a thread."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.errors import InvalidRequest, PluginError, Unavailable

from .listing import listed
from .report import described, report
from .selection import FILTERS, NOW, Question, Selection, Wrong
from .store import Store
from .times import moment

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from . import Plugin

logger = logging.getLogger("headrace.usage")

AT_ONCE = 2
"""Questions that a worker asks its database at the same time: the others wait."""
PAGE = 100
LARGEST_PAGE = 1000
WAIT_SECONDS = 5.0

T = TypeVar("T")


class AdminAPI:
    """The handlers; core has seen to it that whoever asks has the role `admin`."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self._turns = asyncio.Semaphore(AT_ONCE)

    def register(self, gateway: Gateway) -> None:
        """Add the routes."""
        for name, handler, summary in (
            ("report", self.report, "Sum up requests by key, model, team, day, …"),
            ("requests", self.requests, "List single requests, the newest first"),
        ):
            gateway.add_route(f"/admin/usage/{name}", handler, require="admin", summary=summary)

    async def report(self, request: Request) -> Response:
        """`/admin/usage/report`."""
        given = _parameters(request, "by", "sort", "limit")
        limit = _size(given["limit"], LARGEST_PAGE * 100) if "limit" in given else None
        by = tuple(each.strip() for each in given.get("by", "key,model").split(","))
        question = _asked(request, given, Question, "7d", by=by, sort=given.get("sort", ""), limit=limit)
        found = await self._ask(lambda store: report(store, question))
        return _json(described(found, question, self._plugin.config.currency))

    async def requests(self, request: Request) -> Response:
        """`/admin/usage/requests`."""
        given = _parameters(request, "limit", "after")
        size = _size(given.get("limit", str(PAGE)), LARGEST_PAGE)
        selection = _asked(request, given, Selection, "1h")
        rows = await self._ask(lambda store: listed(store, selection, size + 1, given.get("after")))
        page = rows[:size]
        last = page[-1]["cursor"] if page else None
        return _json({"object": "list", "data": page, "has_more": len(rows) > size, "last_id": last})

    async def _ask(self, work: Callable[[Store], T]) -> T:
        """Raises InvalidRequest, Unavailable."""

        def asked() -> T:
            with Store.open(self._plugin.database, WAIT_SECONDS, create=False) as store:
                return work(store)

        async with self._turns:
            try:
                return await asyncio.to_thread(asked)
            except Wrong as error:
                raise InvalidRequest(f"{str(error).capitalize()}.") from error
            except PluginError as error:
                logger.error("the admin API cannot use the usage ledger: %s", error)
                raise Unavailable("The usage ledger cannot be asked now: the gateway's log says why.") from error


def _parameters(request: Request, *names: str) -> dict[str, str]:
    """The query's parameters that may be given once. Raises InvalidRequest: one is unknown, or given twice."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in FILTERS:
            continue
        if name not in (*names, "since", "until"):
            allowed = ", ".join((*names, "since", "until", *FILTERS))
            raise InvalidRequest(f"The parameter {name[:40]!r} is not known here (known: {allowed}).", param=name[:40])
        if name in given:
            raise InvalidRequest(f"The parameter {name!r} is given twice.", param=name)
        given[name] = value
    return given


def _asked(request: Request, given: dict[str, str], kind: Callable[..., T], since: str, **more: Any) -> T:
    now = int(time.time() * 1000)
    filters = {name: tuple(request.query_params.getlist(name)) for name in FILTERS if name in request.query_params}
    try:
        first = moment(given.get("since", since), now)
        until = moment(given["until"], now) if "until" in given else NOW
        return kind(since=first, until=until, filters=filters, **more)
    except ValueError as error:
        raise InvalidRequest(f"{error}.") from error


def _size(text: str, largest: int) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII) or not 1 <= int(text) <= largest:
        raise InvalidRequest(f"The parameter 'limit' is a number from 1 to {largest}.", param="limit")
    return int(text)


def _json(body: Any) -> Response:
    return Response(msgspec.json.encode(body), 200, {"Cache-Control": "no-store"}, "application/json")
