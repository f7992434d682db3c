"""One event is one line, whatever its fields hold."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace_logs.rendering import as_json, renderer

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NASTY = "a\nb\r\nc\x1b[31m\x00\x08\x7f\x9b2J\u2028\u2029\u202e\ufeff\ud800 end"


def fields(**more: object) -> dict[str, Any]:
    return {"event": "request", "level": "info", "timestamp": "2026-11-21T03:42:18.123456Z", **more}


def test_timestamp_level_and_event_come_first() -> None:
    assert list(json.loads(as_json(None, "", {"a": 1, **fields()}))) == ["timestamp", "level", "event", "a"]


def test_json_has_no_control_characters_and_keeps_the_value() -> None:
    line = as_json(None, "", fields(value=NASTY, **{"name\n": "x\x85y"}))
    assert line.isprintable()
    assert json.loads(line)["value"] == NASTY
    assert json.loads(line)["name\n"] == "x\x85y"


def test_text_beyond_ascii_stays_readable() -> None:
    assert "größer 漢字 🌊" in as_json(None, "", fields(value="größer 漢字 🌊"))


def test_a_console_line_shows_control_characters_instead_of_obeying_them() -> None:
    line = renderer("console")(None, "info", fields(value=NASTY))
    assert line.isprintable()
    assert "\\x1b[31m" in line


def test_a_traceback_at_the_console_is_indented_so_that_no_line_of_it_looks_like_an_event() -> None:
    line = renderer("console")(None, "info", fields(exception="Traceback\n  x\nValueError: \x1b[31m fake\nline"))
    first, *rest = line.split("\n")
    assert "request" in first
    assert all(each.startswith("    ") and each.isprintable() for each in rest)


def test_values_json_does_not_know_are_written_as_text() -> None:
    assert json.loads(as_json(None, "", fields(value=logging)))["value"] == str(logging)


@pytest.mark.parametrize("number", [2**70, -(2**70)])
def test_numbers_of_any_size_are_written(number: int) -> None:
    assert json.loads(as_json(None, "", fields(value=number)))["value"] == number


@unhurried
@given(st.dictionaries(st.text(), st.text(st.characters()) | st.integers() | st.booleans() | st.none()))
def test_any_fields_make_one_valid_line(values: dict[str, str | int | bool | None]) -> None:
    line = as_json(None, "", fields(**{f"x{name}": value for name, value in values.items()}))
    assert len(line.splitlines()) == 1
    assert {name: value for name, value in json.loads(line).items() if name.startswith("x")} == {
        f"x{name}": value for name, value in values.items()
    }
