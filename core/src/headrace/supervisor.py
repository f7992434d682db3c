"""Processes beside the core (nginx, engines, the core itself): started in order, watched, restarted, all ended."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from .errors import HeadraceError

BACKOFF = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before each restart in a row; a process that stayed up a minute starts over."""


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """One child process. It is ended by its own process id, never by name."""

    name: str
    argv: Sequence[str]
    role: Literal["engine", "core", "front"] = "engine"
    """Engines start first, then the core, then the front; they stop in the opposite order."""
    environment: Mapping[str, str] = {}
    """Added to the supervisor's own environment."""
    ready: Callable[[], Awaitable[bool]] | None = None
    """Asked again and again until true; None means ready once started."""
    ready_timeout: float = 120.0
    """Seconds until a process that is not ready counts as failed."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout: float = 15.0
    """Seconds from the stop signal to SIGKILL."""
    essential: bool = True
    """Whether everything stops when it cannot be started at all; else all goes on without it, and it is tried again."""
    progress: Callable[[], Iterable[str]] | None = None
    """Asked as often as `ready`: what there is to say of the start meanwhile, line by line."""
    why: Callable[[int | None], str] | None = None
    """Why it has ended with this exit status (None: it was not ready in time), and what to do; may be empty."""
    backoff: Sequence[float] = BACKOFF
    """Seconds before each restart in a row."""


class ProcessFailed(HeadraceError):
    """A process could not be started or did not become ready."""


ROLES = ("engine", "core", "front")
STEADY_SECONDS = 60.0
POLL_SECONDS = 0.05


class Supervisor:
    """Runs processes until `stop` is set. `say` gets one line of progress at a time."""

    def __init__(
        self,
        processes: Sequence[Process],
        say: Callable[[str], None],
        on_hangup: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """`on_hangup` is run for each SIGHUP, one after the other."""
        self._on_hangup = on_hangup
        self._hangups: asyncio.Task[None] | None = None
        self._hung_up = asyncio.Event()
        self._wards = [_Ward(process, say) for role in ROLES for process in processes if process.role == role]
        self._say = say
        self.stop = asyncio.Event()

    async def run(self, on_ready: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start everything, role by role, run `on_ready`, wait for `stop`, end everything.

        Raises:
            ProcessFailed: one did not become ready; the others have been ended.
        """
        try:
            for role in ROLES:
                await self._unless_stopped(self._start(role))
            await self._unless_stopped(on_ready())
            await self.stop.wait()
        finally:
            if self._hangups is not None:
                self._hangups.cancel()
                await asyncio.wait((self._hangups,))
            await self._end()

    def install_signals(self) -> None:
        """SIGINT and SIGTERM stop; SIGHUP reloads."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_stop_signal)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def _on_stop_signal(self) -> None:
        """The first signal stops in good order, a second one at once."""
        if not self.stop.is_set():
            self._say("stopping: open requests are let finish; again to stop at once")
            self.stop.set()
            return
        for ward in self._wards:
            ward.kill()

    async def hang_up(self) -> None:
        """As SIGHUP does."""
        self._hang_up()

    def _hang_up(self) -> None:
        """Several signals while one is worked off count as one more."""
        self._hung_up.set()
        if self._hangups is None and self._on_hangup is not None:
            self._hangups = asyncio.create_task(self._work_off_hangups(self._on_hangup))

    async def _work_off_hangups(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while not self.stop.is_set():
            await self._hung_up.wait()
            self._hung_up.clear()
            try:
                await work()
            except Exception as error:
                self._say(f"not reloaded: {error}")

    async def _start(self, role: str) -> None:
        async with asyncio.TaskGroup() as group:
            for ward in self._wards:
                if ward.process.role == role:
                    group.create_task(ward.start())

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work, but drop it as soon as a signal says stop."""
        if self.stop.is_set():
            work.close()
            return
        task = asyncio.create_task(work)
        stopping = asyncio.create_task(self.stop.wait())
        await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
        for each in (task, stopping):
            if not each.done():
                each.cancel()
        await asyncio.wait((task, stopping))
        if not task.cancelled():
            _raise_first(task.exception())

    async def _end(self) -> None:
        for role in reversed(ROLES):
            ends = (ward.end() for ward in self._wards if ward.process.role == role)
            for failure in await asyncio.gather(*ends, return_exceptions=True):
                if failure is not None:
                    self._say(f"stopping: {failure!r}")


PR_SET_PDEATHSIG = 1
"""prctl(2), Linux: the signal a process gets when its parent dies, so that kill -9 leaves no orphans."""
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _raise_first(error: BaseException | None) -> None:
    """Raise what a task failed with; of a group's failures, the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise error


class _Ward:
    """One process under watch."""

    def __init__(self, process: Process, say: Callable[[str], None]) -> None:
        self.process = process
        self._say = say
        self._child: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._ending = False

    async def start(self) -> None:
        ready = False
        try:
            await self._spawn()
            await self._until_ready()
            ready = True
        except ProcessFailed as error:
            self.kill()
            if self.process.essential:
                raise
            self._say(f"{error}; going on without it")
        if self._child is not None:
            self._watch = asyncio.create_task(self._keep_alive(ready))

    async def end(self) -> None:
        self._ending = True
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        child = self._child
        if child is None or child.returncode is not None:
            return
        self._signal(self.process.stop_signal)
        try:
            await asyncio.wait_for(child.wait(), self.process.stop_timeout)
        except TimeoutError:
            self._say(f"{self.process.name} did not stop in {self.process.stop_timeout:g} s: killed")
        self.kill()
        await child.wait()

    async def _spawn(self) -> None:
        try:
            self._child = await asyncio.create_subprocess_exec(
                *self.process.argv,
                env={**os.environ, **self.process.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),  # stdout belongs to the READY line
                start_new_session=True,  # a Ctrl-C reaches the supervisor alone, which ends children in order
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        except OSError as error:
            raise ProcessFailed(f"{self.process.name} cannot be started: {error}") from error

    async def _until_ready(self) -> None:
        limit = self.process.ready_timeout
        try:
            async with asyncio.timeout(limit):
                while not await self._is_ready():
                    self._tell_progress()
                    self._check_alive()
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            raise ProcessFailed(f"{self.process.name} was not ready after {limit:g} s{self._why(None)}") from error
        self._check_alive()

    async def _is_ready(self) -> bool:
        """What the process's own check says; one that fails is asked again."""
        if self.process.ready is None:
            return True
        try:
            return await self.process.ready()
        except Exception as error:
            if not isinstance(error, OSError):
                self._say(f"{self.process.name}: the readiness check failed: {error!r}")
            return False

    def _check_alive(self) -> None:
        if self._child is not None and self._child.returncode is not None:
            status = self._child.returncode
            raise ProcessFailed(f"{self.process.name} ended at once (exit status {status}){self._why(status)}")

    def _tell_progress(self) -> None:
        for line in self.process.progress() if self.process.progress is not None else ():
            self._say(f"{self.process.name}: {line}")

    def _why(self, status: int | None) -> str:
        text = self.process.why(status) if self.process.why is not None else ""
        return f": {text}" if text else ""

    async def _keep_alive(self, ready: bool) -> None:
        """Restart the process whenever it ends, ever more slowly while it keeps doing so."""
        loop = asyncio.get_running_loop()
        failures, backoff = 0, self.process.backoff
        told = not ready
        while not self._ending:
            assert self._child is not None
            started = loop.time()
            status = await self._child.wait()
            self.kill()  # what it had started goes with it, or would hold its ports
            failures = 0 if loop.time() - started > STEADY_SECONDS else failures
            pause = backoff[min(failures, len(backoff) - 1)]
            failures += 1
            why = "" if told else self._why(status)
            self._say(f"{self.process.name} ended (exit status {status}){why}: restarting in {pause:g} s")
            await asyncio.sleep(pause)
            try:
                await self._spawn()
                await self._until_ready()
                self._say(f"{self.process.name} is back")
                told = False
            except ProcessFailed as error:
                self._say(str(error))
                told = True
                self.kill()

    def kill(self) -> None:
        """End the process and whatever it started: each child leads a process group of its own."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody left; macOS says so of zombies
                os.killpg(self._child.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None and self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(number)
