"""Answers that a backend gives in the client's own dialect pass as they are, whoever delivers them."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": 'say "usage": {"input_tokens": 99}'}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 5, "server_tool_use": {"x": 1}},
}
RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "output": [],
    "usage": {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 5, "total_tokens": 12},
    "metadata": {},
}
STREAMS: dict[str, list[dict[str, Any]]] = {
    "/v1/messages": [
        {
            "type": "message_start",
            "message": {**MESSAGE, "content": [], "usage": {**MESSAGE["usage"], "output_tokens": 1}},
        },
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 'é "message_stop"'}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ],
    "/v1/responses": [
        {"type": "response.created", "response": {**RESPONSE, "usage": None}},
        {"type": "response.output_text.delta", "delta": 'é "response.completed"'},
        {"type": "response.completed", "response": RESPONSE},
    ],
}
UNKNOWN = "nginx does not know how streams of this dialect end"
HELLO = [{"role": "user", "content": "hi"}]
ASKED = {
    "/v1/messages": ({"model": "native", "messages": HELLO, "max_tokens": 9}, MESSAGE),
    "/v1/responses": ({"model": "native", "input": "hi", "store": False}, RESPONSE),
}


@pytest.mark.parametrize("path", ASKED)
def test_a_native_answer_passes_byte_for_byte_and_is_counted(route: Any, kit: Any, path: str) -> None:
    asked, said = ASKED[path]
    body, identifier = json.dumps(said, indent=1).encode(), uuid.uuid4().hex
    route.stack.raw.tell(kit.whole(body))
    with route.client() as client:
        answer = client.post(path, json=asked, headers={"X-Request-ID": identifier})
    assert (answer.status_code, answer.content) == (200, body)
    line = route.stack.logged(identifier)
    assert (line["gen_ai.usage.input_tokens"], line["gen_ai.usage.output_tokens"]) == (7, 5)
    assert not line.get("usage_estimated")
    expected = "offload" if route.name == "nginx" and route.stack.delivery == "offload" else "inline"
    assert line["delivery"] == expected, line["delivery_reason"]


@pytest.mark.parametrize("path", ASKED)
def test_a_native_error_passes_byte_for_byte(route: Any, kit: Any, path: str) -> None:
    body = b'{"type":"error","error":{"type":"invalid_request_error","message":"no"}}'
    route.stack.raw.tell(kit.whole(body, "400 Bad Request"))
    with route.client() as client:
        answer = client.post(path, json=ASKED[path][0])
    assert (answer.status_code, answer.content) == (400, body)


@pytest.mark.parametrize("path", ASKED)
def test_a_backend_that_fails_is_told_in_the_clients_dialect(route: Any, kit: Any, path: str) -> None:
    route.stack.raw.tell(kit.whole(b"{}", "500 Internal Server Error"))
    with route.client() as client:
        answer = client.post(path, json=ASKED[path][0])
    told = answer.json()
    assert answer.status_code == 502
    assert (told.get("type") == "error") == (path == "/v1/messages")
    assert "The backend failed" in told["error"]["message"]


def events(path: str) -> list[bytes]:
    return [f"event: {said['type']}\ndata: {json.dumps(said)}\n\n".encode() for said in STREAMS[path]]


@pytest.fixture
def delivered(route: Any, request: pytest.FixtureRequest) -> tuple[str, str]:
    """Who delivers a native stream, and why: nginx does where it has the module."""
    if route.name != "nginx" or route.stack.delivery != "offload":
        return "inline", ""
    return ("offload", "") if request.node.callspec.params["shared_stack"] == "module" else ("inline", UNKNOWN)


@pytest.mark.parametrize("path", ASKED)
def test_a_native_stream_passes_byte_for_byte_and_is_counted(
    route: Any, kit: Any, path: str, delivered: tuple[str, str]
) -> None:
    identifier = uuid.uuid4().hex
    route.stack.raw.tell(kit.chunked(*events(path)))
    with route.client() as client:
        answer = client.post(path, json={**ASKED[path][0], "stream": True}, headers={"X-Request-ID": identifier})
    assert (answer.status_code, answer.content) == (200, b"".join(events(path)))
    line = route.stack.logged(identifier)
    assert (line["gen_ai.usage.input_tokens"], line["gen_ai.usage.output_tokens"]) == (7, 5)
    assert (line["completed"], line.get("usage_estimated", False)) == (True, False)
    assert line["delivery"] == delivered[0] and delivered[1] in line["delivery_reason"], line["delivery_reason"]


@pytest.mark.parametrize("path", ASKED)
def test_a_native_stream_that_breaks_ends_in_its_dialect(
    route: Any, kit: Any, path: str, delivered: tuple[str, str]
) -> None:
    identifier, (*begin, last) = uuid.uuid4().hex, events(path)
    route.stack.raw.tell(kit.chunked(*begin, last[:20], last=False), "close")
    with route.client() as client:
        answer = client.post(path, json={**ASKED[path][0], "stream": True}, headers={"X-Request-ID": identifier})
    assert answer.content.startswith(b"".join(begin) + b"event: error\ndata: {")
    told = json.loads(answer.content.removeprefix(b"".join(begin)).partition(b"data: ")[2])
    assert (told["type"], told.get("request_id", identifier)) == ("error", identifier)
    assert "The connection to the backend broke" in told["error"]["message"]
    line = route.stack.logged(identifier)
    assert (line["completed"], line["error.code"], line["delivery"]) == (False, "stream_truncated", delivered[0])
