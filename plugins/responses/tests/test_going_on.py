"""Going on from an earlier answer, whatever backend gave it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

STORES = ("sqlite", "memory")


def sent(backend: Any) -> Any:
    return backend.requests[-1][1]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_translated_request_is_told_the_conversation_so_far(
    gateway: Callable[..., Any], backend: Any, kit: Any, store: str, stream: bool
) -> None:
    finish = {"index": 0, "delta": {"content": "I am Bo."}, "finish_reason": "stop"}
    streamed = [*kit.sse({"id": "c", "choices": [finish]}), b"data: [DONE]\n\n"]
    backend.reply = streamed if stream else kit.said("I am Bo.")
    async with gateway(store=store) as asker:
        answer = await asker.ask(input="Who?", stream=stream)
        first = kit.events_of(answer.text)[-1]["response"] if stream else answer.json()
        backend.reply = kit.said("Yes.")
        second = (await asker.ask(input="Bo?", previous_response_id=first["id"], instructions="Short.")).json()
        backend.reply = kit.said("No.")
        third = (await asker.ask(input=[{"role": "user", "content": "Al?"}], previous_response_id=second["id"])).json()
    assert (first["store"], first["previous_response_id"], third["previous_response_id"]) == (True, None, second["id"])
    assert [(each["role"], each["content"]) for each in sent(backend)["messages"]] == [
        ("user", "Who?"),
        ("assistant", "I am Bo."),
        ("user", "Bo?"),
        ("assistant", "Yes."),
        ("user", "Al?"),
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_native_backend_is_told_the_conversation_so_far_and_no_id(
    gateway: Callable[..., Any], backend: Any, kit: Any, stream: bool
) -> None:
    backend.reply = kit.streamed(kit.response()) if stream else kit.response()
    async with gateway("responses") as asker:
        await asker.ask(input="Who?", stream=stream)
        backend.reply = kit.response("resp_2")
        await asker.ask(input="Bo?", previous_response_id="resp_1")
        kept = (await asker.client.get("/v1/responses/resp_2")).json()
    assert "previous_response_id" not in sent(backend)
    assert [item["role"] for item in sent(backend)["input"]] == ["user", "assistant", "user"]
    assert sent(backend)["input"][1] == kit.response()["output"][0]
    assert kept["previous_response_id"] == "resp_1"


async def test_an_answer_in_parts_of_calls_is_gone_on_with_by_their_results(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    backend.reply = kit.said("", message={"content": None, "tool_calls": [call]})
    async with gateway() as asker:
        first = (await asker.ask(tools=[{"type": "function", "name": "f"}])).json()
        result = [{"type": "function_call_output", "call_id": "call_1", "output": "3"}]
        await asker.ask(input=result, previous_response_id=first["id"])
    assert sent(backend)["messages"][1:] == [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
    ]


async def test_a_reference_to_an_item_is_replaced_by_it(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    backend.reply = kit.said("I am Bo.")
    async with gateway() as asker:
        item = (await asker.ask()).json()["output"][0]
        for reference in ({"type": "item_reference", "id": item["id"]}, {"id": item["id"]}):
            await asker.ask(input=[reference, {"role": "user", "content": "Go on."}])
            assert sent(backend)["messages"][0] == {"role": "assistant", "content": "I am Bo."}


async def test_nobody_reads_another_callers_answers(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    backend.reply = kit.said("secret")
    async with gateway() as asker:
        first = (await asker.ask("ada")).json()
        asked = len(backend.requests)
        going_on = await asker.ask("bob", previous_response_id=first["id"])
        reference = await asker.ask("bob", input=[{"type": "item_reference", "id": first["output"][0]["id"]}])
        read = await asker.client.get(f"/v1/responses/{first['id']}", headers={"x-caller": "bob"})
        deleted = await asker.client.delete(f"/v1/responses/{first['id']}", headers={"x-caller": "bob"})
        still = await asker.client.get(f"/v1/responses/{first['id']}")
    assert [going_on.status_code, reference.status_code] == [400, 400]
    assert [read.status_code, deleted.status_code, still.status_code] == [404, 404, 200]
    assert len(backend.requests) == asked


async def test_an_unknown_answer_is_told_of_in_openais_words(gateway: Callable[..., Any]) -> None:
    async with gateway() as asker:
        error = (await asker.ask(previous_response_id="resp_9")).json()["error"]
    assert error == {
        "message": "Previous response with id 'resp_9' not found.",
        "type": "invalid_request_error",
        "param": "previous_response_id",
        "code": "previous_response_not_found",
    }


@pytest.mark.parametrize("endpoint", ["chat", "responses"])
async def test_who_does_not_want_an_answer_stored_does_not_find_it(
    gateway: Callable[..., Any], backend: Any, kit: Any, endpoint: str
) -> None:
    backend.reply = kit.said() if endpoint == "chat" else kit.response()
    async with gateway(endpoint) as asker:
        name = (await asker.ask(store=False)).json()["id"]
        found = await asker.client.get(f"/v1/responses/{name}")
    assert found.status_code == 404


@pytest.mark.parametrize("endpoint", ["chat", "responses"])
async def test_a_cut_answer_is_not_kept(gateway: Callable[..., Any], backend: Any, kit: Any, endpoint: str) -> None:
    text = {"index": 0, "delta": {"content": "half"}}
    begun = kit.sse({"id": "c", "choices": [text]}) if endpoint == "chat" else kit.streamed(kit.response())[:-1]
    backend.reply, backend.cut = begun, True
    async with gateway(endpoint) as asker:
        found = await asker.events()
        name = found[0]["response"]["id"]
        kept = await asker.client.get(f"/v1/responses/{name}")
    assert kept.status_code == 404


async def test_an_answer_that_its_client_did_not_wait_for_is_not_kept(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.reply, backend.hold = kit.streamed(kit.response()), asyncio.Event()
    async with gateway("responses") as asker:
        body = {"model": "test", "input": "hello", "stream": True}
        async with asker.client.stream("POST", "/v1/responses", json=body) as answer:
            async for _ in answer.aiter_bytes():
                break
        async with asyncio.timeout(20):
            while asker.gateway.open_requests:
                await asyncio.sleep(0.01)
        backend.hold.set()
        kept = await asker.client.get("/v1/responses/resp_1")
    assert kept.status_code == 404


async def test_an_error_is_not_kept(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    backend.status, backend.reply = 400, {**kit.response(), "error": {"message": "no"}}
    async with gateway("responses") as asker:
        assert (await asker.ask()).status_code == 400
        kept = await asker.client.get("/v1/responses/resp_1")
    assert kept.status_code == 404


async def test_a_conversation_that_is_too_large_is_not_kept(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.reply = kit.said()
    async with gateway(max_entry_bytes=2048) as asker:
        small = (await asker.ask()).json()["id"]
        large = (await asker.ask(input="x" * 3000)).json()["id"]
        kept = [(await asker.client.get(f"/v1/responses/{name}")).status_code for name in (small, large)]
    assert kept == [200, 404]


async def test_what_is_kept_outlives_the_gateway(
    gateway: Callable[..., Any], backend: Any, kit: Any, tmp_path: Any
) -> None:
    backend.reply = kit.said()
    tables = {"server": {"state_dir": str(tmp_path)}}
    async with gateway(tables=tables) as asker:
        name = (await asker.ask()).json()["id"]
    assert (tmp_path / "responses.db").stat().st_mode & 0o077 == 0
    async with gateway(tables=tables) as asker:
        assert (await asker.client.get(f"/v1/responses/{name}")).json()["id"] == name
        assert (await asker.ask(previous_response_id=name)).status_code == 200


async def test_a_database_that_is_something_else_stops_the_start(gateway: Callable[..., Any], tmp_path: Any) -> None:
    (tmp_path / "responses.db").write_text("this is no database, but it is long enough to be looked at as one" * 20)
    with pytest.raises(Exception, match="not a database"):
        async with gateway(tables={"server": {"state_dir": str(tmp_path)}}):
            pass


async def test_references_cannot_make_a_request_larger_than_a_body_may_be(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.reply = kit.said("x" * 5000)
    async with gateway(tables={"server": {"max_body_bytes": 20_000}}) as asker:
        reference = {"type": "item_reference", "id": (await asker.ask()).json()["output"][0]["id"]}
        few = await asker.ask(input=[reference] * 3)
        many = await asker.ask(input=[reference] * 5)
    assert (few.status_code, many.status_code) == (200, 413)
    assert len(backend.requests) == 2


async def test_so_many_references_are_too_many(gateway: Callable[..., Any], backend: Any) -> None:
    async with gateway() as asker:
        answer = await asker.ask(input=[{"type": "item_reference", "id": "msg_1"}] * 257)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")


async def test_an_id_without_end_is_not_repeated_to_its_end(gateway: Callable[..., Any]) -> None:
    async with gateway() as asker:
        answer = await asker.ask(previous_response_id="resp_" + "x" * 100_000)
    assert answer.status_code == 400
    assert len(answer.text) < 1000
