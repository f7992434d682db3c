"""Streams that break after their first byte: an honest end, or somebody who goes on where it broke."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from .fault_fleet import WAYS, Fleet, fleet
from .fault_words import ARGUMENTS, TEXT, tokens
from .faults import Answer, Fail

RETRY = "retry = { backoff = 0.02, max_backoff = 0.05, budget = 100 }"
MODELS = f"""
pair = {{ targets = ["a", "b"], {RETRY} }}
pair-hurried = {{ targets = ["a-hurried", "b"], {RETRY} }}
prompt = {{ targets = ["a", "b"], {RETRY}, deadlines = {{ first_token = 1 }} }}
brief = {{ targets = ["a", "b"], {RETRY}, deadlines = {{ total = 0.8 }} }}
twice = {{ targets = ["a", "b"], {RETRY}, deadlines = {{ first_byte = 0.7, total = 1.2 }} }}
"""
CUTS = ("close", "reset", "no end", "silence", "half", "error")
"""How a stream may end that is not whole."""
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CORE = pytest.mark.parametrize("running", ["inline", "offload"], indirect=True)
"""Of answers that the core delivers in any case: how nginx would look at them is of no matter."""
STREAMS = pytest.mark.parametrize("stream", [False, True])


def hurried(then: str) -> str:
    """The model to ask: that with deadlines if silence is to be noticed."""
    return "pair-hurried" if then == "silence" else "pair"


@pytest.fixture(scope="module", params=WAYS)
def running(own_stack: Any, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with fleet(own_stack, request.param, MODELS, names="ab") as made:
        yield made


@pytest.fixture(autouse=True)
def afresh(running: Fleet) -> None:
    running.reset()


@pytest.mark.parametrize("then", CUTS)
def test_a_stream_that_breaks_keeps_what_came_and_ends_with_an_error(running: Fleet, then: Any) -> None:
    running["a"].default = Answer(cut=3, then=then, pause=0.01)
    got = running.ask(hurried(then), stream=True)
    assert (got.text, got.model, got.finish) == ("".join(tokens(TEXT)[:3]), "a-large", None)
    assert (got.status, got.code) == (200, "stream_truncated")
    assert running.asked() == {"a": 1}
    assert got.seconds < 3


@pytest.mark.parametrize("then", [each for each in CUTS if each != "silence"])
def test_the_last_event_of_a_stream_that_breaks_is_our_error(running: Fleet, then: Any) -> None:
    running["a"].default = Answer(cut=3, then=then, pause=0.01)
    answer, _ = running.ask_raw("pair", stream=True)
    assert (answer.status, answer.whole) == (200, True)
    assert json.loads(answer.events[-1])["error"]["code"] == "stream_truncated"


@pytest.mark.parametrize("then", [each for each in CUTS if each != "silence"])
def test_the_log_calls_it_cut_and_reckons_what_came(running: Fleet, then: Any) -> None:
    running["a"].default = Answer(cut=20, then=then, pause=0.005)
    _, line = running.ask_raw("pair", stream=True)
    assert (line["completed"], line["error.code"], line["target"]) == (False, "stream_truncated", "a")
    assert line["delivery"] == running.stack.delivery
    assert line["usage_estimated"] is True
    assert 15 <= line["gen_ai.usage.output_tokens"] <= 23


def test_a_stream_without_its_last_marker_is_whole(running: Fleet) -> None:
    running["a"].default = Answer(then="no [DONE]")
    got = running.ask("pair", stream=True)
    assert (got.error, got.text, got.finish) == (None, TEXT, "stop")
    assert running.ask_raw("pair", stream=True)[1]["completed"] is True


def test_a_malformed_event_ends_a_stream_or_passes_as_it_came_and_the_others_with_it(running: Fleet) -> None:
    """Nobody reads what passes where nginx looks for the end by script."""
    running["a"].default = Answer(cut=3, then="malformed", pause=0.005)
    answer, _ = running.ask_raw("pair", stream=True)
    assert answer.whole
    if running.way != "offload":
        assert json.loads(answer.events[-1])["error"]["code"] == "stream_truncated"
        assert len(answer.events) == 5  # the role, three words, the error
    else:
        assert [each[:2] for each in answer.events].count('}"') == 1
        assert (len(answer.events), answer.events[-1]) == (len(tokens(TEXT)) + 3, "[DONE]")


@pytest.mark.parametrize("then", [each for each in CUTS if each != "half"])
def test_a_stream_that_breaks_before_its_role_is_given_whole_or_ends_with_an_error(running: Fleet, then: Any) -> None:
    """Where nginx delivers, the head has passed by then."""
    running["a"].default = Answer(cut=-1, then=then)
    got = running.ask(hurried(then), stream=True)
    if running.stack.delivery == "inline":
        assert (got.error, got.text, got.model) == (None, TEXT, "b-large")
        assert running.asked() == {"a": 1, "b": 1}
    else:
        assert (got.status, got.code, got.text) == (200, "stream_truncated", "")
        assert running.asked() == {"a": 1}


@pytest.mark.parametrize("then", ["close", "reset", "silence"])
def test_a_whole_answer_that_breaks_is_given_by_another_or_never_taken_for_whole(running: Fleet, then: Any) -> None:
    """Where nginx delivers, its beginning has passed by then."""
    running["a"].default = Answer(then=then)
    got = running.ask(hurried(then))
    if running.stack.delivery == "inline":
        assert (got.error, got.text, got.model) == (None, TEXT, "b-large")
        assert running.asked() == {"a": 1, "b": 1}
    else:
        assert (got.status, got.whole) == (0, False)
        assert running.logged(got)["completed"] is False


@CORE
@pytest.mark.parametrize("then", CUTS)
def test_a_stream_that_never_comes_to_a_token_is_given_by_another(running: Fleet, then: Any) -> None:
    running["a"].default = Answer(cut=0, then=then)
    got = running.ask("prompt", stream=True)
    assert (got.error, got.text, got.finish, got.model) == (None, TEXT, "stop", "b-large")
    assert running.asked() == {"a": 1, "b": 1}
    assert [chunk.choices[0].delta.role for chunk in got.chunks].count("assistant") == 1
    assert got.seconds < 3


@CORE
def test_nobody_who_comes_to_a_token_is_a_timeout(running: Fleet) -> None:
    running["a"].default = running["b"].default = Answer(cut=0, then="silence")
    got = running.ask("prompt", stream=True)
    assert (got.status, got.code) == (504, "upstream_timeout")
    assert running.asked() == {"a": 1, "b": 1}


@CORE
def test_a_slow_stream_whose_first_token_is_in_time_is_left_alone(running: Fleet) -> None:
    running["a"].default = Answer(pause=0.03)
    got = running.ask("prompt", stream=True)
    assert (got.error, got.text, got.model) == (None, TEXT, "a-large")
    assert got.seconds > 1


@CORE
def test_a_deadline_for_the_first_token_is_none_for_a_whole_answer(running: Fleet) -> None:
    running["a"].default = Answer(pause=1.2)
    got = running.ask("prompt")
    assert (got.text, got.model) == (TEXT, "a-large")


@CORE
def test_a_stream_ends_at_its_deadline_with_an_error(running: Fleet) -> None:
    running["a"].default = Answer(pause=0.1)
    got = running.ask("brief", stream=True)
    assert got.text and TEXT.startswith(got.text)
    assert (got.status, got.code, got.finish) == (200, "deadline_exceeded", None)
    assert 0.7 < got.seconds < 2.5


@CORE
def test_a_whole_answer_ends_at_its_deadline_and_nobody_else_is_asked(running: Fleet) -> None:
    running["a"].default = Answer(pause=20)
    got = running.ask("brief")
    assert (got.status, got.code) == (504, "deadline_exceeded")
    assert running.asked() == {"a": 1}
    assert 0.7 < got.seconds < 2.5


@CORE
@STREAMS
def test_the_deadline_is_one_for_all_tries_together(running: Fleet, stream: bool) -> None:
    running["a"].default = running["b"].default = Answer(before=20)
    got = running.ask("twice", stream)
    assert (got.status, got.code) == (504, "deadline_exceeded")
    assert running.asked() == {"a": 1, "b": 1}
    assert 1.1 < got.seconds < 3


@STREAMS
def test_a_functions_call_comes_whole_from_another_target(running: Fleet, stream: bool) -> None:
    running["a"].default = Fail(500)
    got = running.ask("pair", stream, tools=TOOLS)
    assert (got.error, json.loads(got.call), got.finish) == (None, json.loads(ARGUMENTS), "tool_calls")
    assert got.model == "b-large"


def test_a_functions_call_that_breaks_ends_with_an_error(running: Fleet) -> None:
    running["a"].default = Answer(cut=3, then="close", pause=0.01)
    got = running.ask("pair", stream=True, tools=TOOLS)
    assert (got.code, got.finish) == ("stream_truncated", None)
    assert got.call and got.call != ARGUMENTS and ARGUMENTS.startswith(got.call)
