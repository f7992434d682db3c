"""Regular expressions of the operator's own: which are accepted, and which could hold up the gateway."""

from __future__ import annotations

import re
import time

import pytest

from headrace.expressions import MOST_CHARACTERS, compiled


@pytest.mark.parametrize(
    "pattern",
    [
        r"\bACME-\d{6}\b",
        "swordfish",
        r"(?i)project[ _-](?:blue|green)\w*",
        r"\b[A-Z]{2}\d{6}[A-D]\b",
        r"(?:[a-z]+\.)+corp\.example",
        r"(?<=patient: )\S+",
        r"'[^']*'",
        r"(\w)\1{5,}",
        r"(?>a+)b|c++",
        r"x(?:ab|cd)+y",
        r"\w+@corp",
        r"(?<!x)(?!-)\d{4}(?P<rest>-\d{2})?",
    ],
)
def test_a_pattern_that_takes_no_time_is_accepted(pattern: str) -> None:
    assert isinstance(compiled(pattern), re.Pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"(?:\w+\s?)+!",
        r"([a-z]*)*x",
        r"(a|aa)+b",
        r"(?:ab|abab)*!",
        r"id: (\d+,?)+;",
        r"(?:x[^/]*/?)*#",
        r".*.*.*.*z",
        r"\d+\d+\d+\d+x",
        r"((a{1,50}){1,50}){1,50}b",
        r"^(([a-z])+.)+[A-Z]([a-z])+$",
        r"x(?=(b+)+$)",
        r"(<)?(?(1)(c+)+>|d)!",
    ],
)
def test_a_pattern_that_can_take_for_ever_is_refused_within_seconds(pattern: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match="can take for ever"):
        compiled(pattern)
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(", "is not a regular expression"),
        ("a{99999999999}", "is not a regular expression"),
        ("x*", "matches the empty text"),
        ("x" * (MOST_CHARACTERS + 1), "are allowed"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused_with_the_reason(pattern: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compiled(pattern)
