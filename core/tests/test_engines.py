"""What the launchers of engines share: the keeper of an engine's processes, its log, and what that tells."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.engines import (
    Progress,
    forget_running,
    is_ready,
    keeper_argv,
    note_running,
    reason,
    refuse_changes,
    refuse_orphans,
)
from headrace.errors import HeadraceError
from headrace.gateway import Gateway
from headrace.keeper import MARK, STARTED, trouble_at
from headrace.settings import parse
from headrace.sockets import held
from headrace.testing import free_port

PATIENCE = 30.0
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or relies on prctl")

TELL = """
import os, pathlib, signal, subprocess, sys, time
pathlib.Path(sys.argv[1], 'engine').write_text(str(os.getpid()))
"""
SLEEP = "while True: time.sleep(60)\n"
STEADY = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
BELOW = """
def below(name, **options):
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
    child = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, **options)
    child.stdout.readline()
    pathlib.Path(sys.argv[1], name).write_text(str(child.pid))
below("worker")
below("far", start_new_session=True)
"""
PARENT = "import subprocess, sys\nsubprocess.Popen(sys.argv[1:]).wait()\n"


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen in time"
        time.sleep(0.01)
    return found


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):  # a zombie that nobody has waited for is not alive
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class Yard:
    """A folder with engines of a few lines, and their keepers."""

    def __init__(self, folder: Path, ending: contextlib.ExitStack) -> None:
        self.folder, self.log, self._ending = folder, folder / "engine.log", ending

    def argv(self, code: str, *, limit: int = 1_000_000, grace: float = PATIENCE, port: int = 0) -> list[str]:
        engine = [sys.executable, "-S", "-c", TELL + code, str(self.folder)]
        return keeper_argv(engine, self.log, limit=limit, grace=grace, listen=f"127.0.0.1:{port}")

    def run(self, argv: list[str]) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(argv, start_new_session=True)
        self._ending.callback(child.wait)
        self._ending.callback(child.kill)
        return child

    def pid(self, name: str) -> int:
        """The process id that somebody has written down."""

        def told() -> int:
            with contextlib.suppress(FileNotFoundError, ValueError):
                return int((self.folder / name).read_text())
            return 0

        return int(until(told, f"the start of {name}"))

    def said(self, words: str) -> bool:
        return self.log.exists() and words in self.log.read_text()


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    with contextlib.ExitStack() as ending:
        yield Yard(tmp_path, ending)


# --- the keeper ---


def test_what_an_engine_says_on_either_stream_is_in_its_log_between_its_start_and_its_end(yard: Yard) -> None:
    code = "print('out', flush=True)\nprint('err', file=sys.stderr)\nsys.exit(3)\n"
    assert yard.run(yard.argv(code)).wait(PATIENCE) == 3
    first, *said, last = yard.log.read_text().splitlines()
    assert first.startswith(STARTED)
    assert said == ["out", "err"]
    assert last == f"{MARK}ended, exit status 3"


def test_the_log_is_for_its_owner_alone(yard: Yard) -> None:
    yard.run(yard.argv("sys.exit(0)\n")).wait(PATIENCE)
    assert stat.S_IMODE(yard.log.stat().st_mode) == 0o600


def test_a_log_that_is_full_is_put_aside_once(yard: Yard) -> None:
    code = "for n in range(3000): print(f'line {n:05}', flush=n % 2000 == 0)\n"
    assert yard.run(yard.argv(code, limit=10_000)).wait(PATIENCE) == 0
    aside = yard.log.with_name("engine.log.1")
    assert max(yard.log.stat().st_size, aside.stat().st_size) <= 10_000
    assert "line 02999" in yard.log.read_text()
    assert sorted(each.name for each in yard.folder.glob("engine.log*")) == ["engine.log", "engine.log.1"]


def test_sigterm_reaches_the_engine_and_its_exit_status_is_passed_on(yard: Yard) -> None:
    keeper = yard.run(
        yard.argv("signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nprint('on', flush=True)\n" + SLEEP)
    )
    until(lambda: yard.said("on"), "the engine's start")
    keeper.terminate()
    assert keeper.wait(PATIENCE) == 7


def test_an_engine_that_does_not_stop_is_killed(yard: Yard) -> None:
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('on', flush=True)\n" + SLEEP
    keeper = yard.run(yard.argv(code, grace=0.2))
    until(lambda: yard.said("on"), "the engine's start")
    keeper.terminate()
    assert keeper.wait(PATIENCE) == 128 + signal.SIGKILL
    assert yard.said("it does not stop: killed")


@linux
def test_the_processes_of_an_engine_end_with_it_those_of_another_session_too(yard: Yard) -> None:
    keeper = yard.run(yard.argv(BELOW + SLEEP))
    below = [yard.pid("worker"), yard.pid("far")]
    assert all(map(alive, below))
    os.kill(yard.pid("engine"), signal.SIGKILL)
    assert keeper.wait(PATIENCE) == 128 + signal.SIGKILL
    assert not any(map(alive, below))


@linux
def test_when_the_keepers_parent_is_killed_nothing_is_left(yard: Yard) -> None:
    argv = yard.argv("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n" + BELOW + SLEEP)
    parent = yard.run([sys.executable, "-S", "-c", PARENT, *argv])
    pids = [yard.pid(name) for name in ("engine", "worker", "far")]
    parent.kill()
    until(lambda: not any(map(alive, pids)), "the end of everything")
    until(lambda: yard.said("the gateway is gone"), "the note in the log")


@linux
def test_when_the_keeper_is_killed_the_engine_is_told_to_stop(yard: Yard) -> None:
    keeper = yard.run(yard.argv(STEADY + "print('on', flush=True)\n" + SLEEP))
    engine = yard.pid("engine")
    until(lambda: yard.said("on"), "the engine's start")
    keeper.kill()
    until(lambda: not alive(engine), "the engine's end")


def test_a_program_that_is_not_there_is_told_of(yard: Yard) -> None:
    argv = keeper_argv(["/nowhere/engine"], yard.log, limit=10_000, grace=1, listen="127.0.0.1:0")
    assert yard.run(argv).wait(PATIENCE) == 127
    assert yard.said(f"{MARK}/nowhere/engine cannot be started: No such file or directory")


def test_an_engine_whose_port_is_taken_is_not_started(yard: Yard) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert trouble_at(f"127.0.0.1:{port}") == "another program listens there"
        assert yard.run(yard.argv(SLEEP, port=port)).wait(PATIENCE) == 1
    assert yard.said(f"{MARK}cannot listen at 127.0.0.1:{port}: another program listens there")
    assert not (yard.folder / "engine").exists()


def test_a_port_is_free_though_connections_to_it_are_still_being_forgotten() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            accepted.close()  # we close first: the connection lingers on our side
    assert trouble_at(f"127.0.0.1:{port}") == ""


def test_an_address_of_somebody_else_is_no_place_to_listen() -> None:
    assert trouble_at("203.0.113.1:8000") not in ("", "another program listens there")


# --- what the log tells ---

MILESTONES = [(re.compile(r"loading (\d+)%"), "loading, {0} %"), (re.compile(r"ready"), "opening its port")]
CAUSES = [(re.compile(r"no (memory)"), "out of {0}: buy some"), (re.compile(r"(\w+Error: .*)"), "{0}")]


class Told:
    """A log that is written by hand, and a clock."""

    def __init__(self, path: Path) -> None:
        self.path, self.now = path, 0.0
        path.touch()
        self.progress = Progress(path, MILESTONES, seconds=5, clock=lambda: self.now)

    def write(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(text)

    def after(self, seconds: float, text: str = "") -> list[str]:
        self.now += seconds
        self.write(text)
        return self.progress()


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path / "log")


def test_numbers_that_change_are_told_now_and_then(told: Told) -> None:
    assert told.after(0, "loading 1%\rloading 2%\r") == ["loading, 1 %"]
    assert told.after(1, "loading 30%\n") == []
    assert told.after(5, "loading 60%\n") == ["loading, 60 %"]
    assert told.after(5, "loading 60%\n") == []


def test_another_kind_of_news_is_told_at_once(told: Told) -> None:
    assert told.after(0, "loading 1%\nready\n") == ["loading, 1 %", "opening its port"]


def test_half_a_line_is_read_when_it_is_whole(told: Told) -> None:
    assert told.after(0, "loading 4") == []
    assert told.after(0, "2%\n") == ["loading, 42 %"]


def test_a_line_that_does_not_end_is_not_kept(told: Told) -> None:
    assert told.after(0, "x" * 100_000) == []
    assert told.after(0, "x" * 100_000 + "\nloading 7%\n") == ["loading, 7 %"]


def test_after_a_while_without_news_the_last_is_repeated_with_the_time(told: Told) -> None:
    assert told.after(2, "loading 7%\n") == ["loading, 7 %"]
    assert told.after(29) == []
    assert told.after(2) == ["loading, 7 % (33 s)"]
    assert told.after(2) == []
    assert told.after(31) == ["loading, 7 % (66 s)"]


def test_a_new_start_is_told_from_its_beginning(told: Told) -> None:
    assert told.after(0, "loading 7%\n") == ["loading, 7 %"]
    assert told.after(1, f"{STARTED}again\nloading 7%\n") == ["loading, 7 %"]


def test_what_a_log_said_before_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("loading 7%\n")
    assert Progress(tmp_path / "log", MILESTONES)() == []


def test_a_log_that_was_put_aside_is_read_on_in_its_successor(told: Told) -> None:
    assert told.after(0, "loading 7%\n") == ["loading, 7 %"]
    told.path.rename(told.path.with_suffix(".1"))
    assert told.after(9, "loading 8%\n") == ["loading, 8 %"]


def test_a_log_that_is_not_there_yet_tells_nothing_and_is_read_once_it_is(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "log", MILESTONES)
    assert progress() == []
    (tmp_path / "log").write_text("loading 7%\n")
    assert progress() == ["loading, 7 %"]


@pytest.mark.parametrize(
    ("log", "status", "told"),
    [
        ("SomeError: later\nno memory\n", 1, "out of memory: buy some"),
        ("SomeError: it broke\n", 1, "SomeError: it broke"),
        ("no memory\n", 137, "killed (SIGKILL), most often by the kernel for want of memory"),
        ("no memory\n", -9, "killed (SIGKILL)"),
        ("no memory\n", 139, "crashed (SIGSEGV)"),
        ("no memory\n", None, "out of memory: buy some"),
    ],
)
def test_the_reason_of_an_end_is_what_is_most_telling(tmp_path: Path, log: str, status: int | None, told: str) -> None:
    (tmp_path / "log").write_text(f"{STARTED}now\n{log}")
    said = reason(tmp_path / "log", status, CAUSES)
    assert said.startswith(told)
    assert said.endswith(f"; log: {tmp_path / 'log'}")
    assert "\n" not in said


def test_the_reason_of_an_earlier_end_is_not_the_reason_of_this_one(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"{STARTED}then\nno memory\n{STARTED}now\nall well\n")
    assert reason(tmp_path / "log", 1, CAUSES) == f"log: {tmp_path / 'log'}"


def test_a_log_that_is_missing_gives_no_reason(tmp_path: Path) -> None:
    assert reason(tmp_path / "log", 1, CAUSES) == f"log: {tmp_path / 'log'}"


# --- readiness ---


@pytest.mark.parametrize(("status", "ready"), [(b"200 OK", True), (b"503 Service Unavailable", False)])
async def test_an_engine_is_ready_when_health_is_answered_with_200(status: bytes, ready: bool) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        assert await is_ready("127.0.0.1", server.sockets[0].getsockname()[1]) is ready


async def test_an_engine_that_nobody_can_reach_or_that_says_nothing_is_not_ready() -> None:
    assert not await is_ready("127.0.0.1", free_port())
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert not await is_ready("127.0.0.1", mute.getsockname()[1], seconds=0.1)


# --- what runs ---


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    made = Gateway(parse({"server": {"state_dir": str(tmp_path / "state")}}), "test.toml")
    made.make_dirs()
    return made


def test_engines_that_a_reload_would_have_to_start_or_stop_are_named(gateway: Gateway) -> None:
    note_running(gateway, "vllm", {"a": "1", "b": "1", "c": "1"})
    with held(gateway.runtime_dir / "up.lock", ""):
        refuse_changes(gateway, "vllm", {"a": "1", "b": "1", "c": "1"})
        with pytest.raises(HeadraceError) as raised:
            refuse_changes(gateway, "vllm", {"a": "1", "b": "2", "d": "1"})
    assert str(raised.value) == (
        "test.toml: [plugins.vllm.engines]: 'd' is new, 'c' is gone, 'b' is changed, and a reload neither starts nor "
        "stops engines: restart headrace up for that"
    )


def test_a_gateway_whose_engines_nobody_runs_may_be_reloaded(gateway: Gateway) -> None:
    note_running(gateway, "vllm", {"a": "1"})
    refuse_changes(gateway, "vllm", {"a": "2"})


def test_engines_of_a_plugin_that_is_configured_no_more_keep_a_reload_from_happening(tmp_path: Path) -> None:
    document = {"server": {"anonymous": True, "state_dir": str(tmp_path)}, "models": {}, "plugins": {}}
    gateway = Gateway(parse(document), "here.toml")
    gateway.make_dirs()
    note_running(gateway, "vanished", {"big": "as it was"})
    with held(gateway.runtime_dir / "up.lock", "taken"):
        with pytest.raises(HeadraceError, match="'big' is gone"):
            refuse_orphans(gateway)
        forget_running(gateway)
        refuse_orphans(gateway)
