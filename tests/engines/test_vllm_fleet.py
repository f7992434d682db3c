"""Two vLLM servers as one: a prompt goes to the one that has its beginning cached, whoever delivers the answer."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from .asking import Asked, Caller, Words, calling
from .vllm import Server, table

MODELS = """
prefix = { targets = ["a", "b"], policy = "prefix" }
in_turn = { targets = ["a", "b"], policy = "round_robin" }
"""
PLUGINS = """
[plugins.routing]
[plugins.prefix]
admin_api = true
"""
TENANTS, CONVERSATIONS, TURNS = 4, 16, 4
"""Each tenant has a system prompt of its own, which is the beginning of all its conversations."""
AT_ONCE = 6
SYSTEM_WORDS, QUESTION_WORDS, ANSWER = 250, 50, 60
"""The last one in tokens."""
PART_OF_BEST = 0.9


@dataclass
class Turn:
    """One request of a conversation."""

    conversation: int
    began: float
    messages: list[dict[str, str]]
    asked: Asked


@dataclass
class Work:
    """What became of a workload."""

    turns: list[Turn] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    """Who answered each."""
    best: int = 0
    """Tokens that a single cache would have had, in which nothing is ever evicted and everything is at once."""
    prompts: int = 0
    status: dict[str, Any] = field(default_factory=dict)
    """What `GET /admin/prefix` says after it."""

    @property
    def cached(self) -> int:
        return sum(turn.asked.cached for turn in self.turns)

    @property
    def part_of_best(self) -> float:
        return self.cached / self.best


def run_workload(caller: Caller, model: str, tenants: int = TENANTS, at_once: int = AT_ONCE) -> list[Turn]:
    """Conversations of several tenants, some at a time, in the order in which their requests began."""
    words, found, lock = Words(f"{model} {tenants} {caller.stack.port}"), [], threading.Lock()
    systems = [words(SYSTEM_WORDS) for _ in range(tenants)]
    questions = [[words(QUESTION_WORDS) for _ in range(TURNS)] for _ in range(CONVERSATIONS)]

    def converse(number: int) -> None:
        messages = [{"role": "system", "content": systems[number % tenants]}]
        for at, question in enumerate(questions[number]):
            messages = [*messages, {"role": "user", "content": question}]
            began = time.monotonic()
            fields: dict[str, Any] = {"stream_options": {"include_usage": True}, "stream": True} if at % 2 else {}
            asked = caller.ask(model, messages=messages, max_tokens=ANSWER, **fields).wait()
            assert asked.error is None, asked.error
            with lock:
                found.append(Turn(number, began, messages, asked))
            messages = [*messages, {"role": "assistant", "content": asked.text}]

    order = list(range(CONVERSATIONS))
    random.Random(1).shuffle(order)
    with ThreadPoolExecutor(at_once) as threads:
        list(threads.map(converse, order))
    return sorted(found, key=lambda turn: turn.began)


def best_possible(server: Server, turns: list[Turn]) -> tuple[int, int]:
    """Tokens that could have been found in one cache of whole blocks, and the tokens of all prompts. At least the
    prompt's last token is computed in any case."""
    seen: set[tuple[int, ...]] = set()
    found, total = 0, 0
    for turn in turns:
        tokens = server.tokens(turn.messages)
        total += len(tokens)
        for end in range(server.block, len(tokens), server.block):
            found += server.block if tuple(tokens[:end]) in seen else 0
        answered = [*turn.messages, {"role": "assistant", "content": turn.asked.text}]
        whole = server.tokens(answered, answered=True)
        seen.update(tuple(whole[:end]) for end in range(server.block, len(whole), server.block))
    return found, total


@pytest.fixture(scope="module", params=["inline", "offload", "module"])
def caller(all_servers: dict[str, Server], own_stack: Any, request: pytest.FixtureRequest) -> Iterator[Caller]:
    with (
        own_stack(way=request.param, backends=table(all_servers), models=MODELS, plugins=PLUGINS) as stack,
        calling(stack) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def work(caller: Caller, all_servers: dict[str, Server]) -> dict[str, Work]:
    """The workload under each policy, each with words of its own, so that none finds what another has left."""
    found = {}
    key = caller.stack.make_key("--role", "admin")
    for model in ("in_turn", "prefix"):
        made = found[model] = Work(run_workload(caller, model))
        made.targets = [caller.target(turn.asked) for turn in made.turns]
        made.best, made.prompts = best_possible(all_servers["a"], made.turns)
        with caller.route.client(key) as client:
            made.status = client.get("/admin/prefix").json()
        print(
            f"{model}: {len(made.turns)} requests, {made.prompts} tokens of prompts; in a cache {made.cached}, at best "
            f"{made.best} ({made.part_of_best:.1%}); a: {made.targets.count('a')}, b: {made.targets.count('b')}"
        )
    return found


def test_nine_tenths_of_what_can_be_in_a_cache_are_found_there(work: dict[str, Work]) -> None:
    assert work["prefix"].best > work["prefix"].prompts / 2, "there is little to be found"
    assert work["prefix"].part_of_best >= PART_OF_BEST


def test_in_turn_less_is_found(work: dict[str, Work]) -> None:
    assert work["in_turn"].part_of_best < work["prefix"].part_of_best


def test_most_turns_are_asked_where_the_one_before_was(work: dict[str, Work]) -> None:
    """Not all: what is a conversation's own is a small part of these prompts, and moves where that evens the load."""
    parts = {model: part_that_stays(made.turns, made.targets) for model, made in work.items()}
    print({model: f"{part:.0%}" for model, part in parts.items()})
    assert parts["prefix"] > 0.75 > parts["in_turn"]


def test_conversations_that_share_nothing_stay_where_they_began(caller: Caller) -> None:
    turns = run_workload(caller, "prefix", tenants=CONVERSATIONS, at_once=2)
    assert part_that_stays(turns, [caller.target(turn.asked) for turn in turns]) == 1.0


def part_that_stays(turns: list[Turn], targets: list[str]) -> float:
    """Of all turns but the first ones, those that the same server was asked as before."""
    last: dict[int, str] = {}
    stayed = 0
    for turn, target in zip(turns, targets, strict=True):
        stayed += last.get(turn.conversation) == target
        last[turn.conversation] = target
    return stayed / (len(turns) - len(last))


def test_both_servers_have_their_part(work: dict[str, Work]) -> None:
    targets = work["prefix"].targets
    assert min(targets.count("a"), targets.count("b")) > len(targets) / 4


def test_what_is_predicted_is_what_vllm_reports(work: dict[str, Work]) -> None:
    status = work["prefix"].status
    print({name: (each["checked"], each["hits"], each["error"]) for name, each in status["targets"].items()})
    assert all(each["reports"] and each["trusted"] for each in status["targets"].values())
    assert status["checked"] > len(work["prefix"].turns) / 2
    assert status["hits"] / status["checked"] > PART_OF_BEST


def test_the_gateway_counts_the_cached_tokens_that_vllm_reports(work: dict[str, Work]) -> None:
    targets = work["prefix"].status["targets"].values()
    assert sum(each["cached_tokens"] for each in targets) == work["prefix"].cached
