"""Regular expressions of the operator's own: compiled, and refused if they could hold up the gateway.

Python's `re` cannot be interrupted, and runs while requests wait. So every repetition of a pattern is tried on texts
that nearly match it, short ones first: a time that grows beyond all bounds shows there.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Iterator
from typing import Any

MOST_CHARACTERS = 1000
"""Of one pattern."""

LONGEST_PROBE = 2000
"""Characters. In the square of it is a few milliseconds, in its cube half a minute."""

PROBE_SECONDS = 0.05
"""CPU time for one probe."""

MOST_PROBES = 64
_NO_CHARACTER = "\x00"


def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern that may be used on any text.

    Raises:
        ValueError: it is no regular expression, matches nothing but nothing, or takes too long.
    """
    if len(pattern) > MOST_CHARACTERS:
        raise ValueError(f"a pattern has {len(pattern)} characters; {MOST_CHARACTERS} are allowed")
    try:
        made = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    if made.search("") is not None:
        raise ValueError(f"{pattern!r} matches the empty text, and so everything: make it narrower")
    if any(_takes_long(made, before, again) for before, again in _probes(pattern)):
        raise ValueError(
            f"{pattern!r} can take for ever (a repetition within a repetition, or several in a row, that match the "
            "same text): write it so that a text can match in one way only"
        )
    return made


def _takes_long(pattern: re.Pattern[str], before: str, again: str) -> bool:
    """Tried twice where it does, for the machine may have been busy."""
    count = 4
    while count * len(again) <= LONGEST_PROBE:
        text = before + again * count + _NO_CHARACTER
        if _seconds(pattern, text) > PROBE_SECONDS and _seconds(pattern, text) > PROBE_SECONDS:
            return True
        count += max(1, count // 4) if count > 32 else 1
    return False


def _seconds(pattern: re.Pattern[str], text: str) -> float:
    started = time.thread_time()
    pattern.search(text)
    return time.thread_time() - started


def _probes(pattern: str) -> Iterator[tuple[str, str]]:
    """For every repetition in a pattern: a text that leads to it, and one that it repeats."""
    try:
        parser = importlib.import_module("re._parser")
    except ImportError:  # another Python than those we know
        return
    found = dict.fromkeys(_repeats(parser.parse(pattern), ""))
    yield from list(found)[:MOST_PROBES]


def _repeats(items: Any, before: str) -> Iterator[tuple[str, str]]:
    for item in items:
        name, value = str(item[0]), item[1]
        if name.endswith("REPEAT"):
            body = value[2]
            if int(value[1]) > 3:
                yield from ((before, again) for again in (_sample(body), _sample(body, 0)) if again)
            yield from _repeats(body, before)
        elif name == "SUBPATTERN":
            yield from _repeats(value[-1], before)
        elif name == "ATOMIC_GROUP":
            yield from _repeats(value, before)
        elif name in ("ASSERT", "ASSERT_NOT"):
            yield from _repeats(value[1], before)
        elif name in ("BRANCH", "GROUPREF_EXISTS"):
            for branch in value[1] if name == "BRANCH" else value[1:]:
                yield from _repeats(branch or (), before)
        before += _sample([item])


def _sample(items: Any, least: int = 1) -> str:
    """A text that these parts of a pattern match, more or less. `least`: how often what may be left out is in it."""
    return "".join(_sample_of(str(name), value, least) for name, value in items)[:LONGEST_PROBE]


def _sample_of(name: str, value: Any, least: int) -> str:
    match name:
        case "LITERAL":
            return chr(value)
        case "NOT_LITERAL":
            return "b" if value == ord("a") else "a"
        case "ANY":
            return "a"
        case "IN":
            return _member(value)
        case "SUBPATTERN":
            return _sample(value[-1], least)
        case "ATOMIC_GROUP":
            return _sample(value, least)
        case "BRANCH":
            return max((_sample(branch, least) for branch in value[1]), key=len)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            return _sample(value[2], least) * min(max(int(value[0]), least), 100)
    return ""  # an anchor, a look ahead or behind, a reference


_CATEGORIES = {"CATEGORY_DIGIT": "0", "CATEGORY_SPACE": " ", "CATEGORY_NOT_WORD": "-"}


def _member(members: Any) -> str:
    """A character of a class."""
    name, value = str(members[0][0]), members[0][1]
    if name == "NEGATE":
        taken = [str(value) for kind, value in members[1:]]
        return next(each for each in "a0 -" if str(ord(each)) not in taken)
    if name == "RANGE":
        return chr(value[0])
    if name == "CATEGORY":
        return _CATEGORIES.get(str(value), "a")
    return chr(value)
