"""Waiting: requests come, wait for their turn, run and go, or go without having run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec

from headrace.errors import GatewayError, Unavailable

from .drain import Drain
from .schedule import Request, Schedule
from .slots import Lane

Beat = Callable[[], Awaitable[None]]
Clock = Callable[[], float]


class Overloaded(Unavailable):
    """Too many wait already."""

    type, code = "server_error", "overloaded"


class QueueTimeout(Unavailable):
    """There was no room in time."""

    type, code = "server_error", "queue_timeout"


class Counts(msgspec.Struct):
    """What has become of the requests of one class since the start, and how many are here."""

    waiting: int = 0
    running: int = 0
    served: int = 0
    """Began to run, at once or after a while."""
    waited: int = 0
    """Those of them that had to wait."""
    rejected: int = 0
    timed_out: int = 0
    left: int = 0
    """Clients that left while they waited."""
    wait_seconds: float = 0.0
    """Waited by all that were served, together."""


class Group:
    """Lanes that share backends."""

    def __init__(self, lanes: Iterable[Lane], min_share: float) -> None:
        self.schedule = Schedule(lanes, min_share)
        self.drain = Drain()


class Waiter(Request):
    """A request and who is told when its turn has come: the future's result is None, or why it will never come."""

    __slots__ = ("counts", "future", "group", "since")

    def __init__(
        self,
        group: Group,
        lane: Lane,
        caller: str,
        tokens: int,
        *,
        weight: float = 1.0,
        priority: int = 0,
        counts: Counts | None = None,
    ) -> None:
        super().__init__(lane, caller, tokens, weight=weight, priority=priority)
        self.group = group
        self.counts = counts or Counts()
        self.future: asyncio.Future[GatewayError | None] | None = None
        self.since = 0.0
        """When it began to wait, then when it began to run."""


class Gate:
    """Lets requests in as slots become free."""

    def __init__(
        self,
        groups: Sequence[Group],
        max_waiting: int,
        max_waiting_per_caller: int | None,
        timeout: float,
        clock: Clock = time.perf_counter,
    ) -> None:
        """`timeout`: what is told as Retry-After while nothing is known yet."""
        self.groups = tuple(groups)
        self._max, self._max_per_caller = max_waiting, max_waiting_per_caller
        self._timeout, self._clock = timeout, clock
        self._waiting_of: dict[str, int] = {}
        self.waiting = 0

    @property
    def now(self) -> float:
        """The clock's time."""
        return self._clock()

    def start(self, waiter: Waiter) -> bool:
        """Run a request if there is room for it now."""
        if not waiter.group.schedule.start(waiter):
            return False
        self._run(waiter)
        return True

    async def wait(self, waiter: Waiter, timeout: float, keep_alive: float = 0.0, beat: Beat | None = None) -> float:
        """Wait until it is the turn of a request that could not start. Returns for how many seconds it has waited.

        Args:
            timeout: seconds to wait at most.
            keep_alive: seconds after which `beat` is called, again and again.

        Raises:
            Unavailable: `overloaded`, too many wait; or `queue_timeout`.
        """
        began = waiter.since = self._clock()
        if timeout <= 0:
            raise self._late(waiter, timeout)
        self._make_room(waiter)
        loop = asyncio.get_running_loop()
        waiter.future = loop.create_future()
        self._enqueue(waiter)
        timer = loop.call_later(timeout, self._expire, waiter, timeout)
        try:
            if beat is not None and keep_alive > 0:
                await _beating(waiter.future, keep_alive, beat)
            refused = await waiter.future
        except BaseException:
            self._abandon(waiter)
            raise
        finally:
            timer.cancel()
        if refused is not None:
            raise refused
        return waiter.since - began

    def finish(self, waiter: Waiter, tokens: int | None) -> None:
        """A request that ran is over and has cost so many tokens; None: nobody counted."""
        waiter.counts.running -= 1
        waiter.group.drain.end(waiter.since, self._clock())
        waiter.group.schedule.finish(waiter, tokens)
        self.serve(waiter.group)

    def serve(self, group: Group) -> None:
        """Let in whoever there is room for."""
        while (request := group.schedule.next()) is not None:
            assert isinstance(request, Waiter)
            self._count_out(request)
            request.counts.waited += 1
            request.counts.wait_seconds += self._clock() - request.since
            self._run(request)
            _tell(request, None)

    def _run(self, waiter: Waiter) -> None:
        waiter.since = self._clock()
        waiter.group.drain.begin(waiter.since)
        waiter.counts.served += 1
        waiter.counts.running += 1

    def _abandon(self, waiter: Waiter) -> None:
        """Nobody waits for its turn any more; if it has just come, it is the next one's."""
        if waiter.state == "waiting":
            self._leave(waiter)
            waiter.counts.left += 1
        elif waiter.state == "running":
            waiter.counts.running -= 1
            waiter.counts.served -= 1
            waiter.counts.waited -= 1
            waiter.counts.left += 1
            waiter.group.drain.end(waiter.since, None)
            waiter.group.schedule.finish(waiter, 0)
            self.serve(waiter.group)

    def _expire(self, waiter: Waiter, timeout: float) -> None:
        if waiter.state == "waiting":
            self._leave(waiter)
            _tell(waiter, self._late(waiter, timeout))

    def _make_room(self, waiter: Waiter) -> None:
        """Raises Unavailable if nobody else has to go for this one."""
        if self._max_per_caller is not None and self._waiting_of.get(waiter.caller, 0) >= self._max_per_caller:
            raise self._full(waiter, "Too many of your requests are waiting")
        if self.waiting < self._max:
            return
        victim = self._victim(waiter)
        if victim is None:
            raise self._full(waiter, "Too many requests are waiting")
        self._leave(victim)
        _tell(victim, self._full(victim, "Too many requests are waiting"))

    def _victim(self, waiter: Waiter) -> Waiter | None:
        """Who has to go for this one: the newest of those that crowd the queue most. None: this one itself."""
        found = [each for group in self.groups if (each := group.schedule.dispensable()) is not None]
        if not found:
            return None
        victim, count = min(found, key=lambda each: (each[0].priority, -each[1]))
        is_better = victim.priority < waiter.priority or (
            victim.priority == waiter.priority and count > waiter.group.schedule.waiting_of(waiter) + 1
        )
        assert isinstance(victim, Waiter)
        return victim if is_better else None

    def _enqueue(self, waiter: Waiter) -> None:
        waiter.group.schedule.wait(waiter)
        waiter.counts.waiting += 1
        self.waiting += 1
        self._waiting_of[waiter.caller] = self._waiting_of.get(waiter.caller, 0) + 1

    def _leave(self, waiter: Waiter) -> None:
        waiter.group.schedule.leave(waiter)
        self._count_out(waiter)

    def _count_out(self, waiter: Waiter) -> None:
        waiter.counts.waiting -= 1
        self.waiting -= 1
        left = self._waiting_of.pop(waiter.caller) - 1
        if left:
            self._waiting_of[waiter.caller] = left

    def _late(self, waiter: Waiter, timeout: float) -> Unavailable:
        waiter.counts.timed_out += 1
        return self._refusal(waiter, QueueTimeout, f"There was no room for this request within {timeout:g} s")

    def _full(self, waiter: Waiter, why: str) -> Unavailable:
        waiter.counts.rejected += 1
        return self._refusal(waiter, Overloaded, why)

    def _refusal(self, waiter: Waiter, error: type[Unavailable], why: str) -> Unavailable:
        position = waiter.group.schedule.waiting_before(waiter.priority) + 1
        wait = waiter.group.drain.retry_after(position, self._clock(), unknown=self._timeout)
        return error(f"{why}: try again in {wait} s.", headers={"Retry-After": str(wait)})


async def _beating(future: asyncio.Future[GatewayError | None], seconds: float, beat: Beat) -> None:
    """Call `beat` every so many seconds, until the future has a result."""
    while not (await asyncio.wait((future,), timeout=seconds))[0]:
        await beat()


def _tell(waiter: Waiter, refused: GatewayError | None) -> None:
    """Its waiting is over. If it has been cancelled meanwhile, it finds out by itself."""
    if waiter.future is not None and not waiter.future.done():
        waiter.future.set_result(refused)
