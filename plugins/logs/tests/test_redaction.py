"""What is replaced in text, and what is not: `redaction_corpus.toml`."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace_logs.config import Personal
from headrace_logs.patterns import PERSONAL, SECRETS, apply
from headrace_logs.redaction import MARGIN, REDACTED, Redactor

ADDRESSES: tuple[Personal, ...] = ("addresses",)
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
CORPUS = tomllib.loads((Path(__file__).parent / "redaction_corpus.toml").read_text("utf-8").replace("¦", ""))


@pytest.mark.parametrize("case", CORPUS["positive"], ids=lambda case: case["name"])
def test_secrets_in_text_are_replaced(case: dict[str, Any]) -> None:
    redacted = Redactor().text(case["text"])
    assert REDACTED in redacted
    assert not [piece for piece in case["secret"] if piece in redacted]


@pytest.mark.parametrize("case", CORPUS["negative"], ids=lambda case: case["name"])
def test_harmless_text_stays_as_it_is(case: dict[str, Any]) -> None:
    assert Redactor().text(case["text"]) == case["text"]


@pytest.mark.parametrize("case", CORPUS["positive"], ids=lambda case: case["name"])
def test_redacting_twice_changes_nothing_more(case: dict[str, Any]) -> None:
    once = Redactor().text(case["text"])
    assert Redactor().text(once) == once


@pytest.mark.parametrize("case", CORPUS["address"], ids=lambda case: case["name"])
def test_addresses_are_replaced_on_demand(case: dict[str, Any]) -> None:
    assert Redactor().text(case["text"]) == case["text"]
    redacted = Redactor(personal=ADDRESSES).text(case["text"])
    assert REDACTED in redacted
    assert not [piece for piece in case["secret"] if piece in redacted]


@pytest.mark.parametrize("case", CORPUS["no_address"], ids=lambda case: case["name"])
def test_what_only_looks_like_an_address_stays_as_it_is(case: dict[str, Any]) -> None:
    assert Redactor(personal=ADDRESSES).text(case["text"]) == case["text"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("emails", "ada@example.org"),
        ("cards", "4111 1111 1111 1111"),
        ("ibans", "DE89 3704 0044 0532 0130 00"),
        ("addresses", "192.0.2.17"),
    ],
)
def test_each_kind_of_personal_data_is_replaced_only_where_it_is_wanted(name: Any, text: str) -> None:
    assert Redactor(personal=(name,)).text(text) == REDACTED
    assert Redactor(personal=()).text(text) == text


def test_secrets_are_replaced_whatever_else_is_wanted() -> None:
    assert Redactor(personal=()).text("sk-aaaaAAAA1111bbbbBBBB") == REDACTED


def test_what_follows_an_iban_in_capitals_stays() -> None:
    assert Redactor().text("GB29 NWBK 6016 1331 9268 19 AND MORE") == f"{REDACTED} AND MORE"


def test_the_rest_of_a_text_is_kept() -> None:
    assert Redactor().text("by ada@example.org, at noon") == f"by {REDACTED}, at noon"


def test_names_given_by_the_operator_may_be_addresses_but_not_keys() -> None:
    redactor = Redactor()
    assert redactor.secrets("ada@example.org") == "ada@example.org"
    assert redactor.secrets("sk-aaaaAAAA1111bbbbBBBB") == REDACTED


def test_configured_patterns_are_replaced_too() -> None:
    assert Redactor([r"\bACME-\d+"]).text("order ACME-42 of ACME") == f"order {REDACTED} of ACME"


def test_a_configured_pattern_may_match_a_plain_word() -> None:
    assert Redactor(["^swordfish$"]).text("swordfish") == REDACTED


def test_a_replacement_is_taken_literally() -> None:
    assert Redactor([r"(a)(b)"]).text("xabx") == f"x{REDACTED}x"


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_secret_across_the_cut_does_not_show(cut: int) -> None:
    text = "x " * 30 + "ada@example.org sk-aaaaAAAA1111bbbbBBBB " + "y " * MARGIN
    shown = Redactor().prefix(text, 50 + cut)
    assert "aaaa" not in shown
    assert "ada" not in shown
    assert len(shown) <= 51 + cut


def test_every_text_in_a_tree_is_redacted() -> None:
    tree = {
        "messages": [{"role": "user", "content": "I am ada@example.org"}],
        "card": 4111111111111111,
        "api_key": "short",
        "password": 1234,
        "secret": ["short"],
        "authorization": None,
        "properties": {"password": {"type": "string"}},
        "temperature": 0.5,
        "stream": True,
        "ada@example.org": None,
    }
    assert Redactor().tree(tree, 1000) == {
        "messages": [{"role": "user", "content": f"I am {REDACTED}"}],
        "card": REDACTED,
        "api_key": REDACTED,
        "password": REDACTED,
        "secret": REDACTED,
        "authorization": None,
        "properties": {"password": {"type": "string"}},
        "temperature": 0.5,
        "stream": True,
        REDACTED: None,
    }


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "4",
        "4 ",
        "sk-",
        "eyJ",
        "eyJhbGci.",
        "bearer ",
        "a@",
        "a.",
        "@a.",
        "://",
        "authorization:",
        "hr-a",
        '"api_key":"',
        "%",
        "gsk_",
        "nvapi-",
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nab-",
        "DE89 ",
        "AB12",
        "1.",
        "a:",
        "255.",
        "::",
    ],
)
def test_no_text_takes_long(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    started = time.process_time()
    Redactor(personal=("emails", "cards", "ibans", "addresses")).text(text)
    assert time.process_time() - started < 2  # linear: some 10 ms; quadratic: minutes


@unhurried
@given(st.text())
def test_any_text_can_be_redacted(text: str) -> None:
    assert isinstance(Redactor().text(text), str)
    assert len(Redactor().prefix(text, 5)) <= 6


@unhurried
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_tree_can_be_redacted(tree: object) -> None:
    Redactor().tree(tree, 10)


@pytest.mark.parametrize(
    "text", ["4111111111111111", "DE89370400440532013000", "AKIA" + "IOSFODNN7EXAMPLE", "dapi" + "0123456789abcdef" * 2]
)
def test_the_short_cut_for_request_ids_lets_no_secret_pass(text: str) -> None:
    assert Redactor().text(text) == REDACTED


@unhurried
@given(st.from_regex(r"[a-z0-9]{1,32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", fullmatch=True))
def test_the_short_cut_for_request_ids_gives_what_all_patterns_give(text: str) -> None:
    assert Redactor().text(text) == apply((*SECRETS, *(rule for rules in PERSONAL.values() for rule in rules)), text)
