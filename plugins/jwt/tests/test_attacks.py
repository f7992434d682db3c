"""Tokens that somebody made who must not be able to."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest

from headrace.config import Secret
from headrace_jwt.authenticator import Authenticator
from headrace_jwt.keyset import from_jwks
from headrace_jwt.token import Refused

Make = Callable[..., Any]


def encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def forged(token: str, head: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """A token with the claims of a real one, a head of one's own and whatever signature."""
    signed = encoded(json.dumps(head).encode()) + b"." + token.split(".")[1].encode()
    return (signed + b"." + encoded(sign(signed))).decode()


async def why(authenticator: Authenticator, headers: Any) -> str:
    with pytest.raises(Refused) as caught:
        await authenticator.authenticate(headers)
    return caught.value.why


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", ""])
async def test_a_token_without_a_signature_is_refused(token: Make, trusting: Make, bearer: Make, alg: str) -> None:
    assert "alg is" in await why(trusting(), bearer(forged(token(), {"alg": alg}, lambda _: b"")))


async def test_a_token_whose_signature_was_cut_off_is_refused(token: Make, trusting: Make, bearer: Make) -> None:
    assert "1 keys tried" in await why(trusting(), bearer(token().rpartition(".")[0] + "."))


@pytest.mark.parametrize("form", ["whole", "stripped", "der"])
async def test_a_public_key_is_no_secret_to_sign_with(
    keys: Any, token: Make, trusting: Make, bearer: Make, form: str
) -> None:
    pem = keys.pem(keys.rsa)
    der = base64.b64decode("".join(pem.splitlines()[1:-1]))
    secret = {"whole": pem.encode(), "stripped": pem.strip().encode(), "der": der}[form]
    made = forged(token(), {"alg": "HS256"}, lambda signed: hmac.digest(secret, signed, "sha256"))
    assert "alg is 'HS256'" in await why(trusting(), bearer(made))


async def test_a_token_for_one_secret_is_not_taken_as_signed_with_a_public_key(
    keys: Any, token: Make, trusting: Make, bearer: Make
) -> None:
    symmetric = trusting(secret=Secret(keys.for_algorithm("HS256")), algorithms=["HS256"])
    assert "alg is 'RS256'" in await why(symmetric, bearer(token()))


@pytest.mark.parametrize("algorithm", ["RS384", "PS256", "ES256", "EdDSA"])
async def test_an_algorithm_that_is_not_configured_is_refused_with_the_right_key(
    keys: Any, token: Make, trusting: Make, bearer: Make, algorithm: str
) -> None:
    jwks = {"keys": [keys.jwk(keys.for_algorithm(algorithm), kid="k"), keys.jwk(keys.rsa, kid="r")]}
    authenticator = trusting(from_jwks(json.dumps(jwks).encode(), ["RS256"]))
    made = token(algorithm=algorithm, headers={"kid": "k"})
    assert f"alg is '{algorithm}'" in await why(authenticator, bearer(made))


@pytest.mark.parametrize(("alg", "kid"), [("ES256", "rsa"), ("RS256", "ec"), ("EdDSA", "rsa"), ("ES384", "ec")])
async def test_a_key_is_never_used_with_an_algorithm_of_another_kind(
    keys: Any, token: Make, trusting: Make, bearer: Make, alg: str, kid: str
) -> None:
    jwks = {"keys": [keys.jwk(keys.rsa, kid="rsa"), keys.jwk(keys.p256, kid="ec")]}
    algorithms = ["RS256", "ES256", "ES384", "EdDSA"]
    authenticator = trusting(from_jwks(json.dumps(jwks).encode(), algorithms), algorithms=algorithms)
    assert "0 keys tried" in await why(authenticator, bearer(token(algorithm=alg, headers={"kid": kid})))


async def test_a_key_is_bound_to_the_algorithm_that_its_issuer_names(
    keys: Any, token: Make, trusting: Make, bearer: Make
) -> None:
    jwks = {"keys": [keys.jwk(keys.rsa, kid="r", alg="RS256")]}
    authenticator = trusting(from_jwks(json.dumps(jwks).encode(), ["RS256", "RS512"]), algorithms=["RS256", "RS512"])
    assert "0 keys tried" in await why(authenticator, bearer(token(algorithm="RS512", headers={"kid": "r"})))


@pytest.mark.parametrize("where", ["jwk", "jku", "x5u", "x5c"])
async def test_a_key_that_a_token_brings_along_is_not_looked_at(
    keys: Any, token: Make, trusting: Make, bearer: Make, key_server: Any, where: str
) -> None:
    brought = {
        "jwk": keys.jwk(keys.other_rsa, kid="mine"),
        "jku": key_server.url,
        "x5u": key_server.url,
        "x5c": [keys.pem(keys.other_rsa)],
    }
    key_server.keys = [brought["jwk"]]
    made = token(key=keys.other_rsa, headers={where: brought[where]})
    assert "1 keys tried" in await why(trusting(), bearer(made))
    assert key_server.asked == 0


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], None, "x"])
async def test_extensions_that_must_be_understood_are_refused(
    token: Make, trusting: Make, bearer: Make, crit: Any
) -> None:
    made = forged(token(), {"alg": "RS256", "crit": crit}, lambda _: b"")
    assert "crit" in await why(trusting(), bearer(made))


@pytest.mark.parametrize("kid", ["two", "../../dev/null", "' OR 1=1 --", "", "\r\nX: y", "one\x00"])
async def test_a_key_name_that_is_not_published_is_refused(
    keys: Any, token: Make, trusting: Make, bearer: Make, kid: str
) -> None:
    published = from_jwks(json.dumps({"keys": [keys.jwk(keys.rsa, kid="one")]}).encode(), ["RS256"])
    said = await why(trusting(published), bearer(token(headers={"kid": kid})))
    assert said.startswith("no key ") and said.isprintable()


async def test_somebody_elses_key_under_a_known_name_is_refused(
    keys: Any, token: Make, trusting: Make, bearer: Make
) -> None:
    published = from_jwks(json.dumps({"keys": [keys.jwk(keys.rsa, kid="one")]}).encode(), ["RS256"])
    made = token(key=keys.other_rsa, headers={"kid": "one"})
    assert "1 keys tried" in await why(trusting(published), bearer(made))


async def test_claims_from_one_token_do_not_fit_the_signature_of_another(
    token: Make, trusting: Make, bearer: Make
) -> None:
    mine, admins = token(sub="mallory").split("."), token(sub="root").split(".")
    assert "keys tried" in await why(trusting(), bearer(".".join((mine[0], admins[1], mine[2]))))


@pytest.mark.parametrize("signature", [b"", b"\x00" * 64, b"\x00" * 63, b"\xff" * 64])
async def test_an_elliptic_curve_signature_of_nothing_is_refused(
    keys: Any, token: Make, trusting: Make, bearer: Make, signature: bytes
) -> None:
    authenticator = trusting(public_key=keys.pem(keys.p256), algorithms=["ES256"])
    assert "keys tried" in await why(authenticator, bearer(forged(token(), {"alg": "ES256"}, lambda _: signature)))
