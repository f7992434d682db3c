"""Which of an issuer's published keys are used."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_jwt.keyset import MAX_KEYS, MAX_TRIES, VerifyKey, from_jwks

ALL = ["RS256", "PS256", "ES256", "ES384", "ES512", "EdDSA"]


def published(*jwks: Any) -> bytes:
    return json.dumps({"keys": jwks}).encode()


def test_each_key_gets_the_algorithms_that_fit_it(keys: Any) -> None:
    private = {"rsa": keys.rsa, "p256": keys.p256, "p384": keys.p384, "p521": keys.p521, "ed": keys.ed25519}
    found = from_jwks(published(*(keys.jwk(key, kid=kid) for kid, key in private.items())), ALL)
    fitting = {kid: [name for name in ALL if found.candidates(name, kid)] for kid in private}
    assert fitting == {
        "rsa": ["RS256", "PS256"],
        "p256": ["ES256"],
        "p384": ["ES384"],
        "p521": ["ES512"],
        "ed": ["EdDSA"],
    }


@pytest.mark.parametrize(
    "odd",
    [
        {"use": "enc"},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"alg": "RSA-OAEP"},
        {"alg": "HS256"},
        {"alg": 7},
        {"kid": 7},
        {"kty": "oct"},
        {"kty": "EC"},
        {"kty": None},
        {"n": ""},
        {"n": "!"},
        {"n": 7},
        {"e": "AA"},
        {"d": "AQAB"},
    ],
)
def test_a_key_for_other_ends_is_left_out(keys: Any, odd: dict[str, Any]) -> None:
    body = published({**keys.jwk(keys.other_rsa, kid="odd"), **odd}, keys.jwk(keys.rsa, kid="good"))
    found = from_jwks(body, ALL)
    assert len(found) == 1 and found.knows("good") and not found.knows("odd")


def test_a_weak_key_is_left_out(keys: Any) -> None:
    found = from_jwks(published(keys.jwk(keys.small_rsa, kid="weak"), keys.jwk(keys.rsa, kid="good")), ALL)
    assert not found.knows("weak")


@pytest.mark.parametrize("kind", ["rsa", "p256", "ed25519"])
def test_a_private_key_that_was_published_is_left_out(keys: Any, kind: str) -> None:
    name = {"rsa": "RS256", "p256": "ES256", "ed25519": "EdDSA"}[kind]
    private = jwt.get_algorithm_by_name(name).to_jwk(getattr(keys, kind), as_dict=True)
    assert "d" in private
    found = from_jwks(published({**private, "kid": "private", "key_ops": ["verify"]}, keys.jwk(keys.rsa, kid="a")), ALL)
    assert len(found) == 1 and not found.knows("private")


def test_a_key_checks_nothing_but_the_algorithms_it_is_bound_to(keys: Any) -> None:
    key = VerifyKey(None, frozenset(["RS256"]), keys.rsa.public_key())
    right = {name: jwt.get_algorithm_by_name(name).sign(b"text", keys.rsa) for name in ("RS256", "RS512", "PS256")}
    assert [name for name, signature in right.items() if key.verifies(name, b"text", signature)] == ["RS256"]


def test_a_symmetric_key_is_never_taken_from_the_network(keys: Any) -> None:
    body = published({"kty": "oct", "kid": "s", "k": "c" * 64, "alg": "HS256"}, keys.jwk(keys.rsa, kid="good"))
    assert not from_jwks(body, [*ALL, "HS256"]).knows("s")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"keys":{}}',
        b'{"keys":[]}',
        b'{"keys":[null,7,"x",[]]}',
        b"\xff",
        b"[" * 5000,
        b'{"keys":' * 5000,
    ],
)
def test_what_is_no_set_with_a_usable_key_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"no JSON Web Key Set|none can be used"):
        from_jwks(body, ALL)


def test_a_set_with_too_many_keys_is_an_error(keys: Any) -> None:
    with pytest.raises(ValueError, match="more than"):
        from_jwks(published(*[keys.jwk(keys.rsa)] * (MAX_KEYS + 1)), ALL)


def test_a_token_that_names_no_key_has_few_of_them_tried(keys: Any) -> None:
    found = from_jwks(published(*[keys.jwk(keys.rsa)] * 20), ALL)
    assert len(found.candidates("RS256", None)) == MAX_TRIES


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["kty", "n", "e", "crv", "x", "y", "kid", "alg", "use", "key_ops"])
VALUES = JSON | st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "AQAB", "sig", "RS256"])


@given(st.lists(st.dictionaries(FIELDS, VALUES) | JSON, max_size=4))
def test_whatever_is_published_is_read_or_refused(jwks: list[Any]) -> None:
    try:
        assert len(from_jwks(published(*jwks), ALL)) >= 1
    except ValueError as error:
        assert "none can be used" in str(error)
