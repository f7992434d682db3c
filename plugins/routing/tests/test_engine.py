"""The policy `queue_aware`, and how the metrics of engines are read."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.exchange import Target
from headrace.fleet import EngineLoad
from headrace_routing.engine import Loads
from headrace_routing.metrics import read_load


class Engines:
    """Targets whose engines have said something."""

    def __init__(self, kit: Any, count: int, **options: Any) -> None:
        self.clock = kit.clock()
        self.loads = Loads(self.clock)
        self.targets: tuple[Target, ...] = kit.targets(count, options.pop("weights", ()))
        self.policy = kit.policy("queue_aware", loads=self.loads, **options)
        self._kit = kit

    def say(self, number: int, running: int, waiting: int = 0, cache: float = 0.0) -> None:
        target = self.targets[number]
        target.state.engine = EngineLoad(running, waiting, cache, self.clock.now)
        self.loads.note(target)

    def order(self) -> list[int]:
        exchange = self._kit.exchange(self.targets)
        return [int(each.name[-1]) for each in self.policy.order(exchange, self.targets)]

    def why(self, number: int) -> str:
        return str(self.policy.why(self._kit.exchange(self.targets), self.targets[number]))


def test_the_engine_with_the_fewest_requests_is_the_first_whoever_sent_them(kit: Any) -> None:
    engines = Engines(kit, 3)
    for number, running in enumerate((7, 3, 5)):
        engines.say(number, running)
    engines.targets[1].state.begin()  # of its 3 requests one more is ours now
    assert engines.order() == [1, 2, 0]


def test_a_request_that_waits_is_as_bad_as_several_that_run(kit: Any) -> None:
    engines = Engines(kit, 2, queue_factor=4.0)
    engines.say(0, running=10)
    engines.say(1, running=5, waiting=2)
    assert engines.order() == [0, 1]


def test_an_engine_whose_kv_cache_is_nearly_full_comes_last(kit: Any) -> None:
    engines = Engines(kit, 2)
    engines.say(0, running=10, cache=0.3)
    engines.say(1, running=2, cache=0.97)
    assert engines.order() == [0, 1]


def test_a_larger_engine_may_run_more(kit: Any) -> None:
    engines = Engines(kit, 2, weights=(8, 1))
    engines.say(0, running=40)
    engines.say(1, running=6)
    assert engines.order() == [0, 1]


def test_between_two_words_of_an_engine_our_own_requests_count(kit: Any) -> None:
    engines = Engines(kit, 2)
    for _ in range(3):
        engines.targets[0].state.begin()
    engines.say(0, running=3)  # ours
    engines.say(1, running=5)
    chosen = []
    for _ in range(6):
        chosen.append(engines.order()[0])
        engines.targets[chosen[-1]].state.begin()
    assert chosen[:2] == [0, 0] and chosen.count(0) == 4
    for _ in range(7):
        engines.targets[0].state.end()
    assert engines.order() == [0, 1]


def test_the_word_of_an_engine_that_somebody_else_asked_counts_from_when_it_is_seen(kit: Any) -> None:
    engines = Engines(kit, 2)
    for number, running in ((0, 3), (1, 4)):
        engines.targets[number].state.engine = EngineLoad(running, 0, 0.0, engines.clock.now)
    assert engines.order() == [0, 1]
    engines.targets[0].state.begin()
    engines.targets[0].state.begin()
    assert engines.order() == [1, 0]


def test_what_an_engine_said_too_long_ago_no_longer_counts(kit: Any) -> None:
    engines = Engines(kit, 2, max_age=5.0)
    engines.say(0, running=50)
    engines.say(1, running=1)
    for _ in range(3):
        engines.targets[1].state.begin()
    engines.clock.now += 4.9
    assert engines.order() == [1, 0]
    engines.clock.now += 0.2
    assert engines.order() == [0, 1]
    assert engines.why(0) == "its engine has said nothing for 5 s, 0 in flight"


def test_without_a_word_of_any_engine_requests_in_flight_count(kit: Any) -> None:
    engines = Engines(kit, 2)
    engines.targets[0].state.begin()
    assert engines.order() == [1, 0]
    assert engines.why(0) == "its engine has said nothing, 1 in flight"


def test_it_says_what_the_engine_has_said(kit: Any) -> None:
    engines = Engines(kit, 1)
    engines.say(0, running=3, waiting=1, cache=0.42)
    engines.clock.now += 0.5
    engines.targets[0].state.begin()
    assert engines.why(0) == "3 run, 1 wait, 42% of the KV cache taken, 0.5 s ago; +1 of ours since"


VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a } b"} 3.0
vllm:num_requests_running{engine="1",model_name="a } b"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a } b"} 4.0
vllm:num_requests_waiting{engine="1",model_name="a } b"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="a } b",reason="capacity"} 4.0
vllm:kv_cache_usage_perc{engine="0",model_name="a } b"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="a } b"} 0.25
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="a } b"} 7.0
"""
OLDER = b"vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:gpu_cache_usage_perc 0.75\n"
SGLANG = b"""sglang:num_running_reqs{model_name="m"} 12.0
sglang:num_queue_reqs{model_name="m"} 5.0
sglang:token_usage{model_name="m"} 0.28
"""
TGI = b"# TYPE tgi_batch_current_size gauge\ntgi_batch_current_size 6\ntgi_queue_size 2\n"
LLAMA = b"llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\n"


@pytest.mark.parametrize(
    ("text", "load"),
    [
        (VLLM, (5, 4, 0.375)),
        (VLLM.replace(b"\n", b"\r\n"), (5, 4, 0.375)),
        (OLDER, (1, 0, 0.75)),
        (SGLANG, (12, 5, 0.28)),
        (TGI, (6, 2, 0.0)),
        (LLAMA, (1, 2, 0.0)),
        (b"vllm:num_requests_running 3 1700000000000", (3, 0, 0.0)),
        (b"vllm:num_requests_running 3\nvllm:kv_cache_usage_perc 7.5\n", (3, 0, 1.0)),
    ],
    ids=["vllm", "crlf", "vllm 0.9", "sglang", "tgi", "llama.cpp", "with a time", "beyond 1"],
)
def test_the_metrics_of_engines_are_understood(text: bytes, load: tuple[int, int, float]) -> None:
    found = read_load(text, at=7.0)
    assert found is not None
    assert (found.running, found.waiting, found.cache_usage, found.at) == (*load, 7.0)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"process_cpu_seconds_total 3\n",
        b"# TYPE vllm:num_requests_running gauge\n",
        b"vllm:num_requests_running NaN\n",
        b"vllm:num_requests_running -1\n",
        b"vllm:num_requests_running\n",
        b"vllm:num_requests_running{",
        b"vllm:num_requests_running_total 3\n",
        b"old_vllm:num_requests_running 3\n",
        b'{"detail":"Not Found"}',
    ],
)
def test_what_tells_no_engines_load_is_not_taken_for_one(text: bytes) -> None:
    assert read_load(text, at=0.0) is None
