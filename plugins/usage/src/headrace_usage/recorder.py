"""Rows on their way into the ledger: from a queue in memory, by a thread, so that no request waits for a disk."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from headrace.errors import HeadraceError

from .entry import Book, Entry, Pending
from .store import Store, Unfit
from .watch import Watch

if TYPE_CHECKING:
    from .spool import Spool

logger = logging.getLogger("headrace.usage")

GATHER_SECONDS = 0.3
"""How long rows are gathered before they are written, if it is no batch before: many of them for the price of one."""
BATCH = 1000
"""Requests that are written at once."""
RETRY_SECONDS = 1.0
"""Between two tries to reach a database that was not there."""
IDLE_SECONDS = 5.0
"""How often somebody looks for what others have left behind."""
SAY_SECONDS = 60.0
"""Between two lines in the log about rows that are lost."""
STOP_SECONDS = 10.0
"""How long the end of the gateway waits for rows that are still to be written."""

Deleting = Callable[[Store], Iterator[int] | None]


class Recorder:
    """A bounded queue, and the thread that empties it into the database; into the spool, if that cannot be.

    Args:
        book: makes rows.
        open_store: opens the database; raises NotNow or PluginError if it cannot.
        spool: takes up rows meanwhile.
        limit: requests that may wait in memory.
        deleting: called now and then: what is to be deleted by now, step by step.
    """

    def __init__(
        self, book: Book, open_store: Callable[[], Store], spool: Spool, limit: int, deleting: Deleting = lambda _: None
    ) -> None:
        self._book, self._open, self._spool, self._limit = book, open_store, spool, limit
        self._deleting = deleting
        self._deletion: Iterator[int] | None = None
        self._queue: deque[Pending] = deque()
        self._kept: list[Entry] = []
        """Rows that neither the database nor the spool would take."""
        self._in_hand: Sequence[Entry] = ()
        """Rows that are being written, and nowhere else yet."""
        self._hands = threading.Lock()
        self._watch = Watch(self._held_up)
        self._turned_away = 0
        """Requests that the queue had no room for; counted by those who bring them."""
        self._lost = self._lost_said = 0
        self._said_at = float("-inf")
        self._store: Store | None = None
        self._retry_at = 0.0
        self._failing = ""
        self._left: Iterator[list[Entry]] | None = None
        self._look_at = 0.0
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-usage", daemon=True)
        self._late = threading.Lock()
        self._ended = False

    def add(self, ended: Pending) -> None:
        """Note a request. Never waits, never fails."""
        queue = self._queue
        if len(queue) >= self._limit:
            self._turned_away += 1
            return
        queue.append(ended)
        if len(queue) == 1:
            self._wake.set()
        if self._ended:
            self._write_late()

    @property
    def lost(self) -> int:
        """How many rows were lost so far."""
        return self._lost + self._turned_away

    def start(self, store: Store | None) -> None:
        """Begin to write; to this database, if it is open already."""
        self._store = store
        self._watch.start()
        self._thread.start()

    def stop(self) -> None:
        """Write what is left, within STOP_SECONDS. Blocks. Later requests are written where they end."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            logger.error("the usage ledger could not be written within %g s: rows were put aside", STOP_SECONDS)
            return
        self._ended = True
        if self._queue:
            self._write_late()

    def _write_late(self) -> None:
        """A request has outlived the gateway's lifespan: its row is written where it ends."""
        with self._late:
            self._survive(self._turn)
            self._survive(self._finish)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self._patience())
            self._wake.clear()
            if len(self._queue) < BATCH:
                self._stopping.wait(GATHER_SECONDS)
            self._survive(self._turn)
            with self._watch.watched():
                self._survive(self._chores)
        while self._queue:
            self._survive(self._turn)
        self._watch.stop()
        self._survive(self._finish)

    def _patience(self) -> float:
        """How long to wait for a request before there is something else to do."""
        if self._queue or self._left is not None or self._deletion is not None:
            return 0.0
        return RETRY_SECONDS if self._store is None or self._kept or self.lost != self._lost_said else IDLE_SECONDS

    def _survive(self, work: Callable[[], None]) -> None:
        """Whatever goes wrong, the thread goes on: else the queue would fill up and stay full."""
        try:
            work()
        except Exception:
            logger.exception("the usage ledger")
            self._close()

    def _turn(self) -> None:
        """Write what has come."""
        with self._hands:
            kept, self._kept = self._kept, []
            entries = self._in_hand = [*kept, *self._taken()]
        if not entries:
            return
        with self._watch.watched():
            stored = self._stored(entries)
        with self._hands:
            if not stored:
                self._put_aside(self._in_hand)
            self._in_hand = ()

    def _held_up(self) -> None:
        """The database takes its time: until it is done, what there is goes to the spool, too. What it has written in
        the end all the same is not written again, for each row has its name."""
        with self._hands:
            in_hand, self._in_hand = self._in_hand, ()
            self._put_aside([*in_hand, *self._taken()])

    def _taken(self) -> Iterator[Entry]:
        queue = self._queue
        for _ in range(min(BATCH, len(queue))):
            ended = queue.popleft()
            try:
                yield from self._book.entries(ended)
            except Exception:
                self._lost += 1
                logger.exception("a request is not in the usage ledger")

    def _stored(self, entries: Sequence[Entry]) -> bool:
        """Write rows to the database, if that is possible now."""
        store = self._reached()
        if store is None:
            return False
        try:
            try:
                store.insert(entries)
            except Unfit:
                self._insert_singly(store, entries)
        except Exception as error:  # whatever it is, these rows are not lost yet
            self._fail(error)
            return False
        return True

    def _insert_singly(self, store: Store, entries: Sequence[Entry]) -> None:
        """One that no database takes must not keep all others from it. Raises NotNow, PluginError."""
        for entry in entries:
            try:
                store.insert((entry,))
            except Unfit as error:
                self._lost += 1
                logger.error("a row of the usage ledger is lost: %s", error)

    def _reached(self) -> Store | None:
        """The open database; None if it cannot be used now."""
        if self._store is not None and not self._store.is_there():
            logger.error("the usage ledger was moved or removed: a new one is made")
            self._close()
        if self._store is None and time.monotonic() >= self._retry_at:
            try:
                self._store = self._open()
            except Exception as error:
                self._fail(error)
        if self._store is not None and self._failing:
            logger.warning("the usage ledger can be written again")
            self._failing = ""
        return self._store

    def _fail(self, error: Exception) -> None:
        """Once per failure that lasts."""
        self._close()
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if not self._failing:
            trace = None if isinstance(error, HeadraceError) else error
            logger.error(
                "the usage ledger cannot be written, rows are put aside until it can: %s", error, exc_info=trace
            )
        self._failing = str(error) or type(error).__name__

    def _close(self) -> None:
        store, self._store = self._store, None
        self._left = self._deletion = None
        if store is not None:
            store.close()

    def _put_aside(self, entries: Sequence[Entry]) -> None:
        rest = entries[self._spool.put(entries) :] if entries else ()
        room = max(0, self._limit - len(self._kept))
        self._kept += rest[:room]
        self._lost += max(0, len(rest) - room)

    def _chores(self) -> None:
        """What can wait: a step of each at a time, for requests come first."""
        self._tell_of_losses()
        if self._queue and self._store is None:
            return
        if self._reached() is not None:
            self._take_up()
        if self._store is not None:
            self._delete()

    def _take_up(self) -> None:
        """Bring rows from the spool into the database."""
        self._spool.end_segment()
        if self._left is None:
            if time.monotonic() < self._look_at:
                return
            self._left = self._spool.taken_up(BATCH)
        rows = next(self._left, None)
        if rows is None:
            self._left, self._look_at = None, time.monotonic() + RETRY_SECONDS
        elif not self._stored(rows):
            self._left = None

    def _delete(self) -> None:
        assert self._store is not None
        try:
            if self._deletion is None:
                self._deletion = self._deleting(self._store)
            if self._deletion is not None and next(self._deletion, None) is None:
                self._deletion = None
        except HeadraceError as error:
            self._fail(error)

    def _tell_of_losses(self) -> None:
        now = time.monotonic()
        if (total := self.lost) == self._lost_said or now < self._said_at + SAY_SECONDS:
            return
        lost, self._lost_said, self._said_at = total - self._lost_said, total, now
        logger.error("%d rows of the usage ledger are lost: neither the database nor the spool takes them", lost)

    def _finish(self) -> None:
        """The last of it: what is still kept has one more chance."""
        if self._kept:
            self._turn()
        self._lost += len(self._kept)
        self._kept = []
        self._said_at = float("-inf")
        self._tell_of_losses()
        self._spool.end_segment()
        self._close()
