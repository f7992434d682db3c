"""A gateway behind nginx that takes over its configuration while it works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from .stack import Route, Stack

LIMITS = "[[plugins.ratelimit.limits]]\nkeys = []\nrequests_per_day = 1_000_000"
ASK: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module", params=["inline", "offload", "module"])
def running(own_stack: Any, request: pytest.FixtureRequest) -> Iterator[Stack]:
    with own_stack(
        workers=2, server="workers = 2", way=request.param, plugins="[plugins.ratelimit]\n" + LIMITS
    ) as stack:
        if request.param != "inline":
            stack.warm_up()
        yield stack


@pytest.fixture
def way(running: Stack) -> Iterator[Route]:
    """Whatever a test has written is undone."""
    file = running.folder / "headrace.toml"
    before = file.read_text()
    yield Route("nginx", running)
    file.write_text(before)
    assert reload(running).returncode == 0


def reload(stack: Stack) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", "--config", str(stack.folder / "headrace.toml"), "reload"]
    return subprocess.run(command, cwd=stack.folder, capture_output=True, text=True)


def rewrite(stack: Stack, old: str, new: str) -> None:
    file = stack.folder / "headrace.toml"
    text = file.read_text()
    assert text.count(old) == 1, text
    file.write_text(text.replace(old, new))


def ask(way: Route, model: str = "fake", **fields: Any) -> int:
    with way.client() as client:
        return client.post("/v1/chat/completions", json={**ASK, "model": model, **fields}).status_code


def test_a_new_model_and_its_backend_are_there_after_a_reload(way: Route, kit: Any) -> None:
    stack = way.stack
    with kit.fake_backend() as other:
        assert ask(way, "new") == 404
        rewrite(
            stack,
            "[models]\n",
            f'[models]\nnew = {{ targets = [{{ provider = "openai", base_url = "{other.url}" }}] }}\n',
        )
        done = reload(stack)
        assert done.returncode == 0, done.stderr
        assert "taken over by 2 processes" in done.stdout
        assert {ask(way, "new") for _ in range(8)} == {200}
        if stack.delivery == "offload":
            stack.warm_up()
            answer = way.post({**ASK, "model": "new"}, "reload-new")
            assert (answer.status, stack.logged("reload-new")["delivery"]) == (200, "offload")


def test_a_stream_that_is_open_goes_on_to_its_end(way: Route, kit: Any) -> None:
    stack = way.stack
    stack.fake.chunks, stack.fake.pause = 40, 0.05
    stack.fake.streaming.clear()
    found: list[str] = []

    def read() -> None:
        with way.client() as client:
            found.append(client.post("/v1/chat/completions", json={**ASK, "stream": True}).text)

    reading = threading.Thread(target=read)
    reading.start()
    kit.until(stack.fake.streaming.is_set, "the stream's begin")
    rewrite(stack, "[models]\n", '[models]\nlater = { targets = ["fake"] }\n')
    assert reload(stack).returncode == 0
    stack.fake.chunks, stack.fake.pause = 3, 0.0
    assert ask(way, "later") == 200
    reading.join(60)
    assert found[0].endswith("data: [DONE]\n\n")
    assert found[0].count('"content"') == 40


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[models]\n", "[models]\nbroken = { targets = [] }\n", "names no backend"),
        ("[models]\n", "[models\n", "is not valid TOML"),
        ("[server]\n", "[server]\nmax_header_bytes = 9999\n", "has changed: restart the gateway for that"),
    ],
)
def test_what_cannot_be_used_is_refused_and_all_goes_on(way: Route, old: str, new: str, said: str) -> None:
    rewrite(way.stack, old, new)
    done = reload(way.stack)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert said in done.stderr
    assert ask(way) == 200


def test_another_port_of_nginx_is_refused_before_anything_changes(way: Route, kit: Any) -> None:
    stack = way.stack
    rewrite(stack, f"port = {stack.port}\n", f"port = {kit.free_port()}\n")
    rewrite(stack, "[models]\n", '[models]\nlater = { targets = ["fake"] }\n')
    done = reload(stack)
    assert (done.returncode, "restart" in done.stderr) == (1, True)
    assert (ask(way), ask(way, "later")) == (200, 404)


def test_what_was_used_of_a_limit_stays_used(way: Route) -> None:
    def remaining() -> int:
        with way.client() as client:
            answer = client.post("/v1/chat/completions", json=ASK)
            return int(answer.headers["x-ratelimit-remaining-requests"])

    before = remaining()
    assert reload(way.stack).returncode == 0
    assert remaining() == before - 1


def test_a_hangup_reloads_as_the_command_does(way: Route, kit: Any) -> None:
    stack = way.stack
    rewrite(stack, "[models]\n", '[models]\nhung = { targets = ["fake"] }\n')
    os.kill(stack.launched.child.pid, signal.SIGHUP)
    kit.until(lambda: ask(way, "hung") == 200, "the reload")


def test_no_request_fails_while_configurations_come_and_go(way: Route) -> None:
    """A new model makes nginx reload where it delivers; an nginx before 1.27.4 then hangs up on whoever pauses."""
    stack, done, answers = way.stack, threading.Event(), []

    def keep_asking(stream: bool) -> None:
        with way.client(keeps=stack.delivery == "inline") as client:
            while not done.is_set():
                answer = client.post("/v1/chat/completions", json={**ASK, "stream": stream})
                whole = answer.text.endswith("data: [DONE]\n\n") if stream else bool(answer.json())
                answers.append((answer.status_code, whole))

    asking = [threading.Thread(target=keep_asking, args=(number % 2 == 0,)) for number in range(4)]
    for each in asking:
        each.start()
    text = (stack.folder / "headrace.toml").read_text()
    for number in range(5):
        (stack.folder / "headrace.toml").write_text(
            text.replace("[models]\n", f'[models]\nnew{number} = {{ targets = ["fake"] }}\n')
        )
        assert reload(stack).returncode == 0
    done.set()
    for each in asking:
        each.join(30)
    assert len(answers) > 20
    assert set(answers) == {(200, True)}


def test_a_gateway_that_does_not_run_is_not_reloaded(way: Route, kit: Any) -> None:
    with kit.short_folder() as folder:
        text = (way.stack.folder / "headrace.toml").read_text().replace(str(way.stack.state), str(folder / "state"))
        (folder / "headrace.toml").write_text(text)
        command = [sys.executable, "-m", "headrace", "--config", str(folder / "headrace.toml"), "reload"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert (done.returncode, "no gateway runs in" in done.stderr) == (1, True)
