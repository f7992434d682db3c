"""What was asked and answered is recorded only where that is configured, and secrets never are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.exchange import Exchange
from headrace_otel.redaction import Redactor

SECRETS = [
    "sk-proj-abcDEF1234567890abcDEF",
    "hr-a1b2c3d4e5f6g7h8i9j0",
    "hf_abcdefghijklmnopqrstuv",
    "ghp_abcdefghijklmnopqrst1234",
    "xoxb-1234567890-abcdefghij",
    "AKIAIOSFODNN7EXAMPLE",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "Bearer abcdefgh12345678",
    "api_key=supersecretvalue1",
    '"password": "hunter2hunter2"',
    "Authorization: Basic dXNlcjpwYXNz",
    "https://user:pass1234@host/",
]
MARK = "zebra-crossing"


def everything(collector: Any) -> bytes:
    """All that the collector was sent."""
    return b"".join(collector.bodies)


@pytest.mark.parametrize("stream", [False, True])
async def test_neither_questions_nor_answers_are_recorded_unless_asked_for(
    traced: Any, collector: Any, stream: bool
) -> None:
    async with traced() as gateway:
        messages = [{"role": "user", "content": MARK}]
        await gateway.ask(messages=messages, stream=stream, user=MARK)
    assert collector.spans
    assert MARK.encode() not in everything(collector)
    assert not any("messages" in key for span in collector.spans for key in span.attributes)


async def test_secrets_that_a_client_sends_are_nowhere(traced: Any, collector: Any) -> None:
    secret = SECRETS[0]
    headers = {
        "authorization": f"Bearer {secret}",
        "cookie": f"s={secret}",
        "x-request-id": secret,
        "user-agent": secret,
        "tracestate": f"k={secret}",
        "traceparent": secret,
        "baggage": f"k={secret}",
        "x-forwarded-proto": secret,
    }
    async with traced() as gateway:
        path = f"/v1/chat/completions?api_key={secret}"
        body = {"model": "test", "messages": [{"role": "user", "content": secret}], "user": secret}
        assert (await gateway.client.post(path, json=body, headers=headers)).status_code == 200
        assert (await gateway.client.post(path, json={**body, "model": secret}, headers=headers)).status_code == 404
        assert (await gateway.client.post(path, content=secret, headers=headers)).status_code == 400
        gateway.backend.status = 500
        gateway.backend.error_body = json.dumps({"error": {"message": secret, "type": secret, "code": secret}}).encode()
        assert (await gateway.client.post(path, json=body, headers=headers)).status_code == 502
    assert len(collector.server_spans()) == 4
    assert secret.encode() not in everything(collector)


async def test_a_backend_s_words_are_not_an_error_s_type(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        gateway.backend.status = 400
        gateway.backend.error_body = b'{"error":{"message":"m","type":"t","code":"Sk-1 2"}}'
        assert (await gateway.ask()).status_code == 400
    assert {span.attributes["error.type"] for span in collector.spans} == {"400"}


async def test_what_was_asked_and_answered_is_recorded_where_that_is_configured(traced: Any, collector: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a":1}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    async with traced({"capture_content": True}) as gateway:
        await gateway.ask(messages=messages)
    (server,), (client,) = collector.server_spans(), collector.client_spans()
    assert json.loads(server.attributes["gen_ai.input.messages"]) == [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
        {"role": "user", "parts": [{"type": "text", "content": "Hello"}, {"type": "image_url"}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "1", "name": "f", "arguments": '{"a":1}'}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "1", "result": "rain"}]},
    ]
    assert json.loads(server.attributes["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "hi"}], "finish_reason": "stop"}
    ]
    assert (server.attributes["gen_ai.response.model"], server.attributes["gen_ai.response.id"]) == ("fake-model", "c")
    assert not any("messages" in key for key in client.attributes)


async def test_a_stream_s_pieces_are_put_together(traced: Any, collector: Any) -> None:
    async with traced({"capture_content": True}) as gateway:
        await gateway.ask(stream=True)
    (server,) = collector.server_spans()
    (said,) = json.loads(server.attributes["gen_ai.output.messages"])
    assert said == {"role": "assistant", "parts": [{"type": "text", "content": "t0 t1 t2 "}], "finish_reason": "stop"}


async def test_the_answer_of_a_request_that_is_not_recorded_is_not_looked_at(traced: Any) -> None:
    headers = [(b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")]
    scope = {"headers": headers, "method": "POST", "path": "/v1/chat/completions", "client": ("127.0.0.1", 1)}
    async with traced({"capture_content": True, "trust_incoming": True}) as gateway:
        endpoint = gateway.running.gateway.endpoints["/v1/chat/completions"]
        assert gateway.plugin.open_tap(Exchange(id="x", endpoint=endpoint, scope=scope)) is None
        assert gateway.plugin.open_tap(Exchange(id="x", endpoint=endpoint, scope={**scope, "headers": []})) is not None


async def test_no_more_of_it_is_kept_than_is_configured(traced: Any, collector: Any) -> None:
    async with traced({"capture_content": True, "content_limit": 100}) as gateway:
        await gateway.ask(messages=[{"role": "user", "content": "x" * 90}] * 500)
    (server,) = collector.server_spans()
    asked = json.loads(server.attributes["gen_ai.input.messages"])
    texts = [part["content"] for each in asked for part in each["parts"]]
    assert sum(map(len, texts)) <= 102
    assert texts[0] == "x" * 90


async def test_a_huge_body_is_not_looked_into(traced: Any, collector: Any) -> None:
    async with traced({"capture_content": True}) as gateway:
        await gateway.ask(messages=[{"role": "user", "content": "x" * 1_100_000}])
    (server,) = collector.server_spans()
    assert server.attributes["headrace.content.omitted"] is True
    assert "gen_ai.input.messages" not in server.attributes


STRANGE = ["x", ["x"], [[1, 2]], [1, 2], [{"role": 5, "content": {"a": [None]}}], [None, {"content": 3}]]


async def test_strange_prompts_are_no_fault(traced: Any, collector: Any) -> None:
    async with traced({"capture_content": True}) as gateway:
        for prompt in STRANGE:
            await gateway.client.post("/v1/completions", json={"model": "test", "prompt": prompt})
            await gateway.ask(messages=prompt)
    assert len(collector.server_spans()) == 2 * len(STRANGE)


async def test_secrets_in_content_are_redacted(traced: Any, collector: Any) -> None:
    async with traced({"capture_content": True, "redact": ["zebra-\\w+"]}) as gateway:
        for secret in [*SECRETS, MARK]:
            await gateway.ask(messages=[{"role": "user", "content": f"take {secret} please"}])
    asked = [span.attributes["gen_ai.input.messages"] for span in collector.server_spans()]
    for said, secret in zip(asked, [*SECRETS, MARK], strict=True):
        assert secret not in said
        assert "[redacted]" in said
        assert "take " in said


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("limit", [12, 20, 30])
def test_a_secret_across_the_cut_does_not_show_its_beginning(secret: str, limit: int) -> None:
    text = f"12345 {secret}{' and so on' * 100}"
    own = secret.removeprefix("https://")  # whose beginning is no secret
    assert own[:4] not in Redactor().prefix(text, limit)


ORDINARY = ["ordinary text", "sk-short", "the password is not told", "a" * 32, "risk-averse-but-fine"]


@pytest.mark.parametrize("text", ORDINARY)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redactor().text(text) == text
