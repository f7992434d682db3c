"""The engine process: `python -m headrace_embedded.engine --socket PATH --model FILE.gguf …`.

It loads the model, opens its socket only then, and answers until it is told to stop or its parent has gone.
While llama.cpp loads, no Python runs at all, so there is nobody to ask: no socket means "not ready".
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from headrace.errors import HeadraceError
from headrace.sockets import bind_unix, remove_stale

from .llama import Llama, Options

PARENT_SECONDS = 0.25
"""How often the engine looks whether its parent is still there."""
GRACE_SECONDS = 2
"""From SIGTERM until answers that have been cut short must be out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the engine; returns the exit status."""
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    path, options = parse(argv)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while llama.cpp loads, Python's own handlers do not run
    follow_parent()
    door = Door(path)
    try:
        remove_stale(path)
        llama = Llama(options)
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn takes these over, and raises them again at its end
            signal.signal(number, door.leave)
        listener = door.open()
    except HeadraceError as error:
        print(f"headrace embedded engine: {error}", file=sys.stderr)  # noqa: T201
        return 1
    try:
        asyncio.run(serve(llama, listener))
    finally:
        door.close()
    return 0


def parse(argv: Sequence[str] | None) -> tuple[Path, Options]:
    """The command line: where to listen, and how to run which model."""
    parser = argparse.ArgumentParser(prog="headrace_embedded.engine", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--socket", type=Path, required=True, help="unix socket to listen on")
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--name", default="", help="what the model is called in answers")
    parser.add_argument("--threads", type=int, default=1, help="threads that compute")
    parser.add_argument("--context", type=int, default=8192, help="tokens of one request")
    parser.add_argument("--parallel", type=int, default=2, help="requests at the same time")
    parser.add_argument("--batch", type=int, default=4, help="prompt tokens of one step")
    parser.add_argument("--embeddings", action="store_true", help="answer embedding requests")
    parser.add_argument("--pooling", choices=("model", "mean", "cls", "last"), default="model")
    given = vars(parser.parse_args(argv))
    path = given.pop("socket")
    given["name"] = given["name"] or given["model"].stem
    return path, Options(**given)


async def serve(llama: Llama, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT."""
    import uvicorn

    from .api import Api

    api = Api(llama)

    class Server(uvicorn.Server):
        """Cuts generations short before it waits for their answers to go out."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(api.workers.stop_all)
            super().handle_exit(sig, frame)

    loop = asyncio.get_running_loop()
    await Server(_uvicorn_config(api)).serve(sockets=[listener])


def _uvicorn_config(app: Any) -> Any:
    import uvicorn

    return uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def follow_parent() -> None:
    """End this process soon after its parent has ended, however that happened.

    `PR_SET_PDEATHSIG` would be quicker, but it fires when the *thread* that started us ends.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS + 1)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


class Door:
    """The unix socket on which the engine listens."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode: int | None = None
        self._listener: socket.socket | None = None

    def open(self) -> socket.socket:
        """Raises CannotListen."""
        self._listener = bind_unix(self._path)
        self._inode = self._path.stat().st_ino
        return self._listener

    def close(self) -> None:
        """Stop listening and remove the file, unless it is a newer engine's by now."""
        if self._listener is not None:
            self._listener.close()
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def leave(self, number: int, frame: FrameType | None) -> None:
        """End the process in good order: a signal's handler."""
        self.close()
        os._exit(0)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # llama.cpp's destructors would only give back what the kernel takes anyway
