"""What is counted of requests and tries, over real sockets."""

from __future__ import annotations

import asyncio
import statistics
import time
from copy import copy
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.errors import GatewayError
from headrace.exchange import Outcome
from headrace_metrics.counting import Counting
from headrace_metrics.names import OTHER, Codes, Names
from headrace_metrics.table import Table

WHERE = {"model": "test", "target": "fake"}


async def test_requests_are_counted_by_model_target_status_and_delivery(measured: Any) -> None:
    async with measured() as gateway:
        await gateway.ask()
        await gateway.ask(stream=True)
        scrape = await gateway.scrape()
    assert scrape.sum("headrace_requests_total", **WHERE, status="200", delivery="inline") == 2


async def test_a_stream_has_a_first_token_and_a_time_for_each_further_one(measured: Any) -> None:
    async with measured() as gateway:
        gateway.backend.pause = 0.02
        await gateway.ask(stream=True)
        scrape = await gateway.scrape()
    first = scrape.sum("headrace_time_to_first_token_seconds_sum", **WHERE)
    whole = scrape.sum("headrace_request_duration_seconds_sum", **WHERE)
    each = scrape.sum("headrace_time_per_output_token_seconds_sum", **WHERE)
    assert 0.02 <= first < whole
    assert each == pytest.approx((whole - first) / 2)  # three tokens


async def test_a_whole_answer_has_no_first_token(measured: Any) -> None:
    async with measured() as gateway:
        await gateway.ask()
        scrape = await gateway.scrape()
    assert scrape.sum("headrace_time_to_first_token_seconds_count", **WHERE) == 0
    assert scrape.sum("headrace_request_duration_seconds_count", **WHERE) == 1


async def test_tokens_are_counted_of_streams_whose_clients_did_not_ask_for_them(measured: Any) -> None:
    async with measured() as gateway:
        await gateway.ask(stream=True)
        scrape = await gateway.scrape()
    assert scrape.sum("headrace_prompt_tokens_total", **WHERE) == 5
    assert scrape.sum("headrace_completion_tokens_total", **WHERE) == 3


async def test_backends_are_not_asked_for_tokens_if_that_is_not_wanted(measured: Any) -> None:
    async with measured({"tokens": False}) as gateway:
        await gateway.ask(stream=True)
        scrape = await gateway.scrape()
        asked = gateway.backend.requests[-1][2]
    assert b"stream_options" not in asked
    assert scrape.sum("headrace_completion_tokens_total", **WHERE) == 0


async def test_a_model_that_does_not_exist_is_unknown(measured: Any) -> None:
    async with measured() as gateway:
        for number in range(20):
            await gateway.ask(model=f"no-{number}")
        scrape = await gateway.scrape()
    assert scrape.values("headrace_requests_total", "model") == {"(unknown)"}
    labels = {"model": "(unknown)", "target": "(none)", "status": "404"}
    assert scrape.sum("headrace_requests_total", **labels) == 20
    assert scrape.sum("headrace_errors_total", code="model_not_found") == 20


async def test_a_hundred_thousand_bad_names_add_no_series(measured: Any) -> None:
    async with measured() as gateway:
        await gateway.ask(model="bad")
        before = len((await gateway.scrape()).samples)
        endpoint = gateway.running.gateway.endpoints["/v1/chat/completions"]
        for number in range(100_000):
            error = GatewayError("No.", status=404, code="model_not_found")
            peek = SimpleNamespace(model=f"bad-{number}")
            exchange: Any = SimpleNamespace(
                model=None, peek=peek, endpoint=endpoint, streaming=False, attempts=[], state={}
            )
            outcome = Outcome(status=404, completed=False, error=error)
            await gateway.plugin.on_complete(exchange, outcome)
        scrape = await gateway.scrape()
    assert len(scrape.samples) == before
    assert scrape.sum("headrace_requests_total", model="(unknown)") == 100_001


async def test_a_client_that_leaves_is_counted_as_one(measured: Any, until: Any) -> None:
    async with measured() as gateway:
        gateway.backend.silent = True
        asking = asyncio.create_task(gateway.ask())
        await until(lambda: gateway.backend.requests)
        asking.cancel()
        await asyncio.wait((asking,))
        await until(lambda: gateway.running.gateway.open_requests == 0)
        scrape = await gateway.scrape()
    assert scrape.sum("headrace_requests_aborted_total", **WHERE) == 1
    assert scrape.sum("headrace_requests_total", **WHERE, status="499") == 1
    assert scrape.sum("headrace_attempts_total", target="fake", outcome="client_left") == 1


async def test_what_a_limit_refuses_is_counted_by_its_code(measured: Any) -> None:
    async with measured() as gateway:
        await gateway.ask("refuse")
        scrape = await gateway.scrape()
    assert scrape.sum("headrace_limits_rejected_total", model="test", code="rate_limit_exceeded") == 1


async def test_a_backend_that_answers_429_is_no_limit_of_ours(measured: Any) -> None:
    async with measured() as gateway:
        gateway.backend.status = 429
        await gateway.ask()
        scrape = await gateway.scrape()
    assert scrape.sum("headrace_limits_rejected_total") == 0
    assert scrape.sum("headrace_errors_total", code="upstream_rate_limited") == 1


async def test_tries_are_counted_by_how_they_ended(measured: Any) -> None:
    async with measured() as gateway:
        await gateway.ask()
        gateway.backend.status = 500
        await gateway.ask()
        gateway.backend.status = 400
        await gateway.ask()
        scrape = await gateway.scrape()
    found = {each.labels["outcome"]: each.value for each in scrape.samples if each.name == "headrace_attempts_total"}
    assert found == {"success": 1, "upstream_error": 1, "client_error": 1}


async def test_a_stream_that_breaks_is_an_error(measured: Any) -> None:
    async with measured() as gateway:
        gateway.backend.cut_after = 1
        await gateway.ask(stream=True)
        scrape = await gateway.scrape()
    assert scrape.sum("headrace_attempts_total", outcome="stream_truncated") == 1
    assert scrape.sum("headrace_errors_total", code="stream_truncated") == 1
    assert scrape.sum("headrace_time_per_output_token_seconds_count") == 0


async def test_an_answer_by_another_target_is_a_fall_back(measured: Any) -> None:
    gone = {"gone": {"provider": "openai", "base_url": "http://127.0.0.1:9/v1"}}
    async with measured() as first:
        backends = {**gone, "fake": {"provider": "openai", "base_url": first.backend.url}}
        models = {"test": {"targets": ["gone", "fake"], "retry": {"rounds": 1}}}
        async with measured(backends=backends, models=models) as gateway:
            await gateway.ask()
            scrape = await gateway.scrape()
    assert scrape.sum("headrace_fallbacks_total", model="test", target="fake") == 1
    assert scrape.sum("headrace_attempts_total", target="gone", outcome="unavailable") == 1
    assert scrape.sum("headrace_requests_total", target="fake", status="200") == 1


async def test_a_wait_in_the_queue_is_seen(measured: Any) -> None:
    async with measured() as gateway:
        await gateway.ask("wait")
        scrape = await gateway.scrape()
    assert scrape.sum("headrace_queue_wait_seconds_sum", model="test") == pytest.approx(0.3)
    assert scrape.sum("headrace_queue_wait_seconds_bucket", model="test", le="0.25") == 0
    assert scrape.sum("headrace_queue_wait_seconds_bucket", model="test", le="0.5") == 1


async def test_answers_from_a_cache_are_hits_and_others_misses(measured: Any) -> None:
    async with measured() as gateway:
        await gateway.ask("cache")
        await gateway.ask()
        scrape = await gateway.scrape()
    assert scrape.sum("headrace_cache_hits_total", model="test") == 1
    assert scrape.sum("headrace_cache_misses_total", model="test") == 1


async def test_operations_have_the_names_and_attributes_of_opentelemetry(measured: Any) -> None:
    async with measured() as gateway:
        await gateway.ask(stream=True)
        await gateway.client.post("/v1/completions", json={"model": "test", "prompt": "x"})
        port = gateway.backend.url.split(":")[2].removesuffix("/v1")
        scrape = await gateway.scrape()
    labels = {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "openai",
        "gen_ai_request_model": "test",
        "server_address": "127.0.0.1",
        "server_port": port,
    }
    assert scrape.sum("gen_ai_client_operation_duration_seconds_count", **labels) == 1
    assert scrape.sum("gen_ai_client_token_usage_sum", **labels, gen_ai_token_type="output") == 3
    assert scrape.sum("gen_ai_server_time_to_first_token_seconds_count", **labels) == 1
    assert scrape.sum("gen_ai_server_time_per_output_token_seconds_count", **labels) == 1
    assert "text_completion" in scrape.values("gen_ai_client_operation_duration_seconds_count", "gen_ai_operation_name")


async def test_an_operation_that_fails_says_with_what(measured: Any) -> None:
    async with measured() as gateway:
        gateway.backend.status = 500
        await gateway.ask()
        scrape = await gateway.scrape()
    assert scrape.sum("gen_ai_client_operation_duration_seconds_count", error_type="upstream_error") == 1
    assert scrape.sum("gen_ai_server_time_to_first_token_seconds_count") == 0


async def test_opentelemetrys_names_can_be_left_out(measured: Any) -> None:
    async with measured({"opentelemetry": False}) as gateway:
        await gateway.ask(stream=True)
        scrape = await gateway.scrape()
    assert "gen_ai" not in scrape.text


async def test_bounds_are_those_that_are_configured(measured: Any) -> None:
    async with measured({"buckets": {"request_duration": [1, 2.5]}}) as gateway:
        await gateway.ask()
        scrape = await gateway.scrape()
    assert scrape.values("headrace_request_duration_seconds_bucket", "le") == {"1.0", "2.5", "+Inf"}


def test_only_so_many_unknown_codes_of_errors_are_kept_apart() -> None:
    codes = Codes()
    assert len({codes(f"code_{number}") for number in range(1000)}) == 65
    assert codes("upstream_timeout") == "upstream_timeout"


@pytest.mark.parametrize("code", [None, "", 'a"b', "x" * 65, "UPPER", "new\nline", "404"])
def test_a_code_that_is_no_word_is_another(code: str | None) -> None:
    assert Codes()(code) == OTHER


def test_only_so_many_discovered_models_are_kept_apart() -> None:
    names = Names(["configured"], 2)
    assert [names(name) for name in ("a", "b", "c", "a", "configured", "d")] == [
        "a",
        "b",
        OTHER,
        "a",
        "configured",
        OTHER,
    ]


@pytest.mark.alone
async def test_counting_a_request_costs_less_than_ten_microseconds(measured: Any) -> None:
    """Of CPU time, without what any hook costs. The best of several runs, for others work on this machine, too."""
    seen: list[Any] = []

    class Watched(Counting):
        def completed(self, exchange: Any, outcome: Any) -> None:
            seen.append((copy(exchange), outcome))

    async with measured() as gateway:
        counting = gateway.plugin._counting
        gateway.plugin._counting = Watched(gateway.plugin._config, gateway.running.gateway, Table())
        await gateway.ask(stream=True)
        exchange, outcome = seen[0]
        exchange.attempts = list(exchange.attempts)
        runs = [_cost(counting, exchange, outcome) for _ in range(5)]
    assert min(runs) < 10, f"{statistics.median(runs):.1f} µs"


def _cost(counting: Counting, exchange: Any, outcome: Outcome) -> float:
    """Microseconds for one request."""
    times = 5000
    began = time.process_time()
    for _ in range(times):
        counting.completed(exchange, outcome)
    return (time.process_time() - began) / times * 1e6


async def test_counts_go_on_after_a_restart_and_those_of_models_that_are_gone_are_forgotten(
    measured: Any, tmp_path: Any
) -> None:
    server = {"anonymous": True, "state_dir": str(tmp_path)}
    async with measured(server=server) as gateway:
        await gateway.ask()
        await gateway.ask(model="no")
    async with measured(server=server) as gateway:
        await gateway.ask()
        assert (await gateway.scrape()).sum("headrace_requests_total", model="test") == 2
        renamed = {"other": {"targets": ["fake"]}}
    async with measured(server=server, models=renamed) as gateway:
        scrape = await gateway.scrape()
    assert scrape.values("headrace_requests_total", "model") == {"(unknown)"}
    assert scrape.sum("headrace_requests_total") == 1


async def test_histograms_begin_anew_with_other_bounds(measured: Any, tmp_path: Any) -> None:
    server = {"anonymous": True, "state_dir": str(tmp_path)}
    async with measured(server=server) as gateway:
        await gateway.ask()
    async with measured({"buckets": {"request_duration": [1, 2]}}, server=server) as gateway:
        await gateway.ask()
        scrape = await gateway.scrape()
    assert scrape.sum("headrace_request_duration_seconds_count", model="test") == 1
    assert scrape.sum("headrace_requests_total", model="test") == 2
