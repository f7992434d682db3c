"""OpenAI's package for Python and the Responses API: backends that have chats alone, a real model among them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

STORY = "Write a short story about the sea."
TOOL: Any = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}, "strict": False}


class Place(BaseModel):
    name: str
    deep: bool


@pytest.fixture
def client(route: Any) -> Any:
    with route.sdk() as client:
        yield client


def chat(**message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return json.dumps(whole).encode()


def pieces(*deltas: Any) -> list[bytes]:
    """A chat's stream."""
    said = [{"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    said.append({"id": "c", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return [*(f"data: {json.dumps(each)}\n\n".encode() for each in said), b"data: [DONE]\n\n"]


def test_a_whole_answer_of_the_real_model(client: Any, stack: Any) -> None:
    answer = client.responses.create(model=stack.model, input=STORY, temperature=0, max_output_tokens=12)
    assert answer.output_text.strip()
    assert answer.status in ("completed", "incomplete")
    assert 0 < answer.usage.output_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_a_stream_of_the_real_model_says_what_its_last_event_has(client: Any, stack: Any) -> None:
    events = list(
        client.responses.create(model=stack.model, input=STORY, temperature=0, max_output_tokens=12, stream=True)
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert text == events[-1].response.output_text != ""
    assert 0 < events[-1].response.usage.output_tokens <= 12


def test_a_conversation_with_the_real_model_goes_on(client: Any, stack: Any) -> None:
    first = client.responses.create(model=stack.model, input="My name is Bo.", temperature=0, max_output_tokens=8)
    second = client.responses.create(
        model=stack.model, input="And who am I?", temperature=0, max_output_tokens=8, previous_response_id=first.id
    )
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    items = client.responses.input_items.list(second.id, order="asc")
    assert [item.role for item in items] == ["user", "assistant", "user"]


def test_an_answer_can_be_read_and_deleted(client: Any) -> None:
    answer = client.responses.create(model="fake", input=STORY)
    assert client.responses.retrieve(answer.id).output_text == answer.output_text == "hi"
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_an_answer_cannot_be_cancelled(client: Any) -> None:
    answer = client.responses.create(model="fake", input=STORY)
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        client.responses.cancel(answer.id)


def test_every_field_that_the_package_requires_is_there(client: Any) -> None:
    raw = client.responses.with_raw_response.create(model="fake", input=STORY, tools=[TOOL])
    assert Response.model_validate(json.loads(raw.content)).tools[0].type == "function"


def test_a_call_of_a_tool_and_its_result(client: Any, stack: Any, kit: Any) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    stack.raw.tell(kit.whole(chat(content=None, tool_calls=[call])))
    first = client.responses.create(model="raw", input="Look!", tools=[TOOL])
    made = first.output[0]
    assert (made.type, made.name, json.loads(made.arguments)) == ("function_call", "look", {"at": 1})
    stack.raw.tell(kit.whole(chat(content="The sea.")))
    second = client.responses.create(
        model="raw",
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": made.call_id, "output": "water"}],
    )
    assert second.output_text == "The sea."
    sent = json.loads(stack.raw.requests[-1][2])["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"]


def test_the_packages_own_stream_puts_thoughts_words_and_calls_together(client: Any, stack: Any, kit: Any) -> None:
    call = {"index": 0, "id": "call_1", "function": {"name": "look", "arguments": '{"a'}}
    rest = {"index": 0, "function": {"arguments": '": 1}'}}
    deltas = ({"reasoning_content": "Hm."}, {"content": "I "}, {"content": "look."}, {"tool_calls": [call]})
    stack.raw.tell(kit.chunked(*pieces(*deltas, {"tool_calls": [rest]})))
    with client.responses.stream(model="raw", input="Look!", tools=[TOOL]) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        answer = stream.get_final_response()
    assert snapshots == ["I ", "I look."]
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
    assert answer.output[2].arguments == '{"a": 1}'


def test_a_structured_answer_is_parsed(client: Any, stack: Any, kit: Any) -> None:
    stack.raw.tell(kit.whole(chat(content='{"name": "Lofoten", "deep": true}')))
    answer = client.responses.parse(model="raw", input="Where?", text_format=Place)
    assert answer.output_parsed == Place(name="Lofoten", deep=True)
    asked = json.loads(stack.raw.requests[-1][2])["response_format"]
    assert (asked["type"], asked["json_schema"]["name"]) == ("json_schema", "Place")


def test_a_tool_that_the_backend_cannot_have_is_its_bad_request_error(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="fake", input=STORY, tools=[{"type": "web_search"}])
    assert (caught.value.param, caught.value.code) == ("tools[0].type", "unsupported_tool")


def test_an_unknown_answer_to_go_on_from_is_its_bad_request_error(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="fake", input=STORY, previous_response_id="resp_none")
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")


def test_a_stream_that_breaks_tells_of_an_error_and_is_never_completed(client: Any, stack: Any, kit: Any) -> None:
    stack.raw.tell(kit.chunked(pieces({"content": "half"})[0], last=False), then="close")
    events = []
    with pytest.raises(openai.APIError) as caught:
        for event in client.responses.create(model="raw", input=STORY, stream=True):
            events.append(event)
    assert caught.value.code == "stream_truncated"
    assert not any(event.type == "response.completed" for event in events)


async def test_the_asynchronous_client_streams(route: Any) -> None:
    async with route.async_sdk() as client:
        stream = await client.responses.create(model="fake", input=STORY, stream=True)
        events = [event async for event in stream]
    assert events[-1].response.output_text == "t0 t1 t2 "


def test_nginx_delivers_a_whole_answer_that_a_backend_gave_itself_and_that_is_not_kept(
    own_stack: Any, kit: Any
) -> None:
    usage = {"input_tokens": 11, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 3, "total_tokens": 14}
    said = {"id": "resp_1", "object": "response", "status": "completed", "output": [], "usage": usage}
    with kit.raw_backend() as raw:
        native = f'native = {{ provider = "openai", base_url = "{raw.url}", endpoints = ["responses"] }}'
        tables = {"backends": native, "models": 'native = { targets = ["native"] }'}
        with own_stack(**tables, plugins='[plugins.responses]\nstore = "off"') as stack:
            stack.warm_up()
            raw.tell(kit.whole(json.dumps(said).encode()))
            with stack.route("nginx").client() as client:
                answer = client.post(
                    "/v1/responses", json={"model": "native", "input": "hi"}, headers={"x-request-id": "n"}
                )
            line = stack.logged("n")
    assert answer.json() == said
    assert (line["delivery"], line["gen_ai.usage.input_tokens"], line["gen_ai.usage.output_tokens"]) == (
        "offload",
        11,
        3,
    )
