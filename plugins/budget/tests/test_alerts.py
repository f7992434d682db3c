"""Alerts: once for each budget and period, in the log and at an address, and nobody waits for them."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from datetime import UTC
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from headrace.config import Secret
from headrace.exchange import Principal
from headrace_budget import LimitConfig
from headrace_budget.alerts import Alerts
from headrace_budget.answers import Words
from headrace_budget.money import Prices
from headrace_budget.periods import Calendar
from headrace_budget.rules import Rules
from headrace_budget.webhook import Webhook

FIVE = {"cost_per_month": 5}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "headrace.budget"]


class Receiver(ThreadingHTTPServer):
    """Receives alerts, and answers each with the next of `statuses`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[Any] = []
        self.statuses: list[int] = []
        self.silent = threading.Event()
        self.silent.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook/secret-in-a-path"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.silent.wait(30)
        self.server.received.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *parts: Any) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.silent.set()
        server.shutdown()
        thread.join()


async def arrived(receiver: Receiver, count: int) -> None:
    async with asyncio.timeout(20):
        while len(receiver.received) < count:
            await asyncio.sleep(0.01)


async def test_an_alert_is_given_once_when_its_part_is_used(
    budgeted: Any, flat: Any, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with budgeted(FIVE, prices=flat, clock=clock) as gate:
        for _ in range(3):
            await gate.ask("ada")
        assert said(caplog) == []
        for _ in range(4):
            await gate.ask("ada")
    assert said(caplog) == ["80 % of the budget of 5.00 USD a month of the key 'ada': 4.00 USD used"]
    assert caplog.records[-1].levelno == logging.WARNING


async def test_each_subject_and_each_period_has_alerts_of_its_own(
    budgeted: Any, flat: Any, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rule = {"cost_per_day": 1, "per": ["team"], "alert_at": 1}
    async with budgeted(rule, prices=flat, clock=clock) as gate:
        for who in ("ada/red", "bob/blue", "eve/red"):
            await gate.ask(who)
        clock.now += 86_400
        await gate.ask("ada/red")
    assert [line.partition(" of the team ")[2] for line in said(caplog)] == [
        "'red': 1.00 USD used",
        "'blue': 1.00 USD used",
        "'red': 1.00 USD used",
    ]


async def test_a_list_gives_an_alert_for_each_part_the_highest_first_to_be_reached(
    budgeted: Any, flat: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rule = {"cost_per_day": 4, "per": [], "alert_at": [0.75, 0.25, 0.5], "enforce": False}
    async with budgeted(rule, prices=flat) as gate:
        for _ in range(6):
            await gate.ask()
    assert [line.split()[0] for line in said(caplog)] == ["25", "50", "75"]
    assert said(caplog)[0].endswith("of all callers together: 1.00 USD used (not enforced)")


async def test_what_is_only_reserved_gives_no_alert(budgeted: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with budgeted({"tokens_per_month": 1000}) as gate:
        assert (await gate.ask(max_tokens=900)).status_code == 200
    assert said(caplog) == []


async def test_no_alerts_are_given_where_none_are_wanted(
    budgeted: Any, flat: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with budgeted({"cost_per_day": 2, "alert_at": []}, prices=flat) as gate:
        for _ in range(4):
            await gate.ask()
    assert said(caplog) == []


def test_alerts_of_periods_that_are_over_are_forgotten(clock: Any) -> None:
    calendar = Calendar(UTC, clock)
    rules = Rules([LimitConfig(tokens_per_day=5)], Prices({}, free=True), calendar)
    alerts = Alerts(Words("USD", calendar), clock, None)
    for _ in range(3):
        for name in ("ada", "bob"):
            alerts.look(list(rules.parts(Principal(id=name), "test", calendar.today())), [5])
        assert len(alerts) == 2
        clock.now += 86_400


async def test_an_alert_is_posted_as_json(budgeted: Any, flat: Any, clock: Any, receiver: Receiver) -> None:
    async with budgeted(FIVE, prices=flat, clock=clock, alert_url=receiver.url) as gate:
        for _ in range(5):
            await gate.ask("ada")
        await arrived(receiver, 1)
    ((path, kind, alert),) = receiver.received
    assert (path, kind) == ("/hook/secret-in-a-path", "application/json")
    assert alert == {
        "event": "budget_alert",
        "name": "cost_per_month",
        "of": {"key": "ada"},
        "unit": "USD",
        "limit": 5.0,
        "used": 4.0,
        "remaining": 1.0,
        "resets_at": "2030-06-01T00:00:00Z",
        "share": 0.8,
        "enforced": True,
    }


async def test_requests_do_not_wait_for_an_address_that_does_not_answer(
    budgeted: Any, flat: Any, receiver: Receiver
) -> None:
    receiver.silent.clear()
    async with budgeted({"cost_per_day": 2, "alert_at": [0.5, 1]}, prices=flat, alert_url=receiver.url) as gate:
        answers = [await gate.ask() for _ in range(3)]
        assert receiver.received == []
        receiver.silent.set()
        await arrived(receiver, 2)
    assert [each.status_code for each in answers] == [200, 200, 429]


async def test_an_alert_that_is_not_taken_is_posted_again(budgeted: Any, receiver: Receiver) -> None:
    receiver.statuses = [500, 302]
    async with budgeted() as gate:
        webhook = Webhook(Secret(receiver.url), gate.running.gateway, pauses=(0.01, 0.01))
        async with webhook.running():
            webhook.post({"event": "budget_alert"})
            await arrived(receiver, 3)
    assert [alert for *_, alert in receiver.received] == [{"event": "budget_alert"}] * 3


@pytest.mark.parametrize("fault", ["refused", "status"])
async def test_what_cannot_be_posted_is_logged_without_the_address(
    budgeted: Any, receiver: Receiver, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    receiver.statuses = [500, 500]
    url = receiver.url if fault == "status" else "http://user:password@127.0.0.1:9/secret-in-a-path?secret=1"
    async with budgeted() as gate:
        webhook = Webhook(Secret(url), gate.running.gateway, pauses=(0.01,))
        async with webhook.running():
            webhook.post({"event": "budget_alert"})
    problem = "it answered 500" if fault == "status" else "The backend cannot be reached."
    assert said(caplog) == [f"an alert could not be posted to 127.0.0.1: {problem}"]
    assert "secret" not in caplog.text and "password" not in caplog.text


async def test_alerts_do_not_pile_up_before_an_address_that_does_not_answer(
    budgeted: Any, receiver: Receiver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace_budget.webhook.AT_ONCE", 2)
    receiver.silent.clear()
    async with budgeted() as gate:
        webhook = Webhook(Secret(receiver.url), gate.running.gateway)
        async with webhook.running():
            for number in range(4):
                webhook.post({"number": number})
            receiver.silent.set()
    assert sorted(alert["number"] for *_, alert in receiver.received) == [0, 1]
    assert said(caplog) == ["an alert is not posted to 127.0.0.1: 2 are under way"] * 2


async def test_the_gateway_ends_though_an_address_does_not_answer(
    budgeted: Any, flat: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace_budget.webhook.LEAVE_SECONDS", 0.05)
    receiver.silent.clear()
    async with asyncio.timeout(20):
        async with budgeted({"cost_per_day": 1}, prices=flat, alert_url=receiver.url) as gate:
            await gate.ask()
    assert receiver.received == []
