"""`traceparent` in and out, and who decides what is recorded: https://www.w3.org/TR/trace-context/"""

from __future__ import annotations

from typing import Any

import pytest

from headrace.dialects import OPENAI_ENDPOINTS
from headrace.exchange import Exchange
from headrace_otel import context

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{PARENT}-01"
NOT_RECORDED = f"00-{TRACE}-{PARENT}-00"
VALID = [GIVEN, f" \t{GIVEN} ", f"01-{TRACE}-{PARENT}-01", f"cc-{TRACE}-{PARENT}-01-what-ever"]
INVALID = [
    "",
    "junk",
    f"00-{TRACE}-{PARENT}",
    f"00-{TRACE}-{PARENT}-1",
    f"00-{TRACE}-{PARENT}-01-more",
    f"00-{TRACE}-{PARENT}-01-",
    f"ff-{TRACE}-{PARENT}-01",
    f"0g-{TRACE}-{PARENT}-01",
    f"00-{'0' * 32}-{PARENT}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE.upper()}-{PARENT}-01",
    f"00-{TRACE[:-1]}-{PARENT}-01",
    f"01-{TRACE}-{PARENT}-01more",
    f"00-{TRACE}-{PARENT}-01\t\u00e9",
]


def read(*values: str) -> context.Incoming | None:
    headers = [(b"traceparent", value.encode("latin-1")) for value in values]
    scope = {"headers": headers, "method": "POST", "path": "/v1/chat/completions", "client": ("127.0.0.1", 1)}
    return context.read(Exchange(id="x", endpoint=OPENAI_ENDPOINTS["/v1/chat/completions"], scope=scope))


@pytest.mark.parametrize("value", VALID)
def test_a_traceparent_is_understood(value: str) -> None:
    assert read(value) == context.Incoming(TRACE, PARENT, 1)


@pytest.mark.parametrize("value", INVALID)
def test_what_is_no_traceparent_is_not_there(value: str) -> None:
    assert read(value) is None


def test_two_of_them_are_none() -> None:
    assert read(GIVEN, GIVEN) is None


def test_flags_that_nobody_knows_are_ignored() -> None:
    incoming = read(f"00-{TRACE}-{PARENT}-fe")
    assert incoming is not None
    assert not incoming.sampled
    assert incoming.unsampled() == f"00-{TRACE}-{PARENT}-02"


def test_new_ids_are_never_zero_and_never_the_same() -> None:
    found = {context.new_ids() for _ in range(1000)} | {context.new_span_id() for _ in range(1000)}
    assert len(found) == 2000
    assert not any(each == bytes(len(each)) for each in found)


async def test_backends_are_told_the_try_s_own_span(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        await gateway.ask()
        told = gateway.asked[0]["traceparent"]
    (client,) = collector.client_spans()
    assert told == f"00-{client.trace}-{client.id}-03"


async def test_a_client_s_trace_goes_on(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        await gateway.ask({"traceparent": GIVEN, "tracestate": "a=1,b=2"})
        asked = gateway.asked[0]
    (server,), (client,) = collector.server_spans(), collector.client_spans()
    assert (server.trace, server.parent) == (TRACE, PARENT)
    assert asked["traceparent"] == f"00-{TRACE}-{client.id}-01"
    assert asked["tracestate"] == "a=1,b=2"


async def test_a_parent_elsewhere_is_marked_as_such(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        await gateway.ask({"traceparent": GIVEN})
        await gateway.ask()
    assert [span.flags for span in collector.spans] == [0x101, 0x301, 0x101, 0x101]


async def test_an_invalid_traceparent_begins_a_trace_and_takes_its_state_with_it(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        await gateway.ask({"traceparent": f"ff-{TRACE}-{PARENT}-01", "tracestate": "a=1"})
        asked = gateway.asked[0]
    (server,) = collector.server_spans()
    assert (server.trace != TRACE, server.parent) == (True, "")
    assert asked["traceparent"].startswith(f"00-{server.trace}-")
    assert asked["tracestate"] == "headrace=restarted"


async def test_a_request_that_is_not_recorded_says_so_to_backends(traced: Any, collector: Any) -> None:
    async with traced({"sample": 0.0}) as gateway:
        await gateway.ask()
        await gateway.ask({"traceparent": GIVEN})
        await gateway.ask({"traceparent": NOT_RECORDED, "tracestate": "a=1"})
        first, second, third = gateway.asked
    assert collector.spans == []
    assert read(first["traceparent"]) is not None
    assert first["traceparent"].endswith("-00")
    assert second["traceparent"] == NOT_RECORDED
    assert (third["traceparent"], third["tracestate"]) == (NOT_RECORDED, "a=1")


@pytest.mark.parametrize(
    ("settings", "given", "recorded"),
    [
        ({"sample": 0.0, "trust_incoming": True}, GIVEN, True),
        ({"sample": 1.0, "trust_incoming": True}, NOT_RECORDED, False),
        ({"sample": 1.0, "trust_incoming": True}, "", True),
        ({"sample": 0.0, "trust_incoming": True}, "", False),
        ({"sample": 0.0, "trust_incoming": True}, "nonsense", False),
        ({"sample": 0.0}, GIVEN, False),
        ({"sample": 1.0}, NOT_RECORDED, True),
    ],
)
async def test_a_client_decides_only_if_it_is_trusted(
    traced: Any, collector: Any, settings: dict[str, Any], given: str, recorded: bool
) -> None:
    async with traced({**settings, "metrics": False}) as gateway:
        await gateway.ask({"traceparent": given} if given else {})
        told = gateway.asked[0]["traceparent"]
    assert bool(collector.spans) is recorded
    assert bool(int(told[-2:], 16) & 1) is recorded


async def test_about_the_configured_share_is_recorded(traced: Any, collector: Any) -> None:
    async with traced({"sample": 0.5}) as gateway:
        for _ in range(100):
            await gateway.ask({"x-do": "refuse"})
            await gateway.ask(model="unknown")
    assert 50 < len(collector.server_spans()) < 150  # by chance once in 10 ** 12


async def test_a_request_that_no_target_takes_is_decided_on_once(traced: Any, collector: Any) -> None:
    tables = {"models": {"test": {"targets": ["fake"], "retry": {"rounds": 1}}}}
    async with traced({"sample": 0.5}, **tables) as gateway:
        gateway.backend.status = 500
        for _ in range(40):
            await gateway.ask()
    servers, clients = collector.server_spans(), collector.client_spans()
    assert {span.trace for span in servers} == {span.trace for span in clients}


async def test_without_traces_the_client_s_context_is_passed_on_as_it_is(traced: Any, collector: Any) -> None:
    async with traced({"traces": False}) as gateway:
        await gateway.ask({"traceparent": GIVEN, "tracestate": "a=1"})
        await gateway.ask()
        first, second = gateway.asked
    assert (first["traceparent"], first["tracestate"]) == (GIVEN, "a=1")
    assert "traceparent" not in second


@pytest.mark.parametrize("passes", [True, False])
async def test_baggage_is_passed_on_only_where_that_is_configured(traced: Any, passes: bool) -> None:
    async with traced({"baggage": passes}) as gateway:
        await gateway.ask({"baggage": "tenant=a%20b;p=1"})
        assert gateway.asked[0].get("baggage") == ("tenant=a%20b;p=1" if passes else None)
