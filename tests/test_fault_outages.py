"""Backends that go down and come back, while callers go on asking: all times are a twelfth of what is usual."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from .fault_fleet import Fleet, Got, fleet
from .fault_words import TEXT
from .faults import Answer, Asked, Behaviour, Fail, Silent, Upstream

BREAKER = """
[plugins.breaker]
failures = 3
open_for = 0.4
max_open_for = 1.2
probe_timeout = 2
slow_start = 0.5
"""
HEALTH = """
[plugins.health]
interval = 0.5
fast_interval = 0.1
timeout = 0.5
failures = 3
"""
RETRY = "retry = { backoff = 0.02, max_backoff = 0.1, max_retry_after = 1 }"
MODELS = f"""
pair = {{ targets = ["a", "b"], {RETRY} }}
pair-hurried = {{ targets = ["a-hurried", "b"], {RETRY} }}
hasty = {{ targets = ["a", "b"], retry = {{ rounds = 1 }} }}
backed = {{ targets = ["a"], fallback_models = ["spare"], {RETRY} }}
spare = {{ targets = ["b"], {RETRY} }}
"""
PLUGINS = {"breaker": BREAKER, "health": HEALTH, "both": BREAKER + HEALTH}
BACK_SECONDS = 2.5
"""A twelfth of the half minute within which a backend that works again is to be used again."""
NOISE_SECONDS = 2.0
"""What a machine that is busy with something else may add."""
CALLERS = 4
PACE = 0.02
MANY = 60
OUTAGES: dict[str, Behaviour | None] = {"it refuses connections": None, "500": Fail(500), "it keeps silent": Silent()}
MODEL_FOR = {"it refuses connections": "pair", "500": "backed", "it keeps silent": "pair-hurried"}


@pytest.fixture(scope="module", params=["inline-breaker", "offload-health", "offload-both"])
def running(own_stack: Any, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    way, _, plugins = request.param.partition("-")
    with fleet(own_stack, way, MODELS, names="ab", plugins=PLUGINS[plugins]) as made:
        made.plugins = plugins
        yield made


@pytest.fixture(autouse=True)
def at_peace(running: Fleet, kit: Any) -> None:
    """Both are well, and `a` is asked first."""
    running.reset()
    kit.until(lambda: all(settled(running, model) for model in ("pair", "pair-hurried", "backed")), "peace")
    running.reset()


def settled(running: Fleet, model: str) -> bool:
    """Whether its first target gets all of its share."""
    return all(running.ask(model).model == "a-large" for _ in range(4))


class Load:
    """Callers who ask one after the other, and do not tire."""

    def __init__(self, running: Fleet, model: str) -> None:
        self._running, self._model = running, model
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CALLERS)]
        self.got: list[tuple[float, Got]] = []
        """When it was asked, and what came of it."""

    def _ask(self, number: int) -> None:
        while not self._end.wait(PACE):
            number += 1
            began = time.monotonic()
            self.got.append((began, self._running.ask(self._model, stream=bool(number % 2))))

    def __enter__(self) -> Load:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        for each in self._threads:
            each.join(60)

    def since(self, when: float) -> list[Got]:
        """What came of what was asked since then."""
        return [got for began, got in tuple(self.got) if began >= when]


@contextlib.contextmanager
def outage(backend: Upstream, behaviour: Behaviour | None) -> Iterator[None]:
    """It fails like this; None: it is not there, neither for checks."""
    if behaviour is None:
        backend.go_away()
    else:
        backend.default = behaviour
    try:
        yield
    finally:
        if behaviour is None:
            backend.come_back()
        backend.default = Answer()


def last(seconds: float) -> None:
    """It goes on like this for a while: what callers do meanwhile is what is looked at."""
    time.sleep(seconds)


def back(load: Load, backend: Upstream, since: float, kit: Any) -> float:
    """Wait until a backend answers again as a matter of course; the seconds until it answered first."""

    def again() -> bool:
        lately = load.since(since)[-2 * CALLERS :]
        return len(lately) == 2 * CALLERS and all(got.model == backend.model for got in lately)

    kit.until(again, "the backend's return")
    first = min(each.at for each in backend.requests if each.at >= since and each.over_at)
    print(f"asked again {first - since:.2f} s after it was back")
    return first - since


def broke(got: Got) -> bool:
    """Whether it was on its way already when the backend went away."""
    return got.code == "stream_truncated" or (got.status, got.whole) == (0, False)


@pytest.mark.parametrize("name", OUTAGES)
def test_a_primary_that_flaps_is_stood_in_for_and_comes_back(running: Fleet, kit: Any, name: str) -> None:
    with Load(running, MODEL_FOR[name]) as load:
        for seconds in (0.5, 0.3):
            with outage(running["a"], OUTAGES[name]):
                last(seconds)
            ended = time.monotonic()
            last(0.2)
        seconds = back(load, running["a"], ended, kit)
    assert not [got.error for _, got in load.got if not (got.whole and got.text == TEXT) and not broke(got)]
    assert len([got for _, got in load.got if broke(got)]) <= 2 * CALLERS
    assert seconds < BACK_SECONDS + NOISE_SECONDS
    assert max(got.seconds for _, got in load.got) < 4


@pytest.mark.parametrize("name", ["500", "it keeps silent"])
def test_a_primary_that_is_down_is_hardly_asked(running: Fleet, kit: Any, name: str) -> None:
    model = "pair" if name == "500" else "pair-hurried"
    with Load(running, model) as load, outage(running["a"], OUTAGES[name]):
        began = time.monotonic()
        kit.until(lambda: len(load.since(began)) >= MANY, "many requests", 60)
        seconds = time.monotonic() - began
        asked = len([each for each in running["a"].requests if each.at >= began])
    print(f"asked {asked} times in {seconds:.1f} s, by more than {MANY} requests")
    at_once = 3 + CALLERS  # until it has failed often enough, and what was on its way then
    spells = 1 + seconds / (0.3 if running.plugins != "health" else 0.5)
    assert asked <= (at_once + spells if running.plugins != "health" else at_once * spells)
    assert asked < MANY / 2


@pytest.mark.parametrize("running", ["inline-breaker", "offload-both"], indirect=True)
def test_a_backend_that_comes_back_is_not_run_over(running: Fleet, kit: Any) -> None:
    """Its first answers take long: others are not sent there meanwhile."""

    def slow() -> Asked | None:
        return next((each for each in running["a"].requests if each.over_at and each.over_at - each.at >= 0.5), None)

    with Load(running, "pair") as load:
        with outage(running["a"], Fail(500)):
            last(1.0)
            running["a"].script(*[Answer(before=0.5)] * 3)
        first = kit.until(slow, "an answer")
        until = first.over_at
    assert not [each for each in running["a"].requests if first.at < each.at < until]
    meanwhile = [got for began, got in load.got if first.at < began and began + got.seconds < until]
    assert {(got.model, got.whole) for got in meanwhile} == {("b-large", True)}


def test_nobody_who_answers_is_a_clean_error_and_over_when_it_is_over(running: Fleet, kit: Any) -> None:
    with Load(running, "hasty") as load:
        with outage(running["a"], None), outage(running["b"], None):
            began = time.monotonic()
            last(1.0)
            down = load.since(began)
        ended = time.monotonic()
        kit.until(lambda: [got for got in load.since(ended) if got.whole], "an answer")
        first = time.monotonic() - ended
        seconds = back(load, running["a"], ended, kit)
    codes = {(got.status, got.code) for got in down if got.error is not None}
    assert codes and codes <= {(503, "unavailable"), (503, "circuit_open"), (502, "upstream_error")}
    assert max(got.seconds for got in down) < 4
    assert first < BACK_SECONDS + NOISE_SECONDS
    assert seconds < BACK_SECONDS + NOISE_SECONDS


@pytest.mark.parametrize("running", ["offload-health", "offload-both"], indirect=True)
def test_what_checks_know_to_be_down_costs_no_request_anything(running: Fleet, kit: Any) -> None:
    running["a"].checks = Fail(503)
    with running.route.client() as client:
        kit.until(lambda: condition(client) == "down", "the checks")
        for number in range(10):
            assert running.ask("pair", stream=bool(number % 2)).model == "b-large"
    assert running.asked() == {"b": 10}


def condition(client: Any) -> str:
    said = client.get("/v1/health/inference").json()
    return str(next(each for each in said["models"]["pair"]["targets"] if each["name"] == "a")["condition"])
