"""A backend's configuration, its health, what it lists; Ollama's own OpenAI-compatible endpoints; fetched pictures."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from headrace.errors import ConfigError
from headrace.gateway import Gateway
from headrace.providers import Health
from headrace.settings import parse
from headrace_ollama import Plugin

Site = Callable[..., Any]


def target(kit: Any, url: str = "http://gpu:11434", **backend: Any) -> Any:
    """The target of a backend."""
    gateway = Gateway(parse(kit.document(url, **backend), source="test"), "test", {"ollama": Plugin}).assemble()
    (model,) = gateway.models
    return model.targets[0]


@pytest.mark.parametrize("given", ["http://gpu:11434", "http://gpu:11434/"])
def test_base_url_is_the_servers_address(kit: Any, given: str) -> None:
    assert target(kit, given).base_url == "http://gpu:11434"


def test_without_a_base_url_it_is_this_machine(kit: Any) -> None:
    assert target(kit, "").base_url == "http://127.0.0.1:11434"


@pytest.mark.parametrize("given", ["gpu:11434", "http://gpu:11434/v1", "http://gpu/api/chat", "http://me:pw@gpu"])
def test_a_base_url_that_is_none_is_refused(kit: Any, given: str) -> None:
    with pytest.raises(ConfigError, match=r"base_url") as error:
        target(kit, given)
    assert "pw" not in str(error.value)


def test_a_path_before_ollamas_own_is_kept(kit: Any) -> None:
    assert target(kit, "https://gpu/ollama/").base_url == "https://gpu/ollama"


WRONG = [
    ({"num_ctx": "many"}, "num_ctx: Expected `int"),
    ({"num_ctx": 0}, "num_ctx"),
    ({"keep_alive": "a while"}, "keep_alive: 'a while' is no duration"),
    ({"api": "grpc"}, "api: Invalid enum value 'grpc'"),
    ({"temperatur": 1}, "temperatur"),
    ({"image_origins": ["images.example.com"]}, "image_origins"),
    ({"image_origins": ["https://images.example.com/"]}, "image_origins"),
    ({"parameters": {"num_ctx": 5}}, "parameters: num_ctx"),
    ({"api": "openai", "num_ctx": 4096}, "num_ctx: leave it out"),
    ({"ignore": ["stream"]}, "ignore"),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=str)
def test_a_wrong_option_is_refused_with_its_name(kit: Any, options: Any, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        target(kit, options=options)
    assert words in str(error.value)


@pytest.mark.parametrize("keep_alive", ["10m", "1h30m", "-1s", -1, 0, 300])
def test_a_duration_may_be_said_in_many_ways(kit: Any, keep_alive: Any) -> None:
    assert target(kit, options={"keep_alive": keep_alive}).options["ollama"].keep_alive == keep_alive


def test_an_endpoint_that_there_is_not_is_refused(kit: Any) -> None:
    with pytest.raises(ConfigError, match="there is no 'messages'"):
        target(kit, endpoints=["messages"])


def test_every_key_of_a_backend_reaches_its_target(kit: Any) -> None:
    found = target(kit, api_key="sk", headers={"X-A": "b"}, weight=3, max_connections=4, prefill=True, verify=False)
    assert (found.api_key.reveal(), found.headers["X-A"].reveal()) == ("sk", "b")
    assert (found.weight, found.max_connections, found.prefill, found.verify) == (3, 4, True, False)


# --- Ollama's OpenAI-compatible endpoints ---


async def test_openais_words_are_passed_on_where_that_is_wanted(site: Site) -> None:
    async with site(options={"api": "openai"}) as client:
        assert (await client.answer(top_a=1))["message"]["content"] == "passed"
        ((_, path, _, fields),) = client.fake.requests
    assert (path, fields["top_a"], fields["model"]) == ("/v1/chat/completions", 1, "llama3.2")


def test_what_is_passed_on_nginx_may_deliver(kit: Any) -> None:
    config = parse(kit.document("http://gpu", options={"api": "openai"}), source="test")
    gateway = Gateway(config, "test", {"ollama": Plugin}).assemble()
    (found,) = gateway.models.targets
    assert "chat" in gateway.providers[found.provider].native


# --- health, models ---


async def health(client: Any, passing: bool = False) -> Health:
    (found,) = client.gateway.models.targets
    check = client.gateway.health_checks[found.provider]
    result: Health = await check.check(found)
    return result


@pytest.mark.parametrize("api", ["native", "openai"])
async def test_an_ollama_that_has_the_model_is_well(site: Site, api: str) -> None:
    async with site(options={"api": api}) as client:
        assert await health(client) == Health(ok=True)


async def test_an_ollama_without_the_model_is_not_and_says_how_to_get_it(site: Site) -> None:
    async with site(model="mistral") as client:
        found = await health(client)
        assert (found.ok, "headrace ollama pull mistral --backend gpu" in found.reason) == (False, True)


async def test_a_model_that_is_not_listed_may_be_known_all_the_same(site: Site) -> None:
    async with site() as client:
        client.fake._GET_api_tags = lambda _: {"models": []}
        assert (await health(client)).ok


async def test_an_ollama_that_is_down_is_not_well(site: Site) -> None:
    async with site() as client:
        await client.fake.__aexit__()
        ready = (await client.http.get("/health/ready")).json()
    assert "gpu" in str(ready)
    assert "cannot be reached" in str(ready) or "broke" in str(ready)


async def test_the_models_that_were_pulled_are_listed(site: Site) -> None:
    async with site() as client:
        (found,) = client.gateway.models.targets
        assert "qwen3:8b" in await client.gateway.providers["ollama"].models(found)


# --- pictures ---

PIXEL = b"\x89PNG pixel"


@asynccontextmanager
async def pictures(answer: bytes) -> Any:
    """A server that gives this to everybody; its origin, and what it was asked."""
    asked: list[str] = []

    async def give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode())
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(give, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()


def http(body: bytes, status: str = "200 OK", kind: str = "image/png", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def seeing(*urls: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}} for url in urls]}]


async def test_a_picture_is_fetched_from_where_that_is_allowed(site: Site) -> None:
    async with pictures(http(PIXEL)) as (origin, asked), site(model="llava", options={"image_origins": [origin]}) as it:
        await it.answer(messages=seeing(f"{origin}/a.png?size=1", f"{origin}/a.png?size=1"))
        assert it.fake.asked["messages"][0]["images"] == [base64.b64encode(PIXEL).decode()] * 2
    assert asked == ["/a.png?size=1"]


async def test_a_picture_is_fetched_from_nowhere_else(site: Site) -> None:
    async with pictures(http(PIXEL)) as (origin, asked), site(model="llava", options={"image_origins": [origin]}) as it:
        other = origin.replace("127.0.0.1", "localhost")
        for url in (f"{other}/a.png", f"{origin}.example.com/a.png", origin.replace("http://", "http://x@") + "/a.png"):
            reply = await it.chat(messages=seeing(url))
            assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_content")
    assert asked == []


MISSING = {
    "redirect": http(b"", "302 Found", more="Location: http://127.0.0.1:1/\r\n"),
    "absent": http(b"", "404 Not Found"),
    "no picture": http(b"<html>", kind="text/html"),
    "cut": http(PIXEL)[:-3],
}


@pytest.mark.parametrize("answer", MISSING.values(), ids=MISSING)
async def test_a_picture_that_cannot_be_had_is_the_callers_to_put_right(site: Site, answer: bytes) -> None:
    async with pictures(answer) as (origin, _), site(model="llava", options={"image_origins": [origin]}) as client:
        reply = await client.chat(messages=seeing(f"{origin}/a.png"))
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_content")
        assert client.fake.requests == []
