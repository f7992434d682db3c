"""The reports of the nginx in front of us: who they come from, where they arrive, and what waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

import msgspec

from . import front as wire
from .exchange import Exchange, Target
from .offload import GivenBack, Pending, Report, ReportLost
from .sockets import bind_datagrams

logger = logging.getLogger("headrace.reporting")

SWEEP_SECONDS = 1.0
"""How often we look whether nginx's workers are there, where the system does not tell."""
DEADLINES_SECONDS = 10.0
"""How often we look what is overdue. Reports are waited for longer than that."""
LOOK_SECONDS = 1.0
"""How often the disk is asked about marks that are not known."""
SEATS_KEPT = 256
DRAIN_AT_ONCE = 256
"""Reports that are read before anything else gets its turn."""
MARGIN_SECONDS = 30.0
COMPLAINTS_KEPT = 1024
_COMPLAINT = re.compile(
    rb"\] (\d+)#\d+: \*(\d+) (?:[^,]* while reading upstream|(?:upstream |recv|SSL_read)[^,]* while sending to client),"
)
"""The head was there: what goes wrong before is a try that failed. nginx says `sending to client` of a backend whose
end came along with its head."""
_ID = re.compile(r"[0-9a-f]{32}")
_REPORT = msgspec.json.Decoder(Report)


class Seat:
    """One worker process of an nginx in front of us. It is `proven` once a report of it has arrived."""

    __slots__ = ("broken", "end", "front", "pid", "proven", "visible")

    def __init__(self, front: wire.Front, pid: int) -> None:
        self.front = front
        self.pid = pid
        self.proven = False
        self.broken: dict[int, bool] = {}
        """Connections of clients whose backend broke off, until the report of it comes."""
        self.visible = _is_alive(pid)
        """Whether we can see the process at all: it may live in another container."""
        self.end = _end_of(pid) if self.visible else None
        """What can be read from when the process has ended; None if the system has nothing like it."""

    @property
    def gone(self) -> bool:
        return self.visible and not _is_alive(self.pid)


class Reporting:
    """One per gateway; made without I/O, opened by `open`.

    Attributes:
        timeout: seconds after which a report is overdue; said before `open`, and perhaps again.
        lost: requests whose report never came.
        unknown: reports of requests that nobody here waits for.
    """

    def __init__(self, runtime_dir: Path, worker: int) -> None:
        self._front_file = runtime_dir / wire.FRONT_FILE
        self._worker = worker
        self.timeout = 0.0
        self._front: wire.Front | None = None
        self._seats: dict[bytes, Seat] = {}
        self._pending: dict[str, Pending] = {}
        self._sockets: dict[str, socket.socket] = {}
        self._refused: set[str] = set()
        self._looked = float("-inf")
        self._sweep: asyncio.TimerHandle | None = None
        self.lost = 0
        self.unknown = 0

    def open(self) -> None:
        """Call it in the loop. Listening begins when an nginx shows its mark."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        for mark in list(self._seats):
            self._leave(mark)
        if self._sweep is not None:
            self._sweep.cancel()
        for listener in self._sockets.values():
            self._loop.remove_reader(listener.fileno())
            listener.close()
        self._sockets.clear()

    # --- who is in front -----------------------------------------------------------------------------------------

    def seat(self, mark: bytes) -> Seat | None:
        """The nginx worker that shows this mark; None if no nginx of ours does."""
        return self._seats.get(mark) or self._new_seat(mark)

    def _new_seat(self, mark: bytes) -> Seat | None:
        secret, _, pid = mark.decode("latin-1").partition(" ")
        front = self._front_of(secret)
        if front is None or not pid.isdecimal() or not self._listens(front):
            return None
        while len(self._seats) >= SEATS_KEPT:
            self._leave(next(iter(self._seats)))
        seat = self._seats[mark] = Seat(front, int(pid))
        if seat.end is not None:
            self._loop.add_reader(seat.end, self._has_ended, seat)
        return seat

    def _leave(self, mark: bytes) -> None:
        """Forget a seat."""
        end = self._seats.pop(mark).end
        if end is not None:
            self._loop.remove_reader(end)
            os.close(end)

    def _front_of(self, secret: str) -> wire.Front | None:
        """An nginx with a secret we do not know may have been started just now."""
        if self._front is None or self._front.mark != secret:
            now = time.monotonic()
            if now - self._looked < LOOK_SECONDS:
                return None
            self._looked, self._front = now, wire.read(self._front_file)
        return self._front if self._front is not None and self._front.mark == secret else None

    def _listens(self, front: wire.Front) -> bool:
        if self._worker >= len(front.reports):
            return False
        address = front.reports[self._worker]
        if address not in self._sockets:
            try:
                listener = bind_datagrams(address)
            except OSError as error:
                if address not in self._refused:
                    logger.error(
                        "answers are delivered by the core: cannot listen for reports on %s: %s", address, error
                    )
                self._refused.add(address)
                return False
            self._sockets[address] = listener
            self._loop.add_reader(listener.fileno(), self._read, listener)
        return True

    # --- what waits ----------------------------------------------------------------------------------------------

    def expect(self, exchange: Exchange, key: str, target: Target, pid: int) -> Pending:
        """From now on a report may come."""
        seconds = self.timeout
        if not exchange.streaming:
            limits = target.timeouts
            seconds = min(seconds, limits.connect + limits.first_byte + limits.idle + MARGIN_SECONDS)
        pending = Pending(self._loop.create_future(), self._loop.time() + seconds, pid)
        self._pending[key] = pending
        if self._sweep is None:
            self._sweep = self._sweep_later()
        return pending

    def forget(self, key: str) -> None:
        self._pending.pop(key, None)

    def give_back(self, key: str, given: GivenBack) -> bool:
        """nginx asks what to do next. False if nobody knows the request."""
        pending = self._pending.get(key)
        if pending is None or pending.future.done():
            return False
        pending.future.set_result(given)
        return True

    def __len__(self) -> int:
        return len(self._pending)

    # --- what arrives --------------------------------------------------------------------------------------------

    def _read(self, listener: socket.socket) -> bool:
        """Returns whether there may be more."""
        for _ in range(DRAIN_AT_ONCE):
            try:
                data = listener.recv(65536)
            except BlockingIOError:
                return False
            except OSError as error:
                logger.error("reports cannot be read: %s", error)
                return False
            self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        """One datagram after its syslog header: our JSON object, or a line of nginx's error log."""
        _, _, said = data.partition(b": ")
        if not said.startswith(b"{"):
            self._hear(said)
            return
        try:
            report = _REPORT.decode(said)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            logger.error("a report of nginx cannot be read: %s", error)
            return
        seat = self._seats.get(report.mark.encode())
        if seat is None:  # not of an nginx of ours
            return
        seat.proven = True
        report.broken = seat.broken.pop(report.connection, False)
        pending = self._pending.get(report.id)
        if pending is None:
            self.unknown += 1
        elif not pending.future.done():
            pending.future.set_result(report)

    def _hear(self, said: bytes) -> None:
        """nginx complains of a backend. In the middle of a reply, the report that comes next is that of a cut one."""
        found = _COMPLAINT.search(said)
        if found is None:
            return
        pid, connection = int(found[1]), int(found[2])
        for seat in self._seats.values():
            if seat.pid == pid:
                seat.broken[connection] = True
                while len(seat.broken) > COMPLAINTS_KEPT:
                    del seat.broken[next(iter(seat.broken))]

    def _look_after(self) -> None:
        """Give up waiting for what is overdue, and for what an nginx worker took with it into its grave."""
        self._sweep = self._sweep_later() if self._pending else None
        self._give_up({seat.pid for seat in self._gone()})

    def _sweep_later(self) -> asyncio.TimerHandle:
        """Soon, if only looking tells when a worker ends."""
        untold = any(seat.visible and seat.end is None for seat in self._seats.values())
        longest = SWEEP_SECONDS if untold else DEADLINES_SECONDS
        return self._loop.call_later(max(SWEEP_SECONDS, min(self.timeout / 10, longest)), self._look_after)

    def _has_ended(self, seat: Seat) -> None:
        """A worker is gone; what it has said until then may not have been read yet."""
        for listener in self._sockets.values():
            while self._read(listener):
                pass
        self._give_up({seat.pid})

    def _give_up(self, gone: AbstractSet[int]) -> None:
        """Wait no longer for what is overdue, nor for these workers."""
        now = self._loop.time()
        for pending in list(self._pending.values()):
            if (now >= pending.deadline or pending.pid in gone) and not pending.future.done():
                self.lost += 1
                pending.future.set_exception(ReportLost("The front server did not report how the answer ended."))
        for mark in [mark for mark, seat in self._seats.items() if seat.pid in gone]:
            self._leave(mark)

    def _gone(self) -> Iterator[Seat]:
        return (seat for seat in self._seats.values() if seat.gone)


def _end_of(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True


def is_key(text: str | None) -> bool:
    """Whether this can be nginx's id of a request."""
    return text is not None and _ID.fullmatch(text) is not None
