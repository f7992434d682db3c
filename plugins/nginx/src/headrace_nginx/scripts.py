"""What nginx's script engine runs."""

from __future__ import annotations

from importlib import resources

import msgspec

from headrace.delivery import BROKEN, UNFINISHED, Cut
from headrace.dialects import OPENAI
from headrace.vetting import FAILED, malformed


def ending_events() -> tuple[str, str, str, str]:
    """The events that end a stream: one that the backend broke off, one that it did not finish, one in which it told
    of an error, and one in which it said what is no JSON."""
    broken, unfinished, failed, unreadable = (
        OPENAI.error_event(Cut(f"The answer is incomplete. {why}")).decode()
        for why in (BROKEN, UNFINISHED, FAILED, malformed(b"").message)
    )
    return broken, unfinished, failed, unreadable


def replies_script() -> str:
    """The njs script that edits requests and watches replies, with the events that end a cut stream."""
    broken, unfinished, failed, _ = (msgspec.json.encode(event).decode() for event in ending_events())
    text = resources.files(__package__).joinpath("replies.js").read_text("utf-8")
    return f"const BROKEN = {broken}, UNFINISHED = {unfinished}, FAILED = {failed};\n{text}"


def keys_script() -> str:
    """The njs script that hashes keys."""
    return resources.files(__package__).joinpath("throttle.js").read_text("utf-8")
