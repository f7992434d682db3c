"""What the gateway takes from vLLM: token counts, health, load, and that nothing is computed for nobody."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from .asking import ENDLESS, HELLO, Caller, Words, asking, calling, idle_after
from .vllm import SEATS, Server, table

MODELS = """
wheel = { targets = ["a"] }
pair = { targets = ["a", "b"] }
short = { targets = ["a"], context_window_fallbacks = ["long"] }
long = { targets = ["b"] }
brief = { targets = ["a"], deadlines = { total = 1.5 } }
queued = { targets = ["a", "b"], policy = "queue_aware" }
"""
PLUGINS = """
[plugins.health]
interval = 0.5
fast_interval = 0.2
timeout = 1
[plugins.health.targets.a]
kind = "vllm"
[plugins.routing.metrics]
interval = 0.2
[plugins.ratelimit]
exact_prompts = true
[[plugins.ratelimit.limits]]
tokens_per_day = 10_000_000
"""
IDLE_LIMIT = 1.0
"""Seconds until an engine has nothing to do any more: a tenth is usual where nothing else runs."""
COUNT = 600
"""Tokens of an answer that takes some seconds."""
STREAMS = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
PROMPTS: dict[str, Callable[[Words], dict[str, Any]]] = {
    "a question": lambda words: {"messages": [{"role": "user", "content": words(40)}]},
    "a conversation": lambda words: {
        "messages": [{"role": role, "content": words(90)} for role in ("system", "user", "assistant", "user")]
    },
    "other scripts": lambda words: {
        "messages": [{"role": "user", "content": "Río, Mühle, 水車, 🛶 <b>&</b> " + words(9)}]
    },
    "tools": lambda words: {
        "messages": [{"role": "user", "content": words(20)}],
        "tools": [{"type": "function", "function": {"name": "look", "description": words(40)}}],
        "tool_choice": "none",
    },
    "an answer that is begun": lambda words: {
        "messages": [{"role": "user", "content": words(20)}, {"role": "assistant", "content": words(5)}],
        "extra_body": {"continue_final_message": True, "add_generation_prompt": False},
    },
    "a text to go on with": lambda words: {"prompt": words(200)},
}


@pytest.fixture(scope="module", params=["inline", "offload", "module"])
def caller(all_servers: dict[str, Server], own_stack: Any, request: pytest.FixtureRequest) -> Iterator[Caller]:
    backends = table(all_servers)
    with (
        own_stack(way=request.param, backends=backends, models=MODELS, plugins=PLUGINS) as stack,
        calling(stack) as made,
    ):
        yield made


# --- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS)
def test_what_is_reserved_and_what_is_settled_is_what_vllm_counts(
    caller: Caller, a: Server, words: Words, prompt: str
) -> None:
    key = caller.stack.make_key()
    fields = PROMPTS[prompt](words)
    fields["extra_body"] = {**fields.get("extra_body", {}), "ignore_eos": True}
    told = {"stream": True, "stream_options": {"include_usage": True}}
    asked = caller.ask("wheel", key, **fields, max_tokens=COUNT, **told).begun(3)
    reserved = caller.used(key)["tokens_per_day"]
    assert asked.is_alive(), "the answer is over already"
    usage = asked.wait().usage
    assert (asked.error, usage.completion_tokens) == (None, COUNT)
    assert reserved == usage.prompt_tokens + COUNT
    assert caller.used(key)["tokens_per_day"] == usage.total_tokens


@STREAMS
def test_what_the_answer_did_not_take_is_given_back(caller: Caller, a: Server, words: Words, stream: bool) -> None:
    key = caller.stack.make_key()
    asked = caller.ask("wheel", key, messages=[{"role": "user", "content": words(30)}], max_tokens=2000, stream=stream)
    assert asked.wait().finish == ["stop"]
    line = caller.logged(asked)
    used = line["gen_ai.usage.input_tokens"] + line["gen_ai.usage.output_tokens"]
    assert used < 2000
    assert caller.used(key)["tokens_per_day"] == used
    assert stream or used == asked.usage.total_tokens


def test_a_prompt_that_is_too_long_for_one_is_answered_by_another(
    caller: Caller, a: Server, b: Server, words: Words
) -> None:
    prompt = [{"role": "user", "content": words(a.length // 2)}]
    assert a.length < len(b.tokens(prompt)) < b.length
    asked = caller.ask("short", messages=prompt, max_tokens=5).wait()
    assert (asked.error, asked.finish, caller.target(asked)) == (None, ["length"], "b")


# --- health and load --------------------------------------------------------------------------------------------------


def test_both_ways_to_ask_vllm_how_it_is_say_that_it_is_up(caller: Caller, a: Server, b: Server, kit: Any) -> None:
    kit.until(lambda: caller.conditions() == {"a": "up", "b": "up"}, "the end of the first checks")


@pytest.mark.parametrize("frozen", ["a", "b"])
def test_a_server_that_hangs_is_asked_last_until_it_goes_on(
    caller: Caller, a: Server, b: Server, kit: Any, frozen: str
) -> None:
    server, other = (a, "b") if frozen == "a" else (b, "a")
    kit.until(lambda: caller.conditions()[frozen] == "up", "the end of the first checks")
    with stopped(server):
        began = time.monotonic()
        kit.until(lambda: caller.conditions()[frozen] == "down", "being noticed")
        print(f"noticed after {time.monotonic() - began:.1f} s")
        asked = caller.ask("pair", max_tokens=3).wait()
        assert (asked.error, caller.target(asked)) == (None, other)
    kit.until(lambda: caller.conditions()[frozen] == "up", "its being up again")


@contextlib.contextmanager
def stopped(server: Server) -> Iterator[None]:
    """A server that accepts connections and says nothing."""
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)


@pytest.mark.parametrize("busy", ["a", "b"])
def test_a_server_that_others_keep_busy_is_not_asked(caller: Caller, a: Server, b: Server, kit: Any, busy: str) -> None:
    server, other = (a, "b") if busy == "a" else (b, "a")
    with begun(server.port, "/v1/chat/completions", SEATS // 2):  # who is asked before that is known need not wait
        kit.until(lambda: server.running == SEATS // 2, "the engine's work")
        kit.until(lambda: set(who_answers(caller, 5)) == {other}, "the gateway's knowing it")
        assert who_answers(caller, 10) == [other] * 10
    kit.until(server.at_rest, "the engine's rest")
    kit.until(lambda: set(who_answers(caller, 5)) == {"a", "b"}, "the gateway's knowing that it is over")


def who_answers(caller: Caller, count: int) -> list[str]:
    """The targets of some requests, one after the other."""
    return [caller.target(caller.ask("queued", max_tokens=1).wait()) for _ in range(count)]


@contextlib.contextmanager
def begun(port: int, path: str, count: int) -> Iterator[None]:
    """Requests of somebody else, who leaves at the end."""
    body = json.dumps({"model": "wheel", "messages": HELLO, "stream": True, **ENDLESS}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with ExitStack() as open_ones:
        for _ in range(count):
            connection = open_ones.enter_context(socket.create_connection(("127.0.0.1", port), 60))
            connection.sendall(head.encode() + body)
        yield


def test_no_more_is_sent_than_the_engine_runs(
    all_servers: dict[str, Server], own_stack: Any, request: pytest.FixtureRequest, a: Server, kit: Any, caller: Caller
) -> None:
    """What would wait in the engine waits in the gateway, where callers have their turns."""
    way = request.node.callspec.params["caller"]
    models = 'wheel = { targets = ["a"] }'
    plugins = """
[plugins.queue]
follow = ["a"]
admin_api = true
[plugins.routing.metrics]
interval = 0.2
"""
    with (
        own_stack(way=way, backends=table(all_servers), models=models, plugins=plugins) as stack,
        ExitStack() as ending,
    ):
        own = ending.enter_context(calling(stack))
        crowd = ending.enter_context(ExitStack())
        for _ in range(2 * SEATS):
            crowd.enter_context(asking(own, "wheel", "/v1/chat/completions", True))
        kit.until(lambda: a.running == a.waiting == SEATS, "the arrival of all, for nobody knows yet")
        kit.until(lambda: slots(own) <= SEATS, "the gateway's knowing it")
        for _ in range(2 * SEATS):
            ending.enter_context(asking(own, "wheel", "/v1/chat/completions", True))
        crowd.close()
        kit.until(lambda: a.running == SEATS, "the next ones' turn")
        found = [a.waiting for _ in range(30)]
        assert max(found) <= 2, f"{found} wait in the engine"


def slots(caller: Caller) -> int:
    """Requests that the gateway lets run at the first server."""
    with caller.route.client() as client:
        return int(client.get("/admin/queue").json()["backends"]["a"]["capacity"])


# --- nothing is computed for nobody -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@STREAMS
def test_vllm_stops_when_the_client_leaves(caller: Caller, a: Server, kit: Any, path: str, stream: bool) -> None:
    with asking(caller, "wheel", path, stream):
        kit.until(lambda: a.running == 1, "the engine's work")
        left = time.monotonic()
    assert idle_after(a, left) < IDLE_LIMIT


@STREAMS
def test_a_request_that_vllm_has_not_begun_is_taken_back_when_the_client_leaves(
    caller: Caller, a: Server, kit: Any, stream: bool
) -> None:
    with begun(a.port, "/v1/chat/completions", SEATS):
        kit.until(lambda: a.running == SEATS, "the engine's work")
        with asking(caller, "wheel", "/v1/chat/completions", stream):
            kit.until(lambda: a.waiting == 1, "the request's arrival in the queue")
            left = time.monotonic()
        kit.until(lambda: a.waiting == 0, "its end")
        seconds = time.monotonic() - left
    print(f"taken back after {seconds * 1000:.0f} ms")
    assert seconds < IDLE_LIMIT


def test_many_clients_that_leave_leave_nothing_behind(caller: Caller, a: Server, kit: Any) -> None:
    with ExitStack() as open_ones:
        for number in range(2 * SEATS):
            open_ones.enter_context(asking(caller, "wheel", "/v1/chat/completions", bool(number % 2)))
        kit.until(lambda: a.running == a.waiting == SEATS, "the arrival of all")
        left = time.monotonic()
    assert idle_after(a, left) < IDLE_LIMIT


@STREAMS
def test_a_deadline_ends_the_engines_work(caller: Caller, a: Server, stream: bool) -> None:
    fields = {**ENDLESS, "extra_body": {"ignore_eos": True}}
    del fields["ignore_eos"]
    began = time.monotonic()
    asked = caller.ask("brief", stream=stream, **fields).wait()
    assert (asked.code, asked.finish) == ("deadline_exceeded", [])
    assert idle_after(a, began + 1.5) < IDLE_LIMIT


def test_a_gateway_that_stops_leaves_no_request_behind(
    all_servers: dict[str, Server], own_stack: Any, request: pytest.FixtureRequest, a: Server, kit: Any, caller: Caller
) -> None:
    """Of a gateway of its own, that waits five seconds for open requests."""
    way = request.node.callspec.params["caller"]
    models = 'wheel = { targets = ["a"] }'
    with own_stack(way=way, backends=table(all_servers), models=models) as stack, ExitStack() as open_ones:
        own = open_ones.enter_context(calling(stack))
        for stream in (True, False):
            open_ones.enter_context(asking(own, "wheel", "/v1/chat/completions", stream))
        kit.until(lambda: a.running == 2, "the engine's work")
        assert stack.launched.end(signal.SIGTERM) == 0
        ended = time.monotonic()
        assert idle_after(a, ended) < IDLE_LIMIT
