"""`/admin/cache`: the same as the commands, over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.errors import InvalidRequest, Unavailable

from .marks import Board
from .report import report

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from . import Plugin


class AdminAPI:
    """The handlers; core has seen to it that whoever asks has the role `admin`."""

    def __init__(self, plugin: Plugin, gateway: Gateway) -> None:
        self._plugin, self._gateway = plugin, gateway

    def register(self) -> None:
        """Add the routes."""
        summary = "How the cache stands, or clear it"
        methods = ("GET", "DELETE")
        self._gateway.add_route("/admin/cache", self.cache, methods=methods, require="admin", summary=summary)

    async def cache(self, request: Request) -> Response:
        """`/admin/cache`."""
        return await (self._clear(request) if request.method == "DELETE" else self._show(request))

    async def _show(self, request: Request) -> Response:
        """Of all workers; of the others as they stood a second ago."""
        desk = self._plugin.desk
        others = [each for each in Board(self._gateway.runtime_dir).read() if each.worker != self._gateway.worker]
        own = [desk.standing(self._gateway.worker)] if desk is not None else []
        return _json(report([*own, *others]))

    async def _clear(self, request: Request) -> Response:
        """`?model=NAME`, or everything."""
        asked = set(request.query_params) - {"model"}
        if asked:
            raise InvalidRequest(f"There is no parameter {sorted(asked)[0]!r} here, but 'model'.", param=min(asked))
        model = request.query_params.get("model")
        name = self._gateway.models.find(model).name if model is not None else None
        desk = self._plugin.desk
        try:
            done = desk is not None and await desk.clear(name)
        except OSError as error:
            raise Unavailable("The cache could not be cleared.", detail=str(error)) from error
        if not done:
            raise Unavailable("The cache's server does not answer: what it keeps is still there.")
        return _json({"object": "cache.cleared", "model": name})


def _json(what: object) -> Response:
    return Response(msgspec.json.encode(what), media_type="application/json")
