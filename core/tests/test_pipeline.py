"""What goes up to a backend, what comes down, and which backend is asked when one fails."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest

from headrace import hookimpl
from headrace.exchange import Principal
from headrace.testing import COMPLETION, DONE, FakeBackend, serve

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
NOWHERE = {"provider": "openai", "base_url": "http://127.0.0.1:9"}
CHAT_PATH = "/v1/chat/completions"

Gateway = Callable[..., contextlib.AbstractAsyncContextManager[SimpleNamespace]]


@contextlib.asynccontextmanager
async def gateway(plugins: dict[str, type[Any]] | None = None, **tables: Any) -> AsyncIterator[SimpleNamespace]:
    """Two backends, `first` and `second`; the model `test` has both, `alone` only the first."""
    async with FakeBackend() as first, FakeBackend() as second:
        document = first.config(
            backends={
                "first": {"provider": "openai", "base_url": first.url, "model": "first-model"},
                "second": {"provider": "openai", "base_url": second.url, "model": "second-model"},
            },
            models={
                "test": {"targets": ["first", "second"], "aliases": ["gpt-4o", "org/test:1"]},
                "alone": {"targets": ["first"]},
                "unmapped": {"targets": [{"provider": "openai", "base_url": first.url}]},
            },
        )
        async with (
            serve({**document, **tables}, plugins) as running,
            httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=30) as client,
        ):

            async def chat(body: Any = CHAT, **headers: str) -> httpx.Response:
                return await client.post(CHAT_PATH, json=body, headers=headers)

            yield SimpleNamespace(first=first, second=second, client=client, chat=chat, url=running.url)


@contextlib.asynccontextmanager
async def scripted(answer: bytes) -> AsyncIterator[str]:
    """A backend that answers every request with these very bytes and closes; yields its URL."""

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            await reader.readexactly(int(length[1]) if length else 0)
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def whole(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s" % (
        status, lines, len(body), body
    )  # fmt: skip


def behind(url: str, *others: str, **backend: Any) -> dict[str, Any]:
    return {"models": {"test": {"targets": [{"provider": "openai", "base_url": url, **backend}, *others]}}}


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# --- Which backend ---


@pytest.mark.parametrize("body", [CHAT, STREAM])
@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408, 401, 403])
async def test_a_failing_first_target_is_followed_by_the_next(status: int, body: Any) -> None:
    async with gateway() as g:
        g.first.status = status
        assert (await g.chat(body)).status_code == 200
        assert (len(g.first.requests), len(g.second.requests)) == (1, 1)


async def test_a_refused_connection_is_followed_by_the_next_target() -> None:
    async with gateway(models={"test": {"targets": [NOWHERE, "second"]}}) as g:
        assert (await g.chat()).status_code == 200


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_an_error_of_the_caller_passes_through_untouched_and_is_not_tried_elsewhere(status: int) -> None:
    async with gateway() as g:
        g.first.status = status
        g.first.error_body = b'{ "error": {"message": "too long", "code": "context_length_exceeded", "x": [1.0]}}'
        response = await g.chat()
        assert (response.status_code, response.content) == (status, g.first.error_body)
        assert g.second.requests == []


@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [
        (500, 502, "upstream_error"),
        (503, 503, "unavailable"),
        (429, 429, "upstream_rate_limited"),
        (401, 502, "upstream_auth"),
        (403, 502, "upstream_auth"),
    ],
)
async def test_a_failure_of_the_last_target_is_answered_without_the_backends_own_words(
    status: int, expected: int, code: str
) -> None:
    async with gateway() as g:
        g.first.status, g.first.error_body = status, b'{"error":{"message":"sk-secret at 10.0.0.7"}}'
        response = await g.chat({**CHAT, "model": "alone"})
    assert (response.status_code, error_of(response)["code"]) == (expected, code)
    assert "secret" not in response.text
    assert "10.0.0.7" not in response.text


@pytest.mark.parametrize("status", [429, 503])
async def test_a_backends_retry_after_reaches_the_caller(status: int) -> None:
    async with gateway() as g:
        g.first.status, g.first.response_headers = status, {"Retry-After": "17"}
        assert (await g.chat({**CHAT, "model": "alone"})).headers["retry-after"] == "17"


async def test_an_answer_that_is_no_api_error_says_to_check_base_url() -> None:
    async with gateway() as g:
        g.first.status, g.first.error_body = 404, b"<html>nginx</html>"
        response = await g.chat()
        assert response.status_code == 502
        assert "base_url" in error_of(response)["message"]
        assert g.second.requests == []


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_an_answer_that_ends_before_its_first_byte_is_followed_by_the_next_target(body: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with (
        scripted(head) as url,
        gateway(models={"test": {"targets": [{**NOWHERE, "base_url": url}, "second"]}}) as g,
    ):
        assert (await g.chat(body)).status_code == 200
        assert len(g.second.requests) == 1


async def test_nothing_is_tried_after_the_first_byte() -> None:
    async with gateway() as g:
        g.first.cut_after = 1
        response = await g.chat(STREAM)
        assert b't0 "' in response.content
        assert g.second.requests == []


# --- Models ---


@pytest.mark.parametrize("name", ["test", "gpt-4o", "org/test:1"])
async def test_a_model_answers_to_its_name_and_its_aliases(name: str) -> None:
    async with gateway() as g:
        assert (await g.chat({**CHAT, "model": name})).status_code == 200
        assert msgspec.json.decode(g.first.requests[0][2])["model"] == "first-model"


async def test_without_a_mapping_the_body_goes_upstream_byte_for_byte() -> None:
    body = b'{"x":1E+2, "model" :"unmapped","messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}], "x":2.50}\n '
    async with gateway() as g:
        response = await g.client.post(CHAT_PATH, content=body)
        assert (response.status_code, g.first.requests[0][2]) == (200, body)


async def test_an_unknown_model_is_a_404_that_names_those_there_are() -> None:
    async with gateway() as g:
        response = await g.chat({**CHAT, "model": "gpt-5"})
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "'gpt-5'" in error["message"]
    assert "test, gpt-4o, org/test:1, alone, unmapped" in error["message"]


class Keys:
    """Knows one caller, who may use the model `alone`."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Any) -> Principal | None:
        alice = exchange.header(b"authorization") == "Bearer alice"
        return Principal(id="alice", models=frozenset({"alone"})) if alice else None


@pytest.mark.parametrize(("model", "status"), [("alone", 200), ("test", 403), ("gpt-4o", 403), ("nope", 404)])
async def test_a_principals_models_are_the_only_ones_it_may_use(model: str, status: int) -> None:
    async with gateway({"keys": Keys}) as g:
        response = await g.chat({**CHAT, "model": model}, authorization="Bearer alice")
        assert response.status_code == status
        assert len(g.first.requests) == (1 if status == 200 else 0)


@pytest.mark.parametrize(("anonymous", "status"), [(True, 200), (False, 401)])
async def test_strangers_are_answered_only_where_the_configuration_says_so(anonymous: bool, status: int) -> None:
    async with gateway({"keys": Keys}, server={"anonymous": anonymous}) as g:
        assert (await g.chat(authorization="Bearer mallory")).status_code == status


async def test_a_plugin_may_choose_another_model() -> None:
    class Redirect(Keys):
        @hookimpl
        async def transform_request(self, exchange: Any) -> None:
            exchange.replace_fields(model="alone")

    models = {"test": {"targets": [NOWHERE]}, "alone": {"targets": ["second"]}}
    async with gateway({"redirect": Redirect}, models=models) as g:
        assert (await g.chat()).status_code == 200
        assert len(g.second.requests) == 1


# --- Headers ---


@pytest.mark.parametrize("given", ["req-1", "a" * 128, "A.b:c_d-9"])
async def test_a_plain_request_id_is_taken_over_returned_and_sent_upstream(given: str) -> None:
    async with gateway() as g:
        assert (await g.chat(**{"x-request-id": given})).headers["x-request-id"] == given
        assert g.first.requests[0][1]["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "a b", "a" * 129, "é", 'x"; drop', "a\tb"])
async def test_any_other_request_id_is_replaced_by_a_new_one(given: str | None) -> None:
    headers = [] if given is None else [(b"x-request-id", given.encode())]
    async with gateway() as g:
        ids = [(await g.client.post(CHAT_PATH, json=CHAT, headers=headers)).headers["x-request-id"] for _ in "12"]
        assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
        assert len(set(ids)) == 2
        assert [request[1]["x-request-id"] for request in g.first.requests] == ids


@pytest.mark.parametrize("path", ["/v1/models", "/nothing", "/health", "/v1/chat/completions"])
async def test_every_answer_carries_the_request_id(path: str) -> None:
    async with gateway() as g:
        assert (await g.client.get(path, headers={"x-request-id": "r"})).headers["x-request-id"] == "r"


async def test_the_clients_credentials_stay_here_and_the_targets_key_goes_upstream() -> None:
    sent = {
        "authorization": "Bearer sk-client",
        "x-api-key": "sk-client",
        "cookie": "session=1",
        "api-key": "sk-client",
    }
    async with FakeBackend() as backend:
        own = behind(backend.url, api_key="sk-target", headers={"X-Org": "o"})
        async with gateway(**own) as g:
            await g.chat(**sent)
        async with gateway(**behind(backend.url)) as g:
            await g.chat(**sent)
    (_, keyed, _), (_, bare, _) = backend.requests
    assert (keyed["authorization"], keyed["x-org"]) == ("Bearer sk-target", "o")
    assert not {"authorization", "x-api-key", "cookie", "api-key"} & bare.keys()
    assert "sk-client" not in str(backend.requests)


async def test_only_the_harmless_headers_of_a_client_go_upstream() -> None:
    passing = {"user-agent": "me/1", "traceparent": "00-1", "tracestate": "a=b", "openai-beta": "x", "accept": "*/*"}
    stopped = {"connection": "keep-alive, x-hop", "x-hop": "1", "te": "trailers", "x-forwarded-for": "1.2.3.4",
               "proxy-authorization": "Basic x", "accept-encoding": "br", "x-custom": "1", "expect": "x"}  # fmt: skip
    async with gateway() as g:
        await g.chat(**passing, **stopped)
        (_, headers, _) = g.first.requests[0]
    assert {name: headers.get(name) for name in passing} == passing
    assert headers.keys() - passing.keys() == {
        "host",
        "content-length",
        "content-type",
        "accept-encoding",
        "x-request-id",
    }
    assert headers["accept-encoding"] == "identity"


async def test_a_client_header_that_is_not_ascii_goes_upstream_unchanged() -> None:
    async with gateway() as g:
        response = await g.client.post(CHAT_PATH, json=CHAT, headers=[(b"user-agent", "café".encode())])
        assert response.status_code == 200
        assert g.first.requests[0][1]["user-agent"].encode("latin-1") == "café".encode()


async def test_headers_that_end_here_are_not_passed_down() -> None:
    stopped = ["Connection: close, X-Hop", "X-Hop: 1", "Keep-Alive: timeout=5", "Set-Cookie: a=b", "Server: vllm",
               "X-Accel-Redirect: /secret", "Access-Control-Allow-Origin: *", "Proxy-Authenticate: Basic", "Trailer: x",
               "X-Request-Id: theirs", "Strict-Transport-Security: max-age=1", "Upgrade: h2c",
               "Date: Thu, 01 Jan 1970 00:00:00 GMT"]  # fmt: skip
    passing = ["X-Ratelimit-Remaining: 7", "OpenAI-Processing-Ms: 12", "Cache-Control: no-store"]
    answer = whole(COMPLETION, *(each.encode() for each in stopped + passing))
    async with scripted(answer) as url, gateway(**behind(url)) as g:
        response = await g.chat(**{"x-request-id": "ours"})
    names = {each.partition(":")[0].lower() for each in passing}
    assert set(response.headers) - {"date"} == {"content-type", "content-length", "x-request-id"} | names
    assert response.headers["x-request-id"] == "ours"
    assert "1970" not in response.headers.get("date", "")


# --- Bytes ---

VISION = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}
RICH = {
    "model": "unmapped",
    "messages": [VISION],
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "logprobs": True,
    "top_logprobs": 5,
    "structured_outputs": {"choice": ["a"]},
    "unheard_of": {"é": [None, 1.5]},
}


async def test_fields_core_does_not_know_reach_the_backend_unaltered() -> None:
    body = msgspec.json.encode(RICH)
    async with gateway() as g:
        assert (await g.client.post(CHAT_PATH, content=body)).status_code == 200
        assert g.first.requests[0][2] == body


@pytest.mark.parametrize("field", ["logprobs", "tool_calls", "unheard_of"])
async def test_a_whole_reply_keeps_every_byte(field: str) -> None:
    body = b'{"id":"x","choices" : [{"message":{"content":"\\u00e9","%s":{"a":[1.0,1e5]}}}],\n"x":1}\n' % field.encode()
    async with scripted(whole(body)) as url, gateway(**behind(url)) as g:
        assert (await g.chat()).content == body


async def test_a_stream_keeps_every_byte() -> None:
    events = (
        b': comment\r\n\r\nevent: x\ndata: {"choices":[{"delta":{"tool_calls":[{"index":0}]},"logprobs":{"a":1.0}}]}'
        b'\n\ndata:{"odd" : true,"choices":[{"finish_reason":"stop"}]}\r\n\r\n\n\n' + DONE
    )
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n"
    async with scripted(head + events) as url, gateway(**behind(url)) as g:
        response = await g.chat(STREAM)
    assert (response.content, response.headers["content-type"]) == (events, "text/event-stream; charset=utf-8")


async def test_a_reply_larger_than_is_kept_whole_passes_too() -> None:
    body = b'{"x":"' + b"a" * (17 * 1024 * 1024) + b'"}'
    async with scripted(whole(body)) as url, gateway(**behind(url)) as g:
        response = await g.chat()
    assert response.content == body


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "once"}),
        ("/v1/embeddings", {"input": ["a", "b"]}),
        ("/v1/embeddings", {"input": [[1, 2], [3]], "encoding_format": "base64"}),
    ],
)
async def test_the_other_endpoints_go_the_same_way(path: str, body: Any) -> None:
    async with gateway() as g:
        response = await g.client.post(path, json={"model": "test", **body})
        assert (response.status_code, response.content) == (200, COMPLETION)
        assert (g.first.requests[0][0], msgspec.json.decode(g.first.requests[0][2])) == (
            path, {"model": "first-model", **body}
        )  # fmt: skip


async def test_a_provider_without_the_endpoint_is_not_asked() -> None:
    class Deaf:
        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        def register_providers(self, register: Any) -> None:
            target = lambda name, config: SimpleNamespace(name=name, provider="deaf", endpoints=None)  # noqa: E731
            register(SimpleNamespace(name="deaf", endpoints=frozenset(), native=frozenset(), target=target))

    models = {"test": {"targets": [{"provider": "deaf"}, "second"]}, "deaf": {"targets": [{"provider": "deaf"}]}}
    async with gateway({"deaf": Deaf}, models=models) as g:
        assert (await g.chat()).status_code == 200
        nobody = await g.chat({**CHAT, "model": "deaf"})
    assert (nobody.status_code, error_of(nobody)["code"]) == (400, "unsupported_endpoint")
