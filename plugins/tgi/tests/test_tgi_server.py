"""The provider `tgi`: its backends, their health, models, and how they count."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.errors import ConfigError, UpstreamError
from headrace.exchange import Exchange

HEALTH, INFO = "GET /health", "GET /info"
TOLD = {"model_id": "HF/x", "max_input_tokens": 1023, "max_total_tokens": 2048, "router": "text-generation-router"}


def test_without_an_address_it_is_the_router_s_own(kit: Any) -> None:
    assert kit.assembled("tgi").base_url == "http://127.0.0.1:3000/v1"


@pytest.mark.parametrize("given", [{"options": {"x": 1}}, {"base_url": "here"}, {"endpoints": ["embeddings"]}])
def test_what_it_has_not_is_refused_at_the_start(kit: Any, given: Any) -> None:
    with pytest.raises(ConfigError, match=r"\[backends.b\]"):
        kit.assembled("tgi", **given)


async def test_a_server_that_is_healthy_is_well(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says |= {HEALTH: kit.whole(b"", kind="text/plain"), INFO: kit.whole(TOLD)}
        assert await asking.health() == kit.Health(ok=True)


async def test_an_unhealthy_server_is_not(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[HEALTH] = kit.whole({"error": "unhealthy", "error_type": "healthcheck"}, 503)
        assert (await asking.health()).reason == "its model does not answer: 503 at /health"


async def test_a_context_window_that_is_larger_than_the_server_s_is_told(kit: Any) -> None:
    async with kit.asking("tgi", model_table={"context_window": 8192}) as asking:
        asking.engine.says |= {HEALTH: kit.whole(b"", kind="text/plain"), INFO: kit.whole(TOLD)}
        told = (await asking.health()).reason
    assert told == "it takes 2048 tokens, but context_window of the model 'm' is 8192"


async def test_its_model_is_the_one_of_info(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[INFO] = kit.whole(TOLD)
        assert await asking.models() == ["HF/x"]


async def test_something_else_at_its_address_has_no_models(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        with pytest.raises(UpstreamError, match="is its base_url right"):
            await asking.models()


@pytest.mark.parametrize(
    ("path", "endpoint", "body", "counted"),
    [
        ("/chat_tokenize", "/v1/chat/completions", b'{"model":"m","messages":[{"role":"user","content":"hi"}]}',
         {"tokenize_response": [{"id": 1}, {"id": 2}], "templated_text": "hi"}),
        ("/tokenize", "/v1/completions", b'{"model":"m","prompt":"Once"}', [{"id": 1, "text": "Once"}, {"id": 2}]),
    ],
)  # fmt: skip
async def test_it_counts_the_tokens_of_prompts(kit: Any, path: str, endpoint: str, body: bytes, counted: Any) -> None:
    from headrace.dialects import OPENAI_ENDPOINTS

    async with kit.asking("tgi") as asking:
        asking.engine.says[f"POST {path}"] = kit.whole(counted)
        scope: dict[str, Any] = {"headers": [], "method": "POST", "path": endpoint, "client": None}
        exchange = Exchange(id="x", endpoint=OPENAI_ENDPOINTS[endpoint], scope=scope, body=body)
        exchange.take_body(body)
        assert await asking.gateway.providers["tgi"].count_prompt(exchange, asking.target) == 2


async def test_a_model_that_was_found_is_not_asked_for_as_an_adapter(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says |= {HEALTH: kit.whole(b"", kind="text/plain"), INFO: kit.whole(TOLD)}
        asking.engine.says["POST /v1/chat/completions"] = kit.whole({"choices": []})
        target = msgspec.structs.replace(asking.target, model=None)
        asking.gateway.discover("HF/x", [target])
        await asking.chat(model="HF/x")
        assert asking.sent["model"] == "tgi"
