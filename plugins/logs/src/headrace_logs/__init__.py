"""One structured line per request, without prompts, answers or keys."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from headrace import hookimpl
from headrace.config import Count, Strict

if TYPE_CHECKING:
    from headrace.exchange import Exchange, Outcome
    from headrace.gateway import Gateway
    from headrace.streaming import Tap

    from .journal import Journal

STATE = "logs"
"""The name under which an exchange keeps our tap."""


class LogsConfig(Strict, frozen=True):
    """`[plugins.logs]`: where lines go, how they look, and what they may contain."""

    format: Literal["json", "console"] = "json"
    """`json`: one JSON object per line. `console`: for people at a terminal, coloured if it is one."""
    path: str | None = None
    """Append to this file instead of standard error; a relative path is below `server.state_dir`. The file is
    opened again when it has been moved or removed, as logrotate does."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe lines to write. Answered requests are `info`; refused ones and those whose client left are
    `warning`; failed and cut ones are `error`."""
    usage: bool = True
    """Log token counts. Backends are then asked for them in streams whose client did not ask, and nginx has to look at
    the end of what it delivers; without, a stream costs a little less."""
    bodies: bool = False
    """Also log what was asked and answered, with secrets redacted. Replies are then delivered by the core itself."""
    max_body_bytes: Count = 16_384
    """With `bodies`: how much of a request's body, and of an answer's text, is kept (in characters)."""
    redact: list[str] = msgspec.field(default_factory=list)
    """More regular expressions (Python's `re`) whose matches are replaced by `[redacted]`."""
    buffer_bytes: Annotated[int, msgspec.Meta(ge=65_536)] = 8_388_608
    """Lines that wait for a slow disk or terminal may take this much memory; beyond it lines are dropped, counted,
    and the count is logged."""

    def __post_init__(self) -> None:
        if self.path is not None and not self.path.strip():
            raise ValueError("path: is empty; leave it out to log to standard error")
        for pattern in self.redact:
            _check_pattern(pattern)


def _check_pattern(pattern: str) -> None:
    try:
        matches_nothing = re.compile(pattern).search("") is not None
    except re.error as error:
        raise ValueError(f"redact: {pattern!r} is not a regular expression: {error}") from error
    if matches_nothing:
        raise ValueError(f"redact: {pattern!r} matches the empty text, and so everything: make it narrower")


class Plugin:
    """Writes the line of every request, and gives the gateway's own messages the same form."""

    Config = LogsConfig

    def __init__(self, config: LogsConfig, gateway: Gateway) -> None:
        self._config = config
        self._gateway = gateway
        self._journal: Journal | None = None

    @hookimpl
    def lifespan(self) -> AbstractAsyncContextManager[None]:
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        from .journal import Journal

        gateway = self._gateway
        worker = gateway.worker if gateway.config.server.workers > 1 else None
        async with Journal(self._config, gateway.state_dir, worker) as journal:
            self._journal = journal
            yield

    @hookimpl
    def open_tap(self, exchange: Exchange) -> Tap | None:
        exchange.usage_wanted |= self._config.usage
        if not self._config.bodies:
            return None
        from .bodies import AnswerTap

        tap = exchange.state[STATE] = AnswerTap(self._config.max_body_bytes)
        return tap

    @hookimpl
    async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
        if self._journal is None:
            raise RuntimeError("a request ended before the gateway's lifespan was entered: use gateway.running()")
        self._journal.request(exchange, outcome)


__all__: Sequence[str] = ["LogsConfig", "Plugin"]
