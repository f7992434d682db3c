"""What is measured when a request is over. All of it is paid for each request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .histograms import CLIENT, FIRST_TOKEN, OUTPUT_TOKEN, REQUEST, SERVER, USAGE, Histograms, Labels, Series
from .names import Names, address, operation

if TYPE_CHECKING:
    from headrace.exchange import Exchange, Outcome
    from headrace.gateway import Gateway

    from .config import OtelConfig
    from .kinds import Kind


class Line:
    """Everything that requests with the same attributes count in, found once. The GenAI metrics are those of requests
    that a backend was asked for."""

    __slots__ = ("client", "first", "input", "output", "output_token", "request", "server")

    def __init__(self, histograms: Histograms, http: Labels, asked: Labels | None, error: str | None) -> None:
        failed: Labels = (("error.type", error),) if error is not None else ()
        self.request = histograms.series(REQUEST, http + failed)
        self.client: Series | None = None
        if asked is None:
            return
        self.client = histograms.series(CLIENT, asked + failed)
        self.server = histograms.series(SERVER, asked + failed)
        if error is None:
            self.input = histograms.series(USAGE, (*asked, ("gen_ai.token.type", "input")))
            self.output = histograms.series(USAGE, (*asked, ("gen_ai.token.type", "output")))
            self.first = histograms.series(FIRST_TOKEN, asked)
            self.output_token = histograms.series(OUTPUT_TOKEN, asked)


class Measuring:
    """Measures requests. The values of attributes are bounded, whatever clients ask for."""

    def __init__(self, config: OtelConfig, gateway: Gateway) -> None:
        self.histograms = Histograms()
        self._names = Names((model.name for model in gateway.models), config.max_discovered)

    def completed(self, exchange: Exchange, outcome: Outcome, kind: Kind) -> None:
        """A request is over."""
        line = kind.line
        if line is None:
            line = kind.line = self._line(exchange, outcome, kind)
        seconds = outcome.duration_seconds
        line.request.add(seconds)
        if line.client is None:
            return
        line.client.add(seconds)
        line.server.add(seconds)
        if kind.error is None:
            _succeeded(line, exchange, outcome)

    def _line(self, exchange: Exchange, outcome: Outcome, kind: Kind) -> Line:
        http: Labels = (
            ("http.request.method", exchange.method),
            ("http.route", exchange.path),
            ("http.response.status_code", outcome.status),
            ("url.scheme", kind.scheme),
        )
        name = exchange.model.name if exchange.model is not None else None
        return Line(self.histograms, http, self._asked(name, exchange), kind.error)

    def _asked(self, name: str | None, exchange: Exchange) -> Labels | None:
        """Of the last try; None if no backend was asked."""
        if not exchange.attempts:
            return None
        target = exchange.attempts[-1].target
        host, port = address(target)
        return (
            ("gen_ai.operation.name", operation(exchange)),
            ("gen_ai.provider.name", target.provider),
            *((("gen_ai.request.model", self._names(name)),) if name is not None else ()),
            ("server.address", host),
            *((("server.port", port),) if port is not None else ()),
        )


def _succeeded(line: Line, exchange: Exchange, outcome: Outcome) -> None:
    """An answer reached its client whole. Tokens that are estimated are not reported."""
    usage, first = outcome.usage, outcome.ttft_seconds
    counted = usage is not None and not usage.estimated
    if usage is not None and counted:
        line.input.add(usage.prompt_tokens)
        if usage.completion_tokens:
            line.output.add(usage.completion_tokens)
    if first is None or not exchange.streaming:
        return
    line.first.add(first)
    if usage is not None and counted and usage.completion_tokens > 1:
        line.output_token.add((outcome.duration_seconds - first) / (usage.completion_tokens - 1))
