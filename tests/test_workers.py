"""Several core processes behind one nginx: a key always meets the same one, and one that dies is passed by."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WORKERS = 3
HELLO = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def stack(own_stack: Any) -> Iterator[Any]:
    with own_stack(server=f"workers = {WORKERS}") as stack:
        yield stack


@pytest.fixture(scope="module")
def keys(stack: Any) -> list[str]:
    """Enough keys to reach every worker."""
    command = [sys.executable, "-m", "headrace", "--config", str(stack.folder / "headrace.toml"), "keys", "create"]
    made = [
        subprocess.run([*command, f"key-{number}"], capture_output=True, text=True, check=True).stdout
        for number in range(8)
    ]
    return [next(word for word in text.split() if word.startswith("hr-")) for text in made]


def worker_of(stack: Any, kit: Any, key: str) -> int:
    """Which worker decided about a request with this key. A new key is known to every worker within a second."""
    route = stack.route("nginx")

    def answered() -> str:
        identifier = uuid.uuid4().hex
        return identifier if route.post(HELLO, identifier, key=key).status == 200 else ""

    return int(stack.logged(kit.until(answered, "an answer"))["worker"])


def pid_of(stack: Any, kit: Any, worker: int) -> int:
    """The process of one worker but the first."""
    words = f"--worker\0{worker}\0".encode()
    return next(
        int(pid)
        for pid in kit.process_tree(stack.launched.child.pid)
        if words in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


def test_requests_of_one_key_meet_the_same_worker_and_keys_are_spread(stack: Any, keys: list[str], kit: Any) -> None:
    seen = {key: {worker_of(stack, kit, key) for _ in range(3)} for key in keys}
    assert all(len(workers) == 1 for workers in seen.values())
    assert len(set.union(*seen.values())) > 1


def test_the_way_a_key_is_sent_makes_no_difference(stack: Any, keys: list[str], kit: Any) -> None:
    for key in keys[:4]:
        both = (f"X-Api-Key: {key}", f"Authorization: Bearer {key}")
        ways = ((f"authorization: bearer   {key}",), (f"X-API-Key: {key}",), both)
        found = {worker_of(stack, kit, key)}
        for headers in ways:
            identifier = uuid.uuid4().hex
            assert stack.route("nginx").post(HELLO, identifier, key=None, headers=headers).status == 200
            found.add(stack.logged(identifier)["worker"])
        assert len(found) == 1


def test_answers_of_every_worker_are_delivered_by_nginx(stack: Any, keys: list[str], kit: Any) -> None:
    for key in keys:
        route = stack.route("nginx")

        def offloaded(key: str = key, route: Any = route) -> bool:
            identifier = uuid.uuid4().hex
            route.post(HELLO, identifier, key=key)
            return bool(stack.logged(identifier)["delivery"] == "offload")

        kit.until(offloaded, "a delivery by nginx")


def test_a_killed_worker_is_passed_by_and_comes_back(stack: Any, keys: list[str], kit: Any) -> None:
    homes = {key: worker_of(stack, kit, key) for key in keys}
    victim = next(worker for worker in homes.values() if worker)
    os.kill(pid_of(stack, kit, victim), signal.SIGKILL)
    route = stack.route("nginx")
    assert {route.post(HELLO, key=key).status for key in keys if homes[key] != victim} == {200}
    for key in keys:  # nginx may have sent one into a connection that was just dying
        kit.until(lambda key=key: route.post(HELLO, key=key).status == 200, "an answer by another worker", 5)
    key = next(key for key, worker in homes.items() if worker == victim)
    kit.until(lambda: worker_of(stack, kit, key) == victim, "the worker's return")
    assert {each: worker_of(stack, kit, each) for each in keys} == homes
