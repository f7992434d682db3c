"""What is counted when a try or a request is over. All of it is paid for each request: see `docs/metrics.md`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from headrace.errors import RateLimited

from . import families, keys
from .families import Family
from .names import NONE, UNKNOWN, Codes, Names

if TYPE_CHECKING:
    from headrace.exchange import Attempt, Exchange, Outcome, Target, Usage
    from headrace.gateway import Gateway

    from .config import MetricsConfig
    from .table import Cells, Table

KEPT = 10_000
"""Of what is found again by its labels."""
K = TypeVar("K")
V = TypeVar("V")
OPERATIONS = {"completions": "text_completion", "messages": "chat", "responses": "chat"}
"""What OpenTelemetry calls our endpoints, where it has another name."""


class Histogram:
    """A histogram's row: how many fell below each bound, and their sum."""

    __slots__ = ("_bounds", "_cells", "_sum")

    def __init__(self, cells: Cells, bounds: Sequence[float]) -> None:
        self._cells, self._bounds, self._sum = cells, bounds, len(bounds) + 1

    def add(self, value: float) -> None:
        cells = self._cells
        cells[bisect_left(self._bounds, value)] += 1.0
        cells[self._sum] += value


class Operation:
    """OpenTelemetry's histograms for one operation at one target."""

    __slots__ = ("duration", "first_token", "input", "output", "output_token")

    def __init__(self, make: Callable[..., Histogram], labels: tuple[str, ...]) -> None:
        self.duration = make(families.OPERATION_DURATION, (*labels, ""))
        self.input = make(families.TOKEN_USAGE, (*labels, "input"))
        self.output = make(families.TOKEN_USAGE, (*labels, "output"))
        self.first_token = make(families.SERVER_FIRST_TOKEN, labels)
        self.output_token = make(families.SERVER_OUTPUT_TOKEN, labels)


class Line:
    """Everything that requests with the same labels count in, looked up once."""

    __slots__ = (
        *("bytes", "cached", "completion", "duration", "first_token", "operation", "output_token", "prompt"),
        "requests",
    )

    def __init__(self, counting: Counting, labels: tuple[str, ...], operation: Operation | None) -> None:
        where = labels[:2]
        self.requests = counting.counter(families.REQUESTS, labels)
        self.bytes = counting.counter(families.BYTES, where)
        self.prompt = counting.counter(families.PROMPT, where)
        self.completion = counting.counter(families.COMPLETION, where)
        self.cached = counting.counter(families.CACHED, where)
        self.duration = counting.histogram(families.DURATION, where)
        self.first_token = counting.histogram(families.FIRST_TOKEN, where)
        self.output_token = counting.histogram(families.OUTPUT_TOKEN, where)
        self.operation = operation


class Counting:
    """Counts in a table."""

    def __init__(self, config: MetricsConfig, gateway: Gateway, table: Table) -> None:
        self._config, self._gateway, self._table = config, gateway, table
        self._codes = Codes()
        self._models: Callable[[str], str] = Names(gateway.config.models, config.max_discovered)
        self._caches = False
        self._lines: dict[tuple[str | None, str | None, int, str, str], Line] = {}
        self._counters: dict[tuple[str, tuple[str, ...]], Cells] = {}
        self._histograms: dict[tuple[str, tuple[str, ...]], Histogram] = {}

    def open(self) -> None:
        """The table is open, and the plugins are known."""
        self._caches = bool(self._gateway.hooks.implementers("cache_lookup"))
        self._lines.clear()
        self._counters.clear()
        self._histograms.clear()
        for family in families.FAMILIES:
            if self._config.opentelemetry or not family.name.startswith("gen_ai"):
                self._table.row(keys.described(family.name, family.type, family.help), 0)
        for target in self._gateway.models.targets:
            self.counter(families.LOST, (target.name,))  # 0: so that the first one is seen as a change

    def completed(self, exchange: Exchange, outcome: Outcome) -> None:
        """A request is over."""
        model = exchange.model
        name = model.name if model is not None else None
        line = self._lines.get((name, outcome.target, outcome.status, outcome.delivery, exchange.endpoint.name))
        if line is None:
            line = self._line(name, exchange, outcome)
        line.requests[0] += 1.0
        line.bytes[0] += outcome.bytes_sent
        seconds, first, usage = outcome.duration_seconds, outcome.ttft_seconds, outcome.usage
        line.duration.add(seconds)
        if first is not None and exchange.streaming:
            line.first_token.add(first)
        if usage is not None:
            line.prompt[0] += usage.prompt_tokens
            line.completion[0] += usage.completion_tokens
            line.cached[0] += usage.cached_tokens
        if outcome.completed and outcome.status < 400 and outcome.error is None:
            self._succeeded(line, exchange, seconds, first, usage)
        else:
            self._failed(name, exchange, outcome)
        if exchange.state or outcome.attempts != 1 or self._caches:
            self._unusual(name, exchange, outcome)

    def _succeeded(
        self, line: Line, exchange: Exchange, seconds: float, first: float | None, usage: Usage | None
    ) -> None:
        """An answer reached its client whole."""
        operation = line.operation
        if operation is not None:
            operation.duration.add(seconds)
        if usage is None or usage.estimated:
            usage = None
        elif operation is not None:
            operation.input.add(usage.prompt_tokens)
            if usage.completion_tokens:
                operation.output.add(usage.completion_tokens)
        if first is None or not exchange.streaming:
            return
        if operation is not None:
            operation.first_token.add(first)
        if usage is not None and usage.completion_tokens > 1:
            each = (seconds - first) / (usage.completion_tokens - 1)
            line.output_token.add(each)
            if operation is not None:
                operation.output_token.add(each)

    def _failed(self, name: str | None, exchange: Exchange, outcome: Outcome) -> None:
        """It ended with an error, or its client left."""
        model, error = self._model(name), outcome.error
        code = self._codes(error.code) if error is not None else str(outcome.status)
        if outcome.aborted:
            code = "client_left"
            self.counter(families.ABORTED, (model, outcome.target or NONE))[0] += 1.0
        elif error is not None:
            self.counter(families.ERRORS, (model, code))[0] += 1.0
            if isinstance(error, RateLimited) and error.code != "upstream_rate_limited":
                self.counter(families.REJECTED, (model, code))[0] += 1.0
        labels = self._operation_labels(name, exchange)
        if labels is not None:
            self.histogram(families.OPERATION_DURATION, (*labels, code)).add(outcome.duration_seconds)

    def _unusual(self, name: str | None, exchange: Exchange, outcome: Outcome) -> None:
        """It may have waited, gone from one target to the next, or been answered by a cache."""
        waited = exchange.state.get("queue")
        if waited is not None:
            self.histogram(families.QUEUE_WAIT, (self._model(name),)).add(waited)
        well = outcome.completed and outcome.status < 400
        if outcome.attempts > 1 and well and outcome.target != exchange.attempts[0].target.name:
            self.counter(families.FALLBACKS, (self._model(name), outcome.target or NONE))[0] += 1.0
        if outcome.attempts == 0 and well:
            self.counter(families.HITS, (self._model(name),))[0] += 1.0
        elif outcome.attempts and self._caches:
            self.counter(families.MISSES, (self._model(name),))[0] += 1.0

    def attempted(self, attempt: Attempt, outcome: Outcome) -> None:
        """A try is over."""
        error, status = outcome.error, outcome.status
        if outcome.aborted:
            ended = "client_left"
        elif error is not None:
            ended = self._codes(error.code)
        elif status < 400:
            ended = "success" if outcome.completed else "incomplete"
        else:
            ended = "client_error" if status < 500 else "server_error"
        target = attempt.target.name
        self.counter(families.ATTEMPTS, (target, ended))[0] += 1.0
        if ended == "report_lost":
            self.counter(families.LOST, (target,))[0] += 1.0

    def counter(self, family: Family, values: tuple[str, ...]) -> Cells:
        """Found again without working out its key."""
        cells = self._counters.get((family.name, values))
        if cells is None:
            cells = self._table.row(family.key(values, self._config.buckets), 1)
            _keep(self._counters, (family.name, values), cells)
        return cells

    def histogram(self, family: Family, values: tuple[str, ...]) -> Histogram:
        found = self._histograms.get((family.name, values))
        if found is None:
            bounds = family.limits(self._config.buckets)
            found = Histogram(self._table.row(family.key(values, self._config.buckets), len(bounds) + 2), bounds)
            _keep(self._histograms, (family.name, values), found)
        return found

    def _line(self, name: str | None, exchange: Exchange, outcome: Outcome) -> Line:
        """What requests like this one count in."""
        target = outcome.target
        labels = (self._model(name), target or NONE, str(outcome.status), outcome.delivery)
        own = self._operation_labels(name, exchange)
        operation = Operation(self.histogram, own) if own is not None else None
        line = Line(self, labels, operation)
        _keep(self._lines, (name, target, outcome.status, outcome.delivery, exchange.endpoint.name), line)
        return line

    def _model(self, name: str | None) -> str:
        return self._models(name) if name is not None else UNKNOWN

    def _operation_labels(self, name: str | None, exchange: Exchange) -> tuple[str, ...] | None:
        """Of the last try; None if no backend was asked, or nobody wants to know."""
        if not exchange.attempts or not self._config.opentelemetry:
            return None
        target = exchange.attempts[-1].target
        endpoint = exchange.endpoint.name
        operation = OPERATIONS.get(endpoint, endpoint)
        return operation, target.provider, self._model(name), *address(target)


def _keep(found: dict[K, V], key: K, value: V) -> None:
    if len(found) >= KEPT:
        found.clear()
    found[key] = value


def address(target: Target) -> tuple[str, str]:
    """Where a target is: a host and a port, or the path of a socket."""
    if target.socket is not None:
        return target.socket, ""
    url = urlsplit(target.base_url)
    port = url.port or (443 if url.scheme == "https" else 80)
    return (url.hostname, str(port)) if url.hostname else ("", "")
