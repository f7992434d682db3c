"""What other plugins offer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from headrace import hookimpl


class Offers:
    """Has a queue of 3 requests and has served 7."""

    def __init__(self, config: Any, gateway: Any) -> None:
        self.depth: float | None = 3.0
        self.served = 7.0
        self.fails = False

    @hookimpl
    @asynccontextmanager
    async def lifespan(self, gateway: Any) -> AsyncIterator[None]:
        gateway.collectors.append(self)
        yield

    def collect(self) -> Iterator[Any]:
        if self.fails:
            raise RuntimeError("out of order")
        depth = GaugeMetricFamily("own_depth", "How many wait.", labels=["model"])
        if self.depth is not None:
            depth.add_metric(["m"], self.depth)
        yield depth
        yield CounterMetricFamily("own_served", "How many were let in.", value=self.served)
        yield HistogramMetricFamily("own_wait", "x", buckets=[("1", 2), ("+Inf", 5)], sum_value=9.0)


@pytest.fixture
async def gateway(measured: Any) -> AsyncIterator[Any]:
    async with measured(plugins={"offers": Offers}) as gateway:
        yield gateway


def offers(gateway: Any) -> Offers:
    plugin: Offers = gateway.running.gateway.plugins["offers"]
    return plugin


async def test_gauges_are_shown_with_their_worker(gateway: Any) -> None:
    assert (await gateway.scrape()).sum("own_depth", model="m", worker="0") == 3


async def test_counters_are_shown_without(gateway: Any) -> None:
    scrape = await gateway.scrape()
    assert scrape.sum("own_served_total") == 7
    assert scrape.values("own_served_total", "worker") == {""}


async def test_histograms_are_shown(gateway: Any) -> None:
    scrape = await gateway.scrape()
    assert scrape.sum("own_wait_bucket", le="+Inf") == 5
    assert scrape.sum("own_wait_sum") == 9


async def test_a_scrape_says_what_is_true_now(gateway: Any) -> None:
    await gateway.scrape()
    offers(gateway).depth = 8.0
    assert (await gateway.scrape()).sum("own_depth") == 8


async def test_what_is_not_offered_any_more_is_gone(gateway: Any) -> None:
    await gateway.scrape()
    offers(gateway).depth = None
    assert (await gateway.scrape()).values("own_depth", "model") == set()


async def test_a_counter_never_shows_less_than_before(gateway: Any) -> None:
    await gateway.scrape()
    offers(gateway).served = 2.0
    assert (await gateway.scrape()).sum("own_served_total") == 7


async def test_a_collector_that_fails_is_told_of_once_and_harms_nobody(gateway: Any, caplog: Any) -> None:
    offers(gateway).fails = True
    await gateway.scrape()
    scrape = await gateway.scrape()
    assert scrape.sum("headrace_build_info") == 1
    assert sum("out of order" in record.message for record in caplog.records) == 1


async def test_the_process_and_the_gateway_are_shown(gateway: Any) -> None:
    scrape = await gateway.scrape()
    assert scrape.sum("process_resident_memory_bytes", worker="0") > 1e6
    assert scrape.sum("headrace_requests_in_flight", worker="0") == 0  # the scrape itself is none
    assert scrape.sum("headrace_upstream_orphans") == 0
    assert scrape.sum("headrace_target_condition", target="fake") == 1


async def test_requests_that_are_being_answered_are_in_flight(gateway: Any, until: Any) -> None:
    import asyncio

    gateway.backend.silent = True
    asking = asyncio.create_task(gateway.ask())
    await until(lambda: gateway.backend.requests)
    scrape = await gateway.scrape()
    asking.cancel()
    await asyncio.wait((asking,))
    assert scrape.sum("headrace_requests_in_flight") == 1
    assert scrape.sum("headrace_target_requests_in_flight", target="fake") == 1


async def test_the_condition_of_a_target_is_the_one_that_is_1(gateway: Any) -> None:
    (target,) = gateway.running.gateway.models.targets
    target.state.become("down", "told so")
    scrape = await gateway.scrape()
    shown = {
        each.labels["condition"] for each in scrape.samples if each.name == "headrace_target_condition" and each.value
    }
    assert shown == {"down"}
