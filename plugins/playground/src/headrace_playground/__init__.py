"""One self-contained page to try the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from headrace import hookimpl
from headrace.config import Strict

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from headrace.gateway import Gateway

PATH = "/playground"


class PlaygroundConfig(Strict, frozen=True):
    """`[plugins.playground]`: nothing to set; the page is there, or it is not."""


class Plugin:
    """Serves the page. It holds no key: whoever uses it enters their own."""

    Config = PlaygroundConfig

    def __init__(self, config: PlaygroundConfig, gateway: Gateway) -> None:
        self._config = config

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        from starlette.responses import Response

        from .page import assemble

        page = assemble()

        async def show(request: Request) -> Response:
            return Response(page.content, headers=page.headers, media_type="text/html; charset=utf-8")

        gateway.add_route(PATH, show, methods=("GET",), summary="A page to try the models")

    @hookimpl
    def announce(self, gateway: Gateway) -> Mapping[str, str]:
        return {"playground": PATH}


__all__: Sequence[str] = ["PATH", "PlaygroundConfig", "Plugin"]
