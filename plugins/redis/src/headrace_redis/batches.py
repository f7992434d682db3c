"""Everybody's requests and settlements, in as few calls as possible: while one call is under way the next is gathered.

A call (`Step`) has a number, and the server counts it once. If its answer does not come, nobody knows whether it was
counted: it is kept as the step in doubt until the server answers again and says (`resolve`). So nothing is lost or
counted twice, whatever happens in between, except for what the server itself forgets.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from headrace.ledger import Level, Limit, Refusal

from .connection import Answer, Connection, Lost
from .resp import ErrorReply
from .script import FORMAT, Caller
from .step import Ask, Correction, Given, Step, claims_of, numbers, question

SETTLE_SECONDS = 0.005
"""For so long what was settled may wait for the next request, whose call then takes it along."""
MOST_ASKS = 1000
"""Of one call: some milliseconds of the server's time."""
MOST_CHANGES = 2000
DUE_KEPT = 10_000
"""Settlements that are kept while the server does not answer."""
SECOND_LOOK = 0.001
"""Before a call counts as unanswered the loop looks once more at what has arrived: it may have been busy itself."""


class Batches:
    """What one process has to say to the server.

    Args:
        prefix: of all keys.
        name: of this process, unlike any other.
        patience: seconds that a call may take.
        on_failure: called with the reason when the server has failed; nothing is sent until `attach`.
    """

    def __init__(self, prefix: str, name: str, patience: float, on_failure: Callable[[str], None]) -> None:
        self._prefix, self._caller = prefix + FORMAT, Caller(prefix, name)
        self._patience, self._on_failure = patience, on_failure
        self._connection: Connection | None = None
        self._queue: deque[Ask] = deque()
        self._due: deque[Correction] = deque()
        self._held: dict[str, int] = {}
        """What is open, by key: every step says it anew for the keys that have changed, so no change can be lost."""
        self._changed: set[str] = set()
        self._flying: Step | None = None
        self._sent = 0.0
        self._doubt: Step | None = None
        self._number = 0
        self._watched = False
        self._timer: asyncio.TimerHandle | None = None
        self.dropped = 0
        """Settlements that could not be kept."""

    # --- what the ledger asks --------------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        return self._connection is not None

    def ask(self, limits: Sequence[Limit], amounts: Sequence[int], take: bool) -> Ask:
        """Ask for a hold or for levels; only while `attached`. The future never fails."""
        future: asyncio.Future[Given | Refusal | Sequence[Level] | None] = asyncio.get_running_loop().create_future()
        ask = Ask(limits, amounts, claims_of(self._prefix, limits, amounts), take, future)
        self._queue.append(ask)
        self._send()
        return ask

    def settle(self, given: Given, amounts: Sequence[int]) -> None:
        """A request is over and has taken so much."""
        self._due.extend(given.corrections(amounts))
        self._leave(given)
        while len(self._due) > DUE_KEPT:
            self._due.popleft()  # the oldest stay as they were reserved
            self.dropped += 1
        self._later()

    def give_back(self, given: Given) -> None:
        """A hold came to nobody: they have gone, or were told something else before."""
        self.settle(given, [0] * len(given.claims))

    def renew(self) -> None:
        """Say anew all that is open, and see whether the server answers."""
        self._changed.update(self._held)
        if self._connection is not None and self._flying is None:
            self._send(heartbeat=True)

    # --- what the link asks ----------------------------------------------------------------------------------------

    def question(self) -> tuple[bytes, ...]:
        """What to ask a new connection: whether the last step was counted. If it was not, it never will be."""
        return self._caller.words(question(self._number))

    def resolve(self, number: int, answer: Sequence[int]) -> None:
        """The server says which step it counted last, and what it answered. Raises ValueError if that cannot be."""
        step = self._doubt
        if step is not None and step.number == number:
            for given in step.read(answer):
                if isinstance(given, Given):
                    self._take(given)
                    self.give_back(given)
        elif step is not None:
            self._due.extendleft(reversed(step.corrections))
        if step is not None:
            self._changed.update(step.opens, _open_keys(step))
        self._doubt = None

    def attach(self, connection: Connection) -> None:
        """From now on use this connection. The question must have been resolved."""
        connection.on_lost = self._failed
        self._connection = connection
        self._changed.update(self._held)
        self._send()

    def detach(self) -> None:
        """Use no connection any more: everybody who waits is told so."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if self._flying is not None:
            self._doubt, self._flying = self._flying, None
        for ask in (*(self._doubt.asks if self._doubt else ()), *self._queue):
            if not ask.future.done():
                ask.future.set_result(None)
        self._queue.clear()

    def leave_all(self) -> None:
        """Nothing is open any more."""
        self._changed.update(self._held)
        self._held.clear()
        self._send()

    @property
    def pending(self) -> int:
        """How much has not been counted yet by the server."""
        doubt = len(self._doubt.corrections) if self._doubt else 0
        return len(self._due) + len(self._changed) + (self._flying is not None) + doubt

    # --- one step --------------------------------------------------------------------------------------------------

    def _later(self) -> None:
        if self._timer is None and self._flying is None and self._connection is not None:
            self._timer = asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._send_settled)

    def _send_settled(self) -> None:
        self._timer = None
        self._send()

    def _send(self, heartbeat: bool = False) -> None:
        """Send what waits, unless a call is under way. Who comes first waits for nobody: under load one always is."""
        if self._flying is not None or self._connection is None:
            return
        if not (heartbeat or self._queue or self._due or self._changed):
            return
        self._number += 1
        step = self._flying = Step(
            self._number,
            {key: self._held.get(key, 0) for key in _some(self._changed)},
            [self._due.popleft() for _ in range(min(len(self._due), MOST_CHANGES))],
            [self._queue.popleft() for _ in range(min(len(self._queue), MOST_ASKS))],
        )
        self._sent = time.monotonic()
        encoded = step.encode()
        self._connection.send(self._caller.short(encoded), lambda answer: self._answered(step, encoded, answer))
        self._watch()

    def _answered(self, step: Step, encoded: bytes | None, answer: Answer) -> None:
        """`encoded`: what to send in full if the server does not know the script, once."""
        if step is not self._flying or isinstance(answer, Lost):  # the connection says it to everybody
            return
        if isinstance(answer, ErrorReply):
            if answer.code == "NOSCRIPT" and encoded is not None and self._connection is not None:
                self._connection.send(self._caller.full(encoded), lambda answer: self._answered(step, None, answer))
            else:
                self._failed(str(answer))
            return
        try:
            found = step.read(numbers(answer))
        except ValueError as error:
            self._failed(f"the answer cannot be understood: {error}")
            return
        self._flying = None
        for ask, each in zip(step.asks, found, strict=True):
            self._hand_over(ask, each)
        self._go_on()

    def _hand_over(self, ask: Ask, found: Given | Refusal | Sequence[Level]) -> None:
        if isinstance(found, Given):
            self._take(found)
        if not ask.future.done():
            ask.future.set_result(found)
        elif isinstance(found, Given):  # cancelled: the client has gone
            self.give_back(found)

    def _go_on(self) -> None:
        if self._queue:
            self._send()
        elif self._due or self._changed:
            self._later()

    def _failed(self, why: str) -> None:
        if self._connection is not None:
            self.detach()
            self._on_failure(why)

    # --- patience --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """One timer for all steps: setting one for each would cost more than the step."""
        if not self._watched:
            self._watched = True
            asyncio.get_running_loop().call_later(self._patience, self._look)

    def _look(self, again: bool = False) -> None:
        self._watched = False
        if self._flying is None:
            return
        left = self._sent + self._patience - time.monotonic()
        if left > 0 or not again:
            self._watched = True
            late = left <= 0
            asyncio.get_running_loop().call_later(SECOND_LOOK if late else left, self._look, late)
        else:
            self._failed(f"no answer within {self._patience * 1000:.0f} ms")

    # --- what is open ----------------------------------------------------------------------------------------------

    def _take(self, given: Given) -> None:
        for claim in given.claims:
            if claim.letter == "o":
                self._held[claim.key] = self._held.get(claim.key, 0) + claim.amount

    def _leave(self, given: Given) -> None:
        for claim in given.claims:
            if claim.letter == "o":
                self._changed.add(claim.key)
                left = self._held.get(claim.key, 0) - claim.amount
                if left > 0:
                    self._held[claim.key] = left
                else:
                    self._held.pop(claim.key, None)


def _some(changed: set[str]) -> list[str]:
    return [changed.pop() for _ in range(min(len(changed), MOST_CHANGES))]


def _open_keys(step: Step) -> set[str]:
    return {claim.key for ask in step.asks for claim in ask.claims if claim.letter == "o"}
