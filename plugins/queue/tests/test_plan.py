"""From a configuration to backends, lanes and callers."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest

from headrace.errors import PluginError
from headrace.exchange import Principal
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace_queue.callers import Callers
from headrace_queue.config import ClassConfig, QueueConfig
from headrace_queue.lanes import Plan, check, part, plan

BACKENDS = {name: {"provider": "openai", "base_url": f"http://{name}:8000"} for name in ("one", "two", "three")}
MODELS = {
    "small": {"targets": ["one"]},
    "large": {"targets": ["one", "two"]},
    "twin": {"targets": ["two", "one"]},
    "apart": {"targets": ["three"]},
}


def gateway(**more: Any) -> Gateway:
    document = {"backends": BACKENDS, "models": MODELS, "plugins": {"openai": {}}, **more}
    return Gateway(parse(document, source="test")).assemble()


def planned(found: Gateway, worker: int = 0, workers: int = 1, **config: Any) -> Plan:
    return plan(QueueConfig(**config), found, functools.partial(part, worker=worker, workers=workers))


def capacities(made: Plan) -> dict[str, float]:
    return {name: place.lane.capacity for name, place in made.places.items()}


def test_a_model_has_the_slots_of_all_its_backends() -> None:
    made = planned(gateway(), max_concurrency=4, backends={"two": 10})
    assert capacities(made) == {"small": 4, "large": 14, "twin": 14, "apart": 4}


def test_models_with_the_same_backends_are_one_and_those_that_share_some_are_served_together() -> None:
    places = planned(gateway(), max_concurrency=4).places
    assert places["large"].lane is places["twin"].lane is not places["small"].lane
    assert places["large"].group is places["small"].group is not places["apart"].group


def test_a_model_with_a_limit_of_its_own_has_that_beside_its_backends() -> None:
    made = planned(gateway(), max_concurrency=4, capacity={"twin": 3, "small": 100})
    assert capacities(made) == {"small": 4, "large": 8, "twin": 3, "apart": 4}


def test_what_has_no_number_is_not_limited() -> None:
    made = planned(gateway(), backends={"one": 2}, capacity={"apart": 5})
    assert {name: place.lane.is_limited for name, place in made.places.items()} == {
        "small": True,
        "large": False,
        "twin": False,
        "apart": True,
    }
    assert capacities(made)["large"] == math.inf


def test_a_fallback_gives_no_room_while_the_backends_before_it_are_well() -> None:
    models = {"m": {"targets": ["one"], "fallback": ["two"]}, "n": {"fallback": ["three"]}}
    assert capacities(planned(gateway(models=models), max_concurrency=4)) == {"m": 4, "n": 4}


def test_one_server_under_two_names_is_one_backend() -> None:
    models = {"m": {"targets": ["one", {**BACKENDS["one"], "model": "other"}]}}
    assert capacities(planned(gateway(models=models), max_concurrency=4)) == {"m": 4}


def test_one_server_under_two_names_cannot_have_two_numbers() -> None:
    models = {"m": {"targets": ["one", {**BACKENDS["one"], "model": "other"}]}}
    with pytest.raises(PluginError, match="'one' and 'm-1' are the same server"):
        check(QueueConfig(backends={"one": 1, "m-1": 2}), gateway(models=models))


def test_workers_have_together_what_one_would_have() -> None:
    made = [planned(gateway(), worker, 3, max_concurrency=8, capacity={"apart": 4}) for worker in range(3)]
    assert [capacities(each)["small"] for each in made] == [3, 3, 2]
    assert [capacities(each)["apart"] for each in made] == [2, 1, 1]


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(PluginError) as caught:
        check(
            QueueConfig(max_concurrency=1, backends={"four": 9}, capacity={"huge": 9}), gateway(server={"workers": 2})
        )
    assert str(caught.value).count(";") == 2


ADA = Principal(id="ada", team="research")


@pytest.mark.parametrize(
    ("config", "weight"),
    [
        ({}, 1),
        ({"classes": {"r": ClassConfig(teams=("research",), weight=4)}}, 4),
        ({"classes": {"r": ClassConfig(weight=4)}}, 4),
        ({"team_weights": {"research": 3}, "classes": {"r": ClassConfig(weight=4)}}, 3),
        ({"team_weights": {"research": 3}, "key_weights": {"ada": 2}}, 2),
        ({"team_weights": {"research": 3}, "key_weights": {"ada": 2}, "share_by": "team"}, 3),
    ],
)
def test_the_nearest_weight_counts(config: dict[str, Any], weight: float) -> None:
    assert Callers(QueueConfig(**config)).of(ADA).weight == weight


@pytest.mark.parametrize(
    ("own", "weight"),
    [(5, 5), (0.5, 0.5), (1e9, 100), (-3, 0.01), (math.inf, 100), (math.nan, 3), (True, 3), ("7", 3), (None, 3)],
)
def test_a_caller_may_have_a_weight_of_its_own_within_bounds(own: object, weight: float) -> None:
    who = Principal(id="ada", team="research", metadata={"queue_weight": own})
    assert Callers(QueueConfig(team_weights={"research": 3})).of(who).weight == weight


def test_the_first_class_that_fits_is_a_callers_own() -> None:
    classes = {
        "a": ClassConfig(keys=("bob",)),
        "b": ClassConfig(teams=("research",), priority=2),
        "c": ClassConfig(keys=("ada",), priority=3),
    }
    callers = Callers(QueueConfig(classes=classes))
    found = [callers.of(who) for who in (ADA, Principal(id="bob", team="research"), Principal(id="eve"), None)]
    assert [(each.class_name, each.priority) for each in found] == [("b", 2), ("a", 0), ("default", 0), ("default", 0)]


def test_members_of_a_team_share_if_it_is_by_teams_and_others_count_for_themselves() -> None:
    callers = Callers(QueueConfig(share_by="team"))
    people = (ADA, Principal(id="bob", team="research"), Principal(id="research"), Principal(id="eve"))
    shares = [callers.of(who).share for who in people]
    assert shares[0] == shares[1] and len(set(shares)) == 3
