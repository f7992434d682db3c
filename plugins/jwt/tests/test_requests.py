"""Tokens at the door of a running gateway, from the client's socket to the backend's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from headrace import hookimpl
from headrace.gateway import Gateway
from headrace.testing import FakeBackend, serve
from headrace_keys.store import Store

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
BASE = {"issuer": "https://login.example.com/realms/ai", "audience": "headrace"}
Make = Callable[..., Any]


class WhoAmI:
    """Tells callers who they are, and keeps a door for administrators."""

    def __init__(self, config: object, gateway: Gateway) -> None:
        pass

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        gateway.add_route("/whoami", self.whoami, require="user")
        gateway.add_route("/admin", self.whoami, require="admin")

    async def whoami(self, request: Request) -> Response:
        principal = request.state.principal
        return JSONResponse({"id": principal.id, "role": principal.role})


@contextlib.asynccontextmanager
async def running(
    plugins: dict[str, Any] | None = None, state_dir: Path | None = None, anonymous: bool = False, **jwt: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway with the plugin before one backend."""
    server = {"anonymous": anonymous, **({"state_dir": str(state_dir)} if state_dir else {})}
    async with FakeBackend() as backend:
        document = backend.config(server=server, plugins={"jwt": {**BASE, **jwt}, **(plugins or {})})
        async with serve(document, {"whoami": WhoAmI}) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
            yield client


def auth(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_a_token_opens_the_door_and_a_forged_one_does_not(keys: Any, token: Make, key_server: Any) -> None:
    async with running(jwks_url=key_server.url) as client:
        good = await client.post("/v1/chat/completions", json=CHAT, headers=auth(token(headers={"kid": "one"})))
        again = await client.post("/v1/chat/completions", json=CHAT, headers=auth(token()))
        forged = auth(token(key=keys.other_rsa, headers={"kid": "one"}))
        refused = await client.post("/v1/chat/completions", json=CHAT, headers=forged)
        nothing = await client.post("/v1/chat/completions", json=CHAT)
    assert (good.status_code, again.status_code, nothing.status_code) == (200, 200, 401)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    error = refused.json()["error"]
    assert error == {**error, "type": "authentication_error", "code": "invalid_token"}
    assert "signature" in error["message"]


async def test_a_forged_token_is_refused_even_where_strangers_are_welcome(keys: Any, token: Make) -> None:
    async with running(anonymous=True, public_key=keys.pem(keys.rsa)) as client:
        stranger = await client.get("/v1/models")
        unsigned = await client.get("/v1/models", headers=auth(token().rpartition(".")[0] + "."))
    assert (stranger.status_code, unsigned.status_code) == (200, 401)


async def test_a_stream_needs_a_token_too(keys: Any, token: Make) -> None:
    async with running(public_key=keys.pem(keys.rsa)) as client:
        body = {**CHAT, "stream": True}
        good = await client.post("/v1/chat/completions", json=body, headers=auth(token()))
        expired = await client.post("/v1/chat/completions", json=body, headers=auth(token(exp=-60)))
    assert good.text.endswith("data: [DONE]\n\n")
    assert expired.status_code == 401 and "has expired" in expired.json()["error"]["message"]


async def test_models_and_roles_of_a_token_are_enforced(keys: Any, token: Make) -> None:
    options: dict[str, Any] = {"role_claim": "realm_access.roles", "roles": {"boss": "admin"}, "models_claim": "models"}
    async with running(public_key=keys.pem(keys.rsa), **options) as client:
        user = auth(token(models=["another"], realm_access={"roles": ["admin"]}))
        boss = auth(token(realm_access={"roles": ["boss"]}))
        other_model = await client.post("/v1/chat/completions", json=CHAT, headers=user)
        doors = [(await client.get("/admin", headers=each)).status_code for each in (user, boss)]
        allowed = await client.post("/v1/chat/completions", json=CHAT, headers=boss)
    assert (other_model.status_code, doors, allowed.status_code) == (403, [403, 200], 200)


@pytest.mark.parametrize("order", [["jwt", "keys"], ["keys", "jwt"]])
async def test_tokens_and_api_keys_work_side_by_side(keys: Any, token: Make, tmp_path: Path, order: list[str]) -> None:
    with Store.open(tmp_path / "keys.db") as store, store.writing():
        record, key = store.create("robot")
    jwt = {**BASE, "public_key": keys.pem(keys.rsa)}
    plugins = {name: {"jwt": jwt, "keys": {}}[name] for name in order}
    document = {"server": {"state_dir": str(tmp_path)}, "plugins": plugins}
    async with serve(document, {"whoami": WhoAmI}) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        by_token = await client.get("/whoami", headers=auth(token()))
        by_key = await client.get("/whoami", headers=auth(key.reveal()))
        both = await client.get("/whoami", headers={**auth(token()), "X-API-Key": key.reveal()})
        bad_token = await client.get("/whoami", headers=auth(token(aud="x")))
        bad_key = await client.get("/whoami", headers=auth(key.reveal()[:-1] + "!"))
    assert (by_token.json()["id"], by_key.json()["id"]) == ("jwt:alice", record.id)
    assert [each.status_code for each in (both, bad_token, bad_key)] == [401, 401, 401]
    assert "Two different credentials" in both.json()["error"]["message"]


async def test_a_rotation_is_followed_within_the_request(keys: Any, token: Make, key_server: Any) -> None:
    async with running(jwks_url=key_server.url) as client:
        before = await client.get("/whoami", headers=auth(token(headers={"kid": "one"})))
        key_server.keys = [keys.jwk(keys.other_rsa, kid="two")]
        after = await client.get("/whoami", headers=auth(token(key=keys.other_rsa, headers={"kid": "two"})))
        old = await client.get("/whoami", headers=auth(token(headers={"kid": "one"})))
    assert (before.status_code, after.status_code, old.status_code) == (200, 200, 401)


async def test_a_token_that_was_accepted_is_refused_once_its_key_is_withdrawn(
    keys: Any, token: Make, key_server: Any, eventually: Make
) -> None:
    headers = auth(token(headers={"kid": "one"}))
    async with running(jwks_url=key_server.url, jwks_refresh=1.0) as client:
        before = await client.get("/whoami", headers=headers)
        key_server.keys = [keys.jwk(keys.other_rsa, kid="two")]
        asked = key_server.asked
        await eventually(lambda: key_server.asked >= asked + 2)
        after = await client.get("/whoami", headers=headers)
    assert (before.status_code, after.status_code) == (200, 401)


async def test_the_gateway_starts_without_the_issuer_and_says_503_until_it_is_there(
    token: Make, key_server: Any
) -> None:
    await key_server.stop()
    async with running(jwks_url=key_server.url, jwks_refresh=1.0) as client:
        early = await client.get("/whoami", headers=auth(token()))
        await key_server.start()
        async with asyncio.timeout(30):
            while (later := await client.get("/whoami", headers=auth(token()))).status_code == 503:
                await asyncio.sleep(0.05)
    assert early.status_code == 503 and early.headers["retry-after"] == "5"
    assert early.json()["error"]["code"] == "unavailable"
    assert later.status_code == 200


async def test_accepted_tokens_are_answered_503_after_the_grace(token: Make, key_server: Any, eventually: Make) -> None:
    headers = auth(token())
    async with running(jwks_url=key_server.url, jwks_refresh=1.0, jwks_grace=0.0) as client:
        before = await client.get("/whoami", headers=headers)
        key_server.status = 500
        asked = key_server.asked
        await eventually(lambda: key_server.asked >= asked + 2)
        after = await client.get("/whoami", headers=headers)
    assert (before.status_code, after.status_code) == (200, 503)


async def test_no_token_and_no_other_claim_is_ever_logged(
    keys: Any, token: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    good = token(email="private@example.com")
    made = [good, token(exp=-60, email="private@example.com"), token(aud="x", email="private@example.com")]
    made += [token(key=keys.other_rsa), "e30.e30.c29tZXRoaW5nLXNlY3JldA"]
    async with running(public_key=keys.pem(keys.rsa), plugins={"logs": {"level": "debug"}}) as client:
        answers = [await client.post("/v1/chat/completions", json=CHAT, headers=auth(each)) for each in made]
    assert [answer.status_code for answer in answers] == [200, 401, 401, 401, 401]
    lines = capfd.readouterr().err
    assert "the token was refused: aud is 'x'" in lines, "the operator learns why"
    for each in made:
        for part in each.split("."):
            assert len(part) < 8 or part not in lines + "".join(answer.text for answer in answers)
    assert "private@" not in lines
