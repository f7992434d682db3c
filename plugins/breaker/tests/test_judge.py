"""What the end of a try says of the backend."""

from __future__ import annotations

import email.utils
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.delivery import Cut
from headrace.errors import Forbidden, GatewayError, PluginFault, RateLimited, Unavailable, UpstreamError
from headrace.errors import UpstreamTimeout as TooLate
from headrace.exchange import Outcome, Reply, Target
from headrace.verdict import Failure, as_error, check
from headrace_breaker.judge import Verdict, asked_pause, judge

GOOD, BAD, BUSY, NOTHING, KEY = Verdict.GOOD, Verdict.BAD, Verdict.BUSY, Verdict.NOTHING, Verdict.REFUSES_KEY
TARGET = Target(name="gpu", provider="openai", base_url="http://127.0.0.1")
ATTEMPT: Any = SimpleNamespace(model=SimpleNamespace(total=10.0))


def verdict(error: GatewayError | None = None, *, status: int = 502, **fields: Any) -> Verdict:
    return judge(ATTEMPT, Outcome(status=status, error=error, **{"completed": False, **fields}))


def error_of(status: int, body: bytes = b"{}") -> GatewayError:
    """What the core makes of a backend's answer."""
    with pytest.raises(GatewayError) as raised:
        check(Reply(status, [], content=body), TARGET)
    return raised.value


def cut(cause: BaseException | None) -> Cut:
    error = Cut("The answer is incomplete.")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, KEY), (403, KEY), (407, KEY), (408, BAD), (429, BUSY), (500, BAD), (502, BAD), (503, BAD), (599, BAD)],
)
@pytest.mark.parametrize("delivery", ["inline", "offload"])
def test_errors_of_a_backend(status: int, expected: Verdict, delivery: str) -> None:
    by_nginx = as_error(Failure(status, connected=True, answered=True), TARGET)
    assert verdict(error_of(status) if delivery == "inline" else by_nginx) is expected


@pytest.mark.parametrize(
    "failure",
    [
        Failure(502, connected=False, answered=False),
        Failure(502, connected=True, answered=False),
        Failure(504, connected=True, answered=False),
    ],
)
def test_a_backend_that_cannot_be_reached_breaks_off_or_is_silent_has_failed(failure: Failure) -> None:
    assert verdict(as_error(failure, TARGET)) is BAD


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
def test_an_error_that_is_the_callers_says_nothing(status: int) -> None:
    assert verdict(status=status, completed=True) is NOTHING


def test_a_page_in_place_of_an_error_says_nothing() -> None:
    assert verdict(error_of(413, b"<html>too large</html>")) is NOTHING


@pytest.mark.parametrize(("status", "expected"), [(500, BAD), (408, BAD), (429, BUSY)])
def test_an_error_that_a_provider_lets_pass_counts_as_what_it_is(status: int, expected: Verdict) -> None:
    assert verdict(status=status, completed=True) is expected


def test_a_whole_answer_is_a_good_one() -> None:
    assert verdict(status=200, completed=True) is GOOD


@pytest.mark.parametrize("error", [None, UpstreamError("x"), Cut("x"), error_of(429)])
def test_a_client_that_left_says_nothing(error: GatewayError | None) -> None:
    assert verdict(error, aborted=True) is NOTHING


@pytest.mark.parametrize(
    "error",
    [
        PluginFault("mine", "prepare_attempt", ValueError()),
        Forbidden("no"),
        RateLimited("of the gateway's own"),
        Unavailable("full", code="overloaded"),
        Unavailable("left out", code="circuit_open"),
        Unavailable("bye", code="shutting_down"),
    ],
)
def test_what_the_gateway_refuses_or_gets_wrong_says_nothing(error: GatewayError) -> None:
    assert verdict(error) is NOTHING


@pytest.mark.parametrize("cause", [None, UpstreamError("It broke."), TooLate("It is silent.")])
def test_a_stream_that_is_cut_is_a_failure(cause: BaseException | None) -> None:
    assert verdict(cut(cause), status=200) is BAD


@pytest.mark.parametrize("cause", [ValueError("a plugin's"), Forbidden("a guard's")])
def test_a_stream_that_a_plugin_cuts_says_nothing(cause: BaseException) -> None:
    assert verdict(cut(cause), status=200) is NOTHING


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"duration_seconds": 9.0}, BAD),
        ({"duration_seconds": 2.0}, NOTHING),
        ({"duration_seconds": 9.0, "ttft_seconds": 1.0}, NOTHING),
    ],
)
def test_a_deadline_counts_if_the_backend_had_most_of_it_and_was_silent(
    fields: dict[str, float], expected: Verdict
) -> None:
    assert verdict(TooLate("late", code="deadline_exceeded"), status=504, **fields) is expected


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7), ("0.5", 0.5), ("0", 0), ("-3", 0), ("nan", 0), ("inf", 0), ("soon", 0), ("", 0)]
)
def test_seconds_of_retry_after(value: str, seconds: float) -> None:
    assert asked_pause(RateLimited("x", headers={"Retry-After": value})) == seconds


def test_a_date_of_retry_after() -> None:
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 90 < asked_pause(RateLimited("x", headers={"Retry-After": date})) <= 100


@settings(deadline=None)
@given(st.text() | st.from_regex(r"\A[A-Z][a-z]{2}, [0-9]{1,5} [A-Z][a-z]{2} [0-9:+ -]{0,30}\Z"))
def test_whatever_stands_in_retry_after_is_no_less_than_nothing(value: str) -> None:
    assert asked_pause(RateLimited("x", headers={"Retry-After": value})) >= 0


def test_without_an_error_nothing_is_asked_for() -> None:
    assert asked_pause(None) == 0
