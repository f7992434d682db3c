"""The provider `vllm`: which backends it accepts, what it sends them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from headrace.errors import ConfigError
from headrace.exchange import Target
from headrace.testing import FakeBackend, serve

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}


def target(kit: Any, backend: dict[str, Any], **engines: dict[str, Any]) -> Target:
    (model,) = kit.assembled({"engines": engines}, backend).models
    found: Target = model.targets[0]
    return found


@contextlib.asynccontextmanager
async def asking(**backend: Any) -> AsyncIterator[tuple[httpx.AsyncClient, FakeBackend]]:
    async with FakeBackend() as fake:
        document = {
            "server": {"anonymous": True},
            "backends": {"b": {"provider": "vllm", "base_url": fake.url, **backend}},
            "models": {"m": {"targets": ["b"], "retry": {"rounds": 1}}},
            "plugins": {"vllm": {}},
        }
        async with serve(document) as running, httpx.AsyncClient(base_url=running.url, trust_env=False) as client:
            yield client, fake


# --- backends ---


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://gpu1:8000", "http://gpu1:8000/v1"),
        ("http://gpu1:8000/v1/", "http://gpu1:8000/v1"),
        ("https://host/vllm/v1", "https://host/vllm/v1"),
    ],
)
def test_base_url_is_taken_with_or_without_v1(kit: Any, given: str, used: str) -> None:
    assert target(kit, {"base_url": given}).base_url == used


def test_an_engine_by_its_name_brings_its_address_its_model_and_its_key(kit: Any) -> None:
    engine = {"model": "org/big", "served_model_name": ["big", "large"], "port": 8123, "api_key": "sk-engine"}
    found = target(kit, {"options": {"engine": "gpu"}}, gpu=engine)
    assert (found.base_url, found.model) == ("http://127.0.0.1:8123/v1", "big")
    assert found.api_key is not None and found.api_key.reveal() == "sk-engine"


def test_an_adapter_of_an_engine_is_asked_for_by_its_name(kit: Any) -> None:
    engine = {"model": "org/big", "lora_modules": {"style": "/loras/style"}}
    assert target(kit, {"options": {"engine": "gpu"}, "model": "style"}, gpu=engine).model == "style"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000/v1"),
        ("::", "http://[::1]:8000/v1"),
        ("gpu1", "http://gpu1:8000/v1"),
    ],
)
def test_an_engine_that_listens_everywhere_is_asked_on_this_machine(kit: Any, host: str, url: str) -> None:
    assert target(kit, {"options": {"engine": "gpu"}}, gpu={"model": "m", "host": host}).base_url == url


def test_vllm_goes_on_with_answers_without_being_said_to(kit: Any) -> None:
    assert target(kit, {"base_url": "http://gpu1:8000"}).prefill


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        ({}, "say where it is: base_url"),
        ({"base_url": "gpu1:8000"}, "base_url is not an address"),
        ({"base_url": "http://gpu1/v1?key=1"}, "must not carry a query"),
        ({"base_url": "http://gpu1/v1/chat/completions"}, "must not name an endpoint"),
        ({"options": {"engine": "gpu2"}}, r"there is no \[plugins.vllm.engines.gpu2\] \(there are: gpu\)"),
        ({"options": {"engine": "gpu"}, "base_url": "http://gpu1"}, "an engine of the gateway's own has its address"),
        ({"options": {"engine": "gpu"}, "proxy": "http://p:1"}, "proxy: an engine on this machine needs none"),
        ({"options": {"motor": "gpu"}}, "has `engine` alone, but motor was given"),
        ({"base_url": "http://gpu1", "verify": "/nowhere"}, "verify: there is no file"),
    ],
)
def test_a_backend_that_cannot_be_is_refused_with_its_place(kit: Any, backend: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[backends.b\]: .*{told}"):
        target(kit, backend, gpu={"model": "m"})


@pytest.mark.parametrize(
    ("models", "essential"),
    [
        ({"m": {"targets": ["gpu"]}}, True),
        ({"m": {"targets": ["gpu", "lora"]}}, True),
        ({"m": {"targets": ["gpu", "other"]}}, False),
        ({"m": {"targets": ["gpu"], "fallback": ["other"]}}, False),
        ({"m": {"targets": ["gpu"], "fallback_models": ["n"]}, "n": {"targets": ["other"]}}, False),
        ({"m": {"targets": ["other"]}}, False),
        ({"m": {"targets": ["gpu", "other"]}, "n": {"targets": ["gpu"]}}, True),
    ],
)
def test_an_engine_is_essential_if_there_is_a_model_that_nobody_else_answers(
    kit: Any, models: dict[str, Any], essential: bool
) -> None:
    from headrace_vllm.launcher import is_essential

    own = {"provider": "vllm", "options": {"engine": "gpu"}}
    backends = {"gpu": own, "lora": {**own, "model": "l"}, "other": {"provider": "vllm", "base_url": "http://x:1"}}
    gateway = kit.assembled({"engines": {"gpu": {"model": "m"}}}, backends=backends, models=models)
    assert is_essential("gpu", gateway) is essential


# --- bodies ---


async def test_a_body_is_passed_on_byte_for_byte() -> None:
    body = b'{ "model": "m", "messages" : [{"role":"user","content":"x"}], "top_k": 1.0e1, "structured_outputs":{} }'
    async with asking() as (client, fake):
        answer = await client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 200
    assert fake.requests[-1][2] == body


async def test_only_the_models_name_is_replaced() -> None:
    body = b'{ "model": "m", "messages" : [{"role":"user","content":"x"}], "min_p": 5e-2 }'
    async with asking(model="org/big") as (client, fake):
        await client.post("/v1/chat/completions", content=body)
    assert fake.requests[-1][2] == body.replace(b'"m"', b'"org/big"')


async def sent(path: str = "/v1/chat/completions", **fields: Any) -> dict[str, Any]:
    """What arrives of a request."""
    async with asking() as (client, fake):
        answer = await client.post(path, json={**CHAT, **fields})
        assert answer.status_code == 200, answer.text
    return dict(json.loads(fake.requests[-1][2]))


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("guided_json", "json", SCHEMA),
        ("guided_json", "json", '{"type": "object"}'),
        ("guided_regex", "regex", r"\d+ \"é\""),
        ("guided_choice", "choice", ["yes", "no"]),
        ("guided_grammar", "grammar", 'root ::= "a" | "b"'),
    ],
)
async def test_what_was_called_guided_is_said_as_it_is_called_now(name: str, kind: str, value: Any) -> None:
    assert await sent(**{name: value}) == {**CHAT, "structured_outputs": {kind: value}}


async def test_a_text_to_go_on_with_may_be_guided_too() -> None:
    fields = await sent("/v1/completions", prompt="Is it? ", guided_choice=["yes", "no"])
    assert fields["structured_outputs"] == {"choice": ["yes", "no"]}


async def test_the_order_of_a_schema_is_kept() -> None:
    async with asking() as (client, fake):
        await client.post("/v1/chat/completions", json={**CHAT, "guided_json": SCHEMA})
    assert json.dumps(SCHEMA, separators=(",", ":")).encode() in fake.requests[-1][2].replace(b" ", b"")


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_json": None, "guided_decoding_backend": None, "guided_whitespace_pattern": None},
        {"guided_decoding_backend": "auto"},
    ],
)
async def test_what_asks_for_nothing_is_left_out(fields: dict[str, Any]) -> None:
    assert await sent(**fields) == CHAT


async def test_what_is_said_twice_alike_is_said_once() -> None:
    said = {"choice": ["a", "b"]}
    assert await sent(guided_choice=["a", "b"], structured_outputs=said) == {**CHAT, "structured_outputs": said}


async def test_a_format_that_asks_for_nothing_is_no_contradiction() -> None:
    fields = await sent(guided_choice=["a"], response_format={"type": "text"})
    assert fields["structured_outputs"] == {"choice": ["a"]}


async def test_a_message_about_guided_json_is_a_message() -> None:
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": 'say "guided_json": 1 or "guided_choice"'}]}
    assert await sent(**fields) == {**CHAT, **fields}


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex", "cannot be had beside 'guided_json'"),
        ({"guided_choice": ["a"], "structured_outputs": {"choice": ["b"]}}, "guided_choice", "something else than"),
        ({"guided_choice": ["a"], "structured_outputs": {"regex": "a"}}, "guided_choice", "something else than"),
        (
            {"guided_json": SCHEMA, "response_format": {"type": "json_object"}},
            "guided_json",
            "beside 'response_format'",
        ),
        ({"guided_decoding_backend": "outlines"}, "guided_decoding_backend", "--structured-outputs-config"),
        ({"guided_json": SCHEMA, "guided_whitespace_pattern": " ?"}, "guided_whitespace_pattern", "Leave it out"),
        ({"guided_choice": "yes"}, "guided_choice", "is invalid: Expected `array`"),
        ({"guided_choice": []}, "guided_choice", "is invalid"),
        ({"guided_regex": 1}, "guided_regex", "is invalid: Expected `str`"),
        ({"guided_json": 5}, "guided_json", "is invalid"),
    ],
)
async def test_what_cannot_be_said_any_more_is_refused_by_name(fields: dict[str, Any], param: str, told: str) -> None:
    async with asking() as (client, fake):
        answer = await client.post("/v1/chat/completions", json={**CHAT, **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert told in error["message"]
    assert not fake.requests
