"""`/admin/usage`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

ADMIN = {"x-api-key": "root//admin"}


@pytest.fixture
def asked(recording: Any) -> Any:
    """A gateway with the API, after five requests of each of two keys."""
    import contextlib

    @contextlib.asynccontextmanager
    async def asked(**options: Any) -> Any:
        async with recording(admin_api=True, **options) as gate:
            await asyncio.gather(*(gate.ask(who=who) for who in ("ada/red", "bob/blue") for _ in range(5)))
            await gate.rows(10)
            yield gate

    return asked


async def test_a_report_is_what_the_command_says(asked: Any) -> None:
    async with asked() as gate:
        answer = await gate.client.get("/admin/usage/report?by=team,status&since=1h&sort=team", headers=ADMIN)
    said = answer.json()
    assert [(row["team"], row["status"], row["requests"]) for row in said["data"]] == [
        ("blue", 200, 5),
        ("red", 200, 5),
    ]
    assert (said["total"]["requests"], said["object"], said["currency"]) == (10, "usage.report", "USD")


async def test_pages_follow_each_other_without_gap_and_without_repetition(asked: Any) -> None:
    async with asked() as gate:
        seen, after, more = [], "", True
        while more:
            page = (await gate.client.get(f"/admin/usage/requests?limit=3{after}", headers=ADMIN)).json()
            seen += [row["cursor"] for row in page["data"]]
            await gate.ask()  # what is new does not move what is old
            after, more = f"&after={page['last_id']}", page["has_more"]
        everything = [row["cursor"] for row in await gate.rows(14)]
    assert seen == everything[9::-1]


async def test_filters_may_be_repeated(asked: Any) -> None:
    async with asked() as gate:
        for query, count in (("key=ada", 5), ("key=ada&key=bob", 10), ("key=nobody", 0), ("status=200&team=red", 5)):
            answer = await gate.client.get(f"/admin/usage/requests?{query}", headers=ADMIN)
            assert len(answer.json()["data"]) == count


@pytest.mark.parametrize(
    "path",
    [
        *("report?by=colour", "report?since=soon", "report?limit=0", "report?sort=x", "report?nonsense=1"),
        *(
            "report?since=1h&since=2h",
            "requests?limit=9999",
            "requests?after=x",
            "requests?after=1-" + "f" * 16 + "-1-0",
        ),
        *("requests?until=2001-01-01", "report?status=2xx", "report?key=%00", "requests?sort=cost"),
    ],
)
async def test_what_cannot_be_asked_is_answered_400(recording: Any, path: str) -> None:
    async with recording(admin_api=True) as gate:
        answer = await gate.client.get(f"/admin/usage/{path}", headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_it_is_for_administrators(recording: Any) -> None:
    async with recording(admin_api=True) as gate:
        for path in ("report", "requests"):
            for key, status in (
                ({}, 401),
                ({"x-api-key": "ada"}, 403),
                ({"x-api-key": "m//metrics"}, 403),
                (ADMIN, 200),
            ):
                assert (await gate.client.get(f"/admin/usage/{path}", headers=key)).status_code == status


async def test_without_admin_api_there_is_none(recording: Any) -> None:
    async with recording() as gate:
        assert (await gate.client.get("/admin/usage/report", headers=ADMIN)).status_code == 404


async def test_a_ledger_that_is_gone_is_answered_503_without_saying_where_it_was(asked: Any) -> None:
    async with asked() as gate:
        place = gate.plugin.database
        for path in place.parent.glob("usage.db*"):
            path.unlink()
        answer = await gate.client.get("/admin/usage/report", headers=ADMIN)
        assert answer.status_code == 503
        assert str(place) not in answer.text
