"""What `[plugins.routing]` accepts, and what it refuses with a sentence that helps."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import ConfigError, PluginError
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace_routing import Plugin
from headrace_routing.config import OPTIONS, PolicyConfig
from headrace_routing.kinds import KINDS


def assemble(policy: str, more: dict[str, Any] | None = None, **routing: Any) -> Gateway:
    document = {
        "backends": {f"gpu{number}": {"provider": "openai", "base_url": f"http://gpu{number}"} for number in range(2)},
        "models": {"test": {"targets": ["gpu0", "gpu1"], "policy": policy}, **(more or {})},
        "plugins": {"openai": {}, "routing": routing},
    }
    return Gateway(parse(document), "test", {"routing": Plugin}).assemble()


def problem(policy: str = "random", **routing: Any) -> str:
    with pytest.raises((ConfigError, PluginError)) as refused:
        assemble(policy, **routing)
    return str(refused.value)


@pytest.mark.parametrize("kind", [kind for kind in OPTIONS if kind != "cost"])
def test_every_kind_works_by_its_name_without_any_configuration(kind: str) -> None:
    gateway = assemble(kind)
    assert gateway.models.find("test").policy is gateway.policies[kind]


def test_every_kind_has_a_class_and_every_option_belongs_to_one() -> None:
    options = [name for names in OPTIONS.values() for name in names]
    assert list(KINDS) == list(OPTIONS)
    assert sorted(options) == sorted(set(PolicyConfig.__struct_fields__) - {"kind"})


def test_a_policy_of_ones_own_has_its_own_options() -> None:
    gateway = assemble("brisk", policies={"brisk": {"kind": "latency", "half_life": 2, "explore": 0.1, "tokens": 0}})
    policy: Any = gateway.models.find("test").policy
    assert (policy.name, policy._half_life, policy._explore, policy._tokens) == ("brisk", 2, 0.1, 0)
    plain: Any = gateway.policies["latency"]
    assert (plain._half_life, plain._explore, plain._tokens) == (10.0, 0.02, 64)


def test_a_policy_named_as_its_kind_takes_the_place_of_that_one() -> None:
    policy: Any = assemble("latency", policies={"latency": {"kind": "latency", "half_life": 3}}).policies["latency"]
    assert policy._half_life == 3


def test_a_name_that_means_another_kind_is_refused() -> None:
    said = problem(policies={"latency": {"kind": "sticky"}})
    assert "policies.latency: that name means the kind 'latency', not 'sticky'" in said


@pytest.mark.parametrize(
    ("routing", "words"),
    [
        ({"cost": {}}, "[plugins.routing] cost: is not a known key; did you mean 'costs'?"),
        ({"policies": {"a": {"kind": "fastest"}}}, "one of: round_robin, weighted, random, least_busy, latency"),
        ({"policies": {"a": {}}}, "[plugins.routing.policies.a] kind: is required"),
        ({"policies": {"a": {"kind": "latency", "halflife": 1}}}, "did you mean 'half_life'?"),
        (
            {"policies": {"a": {"kind": "random", "explore": 0.1}}},
            "explore is not for the kind 'random', which has: none",
        ),
        ({"policies": {"a": {"kind": "sticky", "tokens": 1}}}, "which has: by, load_factor, load_floor"),
        ({"policies": {"a": {"kind": "latency", "explore": 0.6}}}, "[plugins.routing.policies.a] explore"),
        ({"policies": {"a": {"kind": "latency", "half_life": 0}}}, "[plugins.routing.policies.a] half_life"),
        ({"policies": {"a": {"kind": "sticky", "load_factor": 0.5}}}, "[plugins.routing.policies.a] load_factor"),
        ({"policies": {"a": {"kind": "sticky", "by": ["cookie"]}}}, "by: 'cookie' is none of header:NAME, key, team"),
        ({"policies": {"a": {"kind": "sticky", "by": ["header:"]}}}, "by: 'header:' is none of"),
        ({"policies": {"a": {"kind": "pick", "roles": ["boss"]}}}, "policies.a.roles] [0]: Invalid enum value 'boss'"),
        ({"policies": {"a": {"kind": "pick", "header": "x y"}}}, "[plugins.routing.policies.a] header"),
        ({"policies": {"a": {"kind": "pick", "otherwise": "b"}}}, "policies.a: otherwise: 'b' is none of in_order, "),
        ({"policies": {"a": {"kind": "pick", "otherwise": "pick"}}}, "policies.a: otherwise: 'pick' is none of"),
        ({"costs": {"gpu7": 1}}, "costs: there is no target 'gpu7' (there are: gpu0, gpu1)"),
        ({"costs": {"gpu0": -1}}, "[plugins.routing.costs] gpu0"),
        ({"priorities": {"gpu7": 1}}, "priorities: there is no target 'gpu7'"),
        ({"priorities": {"gpu0": 0.5}}, "[plugins.routing.priorities] gpu0"),
        ({"policies": {"a": {"kind": "cost", "costs": {"x": 1}}}}, "policies.a.costs: there is no target 'x'"),
        (
            {"policies": {"a": {"kind": "priority", "priorities": {"x": 1}}}},
            "policies.a.priorities: there is no target",
        ),
        ({"metrics": {"interval": 0}}, "[plugins.routing.metrics] interval"),
        ({"metrics": {"path": "metrics"}}, "[plugins.routing.metrics] path"),
    ],
)
def test_what_is_wrong_is_refused_and_named(routing: dict[str, Any], words: str) -> None:
    assert words in problem(**routing)


def test_the_name_of_another_plugins_policy_is_refused() -> None:
    assert "two plugins register 'in_order'" in problem(policies={"in_order": {"kind": "random"}})


def test_a_model_that_goes_by_cost_wants_a_cost_for_each_of_its_targets() -> None:
    said = problem("cost", costs={"gpu0": 1})
    assert "costs: model 'test' has the policy 'cost': say what 'gpu1' costs" in said
    assert "gpu0" not in said.replace("gpu0, gpu1", "")
    assemble("cost", costs={"gpu0": 1, "gpu1": 0})
    picked = {"cheap": {"kind": "pick", "otherwise": "cost"}}
    assert "say what 'gpu1' costs" in problem("cheap", costs={"gpu0": 1}, policies=picked)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    said = problem("cost", costs={"gpu7": 1}, policies={"a": {"kind": "pick", "otherwise": "b"}})
    assert "'gpu7'" in said and "'b'" in said and "'gpu0' costs" in said and "'gpu1' costs" in said


def test_targets_that_are_written_out_in_a_model_have_names_too() -> None:
    written = {"other": {"targets": [{"provider": "openai", "base_url": "http://c"}], "policy": "cost"}}
    assemble("cost", written, costs={"gpu0": 1, "gpu1": 2, "other-0": 3})
