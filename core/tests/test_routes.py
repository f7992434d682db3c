"""Core's own routes: models, health, readiness, the description, and the doors in front of plugins' routes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse

from headrace import hookimpl
from headrace.config import HealthConfig
from headrace.errors import Unavailable
from headrace.exchange import Principal, Role, Target
from headrace.health import HealthBoard
from headrace.models import Model, Models
from headrace.providers import Health, InOrder
from headrace.testing import FakeBackend, Running, serve

NOWHERE = {"provider": "openai", "base_url": "http://127.0.0.1:9"}
ENVELOPE = {"message", "type", "param", "code"}


class Keys:
    """`Bearer user`, `Bearer metrics`, `Bearer admin`: one caller per role; `Bearer limited` may use one model."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Any) -> Principal | None:
        name = (exchange.header(b"authorization") or "").removeprefix("Bearer ")
        if name == "limited":
            return Principal(id=name, models=frozenset({"org/other"}))
        return Principal(id=name, role=cast(Role, name)) if name in ("user", "metrics", "admin") else None


@contextlib.asynccontextmanager
async def gateway(
    plugins: dict[str, type[Any]] | None = None, **tables: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, FakeBackend, Running]]:
    models = {"test": {"targets": ["fake"], "aliases": ["gpt-4o"]}, "org/other": {"targets": ["fake"]}}
    async with FakeBackend() as backend:
        document = backend.config(models=models)
        async with (
            serve({**document, **tables}, plugins) as running,
            httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=30) as client,
        ):
            yield client, backend, running


# --- Models ---


async def test_every_name_of_every_model_is_listed_with_its_alias() -> None:
    async with gateway() as (client, _, _):
        listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [each["id"] for each in listed["data"]] == ["test", "gpt-4o", "org/other"]
    assert {"object", "created", "owned_by"} <= listed["data"][0].keys()
    assert all(each["object"] == "model" and isinstance(each["created"], int) for each in listed["data"])


@pytest.mark.parametrize("name", ["test", "gpt-4o", "org/other", "org%2Fother"])
async def test_one_model_is_found_by_its_name_slashes_included(name: str) -> None:
    async with gateway() as (client, _, _):
        found = await client.get(f"/v1/models/{name}")
    assert (found.status_code, found.json()["id"]) == (200, name.replace("%2F", "/"))


@pytest.mark.parametrize("name", ["nope", "org", "org/other/", "test/x", "%00", "<b>"])
async def test_a_model_that_is_not_there_is_a_404_in_the_envelope(name: str) -> None:
    async with gateway() as (client, _, _):
        missing = await client.get(f"/v1/models/{name}")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert missing.json()["error"].keys() == ENVELOPE


async def test_a_caller_sees_only_the_models_it_may_use() -> None:
    limited = {"authorization": "Bearer limited"}
    async with gateway({"keys": Keys}) as (client, _, _):
        listed = await client.get("/v1/models", headers=limited)
        allowed = await client.get("/v1/models/org/other", headers=limited)
        forbidden = await client.get("/v1/models/test", headers=limited)
    assert [each["id"] for each in listed.json()["data"]] == ["org/other"]
    assert (allowed.status_code, forbidden.status_code) == (200, 403)


# --- Doors ---


class Mine:
    """One route for each level, and one that breaks."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    def register_routes(self, gateway: Any) -> None:
        async def handler(request: Request) -> JSONResponse:
            if "broken" in request.url.path:
                raise OSError("disk sda1 is full")
            principal = getattr(request.state, "principal", None)
            return JSONResponse({"id": principal.id if principal else None})

        for level in ("public", "user", "metrics", "admin"):
            gateway.add_route(f"/mine/{level}", handler, require=level, summary=f"For {level}")
        gateway.add_route("/mine/broken", handler)
        gateway.add_route("/mine/{one}/of/{two:int}", handler, methods=("GET", "DELETE"))


DOORS = {
    "public": {"nobody": 200, "user": 200, "metrics": 200, "admin": 200},
    "user": {"nobody": 401, "user": 200, "metrics": 403, "admin": 200},
    "metrics": {"nobody": 401, "user": 403, "metrics": 200, "admin": 200},
    "admin": {"nobody": 401, "user": 403, "metrics": 403, "admin": 200},
}


@pytest.mark.parametrize("level", DOORS)
async def test_a_plugins_route_opens_to_those_it_is_for(level: str) -> None:
    async with gateway({"keys": Keys, "mine": Mine}, server={"anonymous": False}) as (client, _, _):
        answers = {
            role: await client.get(f"/mine/{level}", headers={"authorization": f"Bearer {role}"})
            for role in DOORS[level]
        }
    assert {role: answer.status_code for role, answer in answers.items()} == DOORS[level]
    assert answers["admin"].json() == {"id": None if level == "public" else "admin"}
    assert all(answer.json()["error"].keys() == ENVELOPE for answer in answers.values() if answer.is_error)
    assert all("www-authenticate" in answer.headers for answer in answers.values() if answer.status_code == 401)


@pytest.mark.parametrize(("level", "status"), [("user", 200), ("metrics", 401), ("admin", 401)])
async def test_anonymous_callers_are_users_and_no_more(level: str, status: int) -> None:
    async with gateway({"mine": Mine}) as (client, _, _):
        assert (await client.get(f"/mine/{level}")).status_code == status


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/test"])
async def test_models_are_for_callers_who_are_known(path: str) -> None:
    async with gateway({"keys": Keys}, server={"anonymous": False}) as (client, _, _):
        assert (await client.get(path)).status_code == 401
        assert (await client.get(path, headers={"authorization": "Bearer user"})).status_code == 200


async def test_a_plugins_route_that_breaks_is_a_500_without_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    async with gateway({"mine": Mine}) as (client, _, _):
        broken = await client.get("/mine/broken")
        assert (broken.status_code, broken.json()["error"]["code"]) == (500, "internal_error")
        assert "sda1" not in broken.text
        assert (await client.get("/health")).status_code == 200
    assert "disk sda1 is full" in caplog.text
    assert "Traceback" not in caplog.text


# --- Methods ---

GET_PATHS = ["/v1/models", "/v1/models/test", "/health", "/health/live", "/health/ready", "/openapi.json", "/docs"]


@pytest.mark.parametrize("path", GET_PATHS)
async def test_a_route_answers_get_and_head_and_refuses_the_rest_with_allow(path: str) -> None:
    async with gateway() as (client, _, _):
        got, head = await client.get(path), await client.head(path)
        refused = [await client.request(method, path) for method in ("POST", "PUT", "DELETE", "OPTIONS")]
    assert (got.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    for answer in refused:
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
        assert "GET" in answer.headers["allow"]


# --- Health ---


@pytest.mark.parametrize("path", ["/health", "/health/live"])
async def test_a_gateway_that_runs_is_alive_whatever_its_backends_do(path: str) -> None:
    async with gateway(models={"test": {"targets": [NOWHERE]}}) as (client, _, _):
        alive = await client.get(path)
    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})


async def test_ready_says_of_every_backend_whether_it_answers_and_why_not() -> None:
    models = {"test": {"targets": [NOWHERE, "fake"]}, "lost": {"targets": [NOWHERE]}}
    async with gateway(models=models) as (client, _, _):
        ready = await client.get("/health/ready")
    said = ready.json()
    assert (ready.status_code, said["status"]) == (503, "not ready")
    assert said["models"] == {"test": "ready", "lost": "no backend answers"}
    assert said["backends"]["fake"]["status"] == "ok"
    assert said["backends"]["fake"]["latency_ms"] > 0
    assert said["backends"]["test-0"] == {
        "status": "down", "reason": "The backend cannot be reached.", "latency_ms": None
    }  # fmt: skip
    assert "127.0.0.1" not in ready.text


async def test_ready_when_every_model_has_one_backend_that_answers() -> None:
    async with gateway(models={"test": {"targets": [NOWHERE, "fake"]}}) as (client, _, _):
        ready = await client.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")


async def test_a_gateway_without_models_is_ready() -> None:
    async with gateway(models={}) as (client, _, _):
        assert (await client.get("/health/ready")).status_code == 200


async def test_a_backend_is_asked_once_per_interval_however_many_want_to_know() -> None:
    async with gateway(health={"interval": 60.0}) as (client, backend, _):
        await asyncio.gather(*(client.get("/health/ready") for _ in range(10)))
        backend.status = 500
        assert (await client.get("/health/ready")).status_code == 200
        assert len(backend.requests) == 1


async def test_a_backend_is_asked_again_after_the_interval() -> None:
    async with gateway(health={"interval": 0.05}) as (client, backend, _):
        assert (await client.get("/health/ready")).status_code == 200
        backend.status = 500
        async with asyncio.timeout(10):
            while (await client.get("/health/ready")).status_code != 503:
                await asyncio.sleep(0.01)
            backend.status = 200
            while (await client.get("/health/ready")).status_code != 200:
                await asyncio.sleep(0.01)


async def test_a_silent_backend_is_down_after_the_timeout_and_the_gateway_still_stops() -> None:
    async with gateway(health={"timeout": 0.2}) as (client, backend, _):
        backend.silent = True
        ready = await client.get("/health/ready")
        assert ready.json()["backends"]["fake"]["reason"] == "no answer within 0.2 s"
        await asyncio.wait_for(backend.closed_early.wait(), 5)


async def test_a_client_that_leaves_does_not_end_the_check_that_others_wait_for() -> None:
    async with gateway(health={"timeout": 1.0}) as (client, backend, _):
        backend.silent = True
        leaving = asyncio.create_task(client.get("/health/ready"))
        while not backend.requests:
            await asyncio.sleep(0.005)
        staying = asyncio.create_task(client.get("/health/ready"))
        leaving.cancel()
        assert (await staying).json()["backends"]["fake"]["reason"] == "no answer within 1 s"
        assert len(backend.requests) == 1


class Check:
    """Answers with what it is given, one result after the other."""

    def __init__(self, *results: Health | Exception) -> None:
        self._results = list(results)

    async def check(self, target: Target) -> Health:
        result = self._results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


def models_at(*providers: str) -> Models:
    targets = tuple(Target(name=f"at-{each}", provider=each, base_url="") for each in providers)
    return Models([Model("m", targets, InOrder(), "auto")])


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (Unavailable("gone", detail="at 10.0.0.7"), "gone"),
        (OSError("10.0.0.7"), "the check failed: OSError"),
        (Health(ok=False, reason="out of memory"), "out of memory"),
    ],
)
async def test_whatever_a_check_does_becomes_a_reason_fit_to_show(result: Any, reason: str) -> None:
    board = HealthBoard(HealthConfig(), {"p": Check(result)})
    found = (await board.report(models_at("p")))["at-p"]
    assert (found.ok, found.reason) == (False, reason)


async def test_a_check_that_measured_keeps_its_own_latency() -> None:
    checks = {"p": Check(Health(ok=True, latency_seconds=0.25)), "q": Check(Health(ok=True))}
    found = await HealthBoard(HealthConfig(), checks).report(models_at("p", "q"))
    assert found["at-p"].latency_seconds == 0.25
    assert 0 < (found["at-q"].latency_seconds or 0) < 5


# --- The description ---


async def described(client: httpx.AsyncClient) -> Any:
    return (await client.get("/openapi.json")).json()


def walk(value: Any) -> list[dict[str, Any]]:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return ([value] if isinstance(value, dict) else []) + [found for child in children for found in walk(child)]


async def test_every_reference_in_the_description_resolves() -> None:
    async with gateway({"mine": Mine}) as (client, _, _):
        document = await described(client)
    references = {each["$ref"] for each in walk(document) if isinstance(each.get("$ref"), str)}
    assert references
    for reference in references:
        place = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in place, reference
            place = place[part]


async def test_the_description_names_every_path_with_its_parameters_and_its_key() -> None:
    async with gateway({"mine": Mine}) as (client, _, running):
        document = await described(client)
        endpoints = set(running.gateway.endpoints)
    paths = document["paths"]
    assert document["openapi"] == "3.1.0"
    assert endpoints | {"/v1/models", "/v1/models/{model}", "/health/ready", "/mine/admin"} <= paths.keys()
    assert paths["/mine/{one}/of/{two}"].keys() == {"get", "delete"}
    for path, operations in paths.items():
        for operation in operations.values():
            declared = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
            assert declared == set(re.findall(r"\{(\w+)\}", path)), path
            assert operation["responses"]
    assert "security" in paths["/mine/admin"]["get"]
    assert "security" not in paths["/mine/public"]["get"]
    assert paths["/v1/chat/completions"]["post"]["security"] == [{"key": []}]


async def test_the_description_of_a_body_allows_fields_core_does_not_know() -> None:
    async with gateway() as (client, _, _):
        document = await described(client)
    schema = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    while "$ref" in schema:
        for part in (place := schema["$ref"].removeprefix("#/").split("/")):
            schema = document[part] if part == place[0] else schema[part]
    assert schema["required"] == ["model", "messages"]
    assert schema.get("additionalProperties", True) is True


async def test_the_page_may_load_nothing_but_its_own_style() -> None:
    async with gateway({"mine": Mine}) as (client, _, _):
        page = await client.get("/docs")
    styles = re.findall(r"<style>(.*?)</style>", page.text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() for style in styles]
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    assert "unsafe" not in policy
    assert not re.search(r"<script|<link|<img|style=|src=|\son\w+=", page.text)
    assert "For admin (needs a key)" in page.text


async def test_the_description_can_be_switched_off() -> None:
    async with gateway(server={"docs": False}) as (client, _, _):
        assert [(await client.get(path)).status_code for path in ("/docs", "/openapi.json")] == [404, 404]
