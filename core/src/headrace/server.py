"""Serving: uvicorn around the application, from its signals to its last request."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from .app import build_app
from .gateway import Gateway
from .hooks import NOTIFY_SECONDS
from .protocol import protocol_for
from .reload import on_change
from .sockets import bind, bind_unix, held, lock_of, raise_file_limit
from .tenure import Tenures

KEEP_ALIVE_SECONDS = 75
"""Longer than nginx keeps its connections to us (60 s), so that it never sends into one that we are closing."""
BACKLOG = 4096
GARBAGE_AT = 10_000
"""New objects before Python looks for garbage. A request leaves none that reference counts would not find."""


async def serve(
    gateway: Gateway,
    sockets: Sequence[socket.socket],
    on_listening: Callable[[], None] = lambda: None,
    path: Path | None = None,
) -> None:
    """Run the gateway on bound sockets until SIGINT or SIGTERM, then let open requests finish. SIGHUP has `path`, its
    configuration, read again.

    Raises:
        PluginError: a plugin's lifespan failed.
    """

    def listening() -> None:
        tenures.tell()
        on_listening()

    server = make_server(gateway, listening)
    tenures = Tenures(gateway, path, server.config)
    async with tenures.running(), _watching(gateway, path, tenures):
        server.on_hangup = tenures.reload
        await server.serve(sockets=list(sockets))


@contextlib.asynccontextmanager
async def _watching(gateway: Gateway, path: Path | None, tenures: Tenures) -> AsyncIterator[None]:
    """Behind nginx it is `headrace up` that looks whether the file changes: nginx has to know, too."""
    if path is None or gateway.behind_front or not gateway.config.server.reload_on_change:
        yield
        return
    task = asyncio.create_task(on_change(path, tenures.reload), name="headrace-watch")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


class Server(uvicorn.Server):
    """uvicorn's server, which returns when SIGINT or SIGTERM stop it.

    uvicorn itself raises the signal again at the end, and the process would die before plugins have closed anything.
    """

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        self._told_to_stop = asyncio.Event()
        super().__init__(config)
        self._on_listening = on_listening
        self.on_hangup: Callable[[], Coroutine[Any, Any, Any]] | None = None
        """What SIGHUP begins."""
        self._hangups: set[asyncio.Task[Any]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        loop.add_signal_handler(signal.SIGHUP, self.handle_hangup)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what is ending has nothing to reload

    def handle_hangup(self) -> None:
        """Begin what a hangup begins; it goes on beside the requests."""
        if self.on_hangup is not None and not self.should_exit:
            task = asyncio.create_task(self.on_hangup(), name="headrace-reload")
            self._hangups.add(task)
            task.add_done_callback(self._hangups.discard)

    @property
    def should_exit(self) -> bool:
        """Whether it is to stop: set it, in its own loop, and it does."""
        return self._told_to_stop.is_set()

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        if value:
            self._told_to_stop.set()

    async def main_loop(self) -> None:
        """uvicorn looks ten times a second whether it is to stop, and what the date is: we are told, and see then."""
        await self._told_to_stop.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, and then the end of what it had to cut short: plugins are still there to hear of it."""
        await super().shutdown(sockets)
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=2 * NOTIFY_SECONDS)

    @contextlib.asynccontextmanager
    async def answering(self, sockets: Sequence[socket.socket]) -> AsyncIterator[None]:
        """Answer for as long as the context lasts, in a loop that somebody else runs; signals are left to them."""
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup(list(sockets))
        try:
            yield
        finally:
            await self.shutdown(list(sockets))


def make_server(gateway: Gateway, on_listening: Callable[[], None] = lambda: None) -> Server:
    """A server for the gateway's application; its sockets are passed to `serve` or `answering`."""
    server = gateway.config.server
    config = uvicorn.Config(
        build_app(gateway),
        http=protocol_for(server.max_header_bytes),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(server.shutdown_timeout),
        backlog=BACKLOG,
    )
    return Server(config, on_listening)


@contextlib.contextmanager
def listening(gateway: Gateway, *, tcp: bool) -> Iterator[list[socket.socket]]:
    """Sockets to serve on: the core's unix socket and, with `tcp`, `server.listen`. Closed and removed at the end.

    Raises:
        CannotListen, HeadraceError.
    """
    gateway.make_dirs()
    refusal = f"another gateway listens on {gateway.core_socket}: stop it, or set another server.state_dir"
    with contextlib.ExitStack() as stack:
        stack.enter_context(held(lock_of(gateway.core_socket), refusal))
        sockets = [stack.enter_context(bind_unix(gateway.core_socket))]
        stack.callback(gateway.core_socket.unlink, missing_ok=True)
        if tcp:
            sockets.append(stack.enter_context(bind(gateway.config.server.listen)))
        yield sockets


def run(gateway: Gateway, sockets: Sequence[socket.socket], on_listening: Callable[[], None], path: Path) -> None:
    """Serve until told to stop, in an event loop of its own. Raises PluginError."""
    raise_file_limit()
    gc.freeze()  # what is there now stays: nobody need look through it again
    gc.set_threshold(GARBAGE_AT)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(gateway, sockets, on_listening, path))


def loop_factory() -> Any:
    """uvloop where it exists."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
