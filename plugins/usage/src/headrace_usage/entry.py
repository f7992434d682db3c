"""One row of the ledger, and how it is made of what a request has left behind."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from .buckets import bucket

if TYPE_CHECKING:
    from headrace.exchange import Principal, Usage
    from headrace.models import Model

    from .money import Prices, Rate

COMPLETED, ABORTED, CUT, FAILED = range(4)
ENDED = ("completed", "aborted", "cut", "failed")
"""The whole answer reached the client; the client left; the answer broke off; an error was answered."""
DELIVERIES = ("", "inline", "offload")
"""Who delivered the answer; nobody if the request was refused before that was chosen."""
LONGEST_TEXT = 200
KNOWN = 4096
NOBODY = ("",) * 5
NO_TOKENS = (0, 0, 0)
LARGEST = 2**40
"""Of numbers that backends tell: what is larger is not meant."""


class Series(NamedTuple):
    """What reports group and filter by: each combination is kept once."""

    key: str
    """The caller's id, empty if nobody knew who asked."""
    name: str
    owner: str
    team: str
    role: str
    model: str
    """As configured; empty if there is none of the name that was asked for."""
    target: str
    endpoint: str
    status: int
    failed_try: int
    """1: no request of its own, but one try of it, which failed."""

    @property
    def digest(self) -> str:
        """By what it is found."""
        return blake2b(msgspec.json.encode(self), digest_size=16).hexdigest()


class Entry(NamedTuple):
    """One row. The first four fields are its name, which no other row has."""

    at: int
    """When the request had ended: milliseconds since the epoch."""
    writer: int
    """Whoever wrote it: a random number of each plugin instance."""
    number: int
    """Counts the writer's requests: with `writer` it makes the group of a request and its failed tries."""
    attempt: int
    """0: the request; else which of its tries."""
    series: Series
    request_id: str
    """What the client knows it by, which the client may have chosen."""
    asked: str | None
    """The model's name as the client said it, where it is another."""
    served: str | None
    """The model that was asked in its place: one it falls back on."""
    error: str | None
    address: str | None
    delivery: int
    stream: int
    ended: int
    failed: int
    """1: it ended with an error that is not the client's leaving."""
    estimated: int
    """1: the tokens are an estimate."""
    input: int
    cached: int
    output: int
    cost: int | None
    """In millionths; None if the price is not known."""
    latency: int
    """Microseconds."""
    ttft: int | None
    latency_bucket: int | None
    """Of requests that were answered well, alone: refusals take no time."""
    ttft_bucket: int | None


class Failed(NamedTuple):
    """A try that failed."""

    number: int
    model: str
    target: str
    status: int
    error: str
    duration: float
    ttft: float | None


class Pending(NamedTuple):
    """What is noted of a request when it ends; nothing here holds on to its body."""

    at: float
    id: str
    principal: Principal | None
    model: Model | None
    asked: str | None
    served: Model | None
    endpoint: str
    address: str
    stream: bool
    status: int
    completed: bool
    aborted: bool
    error: str | None
    target: str | None
    delivery: str
    usage: Usage | None
    answered: bool
    """Whether its last try brought an answer."""
    duration: float
    ttft: float | None
    failures: list[Failed] | None


class Kind(NamedTuple):
    """What rows of requests of one kind have in common."""

    series: Series
    asked: str | None
    served: str | None
    error: str | None
    delivery: int
    ended: int
    failed: int
    well: bool
    charged: bool
    """As the plugin `budget` charges: nothing if no backend was asked."""
    rate: Rate | None
    """None: not known, or nothing is charged."""


class Book:
    """Makes rows of what has ended.

    Args:
        writer: a number that no other writer has.
        prices: what models cost.
        addresses: whether to keep the clients' addresses.
    """

    def __init__(self, writer: int, prices: Prices, *, addresses: bool) -> None:
        self._writer, self._prices, self._addresses = writer, prices, addresses
        self._numbers = itertools.count(1)
        self._known: dict[tuple[Any, ...], Kind] = {}
        """Most requests are of a kind that there was before."""

    def entries(self, ended: Pending) -> Iterator[Entry]:
        """The rows of one request: its failed tries, then itself."""
        whole = self._request(ended, int(ended.at * 1000), next(self._numbers))
        for failed in ended.failures or ():
            yield self._failed_try(whole, failed)
        yield whole

    def _request(self, ended: Pending, at: int, number: int) -> Entry:
        kind, usage = self._kind(ended), ended.usage
        latency, ttft = _micro(ended.duration), _micro_or_none(ended.ttft)
        tokens = _tokens(usage) if usage is not None else NO_TOKENS
        costs = kind.charged and (usage is not None or ended.answered)
        return Entry._make(
            (
                *(at, self._writer, number, 0, kind.series, clean(ended.id)),
                *(kind.asked, kind.served, kind.error, clean(ended.address) if self._addresses else None),
                *(kind.delivery, int(ended.stream), kind.ended, kind.failed),
                *(int(usage is not None and usage.estimated), *tokens),
                (kind.rate.cost(*tokens) if kind.rate is not None else None) if costs else 0,
                *(latency, ttft),
                bucket(latency) if kind.well else None,
                bucket(ttft) if kind.well and ttft is not None else None,
            )
        )

    def _kind(self, ended: Pending) -> Kind:
        """What this request has in common with others."""
        who, model, served = ended.principal, ended.model, ended.served
        key = (
            *((who.id, who.name, who.owner, who.team, who.role) if who is not None else NOBODY),
            *(model.name if model is not None else "", ended.asked, served.name if served is not None else None),
            *(ended.target, ended.endpoint, ended.delivery, ended.status, ended.error, ended.completed, ended.aborted),
        )
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= KNOWN:
                self._known.clear()
            found = self._known[key] = self._new_kind(ended, key[:5])
        return found

    def _new_kind(self, ended: Pending, caller: Iterable[Any]) -> Kind:
        model = ended.model.name if ended.model is not None else ""
        names = [clean(each or "") for each in (*caller, model, ended.target, ended.endpoint)]
        well = ended.completed and ended.status < 400
        how = how_it_ended(ended)
        served = ended.served.name if ended.served is not None else None
        return Kind(
            series=Series._make((*names, ended.status, 0)),
            asked=clean(ended.asked) if ended.asked is not None and ended.asked != model else None,
            served=clean(served) if served is not None and served != model else None,
            error=clean(ended.error) if ended.error else None,
            delivery=DELIVERIES.index(ended.delivery),
            ended=how,
            failed=int(how >= CUT or (how == COMPLETED and not well)),
            well=well,
            charged=served is not None,
            rate=self._prices.of(served, ended.target or "") if served is not None else None,
        )

    @staticmethod
    def _failed_try(whole: Entry, failed: Failed) -> Entry:
        """Costs nothing, and is no request of its own."""
        series = whole.series._replace(
            model=clean(failed.model), target=clean(failed.target), status=failed.status, failed_try=1
        )
        return whole._replace(
            attempt=failed.number,
            series=series,
            served=None,
            error=clean(failed.error),
            ended=FAILED,
            failed=1,
            estimated=0,
            input=0,
            cached=0,
            output=0,
            cost=0,
            latency=_micro(failed.duration),
            ttft=_micro_or_none(failed.ttft),
            latency_bucket=None,
            ttft_bucket=None,
        )


def how_it_ended(ended: Pending) -> int:
    """An answer that had begun as a success, and is not complete, is cut."""
    if ended.completed:
        return COMPLETED
    if ended.aborted:
        return ABORTED
    return CUT if ended.status < 400 else FAILED


def clean(text: str) -> str:
    """What every database takes and no terminal obeys: printable, and not too long."""
    text = text[:LONGEST_TEXT]
    return text if text.isprintable() else "".join(each if each.isprintable() else "\ufffd" for each in text)


def _tokens(usage: Usage) -> tuple[int, int, int]:
    return _sane(usage.prompt_tokens), _sane(usage.cached_tokens), _sane(usage.completion_tokens)


def _sane(tokens: int) -> int:
    return 0 if tokens < 0 else min(tokens, LARGEST)


def _micro(seconds: float) -> int:
    return max(0, min(LARGEST, int(seconds * 1_000_000)))


def _micro_or_none(seconds: float | None) -> int | None:
    return None if seconds is None else _micro(seconds)
