"""One line in the log for every change of a key: who did what to which one. Never a secret."""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from .files import open_private

logger = logging.getLogger("headrace.keys.audit")

FILE = "keys-audit.log"
"""In the state directory: commands run beside the gateway and have no log of its own to write to."""


def note(who: str, what: str) -> None:
    """Write the line. A warning, so that it is in every log: what is rare and matters."""
    logger.warning("%s %s", who, what)


def operator() -> str:
    """Who runs this command, as the operating system knows them."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid {os.getuid()}"
    behind = os.environ.get("SUDO_USER", "")
    return f"command line, {name}" + (f" for {behind}" if behind.isidentifier() else "")


@contextlib.contextmanager
def to_file(state_dir: Path) -> Iterator[None]:
    """While a command runs, its lines go to a file in the state directory, readable by its owner only.

    Raises:
        PluginError: it cannot be written, and then nothing is changed either.
    """
    handler = logging.StreamHandler(open_private(state_dir / FILE))
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    propagates = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = propagates
        logger.removeHandler(handler)
        handler.close()
        handler.stream.close()
