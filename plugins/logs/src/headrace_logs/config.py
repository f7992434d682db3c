"""`[plugins.logs]`: what may be configured."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from headrace.config import Count, Positive, Strict

Personal = Literal["emails", "cards", "ibans", "addresses"]
"""What is replaced beside secrets, if it is wanted."""
USUAL: tuple[Personal, ...] = ("emails", "cards", "ibans")

MOST_BYTES_A_CHARACTER = 6
"""That a character of a body takes in a file at most: as `\\u2028`."""
REST_OF_A_LINE = 65_536
"""Bytes that a line of bodies takes beside them, at most."""


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
    sample: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """Share of the answered requests whose line is written, 0.1 for one in ten. The request's id decides, the same way
    in every worker. Lines above `info` are always written, and those of `slow_seconds`."""
    slow_seconds: Positive | None = None
    """With `sample`: requests that took at least so long are always written."""
    fields: tuple[str, ...] | None = None
    """Only these fields of a request's line, by their names in it; `timestamp`, `level` and `event` always are."""
    drop: tuple[str, ...] = ()
    """All fields of a request's line but these."""
    usage: bool = True
    """Log token counts. Backends are then asked for them in streams whose client did not ask, and nginx has to look at
    the end of what it delivers; without, a stream costs a little less."""
    personal: tuple[Personal, ...] = USUAL
    """What is replaced by `[redacted]` beside keys, tokens and passwords, which always are: `emails`, `cards` (card
    numbers), `ibans`, `addresses` (IP addresses, the client's as well)."""
    redact: tuple[str, ...] = ()
    """More regular expressions (Python's `re`) whose matches are replaced by `[redacted]`."""
    bodies: bool = False
    """Also log what was asked and answered, with secrets redacted. Replies are then delivered by the core itself."""
    max_body_bytes: Count = 16_384
    """With `bodies`: how much of a request's body, and of an answer's text, is kept (in characters)."""
    bodies_file: str | None = None
    """With `bodies`: write what was asked and answered to this file instead of into the line; a relative path is below
    `server.state_dir`. It is readable for its owner alone, and all workers share it."""
    bodies_file_bytes: Annotated[int, msgspec.Meta(ge=131_072)] = 67_108_864
    """Before the file would be larger than this it becomes `FILE.1`, what was `FILE.1` becomes `FILE.2`, and so on."""
    bodies_files: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    """How many files are kept, the one that is written included: no more disk than so many times
    `bodies_file_bytes` is used."""
    bodies_of: Literal["both", "requests"] = "both"
    """With `bodies`: `requests` leaves the answers out, and nginx may deliver them."""
    bodies_models: tuple[str, ...] | None = None
    """With `bodies`: only of requests for these models, by their names in `[models.NAME]`."""
    bodies_users: tuple[str, ...] | None = None
    """With `bodies`: only of these callers, by the id, the name or the team of their key."""
    audit_file: str | None = None
    """Append what administrators do to this file: one JSON object for each act, on disk before its answer is out. A
    relative path is below `server.state_dir`."""
    audit_reads: bool = False
    """With `audit_file`: also what they look at."""
    buffer_bytes: Annotated[int, msgspec.Meta(ge=65_536)] = 8_388_608
    """Lines that wait for a slow disk or terminal may take this much memory; beyond it lines are dropped, counted,
    and the count is logged."""

    def __post_init__(self) -> None:
        for name in ("path", "bodies_file", "audit_file"):
            _check_path(name, getattr(self, name))
        files = [each for each in (self.path, self.bodies_file, self.audit_file) if each is not None]
        if len(set(files)) < len(files):
            raise ValueError("path, bodies_file and audit_file: each needs a file of its own")
        _check_fields(self)
        _check_bodies(self)
        if self.audit_reads and self.audit_file is None:
            raise ValueError("audit_reads: has no effect without audit_file")
        if self.slow_seconds is not None and self.sample == 1:
            raise ValueError("slow_seconds: has no effect without sample, for then every line is written")
        _check_patterns(self.redact)


def _check_path(name: str, path: str | None) -> None:
    if path is not None and not path.strip():
        otherwise = "log to standard error" if name == "path" else "write no such file"
        raise ValueError(f"{name}: is empty; leave it out to {otherwise}")


def _check_patterns(patterns: tuple[str, ...]) -> None:
    from headrace.expressions import compiled

    for pattern in patterns:
        try:
            compiled(pattern)
        except ValueError as error:
            raise ValueError(f"redact: {error}") from error


def _check_fields(config: LogsConfig) -> None:
    if config.fields is None and not config.drop:
        return
    from .fields import ALWAYS, NAMES

    if config.fields is not None and config.drop:
        raise ValueError("drop: give either fields or drop")
    for key, names in (("fields", config.fields or ()), ("drop", config.drop)):
        unknown = [name for name in names if name not in NAMES]
        if unknown:
            raise ValueError(f"{key}: there is no field {unknown[0]!r}; there are {', '.join(sorted(NAMES))}")
    kept = [name for name in config.drop if name in ALWAYS]
    if kept:
        raise ValueError(f"drop: every line has {kept[0]!r}")


def _check_bodies(config: LogsConfig) -> None:
    given = [
        name
        for name in ("bodies_file", "bodies_file_bytes", "bodies_files", "bodies_of", "bodies_models", "bodies_users")
        if getattr(config, name) != LogsConfig.__struct_defaults__[LogsConfig.__struct_fields__.index(name)]
    ]
    if given and not config.bodies:
        raise ValueError(f"{given[0]}: has no effect without bodies = true")
    if config.bodies and config.bodies_file is None and {"bodies_file_bytes", "bodies_files"} & set(given):
        raise ValueError(f"{given[0]}: has no effect without bodies_file")
    longest = 2 * MOST_BYTES_A_CHARACTER * config.max_body_bytes + REST_OF_A_LINE
    if config.bodies_file is not None and longest > config.bodies_file_bytes:
        raise ValueError(f"bodies_file_bytes: one line may take {longest} bytes with this max_body_bytes")
