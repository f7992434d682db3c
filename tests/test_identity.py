"""Keys and tokens of an identity provider side by side, behind nginx: who they are, and what they share."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

HELLO = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
PLUGINS = """
[plugins.jwt]
issuer = "https://login.example.com"
audience = "headrace"
jwks_url = "{url}"
jwks_refresh = 30
team_claim = "team"
models_claim = "models"
role_claim = "roles"
roles = {{ readers = "metrics" }}
[[plugins.ratelimit.limits]]
per = ["team"]
requests_per_day = 10
"""


class Issuer:
    """Publishes its key where the gateway looks for it, and signs tokens with it."""

    def __init__(self) -> None:
        self.key = generate_private_key(65537, 2048)
        described = jwt.get_algorithm_by_name("RS256").to_jwk(self.key.public_key(), as_dict=True)
        body = json.dumps({"keys": [{**described, "kid": "one", "use": "sig", "alg": "RS256"}]}).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/certs"

    def token(self, key: RSAPrivateKey | None = None, **claims: Any) -> str:
        now = time.time()
        usual = {"iss": "https://login.example.com", "aud": "headrace", "sub": "ada", "iat": now, "exp": now + 600}
        return jwt.encode({**usual, **claims}, key or self.key, "RS256", {"kid": "one"})


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    thread = threading.Thread(target=issuer.server.serve_forever)
    thread.start()
    yield issuer
    issuer.server.shutdown()
    thread.join()
    issuer.server.server_close()


@pytest.fixture(scope="module", params=["inline", "offload"])
def stack(own_stack: Any, issuer: Issuer, request: pytest.FixtureRequest) -> Iterator[Any]:
    with own_stack(way=request.param, server="workers = 2", plugins=PLUGINS.format(url=issuer.url)) as stack:
        if stack.delivery == "offload":
            stack.warm_up()
        yield stack


def test_a_token_and_a_key_are_both_good(stack: Any, issuer: Issuer, kit: Any) -> None:
    token = issuer.token()

    def is_delivered() -> bool:
        """A worker of the core must have heard of a worker of nginx first."""
        identifier = uuid.uuid4().hex
        assert stack.route("nginx").post(HELLO, identifier, key=token).status == 200
        line = stack.logged(identifier)
        assert line["user.id"] == "jwt:ada"
        return bool(line["delivery"] == stack.delivery)

    kit.until(is_delivered, "the delivery that is configured")
    assert stack.route("nginx").post(HELLO).status == 200


def test_a_callers_tokens_count_together_whichever_worker_they_meet(stack: Any, issuer: Issuer) -> None:
    """Each token is another credential, and nginx sends it where its hash says."""
    team, route = uuid.uuid4().hex, stack.route("nginx")

    async def asking() -> list[int]:
        tokens = [issuer.token(team=team, jti=str(number)) for number in range(24)]
        answers = await asyncio.gather(*(route.ask((route.request(HELLO, key=token),)) for token in tokens))
        return [answer.status for answer in answers]

    statuses = asyncio.run(asking())
    assert (statuses.count(200), statuses.count(429)) == (10, 14)


def unsigned(issuer: Issuer) -> str:
    _, payload, _ = issuer.token().split(".")
    head = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    return f"{head}.{payload}."


def confused(issuer: Issuer) -> str:
    """Signed with the public key as if it were a shared secret."""
    import hashlib
    import hmac

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    _, payload, _ = issuer.token().split(".")
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT","kid":"one"}').rstrip(b"=").decode()
    pem = issuer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = hmac.new(pem, f"{head}.{payload}".encode(), hashlib.sha256).digest()
    return f"{head}.{payload}." + base64.urlsafe_b64encode(signature).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("forge", "status"),
    [
        (unsigned, 401),
        (confused, 401),
        (lambda issuer: issuer.token(generate_private_key(65537, 2048)), 401),
        (lambda issuer: issuer.token(exp=time.time() - 600), 401),
        (lambda issuer: issuer.token(aud="cafeteria"), 401),
        (lambda issuer: issuer.token(models=["raw"]), 403),
        (lambda issuer: issuer.token(roles=["readers"]), 403),
    ],
    ids=[
        "unsigned",
        "algorithm confused",
        "another key",
        "expired",
        "another audience",
        "other models",
        "metrics only",
    ],
)
def test_what_is_no_good_token_for_this_is_refused(stack: Any, issuer: Issuer, forge: Any, status: int) -> None:
    answer = stack.route("nginx").post(HELLO, key=forge(issuer))
    assert answer.status == status and "error" in answer.json()
