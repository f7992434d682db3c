"""Where requests are answered, or wait for one that is being answered; and where answers are kept."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import msgspec

from headrace.errors import GatewayError
from headrace.exchange import Exchange, Reply

from .crossing import crossed
from .entry import TYPES, Entry, Kind, hit_headers, reply_of
from .flight import Flight, Follower, Key, Room
from .marks import Standing
from .watch import Watch
from .worth import is_whole

if TYPE_CHECKING:
    from .config import CacheConfig
    from .counts import Tally
    from .marks import Marks
    from .memory import Memory
    from .plan import Plan, Planner
    from .shared import Shared

logger = logging.getLogger("headrace.cache")
STATE = "cache"
HIT, MISS, BYPASS = ((b"x-cache", word) for word in (b"hit", b"miss", b"bypass"))
FAILURES = 2
"""So many times in a row others may fail before those who wait are told so, too."""


class Desk:
    """One gateway's cache in one process. Between two `await`s nothing changes: no locks are needed."""

    def __init__(
        self,
        config: CacheConfig,
        planner: Planner,
        marks: Marks,
        tally: Tally,
        memory: Memory | None,
        shared: Shared | None,
    ) -> None:
        self._config, self._planner, self._marks, self._tally = config, planner, marks, tally
        self.memory, self.shared = memory, shared
        self._flights: dict[Key, Flight] = {}
        self.room = Room(config.memory_bytes)
        self._swept = marks.seen

    # --- what the plugin asks --------------------------------------------------------------------------------------

    def open(self, exchange: Exchange) -> Watch | None:
        """Before the request is answered. None: it is not for the cache."""
        model = exchange.model
        if model is None:
            return None
        counts = self._tally.of(model.name)
        try:
            plan = self._planner.plan(exchange, model, counts, self._marks)
        except GatewayError as error:
            exchange.state[STATE] = error  # to be said where it can be
            return None
        if plan is None:
            counts.bypasses += 1
            exchange.response_headers.append(BYPASS)
            return None
        exchange.state[STATE] = plan
        if self.memory is not None and not plan.fresh:
            plan.found = self._in_memory(exchange, plan, self.memory)
            if plan.found is not None:
                return None
        return Watch(exchange, plan, self)

    async def lookup(self, exchange: Exchange) -> Reply | None:
        """The answer; None: ask a backend. Raises GatewayError."""
        plan: Plan | GatewayError | None = exchange.state.get(STATE)
        if plan is None:
            return None
        if isinstance(plan, GatewayError):
            raise plan
        if plan.found is not None:
            plan.counts.hits += 1
            return self._hit(exchange, plan.found)
        return await self._wait(exchange, plan)

    def standing(self, worker: int) -> Standing:
        """How this process stands."""
        memory, shared = self.memory, self.shared
        self._let_go()
        self._tally.see(memory.held if memory is not None else {})
        server = None if shared is None else "up" if shared.up else "down"
        return Standing(worker, os.getpid(), memory.most if memory is not None else None, server, self._tally.models)

    def _let_go(self) -> None:
        """What somebody has cleared takes no memory any more."""
        self._marks.of("")
        if self._swept != self._marks.seen and self.memory is not None:
            self.memory.sweep()
        self._swept = self._marks.seen

    async def clear(self, model: str | None) -> bool:
        """Forget everything, or everything of a model: at once in all workers, and at the server, if it answers:
        False if it does not. Raises OSError: the disk."""
        self._marks.clear(model)
        if self.memory is not None:
            self.memory.drop(model)
        return await clear_server(self.shared, model)

    # --- followers -------------------------------------------------------------------------------------------------

    async def _wait(self, exchange: Exchange, plan: Plan) -> Reply | None:
        """Along with a request that is being answered already, or as the first of its kind."""
        failures = 0
        while True:
            flight = self._flights.get(plan.place)
            if flight is None or plan.fresh:
                return await self._lead(exchange, plan)
            follower = flight.join()
            reply = None
            try:
                await follower.news.wait()
                reply = self._joined(exchange, plan, flight, follower)
            finally:
                if reply is None or reply.stream is None:
                    flight.leave(follower)
            if reply is not None:
                return reply
            if flight.alone or follower.cut or flight.entry is not None:  # the entry is too old for this one
                plan.fresh = True
            elif flight.error is not None or flight.refusal is not None:
                failures += 1
                if failures == FAILURES:
                    exchange.response_headers.append(MISS)
                    return _told(flight)

    def _joined(self, exchange: Exchange, plan: Plan, flight: Flight, follower: Follower) -> Reply | None:
        """Another's answer, which is there or has begun; None if there is none for this request."""
        if flight.state == "failed" or follower.cut:
            return None
        if flight.entry is not None:
            if not self._will_do(plan, flight.entry):
                return None
            plan.counts.joined += 1
            return self._hit(exchange, flight.entry)

        async def leave() -> None:
            flight.leave(follower)

        plan.counts.joined += 1
        exchange.dropped = flight.dropped
        exchange.response_headers.append(HIT)
        stream = flight.follow(follower)
        return Reply(200, hit_headers("stream", 0), stream=stream, close=leave, source="cache")

    def _in_memory(self, exchange: Exchange, plan: Plan, memory: Memory) -> Entry | None:
        """What lies there, as it was asked for. The other form is looked for only if this one will not do."""
        for key in plan.keys:
            entry = memory.find(key) if key is not None else None
            found = self._as_asked(exchange, plan, entry) if entry is not None else None
            if found is not None:
                if found is not entry:
                    self._remember(plan, found)
                return found
        return None

    def _as_asked(self, exchange: Exchange, plan: Plan, entry: Entry) -> Entry | None:
        """An answer in the form that was asked for; None: it will not do."""
        if not self._will_do(plan, entry):
            return None
        return entry if entry.key == plan.keys.own else crossed(entry, plan.keys.own, exchange)

    def _will_do(self, plan: Plan, entry: Entry) -> bool:
        return plan.wish.max_age is None or entry.age <= plan.wish.max_age

    def _hit(self, exchange: Exchange, entry: Entry) -> Reply:
        exchange.dropped = entry.dropped
        exchange.response_headers.append(HIT)
        return reply_of(entry)

    # --- the leader ------------------------------------------------------------------------------------------------

    async def _lead(self, exchange: Exchange, plan: Plan) -> Reply | None:
        """A backend is asked for this one, unless the server has its answer."""
        flight = plan.flight = Flight(plan.place, self._config.max_entry_bytes, self.room, self._over)
        self._flights.setdefault(plan.place, flight)  # who asks for a fresh answer may be another's company
        flight.stop = lambda: exchange.share(flight.wanted)  # ends it, if the client has left
        exchange.share(flight.wanted)
        if self.shared is not None:
            found = await self.shared.find(plan.keys, plan.model)
            plan.server_epoch = found.epoch
            entries = () if plan.fresh else (self._as_asked(exchange, plan, each) for each in found.entries)
            if (entry := next(filter(None, entries), None)) is not None:
                self._remember(plan, entry)
                plan.flight = None
                flight.land(entry)
                plan.counts.hits += 1
                return self._hit(exchange, entry)
        plan.counts.misses += 1
        exchange.response_headers.append(MISS)
        return None

    def _over(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    # --- keeping ---------------------------------------------------------------------------------------------------

    def entry(self, exchange: Exchange, plan: Plan, kind: Kind, body: bytes) -> Entry:
        """An answer that is complete. It is kept, if it is worth it."""
        now = time.time()
        entry = Entry(plan.keys.own, plan.model, kind, body, now, now + plan.ttl, exchange.dropped)
        if len(body) <= self._config.max_entry_bytes and self._is_worth(exchange, plan, kind, body):
            plan.counts.stored += 1
            self._remember(plan, entry)
            if self.shared is not None and plan.server_epoch is not None:
                self.shared.keep(msgspec.structs.replace(entry, epoch=plan.server_epoch))
        return entry

    def _is_worth(self, exchange: Exchange, plan: Plan, kind: Kind, body: bytes) -> bool:
        """Whether it is the model's own, in one piece, as it was asked for, and of the present."""
        last = exchange.attempts[-1] if exchange.attempts else None
        model = exchange.model
        if (
            last is None
            or model is None
            or last.model is not model
            or any(last.target is each for each in model.reserves)
        ):
            return False  # what it fell back on is no answer for later
        if self._marks.of(plan.model) != plan.epoch:
            return False  # somebody has cleared the cache meanwhile
        began = exchange.first_byte_at
        resumed = began is not None and began < last.started
        return not resumed and (kind == "stream") == exchange.streaming and is_whole(exchange.endpoint.name, kind, body)

    def _remember(self, plan: Plan, entry: Entry) -> None:
        if self.memory is None:
            return
        ends = entry.ends if self.shared is None else min(entry.ends, time.time() + self._config.memory_ttl)
        self.memory.put(plan.keys.own, msgspec.structs.replace(entry, ends=ends, epoch=plan.epoch))


async def clear_server(shared: Shared | None, model: str | None) -> bool:
    """Whether nothing of before is given from there any more."""
    if shared is None:
        return True
    try:
        await shared.clear(model)
    except OSError as error:
        logger.error("the cache's server could not be cleared: %s", error)
        return False
    return True


def _told(flight: Flight) -> Reply:
    """To those who wait: what the others were told. Raises GatewayError."""
    if flight.refusal is None:
        raise flight.failure()
    status, body = flight.refusal
    return Reply(status, TYPES["whole"], content=body, source="cache")
