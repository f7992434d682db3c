"""The provider `openai`: which backends it accepts, what it sends them, and what it makes of their answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from headrace.config import BackendConfig
from headrace.errors import ConfigError, UpstreamError
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace.testing import COMPLETION, FakeBackend, serve

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def document(**backend: Any) -> dict[str, Any]:
    return {
        "server": {"anonymous": True},
        "backends": {"b": {"provider": "openai", **backend}},
        "models": {"m": {"targets": ["b"]}},
        "plugins": {"openai": {}},
    }


def assembled(**backend: Any) -> Gateway:
    return Gateway(parse(document(**backend)), "test").assemble()


@contextlib.asynccontextmanager
async def asking(**backend: Any) -> AsyncIterator[tuple[httpx.AsyncClient, FakeBackend]]:
    async with FakeBackend() as fake:
        settings = document(**{"base_url": fake.url, **backend})
        async with serve(settings) as running, httpx.AsyncClient(base_url=running.url, trust_env=False) as client:
            yield client, fake


# --- Backends ---


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("", "https://api.openai.com/v1"),
        ("http://gpu1:8000", "http://gpu1:8000/v1"),
        ("http://gpu1:8000/", "http://gpu1:8000/v1"),
        ("http://gpu1:8000/v1", "http://gpu1:8000/v1"),
        ("http://gpu1:8000/v1/", "http://gpu1:8000/v1"),
        ("https://host/api/openai/v1", "https://host/api/openai/v1"),
        ("https://host/openai", "https://host/openai"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
        ("HTTPS://Host", "HTTPS://Host/v1"),
    ],
)
def test_base_url_is_taken_with_or_without_v1(given: str, used: str) -> None:
    (model,) = assembled(base_url=given).models
    assert model.targets[0].base_url == used


@pytest.mark.parametrize(
    "given",
    ["gpu1:8000", "gpu1", "ftp://gpu1", "http://", "http:///v1", "file:///etc/passwd", "http://gpu1:port", "http://[::1",
     "http://gpu1:99999", "http://gpu 1"],
)  # fmt: skip
def test_base_url_that_is_no_web_address_is_refused_with_its_place(given: str) -> None:
    with pytest.raises(ConfigError, match=r"test: \[backends.b\].*"):
        assembled(base_url=given)


@pytest.mark.parametrize(
    "given", ["http://gpu1/v1?key=sk-1", "http://gpu1/v1#x", "http://user:sk-1@gpu1/v1", "http://user@gpu1"]
)
def test_base_url_that_carries_more_than_an_address_is_refused_without_repeating_it(given: str) -> None:
    with pytest.raises(ConfigError, match="must not carry a query, a fragment or a user: keys go to api_key") as raised:
        assembled(base_url=given)
    assert "sk-1" not in str(raised.value)


def test_options_are_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"\[backends.b\]: options: the provider 'openai' has none, but gpu was given"
    ):
        assembled(options={"gpu": 1})


def test_the_plugin_has_no_settings() -> None:
    with pytest.raises(ConfigError, match=r"\[plugins.openai\] key"):
        Gateway(parse({**document(), "plugins": {"openai": {"key": 1}}}), "test")


def test_a_ca_bundle_that_is_not_there_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[backends.b\].*verify"):
        assembled(base_url="https://gpu1", verify=str(tmp_path / "none.pem"))


def test_a_proxy_that_is_no_web_address_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"\[backends.b\].*proxy"):
        assembled(base_url="https://gpu1", proxy="nonsense")


def test_everything_about_a_backend_reaches_its_target() -> None:
    table = {
        "base_url": "http://gpu1", "model": "big", "api_key": "sk-1", "headers": {"X-Org": "o"}, "weight": 3,
        "timeouts": {"connect": 1.0}, "max_connections": 7, "verify": False, "proxy": "http://proxy:3128",
    }  # fmt: skip
    ((model),) = assembled(**table).models
    target = model.targets[0]
    found = {name: getattr(target, name) for name in table if name in BackendConfig.__struct_fields__}
    expected = parse(document(**table)).backends["b"]
    assert found == {**{name: getattr(expected, name) for name in table}, "base_url": "http://gpu1/v1"}
    assert (target.name, target.provider) == ("b", "openai")


# --- Requests ---


async def test_only_the_model_changes_and_every_other_byte_stays() -> None:
    messages = b'[ {"role":"user","content":"\\u00e9 \xc3\xa9 1e400"} ]'
    body = b'{ "x" : 1.50, "model":"m" ,"messages":%s,"n":null,"z":[1e5]}' % messages
    async with asking(model="big") as (client, backend):
        await client.post("/v1/chat/completions", content=body)
        sent = backend.requests[0][2]
    assert msgspec.json.decode(sent) == {**msgspec.json.decode(body), "model": "big"}
    for kept in (b"1.50", messages, b'"n":null', b"[1e5]"):
        assert kept in sent


@pytest.mark.parametrize("model", ["", "m"])
async def test_the_body_goes_out_as_it_came_where_the_name_is_the_same(model: str) -> None:
    body = b'{ "x":1, "x":2, "model" : "m", "messages":[{"role":"user"}] }\n'
    async with asking(model=model) as (client, backend):
        assert (await client.post("/v1/chat/completions", content=body)).status_code == 200
        assert backend.requests[0][2] == body


@pytest.mark.parametrize(
    ("path", "body"),
    [("/chat/completions", CHAT), ("/completions", {"prompt": "x"}), ("/embeddings", {"input": "x"})],
)
async def test_each_endpoint_has_its_path_under_base_url(path: str, body: Any) -> None:
    async with asking() as (client, backend):
        assert (await client.post(f"/v1{path}", json={"model": "m", **body})).content == COMPLETION
        assert backend.requests[0][0] == f"/v1{path}"


async def test_the_key_and_the_headers_of_the_backend_are_sent() -> None:
    async with asking(api_key="sk-1", headers={"X-Org": "o", "User-Agent": "ours"}) as (client, backend):
        await client.post("/v1/chat/completions", json={"model": "m", **CHAT}, headers={"User-Agent": "theirs"})
        _, headers, _ = backend.requests[0]
    assert (headers["authorization"], headers["x-org"], headers["user-agent"]) == ("Bearer sk-1", "o", "ours")


# --- Models and health ---


@contextlib.asynccontextmanager
async def answering(status: bytes, body: bytes) -> AsyncIterator[str]:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_models_are_those_the_backend_lists() -> None:
    async with FakeBackend() as fake, serve(document(base_url=fake.url, api_key="sk-1")) as running:
        (model,) = running.gateway.models
        assert list(await running.gateway.providers["openai"].models(model.targets[0])) == ["fake-model"]
        path, headers, _ = fake.requests[0]
    assert (path, headers["authorization"]) == ("/v1/models", "Bearer sk-1")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"data":{}}', b'{"data":[{"name":"x"}]}', b"\xff"])
async def test_a_list_of_models_that_cannot_be_read_is_an_upstream_error(body: bytes) -> None:
    async with answering(b"200 OK", body) as url, serve(document(base_url=url)) as running:
        (model,) = running.gateway.models
        with pytest.raises(UpstreamError, match="list of models cannot be read: is its base_url right"):
            await running.gateway.providers["openai"].models(model.targets[0])


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (b"200 OK", b"<html>", "The backend's list of models cannot be read: is its base_url right?"),
        (b"401 Unauthorized", b"{}", "The backend refused the gateway's own credentials."),
        (b"404 Not Found", b"nothing here", "The backend answered 404 in a form that is not an API error"),
        (b"500 X", b"{}", "The backend failed with status 500."),
        (b"503 X", b"{}", "The backend is not available."),
    ],
)
async def test_the_reason_of_a_backend_that_is_not_well_says_what_to_look_at(
    status: bytes, body: bytes, reason: str
) -> None:
    async with (
        answering(status, body) as url,
        serve(document(base_url=url)) as running,
        httpx.AsyncClient(base_url=running.url, trust_env=False) as client,
    ):
        ready = await client.get("/health/ready")
    assert (ready.status_code, ready.json()["backends"]["b"]["status"]) == (503, "down")
    assert ready.json()["backends"]["b"]["reason"].startswith(reason)
