"""From counts to text."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from headrace_metrics import keys
from headrace_metrics.exposition import merged, written
from headrace_metrics.table import Page

TOLD = {keys.described("wait", "histogram", "How long."): array("d"), keys.described("depth", "gauge", "x"): array("d")}


def page(worker: int, rows: dict[bytes, list[float]], *, alive: bool = True, superseded: bool = False) -> Page:
    found = {key: array("d", numbers) for key, numbers in rows.items()}
    return Page(f"{worker}-x", worker, 0.0, superseded, alive, {**TOLD, **found})


def said(*pages: Page) -> dict[str, float]:
    """Samples by their names and labels."""
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in merged(pages)
        for sample in family.samples
    }


def waits(bounds: tuple[float, ...] = (1.0, 2.0)) -> bytes:
    return keys.histogram("wait", ("model",), ("m",), bounds)


def depth(worker: int) -> bytes:
    return keys.of_sample(True, "depth", "depth", {"worker": str(worker)})


def test_histograms_of_several_workers_are_one() -> None:
    found = said(page(0, {waits(): [1, 0, 0, 0.5]}), page(1, {waits(): [0, 2, 1, 6.5]}))
    assert [found[f"wait_bucket m {bound}"] for bound in ("1.0", "2.0", "+Inf")] == [1, 3, 4]
    assert (found["wait_count m"], found["wait_sum m"]) == (4, 7.0)


def test_what_was_counted_with_other_bounds_is_not_added() -> None:
    found = said(page(-1, {waits((5.0,)): [9, 9, 9]}, alive=False), page(0, {waits(): [1, 0, 0, 0.5]}))
    assert found["wait_count m"] == 1
    assert "wait_bucket m 5.0" not in found


def test_gauges_of_each_worker_stand_beside_each_other() -> None:
    found = said(page(0, {depth(0): [1, 3]}), page(1, {depth(1): [1, 4]}))
    assert (found["depth 0"], found["depth 1"]) == (3, 4)


def test_a_gauge_that_is_not_true_any_more_is_not_shown() -> None:
    assert "depth 0" not in said(page(0, {depth(0): [0, 3]}))


def test_gauges_of_a_dead_worker_are_not_shown() -> None:
    assert "depth 0" not in said(page(0, {depth(0): [1, 3]}, alive=False))


def test_of_two_gateways_at_work_in_one_worker_the_newer_ones_gauges_are_shown() -> None:
    assert said(page(0, {depth(0): [1, 3]}), page(0, {depth(0): [1, 4]}))["depth 0"] == 4


def test_what_a_superseded_gateway_still_holds_is_added() -> None:
    assert said(page(0, {depth(0): [1, 3]}, superseded=True), page(0, {depth(0): [1, 4]}))["depth 0"] == 7


def test_rows_that_nobody_can_read_are_left_out() -> None:
    assert said(page(0, {b"garbage": [1.0], b'["live"': [1.0, 2.0], b'["counter", 3]': [1.0]}))["headrace_workers"] == 1


async def test_prometheus_finds_no_fault_with_it(measured: Any, check_text: Callable[[str], None]) -> None:
    async with measured() as gateway:
        for do in ("", "refuse", "wait", "cache"):
            await gateway.ask(do)
        await gateway.ask(stream=True)
        await gateway.ask(model="no")
        gateway.backend.status = 500
        await gateway.ask()
        scrape = await gateway.scrape()
    check_text(scrape.text)


async def test_it_can_be_had_as_openmetrics(measured: Any) -> None:
    async with measured({"require": "public"}) as gateway:
        await gateway.ask(stream=True)
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        answer = await gateway.client.get("/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in text_string_to_metric_families(answer.text)}  # type: ignore[no-untyped-call]
    assert {"headrace_requests", "headrace_request_duration_seconds", "process_cpu_seconds"} <= names


def test_labels_are_escaped() -> None:
    key = keys.counter("odd", ("model",), ('a"b\\c\nd',))
    rows = {key: [1.0], keys.described("odd", "counter", "x"): []}
    assert 'odd_total{model="a\\"b\\\\c\\nd"} 1.0' in written(merged([page(0, rows)]), "").body.decode()
