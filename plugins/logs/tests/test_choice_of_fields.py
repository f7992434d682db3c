"""Which fields a request's line has: an allow-list, or all but some."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from plugins.logs.tests.conftest import Run


async def test_only_the_fields_that_are_wanted_are_written(run: Run) -> None:
    async with run(fields=["request_id", "target", "gen_ai.usage.output_tokens"]) as gateway:
        await gateway.chat("ok")
    (line,) = gateway.requests()
    assert set(line) == {"timestamp", "level", "event", "request_id", "target", "gen_ai.usage.output_tokens"}


async def test_without_any_field_a_line_still_says_when_and_how_bad(run: Run) -> None:
    async with run(fields=[]) as gateway:
        await gateway.chat("unknown")
    (line,) = gateway.requests()
    assert (set(line), line["level"]) == ({"timestamp", "level", "event"}, "warning")


async def test_all_fields_but_the_unwanted_are_written(run: Run) -> None:
    async with run(drop=["client.address", "http.response.status_code"]) as gateway:
        await gateway.chat("ok")
    (line,) = gateway.requests()
    assert "client.address" not in line
    assert "http.response.status_code" not in line
    assert line["target"] == "behind"


async def test_the_console_leaves_them_out_as_well(run: Run) -> None:
    async with run(format="console", drop=["client.address", "completed"]) as gateway:
        await gateway.chat("ok")
    (line,) = [line for line in gateway.path.read_text().splitlines() if "request_id" in line]
    assert "client.address" not in line
    assert "completed" not in line
    assert "UNSET" not in line


async def test_messages_of_the_gateway_keep_their_fields(run: Run) -> None:
    async with run(fields=["request_id"], level="debug") as gateway:
        await gateway.chat("fails")
    messages = [line for line in gateway.lines() if line["event"] != "request"]
    assert messages
    assert all("logger" in line for line in messages)


@pytest.mark.parametrize("personal", [["addresses"], []])
async def test_the_clients_address_is_hidden_where_addresses_are(run: Run, personal: list[str]) -> None:
    async with run(personal=personal) as gateway:
        await gateway.chat("ok")
    (line,) = gateway.requests()
    assert line["client.address"] == ("[redacted]" if personal else "127.0.0.1")
