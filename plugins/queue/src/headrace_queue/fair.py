"""Whose turn it is: callers share by the tokens they use, each as its weight says. No clock, no waiting: only order.

Every caller has a counter of the tokens it has used, divided by its weight, and the caller with the least is next: the
"virtual token counter" of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024). What is running
counts as it is estimated and, once it is over, as it was. A caller that comes back after a while is set level with
those being served, so nobody saves up (as in start-time fair queuing with several servers: Jin et al., "Interposed
proportional sharing for a storage service utility", SIGMETRICS 2004).
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict

REMEMBERED = 1024
"""Callers without any request whose counters are kept. Forgetting one forgives what it used beyond others: little."""
LEARNING = 0.2
"""Of one request in the moving average of used to estimated tokens."""


class Ticket:
    """One request: it waits in a queue, or runs.

    `tokens` is what it may cost. A caller whose answers are shorter than they might be is charged accordingly less at
    its start, as its requests before have shown.
    """

    __slots__ = ("charge", "flow", "tokens")

    def __init__(self, tokens: int) -> None:
        self.tokens = max(1, tokens)
        self.charge = 0.0
        """Counted while it runs: estimated tokens by weight."""
        self.flow: Flow | None = None


class Flow:
    """The requests of one caller."""

    __slots__ = ("entry", "name", "open", "ratio", "running", "used", "waiting", "weight")

    def __init__(self, name: str, ratio: float) -> None:
        self.name = name
        self.weight = 0.0
        """As of its last request; 0 while it has none."""
        self.used = 0.0
        """Tokens of requests that are over, by weight."""
        self.running = 0.0
        """Tokens of those that run, as estimated, by weight."""
        self.open = 0
        self.waiting: OrderedDict[Ticket, None] = OrderedDict()
        self.ratio = ratio
        """Tokens used to tokens estimated, on average."""
        self.entry = 0
        """The number of its place in the heap that counts; 0: it has none."""


class FairQueue:
    """Requests of many callers that wait for the same slots, and those that run in them. Every step is O(log n)."""

    def __init__(self) -> None:
        self.level = 0.0
        """The counter of whoever was served, at its highest: where newcomers begin."""
        self.weight = 0.0
        """Of all callers that have a request here."""
        self.ratio: float | None = None
        self._flows: dict[str, Flow] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._heap: list[tuple[float, int, Flow]] = []
        self._numbers = itertools.count(1)
        self._lengths = Lengths()

    def __len__(self) -> int:
        """How many wait."""
        return self._lengths.total

    @property
    def callers(self) -> int:
        """How many callers are known, idle ones included."""
        return len(self._flows)

    def waiting_of(self, name: str) -> int:
        """How many requests of this caller wait."""
        flow = self._flows.get(name)
        return len(flow.waiting) if flow is not None else 0

    def push(self, ticket: Ticket, name: str, weight: float) -> None:
        """A request begins to wait."""
        flow = self._join(ticket, name, weight)
        flow.waiting[ticket] = None
        self._lengths.move(flow, len(flow.waiting) - 1)
        if len(flow.waiting) == 1:
            self._place(flow)

    def start(self, ticket: Ticket, name: str, weight: float) -> None:
        """A request runs without having waited."""
        self._begin(ticket, self._join(ticket, name, weight))

    def pop(self) -> Ticket:
        """The next request runs. Raises IndexError if none waits."""
        while True:
            _, number, flow = heapq.heappop(self._heap)
            if flow.entry == number:
                break
        ticket = next(iter(flow.waiting))
        self._take_out(ticket, flow)
        self._begin(ticket, flow)
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """A request waits no longer."""
        flow = ticket.flow
        assert flow is not None
        self._take_out(ticket, flow)
        self._settle(flow)

    def longest(self) -> tuple[Ticket, int] | None:
        """The newest request of the caller of whom most wait, and how many of it do."""
        flow = self._lengths.longest()
        return None if flow is None else (next(reversed(flow.waiting)), len(flow.waiting))

    def finish(self, ticket: Ticket, tokens: int | None) -> None:
        """A request is over, and has cost so many tokens; None: nobody knows, and its estimate stands."""
        flow = ticket.flow
        assert flow is not None
        flow.open -= 1
        flow.running = flow.running - ticket.charge if flow.open else 0.0  # no remainder of rounding stays
        if tokens is None:
            flow.used += ticket.charge
        else:
            flow.used += max(1, tokens) / flow.weight
            self._learn(flow, max(1, tokens) / ticket.tokens)
        if flow.waiting:
            self._place(flow)
        self._settle(flow)

    def _join(self, ticket: Ticket, name: str, weight: float) -> Flow:
        flow = self._flows.get(name)
        if flow is None:
            flow = self._flows[name] = Flow(name, self.ratio or 1.0)
        self._idle.pop(name, None)
        if not flow.waiting and flow.used < self.level:
            flow.used = self.level
        self.weight += weight - flow.weight
        flow.weight = weight
        ticket.flow = flow
        return flow

    def _begin(self, ticket: Ticket, flow: Flow) -> None:
        if flow.used > self.level:
            self.level = flow.used
        ticket.charge = ticket.tokens * flow.ratio / flow.weight
        flow.running += ticket.charge
        flow.open += 1
        if flow.waiting:
            self._place(flow)

    def _place(self, flow: Flow) -> None:
        """Put a caller where its counter says. Where it stood before counts no longer."""
        flow.entry = next(self._numbers)
        heapq.heappush(self._heap, (flow.used + flow.running, flow.entry, flow))
        if len(self._heap) > 64 + 2 * self._lengths.flows:
            self._heap = [each for each in self._heap if each[2].entry == each[1]]
            heapq.heapify(self._heap)

    def _take_out(self, ticket: Ticket, flow: Flow) -> None:
        before = len(flow.waiting)
        del flow.waiting[ticket]
        self._lengths.move(flow, before)
        if not flow.waiting:
            flow.entry = 0

    def _settle(self, flow: Flow) -> None:
        """A caller without requests is remembered for a while."""
        if flow.open or flow.waiting:
            return
        self.weight -= flow.weight
        flow.weight = 0.0
        self._idle[flow.name] = None
        if len(self._idle) > REMEMBERED:
            del self._flows[self._idle.popitem(last=False)[0]]
        if len(self._idle) == len(self._flows):
            self.weight = 0.0  # no remainder of rounding stays

    def _learn(self, flow: Flow, seen: float) -> None:
        flow.ratio += LEARNING * (seen - flow.ratio)
        self.ratio = seen if self.ratio is None else self.ratio + LEARNING * (seen - self.ratio)


class Lengths:
    """Callers by how many requests of theirs wait: who has most is known without looking at all."""

    def __init__(self) -> None:
        self.total = 0
        self.flows = 0
        self._most = 0
        self._by_length: dict[int, dict[Flow, None]] = {}

    def move(self, flow: Flow, before: int) -> None:
        """One request more, or one less, waits than `before`."""
        now = len(flow.waiting)
        self.total += now - before
        if before:
            self._leave(flow, before)
        if now:
            self._by_length.setdefault(now, {})[flow] = None
            self._most = max(self._most, now)
        self.flows += (now > 0) - (before > 0)
        while self._most and self._most not in self._by_length:
            self._most -= 1

    def _leave(self, flow: Flow, length: int) -> None:
        same = self._by_length[length]
        del same[flow]
        if not same:
            del self._by_length[length]

    def longest(self) -> Flow | None:
        """The caller of whom most wait."""
        same = self._by_length.get(self._most)
        return next(iter(same)) if same else None
