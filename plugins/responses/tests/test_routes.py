"""Reading, listing and deleting what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


async def test_an_answer_can_be_read_again_as_it_was(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    backend.reply = kit.said()
    async with gateway() as asker:
        first = (await asker.ask()).json()
        again = (await asker.client.get(f"/v1/responses/{first['id']}")).json()
    assert again == first


async def test_a_deleted_answer_is_gone(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    backend.reply = kit.said()
    async with gateway() as asker:
        name = (await asker.ask()).json()["id"]
        path = f"/v1/responses/{name}"
        deleted = await asker.client.delete(path)
        after = [(await asker.client.get(path)).status_code, (await asker.client.delete(path)).status_code]
        going_on = await asker.ask(previous_response_id=name)
    assert deleted.json() == {"id": name, "object": "response", "deleted": True}
    assert (after, going_on.status_code) == ([404, 404], 400)


async def test_what_is_not_there_is_told_of_in_openais_words(gateway: Callable[..., Any]) -> None:
    async with gateway() as asker:
        answer = await asker.client.get("/v1/responses/resp_9")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "Response with id 'resp_9' not found."
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_an_answer_cannot_be_cancelled_for_it_is_complete(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.reply = kit.said()
    async with gateway() as asker:
        name = (await asker.ask()).json()["id"]
        answer = await asker.client.post(f"/v1/responses/{name}/cancel")
        unknown = await asker.client.post("/v1/responses/resp_9/cancel")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "Cannot cancel a synchronous response.")
    assert unknown.status_code == 404


async def test_the_items_of_a_conversation_are_listed_page_by_page(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.reply = kit.said("two")
    async with gateway() as asker:
        first = (await asker.ask(input="one")).json()
        name = (await asker.ask(input="three", previous_response_id=first["id"])).json()["id"]
        path = f"/v1/responses/{name}/input_items"
        newest = (await asker.client.get(path, params={"limit": 2})).json()
        rest = (await asker.client.get(path, params={"limit": 2, "after": newest["last_id"]})).json()
        ordered = (await asker.client.get(path, params={"order": "asc"})).json()
    assert (newest["object"], newest["has_more"], rest["has_more"]) == ("list", True, False)
    texts = [item["content"][0]["text"] for item in ordered["data"]]
    assert texts == ["one", "two", "three"]
    assert [item["content"][0]["text"] for item in (*newest["data"], *rest["data"])] == texts[::-1]
    assert [item["content"][0]["type"] for item in ordered["data"]] == ["input_text", "output_text", "input_text"]
    assert ordered["data"][1]["id"] == first["output"][0]["id"]


@pytest.mark.parametrize("query", [{"limit": "0"}, {"limit": "101"}, {"limit": "-"}, {"order": "up"}, {"after": "no"}])
async def test_a_page_that_cannot_be_had_is_refused(
    gateway: Callable[..., Any], backend: Any, kit: Any, query: dict[str, str]
) -> None:
    backend.reply = kit.said()
    async with gateway() as asker:
        name = (await asker.ask()).json()["id"]
        answer = await asker.client.get(f"/v1/responses/{name}/input_items", params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(query)))


async def test_a_key_for_other_endpoints_reads_nothing(gateway: Callable[..., Any]) -> None:
    async with gateway() as asker:
        answer = await asker.client.get("/v1/responses/resp_9", headers={"x-caller": "chatter"})
    assert answer.status_code == 403


async def test_an_answer_cannot_be_streamed_anew(gateway: Callable[..., Any]) -> None:
    async with gateway() as asker:
        answer = await asker.client.get("/v1/responses/resp_9", params={"stream": "true"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")
