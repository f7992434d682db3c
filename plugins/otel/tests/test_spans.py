"""What a collector is told of requests and of tries."""

from __future__ import annotations

from typing import Any

import httpx
import pytest


async def test_a_request_is_one_server_span_with_one_client_span_below(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        await gateway.ask()
    (server,), (client,) = collector.server_spans(), collector.client_spans()
    assert (server.name, client.name) == ("chat test", "chat fake-model")
    assert (server.parent, client.parent, client.trace) == ("", server.id, server.trace)


async def test_a_try_lies_within_its_request(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        await gateway.ask(stream=True)
    (server,), (client,) = collector.server_spans(), collector.client_spans()
    assert server.start <= client.start < client.end <= server.end


async def test_a_request_has_the_attributes_of_the_conventions(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        answer = await gateway.ask(headers={"x-api-key": "ada"})
    assert collector.server_spans()[0].attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "test",
        "gen_ai.request.stream": False,
        "gen_ai.provider.name": "openai",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 1,
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "user.id": "ada",
        "headrace.request.id": answer.headers["x-request-id"],
        "headrace.target": "fake",
        "headrace.attempts": 1,
        "headrace.delivery": "inline",
        "headrace.delivery.reason": "the request did not come through our nginx",
    }


async def test_an_answer_from_a_cache_is_told(traced: Any, collector: Any) -> None:
    async with traced(plugins={"cache": {}}) as gateway:
        for _ in range(2):
            await gateway.ask(temperature=0)
    assert [span.attributes.get("headrace.source") for span in collector.server_spans()] == [None, "cache"]
    assert len(collector.client_spans()) == 1


async def test_a_try_has_the_attributes_of_the_conventions(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        await gateway.ask()
    assert collector.client_spans()[0].attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "fake-model",
        "gen_ai.request.stream": False,
        "gen_ai.provider.name": "openai",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 1,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": int(gateway.backend.url.split(":")[2].removesuffix("/v1")),
        "headrace.target": "fake",
        "headrace.attempt": 1,
        "headrace.delivery": "inline",
    }


async def test_a_stream_tells_when_its_first_chunk_came(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        await gateway.ask(stream=True)
    for span in collector.spans:
        assert 0 < span.attributes["gen_ai.response.time_to_first_chunk"] < (span.end - span.start) / 1e9 + 0.001
        assert span.attributes["gen_ai.usage.output_tokens"] == 3
        assert span.attributes["gen_ai.request.stream"] is True


async def test_a_try_that_failed_is_a_failed_span_of_its_own(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        gateway.backend.status = 500
        await gateway.ask()
    (server,), (client,) = collector.server_spans(), collector.client_spans()
    assert (server.failed, server.attributes["error.type"]) == (True, "upstream_error")
    assert (client.failed, client.attributes["error.type"]) == (True, "upstream_error")
    assert "http.response.status_code" not in client.attributes  # the core tells no more than its own


async def test_each_try_of_a_request_is_a_span(exporting_to: Any, collector: Any) -> None:
    tables = {
        "backends": {
            "gone": {"provider": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m"},
            "gone2": {"provider": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m"},
        },
        "models": {"test": {"targets": ["gone", "gone2"], "retry": {"rounds": 1}}},
    }
    async with exporting_to(collector.url, **tables) as gateway:
        assert (await gateway.ask()).status_code == 503
    (server,), clients = collector.server_spans(), collector.client_spans()
    assert [each.attributes["headrace.target"] for each in clients] == ["gone", "gone2"]
    assert [each.attributes.get("http.request.resend_count") for each in clients] == [None, 1]
    assert {each.parent for each in clients} == {server.id}
    assert server.attributes["headrace.attempts"] == 2


async def test_a_refused_request_is_a_span_without_a_model_that_nobody_knows(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        await gateway.ask(model="sk-1234567890abcdef1234")
    (server,) = collector.spans
    assert server.name == "chat"
    assert "gen_ai.request.model" not in server.attributes
    assert (server.attributes["http.response.status_code"], server.attributes["error.type"]) == (404, "model_not_found")


async def test_a_fault_of_the_caller_s_is_no_failure(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        assert (await gateway.ask(headers={"x-do": "refuse"})).status_code == 429
    (server,) = collector.spans
    assert not server.failed
    assert server.attributes["error.type"] == "rate_limit_exceeded"


async def test_a_stream_that_breaks_is_a_failure_with_the_status_it_began_with(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        gateway.backend.cut_after = 1
        await gateway.ask(stream=True)
    for span in collector.spans:
        assert span.failed
        assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (
            200,
            "stream_truncated",
        )
        assert span.attributes["headrace.usage.estimated"] is True


async def test_a_client_that_leaves_is_no_failure(traced: Any, collector: Any, until: Any) -> None:
    async with traced() as gateway:
        gateway.backend.silent = True
        with pytest.raises(httpx.ReadTimeout):
            await gateway.client.post(
                "/v1/chat/completions",
                json={"model": "test", "messages": [{"role": "user", "content": "x"}]},
                timeout=0.2,
            )
        await until(lambda: len(collector.spans) == 2)
    for span in collector.spans:
        assert (span.failed, span.attributes["error.type"]) == (False, "client_left")


async def test_how_long_a_request_waited_in_the_queue_is_told(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        await gateway.ask(headers={"x-do": "wait"})
    assert collector.server_spans()[0].attributes["headrace.queue.wait"] == 0.25


@pytest.mark.parametrize(
    ("path", "fields", "operation"),
    [
        ("/v1/completions", {"prompt": "x"}, "text_completion"),
        ("/v1/embeddings", {"input": "x"}, "embeddings"),
    ],
)
async def test_operations_have_the_names_of_the_conventions(
    traced: Any, collector: Any, path: str, fields: dict[str, str], operation: str
) -> None:
    async with traced() as gateway:
        await gateway.client.post(path, json={"model": "test", **fields})
    assert {each.attributes["gen_ai.operation.name"] for each in collector.spans} == {operation}
    assert {each.name.split()[0] for each in collector.spans} == {operation}


async def test_the_resource_says_who_exports(traced: Any, collector: Any) -> None:
    more = {"service_name": "gate", "resource": {"deployment.environment.name": "test"}}
    async with traced(more) as gateway:
        await gateway.ask()
    for resource in collector.resources:
        assert (resource["service.name"], resource["deployment.environment.name"]) == ("gate", "test")
        assert (resource["headrace.worker"], len(resource["service.instance.id"])) == (0, 36)


async def test_every_span_that_was_put_in_comes_out_at_the_end(traced: Any, collector: Any) -> None:
    async with traced({"export_interval": 3600.0}) as gateway:
        for _ in range(20):
            await gateway.ask()
        assert not collector.spans
    assert len(collector.spans) == 40
    assert len({span.id for span in collector.spans}) == 40
