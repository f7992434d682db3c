"""What a backend will not answer: prompts that are too long, and prompts that a filter refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .fault_fleet import Fleet, fleet
from .fault_words import FILTERED, TEXT, TOO_LONG, tokens
from .faults import Answer, Fail

RETRY = "retry = { backoff = 0.02, max_backoff = 0.05, budget = 100 }"
MODELS = f"""
short = {{ targets = ["a"], context_window_fallbacks = ["long"], fallback_models = ["other"], {RETRY} }}
roomy = {{ targets = ["a"], context_window = 100_000, context_window_fallbacks = ["long"], {RETRY} }}
double = {{ targets = ["a", "b"], context_window_fallbacks = ["long"], {RETRY} }}
plain = {{ targets = ["a"], fallback_models = ["other"], {RETRY} }}
other = {{ targets = ["b"] }}
long = {{ targets = ["c"], {RETRY} }}
"""
WHO_SAYS = pytest.mark.parametrize("who", TOO_LONG)
STREAMS = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture(scope="module", params=["inline", "offload"])
def running(own_stack: Any, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with fleet(own_stack, request.param, MODELS) as made:
        yield made


@pytest.fixture(autouse=True)
def afresh(running: Fleet) -> None:
    running.reset()


@pytest.fixture(scope="module")
def key(running: Fleet) -> str:
    """Of a caller who may use the model `short` alone."""
    return running.stack.make_key("--model", "short")


@STREAMS
@WHO_SAYS
def test_a_prompt_that_is_too_long_is_asked_of_a_larger_model_alone(running: Fleet, who: str, stream: bool) -> None:
    running["a"].default = Fail(400, TOO_LONG[who])
    got = running.ask("short", stream)
    assert (got.error, got.text, got.finish, got.model) == (None, TEXT, "stop", "c-large")
    assert running.asked() == {"a": 1, "c": 1}
    _, line = running.ask_raw("short", stream)
    assert (line["target"], line["attempts"], line["completed"]) == ("c", 2, True)
    assert (line["gen_ai.usage.input_tokens"], line["gen_ai.usage.output_tokens"]) == (33, len(tokens(TEXT)))


@STREAMS
@WHO_SAYS
def test_without_a_larger_model_it_is_the_callers_error(running: Fleet, who: str, stream: bool) -> None:
    running["a"].default = Fail(400, TOO_LONG[who])
    answer, line = running.ask_raw("plain", stream)
    assert (answer.status, answer.json()) == (400, TOO_LONG[who])
    assert running.asked() == {"a": 1}
    assert line["attempts"] == 1


@STREAMS
def test_a_prompt_that_is_too_long_for_all_is_the_callers_error(running: Fleet, stream: bool) -> None:
    running["a"].default = Fail(400, TOO_LONG["vllm"])
    running["c"].default = Fail(400, TOO_LONG["openai"])
    answer, _ = running.ask_raw("short", stream)
    assert (answer.status, answer.json()) == (400, TOO_LONG["openai"])
    assert running.asked() == {"a": 1, "c": 1}


@STREAMS
def test_it_may_be_the_second_target_that_finds_it_too_long(running: Fleet, stream: bool) -> None:
    running["a"].default = Fail(500)
    running["b"].default = Fail(400, TOO_LONG["vllm"])
    got = running.ask("double", stream)
    assert (got.text, got.model) == (TEXT, "c-large")
    assert running.asked() == {"a": 1, "b": 1, "c": 1}


@STREAMS
def test_a_larger_model_that_fails_does_not_lead_back_to_one_that_is_too_small(running: Fleet, stream: bool) -> None:
    running["a"].default = Fail(400, TOO_LONG["vllm"])
    running["b"].default = running["c"].default = Fail(500)
    got = running.ask("short", stream)
    assert (got.status, got.code) == (502, "upstream_error")
    assert running.asked()["a"] == 1
    assert running.asked()["c"] <= 2


@STREAMS
def test_other_errors_are_no_matter_for_a_larger_model(running: Fleet, stream: bool) -> None:
    running["a"].default = running["b"].default = Fail(500)
    got = running.ask("short", stream)
    assert (got.status, got.code) == (502, "upstream_error")
    assert running.asked() == {"a": 2, "b": 2}


@STREAMS
def test_nobody_gets_a_larger_model_that_is_not_for_them(running: Fleet, key: str, stream: bool) -> None:
    running["a"].default = Fail(400, TOO_LONG["vllm"])
    got = running.ask("short", stream, key=key)
    assert (got.status, got.body["param"]) == (400, "input_tokens")
    assert running.asked() == {"a": 1}


@STREAMS
def test_nobody_gets_a_model_to_fall_back_on_that_is_not_for_them(running: Fleet, key: str, stream: bool) -> None:
    running["a"].default = Fail(500)
    got = running.ask("short", stream, key=key)
    assert (got.status, got.code) == (502, "upstream_error")
    assert running.asked() == {"a": 2}


@STREAMS
def test_what_surely_fits_is_delivered_as_ever(running: Fleet, stream: bool) -> None:
    answer, line = running.ask_raw("roomy", stream)
    assert (answer.status, line["delivery"]) == (200, running.stack.delivery)


@STREAMS
def test_what_may_not_fit_is_asked_of_a_larger_model_all_the_same(running: Fleet, stream: bool) -> None:
    running["a"].default = Fail(400, TOO_LONG["vllm"])
    got = running.ask("roomy", stream, max_tokens=100_000)
    assert (got.text, got.model) == (TEXT, "c-large")


@STREAMS
@pytest.mark.parametrize("model", ["short", "plain"])
@pytest.mark.parametrize("who", FILTERED)
def test_a_prompt_that_a_filter_refuses_is_asked_of_nobody_else(
    running: Fleet, who: str, model: str, stream: bool
) -> None:
    running["a"].default = Fail(400, FILTERED[who])
    answer, line = running.ask_raw(model, stream)
    assert (answer.status, answer.json()) == (400, FILTERED[who])
    assert running.asked() == {"a": 1}
    assert line["attempts"] == 1


@STREAMS
def test_an_answer_that_a_filter_ends_is_an_answer(running: Fleet, stream: bool) -> None:
    running["a"].default = Answer(finish="content_filter")
    got = running.ask("plain", stream)
    assert (got.error, got.finish, got.model) == (None, "content_filter", "a-large")
    assert running.asked() == {"a": 1}
