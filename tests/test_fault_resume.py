"""Streams that break and are gone on with: the caller gets the whole answer as if nothing had been."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from .fault_fleet import HELLO, HURRIED, TIMEOUTS, Fleet, fleet
from .fault_words import ARGUMENTS, TEXT, tokens
from .faults import Answer, Fail, Silent, Upstream

RESUME = 'midstream = "resume", retry = { backoff = 0.02, max_backoff = 0.05, budget = 100 }'
MODELS = f"""
alone = {{ targets = ["a"], {RESUME} }}
pair = {{ targets = ["a", "b"], {RESUME} }}
pair-hurried = {{ targets = ["a-hurried", "b"], {RESUME} }}
triple = {{ targets = ["a", "b", "c"], {RESUME} }}
backed = {{ targets = ["a"], fallback_models = ["spare"], {RESUME} }}
backed-hurried = {{ targets = ["a-hurried"], fallback_models = ["spare"], {RESUME} }}
spare = {{ targets = ["b"] }}
unable = {{ targets = ["a-anew", "b-anew"], {RESUME} }}
brief = {{ targets = ["a", "b"], {RESUME}, deadlines = {{ total = 0.8 }} }}
"""
CUTS = ("close", "reset", "no end", "silence", "half", "error", "malformed")
"""How a stream may end that is not whole, or goes on where nobody can follow."""
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
ASKED = {"model": "pair", "messages": HELLO, "stream": True}


def able(name: str, backend: Upstream) -> str:
    """Each twice: as a backend that goes on with what it is given, and as one that always begins anew."""
    common = f'provider = "openai", base_url = "{backend.url}"'
    ways = {
        name: f"{TIMEOUTS}, prefill = true",
        f"{name}-anew": TIMEOUTS,
        f"{name}-hurried": f"{HURRIED}, prefill = true",
    }
    return "\n".join(f"{each} = {{ {common}, {more} }}" for each, more in ways.items())


@pytest.fixture(scope="module", params=["inline", "offload"])
def running(own_stack: Any, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with fleet(own_stack, request.param, MODELS, backends=able) as made:
        yield made


@pytest.fixture(autouse=True)
def afresh(running: Fleet) -> None:
    running.reset()


def beginning(count: int) -> str:
    return "".join(tokens(TEXT)[:count])


@pytest.mark.parametrize("then", CUTS)
@pytest.mark.parametrize("model", ["pair", "backed"])
def test_another_target_goes_on_where_a_stream_broke(running: Fleet, model: str, then: Any) -> None:
    running["a"].default = Answer(cut=5, then=then, pause=0.005)
    got = running.ask(model + "-hurried" * (then == "silence"), stream=True)
    assert (got.error, got.text, got.finish) == (None, TEXT, "stop")
    assert running.asked() == {"a": 1, "b": 1}
    assert got.seconds < 4


@pytest.mark.parametrize("cut", [1, 2, 12, 13, 15, len(tokens(TEXT)) - 1])
def test_wherever_it_broke_nothing_is_missing_and_nothing_is_said_twice(running: Fleet, cut: int) -> None:
    running["a"].default = Answer(cut=cut, then="close", pause=0.002)
    assert running.ask("pair", stream=True).text == TEXT


def test_the_other_target_is_given_what_was_said_to_go_on_with(running: Fleet) -> None:
    running["a"].default = Answer(cut=5, then="close", pause=0.005)
    running.ask("pair", stream=True, temperature=0.25)
    first, second = running["a"].requests[0].fields, running["b"].requests[0].fields
    assert second["messages"] == [*HELLO, {"role": "assistant", "content": beginning(5)}]
    assert (second["continue_final_message"], second["add_generation_prompt"]) == (True, False)
    assert (second["temperature"], second["stream"]) == (first["temperature"], first["stream"])


def test_an_answer_of_two_targets_reads_as_one(running: Fleet) -> None:
    running["a"].default = Answer(cut=5, then="reset", pause=0.005)
    answer, _ = running.ask_raw("pair", stream=True)
    *events, done = answer.events
    chunks = [json.loads(each) for each in events]
    assert (answer.whole, done) == (True, "[DONE]")
    assert len({chunk["id"] for chunk in chunks}) == 1
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [choice["delta"].get("role") for choice in choices].count("assistant") == 1
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    assert not any("error" in chunk for chunk in chunks)


@pytest.mark.parametrize("told", [False, True])
def test_what_both_have_said_is_counted_once(running: Fleet, told: bool) -> None:
    running["a"].default = Answer(cut=5, then="close", pause=0.005)
    answer, line = running.ask_raw("pair", stream=True, stream_options={"include_usage": told})
    used = (22, len(tokens(TEXT)))
    assert (line["gen_ai.usage.input_tokens"], line["gen_ai.usage.output_tokens"]) == used
    said = [json.loads(each).get("usage") for each in answer.events[:-1]]
    assert [(each["prompt_tokens"], each["completion_tokens"]) for each in said if each] == [used] * told
    assert (line["completed"], line["target"], line["attempts"]) == (True, "b", 2)


def test_an_answer_whose_beginning_the_client_has_written_is_one_answer(running: Fleet) -> None:
    running["a"].default = Answer(cut=5, then="close", pause=0.005)
    written = {"role": "assistant", "content": beginning(3)}
    more = {"continue_final_message": True, "add_generation_prompt": False}
    got = running.ask("pair", stream=True, messages=[*HELLO, written], extra_body=more)
    assert (got.error, beginning(3) + got.text, got.finish) == (None, TEXT, "stop")
    assert running["b"].requests[0].fields["messages"] == [*HELLO, {**written, "content": beginning(8)}]


def test_the_limit_of_an_answer_is_one_for_both(running: Fleet) -> None:
    running["a"].default = Answer(cut=5, then="close", pause=0.005)
    got = running.ask("pair", stream=True, max_tokens=12)
    assert (got.text, got.finish) == (beginning(12), "length")


def test_the_same_target_may_go_on(running: Fleet) -> None:
    running["a"].script(Answer(cut=5, then="close", pause=0.005))
    got = running.ask("alone", stream=True)
    assert (got.error, got.text, got.finish) == (None, TEXT, "stop")
    assert running.asked() == {"a": 2}


def test_a_stream_may_break_more_than_once(running: Fleet) -> None:
    running["a"].default = Answer(cut=5, then="close", pause=0.005)
    running["b"].default = Answer(cut=6, then="reset", pause=0.005)
    got = running.ask("triple", stream=True)
    assert (got.error, got.text, got.finish) == (None, TEXT, "stop")
    assert running["c"].requests[0].fields["messages"][-1] == {"role": "assistant", "content": beginning(11)}


def test_a_target_that_fails_when_it_is_to_go_on_is_passed_over(running: Fleet) -> None:
    running["a"].default = Answer(cut=5, then="close", pause=0.005)
    running["b"].default = Fail(500)
    got = running.ask("triple", stream=True)
    assert (got.error, got.text) == (None, TEXT)
    assert running.asked() == {"a": 1, "b": 1, "c": 1}


def test_a_target_that_cannot_go_on_is_passed_over(running: Fleet) -> None:
    running["a"].default = Answer(cut=5, then="close", pause=0.005)
    running["b"].default = Answer(prefill=False)
    got = running.ask("triple", stream=True)
    assert (got.error, got.text) == (None, TEXT)
    assert running.asked() == {"a": 1, "b": 1, "c": 1}


def test_if_nobody_can_go_on_it_ends_with_one_error(running: Fleet) -> None:
    running["a"].default = Answer(cut=5, then="close", pause=0.005, prefill=False)
    running["b"].default = Answer(prefill=False)
    answer, line = running.ask_raw("pair", stream=True)
    errors = [each for each in answer.events if each.startswith('{"error"')]
    assert (answer.whole, errors) == (True, answer.events[-1:])
    assert json.loads(errors[0])["error"]["code"] == "stream_truncated"
    assert len(running["a"].requests) + len(running["b"].requests) <= 4
    assert (line["completed"], line["level"]) == (False, "error")


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.7}])
def test_a_stream_that_nobody_can_go_on_with_ends_with_an_error_at_once(running: Fleet, fields: Any) -> None:
    running["a"].default = Answer(cut=5, then="close", pause=0.005)
    got = running.ask("unable", stream=True, **fields)
    assert (got.text, got.code, got.finish) == (beginning(5), "stream_truncated", None)
    assert running.asked() == {"a": 1}
    assert got.seconds < 3


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"seed": 42}])
def test_an_answer_that_comes_out_the_same_is_begun_anew_and_nothing_is_said_twice(running: Fleet, fields: Any) -> None:
    running["a"].default = Answer(cut=5, then="close", pause=0.005)
    got = running.ask("unable", stream=True, stream_options={"include_usage": True}, **fields)
    assert (got.error, got.text, got.finish) == (None, TEXT, "stop")
    assert running["b"].requests[0].fields["messages"] == HELLO
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (22, len(tokens(TEXT)))


def test_an_answer_that_does_not_come_out_the_same_is_no_end_of_another(running: Fleet) -> None:
    running["a"].default = Answer(cut=5, then="close", pause=0.005)
    running["b"].default = Answer(text="The river is another one today.")
    got = running.ask("unable", stream=True, temperature=0)
    assert (got.text, got.code, got.finish) == (beginning(5), "stream_truncated", None)
    assert len(running["a"].requests) + len(running["b"].requests) <= 4


def test_an_answer_of_a_fixed_form_is_not_gone_on_with_in_the_middle(running: Fleet) -> None:
    running["a"].default = Answer(cut=5, then="close", pause=0.005)
    got = running.ask("pair", stream=True, response_format={"type": "json_object"})
    assert (got.text, got.code) == (beginning(5), "stream_truncated")
    assert running.asked() == {"a": 1}


def test_streams_that_break_for_ever_are_gone_on_with_so_often_and_no_more(running: Fleet) -> None:
    running["a"].default = Answer(cut=1, then="close")
    got = running.ask("alone", stream=True)
    assert (got.code, got.finish) == ("stream_truncated", None)
    assert TEXT.startswith(got.text)
    assert len(running["a"].requests) <= 8


def test_a_stream_that_has_said_all_is_not_gone_on_with(running: Fleet) -> None:
    running["a"].default = Answer(then="no [DONE]")
    got = running.ask("pair", stream=True)
    assert (got.error, got.text, got.finish) == (None, TEXT, "stop")
    assert running.asked() == {"a": 1}


def test_a_stream_that_has_not_begun_is_asked_afresh(running: Fleet) -> None:
    running["a"].default = Answer(cut=0, then="close")
    got = running.ask("pair", stream=True)
    assert (got.error, got.text) == (None, TEXT)
    assert running["b"].requests[0].fields["messages"][: len(HELLO)] == HELLO


def test_a_functions_call_that_breaks_is_not_gone_on_with(running: Fleet) -> None:
    running["a"].default = Answer(cut=3, then="close", pause=0.01)
    got = running.ask("pair", stream=True, tools=TOOLS)
    assert (got.code, got.finish) == ("stream_truncated", None)
    assert got.call and got.call != ARGUMENTS and ARGUMENTS.startswith(got.call)
    assert running.asked() == {"a": 1}


def test_several_answers_at_once_are_not_gone_on_with(running: Fleet) -> None:
    running["a"].default = Answer(cut=6, then="close", pause=0.005)
    got = running.ask("pair", stream=True, n=2)
    assert (got.code, got.finish) == ("stream_truncated", None)
    assert running.asked() == {"a": 1}


def test_a_stream_that_nobody_goes_on_with_in_time_ends_at_its_deadline(running: Fleet) -> None:
    running["a"].default, running["b"].default = Answer(cut=5, then="close", pause=0.005), Silent()
    got = running.ask("brief", stream=True)
    assert (got.text, got.finish) == (beginning(5), None)
    assert got.code in ("deadline_exceeded", "stream_truncated")
    assert got.seconds < 2.5


def test_a_client_that_leaves_ends_the_work_of_whoever_goes_on(running: Fleet, kit: Any) -> None:
    running["a"].default, running["b"].default = Answer(cut=5, then="close", pause=0.005), Answer(before=60)
    with running.route.connect() as connection:
        connection.sendall(running.route.request(ASKED))
        kit.until(lambda: running["b"].requests, "the request's arrival at the second backend")
    kit.until(running.at_rest, "the end of the backend's work", 1.0)


def test_an_answer_that_is_no_stream_is_asked_afresh(running: Fleet) -> None:
    running["a"].default = Answer(then="close")
    got = running.ask("pair")
    assert (got.error, got.text, got.model) == (None, TEXT, "b-large")
    assert running["b"].requests[0].fields["messages"] == HELLO
