"""The keeper of one engine: a program of its own, `python -I -S keeper.py --log=FILE … -- ENGINE ARGUMENTS…`.

An engine alone leaves gaps that its keeper closes. Its processes outlive their first one if that is killed, and keep
their GPUs: they are ended with it. If our own parent dies, nobody would stop the engine: we do. What it says goes to a
file of limited size. The keeper imports as little as it can: it stays in memory as long as the engine runs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

MARK = "=== headrace: "
"""What the keeper's own lines in the log begin with."""
STARTED = f"{MARK}started "
TICK_SECONDS = 1.0
ORPHAN_SECONDS = 5.0
"""From the end of our parent to SIGKILL."""
SWEEP_SECONDS = 10.0
"""So long what is left of an engine is looked for: a process in the kernel's hands ends when that lets go of it."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LINUX = sys.platform == "linux"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP)
NOT_STARTED = 127
"""Exit status of an engine that cannot be started at all, as of a shell."""
TRACKER = b"resource_tracker"
READ_BYTES = 65_536


class Log:
    """A file that is put aside as `FILE.1` when it would become larger than `limit` bytes. Only its owner may read it.

    What cannot be written is dropped: an engine must not wait for a full disk.
    """

    def __init__(self, path: str, limit: int) -> None:
        self._path, self._limit = path, limit
        self._open()

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._file).st_size

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), self._limit):
            self._append(data[at : at + self._limit])

    def _append(self, data: bytes) -> None:
        try:
            if self._size and self._size + len(data) > self._limit:
                os.replace(self._path, self._path + ".1")  # noqa: PTH105 no pathlib in the keeper's way
                os.close(self._file)
                self._open()
            self._size += os.write(self._file, data)
        except OSError:
            return

    def note(self, text: str) -> None:
        """A line of the keeper's own."""
        self.write(f"{MARK}{text}\n".encode())


def prctl(option: int, value: int) -> None:
    """Linux's; other systems have nothing like it."""
    if LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


class Keeper:
    """One engine: its first process, what it says, and when patience ends.

    Args:
        argv: the engine's command line; its program is looked for on the PATH.
        log: where everything goes that it says.
        grace: seconds from SIGTERM to SIGKILL.
    """

    def __init__(self, argv: list[str], log: Log, grace: float) -> None:
        self._log, self._grace = log, grace
        self._parent = os.getppid()
        self._deadline: float | None = None
        self._wake, writer = os.pipe()
        for end in (self._wake, writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # whoever loses its parent becomes our child, and is found in the end
        self._said, speaking = os.pipe()
        os.set_blocking(self._said, False)
        self._listened = [self._wake, self._said]
        self.child = self._start(argv, speaking)
        os.close(speaking)
        log.write(f"{STARTED}{time.strftime('%Y-%m-%d %H:%M:%S')}, process {self.child}\n".encode())

    def _start(self, argv: list[str], speaking: int) -> int:
        me = os.getpid()
        child = os.fork()
        if child:
            return child
        try:
            if not LINUX:  # there it stays in our group, so that whoever kills that ends it, too
                os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            for stream in (1, 2):
                os.dup2(speaking, stream)
            if os.getppid() == me:
                os.execvp(argv[0], argv)  # noqa: S606 an argument list that a launcher made
        except OSError as error:
            os.write(2, f"{MARK}{argv[0]} cannot be started: {error.strerror}\n".encode())
        os._exit(NOT_STARTED)

    def run(self) -> int:
        """Until the engine and all that it has started have ended. Returns its exit status, 128 + signal if killed."""
        while (status := self._reap()) is None:
            self._look_after()
            ready, _, _ = select.select(self._listened, [], [], self._wait())
            if self._said in ready:
                self._copy()
            if self._wake in ready:
                self._pass_on()
        self._sweep()
        while self._copy():
            pass
        code = os.waitstatus_to_exitcode(status)
        self._log.note(f"ended, {f'signal {-code}' if code < 0 else f'exit status {code}'}")
        return code if code >= 0 else 128 - code

    def _reap(self) -> int | None:
        """Wait for whoever has ended, orphans that have come to us too; the engine's status, once it has."""
        found = None
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.child:
                    found = ended[1]
        except ChildProcessError:
            pass
        return found

    def _wait(self) -> float:
        left = TICK_SECONDS if self._deadline is None else self._deadline - time.monotonic()
        return max(0.0, min(TICK_SECONDS, left))

    def _look_after(self) -> None:
        if self._deadline is None and os.getppid() != self._parent:
            self._log.note("the gateway is gone")
            self._stop(ORPHAN_SECONDS)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._log.note("it does not stop: killed")
            self._deadline = time.monotonic() + TICK_SECONDS
            os.kill(self.child, signal.SIGKILL)

    def _copy(self) -> bool:
        """What the engine says, to the log; whether there may be more now."""
        try:
            data = os.read(self._said, READ_BYTES)
        except BlockingIOError:
            return False
        if not data and self._said in self._listened:  # all who could speak have closed their end
            self._listened.remove(self._said)
        self._log.write(data)
        return bool(data)

    def _pass_on(self) -> None:
        numbers = os.read(self._wake, 64)
        told = signal.SIGTERM in numbers or signal.SIGINT in numbers
        if told and self._deadline is None and os.getppid() == self._parent:  # else it is Linux who tells of its end
            self._stop(self._grace)

    def _stop(self, grace: float) -> None:
        self._deadline = time.monotonic() + grace
        os.kill(self.child, signal.SIGTERM)

    def _sweep(self) -> None:
        """End what the engine has left behind. Python's resource trackers go by themselves once everybody else has
        gone, and remove shared memory before."""
        began = time.monotonic()
        while (left := descendants(os.getpid())) and (seconds := time.monotonic() - began) < SWEEP_SECONDS:
            for pid in left:
                if seconds > TICK_SECONDS or not _command(pid).count(TRACKER):
                    _kill(os.kill, pid)
            self._reap()
            self._copy()
            time.sleep(0.01)
        if not LINUX:
            _kill(os.killpg, self.child)


def _kill(how: Callable[[int, int], None], whom: int) -> None:
    try:
        how(whom, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return b""


def descendants(root: int) -> list[int]:
    """The processes below one that have not ended, from `/proc`; none where there is no such thing."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if LINUX else ():  # noqa: PTH208
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except OSError:
                continue
            if state not in b"ZX":
                children.setdefault(int(parent), []).append(int(name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def trouble_at(listen: str) -> str:
    """Why an engine could not listen at `HOST:PORT` now; empty if it could."""
    host, _, port = listen.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        with socket.socket(*found[0][:3]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[0][4])
    except OSError as error:
        return "another program listens there" if error.errno == errno.EADDRINUSE else error.strerror or "not possible"
    return ""


def main(arguments: list[str]) -> int:
    at = arguments.index("--")
    options = dict(each.removeprefix("--").split("=", 1) for each in arguments[:at])
    log = Log(options["log"], int(options["limit"]))
    trouble = trouble_at(options["listen"])
    if trouble:
        log.write(f"{STARTED}not\n{MARK}cannot listen at {options['listen']}: {trouble}\n".encode())
        return 1
    return Keeper(arguments[at + 1 :], log, float(options["grace"])).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
