"""A configuration that is taken over while requests come and go: whole or not at all, and without losing one."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest

from headrace.gateway import Gateway
from headrace.reload import on_change
from headrace.server import make_server
from headrace.sockets import bind
from headrace.tenure import Tenures, Told, told_file
from headrace.testing import FakeBackend
from headrace.timelimit import in_thread

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
TOML = """
[server]
anonymous = true
listen = "127.0.0.1:1"
state_dir = "{folder}"
{server}
[backends]
fake = {{ provider = "openai", base_url = "{url}" }}
[models]
test = {{ targets = ["fake"], retry = {{ rounds = 1 }} }}
{models}
[plugins.openai]
{plugins}
"""


@contextlib.asynccontextmanager
async def served(folder: Path) -> AsyncIterator[SimpleNamespace]:
    """A gateway that serves, with a file that can be written anew."""
    path = folder / "headrace.toml"
    async with FakeBackend() as backend:

        def write(server: str = "", models: str = "", plugins: str = "") -> None:
            path.write_text(TOML.format(folder=folder, url=backend.url, server=server, models=models, plugins=plugins))

        write()
        gateway = Gateway.from_file(path).assemble()
        server = make_server(gateway)
        tenures = Tenures(gateway, path, server.config)
        with contextlib.closing(bind("127.0.0.1:0")) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with (
                tenures.running(),
                server.answering([listener]),
                httpx.AsyncClient(base_url=url, timeout=30) as client,
            ):

                async def chat(model: str = "test", **fields: Any) -> httpx.Response:
                    return await client.post("/v1/chat/completions", json={**CHAT, "model": model, **fields})

                yield SimpleNamespace(
                    backend=backend, write=write, tenures=tenures, chat=chat, client=client, path=path, first=gateway
                )


async def test_new_requests_see_the_new_configuration(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        assert (await it.chat("other")).status_code == 404
        it.write(models='other = { targets = ["fake"] }')
        assert (await it.tenures.reload()).ok
        assert (await it.chat("other")).status_code == 200


async def test_an_open_connection_sees_it_too(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        assert (await it.chat()).status_code == 200
        it.write(models='other = { targets = ["fake"] }')
        await it.tenures.reload()
        names = [each["id"] for each in (await it.client.get("/v1/models")).json()["data"]]
        assert names == ["test", "other"]


async def test_a_request_ends_by_the_configuration_it_began_with(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        it.backend.chunks, it.backend.pause = 20, 0.02
        asked = asyncio.create_task(it.chat(stream=True))
        await it.backend.streaming.wait()
        it.path.write_text(it.path.read_text().replace("test =", "renamed ="))
        assert (await it.tenures.reload()).ok
        assert it.first.open_requests == 1
        assert (await it.chat()).status_code == 404
        assert (await asked).text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"models": "other = { targets = [] }"}, "names no backend"),
        ({"server": "workers = 2"}, "[server] workers: has changed: restart the gateway for that"),
        ({"plugins": "[plugins.nothing]"}, "nothing"),
        ({"models": "other ="}, "is not valid TOML"),
    ],
)
async def test_a_configuration_that_cannot_be_used_changes_nothing(
    tmp_path: Path, broken: dict[str, str], said: str
) -> None:
    async with served(tmp_path) as it:
        it.write(**broken)
        told = await it.tenures.reload()
        assert not told.ok
        assert said in "\n".join(told.problems)
        assert (await it.chat()).status_code == 200
        it.write(models='other = { targets = ["fake"] }')
        assert (await it.tenures.reload()).ok
        assert (await it.chat("other")).status_code == 200


async def test_how_it_went_stands_in_a_file(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        path = told_file(it.first.runtime_dir, 0)
        it.write(models="other =")
        await it.tenures.reload()
        told = msgspec.json.decode(path.read_bytes(), type=Told)
        assert (told.number, told.ok, len(told.problems)) == (1, False, 1)
    assert not path.exists()


async def test_requests_that_run_on_are_counted_in_the_new_gateway_too(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        state = it.first.models.targets[0].state
        state.begin()
        state.failure = "it was unplugged"
        it.write(models='other = { targets = ["fake"] }')
        await it.tenures.reload()
        heir = it.tenures.current.gateway.models.find("other").targets[0].state
        assert (heir.in_flight, heir.failure) == (1, "it was unplugged")
        state.end()
        assert heir.in_flight == 0


async def test_what_the_plugins_of_the_old_gateway_still_find_out_is_not_taken_for_new(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        old = it.first.models.targets[0].state
        old.become("down", "as the old configuration looks at it")
        await it.tenures.reload()
        heir = it.tenures.current.gateway.models.targets[0].state
        old.become("starting")
        assert heir.condition == "unknown"  # here nobody looks


async def test_a_configuration_that_blocks_is_given_up_and_the_next_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = threading.Event()
    async with served(tmp_path) as it:
        real = Gateway.from_file
        monkeypatch.setattr(Gateway, "from_file", lambda *_: blocked.wait(60))
        monkeypatch.setattr("headrace.tenure.in_thread", partial(_hurried, in_thread))
        told = await it.tenures.reload()
        assert (told.ok, "within" in told.problems[0]) == (False, True)
        monkeypatch.setattr(Gateway, "from_file", real)
        it.write(models='other = { targets = ["fake"] }')
        monkeypatch.setattr("headrace.tenure.in_thread", in_thread)
        assert (await it.tenures.reload()).ok
    blocked.set()


async def _hurried(run: Any, work: Any, seconds: float) -> Any:
    return await run(work, 0.2)


async def test_a_told_file_that_cannot_be_written_keeps_nobody_from_working(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path) as it:
        told_file(it.first.runtime_dir, 0).with_suffix(".new").mkdir()
        it.write(models='other = { targets = ["fake"] }')
        assert (await it.tenures.reload()).ok
        assert (await it.chat("other")).status_code == 200
    assert "cannot be written" in caplog.text


async def test_no_request_fails_while_configurations_come_and_go(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        done, answers = asyncio.Event(), []

        async def ask(stream: bool) -> None:
            while not done.is_set():
                answers.append((await it.chat(stream=stream)).status_code)

        asking = [asyncio.create_task(ask(number % 2 == 0)) for number in range(6)]
        for number in range(25):
            it.write(models=f'other{number} = {{ targets = ["fake"] }}')
            assert (await it.tenures.reload()).ok
        done.set()
        await asyncio.gather(*asking)
        assert set(answers) == {200}


async def test_nothing_is_left_of_what_is_over(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        gateways = []
        for _ in range(10):
            await it.tenures.reload()
            gateways.append(weakref.ref(it.tenures.current.gateway))
        async with asyncio.timeout(10):
            while len(it.tenures._old):
                await asyncio.sleep(0.01)
        gc.collect()
        assert [each() is None for each in gateways] == [True] * 9 + [False]


async def test_a_file_that_has_changed_is_noticed_once_it_is_left_alone(tmp_path: Path) -> None:
    path, noticed = tmp_path / "headrace.toml", asyncio.Queue[str]()
    path.write_text("one")

    async def note() -> None:
        noticed.put_nowait(path.read_text())

    watching = asyncio.create_task(on_change(path, note, 0.02))
    try:
        for text in ("two", "three, and longer"):
            await asyncio.sleep(0.1)
            path.write_text(text)
            async with asyncio.timeout(30):
                assert await noticed.get() == text
        path.unlink()
        await asyncio.sleep(0.1)
        assert noticed.empty()
    finally:
        watching.cancel()
