"""Backends that fail before their first byte: another gives the whole answer, or there is one clean, bounded error.

How nginx looks at answers, by script or by module, is of no matter here: there are none yet.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import pytest

from .fault_fleet import COUNTED, Fleet, fleet
from .fault_words import TEXT, tokens
from .faults import WRONG_KEY, Answer, Behaviour, Break, Fail, Flapping, Silent, busy

RETRY = "retry = { backoff = 0.02, max_backoff = 0.05, budget = 100 }"
MODELS = f"""
alone = {{ targets = ["a"], {RETRY} }}
alone-hurried = {{ targets = ["a-hurried"], {RETRY} }}
pair = {{ targets = ["a", "b"], {RETRY} }}
pair-hurried = {{ targets = ["a-hurried", "b"], {RETRY} }}
both-hurried = {{ targets = ["a-hurried", "b-hurried"], {RETRY} }}
spare = {{ targets = ["b"] }}
backed = {{ targets = ["a"], fallback_models = ["spare"], {RETRY} }}
many = {{ targets = ["a", "b", "c"], retry = {{ rounds = 5, attempts = 4, backoff = 0.02, budget = 100 }} }}
strict = {{ targets = ["a", "b"], fallback_models = ["last"], retry = {{ budget = 0, budget_floor = 0 }} }}
last = {{ targets = ["c"] }}
poor = {{ targets = ["a"], retry = {{ rounds = 3, backoff = 0.01, budget = 0.2, budget_floor = 2 }} }}
"""
PRICES = """
[plugins.budget.prices]
"pair@a" = { input = 0, output = 0, request = 100 }
"pair@b" = { input = 0, output = 0, request = 1 }
"pair-hurried@a-hurried" = { input = 0, output = 0, request = 100 }
"pair-hurried@b" = { input = 0, output = 0, request = 1 }
backed = { input = 0, output = 0, request = 100 }
spare = { input = 0, output = 0, request = 7 }
"""
FAILURES: dict[str, tuple[Behaviour, int, str, int]] = {
    "429": (busy(), 429, "upstream_rate_limited", 2),
    "429, at once": (busy(0), 429, "upstream_rate_limited", 2),
    "429, some time": (busy("soon"), 429, "upstream_rate_limited", 2),
    "500": (Fail(500), 502, "upstream_error", 2),
    "502": (Fail(502), 502, "upstream_error", 2),
    "503": (Fail(503), 503, "unavailable", 2),
    "529": (Fail(529), 502, "upstream_error", 2),
    "reset": (Break(), 502, "upstream_error", 2),
    "closed": (Break(reset=False), 502, "upstream_error", 2),
    "wrong key": (WRONG_KEY, 502, "upstream_auth", 1),
    "silent": (Silent(), 504, "upstream_timeout", 1),
}
"""What a backend does, what the caller is told if there is no other, and how often it is asked for one request."""
STREAMS = pytest.mark.parametrize("stream", [False, True])
B_USES = (22, len(tokens(TEXT)))
"""Tokens of the backend `b`, for the prompt and for the answer."""


@pytest.fixture(scope="module", params=["inline", "offload"])
def running(own_stack: Any, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with fleet(own_stack, request.param, MODELS, plugins=COUNTED + PRICES) as made:
        yield made


@pytest.fixture(scope="module")
def key(running: Fleet) -> str:
    return running.stack.make_key()


@pytest.fixture(autouse=True)
def afresh(running: Fleet) -> None:
    running.reset()


def hurried(model: str, name: str) -> str:
    """The model's name, of that with deadlines if silence is to be noticed."""
    return f"{model}-hurried" if name == "silent" else model


def used(line: dict[str, Any]) -> tuple[Any, Any]:
    return line.get("gen_ai.usage.input_tokens"), line.get("gen_ai.usage.output_tokens")


@STREAMS
@pytest.mark.parametrize("name", FAILURES)
def test_another_target_gives_the_whole_answer(running: Fleet, name: str, stream: bool) -> None:
    running["a"].default = FAILURES[name][0]
    got = running.ask(hurried("pair", name), stream)
    assert (got.error, got.text, got.finish, got.model) == (None, TEXT, "stop", "b-large")
    assert running.asked() == {"a": 1, "b": 1}


@STREAMS
@pytest.mark.parametrize("name", ["429", "500", "reset", "wrong key"])
def test_a_model_to_fall_back_on_gives_the_whole_answer(running: Fleet, name: str, stream: bool) -> None:
    running["a"].default = FAILURES[name][0]
    got = running.ask("backed", stream)
    assert (got.error, got.text, got.finish, got.model) == (None, TEXT, "stop", "b-large")
    assert running.asked() == {"a": 1, "b": 1}


@STREAMS
@pytest.mark.parametrize("name", ["429", "reset"])
def test_the_log_says_who_answered_and_counts_what_that_one_used(running: Fleet, name: str, stream: bool) -> None:
    running["a"].default = FAILURES[name][0]
    _, line = running.ask_raw(hurried("pair", name), stream)
    assert (line["target"], line["attempts"], line["completed"]) == ("b", 2, True)
    assert (used(line), line.get("usage_estimated", False)) == (B_USES, False)
    assert line["delivery"] == running.stack.delivery


@STREAMS
@pytest.mark.parametrize("name", FAILURES)
def test_without_another_there_is_one_clean_error(running: Fleet, name: str, stream: bool) -> None:
    behaviour, status, code, tries = FAILURES[name]
    running["a"].default = behaviour
    got = running.ask(hurried("alone", name), stream)
    assert (got.status, got.code) == (status, code)
    assert set(got.body) == {"message", "type", "param", "code"}
    assert "own words" not in got.body["message"]
    assert running.asked() == {"a": tries}
    assert got.seconds < 4
    line = running.logged(got)
    assert (line["attempts"], line["completed"], used(line)) == (tries, False, (None, None))


@STREAMS
@pytest.mark.parametrize("name", [name for name, (*_, tries) in FAILURES.items() if tries > 1])
def test_a_target_that_has_recovered_gives_the_whole_answer(running: Fleet, name: str, stream: bool) -> None:
    running["a"].script(FAILURES[name][0])
    got = running.ask(hurried("alone", name), stream)
    assert (got.error, got.text, got.model) == (None, TEXT, "a-large")
    assert running.asked() == {"a": 2}
    assert used(running.logged(got)) == (11, B_USES[1])


@STREAMS
def test_a_target_that_refuses_connections_is_stood_in_for(running: Fleet, stream: bool) -> None:
    running["a"].go_away()
    try:
        got = running.ask("pair", stream)
    finally:
        running["a"].come_back()
    assert (got.text, got.model) == (TEXT, "b-large")
    assert running.ask("pair", stream).model == "a-large"


@STREAMS
def test_nobody_who_can_be_reached_is_503(running: Fleet, stream: bool) -> None:
    running["a"].go_away()
    try:
        got = running.ask("alone", stream)
    finally:
        running["a"].come_back()
    assert (got.status, got.code) == (503, "unavailable")
    assert running.logged(got)["attempts"] == 2


def test_two_targets_that_keep_silent_are_asked_once_each(running: Fleet) -> None:
    running["a"].default = running["b"].default = Silent()
    got = running.ask("both-hurried", stream=True)
    assert (got.status, got.code) == (504, "upstream_timeout")
    assert running.asked() == {"a": 1, "b": 1}


def test_a_target_that_keeps_silent_is_not_asked_again_when_others_are(running: Fleet) -> None:
    running["a"].script(Silent())
    running["b"].script(Fail(500))
    got = running.ask("pair-hurried", stream=True)
    assert (got.text, got.model) == (TEXT, "b-large")
    assert running.asked() == {"a": 1, "b": 2}


@STREAMS
def test_the_tries_of_a_request_are_limited(running: Fleet, stream: bool) -> None:
    for each in "abc":
        running[each].default = Fail(500)
    got = running.ask("many", stream)
    assert (got.status, got.code) == (502, "upstream_error")
    assert running.asked() == {"a": 2, "b": 1, "c": 1}


@STREAMS
def test_a_wrong_key_of_ours_is_never_the_callers(running: Fleet, stream: bool) -> None:
    running["a"].default = running["b"].default = WRONG_KEY
    got = running.ask("pair", stream)
    assert (got.status, got.code) == (502, "upstream_auth")
    assert "sk-up" not in str(got.body)
    assert running.asked() == {"a": 1, "b": 1}


@STREAMS
def test_a_wait_that_is_short_is_waited_for(running: Fleet, stream: bool) -> None:
    running["a"].script(busy(1))
    got = running.ask("alone", stream)
    assert (got.text, got.model) == (TEXT, "a-large")
    first, second = running["a"].requests
    assert 1 <= second.at - first.at < 3


@STREAMS
def test_another_target_is_asked_before_a_wait(running: Fleet, stream: bool) -> None:
    running["a"].script(busy(5))
    got = running.ask("pair", stream)
    assert (got.text, got.model) == (TEXT, "b-large")
    assert got.seconds < 3


@STREAMS
def test_a_wait_that_is_too_long_is_told_at_once(running: Fleet, stream: bool) -> None:
    running["a"].default = busy(30)
    got = running.ask("alone", stream)
    assert (got.status, got.code, got.headers["retry-after"]) == (429, "upstream_rate_limited", "30")
    assert running.asked() == {"a": 1}
    assert got.seconds < 3


@STREAMS
@pytest.mark.parametrize("wait", ["nan", "inf", "-1", "1e400", "0x10", "Fri, 31 Dec 9999 23:59:59 GMT", "Sat, 99 Foo"])
def test_a_wait_that_nobody_can_keep_does_no_harm(running: Fleet, wait: str, stream: bool) -> None:
    running["a"].default = busy(wait)
    got = running.ask("alone", stream)
    assert (got.status, got.code) == (429, "upstream_rate_limited")
    assert got.seconds < 3


def test_a_wait_may_be_told_as_a_date(running: Fleet) -> None:
    running["a"].default = busy(formatdate(time.time() + 30, usegmt=True))
    got = running.ask("alone")
    assert (got.status, running.asked()) == (429, {"a": 1})


def test_whoever_wants_no_wait_is_asked_again_before_whoever_does(running: Fleet) -> None:
    running["a"].script(busy(1))
    running["b"].default = Fail(500)
    got = running.ask("pair", stream=True)
    assert (got.text, got.model) == (TEXT, "a-large")
    assert running.asked() == {"a": 2, "b": 2}


@STREAMS
def test_a_target_that_wants_a_long_wait_is_not_asked_again_when_others_are(running: Fleet, stream: bool) -> None:
    running["a"].default = busy(30)
    running["b"].script(Fail(500))
    got = running.ask("pair", stream)
    assert (got.text, got.model) == (TEXT, "b-large")
    assert running.asked() == {"a": 1, "b": 2}


def test_retries_of_a_fleet_that_always_fails_are_few(running: Fleet) -> None:
    requests = 40
    running["a"].default = Fail(500)
    got = [running.ask("poor", stream=bool(number % 2)) for number in range(requests)]
    assert {each.status for each in got} == {502}
    seconds = running["a"].requests[-1].at - running["a"].requests[0].at
    retries = len(running["a"].requests) - requests
    allowed = 0.2 * requests + 2 * (seconds + 1)
    print(f"{retries} retries of {requests} requests in {seconds:.1f} s, {allowed:.1f} are allowed")
    assert 0 < retries <= allowed


@STREAMS
def test_nobody_who_has_not_failed_yet_is_spared_by_the_retry_budget(running: Fleet, stream: bool) -> None:
    """It is for tries beyond the first walk: whoever has another target has an answer, however many ask."""
    running["a"].default = running["b"].default = Fail(500)
    got = [running.ask("strict", stream) for _ in range(5)]
    assert {(each.status, each.model) for each in got} == {(200, "c-large")}
    assert running.asked() == {"a": 5, "b": 5, "c": 5}


def test_everybody_is_served_while_one_flaps(running: Fleet) -> None:
    running["a"].default = Flapping(bad=Fail(500), good=Answer(), seconds=0.2)
    got = [running.ask("pair", stream=bool(number % 2)) for number in range(40)]
    assert {each.text for each in got} == {TEXT}
    assert len(running["a"].requests) == 40


@STREAMS
@pytest.mark.parametrize("name", ["500", "silent"])
def test_failed_tries_cost_the_caller_nothing(running: Fleet, kit: Any, key: str, name: str, stream: bool) -> None:
    before = running.used(key)
    running["a"].default = FAILURES[name][0]
    assert running.ask(hurried("pair", name), stream, key=key).model == "b-large"
    after = {"tokens_per_day": before["tokens_per_day"] + sum(B_USES), "cost_per_day": before["cost_per_day"] + 1}
    kit.until(lambda: running.used(key) == after, "the settlement")


@STREAMS
def test_a_model_to_fall_back_on_costs_what_it_costs(running: Fleet, kit: Any, key: str, stream: bool) -> None:
    before = running.used(key)["cost_per_day"]
    running["a"].default = Fail(500)
    assert running.ask("backed", stream, key=key).model == "b-large"
    kit.until(lambda: running.used(key)["cost_per_day"] == before + 7, "the settlement")


@STREAMS
def test_a_request_that_fails_costs_the_caller_nothing(running: Fleet, kit: Any, key: str, stream: bool) -> None:
    before = running.used(key)
    running["a"].default = running["b"].default = Fail(500)
    assert running.ask("pair", stream, key=key).status == 502
    kit.until(lambda: running.used(key) == before, "the settlement")
