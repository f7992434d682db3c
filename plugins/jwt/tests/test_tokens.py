"""Which tokens are accepted, and what is said about those that are not."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config import Secret
from headrace.exchange import Principal
from headrace_jwt.authenticator import Authenticator, TokenCache
from headrace_jwt.claims import ClaimRules
from headrace_jwt.keyset import KeySet, VerifyKey
from headrace_jwt.token import Refused

ASYMMETRIC = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
Make = Callable[..., Any]


async def refusal(authenticator: Authenticator, headers: Any) -> str:
    with pytest.raises(Refused) as caught:
        await authenticator.authenticate(headers)
    for _, value in headers:
        for part in value.decode("latin-1").replace(" ", ".").split("."):
            assert len(part) < 12 or part not in caught.value.message + caught.value.why
    return caught.value.message


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
async def test_every_algorithm_of_public_keys_works(
    keys: Any, token: Make, trusting: Make, bearer: Make, algorithm: str
) -> None:
    pem = keys.pem(keys.for_algorithm(algorithm))
    principal = await trusting(public_key=pem, algorithms=[algorithm]).authenticate(bearer(token(algorithm=algorithm)))
    assert principal.id == "jwt:alice"


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_every_algorithm_of_secrets_works(
    keys: Any, token: Make, trusting: Make, bearer: Make, algorithm: str
) -> None:
    secret = Secret(keys.for_algorithm(algorithm))
    principal = await trusting(secret=secret, algorithms=[algorithm]).authenticate(bearer(token(algorithm=algorithm)))
    assert principal.id == "jwt:alice"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer hr-b5metmcyhpxv-CrYcm0ia8puKNhSfV5xPxl3EIrHkC0PA")],
        [(b"authorization", b"Bearer sk-proj-x_y"), (b"x-api-key", b"something-else")],
        [(b"authorization", b"Basic YWxpY2U6c2VjcmV0")],
        [(b"authorization", b"Bearer a.b")],
        [(b"authorization", b"Bearer a.b.c.d.e")],
        [(b"authorization", b"Bearer .b.c")],
        [(b"authorization", b"Bearer a=.b=.c=")],
        [(b"authorization", b"Bearer a.b.c\x00")],
        [(b"x-api-key", b"a.b.\xff")],
    ],
)
async def test_what_is_no_token_is_left_to_other_plugins(trusting: Make, headers: Any) -> None:
    assert await trusting().authenticate(headers) is None


@pytest.mark.parametrize(
    ("name", "prefix"),
    [(b"authorization", b"bearer "), (b"authorization", b" BEARER   "), (b"x-api-key", b""), (b"x-api-key", b" ")],
)
async def test_a_token_may_come_in_either_header(token: Make, trusting: Make, name: bytes, prefix: bytes) -> None:
    assert (await trusting().authenticate([(name, prefix + token().encode())])).id == "jwt:alice"


@pytest.mark.parametrize("other", [(b"x-api-key", b"hr-key"), (b"authorization", b"Basic YTpi")])
async def test_another_credential_beside_a_token_is_refused(
    token: Make, trusting: Make, bearer: Make, other: tuple[bytes, bytes]
) -> None:
    headers = bearer(token())
    for order in ([*headers, other], [other, *headers]):
        assert "Two different credentials" in await refusal(trusting(), order)


async def test_the_same_token_in_both_headers_is_one_credential(token: Make, trusting: Make, bearer: Make) -> None:
    made = token()
    assert await trusting().authenticate([*bearer(made), (b"x-api-key", made.encode())]) is not None


async def test_a_token_without_the_bearer_scheme_is_refused_with_a_hint(token: Make, trusting: Make) -> None:
    assert "Bearer TOKEN" in await refusal(trusting(), [(b"authorization", token().encode())])


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"exp": -31}, "has expired"),
        ({"exp": -9e8}, "has expired"),
        ({"nbf": 45}, "not valid yet"),
        ({"iat": 45}, "not valid yet"),
        ({"iss": "https://evil.example"}, "issuer"),
        ({"iss": "https://login.example.com/realms/ai/"}, "issuer"),
        ({"iss": ["https://login.example.com/realms/ai"]}, "issuer"),
        ({"aud": "another"}, "another service"),
        ({"aud": ["another", 7, None]}, "another service"),
        ({"aud": []}, "another service"),
        ({"aud": {"headrace": True}}, "another service"),
        ({"exp": None}, "lacks the claim 'exp'"),
        ({"iss": None}, "lacks the claim 'iss'"),
        ({"aud": None}, "lacks the claim 'aud'"),
        ({"sub": None}, "lacks the claim 'sub'"),
        ({"sub": ""}, "lacks the claim 'sub'"),
        ({"exp": "never"}, "'exp' cannot be used"),
        ({"exp": True}, "'exp' cannot be used"),
        ({"nbf": "yesterday"}, "'nbf' cannot be used"),
        ({"exp": [1]}, "'exp' cannot be used"),
    ],
)
async def test_a_caller_is_told_what_is_wrong_with_its_token(
    token: Make, trusting: Make, bearer: Make, claims: dict[str, Any], said: str
) -> None:
    assert said in await refusal(trusting(), bearer(token(**claims)))


def sign_payload(payload: bytes, key: Any = None) -> str:
    return jwt.api_jws.PyJWS().encode(payload, key or RSA[0], "RS256")


RSA: list[Any] = []


@pytest.fixture(autouse=True, scope="module")
def rsa_key(keys: Any) -> None:
    RSA[:] = [keys.rsa]


@pytest.mark.parametrize("claims", [{"exp": -20}, {"nbf": 20}, {"iat": 20}])
async def test_clocks_may_differ_by_the_leeway(
    token: Make, trusting: Make, bearer: Make, claims: dict[str, Any]
) -> None:
    assert await trusting().authenticate(bearer(token(**claims))) is not None
    with pytest.raises(Refused):
        await trusting(leeway=5.0).authenticate(bearer(token(**claims)))


async def test_one_of_several_audiences_and_issuers_is_enough(token: Make, trusting: Make, bearer: Make) -> None:
    lenient = trusting(issuer=["https://a", "https://b"], audience=["x", "y"])
    principal = await lenient.authenticate(bearer(token(iss="https://b", aud=["z", "y"])))
    assert principal.id == "jwt:https://b#alice", "callers of several issuers are kept apart"


async def test_issuer_and_audience_count_for_nothing_once_that_is_said(
    token: Make, trusting: Make, bearer: Make
) -> None:
    for made in (token(iss=None, aud=None), token(iss="x", aud="y")):
        assert await trusting(issuer=False, audience=False).authenticate(bearer(made)) is not None


async def test_further_claims_may_be_required(token: Make, trusting: Make, bearer: Make) -> None:
    strict = trusting(required_claims=["email", "realm.id"])
    assert "'email'" in await refusal(strict, bearer(token()))
    assert "'realm.id'" in await refusal(strict, bearer(token(email="a@b", realm={"id": None})))
    assert await strict.authenticate(bearer(token(email="a@b", realm={"id": 1}))) is not None


async def test_a_token_that_lasts_too_long_is_refused(token: Make, trusting: Make, bearer: Make) -> None:
    strict = trusting(max_lifetime=3600.0)
    assert await strict.authenticate(bearer(token(exp=3500))) is not None
    assert "3600 s at most" in await refusal(strict, bearer(token(exp=3700)))
    assert "'iat'" in await refusal(strict, bearer(token(iat=None)))


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+JWT", "application/at+jwt"])
async def test_access_tokens_may_say_what_they_are(token: Make, trusting: Make, bearer: Make, typ: str) -> None:
    assert await trusting().authenticate(bearer(token(headers={"typ": typ}))) is not None


@pytest.mark.parametrize("typ", ["logout+jwt", "dpop+jwt", "application/secevent+jwt", ""])
async def test_tokens_for_other_ends_are_refused(token: Make, trusting: Make, bearer: Make, typ: str) -> None:
    header = {"typ": typ, "alg": "RS256"}
    made = sign_with_header(header, token().split(".")[1])
    assert "not for access" in await refusal(trusting(), bearer(made))


def sign_with_header(header: dict[str, Any], payload: str) -> str:
    head = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=")
    signed = head + b"." + payload.encode()
    signature = jwt.get_algorithm_by_name("RS256").sign(signed, RSA[0])
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"null", b"7", b"{", b'{"exp":NaN}', b'{"exp":1e999}', b"\xff", b'{"a":' * 3000, b"[" * 3000],
)
async def test_a_signed_payload_that_holds_no_claims_is_malformed(trusting: Make, bearer: Make, payload: bytes) -> None:
    assert "malformed" in await refusal(trusting(), bearer(sign_payload(payload)))


@pytest.mark.parametrize(
    "head",
    [b"", b"x", b"[]", b"{}", b'{"alg":7}', b'{"alg":null}', b'{"alg":"RS256","kid":7}', b'{"alg":"RS256","x":' * 3000],
)
async def test_a_head_that_is_none_is_malformed(trusting: Make, bearer: Make, head: bytes) -> None:
    encoded = base64.urlsafe_b64encode(head).rstrip(b"=").decode() or "A"
    assert "malformed" in await refusal(trusting(), bearer(f"{encoded}.e30.AAAA"))


PARTS = st.text(st.sampled_from("ABCDEFabcdef0123456789-_"), max_size=40)
HEADS = st.one_of(
    PARTS,
    st.dictionaries(
        st.sampled_from(["alg", "kid", "typ", "crit", "jwk", "x"]),
        st.one_of(st.none(), st.integers(), st.text(max_size=8), st.sampled_from(["RS256", "none", "HS256"])),
    ).map(lambda head: base64.urlsafe_b64encode(json.dumps(head).encode()).rstrip(b"=").decode()),
)


@given(head=HEADS, payload=PARTS, signature=PARTS)
async def test_no_forged_token_gets_further_than_a_clear_refusal(
    trusting: Make, bearer: Make, head: str, payload: str, signature: str
) -> None:
    try:
        assert await trusting().authenticate(bearer(f"{head}.{payload}.{signature}")) is None
    except Refused as refused:
        assert refused.message.isprintable() and refused.why.isascii() and refused.why.isprintable()


@given(where=st.integers(min_value=0), letter=st.sampled_from("Ab9_-.="))
async def test_a_token_with_one_letter_changed_is_never_somebody_else(
    token: Make, trusting: Make, bearer: Make, where: int, letter: str
) -> None:
    made = token()
    at = where % len(made)
    changed = made[:at] + letter + made[at + 1 :]
    try:
        principal = await trusting().authenticate(bearer(changed))
    except Refused:
        return
    assert principal is None or principal.id == "jwt:alice", "the last letter has bits that count for nothing"


class Counting:
    """A key that counts how often it is used."""

    def __init__(self, keys: Any) -> None:
        self.used = 0
        self._key = keys.rsa.public_key()

    def verify(self, *arguments: Any) -> None:
        self.used += 1
        self._key.verify(*arguments)


async def test_the_signature_of_a_token_is_checked_once(keys: Any, token: Make, trusting: Make, bearer: Make) -> None:
    key = Counting(keys)
    authenticator = trusting(KeySet([VerifyKey("one", frozenset(["RS256"]), key)]))
    headers = bearer(token(headers={"kid": "one"}))
    first, second = await authenticator.authenticate(headers), await authenticator.authenticate(headers)
    assert (key.used, first) == (1, second)
    authenticator.forget()
    await authenticator.authenticate(headers)
    assert key.used == 2


def test_a_token_is_remembered_until_it_expires_and_no_longer() -> None:
    cache = TokenCache(10)
    cache.put(b"digest", Principal(id="jwt:alice"), until=100.0)
    assert cache.get(b"digest", now=99.9) == Principal(id="jwt:alice")
    assert cache.get(b"digest", now=100.0) is None


def test_a_token_is_accepted_until_its_expiry_and_the_leeway(config: Make) -> None:
    claims = {"iss": "https://login.example.com/realms/ai", "aud": "headrace", "exp": 1000}
    assert ClaimRules(config(leeway=20.0)).check(claims, now=500.0) == 1020.0


async def test_only_so_many_tokens_are_remembered(token: Make, trusting: Make, bearer: Make) -> None:
    authenticator = trusting(cache_size=3)
    for number in range(5):
        await authenticator.authenticate(bearer(token(sub=f"user-{number}")))
    assert len(authenticator._known) == 3
    forgetful = trusting(cache_size=0)
    await forgetful.authenticate(bearer(token()))
    assert len(forgetful._known) == 0


def test_the_token_not_seen_for_longest_is_forgotten_first() -> None:
    cache = TokenCache(2)
    for name in ("a", "b"):
        cache.put(name.encode(), Principal(id=name), until=100.0)
    cache.get(b"a", now=0.0)
    cache.put(b"c", Principal(id="c"), until=100.0)
    assert [cache.get(name, now=0.0) is not None for name in (b"a", b"b", b"c")] == [True, False, True]
