"""The policy `pick`: a request names its target."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import Forbidden, InvalidRequest
from headrace.exchange import Attempt, Principal

ROOT = Principal(id="root", role="admin")
ADA = Principal(id="ada", team="research")
HEADER = {"X-Headrace-Target": "gpu1"}


def order(kit: Any, policy: Any, targets: Any, **request: Any) -> list[str]:
    return [each.name for each in policy.order(kit.exchange(targets, **request), targets)]


def test_the_target_that_the_header_names_is_the_first_and_the_others_follow(kit: Any) -> None:
    policy, targets = kit.policy("pick", otherwise="priority"), kit.targets(3)
    assert order(kit, policy, targets, headers=HEADER, who=ROOT) == ["gpu1", "gpu0", "gpu2"]


def test_the_bodys_metadata_may_name_one_and_the_header_goes_before(kit: Any) -> None:
    policy, targets = kit.policy("pick", otherwise="priority"), kit.targets(3)
    named = {"metadata": {"target": "gpu2"}, "who": ROOT}
    assert order(kit, policy, targets, **named)[0] == "gpu2"
    assert order(kit, policy, targets, headers=HEADER, **named)[0] == "gpu1"


def test_if_it_shall_be_the_only_one_no_other_is_asked(kit: Any) -> None:
    policy, targets = kit.policy("pick", only=True), kit.targets(3)
    assert order(kit, policy, targets, headers=HEADER, who=ROOT) == ["gpu1"]
    assert len(order(kit, policy, targets, who=ROOT)) == 3


def test_without_a_name_another_policy_orders_them(kit: Any) -> None:
    policy, targets = kit.policy("pick"), kit.targets(2)
    targets[0].state.begin()
    assert order(kit, policy, targets) == ["gpu1", "gpu0"]


@pytest.mark.parametrize(
    ("allowed", "who"),
    [
        ({}, ROOT),
        ({"roles": ("user",)}, ADA),
        ({"roles": ("user",)}, None),
        ({"roles": (), "teams": ("research",)}, ADA),
        ({"roles": (), "keys": ("eve", "ada")}, ADA),
    ],
)
def test_who_may_name_one_is_configured(kit: Any, allowed: dict[str, Any], who: Principal | None) -> None:
    assert order(kit, kit.policy("pick", **allowed), kit.targets(2), headers=HEADER, who=who)[0] == "gpu1"


@pytest.mark.parametrize(
    ("allowed", "who"),
    [
        ({}, ADA),
        ({}, None),
        ({"roles": ()}, ROOT),
        ({"teams": ("support",), "keys": ("eve",)}, ADA),
        ({"teams": ("research",)}, Principal(id="eve")),
    ],
)
@pytest.mark.parametrize("name", ["gpu1", "nobody"])
def test_others_are_refused_whether_or_not_there_is_such_a_target(
    kit: Any, allowed: dict[str, Any], who: Principal | None, name: str
) -> None:
    with pytest.raises(Forbidden, match="may not choose a target") as refused:
        order(kit, kit.policy("pick", **allowed), kit.targets(2), headers={"x-headrace-target": name}, who=who)
    assert refused.value.code == "target_not_allowed"


def test_a_name_that_no_target_has_is_refused_with_those_there_are(kit: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"no target 'gpu7'\. It has: gpu0, gpu1\.") as refused:
        order(kit, kit.policy("pick"), kit.targets(2), headers={"x-headrace-target": "gpu7"}, who=ROOT)
    assert refused.value.code == "target_not_found"


def test_a_target_that_the_model_falls_back_on_may_be_named_too(kit: Any) -> None:
    policy, targets = kit.policy("pick", otherwise="priority"), kit.targets(3)
    exchange = kit.exchange(targets, headers={"x-headrace-target": "gpu2"}, who=ROOT)
    assert [each.name for each in policy.order(exchange, targets[:2])] == ["gpu2", "gpu0", "gpu1"]


def test_a_long_name_is_not_repeated_as_a_whole(kit: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        order(kit, kit.policy("pick"), kit.targets(2), headers={"x-headrace-target": "x" * 9000}, who=ROOT)
    assert len(refused.value.message) < 200


def test_a_model_that_another_falls_back_on_need_not_have_the_target(kit: Any) -> None:
    policy, targets, others = kit.policy("pick"), kit.targets(2), kit.targets(2, names=("old0", "old1"))
    exchange = kit.exchange(targets, headers=HEADER, who=ROOT)
    exchange.attempts.append(Attempt(exchange, 1, targets[1], None))
    assert sorted(each.name for each in policy.order(exchange, others)) == ["old0", "old1"]


@pytest.mark.parametrize(
    "metadata", [{"target": 7}, {"target": ""}, {"target": None}, {"other": "gpu1"}, ["target"], "target", None]
)
def test_metadata_that_names_nothing_are_left_alone(kit: Any, metadata: Any) -> None:
    assert len(order(kit, kit.policy("pick"), kit.targets(2), metadata=metadata)) == 2


def test_header_and_field_can_be_called_otherwise_or_be_left_out(kit: Any) -> None:
    policy, targets = kit.policy("pick", header="X-Backend", field="", otherwise="priority"), kit.targets(3)
    assert order(kit, policy, targets, headers={"x-backend": "gpu2"}, who=ROOT)[0] == "gpu2"
    assert order(kit, policy, targets, headers=HEADER, metadata={"target": "gpu1"}, who=ADA)[0] == "gpu0"
    neither = kit.policy("pick", header="", field="", otherwise="priority")
    assert order(kit, neither, targets, headers=HEADER, who=ADA)[0] == "gpu0"


def test_what_is_learnt_of_tries_goes_to_the_other_policy(kit: Any) -> None:
    policy, targets = kit.policy("pick", otherwise="latency"), kit.targets(2)
    kit.learn(policy, targets[1], first=0.2, whole=0.2)
    assert policy.why(kit.exchange(targets), targets[1]) == "latency: first token after 0.2 s, 0 in flight"


def test_it_says_that_a_target_was_named(kit: Any) -> None:
    policy, targets = kit.policy("pick"), kit.targets(2)
    exchange = kit.exchange(targets, headers=HEADER, who=ROOT)
    said = [policy.why(exchange, target) for target in targets]
    assert said == ["least_busy: 0 in flight", "named by the request"]
