"""What each kind of engine is asked, and what its answers mean: the formats of the real ones, on real sockets."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.config import Secret

LLAMA_LOADING = (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})
TGI_UNHEALTHY = (503, {"error": "unhealthy", "error_type": "healthcheck"})
VLLM_NO_KEY = (401, {"error": "Unauthorized"})
EMPTY = (200, "")
TAGS = (
    200,
    {
        "models": [
            {"name": "llama3.2:latest", "model": "llama3.2:latest", "size": 1, "details": {"format": "gguf"}},
            {"name": "qwen3:8b", "modified_at": "2025-10-03T23:34:03.409490317-07:00", "digest": "a2af"},
        ]
    },
)


async def test_any_openai_server_is_well_if_it_lists_its_models(engine: Any, listing: Any, checking: Any) -> None:
    async with engine({"/v1/models": listing("a", "b")}) as server:
        found = await checking(server, "openai")
    assert (found.verdict, found.listed, found.serves) == ("well", ("a", "b"), {"a", "b"})


async def test_it_is_asked_with_our_key(engine: Any, listing: Any, checking: Any) -> None:
    async with engine({"/v1/models": listing("a")}) as server:
        await checking(server, "openai", api_key=Secret("sk-1"), headers={"X-Team": Secret("red")})
    headers = server.asked[0][1]
    assert (headers["authorization"], headers["x-team"]) == ("Bearer sk-1", "red")


@pytest.mark.parametrize("kind", ["openai", "ollama", "vllm", "tgi", "llamacpp", "auto"])
@pytest.mark.parametrize("status", [401, 403, 407])
async def test_a_refused_key_is_told_apart(engine: Any, checking: Any, kind: str, status: int) -> None:
    no = (status, {"error": "no"})
    async with engine({"/health": EMPTY, "/v1/models": no, "/api/tags": no}) as server:
        found = await checking(server, kind)
    assert found.verdict == "refused"
    assert str(status) in found.reason


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (500, "it answers 500 at /models"),
        (404, "it answers 404 at /models: is its base_url right?"),
        (302, "it answers 302 at /models: is its base_url right?"),
    ],
)
async def test_what_else_it_answers_is_a_failure(engine: Any, checking: Any, status: int, reason: str) -> None:
    async with engine({"/v1/models": (status, "")}) as server:
        found = await checking(server, "openai")
    assert (found.verdict, found.reason) == ("failed", reason)


async def test_a_limit_on_checks_is_no_failure(engine: Any, checking: Any) -> None:
    async with engine({"/v1/models": (429, {"error": {}})}) as server:
        assert (await checking(server, "openai")).verdict == "well"


@pytest.mark.parametrize("body", ["<html>", "[]", '{"data": 1}', "", "[" * 100_000])
async def test_a_list_that_cannot_be_read_is_a_failure(engine: Any, checking: Any, body: str) -> None:
    async with engine({"/v1/models": (200, body)}) as server:
        assert (await checking(server, "openai")).verdict == "failed"


async def test_an_empty_list_is_a_list(engine: Any, checking: Any) -> None:
    async with engine({"/v1/models": (200, {"object": "list", "data": None})}) as server:
        assert (await checking(server, "openai")).serves == frozenset()


async def test_names_that_cannot_be_asked_for_are_left_out(engine: Any, listing: Any, checking: Any) -> None:
    names = ["good", "", " x", "a\nb", "x" * 257, "good"]
    async with engine({"/v1/models": listing(*names)}) as server:
        assert (await checking(server, "openai")).listed == ("good",)


async def test_of_a_list_without_end_a_part_is_kept(engine: Any, listing: Any, checking: Any) -> None:
    async with engine({"/v1/models": listing(*map(str, range(5000)))}) as server:
        assert len((await checking(server, "openai")).listed) == 1000


async def test_a_closed_door_is_told_apart(engine: Any, checking: Any) -> None:
    server = engine({})
    try:
        assert (await checking(server, "openai")).verdict == "unreachable"
    finally:
        await server.__aexit__()


# --- vLLM --------------------------------------------------------------------------------------------------------


async def test_vllm_is_asked_at_its_root_and_then_for_its_models(engine: Any, listing: Any, checking: Any) -> None:
    async with engine({"/health": EMPTY, "/v1/models": listing("llama", "my-lora", owner="vllm")}) as server:
        found = await checking(server, "vllm")
    assert (server.paths, found.serves) == (["/health", "/v1/models"], {"llama", "my-lora"})


async def test_a_vllm_whose_engine_is_dead_has_failed(engine: Any, checking: Any) -> None:
    async with engine({"/health": (503, "")}) as server:
        found = await checking(server, "vllm")
    assert (found.verdict, found.reason) == ("failed", "its engine is dead: 503 at /health")


async def test_vllm_tells_by_its_list_whether_it_accepts_our_key(engine: Any, checking: Any) -> None:
    async with engine({"/health": EMPTY, "/v1/models": VLLM_NO_KEY}) as server:
        assert (await checking(server, "vllm")).verdict == "refused"


# --- llama.cpp ---------------------------------------------------------------------------------------------------


async def test_llama_cpp_is_starting_while_it_loads(engine: Any, listing: Any, checking: Any) -> None:
    async with engine({"/health": LLAMA_LOADING, "/v1/models": listing("x")}) as server:
        assert (await checking(server, "llamacpp")).verdict == "starting"


async def test_llama_cpp_is_well_when_it_says_so(engine: Any, listing: Any, checking: Any) -> None:
    async with engine({"/health": (200, {"status": "ok"}), "/v1/models": listing("x.gguf")}) as server:
        found = await checking(server, "llamacpp")
    assert (found.verdict, found.listed) == ("well", ("x.gguf",))


@pytest.mark.parametrize("answer", [(503, "no JSON"), (503, {"error": {"type": "else", "message": "else"}}), (500, "")])
async def test_whatever_else_it_says_is_a_failure(engine: Any, checking: Any, answer: Any) -> None:
    async with engine({"/health": answer}) as server:
        assert (await checking(server, "llamacpp")).verdict == "failed"


# --- found out by the list ---------------------------------------------------------------------------------------


async def test_llama_cpp_is_recognised_while_it_loads(engine: Any, listing: Any, checking: Any) -> None:
    """Its list of models is there before the model is."""
    async with engine({"/health": LLAMA_LOADING, "/v1/models": listing("x", owner="llamacpp")}) as server:
        assert (await checking(server, "auto")).verdict == "starting"


async def test_llama_cpp_answers_to_every_name(engine: Any, listing: Any, checking: Any) -> None:
    async with engine({"/health": EMPTY, "/v1/models": listing("x", owner="llamacpp")}) as server:
        assert [(await checking(server, kind)).any_model for kind in ("auto", "llamacpp")] == [True, True]


async def test_vllm_is_recognised_when_its_engine_is_dead(engine: Any, listing: Any, checking: Any) -> None:
    async with engine({"/health": (503, ""), "/v1/models": listing("x", owner="vllm")}) as server:
        assert (await checking(server, "auto")).verdict == "failed"


@pytest.mark.parametrize("status", [404, 401, 500, 301])
async def test_what_a_proxy_says_at_that_path_is_of_no_matter(
    engine: Any, listing: Any, checking: Any, status: int
) -> None:
    async with engine({"/health": (status, ""), "/v1/models": listing("x", owner="vllm")}) as server:
        assert (await checking(server, "auto")).verdict == "well"


async def test_nor_that_it_says_nothing(engine: Any, listing: Any, checking: Any) -> None:
    async with engine({"/v1/models": listing("x", owner="vllm")}) as server:
        server.silent_at = "/health"
        assert (await checking(server, "auto")).verdict == "well"


async def test_other_servers_are_asked_for_their_list_alone(engine: Any, listing: Any, checking: Any) -> None:
    async with engine({"/v1/models": listing("x", owner="openai")}) as server:
        await checking(server, "auto")
    assert server.paths == ["/v1/models"]


# --- text-generation-inference, Ollama, none -----------------------------------------------------------------------


async def test_tgi_is_not_ready_when_it_says_so(engine: Any, checking: Any) -> None:
    async with engine({"/health": TGI_UNHEALTHY}) as server:
        assert (await checking(server, "tgi")).verdict == "unready"


async def test_a_tgi_without_a_list_of_models_is_well(engine: Any, checking: Any) -> None:
    async with engine({"/health": EMPTY}) as server:
        found = await checking(server, "tgi")
    assert (found.verdict, found.serves) == ("well", None)


async def test_ollama_serves_its_tags_and_the_latest_without_its_tag(engine: Any, checking: Any) -> None:
    async with engine({"/api/tags": TAGS}) as server:
        found = await checking(server, "ollama")
    assert found.serves == {"llama3.2:latest", "llama3.2", "qwen3:8b"}


async def test_but_lists_only_its_tags(engine: Any, checking: Any) -> None:
    async with engine({"/api/tags": TAGS}) as server:
        assert (await checking(server, "ollama")).listed == ("llama3.2:latest", "qwen3:8b")


async def test_what_is_no_ollama_has_failed(engine: Any, checking: Any) -> None:
    async with engine({"/api/tags": (200, {"models": "?"})}) as server:
        assert (await checking(server, "ollama")).verdict == "failed"


async def test_none_is_not_asked(engine: Any, checking: Any) -> None:
    async with engine({}) as server:
        assert (await checking(server, "none")).verdict == "well"
    assert server.asked == []
