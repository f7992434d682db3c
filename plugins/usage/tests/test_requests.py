"""What a gateway's requests leave in the ledger."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from headrace import hookimpl
from headrace.errors import HeadraceError, PluginError
from headrace.exchange import Exchange, Reply
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace_usage.place import postgres_place
from headrace_usage.store import Store

PRICES = {"test": {"input": 1000.0, "output": 10_000.0, "cached_input": 100.0, "request": 0.5}}
FIELDS = ("key", "name", "owner", "team", "role", "model", "target", "endpoint", "status", "ended", "error", "stream")


def said(row: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


async def test_a_row_says_who_asked_for_what_and_what_it_took(recording: Any) -> None:
    async with recording(prices=PRICES) as gate:
        assert (await gate.ask()).status_code == 200
        (row,) = await gate.rows(1)
    assert said(row, *FIELDS) == (
        *("ada", "ada's key", "ada", "red", "user", "test", "fake", "chat", 200, "completed", None, False),
    )
    assert said(row, "input", "cached", "output", "estimated", "cost") == (5, 0, 1, False, 0.515)
    assert 0 < row["ttft"] <= row["latency"] < 30
    assert said(row, "delivery", "address", "asked", "served", "try") == ("inline", None, None, None, None)


async def test_a_stream_is_counted_though_the_client_did_not_ask_for_it(recording: Any) -> None:
    async with recording(prices=PRICES) as gate:
        assert b"usage" not in (await gate.ask(stream=True)).content
        (row,) = await gate.rows(1)
    assert said(row, "stream", "ended", "input", "output", "cost") == (True, "completed", 5, 3, 0.535)


async def test_a_client_that_leaves_is_aborted_and_pays_for_what_has_passed(recording: Any) -> None:
    async with recording(prices=PRICES) as gate:
        gate.backend.chunks, gate.backend.pause = 1000, 0.01
        body = {"model": "test", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        async with gate.client.stream(
            "POST", "/v1/chat/completions", json=body, headers={"x-api-key": "ada"}
        ) as answer:
            async for _ in answer.aiter_bytes():
                break
        (row,) = await gate.rows(1)
    assert said(row, "status", "ended", "estimated", "error") == (200, "aborted", True, None)
    assert row["output"] > 0 and row["cost"] > 0.5


async def test_a_stream_that_breaks_off_is_cut(recording: Any) -> None:
    async with recording() as gate:
        gate.backend.cut_after = 2
        await gate.ask(stream=True)
        row, tried = await gate.rows(2)
    assert said(row, "status", "ended", "estimated", "try") == (200, "cut", True, None)
    assert said(tried, "try", "group", "cost") == (1, row["group"], 0)


async def test_refusals_cost_nothing(recording: Any) -> None:
    async with recording(prices=PRICES) as gate:
        assert (await gate.ask(who="")).status_code == 401
        assert (await gate.ask(model="no\u202esuch\x1b[31m" + "x" * 200)).status_code == 404
        assert (await gate.ask(messages=1)).status_code == 400
        rows = await gate.rows(3)
    assert [said(row, "status", "ended", "key", "model", "cost", "target", "delivery") for row in rows] == [
        (401, "failed", "", "", 0, "", None),
        (404, "failed", "ada", "", 0, "", None),
        (400, "failed", "ada", "", 0, "", None),
    ]
    assert rows[1]["asked"].startswith("no\ufffdsuch\ufffd[31mx") and len(rows[1]["asked"]) == 200


async def test_what_a_backend_refuses_costs_nothing_and_is_an_error(recording: Any) -> None:
    async with recording(prices=PRICES) as gate:
        gate.backend.status = 422
        assert (await gate.ask()).status_code == 422
        (row,) = await gate.rows(1)
    assert said(row, "status", "ended", "cost", "input", "target") == (422, "completed", 0, 0, "fake")


async def test_failed_tries_are_rows_of_the_same_group_that_cost_nothing(recording: Any) -> None:
    tables = {
        "backends": {"gone": {"provider": "openai", "base_url": "http://127.0.0.1:9", "timeouts": {"connect": 1}}},
        "models": {"both": {"targets": ["gone", "fake"], "retry": {"rounds": 1}}},
    }
    prices = {"both": {"input": 0, "output": 0, "request": 1}, "both@gone": {"input": 9, "output": 9, "request": 9}}
    async with recording(prices=prices, tables=tables) as gate:
        assert (await gate.ask(model="both")).status_code == 200
        row, tried = await gate.rows(2)
    assert said(row, "try", "target", "cost", "input", "model") == (None, "fake", 1.0, 5, "both")
    assert said(tried, "try", "target", "cost", "input", "model") == (1, "gone", 0, 0, "both")
    assert tried["group"] == row["group"] and tried["status"] >= 500


async def test_the_model_that_answered_in_another_s_place_is_named_and_its_price_counts(recording: Any) -> None:
    tables = {
        "backends": {"gone": {"provider": "openai", "base_url": "http://127.0.0.1:9", "timeouts": {"connect": 1}}},
        "models": {"big": {"targets": ["gone"], "retry": {"rounds": 1}, "fallback_models": ["test"]}},
    }
    prices = {"big": {"input": 9, "output": 9, "request": 9}, "test": {"input": 0, "output": 0, "request": 1}}
    async with recording(prices=prices, tables=tables) as gate:
        assert (await gate.ask(model="big")).status_code == 200
        row, tried = await gate.rows(2)
    assert said(row, "model", "served", "target", "cost") == ("big", "test", "fake", 1.0)
    assert said(tried, "model", "served", "target", "cost") == ("big", None, "gone", 0)


async def test_requests_with_the_same_chosen_id_are_different_requests(recording: Any) -> None:
    async with recording() as gate:
        for _ in range(3):
            headers = {"x-api-key": "ada", "x-request-id": "mine"}
            body = {"model": "test", "messages": []}
            await gate.client.post("/v1/chat/completions", json=body, headers=headers)
        rows = await gate.rows(3)
    assert {row["request_id"] for row in rows} == {"mine"}
    assert len({row["group"] for row in rows}) == 3


async def test_a_model_without_a_price_costs_nobody_knows_what(recording: Any) -> None:
    async with recording() as gate:
        await gate.ask()
        (row,) = await gate.rows(1)
    assert row["cost"] is None


async def test_addresses_are_kept_if_that_is_wanted(recording: Any) -> None:
    async with recording(addresses=True) as gate:
        await gate.ask()
        (row,) = await gate.rows(1)
    assert row["address"] == "127.0.0.1"


async def test_strangers_may_be_left_out(recording: Any) -> None:
    async with recording(strangers=False) as gate:
        assert (await gate.ask(who="")).status_code == 401
        await gate.ask()
        (row,) = await gate.rows(1)
    assert row["key"] == "ada"


class Cached:
    """Answers by itself."""

    def __init__(self, config: Any, gateway: Any) -> None:
        pass

    @hookimpl
    async def cache_lookup(self, exchange: Exchange) -> Reply:
        return Reply(200, [(b"content-type", b"application/json")], content=b'{"usage":{"prompt_tokens":7}}')


async def test_an_answer_from_a_cache_costs_nothing(recording: Any) -> None:
    async with recording(prices=PRICES, plugins={"cached": Cached}) as gate:
        await gate.ask()
        (row,) = await gate.rows(1)
    assert said(row, "cost", "input", "target", "ended") == (0, 0, "", "completed")


async def test_the_end_of_the_gateway_writes_everything(recording: Any, rows_in: Any, tmp_path: Any) -> None:
    async with recording(state_dir=tmp_path) as gate:
        answers = await asyncio.gather(*(gate.ask(who=f"k{n}/red") for n in range(200)))
    assert [answer.status_code for answer in answers] == [200] * 200
    assert sorted(row["key"] for row in await asyncio.to_thread(rows_in, tmp_path / "usage.db")) == sorted(
        f"k{n}" for n in range(200)
    )


async def test_two_gateways_write_to_one_ledger(recording: Any, tmp_path: Any) -> None:
    async with (
        recording(state_dir=tmp_path) as one,
        recording(state_dir=tmp_path / "b", database=str(tmp_path / "usage.db")) as other,
    ):
        await asyncio.gather(*(gate.ask() for gate in (one, other) for _ in range(100)))
        rows = await one.rows(200)
    assert len({row["cursor"] for row in rows}) == 200
    assert len({row["group"][:16] for row in rows}) == 2


async def test_requests_go_on_while_the_ledger_is_locked_and_their_rows_arrive(recording: Any, locked: Any) -> None:
    async with recording() as gate:
        await gate.ask()
        await gate.rows(1)
        with locked(gate.plugin.database):
            answers = await asyncio.gather(*(gate.ask() for _ in range(50)))
            assert {answer.status_code for answer in answers} == {200}
            spool = gate.running.gateway.state_dir / "usage-spool"
            while not spool.exists() or sum(path.stat().st_size for path in spool.iterdir()) < 50 * 100:
                await asyncio.sleep(0.01)
        assert len(await gate.rows(51)) == 51


async def test_a_server_that_is_away_does_not_keep_the_gateway_from_starting(
    recording: Any, postgres: Any, rows_in: Any, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres.new_database()
    await asyncio.to_thread(postgres.stop)
    try:
        async with recording(database=url) as gate:
            assert (await gate.ask()).status_code == 200
            await asyncio.to_thread(postgres.start)
            end = asyncio.get_running_loop().time() + 20
            while not await asyncio.to_thread(_has_row, postgres_place(url)):
                assert asyncio.get_running_loop().time() < end
                await asyncio.sleep(0.05)
    finally:
        await asyncio.to_thread(postgres.stop)
        await asyncio.to_thread(postgres.start)
    assert "right" not in caplog.text
    assert len(rows_in(postgres_place(url))) == 1


def _has_row(place: Any) -> bool:
    try:
        with Store.open(place, 5.0, create=False) as store:
            return bool(store.run(f"SELECT count(*) FROM {store.PREFIX}requests")[0][0])
    except PluginError:
        return False


async def test_a_path_that_cannot_be_is_said_at_the_start(recording: Any, tmp_path: Any) -> None:
    with pytest.raises(PluginError, match="No such file"):
        async with recording(database=str(tmp_path / "no" / "such.db")):
            pass


async def test_a_ledger_that_is_locked_at_the_start_is_not_waited_for(
    recording: Any, locked: Any, tmp_path: Any
) -> None:
    path = tmp_path / "usage.db"
    Store.open(path, 5.0).close()
    with locked(path):
        async with recording(state_dir=tmp_path) as gate:
            assert (await gate.ask()).status_code == 200
    async with recording(state_dir=tmp_path) as again:
        assert len(await again.rows(1)) == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"database": ""}, "is empty"),
        ({"database": "mysql://x/y"}, "neither a file nor postgresql"),
        ({"database": "postgresql://h:secret@/"}, "names no database"),
        ({"retention": "soon"}, "retention: 'soon' is no time"),
        ({"retention": "5h"}, "less than a day"),
        ({"summary_retention": "30d"}, "shorter than retention"),
        ({"prices": {"test": {"input": 1}}}, "output"),
        ({"prices": {"tset": {"input": 1, "output": 1}}}, "'tset' is no model"),
        ({"currency": "=HYPERLINK()"}, "currency"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_said(config: Any, words: str) -> None:
    document = {
        "backends": {"fake": {"provider": "openai", "base_url": "http://127.0.0.1:9"}},
        "models": {"test": {"targets": ["fake"]}},
        "plugins": {"openai": {}, "usage": config},
    }
    with pytest.raises(HeadraceError, match=words) as caught:
        Gateway(parse(document)).assemble()
    assert "secret" not in str(caught.value)


async def test_usage_at_v1_is_still_the_core_s(recording: Any) -> None:
    async with recording() as gate:
        answer: httpx.Response = await gate.client.get("/v1/usage", headers={"x-api-key": "ada"})
    assert answer.json()["id"] == "ada"
