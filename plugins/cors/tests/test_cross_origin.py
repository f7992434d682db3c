"""What a browser on another origin gets, over real sockets, from the real application."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import uvicorn

from headrace.app import build_app
from headrace.gateway import Gateway
from headrace.settings import parse

PAGE = "https://app.example.com"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-arch,x-stainless-retry-count,openai-beta",
}


@contextlib.asynccontextmanager
async def listening(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI application on a free port; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


@contextlib.asynccontextmanager
async def serving(backend: str = "http://127.0.0.1:9", **cors: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway with the plugin, whose one model is at `backend`."""
    document = {
        "server": {"anonymous": cors.pop("anonymous", False)},
        "backends": {"b": {"provider": "openai", "base_url": backend}},
        "models": {"m": {"targets": ["b"]}},
        "plugins": {"openai": {}, "cors": {"origins": [PAGE], **cors}},
    }
    gateway = Gateway(parse(document)).assemble()
    async with gateway.running(), listening(build_app(gateway)) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def cross_origin(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


async def test_a_preflight_request_is_answered_without_a_key() -> None:
    async with serving(max_age=300) as client:
        response = await client.options("/v1/chat/completions", headers=PREFLIGHT)
    assert response.status_code == 200
    assert cross_origin(response) == {
        "access-control-allow-origin": PAGE,
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": PREFLIGHT["Access-Control-Request-Headers"],
        "access-control-max-age": "300",
    }
    assert "Origin" in response.headers["vary"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"Origin": "https://evil.example"}, "evil.example"),
        ({"Origin": PAGE + ".evil.example"}, "evil.example"),
        ({"Origin": "null"}, "null"),
        ({"Access-Control-Request-Method": "DELETE"}, "DELETE"),
        ({"Access-Control-Request-Headers": "authorization, x-secret-door"}, "x-secret-door"),
        ({"Access-Control-Request-Private-Network": "true"}, "public network"),
    ],
)
async def test_a_preflight_request_is_refused_with_the_reason(change: dict[str, str], named: str) -> None:
    async with serving() as client:
        response = await client.options("/v1/chat/completions", headers={**PREFLIGHT, **change})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "cors_refused"
    assert named in response.json()["error"]["message"]
    assert "access-control-allow-headers" not in response.headers
    if "Origin" in change:
        assert "access-control-allow-origin" not in response.headers


async def test_headers_of_any_name_may_be_allowed() -> None:
    async with serving(headers=["*"]) as client:
        headers = {**PREFLIGHT, "Access-Control-Request-Headers": "x-anything"}
        response = await client.options("/v1/models", headers=headers)
    assert response.headers["access-control-allow-headers"] == "x-anything"


async def test_pages_by_regular_expression_are_matched_whole() -> None:
    async with serving(origins=[], origin_regex=r"https://[a-z]+\.example\.com") as client:
        allowed = await client.options("/v1/models", headers=PREFLIGHT)
        refused = await client.options("/v1/models", headers={**PREFLIGHT, "Origin": PAGE + ".evil.example"})
    assert (allowed.status_code, refused.status_code) == (200, 400)
    assert allowed.headers["access-control-allow-origin"] == PAGE


async def test_an_allowed_page_may_read_an_answer_and_its_rate_limit_headers() -> None:
    async with serving(anonymous=True) as client:
        response = await client.get("/v1/models", headers={"Origin": PAGE})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
    exposed = response.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-requests"} <= {*exposed}
    assert "access-control-allow-credentials" not in response.headers


async def test_another_page_may_not_read_the_answer() -> None:
    async with serving(anonymous=True) as client:
        response = await client.get("/v1/models", headers={"Origin": "https://evil.example"})
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers
    assert "Origin" in response.headers["vary"]


async def test_a_request_that_comes_from_no_page_is_answered_as_ever() -> None:
    async with serving(anonymous=True) as client:
        response = await client.get("/v1/models")
    assert response.status_code == 200 and cross_origin(response) == {}


async def test_every_page_may_be_allowed() -> None:
    async with serving(origins=["*"], anonymous=True) as client:
        preflight = await client.options("/v1/models", headers={**PREFLIGHT, "Origin": "null"})
        response = await client.get("/v1/models", headers={"Origin": "http://localhost:5173"})
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert response.headers["access-control-allow-origin"] == "*"


async def test_credentials_are_allowed_to_the_page_by_name() -> None:
    async with serving(credentials=True, anonymous=True) as client:
        preflight = await client.options("/v1/models", headers=PREFLIGHT)
        response = await client.get("/v1/models", headers={"Origin": PAGE, "Cookie": "a=b"})
    for each in (preflight, response):
        assert each.headers["access-control-allow-credentials"] == "true"
        assert each.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/chat/completions", 401),
        ("GET", "/v1/models", 401),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/health", 405),
    ],
)
async def test_a_page_may_read_why_it_was_refused(method: str, path: str, status: int) -> None:
    async with serving() as client:
        response = await client.request(method, path, headers={"Origin": PAGE})
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == PAGE
    assert response.headers.get_list("access-control-allow-origin") == [PAGE]
    assert response.json()["error"]["message"]


async def test_options_that_is_no_preflight_request_reaches_the_application() -> None:
    async with serving() as client:
        response = await client.options("/v1/chat/completions", headers={"Origin": PAGE})
    assert response.status_code == 405 and response.headers["access-control-allow-origin"] == PAGE


async def test_an_unreachable_backend_and_an_unknown_model_are_errors_that_a_page_can_read() -> None:
    async with serving(anonymous=True) as client:
        for model, status in (("m", 503), ("other", 404)):
            body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
            response = await client.post("/v1/chat/completions", json=body, headers={"Origin": PAGE})
            assert response.status_code == status, response.text
            assert response.headers["access-control-allow-origin"] == PAGE


class StreamingBackend:
    """An OpenAI-compatible stream that sends its second event only when told to; marks its answers itself."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"access-control-allow-origin", b"*")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'data: {"choices":[]}\n\n', "more_body": True})
        await self.go_on.wait()
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def test_a_stream_is_passed_on_chunk_by_chunk_with_one_set_of_headers() -> None:
    backend = StreamingBackend()
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    async with (
        listening(backend) as url,
        serving(url, anonymous=True) as client,
        client.stream("POST", "/v1/chat/completions", json=body, headers={"Origin": PAGE}) as response,
    ):
        chunks = response.aiter_bytes()
        async with asyncio.timeout(20):
            assert await anext(chunks) == b'data: {"choices":[]}\n\n'
            backend.go_on.set()
            assert b"".join([chunk async for chunk in chunks]) == b"data: [DONE]\n\n"
    assert response.headers.get_list("access-control-allow-origin") == [PAGE]
