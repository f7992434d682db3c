"""Processes beside the core: started in order, watched, restarted, and all ended, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import HeadraceError
from headrace.supervisor import Process, ProcessFailed, Supervisor

PATIENCE = 30.0
"""Seconds within which anything that happens at all has happened, on a slow machine too."""

CHILD = """
import os, pathlib, signal, sys, time
here, name, *rest = sys.argv[1:]
def note(word):
    with open(here + "/log", "a") as log:
        log.write(f"{word} {name}\\n")
def leave(number, frame):
    note("stopped")
    raise SystemExit
"""
STEADY = "signal.signal(signal.SIGTERM, leave)\n"
TELL = "pathlib.Path(here, name).write_text(str(os.getpid()))\nnote('started')\n"
SLEEP = "while True: time.sleep(60)\n"
GRANDCHILD = """
import subprocess
grandchild = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(300)"])
pathlib.Path(here, "grandchild").write_text(str(grandchild.pid))
"""


class Yard:
    """A folder in which tiny children write down what they do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []

    def process(self, name: str, code: str = STEADY + TELL + SLEEP, ready: Any = "told", **options: Any) -> Process:
        """A Python child that runs `code`; ready, unless said otherwise, once it has told its process id."""
        check = self.tells(name) if ready == "told" else ready
        options = {"ready_timeout": PATIENCE, "stop_timeout": PATIENCE} | options
        argv = [sys.executable, "-S", "-c", CHILD + code, str(self.folder), name]
        return Process(name=name, argv=argv, ready=check, **options)

    def tells(self, name: str) -> Callable[[], Awaitable[bool]]:
        async def told() -> bool:
            return self.pid(name) is not None

        return told

    def pid(self, name: str) -> int | None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self.folder / name).read_text())
        return None

    def log(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log").read_text().splitlines()
        return []

    def said(self, words: str) -> bool:
        return any(words in line for line in self.lines)


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


@contextlib.asynccontextmanager
async def running(yard: Yard, *processes: Process, on_hangup: Any = None) -> AsyncIterator[Supervisor]:
    """A supervisor that is ready; stopped at the end."""
    supervisor = Supervisor(processes, yard.lines.append, on_hangup)
    ready = asyncio.Event()

    async def on_ready() -> None:
        ready.set()

    task = asyncio.create_task(supervisor.run(on_ready))
    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait((task, asyncio.create_task(ready.wait())), return_when=asyncio.FIRST_COMPLETED)
        if not ready.is_set():
            task.result()
        yield supervisor
    finally:
        supervisor.stop.set()
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=not ready.is_set()), PATIENCE * 2)


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


def alive(pid: int | None) -> bool:
    if pid is None:
        return False
    with contextlib.suppress(FileNotFoundError):  # a zombie that nobody has waited for is not alive
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or relies on prctl")


# --- start ---


async def test_engines_start_first_then_the_core_then_the_front_and_they_stop_in_reverse(yard: Yard) -> None:
    processes = [yard.process("front", role="front"), yard.process("engine"), yard.process("core", role="core")]
    async with running(yard, *processes):
        assert yard.log() == ["started engine", "started core", "started front"]
    assert yard.log()[3:] == ["stopped front", "stopped core", "stopped engine"]


async def test_processes_of_one_role_start_side_by_side(yard: Yard) -> None:
    async def both() -> bool:
        return yard.pid("left") is not None and yard.pid("right") is not None

    async with running(yard, yard.process("left", ready=both), yard.process("right", ready=both)):
        assert sorted(yard.log()) == ["started left", "started right"]


async def test_the_next_role_waits_until_the_one_before_it_is_ready(yard: Yard) -> None:
    gate = yard.folder / "gate"
    asked = asyncio.Event()

    async def ready() -> bool:
        asked.set()
        return gate.exists()

    async def open_gate() -> None:
        await asked.wait()
        await until(lambda: yard.pid("engine"))
        assert yard.pid("core") is None
        gate.touch()

    opener = asyncio.create_task(open_gate())
    async with running(yard, yard.process("engine", ready=ready), yard.process("core", role="core")):
        await opener
        assert yard.log() == ["started engine", "started core"]


async def test_a_process_without_a_readiness_check_is_ready_once_started(yard: Yard) -> None:
    async with running(yard, yard.process("engine", ready=None)):
        await until(lambda: yard.pid("engine"))


async def test_a_process_gets_its_own_variables_beside_those_of_the_supervisor(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YARD_OUTER", "outer")
    code = "note(os.environ['YARD_OUTER'] + os.environ['YARD_OWN'])\n" + STEADY + TELL + SLEEP
    async with running(yard, yard.process("engine", code, environment={"YARD_OWN": "own"})):
        assert yard.log()[0] == "outerown engine"


@pytest.mark.parametrize(
    ("code", "options", "words"),
    [
        ("raise SystemExit(7)", {}, r"broken ended at once \(exit status 7\)"),
        (STEADY + TELL + SLEEP, {"ready_timeout": 0.2, "ready": "never"}, r"broken was not ready after 0\.2 s"),
        (STEADY + TELL + SLEEP, {"ready_timeout": 0.2, "ready": "hangs"}, r"broken was not ready after 0\.2 s"),
        (STEADY + TELL + SLEEP, {"ready_timeout": 0.2, "ready": "raises"}, r"broken was not ready after 0\.2 s"),
    ],
    ids=["ends", "never ready", "check hangs", "check raises"],
)
async def test_a_process_that_does_not_start_stops_everything_that_did(
    yard: Yard, code: str, options: dict[str, Any], words: str
) -> None:
    async def never() -> bool:
        return False

    async def hangs() -> bool:
        await asyncio.Event().wait()
        return True

    async def raises() -> bool:
        raise ConnectionRefusedError("nobody listens")

    checks = {"never": never, "hangs": hangs, "raises": raises}
    options = options | {"ready": checks.get(options.get("ready", "never"), never)}
    with pytest.raises(ProcessFailed, match=words):
        async with running(yard, yard.process("engine"), yard.process("broken", code, role="core", **options)):
            pytest.fail("it must not become ready")
    assert "stopped engine" in yard.log()
    assert not alive(yard.pid("broken"))


async def test_a_program_that_does_not_exist_is_named(yard: Yard) -> None:
    with pytest.raises(ProcessFailed, match=r"front cannot be started: .*No such file"):
        async with running(yard, Process(name="front", argv=["/nowhere/nginx"], role="front")):
            pytest.fail("it must not become ready")


async def test_a_process_that_is_not_essential_may_fail(yard: Yard) -> None:
    broken = yard.process("broken", "raise SystemExit(7)", essential=False)
    async with running(yard, broken, yard.process("core", role="core")):
        await until(lambda: yard.log() == ["started core"])
        assert yard.said("broken ended at once (exit status 7); going on without it")


async def test_a_process_that_is_not_essential_is_tried_again(yard: Yard) -> None:
    code = "if not pathlib.Path(here, 'repaired').exists(): raise SystemExit(7)\n" + STEADY + TELL + SLEEP
    broken = yard.process("broken", code, essential=False, backoff=(0.01,))
    async with running(yard, broken, yard.process("core", role="core")):
        await until(lambda: yard.lines.count("broken ended at once (exit status 7)") > 1)
        (yard.folder / "repaired").touch()
        await until(lambda: yard.said("broken is back"))


async def test_a_program_that_is_not_there_is_gone_on_without_if_it_is_not_essential(yard: Yard) -> None:
    missing = Process(name="missing", argv=["/nowhere/engine"], essential=False)
    async with running(yard, missing, yard.process("core", role="core")):
        await until(lambda: yard.log() == ["started core"])
    assert yard.said("missing cannot be started")


async def test_a_process_that_fails_says_why_if_it_knows(yard: Yard) -> None:
    broken = yard.process("broken", "raise SystemExit(7)", why=lambda status: f"{status} is unlucky")
    with pytest.raises(ProcessFailed, match=r"^broken ended at once \(exit status 7\): 7 is unlucky$"):
        async with running(yard, broken):
            pytest.fail("it must not become ready")


async def test_a_process_that_is_not_ready_in_time_says_why_if_it_knows(yard: Yard) -> None:
    async def never() -> bool:
        return False

    slow = yard.process("slow", ready=never, ready_timeout=0.2, why=lambda status: f"{status} of it is loaded")
    with pytest.raises(ProcessFailed, match=r"^slow was not ready after 0.2 s: None of it is loaded$"):
        async with running(yard, slow):
            pytest.fail("it must not become ready")


async def test_what_a_process_tells_of_its_start_is_said_under_its_name(yard: Yard) -> None:
    news = [["loading", "half"], [], ["whole"]]
    process = yard.process("engine", ready=lambda: ready(), progress=lambda: news.pop(0) if news else [])

    async def ready() -> bool:
        return not news and yard.pid("engine") is not None

    async with running(yard, process):
        assert yard.lines[:3] == ["engine: loading", "engine: half", "engine: whole"]


# --- watch ---


async def test_a_process_that_dies_is_started_again(yard: Yard) -> None:
    async with running(yard, yard.process("engine")):
        first = yard.pid("engine")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: yard.pid("engine") not in (None, first))
        await until(lambda: yard.said("engine is back"))
        assert yard.said("engine ended (exit status -9): restarting in 0.2 s")
    assert yard.log()[-1] == "stopped engine"


@pytest.mark.alone
async def test_a_process_that_keeps_dying_is_started_ever_more_slowly(yard: Yard) -> None:
    code = TELL + "sys.exit(3) if len(open(here + '/log').readlines()) > 1 else time.sleep(60)\n"
    async with running(yard, yard.process("engine", code, ready=None)):
        await until(lambda: yard.pid("engine"))
        os.kill(yard.pid("engine") or 0, signal.SIGKILL)
        await until(lambda: yard.said("(exit status 3): restarting in 1 s"))
    pauses = [line.rpartition("restarting in ")[2] for line in yard.lines if "restarting" in line]
    assert pauses[:3] == ["0.2 s", "0.5 s", "1 s"]


async def test_a_process_whose_check_raises_after_a_restart_is_still_watched_and_ended(yard: Yard) -> None:
    asked: list[int] = []

    async def ready() -> bool:
        asked.append(1)
        if len(asked) == 2:
            raise ConnectionRefusedError("nobody listens")
        return yard.pid("engine") is not None

    async def ready_at_first() -> bool:
        return await ready() if asked else yard.pid("engine") is not None and await ready()

    async with running(yard, yard.process("engine", ready=ready_at_first), yard.process("core", role="core")):
        first = yard.pid("engine")
        (yard.folder / "engine").unlink()  # else it would count as ready before it listens to signals
        os.kill(first or 0, signal.SIGKILL)
        await until(lambda: yard.said("engine is back"))
    assert sorted(yard.log()[-2:]) == ["stopped core", "stopped engine"]


async def test_each_hangup_is_worked_off_and_one_that_fails_is_told(yard: Yard) -> None:
    worked: list[int] = []

    async def work() -> None:
        worked.append(1)
        if len(worked) == 1:
            raise HeadraceError("the file is wrong")

    async with running(yard, yard.process("engine"), on_hangup=work) as supervisor:
        supervisor.install_signals()
        for _ in range(2):
            before = len(worked)
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda before=before: len(worked) > before)  # type: ignore[misc]
    assert yard.said("not reloaded: the file is wrong")


# --- stop ---


@linux
async def test_a_process_that_ignores_its_stop_signal_is_killed_with_its_children(yard: Yard) -> None:
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + GRANDCHILD + TELL + SLEEP
    async with running(yard, yard.process("engine", code, stop_timeout=0.3)):
        pass
    assert yard.said("engine did not stop in 0.3 s: killed")
    await until(lambda: not alive(yard.pid("engine")) and not alive(yard.pid("grandchild")))


@linux
async def test_the_children_of_a_process_that_stops_properly_are_not_left_behind(yard: Yard) -> None:
    async with running(yard, yard.process("engine", STEADY + GRANDCHILD + TELL + SLEEP)):
        assert alive(yard.pid("grandchild"))
    assert yard.log() == ["started engine", "stopped engine"]
    await until(lambda: not alive(yard.pid("grandchild")))


@linux
async def test_the_children_of_a_process_that_died_are_gone_before_it_is_started_again(yard: Yard) -> None:
    async with running(yard, yard.process("engine", STEADY + GRANDCHILD + TELL + SLEEP)):
        first, grandchild = yard.pid("engine"), yard.pid("grandchild")
        os.kill(first or 0, signal.SIGKILL)
        await until(lambda: yard.pid("engine") not in (None, first))
        await until(lambda: not alive(grandchild))


async def test_a_process_that_dies_says_why_and_a_start_that_failed_is_told_of_once(yard: Yard) -> None:
    code = "if pathlib.Path(here, 'broken').exists(): raise SystemExit(7)\n" + STEADY + TELL + SLEEP
    why = yard.process("engine", code, why=lambda status: f"because of {status}", backoff=(0.01, 0.02))
    async with running(yard, why):
        (yard.folder / "broken").touch()
        first = yard.pid("engine")
        (yard.folder / "engine").unlink()
        os.kill(first or 0, signal.SIGKILL)
        await until(lambda: len(yard.lines) >= 3)
        assert yard.lines[:3] == [
            "engine ended (exit status -9): because of -9: restarting in 0.01 s",
            "engine ended at once (exit status 7): because of 7",
            "engine ended (exit status 7): restarting in 0.02 s",
        ]
        (yard.folder / "broken").unlink()
        await until(lambda: yard.said("engine is back"))


async def test_a_process_is_stopped_with_the_signal_it_asks_for(yard: Yard) -> None:
    code = "signal.signal(signal.SIGQUIT, leave)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + TELL + SLEEP
    async with running(yard, yard.process("front", code, stop_signal=signal.SIGQUIT)):
        pass
    assert yard.log() == ["started front", "stopped front"]


async def test_a_stop_while_starting_ends_what_runs_and_starts_nothing_more(yard: Yard) -> None:
    async def never() -> bool:
        return False

    announced: list[str] = []

    async def on_ready() -> None:
        announced.append("ready")

    processes = [yard.process("engine", ready=never), yard.process("core", role="core", ready=None)]
    supervisor = Supervisor(processes, yard.lines.append)
    task = asyncio.create_task(supervisor.run(on_ready))
    await until(lambda: yard.pid("engine"))
    supervisor.stop.set()
    await asyncio.wait_for(task, PATIENCE * 2)
    assert yard.log() == ["started engine", "stopped engine"]
    assert announced == []


async def test_a_failure_of_what_runs_when_ready_ends_every_process(yard: Yard) -> None:
    async def on_ready() -> None:
        raise ValueError("cannot announce")

    with pytest.raises(ValueError, match="cannot announce"):
        await asyncio.wait_for(Supervisor([yard.process("engine")], yard.lines.append).run(on_ready), PATIENCE * 2)
    assert yard.log() == ["started engine", "stopped engine"]


# --- the supervisor as a process of its own ---

MAIN = """
import asyncio, sys
from pathlib import Path
from headrace.errors import HeadraceError
from headrace.supervisor import Process, Supervisor

here, code = sys.argv[1:]
async def told():
    return Path(here, "engine").exists() and Path(here, "engine").read_text() != ""
async def main():
    argv = [sys.executable, "-S", "-c", code, here, "engine"]
    engine = Process(name="engine", argv=argv, ready=told)
    supervisor = Supervisor([engine], lambda line: None)
    supervisor.install_signals()
    async def ready():
        print("ready", flush=True)
    await supervisor.run(ready)
asyncio.run(main())
"""


@contextlib.contextmanager
def supervisor_process(yard: Yard) -> Any:
    argv = [sys.executable, "-c", MAIN, str(yard.folder), CHILD + STEADY + TELL + SLEEP]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_supervisor_ends_its_processes_properly(yard: Yard, number: signal.Signals) -> None:
    with supervisor_process(yard) as process:
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
    assert yard.log() == ["started engine", "stopped engine"]


@linux
async def test_a_supervisor_that_is_killed_leaves_no_orphans(yard: Yard) -> None:
    with supervisor_process(yard) as process:
        engine = yard.pid("engine")
        assert alive(engine)
        process.kill()
    await until(lambda: not alive(engine))
