"""Metrics over OTLP: names, units, attributes and numbers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_otel.histograms import MOST_SERIES, OVERFLOW, REQUEST, Histograms, Series
from headrace_otel.names import MORE_CODES, OTHER, Errors, Names

UNITS = {
    "http.server.request.duration": "s",
    "gen_ai.client.operation.duration": "s",
    "gen_ai.client.token.usage": "{token}",
    "gen_ai.server.request.duration": "s",
    "gen_ai.server.time_to_first_token": "s",
    "gen_ai.server.time_per_output_token": "s",
    "headrace.otel.spans": "{span}",
}


async def test_the_metrics_have_the_names_and_units_of_the_conventions(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        await gateway.ask()
        await gateway.ask(stream=True)
    assert {name: metric.unit for name, metric in collector.metrics.items()} == UNITS


async def test_requests_and_tokens_are_counted(traced: Any, collector: Any) -> None:
    async with traced({"traces": False}) as gateway:
        await gateway.ask()
        await gateway.ask(stream=True)
        await gateway.ask(stream=True)
    labels = {"gen_ai__operation__name": "chat", "gen_ai__provider__name": "openai", "gen_ai__request__model": "test"}
    (duration,) = collector.points("gen_ai.client.operation.duration", **labels)
    (asked,) = collector.points("gen_ai.client.token.usage", gen_ai__token__type="input", **labels)
    (answered,) = collector.points("gen_ai.client.token.usage", gen_ai__token__type="output", **labels)
    (first,) = collector.points("gen_ai.server.time_to_first_token", **labels)
    assert (duration.count, asked.count, first.count) == (3, 3, 2)
    assert (asked.sum, answered.sum) == (15, 7)
    assert sum(duration.bucket_counts) == 3
    assert len(duration.bucket_counts) == len(duration.explicit_bounds) + 1


async def test_failures_are_counted_by_what_went_wrong(traced: Any, collector: Any) -> None:
    async with traced({"traces": False}) as gateway:
        await gateway.ask({"x-do": "refuse"})
        await gateway.ask(model="nobody")
        gateway.backend.status = 500
        await gateway.ask()
    told = {
        (point.attributes and each.value.string_value, point.count)
        for point in collector.points("http.server.request.duration")
        for each in point.attributes
        if each.key == "error.type"
    }
    assert told == {("rate_limit_exceeded", 1), ("model_not_found", 1), ("upstream_error", 1)}
    (failed,) = collector.points("gen_ai.client.operation.duration", error__type="upstream_error")
    assert failed.count == 1
    assert "gen_ai.client.token.usage" not in collector.metrics


async def test_names_that_clients_make_up_are_no_attributes(traced: Any, collector: Any) -> None:
    async with traced({"traces": False}) as gateway:
        for number in range(20):
            await gateway.ask(model=f"made-up-{number}")
    (point,) = collector.points("http.server.request.duration")
    assert point.count == 20
    assert b"made-up" not in b"".join(collector.bodies)


async def test_metrics_come_again_and_again_and_add_up(traced: Any, collector: Any, until: Any) -> None:
    async with traced({"traces": False, "metrics_interval": 0.05}) as gateway:
        await gateway.ask()
        await until(lambda: "gen_ai.client.operation.duration" in collector.metrics)
        await gateway.ask()
        await until(lambda: collector.points("gen_ai.client.operation.duration")[0].count == 2)
    (point,) = collector.points("gen_ai.client.operation.duration")
    assert point.start_time_unix_nano < point.time_unix_nano


async def test_what_became_of_spans_is_a_metric(traced: Any, collector: Any, until: Any) -> None:
    async with traced() as gateway:
        await gateway.ask()
        await until(lambda: gateway.plugin.results()["taken"] == 2)
    (taken,) = collector.points("headrace.otel.spans", headrace__otel__result="taken")
    assert taken.as_int == 2


async def test_other_plugins_are_offered_the_same(traced: Any) -> None:
    prometheus = pytest.importorskip("prometheus_client")
    async with traced() as gateway:
        (measures,) = [each for each in gateway.running.gateway.collectors if "otel" in type(each).__module__]
        (family,) = measures.collect()
    assert isinstance(family, prometheus.core.CounterMetricFamily)
    assert {sample.labels["result"]: sample.value for sample in family.samples} == {"taken": 0, "dropped": 0}


async def test_without_metrics_none_are_exported(traced: Any, collector: Any) -> None:
    async with traced({"metrics": False}) as gateway:
        await gateway.ask()
    assert collector.metrics == {}


@given(st.lists(st.floats(min_value=0, max_value=1e6), max_size=50))
def test_every_value_is_in_one_bucket(values: list[float]) -> None:
    series = Series(REQUEST.bounds)
    for value in values:
        series.add(value)
    counts = series.cells[:-1]
    for index, bound in enumerate(REQUEST.bounds):
        assert sum(counts[: index + 1]) == sum(value <= bound for value in values)
    assert sum(counts) == len(values)


def test_there_are_never_more_series_than_the_sdk_allows() -> None:
    histograms = Histograms()
    for number in range(MOST_SERIES + 50):
        histograms.series(REQUEST, (("n", number),)).add(1.0)
    ((_, found),) = histograms.snapshot(0, {})[1]
    assert len(found) == MOST_SERIES + 1
    assert dict(found)[OVERFLOW][-1] == 50.0


def test_codes_that_backends_make_up_do_not_crowd_out_our_own() -> None:
    errors = Errors()
    made_up = {errors.of(f"made_up_{number}") for number in range(1000)}
    assert len(made_up) == MORE_CODES + 1
    assert [errors.of(code) for code in ("stream_truncated", "Not A Code")] == ["stream_truncated", OTHER]


def test_names_beyond_those_allowed_are_one() -> None:
    names = Names(["a"], 1)
    assert [names(each) for each in ("a", "b", "c", "b", "d")] == ["a", "b", OTHER, "b", OTHER]
