"""The provider `llamacpp`, in front of a real llama.cpp with a small model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from headrace import hookimpl
from headrace.config import Strict
from headrace.dialects import OPENAI_ENDPOINTS
from headrace.errors import ConfigError, UpstreamError
from headrace.exchange import Exchange
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace.testing import FakeBackend, serve
from headrace_llamacpp import Plugin

HELLO = [{"role": "user", "content": "hi there"}]


class Counting:
    """Wants token counts; `counted` has them."""

    class Config(Strict, frozen=True):
        pass

    def __init__(self, config: Any, gateway: Any) -> None:
        self.counted: list[Any] = []

    @hookimpl
    async def authorize(self, exchange: Any) -> None:
        exchange.usage_wanted = True

    @hookimpl
    async def on_complete(self, exchange: Any, outcome: Any) -> None:
        self.counted.append(outcome.usage)


def document(url: str = "http://gpu:8080", **backend: Any) -> dict[str, Any]:
    return {
        "server": {"anonymous": True},
        "backends": {"gpu": {"provider": "llamacpp", "base_url": url, **backend}},
        "models": {"m": {"targets": ["gpu"], "retry": {"rounds": 1}}},
        "plugins": {"llamacpp": {}},
    }


Running = Callable[..., Any]


@pytest.fixture
def gateway(real: str, kit: Any) -> Running:
    """A gateway in front of the real llama.cpp: an HTTP client, and the gateway."""

    @asynccontextmanager
    async def run(plugins: Any = None, models: Any = None, **backend: Any) -> AsyncIterator[Any]:
        settings = document(real, **{"api_key": kit.KEY, **backend})
        settings["models"].update(models or {})
        settings["plugins"]["openai"] = {}
        async with (
            serve(settings, plugins={"llamacpp": Plugin, **(plugins or {})}) as running,
            httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=60) as client,
        ):
            yield client, running.gateway

    return run


def target(**backend: Any) -> Any:
    assembled = Gateway(parse(document(**backend), source="test"), "test", {"llamacpp": Plugin}).assemble()
    (found,) = assembled.models.targets
    return found


async def test_a_chat_is_answered(gateway: Running) -> None:
    async with gateway() as (client, _):
        fields = {"model": "m", "messages": HELLO, "max_tokens": 4, "cache_prompt": True, "id_slot": 1}
        answer = (await client.post("/v1/chat/completions", json=fields)).json()
    assert (answer["model"], answer["usage"]["completion_tokens"]) == ("smol", 4)


async def test_a_stream_is_whole(gateway: Running) -> None:
    async with gateway() as (client, _):
        fields = {"model": "m", "messages": HELLO, "max_tokens": 4, "stream": True}
        text = (await client.post("/v1/chat/completions", json=fields)).text
    assert text.endswith("data: [DONE]\n\n")
    assert '"finish_reason":"length"' in text
    assert '"usage"' not in text


@pytest.mark.parametrize(
    ("path", "given"),
    [("/v1/chat/completions", {"messages": HELLO}), ("/v1/completions", {"prompt": "Once upon a time"})],
    ids=["chat", "completion"],
)
async def test_plugins_learn_the_token_counts_of_a_stream(gateway: Running, path: str, given: Any) -> None:
    async with gateway(plugins={"counting": Counting}) as (client, running):
        reply = await client.post(path, json={"model": "m", "max_tokens": 4, "stream": True, **given})
        assert reply.text.endswith("data: [DONE]\n\n")
    (usage,) = running.plugins["counting"].counted
    assert (usage.completion_tokens, usage.estimated) == (4, False)
    assert usage.prompt_tokens > 3


PROMPTS = [
    ("/v1/chat/completions", {"messages": HELLO}),
    ("/v1/chat/completions", {"messages": [{"role": "system", "content": "<|im_start|> be kind"}, *HELLO]}),
    ("/v1/completions", {"prompt": "Once upon a time, <|im_end|> there"}),
]


@pytest.mark.parametrize(("path", "fields"), PROMPTS, ids=["chat", "system", "completion"])
async def test_a_prompt_is_counted_as_llama_cpp_counts_it(gateway: Running, path: str, fields: Any) -> None:
    async with gateway() as (client, running):
        body = {"model": "m", "max_tokens": 1, **fields}
        said = (await client.post(path, json=body)).json()["usage"]["prompt_tokens"]
        (found,) = running.models.targets
        counted = await running.providers["llamacpp"].count_prompt(exchange(path, body), found)
    assert counted == said


@pytest.mark.parametrize("prompt", [[1, 2], ["a", "b"]], ids=["tokens", "several"])
async def test_a_prompt_that_cannot_be_counted_is_told(gateway: Running, prompt: Any) -> None:
    async with gateway() as (_, running):
        (found,) = running.models.targets
        with pytest.raises(UpstreamError):
            await running.providers["llamacpp"].count_prompt(
                exchange("/v1/completions", {"model": "m", "prompt": prompt}), found
            )


def exchange(path: str, body: Any) -> Exchange:
    made = Exchange(
        id="r",
        endpoint=OPENAI_ENDPOINTS[path],
        scope={"type": "http", "method": "POST", "path": path, "headers": [], "client": ("127.0.0.1", 1)},
    )
    made.take_body(json.dumps(body).encode())
    return made


async def test_a_prompt_that_is_too_long_is_answered_by_a_model_that_has_room(gateway: Running) -> None:
    async with FakeBackend() as roomy:
        longer = {"provider": "openai", "base_url": roomy.url, "model": "fake-model"}
        models = {
            "m": {"targets": ["gpu"], "context_window_fallbacks": ["long"]},
            "long": {"targets": [longer]},
        }
        async with gateway(models=models) as (client, _):
            fields = {"model": "m", "messages": [{"role": "user", "content": "word " * 900}]}
            answer = (await client.post("/v1/chat/completions", json=fields)).json()
    assert answer["choices"][0]["message"]["content"] == "hi"


async def test_an_answer_that_was_begun_is_gone_on_with_and_not_repeated(gateway: Running) -> None:
    async with FakeBackend() as broken:
        broken.cut_after = 1
        first = {"provider": "openai", "base_url": broken.url, "model": "fake-model"}
        models = {"m": {"targets": [first, "gpu"], "midstream": "resume"}}
        async with gateway(models=models) as (client, _):
            fields = {"model": "m", "messages": HELLO, "stream": True, "max_tokens": 6}
            text = (await client.post("/v1/chat/completions", json=fields)).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    said = "".join(each["choices"][0]["delta"].get("content") or "" for each in events if each["choices"])
    assert text.endswith("data: [DONE]\n\n")
    assert said.startswith("t0 ")
    assert said.count("t0 ") == 1
    assert len(said) > len("t0 ")


async def test_a_server_with_another_key_is_not_well(gateway: Running) -> None:
    async with gateway(api_key="sk-wrong") as (client, _):
        ready = (await client.get("/health/ready")).json()
    assert "credentials" in ready["backends"]["gpu"]["reason"]


async def test_a_server_that_answers_is_well(gateway: Running) -> None:
    async with gateway() as (client, _):
        assert (await client.get("/health/ready")).json()["status"] == "ready"


async def test_a_server_that_loads_its_model_is_starting(site: Any, kit: Any) -> None:
    site.write()
    site.mode.write_text("slow")
    process = site.spawn()
    try:
        settings = document(f"http://127.0.0.1:{site.port}")
        async with serve(settings, plugins={"llamacpp": Plugin}) as running:
            (found,) = running.gateway.models.targets
            check = running.gateway.health_checks["llamacpp"]
            health = await check.check(found)
            assert (health.ok, health.starting, health.reason) == (False, True, "it is loading its model")
            site.mode.unlink()
            kit.until(lambda: httpx.get(f"http://127.0.0.1:{site.port}/health", trust_env=False).status_code == 200)
            assert (await check.check(found)).ok
    finally:
        process.kill()
        process.wait()


async def test_how_busy_a_server_is_can_be_read(real: str, kit: Any) -> None:
    async with httpx.AsyncClient(trust_env=False, headers={"Authorization": f"Bearer {kit.KEY}"}) as client:
        text = (await client.get(f"{real}/metrics")).text
    assert "\nllamacpp:requests_processing 0" in text
    assert "\nllamacpp:requests_deferred 0" in text


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/responses", {"input": "hi", "max_output_tokens": 2}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 2}),
        ("/v1/messages/count_tokens", {"messages": HELLO}),
    ],
)
async def test_llama_cpp_has_the_endpoints_that_it_is_asked_at(real: str, kit: Any, path: str, fields: Any) -> None:
    headers = {"Authorization": f"Bearer {kit.KEY}"}
    async with httpx.AsyncClient(trust_env=False, headers=headers, timeout=60) as client:
        assert (await client.post(real + path, json={"model": "smol", **fields})).status_code == 200


async def test_texts_are_embedded_by_a_server_that_was_started_for_that(start_real: Any) -> None:
    with start_real(embeddings=True, pooling="mean") as url:
        async with (
            serve(document(url, model="smol"), plugins={"llamacpp": Plugin}) as running,
            httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=60) as client,
        ):
            reply = await client.post("/v1/embeddings", json={"model": "m", "input": ["a", "b"]})
    assert [len(each["embedding"]) for each in reply.json()["data"]] == [576, 576]


def test_the_status_of_servers_is_told(site: Any, real: str, kit: Any) -> None:
    site.config.write_text(
        f'[server]\nstate_dir = "{site.folder}/s"\n[backends.gpu]\nprovider = "llamacpp"\nbase_url = "{real}"\n'
        f'api_key = "{kit.KEY}"\n[models.m]\ntargets = ["gpu"]\n[plugins.llamacpp]\n'
    )
    done = site.run("llamacpp", "status", "--json")
    (row,) = json.loads(done.stdout)
    assert (row["backend"], row["model"], row["slots"], row["busy"], row["context"]) == ("gpu", "smol", 2, 0, 512)


WRONG = [
    ({"url": ""}, "say where it is"),
    ({"url": "gpu:8080"}, "base_url is not an address"),
    ({"options": {"slots": 3}}, "has `engine` alone"),
    ({"options": {"engine": "large"}}, "base_url, proxy: an engine of the gateway's own"),
    ({"url": "", "options": {"engine": "large"}}, "there is no [plugins.llamacpp.engines.large]"),
    ({"endpoints": ["rerank"]}, "there is no 'rerank'"),
]


@pytest.mark.parametrize(("backend", "words"), WRONG, ids=str)
def test_a_backend_that_cannot_be_is_refused(backend: Any, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        target(**backend)
    assert words in str(error.value)


def test_every_endpoint_is_llama_cpps_own_unless_the_backend_says_less() -> None:
    assert {"chat", "completions", "embeddings", "responses", "messages"} <= (target().endpoints or set())
    assert target(endpoints=["chat"]).endpoints == {"chat"}
