"""What nginx's script engine runs."""

from __future__ import annotations

from importlib import resources

import msgspec

from headrace.delivery import BROKEN, UNFINISHED, Cut
from headrace.dialects import OPENAI, Dialect
from headrace.vetting import FAILED, malformed


def ending_events(dialect: Dialect = OPENAI, request_id: str | None = None) -> tuple[str, str, str, str]:
    """The events that end a stream: one that the backend broke off, one that it did not finish, one in which it told
    of an error, and one in which it said what is no JSON."""

    def event(why: str) -> str:
        cut = Cut(f"The answer is incomplete. {why}")
        cut.request_id = request_id
        return dialect.error_event(cut).decode()

    return event(BROKEN), event(UNFINISHED), event(FAILED), event(malformed(b"").message)


def replies_script() -> str:
    """The njs script that edits requests and watches replies, with the events that end a cut stream."""
    broken, unfinished, failed, _ = (msgspec.json.encode(event).decode() for event in ending_events())
    text = resources.files(__package__).joinpath("replies.js").read_text("utf-8")
    return f"const BROKEN = {broken}, UNFINISHED = {unfinished}, FAILED = {failed};\n{text}"


def keys_script() -> str:
    """The njs script that hashes keys."""
    return resources.files(__package__).joinpath("throttle.js").read_text("utf-8")
