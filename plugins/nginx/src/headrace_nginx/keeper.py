"""Runs nginx as a child, so that it ends well: `python keeper.py --grace SECONDS -- NGINX ARGUMENTS…`.

nginx alone leaves three gaps that this closes. Told to finish gracefully it waits for its slowest stream without end:
after the grace it is told to stop. If its master is killed, the workers live on and keep the port: they are ended.
And if our own parent dies, nobody would stop nginx: Linux signals us and it (PR_SET_PDEATHSIG), elsewhere we look.

Imports as little as it can: it stays in memory as long as nginx runs.
"""

import ctypes
import os
import select
import signal
import sys
import time

TICK_SECONDS = 10.0 if sys.platform == "linux" else 1.0
"""How often we look whether our parent is there, which Linux tells us."""
STOP_SECONDS = 3.0
"""From the fast stop to SIGKILL."""
PR_SET_PDEATHSIG = 1
PASSED_ON = (signal.SIGHUP, signal.SIGUSR1)
"""Reload, and reopen the logs."""
FAST, GRACEFUL = (signal.SIGTERM, signal.SIGINT), (signal.SIGQUIT,)


def die_with_parent(number: int) -> None:
    """Ask Linux to signal this process when its parent ends. Other systems have nothing like it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)


class Keeper:
    """One nginx: its master's pid, which is also its process group, and when patience ends."""

    def __init__(self, argv: list[str], grace: float) -> None:
        self._grace = grace
        self._deadline: float | None = None
        self._next = signal.SIGTERM
        self._parent = os.getppid()
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (*PASSED_ON, *FAST, *GRACEFUL, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        die_with_parent(signal.SIGTERM)
        self._child = self._start(argv)

    def _start(self, argv: list[str]) -> int:
        me = os.getpid()
        child = os.fork()
        if child:
            return child
        try:
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            for number in (*PASSED_ON, *FAST, *GRACEFUL, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            die_with_parent(signal.SIGTERM)
            if os.getppid() == me:
                os.execv(argv[0], argv)  # noqa: S606 an argument list that service.py made
        except OSError as error:
            os.write(2, f"{argv[0]} cannot be started: {error.strerror}\n".encode())
        os._exit(127)

    def run(self) -> int:
        """Pass signals on until nginx has ended. Returns its exit status, 128 + signal if it was killed."""
        while True:
            found, status = os.waitpid(self._child, os.WNOHANG)
            if found:
                self._kill(signal.SIGKILL)  # workers that a killed master left behind
                return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
            self._look_after()
            select.select([self._reader], [], [], self._wait())
            self._pass_on()

    def _wait(self) -> float:
        if self._deadline is None:
            return TICK_SECONDS
        return max(0.0, min(TICK_SECONDS, self._deadline - time.monotonic()))

    def _look_after(self) -> None:
        if os.getppid() != self._parent and self._deadline is None:
            self._stop(signal.SIGTERM)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._stop(self._next)

    def _pass_on(self) -> None:
        try:
            numbers = os.read(self._reader, 64)
        except BlockingIOError:
            return
        for number in numbers:
            if number in PASSED_ON:
                os.kill(self._child, number)
            elif number in FAST:
                self._stop(signal.SIGTERM)
            elif number in GRACEFUL and self._deadline is None:
                self._stop(signal.SIGQUIT)

    def _stop(self, number: signal.Signals) -> None:
        """Signal nginx, and be ready to go one step further when it does not end."""
        patience = self._grace if number == signal.SIGQUIT else STOP_SECONDS
        self._next = signal.SIGTERM if number == signal.SIGQUIT else signal.SIGKILL
        self._deadline = time.monotonic() + patience
        if number == signal.SIGKILL:
            self._kill(number)
        else:
            os.kill(self._child, number)

    def _kill(self, number: signal.Signals) -> None:
        """Signal what is left of nginx's own process group."""
        try:
            os.killpg(self._child, number)
        except (ProcessLookupError, PermissionError):  # nobody is left (macOS says so by EPERM)
            return


def main(arguments: list[str]) -> int:
    flag, grace, separator, *argv = arguments
    if (flag, separator) != ("--grace", "--") or not argv:
        sys.exit("usage: keeper.py --grace SECONDS -- NGINX ARGUMENTS…")
    return Keeper(argv, float(grace)).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
