"""One connection to the server: commands go out, answers come back in their order.

Nothing here waits for long: whoever asks decides when it has taken too long, and closes the connection.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import cast

from .config import Address
from .resp import ErrorReply, Garbage, Replies, Reply, command


class Lost(Exception):
    """The connection is gone, and why."""


Answer = bytes | ErrorReply | Lost
OnReply = Callable[[Answer], None]
OnLost = Callable[[str], None]


class Connection(asyncio.Protocol):
    """An open connection. `on_lost` is called once, with the reason, unless `close` was called first."""

    def __init__(self) -> None:
        self.on_lost: OnLost | None = None
        self._replies = Replies()
        self._waiting: deque[OnReply] = deque()
        self._transport: asyncio.Transport | None = None
        self._why = ""

    # --- what callers use ------------------------------------------------------------------------------------------

    def send(self, data: bytes, on_reply: OnReply) -> None:
        """Send a command. `on_reply` is called with what is answered, or with Lost; not if `close` is called first."""
        if self._transport is None:
            on_reply(Lost(self._why))
        else:
            self._waiting.append(on_reply)
            self._transport.write(data)

    async def ask(self, *words: bytes) -> bytes:
        """Send a command and wait for its answer. Raises ErrorReply, Lost."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.send(command(*words), lambda answer: None if answered.done() else answered.set_result(answer))
        answer = await answered
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Close at once: what has not been sent is dropped, what has not been answered never will be."""
        transport, self._transport, self.on_lost = self._transport, None, None
        self._waiting.clear()
        if transport is not None:
            transport.abort()

    # --- what asyncio calls ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        try:
            for reply in self._replies.feed(data):
                self._answer(reply)
        except Garbage as error:
            self._lose(str(error))

    def _answer(self, reply: Reply) -> None:
        if not self._waiting:
            if self._transport is not None:  # not closed by what the answer before it has set off
                raise Garbage("the server answers what nobody asked")
            return
        self._waiting.popleft()(b"" if reply is None else reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(f"the connection was lost: {exc}" if exc else "the server has closed the connection")

    def _lose(self, why: str) -> None:
        waiting, on_lost, self._why = list(self._waiting), self.on_lost, why
        self.close()
        for on_reply in waiting:
            on_reply(Lost(why))
        if on_lost is not None:
            on_lost(why)


async def connect(address: Address, context: ssl.SSLContext | None) -> Connection:
    """Open a connection and be let in. Raises OSError, ErrorReply, Lost."""
    loop = asyncio.get_running_loop()
    if address.path:
        _, connection = await loop.create_unix_connection(Connection, address.path)
    else:
        _, connection = await loop.create_connection(Connection, address.host, address.port, ssl=context)
    try:
        password = address.password.reveal().encode()
        if password:
            user = (address.username.encode(),) if address.username else ()
            await connection.ask(b"AUTH", *user, password)
        if address.database:
            await connection.ask(b"SELECT", b"%d" % address.database)
    except BaseException:
        connection.close()
        raise
    return connection


def tls_context(ca: str | None, certificate: str | None) -> ssl.SSLContext:
    """How the server's certificate is checked, and which one it is shown. Raises OSError."""
    context = ssl.create_default_context(cafile=ca)
    if certificate:
        context.load_cert_chain(certificate)
    return context
