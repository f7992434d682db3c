"""What administrators do, one JSON object a line, on disk before anybody hears that it is done."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from .fields import TEXT_LIMIT
from .redaction import Redactor
from .rendering import Clock, encode

if TYPE_CHECKING:
    from headrace.audit import Act
    from headrace.gateway import Gateway

    from .config import LogsConfig

logger = logging.getLogger("headrace.logs")

REFUSALS_A_MINUTE = 60
"""That are written; of more only how many there were: else a caller who may do nothing could fill the disk."""


class AuditLine(
    msgspec.Struct,
    kw_only=True,
    omit_defaults=True,
    rename={
        "user": "user.id",
        "user_name": "user.name",
        "client": "client.address",
        "status": "http.response.status_code",
        "message": "error.message",
    },
):
    """An act as the file has it; what does not apply is left out."""

    timestamp: str
    event: str
    action: str
    about: str | None = None
    by: str
    user: str | None = None
    user_name: str | None = None
    client: str | None = None
    result: str
    status: int | None = None
    exit_status: int | None = None
    detail: str | None = None
    message: str | None = None
    request_id: str | None = None
    worker: int | None = None
    refusals_left_out: int | None = None


class AuditFile:
    """Appends acts to a file, which is opened for each: it may be moved away at any time.

    Raises nothing when the file cannot be written: the act is done by then, and is told in the gateway's log instead.
    """

    def __init__(self, config: LogsConfig, gateway: Gateway) -> None:
        self.reads = config.audit_reads
        self.path = gateway.state_dir / Path(config.audit_file or "").expanduser()
        self._gateway = gateway
        self._redactor = Redactor(config.redact, config.personal)
        self._clock = Clock()
        self._lock = threading.Lock()
        self._minute = 0
        self._refusals = 0
        self._left_out = 0

    def check(self) -> None:
        """Raises OSError: the file cannot be written."""
        os.close(self._open())

    def note(self, act: Act) -> None:
        """See `headrace.audit.Auditor`."""
        with self._lock:
            if act.result == "refused" and not self._has_room():
                self._left_out += 1
                return
            line = encode(self._line(act))
            self._left_out = 0
            try:
                self._append(line + b"\n")
            except OSError as error:
                logger.error("%s cannot be written (%s), so this act is told here: %s", self.path, error, line.decode())

    def _has_room(self) -> bool:
        minute = int(time.monotonic() // 60)
        if minute != self._minute:
            self._minute, self._refusals = minute, 0
        self._refusals += 1
        return self._refusals <= REFUSALS_A_MINUTE

    def _line(self, act: Act) -> AuditLine:
        text, config = self._redactor.prefix, self._gateway.config.server
        message = text(act.message, TEXT_LIMIT) or None
        return AuditLine(
            timestamp=self._clock.now(),
            event="audit",
            action=act.action,
            about=text(act.about, TEXT_LIMIT) or None,
            by=act.by,
            user=self._redactor.secrets(act.id) or None,
            user_name=self._redactor.secrets(act.name) or None,
            client=self._redactor.text(act.client) or None,
            result=act.result,
            status=act.status if act.by == "api" else None,
            exit_status=act.status if act.by == "command" else None,
            detail=message if act.result == "done" else None,
            message=message if act.result != "done" else None,
            request_id=act.request_id and self._redactor.text(act.request_id),
            worker=self._gateway.worker if config.workers > 1 and act.by != "command" else None,
            refusals_left_out=self._left_out or None,
        )

    def _append(self, line: bytes) -> None:
        descriptor = self._open()
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # a disk was full
            data = b"\n" * torn + line
            if os.write(descriptor, data) != len(data):
                raise OSError("there is no room for a whole line")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            return self._made()

    def _made(self) -> int:
        """A new file, for its owner alone; where root makes it, that is the directory's owner: the gateway's user."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.geteuid() == 0:
                owner = os.fstat(folder)
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            os.fsync(folder)
        except BaseException:
            os.close(descriptor)
            raise
        finally:
            os.close(folder)
        return descriptor
