"""The log of a running gateway: its writer, the request lines, and the standard library's loggers in the same form."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from headrace.errors import PluginError

from . import STATE
from .bodies import BodiesLine, Selection, request_text
from .fields import TEXT_LIMIT, RequestLine, leave_out, left_out, level_of, request_line
from .redaction import REDACTED, Redactor
from .rendering import Clock, Fields, as_json, encode, renderer, stderr_is_terminal
from .rotation import RotatingSink
from .sampling import Sampling
from .writer import FileSink, Sink, StderrSink, Writer

if TYPE_CHECKING:
    from headrace.exchange import Exchange, Outcome

    from . import LogsConfig

ADOPTED = ("headrace", "uvicorn.error", "asyncio")
"""The loggers, each with those below it, whose messages become lines of ours."""

LEVELS = {logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}
MESSAGE_LIMIT = 65_536
"""Characters of one text in a message of the gateway's own."""
_stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)


class Journal:
    """Open from `__aenter__` to `__aexit__`, which writes out what is left."""

    def __init__(self, config: LogsConfig, state_dir: Path, worker: int | None = None) -> None:
        """`worker`: which of several core processes this is."""
        self._config = config
        self._worker = worker
        self._level: int = getattr(logging, config.level.upper())
        self._redactor = Redactor(config.redact, config.personal)
        self._sampling = Sampling(config.sample, config.slow_seconds) if config.sample < 1 else None
        self._left_out = left_out(config.fields, config.drop)
        self._selection = Selection(config) if config.bodies else None
        self._is_special = bool(self._sampling or self._left_out or self._selection or self._redactor.hides_addresses)
        self._is_json = config.format == "json"
        self._render = renderer(config.format, colours=config.path is None and stderr_is_terminal())
        sink, bodies_sink = _sinks(config, state_dir)
        self._writer = Writer(sink, config.buffer_bytes, self._own_line)
        self._bodies: Writer | None = None
        if bodies_sink is not None:
            self._bodies = Writer(bodies_sink, config.buffer_bytes, self._own_json_line, self._complain)
        self._clock = Clock()
        self._stack = contextlib.ExitStack()

    async def __aenter__(self) -> Journal:
        self._writer.start()
        if self._bodies is not None:
            self._bodies.start()
        self._stack.enter_context(self._adopted())
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._stack.close()
        if self._bodies is not None:
            await asyncio.to_thread(self._bodies.stop)
        await asyncio.to_thread(self._writer.stop)

    def request(self, exchange: Exchange, outcome: Outcome) -> None:
        """Write the line of one request."""
        level = level_of(outcome)
        if level < self._level:
            return
        share = None
        if self._sampling is not None and level == logging.INFO:
            share = self._sampling.share(exchange.id, outcome.duration_seconds)
            if share == 0:
                return
        name = LEVELS[level]
        line = request_line(exchange, outcome, self._redactor, self._clock.now(), name, self._worker)
        if self._is_special:
            line.sample_ratio = share
            self._make_special(line, exchange, outcome)
        if self._is_json:
            self._writer.write(encode(line))
        else:
            self._writer.write_text(self._render(None, name, msgspec.to_builtins(line)))

    def _make_special(self, line: RequestLine, exchange: Exchange, outcome: Outcome) -> None:
        """What only some configurations want."""
        if self._selection is not None and self._selection.has(exchange):
            self._add_bodies(line, exchange, outcome)
        if self._redactor.hides_addresses:
            line.client = REDACTED
        leave_out(line, self._left_out)

    def _add_bodies(self, line: RequestLine, exchange: Exchange, outcome: Outcome) -> None:
        """To the file of bodies, or to the line."""
        if self._bodies is None:
            self._fill(line, exchange, outcome)
            return
        bodies = BodiesLine(
            timestamp=line.timestamp,
            event="bodies",
            request_id=line.request_id,
            user=line.user,
            model=line.model,
            status=line.status,
        )
        self._fill(bodies, exchange, outcome)
        self._bodies.write(encode(bodies))

    def _fill(self, line: RequestLine | BodiesLine, exchange: Exchange, outcome: Outcome) -> None:
        """What was asked and answered, and what a backend said about its failure, which may repeat it."""
        limit = self._config.max_body_bytes
        line.request_body = request_text(exchange.body, self._redactor, limit)
        tap = exchange.state.get(STATE)
        if tap is not None:
            line.response_text = self._redactor.prefix(tap.text(), limit)
        if outcome.error is not None and outcome.error.evidence:
            line.error_evidence = self._redactor.prefix(outcome.error.evidence, TEXT_LIMIT)

    @contextlib.contextmanager
    def _adopted(self) -> Iterator[None]:
        """Let the standard library's loggers write to us, and give them back as they were."""
        handler = _Handler(self._writer)
        handler.setFormatter(self._formatter())
        for name in ADOPTED:
            logger = logging.getLogger(name)
            handler.found[name] = _found(name, logger)
            logger.handlers[:] = [handler]
            logger.propagate = False
            logger.setLevel(self._level)
        try:
            yield
        finally:
            for name, (handlers, level, propagate) in handler.found.items():
                logger = logging.getLogger(name)
                if logger.handlers == [handler]:  # else a gateway that has taken over writes there
                    logger.handlers[:] = handlers
                    logger.propagate = propagate
                    logger.setLevel(level)

    def _formatter(self) -> logging.Formatter:
        return structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name, _stamp],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                self._redacted,
                self._render,
            ],
        )

    def _redacted(self, logger: Any, name: str, fields: Fields) -> Fields:
        for key, value in fields.items():
            if isinstance(value, str):
                fields[key] = self._redactor.prefix(value, MESSAGE_LIMIT)
        return fields

    def _own_line(self, message: str, **fields: object) -> str:
        return self._render(None, "warning", _own(message, fields))

    def _own_json_line(self, message: str, **fields: object) -> str:
        return as_json(None, "warning", _own(message, fields))

    def _complain(self, line: bytes) -> None:
        """What is wrong with the file of bodies is said in the log."""
        fields = msgspec.json.decode(line)
        self._writer.write_text(self._render(None, "warning", fields))


def _own(message: str, fields: dict[str, object]) -> Fields:
    """A message of our own."""
    return _stamp(None, "warning", {"level": "warning", "event": message, "logger": "headrace.logs", **fields})


def _found(name: str, logger: logging.Logger) -> tuple[list[logging.Handler], int, bool]:
    """How a logger was before any of us: one whom we take over from knows it."""
    for handler in logger.handlers:
        if isinstance(handler, _Handler):
            return handler.found[name]
    return logger.handlers[:], logger.level, logger.propagate


def _sinks(config: LogsConfig, state_dir: Path) -> tuple[Sink, Sink | None]:
    """Where lines go, and where bodies go. Raises PluginError, and nothing is open then."""
    sink = _sink(config, state_dir)
    if config.bodies_file is None:
        return sink, None
    try:
        return sink, _bodies_sink(config, config.bodies_file, state_dir)
    except PluginError:
        sink.close()
        raise


def _sink(config: LogsConfig, state_dir: Path) -> Sink:
    if config.path is None:
        return StderrSink()
    path = state_dir / Path(config.path).expanduser()
    with refusal("path", path):
        return FileSink(path)


def _bodies_sink(config: LogsConfig, file: str, state_dir: Path) -> Sink:
    path = state_dir / Path(file).expanduser()
    with refusal("bodies_file", path):
        return RotatingSink(path, config.bodies_file_bytes, config.bodies_files)


@contextlib.contextmanager
def refusal(key: str, path: Path) -> Iterator[None]:
    """What is said at the start if a file cannot be written. Raises PluginError."""
    try:
        yield
    except OSError as error:
        raise PluginError(
            "logs", f"{key}: cannot write {path}: {error.strerror}; change it or its permissions"
        ) from error


class _Handler(logging.Handler):
    """Formats a record where it was logged and hands the line over."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self.found: dict[str, tuple[list[logging.Handler], int, bool]] = {}
        """How each logger was before."""
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.write_text(self.format(record))
        except Exception:
            self.handleError(record)
