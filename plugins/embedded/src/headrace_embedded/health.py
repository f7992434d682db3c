"""Asking the engine whether it is well, with nothing but a socket."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from headrace.exchange import Target
from headrace.providers import Health

READY_SECONDS = 2.0
"""An engine that does not answer this fast is not ready yet."""
REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def status_of(socket: Path) -> int:
    """The HTTP status with which the engine answers `/health`.

    Raises:
        OSError: nobody listens there.
        ValueError: what answered does not speak HTTP.
    """
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        writer.write(REQUEST)
        line = await reader.readline()
        return int(line.split(b" ", 2)[1]) if line.startswith(b"HTTP/") else int(line)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def is_ready(socket: Path) -> bool:
    """Whether the engine has loaded its model and answers."""
    try:
        async with asyncio.timeout(READY_SECONDS):
            return await status_of(socket) == 200
    except (OSError, ValueError, TimeoutError):
        return False


class EngineCheck:
    """The engine opens its socket once its model is loaded, so a closed door means that it is not there yet."""

    async def check(self, target: Target) -> Health:
        assert target.socket is not None
        try:
            status = await status_of(Path(target.socket))
        except (FileNotFoundError, ConnectionRefusedError):
            return Health(
                ok=False,
                starting=True,
                reason="starting: the engine is loading its model, or `headrace up` is not running",
            )
        if status != 200:
            return Health(ok=False, reason=f"the engine answers /health with status {status}")
        return Health(ok=True)
