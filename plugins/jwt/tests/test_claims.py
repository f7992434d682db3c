"""Who a token's claims say it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.exchange import Principal
from headrace_jwt.claims import MISSING, ClaimRules, find
from headrace_jwt.token import Refused

KEYCLOAK = {
    "sub": "f81d4fae",
    "preferred_username": "alice",
    "realm_access": {"roles": ["offline_access", "llm-admin"]},
    "resource_access": {"llm.example.com": {"roles": ["deep"]}},
    "https://example.com/roles": ["namespaced"],
}
ROLES = {"llm-admin": "admin", "scraper": "metrics", "people": "user"}


@pytest.fixture
def principal(config: Callable[..., Any]) -> Callable[..., Principal]:
    def make(claims: dict[str, Any], **options: Any) -> Principal:
        return ClaimRules(config(**options)).principal({"sub": "alice", **claims})

    return make


Read = Callable[..., Principal]


def test_without_options_a_token_gives_an_id_and_nothing_else(principal: Read) -> None:
    found = principal({"role": "admin", "roles": ["admin"], "models": ["x"], "team": "t", "name": "Alice"})
    assert found == Principal(id="jwt:alice")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("preferred_username", "alice"),
        ("realm_access.roles", ["offline_access", "llm-admin"]),
        ("resource_access.llm.example.com.roles", ["deep"]),
        ("https://example.com/roles", ["namespaced"]),
        ("realm_access.role", MISSING),
        ("sub.x", MISSING),
        ("realm_access.roles.0", MISSING),
        (".", MISSING),
    ],
)
def test_a_path_leads_to_a_claim(path: str, value: Any) -> None:
    assert find(KEYCLOAK, path) == value


def test_a_claim_whose_whole_name_is_the_path_comes_first() -> None:
    assert find({"a.b": 1, "a": {"b": 2}}, "a.b") == 1


@given(st.recursive(st.none() | st.text("ab.", max_size=3), lambda v: st.dictionaries(st.text("ab.", max_size=3), v)))
def test_looking_for_a_path_never_fails(claims: Any) -> None:
    assert find(claims if isinstance(claims, dict) else {}, "a.b.a") is not NotImplemented


@pytest.mark.parametrize(("value", "id"), [("auth0|5f7c", "jwt:auth0|5f7c"), (42, "jwt:42"), ("ünï", "jwt:ünï")])
def test_an_id_is_a_text_or_a_number(principal: Read, value: Any, id: str) -> None:
    assert principal({"uid": value}, id_claim="uid").id == id


@pytest.mark.parametrize(
    "value", ["a b", "a\nb", "a\x00", "x" * 201, "\u202eecila", "a\u2028", " ", True, 1.5, ["alice"], {"a": 1}]
)
def test_an_id_that_is_not_safe_to_log_is_refused(principal: Read, value: Any) -> None:
    with pytest.raises(Refused, match="'uid' cannot be used"):
        principal({"uid": value}, id_claim="uid")


def test_no_id_can_be_that_of_an_api_key(principal: Read) -> None:
    assert principal({"sub": "b5metmcyhpxv"}).id != "b5metmcyhpxv"


@pytest.mark.parametrize(
    ("given", "role"),
    [
        ("llm-admin", "admin"),
        ("scraper", "metrics"),
        ("people", "user"),
        (["people", "scraper"], "metrics"),
        (["scraper", "llm-admin", "people"], "admin"),
        ([], "user"),
        ("admin", "user"),
        ("LLM-ADMIN", "user"),
        ("llm-admin ", "user"),
        ("no llm-admin", "user"),
        (["no", ["llm-admin"]], "user"),
        ({"llm-admin": True}, "user"),
        ([{"name": "llm-admin"}, 7, None], "user"),
        (True, "user"),
        (None, "user"),
    ],
)
def test_only_a_role_that_is_named_to_the_letter_counts(principal: Read, given: Any, role: str) -> None:
    assert principal({"roles": given}, role_claim="roles", roles=ROLES).role == role


def test_a_token_without_the_role_claim_is_a_user(principal: Read) -> None:
    assert principal({}, role_claim="roles", roles=ROLES).role == "user"


@pytest.mark.parametrize(
    ("claims", "models"),
    [
        ({"models": ["a", "b"]}, {"a", "b"}),
        ({"models": "a  b"}, {"a", "b"}),
        ({"models": []}, set()),
        ({"models": ""}, set()),
        ({}, {"usual"}),
    ],
)
def test_models_come_from_their_claim_or_are_the_usual_ones(
    principal: Read, claims: dict[str, Any], models: set[str]
) -> None:
    assert principal(claims, models_claim="models", default_models=["usual"]).models == frozenset(models)


def test_without_a_claim_and_without_usual_models_every_model_is_allowed(principal: Read) -> None:
    assert principal({}, models_claim="models").models is None


@pytest.mark.parametrize("value", [None, 7, True, {"a": 1}, ["a", 7]])
def test_models_that_cannot_be_read_are_refused_and_not_taken_for_all(principal: Read, value: Any) -> None:
    with pytest.raises(Refused, match="'models' cannot be used"):
        principal({"models": value}, models_claim="models")


@pytest.mark.parametrize(
    ("value", "team"), [("research", "research"), (["research"], "research"), ([], None), ("", None), (None, None)]
)
def test_a_team_is_one_name(principal: Read, value: Any, team: str | None) -> None:
    assert principal({"t": value}, team_claim="t").team == team


@pytest.mark.parametrize("value", [["a", "b"], 7, "a\nb", {"a": 1}, "x" * 201])
def test_a_team_that_is_not_clear_is_refused(principal: Read, value: Any) -> None:
    with pytest.raises(Refused, match="'t' cannot be used"):
        principal({"t": value}, team_claim="t")


@pytest.mark.parametrize(("value", "name"), [("Alice A.", "Alice A."), ("a\nb", ""), (7, ""), ("x" * 201, "")])
def test_a_name_that_cannot_be_shown_is_left_out(principal: Read, value: Any, name: str) -> None:
    assert principal({"n": value}, name_claim="n").name == name


def test_other_plugins_see_the_claims_that_are_named_and_no_others(principal: Read) -> None:
    found = principal({"org": {"id": 7, "plan": "x"}, "email": "a@b"}, metadata_claims=["org.id", "absent"])
    assert found.metadata == {"org.id": 7}
