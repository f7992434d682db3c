"""Who is asked next: every target once, those of fall-back models last; then, after a pause, once more."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import math
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from .errors import GatewayError, InvalidRequest, PluginFault, Unavailable, UpstreamTimeout
from .providers import can_answer

if TYPE_CHECKING:
    from .exchange import Attempt, Exchange, Target
    from .gateway import Gateway
    from .models import Model

logger = logging.getLogger("headrace.retries")

TICK = 0.005
"""Seconds by which a timer may wake early: uvloop's count milliseconds."""
DOUBLINGS = 16
SAVED = 100.0
"""Tries that quiet times can save up for others."""


class RetryBudget:
    """What is left for tries beyond the first: a share of all requests, and so many a second in any case.

    Args:
        share: tries that each request earns.
        floor: tries a second.
        clock: seconds that only go forward.
    """

    def __init__(self, share: float, floor: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share, self._floor, self._clock = share, floor, clock
        self._saved = 0.0
        self._free = floor
        self._at = clock()

    def earn(self) -> None:
        """A request has come."""
        self._saved = min(SAVED, self._saved + self._share)

    def spend(self) -> bool:
        """Take one; False if none is left."""
        now = self._clock()
        self._free = min(max(self._floor, 1.0), self._free + (now - self._at) * self._floor)
        self._at = now
        if self._saved >= 1.0:
            self._saved -= 1.0
        elif self._free >= 1.0:
            self._free -= 1.0
        else:
            return False
        return True


class _Failed(msgspec.Struct):
    """What is remembered of a target that has failed."""

    target: Target
    times: int = 0
    not_before: float = 0.0
    """By `time.monotonic()`."""
    patience: float | None = 0.0
    """Seconds that it has asked for; None if it need not be asked again at all."""


class Walk:
    """The way of one request from target to target."""

    __slots__ = (
        *("_chain", "_failed", "_gateway", "_queue", "_rounds", "_too_long"),
        *("asked_for", "exchange", "model", "refused", "suits"),
    )

    def __init__(self, exchange: Exchange, gateway: Gateway) -> None:
        model = exchange.model
        assert model is not None
        self.exchange, self._gateway = exchange, gateway
        self.asked_for = self.model = model
        """The model that the client wants, and the one whose targets are being asked."""
        self.refused: GatewayError | None = None
        """Why a plugin has left out all targets of a model."""
        self.suits: Callable[[Target], bool] | None = None
        """Whether a target can be asked at all; None: all can."""
        self._failed: dict[str, _Failed] = {}
        self._rounds, self._too_long = 0, False
        self._chain: list[Model] = []
        self._queue: list[Target] = self._order(model)
        model.budget.earn()

    def first(self) -> Target | None:
        """The target to ask; None if no target of the model has this endpoint, or plugins have left out all."""
        target = self._pull()
        if target is None and self.refused is not None:
            self._begin_round()
            target = self._pull()
        return target

    async def another(self, attempt: Attempt, error: GatewayError) -> Target:
        """The target to ask after one has failed; may wait until there is one.

        Raises:
            GatewayError: `error` itself; asking anybody else makes no sense, or nobody is left.
        """
        if not self._may_go_on(error):
            raise error
        self._note(attempt.target, error)
        if self._rounds == 0:
            self._begin_round()
        target = self._pull()
        if target is None:
            await self._pause(error)
            target = self._pull()
        if target is None:  # plugins have left out whoever might have been asked again
            raise error
        if self._rounds > 1 and error.reached and not self.asked_for.budget.spend():
            logger.warning(
                "request %s: not tried again: the retry budget of %r is spent", self.exchange.id, self.model.name
            )
            raise error
        return target

    def longer(self) -> Target | None:
        """The target to ask when the prompt was too long for one; None if there is no larger model left."""
        if not self._too_long:
            self._too_long, self._queue = True, []
            self._chain = self._models(self.asked_for.longer)
        return self._pull()

    def _may_go_on(self, error: GatewayError) -> bool:
        retry = self.asked_for.retry
        if len(self.exchange.attempts) >= retry.attempts:
            return False
        if isinstance(error, PluginFault):
            return True
        return error.retryable and (error.code not in OF_BACKENDS or _kind(error) in retry.on)

    def _note(self, target: Target, error: GatewayError) -> None:
        known = self._failed.setdefault(target.name, _Failed(target))
        known.times += 1
        known.patience = _patience(error)
        if known.patience is not None:
            known.not_before = time.monotonic() + known.patience

    def _pull(self) -> Target | None:
        """The next of this round."""
        while True:
            while self._queue:
                target = self._queue.pop()
                if self._can_be_asked(target) and self._may_ask(target, time.monotonic()):
                    return target
            if not self._chain:
                return None
            self.model = self._chain.pop()
            self._queue = self._order(self.model)

    def _can_be_asked(self, target: Target) -> bool:
        """Whether it has the endpoint at all, or the request can be translated for it."""
        provider, exchange = self._gateway.providers[target.provider], self.exchange
        if exchange.endpoint.translation is None:
            return can_answer(exchange.endpoint, target, provider)
        from .translation import asked_of

        try:
            return can_answer(exchange.endpoint, target, provider) and bool(asked_of(exchange, target, provider))
        except InvalidRequest as error:
            self.refused = self.refused or error
            return False

    def _order(self, model: Model) -> list[Target]:
        """A model's targets, the last to be asked first; none if plugins have left out all of them."""
        ordered = model.ordered(self.exchange)
        try:
            arranged = self._gateway.hooks.arrange(self.exchange, ordered)
            if not arranged and any(map(self._can_be_asked, ordered)):
                raise Unavailable(f"No backend of the model {model.name!r} can be asked now.")
        except Unavailable as error:
            self.refused = self.refused or error
            return []
        return list(arranged)[::-1]

    def _begin_round(self) -> None:
        self._rounds += 1
        if not self._too_long:
            self._chain = self._models(self.asked_for.fallbacks)
        elif self._rounds > 1:
            self._chain = self._models(self.asked_for.longer)

    def _models(self, names: tuple[str, ...]) -> list[Model]:
        """Those of them that the caller may use, the last to be asked first."""
        who = self.exchange.principal
        allowed = who.models if who is not None else None
        found = (self._gateway.models.find(name) for name in reversed(names))
        return [model for model in found if allowed is None or model.name in allowed]

    def _may_ask(self, target: Target, now: float) -> bool:
        known = self._failed.get(target.name)
        if known is None:
            return self.suits is None or self.suits(target)
        return self._once_more(known) and known.not_before <= now + TICK and known.times <= self._rounds - 1

    def _once_more(self, known: _Failed) -> bool:
        retry = self.asked_for.retry
        if self.suits is not None and not self.suits(known.target):
            return False
        return known.patience is not None and known.patience <= retry.max_retry_after and known.times < retry.rounds

    async def _pause(self, error: GatewayError) -> None:
        """Wait until a target that has failed may be asked again. Raises `error` if there is none, or no time."""
        again = [known for known in self._failed.values() if self._once_more(known)]
        if not again:
            raise error
        retry, now = self.asked_for.retry, time.monotonic()
        longest = min(retry.max_backoff, retry.backoff * 2 ** min(self._rounds - 1, DOUBLINGS))
        pause = random.uniform(0, longest)  # noqa: S311 (nothing secret: it keeps callers from coming back all at once)
        seconds = min(max(known.not_before - now, pause) for known in again)
        if self._left() <= seconds:
            raise error
        await asyncio.sleep(seconds)
        self._begin_round()
        if not self._too_long:
            self.model = self.asked_for
            self._queue = self._order(self.asked_for)

    def _left(self) -> float:
        """Seconds until the answer's deadline."""
        if self.asked_for.total is None:
            return math.inf
        return self.exchange.started + self.asked_for.total - time.perf_counter()


KINDS = frozenset(("unavailable", "upstream_timeout", "upstream_rate_limited", "upstream_auth"))
"""What `retry.on` calls errors; any other is an `upstream_error`."""
OF_BACKENDS = KINDS | {"upstream_error", "stream_truncated"}
"""Codes of errors that backends cause, not plugins."""


def _kind(error: GatewayError) -> str:
    return error.code if error.code in KINDS else "upstream_error"


def _patience(error: GatewayError) -> float | None:
    """How long a backend wants to be left alone, in seconds; None: it kept silent, or will not have our key."""
    if isinstance(error, UpstreamTimeout | PluginFault) or error.code == "upstream_auth":
        return None
    return retry_after(error.headers.get("Retry-After", ""))


def retry_after(value: str) -> float:
    """`Retry-After` in seconds, given as such or as a date (RFC 9110, 10.2.3); 0 if it is neither."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError, TypeError, IndexError):  # all of them are raised by dates that are none
        return 0.0
