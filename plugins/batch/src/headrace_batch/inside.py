"""Asking the gateway from within: its own ASGI application, without a socket.

The application cancels a request whose client has left, closes what it had open at a backend, and tells its plugins;
so an item is given up by telling it that its client has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headrace import front

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from headrace.exchange import Headers

KEPT = (
    *("type", "asgi", "http_version", "server", "client", "scheme", "method", "root_path", "state"),
    "extensions",
)
"""What of the batch's scope is that of its items, too."""
OURS = frozenset((front.MARK, front.EXCHANGE, front.SPOOLED, front.FAILED, front.RETRY_AFTER))
"""Between our nginx and the core, about the batch: an item did not come through nginx, and is not given to it."""
OF_THE_BODY = frozenset(
    b"content-length content-type content-encoding transfer-encoding expect connection x-request-id "
    b"idempotency-key".split()
)
"""About the batch's own body; items have others."""
LONGEST_ID = 120
"""Of the batch, so that its items' are valid, too."""


class Answer:
    """What came of one item. `status` is None if nothing did; `whole` says whether all of it came."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.body = bytearray()
        self.whole = False
        self.too_large = False


class Call:
    """One request to the application, as ASGI's `receive` and `send` see it.

    Args:
        body: of the request.
        most: bytes of an answer; of a larger one nothing is kept.
    """

    def __init__(self, body: bytes, most: int) -> None:
        self._body: bytes | None = body
        self._most = most
        self._left = asyncio.Event()
        self.answer = Answer()

    def leave(self) -> None:
        """The client is gone."""
        self._left.set()

    async def receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Mapping[str, Any]) -> None:
        answer = self.answer
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            return
        answer.body += message.get("body", b"")
        answer.whole = not message.get("more_body", False)
        if len(answer.body) > self._most:
            answer.too_large, answer.body = True, bytearray()
            self.leave()


def scope_of(batch: Mapping[str, Any], path: str, number: int) -> dict[str, Any]:
    """The scope of one item: the caller and their credentials are the batch's, nothing else is."""
    kept = {name: batch[name] for name in KEPT if name in batch}
    identifier = f"{batch['headrace.id'][:LONGEST_ID]}-{number}"
    headers: Headers = [
        (name, value)
        for name, value in batch["headers"]
        if name not in OURS and name not in OF_THE_BODY and not name.startswith(front.REQUEST_HEADER)
    ]
    headers += [(b"content-type", b"application/json"), (b"x-request-id", identifier.encode())]
    own = {"path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}
    return {**kept, "method": "POST", **own, "state": dict(batch.get("state", {}))}


async def ask(app: ASGIApp, scope: dict[str, Any], call: Call) -> Answer:
    """Have one item answered, in a task of its own, which the application may cancel. When this returns no backend is
    busy with it any more."""
    await asyncio.create_task(_run(app, scope, call), name=f"headrace-batch {scope['path']}")
    return call.answer


async def _run(app: ASGIApp, scope: dict[str, Any], call: Call) -> None:
    await app(scope, call.receive, call.send)
