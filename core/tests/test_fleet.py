"""How busy backends are: counted once, whoever asks, in whichever worker."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace import hookimpl
from headrace.errors import Unavailable
from headrace.exchange import Exchange, Target, UpstreamRequest
from headrace.fleet import Fleet, TargetState
from headrace.testing import FakeBackend, serve

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}


def target(name: str) -> Target:
    return Target(name=name, provider="openai", base_url="http://127.0.0.1:1")


def test_a_target_is_as_busy_as_requests_have_begun_and_not_ended() -> None:
    state = TargetState()
    state.begin()
    state.begin()
    state.end()
    assert state.in_flight == 1


def test_targets_have_a_state_each() -> None:
    first, second = target("a"), target("b")
    first.state.begin()
    assert (first.state.in_flight, second.state.in_flight) == (1, 0)


def test_all_workers_count_together(tmp_path: Path) -> None:
    workers = [[target("a"), target("b")] for _ in range(3)]
    for number, targets in enumerate(workers):
        Fleet(tmp_path, number, 3).open(targets)
    for targets in workers:
        targets[0].state.begin()
    workers[1][1].state.begin()
    assert [[each.state.in_flight for each in targets] for targets in workers] == [[3, 1]] * 3


def test_what_a_worker_had_begun_before_it_died_is_forgotten(tmp_path: Path) -> None:
    other, dead = target("a"), target("a")
    Fleet(tmp_path, 0, 2).open([other])
    Fleet(tmp_path, 1, 2).open([dead])
    other.state.begin()
    dead.state.begin()
    again = target("a")
    Fleet(tmp_path, 1, 2).open([again])
    assert other.state.in_flight == again.state.in_flight == 1


def test_what_is_running_stays_counted_when_the_memory_is_opened(tmp_path: Path) -> None:
    busy = target("a")
    busy.state.begin()
    Fleet(tmp_path, 0, 2).open([busy])
    busy.state.end()
    assert busy.state.in_flight == 0


def test_workers_with_other_backends_do_not_count_together(tmp_path: Path) -> None:
    one, other = target("a"), target("a")
    Fleet(tmp_path, 0, 2).open([one])
    Fleet(tmp_path, 1, 2).open([other, target("b")])
    one.state.begin()
    assert other.state.in_flight == 0


def test_a_worker_that_comes_back_to_backends_counts_with_the_others_again(tmp_path: Path) -> None:
    one, other = target("a"), target("a")
    first, second = Fleet(tmp_path, 0, 2), Fleet(tmp_path, 1, 2)
    first.open([one])
    second.open([other])
    first.open([one, target("b")])
    first.open([one])
    other.state.begin()
    assert one.state.in_flight == 1


def test_where_there_is_no_room_each_worker_counts_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    one = target("a")
    Fleet(tmp_path, 0, 2).open([one])
    one.state.begin()
    assert one.state.in_flight == 1
    assert "No space left" in caplog.text


def test_an_heir_counts_together_with_whom_it_comes_after(tmp_path: Path) -> None:
    old = TargetState()
    old.become("down")
    heir = old.heir(watched=True)
    old.begin()
    assert (heir.in_flight, heir.condition) == (1, "down")
    assert old.heir(watched=False).condition == "unknown"


def test_a_condition_tells_whether_it_has_changed() -> None:
    state = TargetState()
    assert state.become("down", "refused")
    assert not state.become("down", "still refused")
    assert (state.condition, state.reason) == ("down", "still refused")


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_after_a_request_nothing_is_in_flight_however_it_ended(status: int) -> None:
    async with FakeBackend() as backend, serve(backend.config()) as running, httpx.AsyncClient() as client:
        backend.status = status
        answer = await client.post(f"{running.url}/v1/chat/completions", json=CHAT)
        assert answer.status_code == (502 if status == 500 else status)
        assert [each.state.in_flight for each in running.gateway.models.targets] == [0]


async def test_a_client_that_leaves_is_not_counted_any_more() -> None:
    async with FakeBackend() as backend, serve(backend.config()) as running:
        backend.pause = 60
        target = running.gateway.models.targets[0]
        async with httpx.AsyncClient() as client:
            asked = asyncio.create_task(client.post(f"{running.url}/v1/chat/completions", json=CHAT))
            while not backend.requests:
                await asyncio.sleep(0.001)
            assert (target.state.in_flight, running.gateway.upstream.in_use) == (1, 1)
            assert running.gateway.orphans == 0
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            await backend.closed_early.wait()
            async with asyncio.timeout(10):
                while target.state.in_flight:
                    await asyncio.sleep(0.001)
            assert (running.gateway.orphans, running.gateway.upstream.in_use) == (0, 0)


async def test_models_that_name_the_same_backend_share_its_state() -> None:
    async with FakeBackend() as backend:
        config = backend.config()
        config["models"]["other"] = {"targets": ["fake"]}
        async with serve(config) as running:
            models = running.gateway.models
            assert models.find("test").targets[0] is models.find("other").targets[0]


def only(*names: str) -> type[Any]:
    """A plugin that lets these targets be asked alone."""

    class Plugin:
        def __init__(self, config: Any, gateway: Any) -> None:
            pass

        @hookimpl
        def arrange(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target] | None:
            if not names:
                raise Unavailable("Nobody is left.", headers={"Retry-After": "7"})
            return [each for each in targets if each.name in names]

    return Plugin


@pytest.mark.parametrize(("names", "status"), [(("fake",), 200), ((), 503)])
async def test_hook_arrange_says_who_is_asked(names: tuple[str, ...], status: int) -> None:
    async with FakeBackend() as backend, FakeBackend() as dead:
        dead.status = 500
        config = backend.config()
        config["backends"]["dead"] = {"provider": "openai", "base_url": dead.url}
        config["models"]["test"]["targets"] = ["dead", "fake"]
        async with serve(config, {"only": only(*names)}) as running, httpx.AsyncClient() as client:
            answer = await client.post(f"{running.url}/v1/chat/completions", json=CHAT)
            assert (answer.status_code, dead.requests) == (status, [])
            if status == 503:
                assert answer.headers["retry-after"] == "7"


async def test_hook_arrange_that_fails_leaves_the_order_as_it_was() -> None:
    class Broken:
        def __init__(self, config: Any, gateway: Any) -> None:
            pass

        @hookimpl
        def arrange(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target] | None:
            raise ZeroDivisionError

    async with FakeBackend() as backend, serve(backend.config(), {"broken": Broken}) as running:
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{running.url}/v1/chat/completions", json=CHAT)
        assert answer.status_code == 200


async def test_a_backend_that_is_asked_for_nobody_is_an_orphan() -> None:
    async with FakeBackend() as backend, serve(backend.config()) as running:
        backend.chunks, backend.pause = 1000, 0.01
        upstream, target = running.gateway.upstream, running.gateway.models.targets[0]
        body = b'{"model":"m","stream":true,"messages":[{"role":"user"}]}'
        request = UpstreamRequest(url=f"{backend.url}/chat/completions", headers={}, body=body)
        reply = await upstream.send(target, request)
        assert running.gateway.orphans == 1
        await reply.aclose()
        assert running.gateway.orphans == 0
