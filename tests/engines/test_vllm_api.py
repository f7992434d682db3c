"""What vLLM can do, asked through the provider `vllm`, whoever delivers the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from headrace_cache.crossing import as_stream, as_whole

from ..processes import until
from .asking import HELLO, Caller, Words
from .launching import Site

DELIVERED = {"wheel": "offload", "inline": "inline"}
"""Models, and who delivers their answers."""
MODEL = pytest.mark.parametrize("model", DELIVERED)
COUNT = 600
TOOL = {
    "type": "function",
    "function": {
        "name": "turn",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"way": {"enum": ["left", "right"]}},
            "required": ["way"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = TOOL["function"]["parameters"]  # type: ignore[index]


@pytest.fixture(scope="module")
def caller(own_engine: Site) -> Iterator[Caller]:
    with own_engine.calling() as made:
        yield made


@MODEL
def test_a_chat_is_answered(caller: Caller, model: str) -> None:
    asked = caller.ask(model, max_tokens=5).wait()
    assert (asked.error, asked.finish, asked.usage.completion_tokens) == (None, ["length"], 5)
    assert asked.text
    assert caller.logged(asked)["delivery"] == DELIVERED[model]


@MODEL
def test_a_stream_tells_its_usage_and_says_what_a_whole_answer_says(caller: Caller, model: str) -> None:
    whole = caller.ask(model, max_tokens=30).wait()
    asked = caller.ask(model, max_tokens=30, stream=True, stream_options={"include_usage": True}).wait()
    assert (asked.error, asked.text, asked.usage.completion_tokens) == (None, whole.text, 30)
    assert caller.logged(asked)["delivery"] == DELIVERED[model]


@MODEL
def test_a_text_is_gone_on_with(caller: Caller, model: str) -> None:
    asked = caller.ask(model, prompt="What does the wheel do?\n", max_tokens=7).wait()
    assert (asked.error, asked.usage.completion_tokens) == (None, 7)


@MODEL
def test_a_tool_is_called(caller: Caller, model: str) -> None:
    choice = {"type": "function", "function": {"name": "turn"}}
    asked = caller.ask(model, tools=[TOOL], tool_choice=choice, max_tokens=200).wait()
    assert asked.error is None
    (call,) = asked.chunks[0].choices[0].message.tool_calls
    assert call.function.name == "turn"
    assert json.loads(call.function.arguments)["way"] in ("left", "right")


@MODEL
@pytest.mark.parametrize(
    ("fields", "answers"),
    [
        ({"structured_outputs": {"choice": ["yes", "no"]}}, ("yes", "no")),
        ({"guided_choice": ["yes", "no"]}, ("yes", "no")),
        ({"guided_regex": "(stone|river)-mill"}, ("stone-mill", "river-mill")),
        ({"guided_grammar": 'root ::= "up" | "down"'}, ("up", "down")),
        ({"guided_json": SCHEMA}, ('{"way":"left"}', '{"way":"right"}')),
        ({"guided_json": json.dumps(SCHEMA)}, ('{"way":"left"}', '{"way":"right"}')),
    ],
    ids=["structured_outputs", "choice", "regex", "grammar", "json", "json as text"],
)
def test_an_answer_keeps_to_what_is_asked_for(
    caller: Caller, model: str, fields: dict[str, Any], answers: tuple[str, ...]
) -> None:
    asked = caller.ask(model, extra_body=fields, max_tokens=50).wait()
    assert asked.error is None
    assert "".join(asked.text.split()) in answers


def test_a_schema_in_openais_words_is_kept_to(caller: Caller) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "way", "schema": SCHEMA, "strict": True}}
    asked = caller.ask("wheel", response_format=wanted, max_tokens=50).wait()
    assert json.loads(asked.text)["way"] in ("left", "right")


@pytest.mark.parametrize(
    ("path", "fields", "kind"),
    [
        ("/v1/responses", {"input": "What does the wheel do?", "max_output_tokens": 5}, "response"),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 5}, "message"),
    ],
)
def test_it_is_asked_in_the_clients_own_words(
    own_engine: Site, caller: Caller, path: str, fields: dict[str, Any], kind: str
) -> None:
    answer = caller.route.post({"model": "wheel", **fields}, path=path)
    assert answer.status == 200, answer.body
    assert kind in (answer.json().get("object"), answer.json().get("type"))
    until(lambda: f"POST {path} HTTP" in own_engine.log.read_text(), "the engine's note of these words")


def test_what_vllm_would_ignore_is_refused(caller: Caller) -> None:
    asked = caller.ask("wheel", extra_body={"guided_json": SCHEMA, "guided_regex": "a"}).wait()
    assert isinstance(asked.error, openai.BadRequestError)
    assert asked.error.param == "guided_regex"


@MODEL
@pytest.mark.parametrize(
    ("fields", "told"),
    [({"top_p": 7}, "top_p"), ({"messages": [{"role": "user", "content": "mill " * 4000}]}, "maximum context length")],
    ids=["a wrong value", "too long"],
)
def test_vllms_own_errors_are_passed_on(caller: Caller, model: str, fields: dict[str, Any], told: str) -> None:
    asked = caller.ask(model, max_tokens=5, **fields).wait()
    assert isinstance(asked.error, openai.BadRequestError)
    assert told in str(asked.error)


def test_a_prompt_is_counted_as_vllm_counts_it(caller: Caller, words: Words) -> None:
    key = caller.stack.make_key()
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": words(40)}], "extra_body": {"ignore_eos": True}}
    told = {"stream": True, "stream_options": {"include_usage": True}}
    asked = caller.ask("inline", key, **fields, max_tokens=COUNT, **told).begun(3)
    reserved = caller.used(key)["tokens_per_day"]
    assert asked.is_alive(), "the answer is over already"
    assert reserved == asked.wait().usage.prompt_tokens + COUNT


# --- adapters ---


def test_an_adapter_of_the_configuration_is_asked_for_by_its_name_and_says_something_else(caller: Caller) -> None:
    plain, styled = caller.ask("wheel", max_tokens=20).wait(), caller.ask("style", max_tokens=20).wait()
    assert (plain.error, styled.error) == (None, None)
    assert plain.text != styled.text


def test_an_adapter_is_loaded_found_asked_and_unloaded_while_the_engine_runs(
    own_engine: Site, caller: Caller, kit: Any
) -> None:
    path = (
        next(iter(own_engine.stack.folder.glob("headrace.toml")))
        .read_text()
        .partition('style = "')[2]
        .partition('"')[0]
    )
    done = own_engine.run("vllm", "lora", "load", "late", path, "--backend", "own")
    assert (done.returncode, done.stdout) == (0, "own: loaded\n"), done.stderr
    listed = json.loads(own_engine.run("vllm", "lora", "list", "--backend", "own", "--json").stdout)
    assert {each["name"]: each["path"] for each in listed} == {"style": path, "late": path}

    def names() -> set[str]:
        return {each.id for each in caller.client.models.list().data}

    kit.until(lambda: "late" in names(), "its being found")
    late, style = caller.ask("late", max_tokens=20).wait(), caller.ask("style", max_tokens=20).wait()
    assert (late.error, late.text) == (None, style.text)
    assert own_engine.run("vllm", "lora", "unload", "late", "--backend", "own").returncode == 0
    kit.until(lambda: "late" not in names(), "its being gone")


def test_an_adapter_that_is_not_there_is_told_of_in_vllms_words(own_engine: Site) -> None:
    done = own_engine.run("vllm", "lora", "load", "none", "/nowhere", "--backend", "own")
    assert done.returncode == 1
    assert done.stderr.startswith("own: ")
    assert "/nowhere" in done.stderr


def test_a_server_that_cannot_sleep_is_told_how_it_could(own_engine: Site) -> None:
    done = own_engine.run("vllm", "status", "--backend", "own")
    assert done.returncode == 1
    assert "--enable-sleep-mode and VLLM_SERVER_DEV_MODE=1" in done.stderr


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 12}),
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 12, "logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 12, "n": 2, "temperature": 1}),
        ("/v1/chat/completions", {"messages": HELLO, "tools": [TOOL], "tool_choice": "required", "max_tokens": 200}),
        ("/v1/completions", {"prompt": "What does the wheel do?\n", "max_tokens": 7}),
        ("/v1/completions", {"prompt": "What does the wheel do?\n", "max_tokens": 7, "logprobs": 2}),
    ],
    ids=["chat", "logprobs", "two", "tool", "completion", "its logprobs"],
)
def test_a_cache_can_make_each_form_of_an_answer_of_the_other(
    caller: Caller, path: str, fields: dict[str, Any]
) -> None:
    body = {"model": "wheel", "temperature": 0, "seed": 1, **fields}
    whole = caller.route.post(body, path=path)
    streamed = caller.route.post({**body, "stream": True, "stream_options": {"include_usage": True}}, path=path)
    assert (whole.status, streamed.status) == (200, 200), (whole.body, streamed.body)
    made, stream = as_whole(streamed.body), as_stream(whole.body, usage=True)
    assert made is not None and stream is not None
    again = as_whole(stream)
    assert again is not None
    assert said(json.loads(made)) == said(json.loads(again)) == said(whole.json())


def test_what_one_form_alone_tells_of_the_prompt_is_left_there(caller: Caller) -> None:
    prompt = {"prompt": "What does the wheel do?\n", "max_tokens": 7, "logprobs": 2, "echo": True}
    whole = caller.route.post({"model": "wheel", "temperature": 0, **prompt}, path="/v1/completions")
    assert "prompt_logprobs" in whole.json()["choices"][0]
    assert as_stream(whole.body, usage=True) is None


def said(value: Any) -> Any:
    """What an answer says, without what is of its own each time, without what says nothing, and JSON without spaces."""
    if isinstance(value, list):
        return [said(each) for each in value]
    if not isinstance(value, dict):
        return value
    pairs = {name: said(each) for name, each in value.items() if name not in ("id", "created")}
    if isinstance(pairs.get("arguments"), str):
        pairs["arguments"] = json.loads(pairs["arguments"])
    return {name: each for name, each in pairs.items() if each not in (None, [], {})}
