"""`/admin/keys` over real sockets: what it does not do, and how it says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.testing import serve
from headrace_keys.store import Store

NOBODY = "000000000000"


@pytest.fixture
def boss(database: Path) -> dict[str, str]:
    with Store.open(database) as store, store.writing():
        record, key = store.create("boss", role="admin")
    return {"id": record.id, "key": key.reveal()}


@pytest.fixture
async def url(tmp_path: Path, boss: dict[str, str]) -> AsyncIterator[str]:
    server = {"state_dir": str(tmp_path), "body_timeout": 1.0}
    async with serve({"server": server, "plugins": {"keys": {"admin_api": True}}}) as running:
        yield running.url


@pytest.fixture
async def admin(url: str, boss: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, headers={"X-API-Key": boss["key"]}, timeout=30) as client:
        yield client


def said(answer: httpx.Response, status: int) -> str:
    """The message of an error in OpenAI's envelope."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["message"])


async def make(admin: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = (await admin.post("/admin/keys", json={"name": "alice", **fields})).json()
    return made


@pytest.mark.parametrize("role", ["user", "metrics", None])
async def test_only_admins_may(admin: httpx.AsyncClient, url: str, role: str | None) -> None:
    key = (await make(admin, role=role))["key"] if role else None
    async with httpx.AsyncClient(base_url=url, headers={"X-API-Key": key} if key else {}) as other:
        answers = [
            await other.get("/admin/keys"),
            await other.post("/admin/keys", json={"name": "x", "role": "admin"}),
            await other.get(f"/admin/keys/{NOBODY}"),
            await other.patch(f"/admin/keys/{NOBODY}", json={}),
            await other.delete(f"/admin/keys/{NOBODY}"),
            await other.post(f"/admin/keys/{NOBODY}/rotate"),
        ]
    for answer in answers:
        said(answer, 403 if role else 401)
    assert len((await admin.get("/admin/keys")).json()["data"]) == 1 + bool(role)


@pytest.mark.parametrize("id", [NOBODY, "nobody", "boss", "%00", "..%2f", "x" * 2000, "a'--"])
async def test_an_unknown_id_is_404(admin: httpx.AsyncClient, id: str) -> None:
    for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")):
        said(await admin.request(method, f"/admin/keys/{id}{path}", content="{}"), 404)


BAD_BODIES = [
    (b"", "JSON"),
    (b"{", "JSON"),
    (b"[]", "Expected `object`"),
    (b'{"name":"x","nmae":"y"}', "nmae"),
    (b'{"name":"x","id":"000000000000"}', "id"),
    (b'{"name":""}', "length >= 1"),
    (b'{"name":" x"}', "printable"),
    (b'{"name":"a\\u001b[2J"}', "printable"),
    (b'{"name":null}', "null"),
    (b'{"name":"x","role":"root"}', "root"),
    (b'{"name":"x","models":"large"}', "array"),
    (b'{"name":"x","models":[1]}', "str"),
    (b'{"name":"x","limits":{"tokens_per_week":1}}', "tokens_per_week"),
    (b'{"name":"x","limits":{"tokens_per_day":0}}', ">= 1"),
    (b'{"name":"x","limits":{"tokens_per_day":1e99}}', "int"),
    (b'{"name":"x","budget":{"cost_per_day":-1}}', ">= 0"),
    (b'{"name":"x","expires":"soon"}', "datetime"),
    (b'{"name":"x","expires":"2099-01-01T00:00:00"}', "timezone"),
    (b'{"name":"x","expires":"0001-01-01T00:00:00Z"}', "year"),
    (b'{"name":"x","metadata":{"a":{}}}', "got `object`"),
    (b'{"name":"x","metadata":{"a":"' + b"x" * 5000 + b'"}}', "4096"),
    (b'{"name":"\xff"}', "UTF-8"),
    (b'{"name":"\\ud800"}', ""),
    (b'{"x":' + b"[" * 30_000, ""),
]


@pytest.mark.parametrize(("body", "message"), BAD_BODIES, ids=range(len(BAD_BODIES)))
async def test_a_bad_body_is_400_and_changes_nothing(
    admin: httpx.AsyncClient, boss: dict[str, str], body: bytes, message: str
) -> None:
    before = (await admin.get("/admin/keys")).json()
    created = said(await admin.post("/admin/keys", content=body), 400)
    changed = said(await admin.patch(f"/admin/keys/{boss['id']}", content=body), 400)
    for text in (created, changed):
        assert message in text and len(text) < 400
    assert (await admin.get("/admin/keys")).json() == before


async def test_a_key_without_a_name_is_400(admin: httpx.AsyncClient) -> None:
    assert "'name'" in said(await admin.post("/admin/keys", json={"team": "x"}), 400)


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"grace":1}', b'{"grace_seconds":-1}', b'{"grace_seconds":1e12}'])
async def test_a_bad_rotation_is_400(admin: httpx.AsyncClient, boss: dict[str, str], body: bytes) -> None:
    said(await admin.post(f"/admin/keys/{boss['id']}/rotate", content=body), 400)


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=%D9%A1", "limit=1&limit=2", "after=nobody", "x=1"],
)
async def test_bad_parameters_of_the_list_are_400(admin: httpx.AsyncClient, query: str) -> None:
    said(await admin.get(f"/admin/keys?{query}"), 400)


async def test_a_body_that_is_too_large_is_413(admin: httpx.AsyncClient) -> None:
    body = b'{"name":"' + b"x" * 70_000 + b'"}'
    said(await admin.post("/admin/keys", content=body), 413)


async def test_a_body_that_does_not_arrive_is_408(admin: httpx.AsyncClient, url: str, boss: dict[str, str]) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /admin/keys HTTP/1.1\r\nHost: x\r\nX-API-Key: {boss['key']}\r\nContent-Length: 10\r\n\r\n"
    writer.write(head.encode() + b"{")
    async with asyncio.timeout(20):
        assert b" 408 " in await reader.readline()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_other_methods_are_405(admin: httpx.AsyncClient) -> None:
    said(await admin.put("/admin/keys", json={}), 405)
    said(await admin.get(f"/admin/keys/{NOBODY}/rotate"), 405)


async def test_an_admin_does_not_revoke_the_key_in_use_by_accident(
    admin: httpx.AsyncClient, boss: dict[str, str]
) -> None:
    assert "force=true" in said(await admin.delete(f"/admin/keys/{boss['id']}"), 409)
    assert (await admin.get("/admin/keys")).status_code == 200
    assert (await admin.delete(f"/admin/keys/{boss['id']}?force=true")).status_code == 200
    assert (await admin.get("/admin/keys")).status_code == 401


@pytest.mark.parametrize("change", [{"role": "user"}, {"expires": "2020-01-01T00:00:00Z"}])
async def test_an_admin_does_not_give_up_the_role_by_accident(
    admin: httpx.AsyncClient, boss: dict[str, str], change: dict[str, str]
) -> None:
    path = f"/admin/keys/{boss['id']}"
    assert "force=true" in said(await admin.patch(path, json=change), 409)
    assert (await admin.get(path)).json()["role"] == "admin"
    assert (await admin.patch(f"{path}?force=true", json=change)).status_code == 200
    assert (await admin.get(path)).status_code in (401, 403)


async def test_force_is_true_or_false(admin: httpx.AsyncClient, boss: dict[str, str]) -> None:
    said(await admin.delete(f"/admin/keys/{boss['id']}?force=1"), 400)


async def test_a_revoked_key_can_be_neither_changed_nor_rotated(admin: httpx.AsyncClient) -> None:
    id = (await make(admin))["id"]
    await admin.delete(f"/admin/keys/{id}")
    assert "revoked" in said(await admin.patch(f"/admin/keys/{id}", json={"team": "x"}), 409)
    assert "revoked" in said(await admin.post(f"/admin/keys/{id}/rotate"), 409)


async def test_a_database_that_cannot_be_used_is_503_and_says_nothing_of_paths(
    admin: httpx.AsyncClient, database: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database.rename(tmp_path / "aside.db")
    database.mkdir()
    answers = [await admin.get("/admin/keys"), await admin.post("/admin/keys", json={"name": "x"})]
    for answer in answers:
        assert str(tmp_path) not in said(answer, 503)
    assert f"{database} is not a file" in caplog.text


async def test_a_change_that_is_not_in_force_at_once_is_answered_all_the_same(
    tmp_path: Path, boss: dict[str, str], monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any], let_in: Any
) -> None:
    from headrace.errors import PluginError
    from headrace_keys.mirror import Mirror

    look, failures = Mirror.look, 0

    def failing_once(mirror: Mirror) -> None:
        nonlocal failures
        if mirror._seen is not None and failures == 0:
            failures += 1
            raise PluginError("keys", "busy")
        look(mirror)

    document = {"server": {"state_dir": str(tmp_path)}, "plugins": {"keys": {"admin_api": True}}}
    async with (
        serve(document) as running,
        httpx.AsyncClient(base_url=running.url, headers={"X-API-Key": boss["key"]}) as admin,
    ):
        monkeypatch.setattr(Mirror, "look", failing_once)
        made = await admin.post("/admin/keys", json={"name": "x"})
        await eventually(lambda: let_in(running.gateway, made.json()["key"]))
    assert made.status_code == 201 and failures == 1
