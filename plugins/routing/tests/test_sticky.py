"""The policy `sticky`: sessions stay where they are, unless it is too busy there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from headrace.exchange import ANONYMOUS, Principal
from headrace_routing.sticky import mixed, number_of

SESSIONS = [f"session {number}" for number in range(2000)]


def first(kit: Any, policy: Any, targets: Any, session: str) -> str:
    exchange = kit.exchange(targets, headers={"x-session-id": session})
    return str(policy.order(exchange, targets)[0].name)


def test_a_session_always_asks_the_same_target_in_every_process(kit: Any) -> None:
    targets = kit.targets(4)
    orders = {
        tuple(each.name for each in kit.policy("sticky", seed=seed).order(exchange, targets))
        for seed in range(5)
        for exchange in [kit.exchange(targets, headers={"X-Session-Id": "ada"})]
    }
    assert len(orders) == 1
    assert (number_of(b"ada"), mixed(1)) == (0x15B0DA4321160527, 0x5692161D100B05E5)  # or all sessions would move


def test_sessions_are_spread_by_weight(kit: Any) -> None:
    targets, policy = kit.targets(3, weights=(2, 1, 1)), kit.policy("sticky")
    counts = Counter(first(kit, policy, targets, each) for each in SESSIONS)
    assert counts["gpu0"] == pytest.approx(1000, abs=100) and counts["gpu1"] == pytest.approx(500, abs=80)


def test_when_a_target_comes_or_goes_only_its_own_sessions_move(kit: Any) -> None:
    targets, policy = kit.targets(4), kit.policy("sticky")
    before = {each: first(kit, policy, targets, each) for each in SESSIONS}
    after = {each: first(kit, policy, targets[:3], each) for each in SESSIONS}
    moved = {each for each in SESSIONS if before[each] != after[each]}
    assert moved == {each for each in SESSIONS if before[each] == "gpu3"}


def test_a_target_that_has_more_than_its_part_is_passed_over(kit: Any) -> None:
    targets, policy = kit.targets(4), kit.policy("sticky", load_factor=1.25)
    home = first(kit, policy, targets, "ada")
    for target in targets:
        for _ in range(20):
            target.state.begin()
    mine = next(each for each in targets if each.name == home)
    for _ in range(6):  # up to 26 of 86 with the new one: 1.25 times a quarter of 87 is 27.2
        mine.state.begin()
        assert first(kit, policy, targets, "ada") == home
    for _ in range(2):
        mine.state.begin()
    exchange = kit.exchange(targets, headers={"x-session-id": "ada"})
    order = [each.name for each in policy.order(exchange, targets)]
    assert order[-1] == home
    mine.state.end()
    mine.state.end()
    assert first(kit, policy, targets, "ada") == home


def test_no_target_gets_more_than_its_part_however_few_sessions_there_are(kit: Any) -> None:
    targets, policy = kit.targets(4), kit.policy("sticky", load_factor=1.25)
    for _ in range(400):
        exchange = kit.exchange(targets, headers={"x-session-id": "the only one"})
        policy.order(exchange, targets)[0].state.begin()
    assert max(each.state.in_flight for each in targets) <= 1.25 * 400 / 4 + 1


@pytest.mark.parametrize(("floor", "used"), [(4, 1), (0, 3)])
def test_a_few_requests_at_a_time_stay_together(kit: Any, floor: int, used: int) -> None:
    targets, policy = kit.targets(4), kit.policy("sticky", load_floor=floor)
    for _ in range(4):
        exchange = kit.exchange(targets, headers={"x-session-id": "ada"})
        policy.order(exchange, targets)[0].state.begin()
    assert sum(each.state.in_flight > 0 for each in targets) == used


def test_requests_without_a_session_go_to_the_least_busy(kit: Any) -> None:
    targets, policy = kit.targets(3), kit.policy("sticky")
    targets[0].state.begin()
    targets[1].state.begin()
    assert [policy.order(kit.exchange(targets), targets)[0].name for _ in range(20)] == ["gpu2"] * 20


ADA = Principal(id="ada", team="research")


@pytest.mark.parametrize(
    ("by", "request_of_one", "request_of_another"),
    [
        ("header:X-Conversation", {"headers": {"x-conversation": "1"}}, {"headers": {"x-conversation": "2"}}),
        ("user", {"user": "1"}, {"user": "2"}),
        ("safety_identifier", {"safety_identifier": "1"}, {"safety_identifier": "2"}),
        ("prompt_cache_key", {"prompt_cache_key": "1"}, {"prompt_cache_key": "2"}),
        ("key", {"who": ADA}, {"who": Principal(id="eve", team="research")}),
        ("team", {"who": ADA}, {"who": Principal(id="ada", team="support")}),
    ],
)
def test_what_makes_a_session_can_be_configured(
    kit: Any, by: str, request_of_one: dict[str, Any], request_of_another: dict[str, Any]
) -> None:
    policy, targets = kit.policy("sticky", by=(by,)), kit.targets(40)
    one, same, other = (
        policy.order(kit.exchange(targets, **fields), targets)[0].name
        for fields in (request_of_one, request_of_one, request_of_another)
    )
    assert one == same != other


def test_the_first_place_that_says_something_counts(kit: Any) -> None:
    policy, targets = kit.policy("sticky", by=("header:x-chat", "user")), kit.targets(2)
    with_both = kit.exchange(targets, headers={"x-chat": "a"}, user="b")
    assert "(header:x-chat)" in policy.why(with_both, targets[0])
    assert "(user)" in policy.why(kit.exchange(targets, headers={"x-chat": ""}, user="b"), targets[0])


@pytest.mark.parametrize(
    "fields", [{"user": ""}, {"user": None}, {"user": 7}, {"user": {"a": 1}}, {"who": ANONYMOUS}, {"who": None}, {}]
)
def test_what_names_nobody_makes_no_session(kit: Any, fields: dict[str, Any]) -> None:
    policy, targets = kit.policy("sticky", by=("user", "key", "team")), kit.targets(2)
    assert policy.why(kit.exchange(targets, **fields), targets[0]) == "no session, 0 in flight"


def test_it_says_which_choice_a_target_is_and_from_when_on_it_is_too_busy(kit: Any) -> None:
    policy, targets = kit.policy("sticky"), kit.targets(3)
    exchange = kit.exchange(targets, user="ada")
    said = [policy.why(exchange, target) for target in policy.order(exchange, targets)]
    assert said[0] == "choice 1 of this session (user), 0 in flight, not first from 4 on"
    assert [each.split(" of ")[0] for each in said] == ["choice 1", "choice 2", "choice 3"]
