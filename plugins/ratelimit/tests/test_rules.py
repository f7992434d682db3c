"""Which limits apply to whom, and under which names they are counted."""

from __future__ import annotations

from typing import Any

from headrace.exchange import Principal
from headrace.limits import RateLimits
from headrace_ratelimit import LimitConfig
from headrace_ratelimit.rules import Rules, network

ADA = Principal(id="ada", team="red")


def keys(rules: Rules, who: Principal = ADA, model: str = "chat", address: str = "10.0.0.1") -> list[str]:
    return [limit.key for limit in rules.applying(who, model, address).limits]


def rule(**fields: Any) -> LimitConfig:
    return LimitConfig(**{"requests_per_minute": 5, **fields})


def test_names_tell_rules_callers_and_numbers_apart_and_do_not_depend_on_the_files_order() -> None:
    one, other = rule(per=("team", "model")), rule(per=("key",), models=("chat",), tokens_per_day=7)
    found = keys(Rules((one, other)))
    assert len(set(found)) == 3
    assert sorted(found) == sorted(keys(Rules((other, one))))
    assert "ratelimit:team+model:red/chat:requests_per_minute" in found


def test_names_with_slashes_are_not_mixed_up() -> None:
    rules = Rules((rule(per=("team", "model")),))
    one = keys(rules, Principal(id="x", team="a"), model="b/c")
    assert one != keys(rules, Principal(id="x", team="a/b"), model="c")


def test_every_number_of_a_rule_is_a_limit_of_its_own_kind() -> None:
    applied = Rules((rule(tokens_per_hour=100, tokens_per_day=50, concurrent=2),)).applying(ADA, "chat", "")
    assert [(limit.kind, limit.most, limit.seconds) for limit in applied.limits] == [
        ("window", 5, 60.0),
        ("window", 100, 3600.0),
        ("window", 50, 86400.0),
        ("open", 2, 0.0),
    ]
    assert applied.amounts(33) == [1, 33, 33, 1]
    assert applied.tokens == 50


def test_a_key_whose_limits_have_changed_gets_the_new_ones_at_once() -> None:
    rules = Rules(())
    before = Principal(id="ada", limits=RateLimits(requests_per_minute=1))
    after = Principal(id="ada", limits=RateLimits(requests_per_minute=9))
    assert [rules.applying(who, "m", "").limits[0].most for who in (before, after, before)] == [1, 9, 1]


def test_a_caller_without_a_team_is_not_counted_per_team() -> None:
    assert keys(Rules((rule(per=("team",)),)), who=Principal(id="carl")) == []


def test_addresses_of_ipv6_count_by_their_network() -> None:
    assert network("2001:db8:1:2:3:4:5:6") == network("2001:db8:1:2::9") == "2001:db8:1:2::"
    assert network("2001:db8:1:3::9") != network("2001:db8:1:2::9")
    assert network("::ffff:10.1.2.3") == "10.1.2.3"
    assert (network("10.1.2.3"), network("unix:"), network("fe80::1%eth0")) == ("10.1.2.3", "unix:", "fe80::")
