"""A program that stands in for `vllm`, and gateways that run it."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from headrace.gateway import Gateway
from headrace.settings import parse
from headrace.testing import free_port

PATIENCE = 30.0
FAKE = Path(__file__).with_name("fake_vllm.py")


def until(condition: Callable[[], Any], what: str = "it") -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen in time"
        time.sleep(0.01)
    return found


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class Site:
    """A folder with a `vllm` that does what it is told, and `headrace` commands in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vllm = folder / "vllm"
        self.vllm.write_text(f'#!/bin/sh\nexec {sys.executable} -S {FAKE} "$@"\n')
        self.vllm.chmod(0o755)
        self.mode = folder / "mode"
        self.listen = f"127.0.0.1:{free_port()}"
        self.config = folder / "headrace.toml"

    def engine(self, name: str, port: int, **keys: Any) -> str:
        """The table of an engine."""
        keys = {"model": "m", "port": port, "command": str(self.vllm), "drain": 0, **keys}
        keys["env"] = {"FAKE_VLLM": str(self.mode), **keys.get("env", {})}
        lines = [f"{key} = {_toml(value)}" for key, value in keys.items()]
        return "\n".join((f"[plugins.vllm.engines.{name}]", *lines))

    def write(self, *tables: str) -> None:
        server = f'[server]\nlisten = "{self.listen}"\nanonymous = true\nstate_dir = "{self.folder}/s"\n'
        self.config.write_text("\n".join((server, *tables)))

    def start(self) -> Up:
        return Up(self)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "headrace", "--config", str(self.config), *arguments],
            cwd=self.folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def noted(self, port: int, name: str) -> Any:
        """What an engine has written down."""
        path = Path(f"{self.mode}.{port}.{name}.json")
        return json.loads(until(lambda: path.exists() and path.read_text(), f"{name} of the engine"))

    def pids(self, port: int) -> list[int]:
        """The processes of an engine."""
        return [self.noted(port, "start")["pid"], *self.noted(port, "below")]

    def log(self, name: str) -> str:
        return (self.folder / "s" / "log" / f"vllm-{name}.log").read_text()


class Up:
    """`headrace up` in a site."""

    def __init__(self, site: Site) -> None:
        self._stderr = site.folder / "stderr"
        with self._stderr.open("w") as stderr:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "headrace", "--config", str(site.config), "up"],
                cwd=site.folder,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self.url = f"http://{site.listen}"
        self.ready_line = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.ready_line = line

    @property
    def said(self) -> list[str]:
        """Its lines of progress."""
        lines = self._stderr.read_text().splitlines()
        return [line.removeprefix("headrace: ") for line in lines if line.startswith("headrace: ")]

    def saying(self, words: str) -> str:
        """The first line with these words, once it is there."""

        def line() -> str | None:
            return next((line for line in self.said if words in line), None)

        try:
            return str(until(line, f"saying {words!r}"))
        except AssertionError as error:
            raise AssertionError(f"{error}: {self._stderr.read_text()}") from None

    def ready(self) -> Up:
        until(lambda: self.ready_line or self.child.poll() is not None, "the READY line")
        assert self.ready_line.startswith("READY"), self._stderr.read_text()
        return self

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.child.poll() is None:
            self.child.send_signal(number)
        try:
            return self.child.wait(PATIENCE)
        finally:
            if self.child.poll() is None:
                self.child.kill()
                self.child.wait()
            self._reader.join(PATIENCE)
            assert self.child.stdout is not None
            self.child.stdout.close()


class Server:
    """A running stand-in for vLLM that no gateway has started."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.port, self.mode = free_port(), folder / f"mode-{len(list(folder.glob('mode-*')))}"
        self.mode.touch()
        self.url = f"http://127.0.0.1:{self.port}"
        argv = [sys.executable, "-S", str(FAKE), "serve", "m", "--host", "127.0.0.1", "--port", str(self.port)]
        given = {**os.environ, "FAKE_VLLM": str(self.mode), **environment}
        self._child = subprocess.Popen(argv, env=given, stdout=subprocess.DEVNULL)
        until(self._answers, "the server's start")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    @property
    def asked(self) -> list[list[Any]]:
        """Every POST: its path and its fields."""
        path = Path(f"{self.mode}.{self.port}.asked.json")
        return list(json.loads(path.read_text())) if path.exists() else []

    def end(self) -> None:
        self._child.terminate()
        self._child.wait(PATIENCE)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


@pytest.fixture
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="hr-", ignore_cleanup_errors=True) as folder:  # sockets want short paths
        yield Site(Path(folder))


@pytest.fixture
def start(site: Site) -> Iterator[Callable[[], Up]]:
    """`headrace up`; ended after the test."""
    with contextlib.ExitStack() as ending:

        def begin() -> Up:
            up = site.start()
            ending.callback(up.end)
            return up

        yield begin


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """A stand-in for vLLM; keywords are its environment."""
    with contextlib.ExitStack() as ending:

        def begin(**environment: str) -> Server:
            made = Server(tmp_path, **environment)
            ending.callback(made.end)
            return made

        yield begin


@pytest.fixture(scope="session")
def kit() -> Any:
    return type("Kit", (), {each.__name__: staticmethod(each) for each in (until, free_port, alive, assembled)})


@pytest.fixture(scope="session")
def failures() -> dict[str, str]:
    """What vLLM's log ends with, by what has gone wrong."""
    found: dict[str, str] = runpy.run_path(str(FAKE))["FAILURES"]
    return found


def assembled(vllm: dict[str, Any], backend: dict[str, Any] | None = None, **tables: Any) -> Gateway:
    """A gateway with these engines, and a model `m` of one backend."""
    document: dict[str, Any] = {"server": {"anonymous": True}, "plugins": {"vllm": vllm}, **tables}
    if backend is not None:
        document["backends"] = {"b": {"provider": "vllm", **backend}}
        document.setdefault("models", {"m": {"targets": ["b"]}})
    return Gateway(parse(document), "test").assemble()
