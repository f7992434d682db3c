"""What is done to the gateway itself is told to auditors: over HTTP, by commands, by reloads."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import click
import httpx
import pytest
from click.testing import CliRunner
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from headrace import hookimpl
from headrace.audit import Act, about, noted
from headrace.cli import main
from headrace.errors import GatewayError, HeadraceError
from headrace.exchange import Principal, Role
from headrace.gateway import Gateway
from headrace.server import make_server
from headrace.settings import parse
from headrace.tenure import Tenures, digest
from headrace.testing import serve


class Audit:
    """Remembers acts, and has routes and a caller for every role."""

    acts: ClassVar[list[Act]] = []
    reads = False

    def __init__(self, config: Any, gateway: Gateway) -> None:
        gateway.auditors.append(self)

    def note(self, act: Act) -> None:
        self.acts.append(act)

    @hookimpl
    async def authenticate(self, exchange: Any) -> Principal | None:
        role = (exchange.header(b"authorization") or "").removeprefix("Bearer ")
        return Principal(id=f"id-{role}", name=f"the {role}", role=cast(Role, role)) if role else None

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        gateway.add_route("/admin/things/{id}", self._thing, methods=("GET", "POST", "DELETE"), require="admin")
        gateway.add_route("/things", self._own, methods=("POST",), require="user")

    async def _thing(self, request: Request) -> Response:
        wanted = request.path_params["id"]
        if wanted == "missing":
            raise GatewayError("There is no such thing.", status=404)
        if wanted == "broken":
            raise ZeroDivisionError
        if wanted == "new":
            about(request, "thing 7")
        return JSONResponse({}, 202)

    async def _own(self, request: Request) -> Response:
        return JSONResponse({})

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        cli.add_command(things)


class CuriousAudit(Audit):
    """Wants to know of what changes nothing as well."""

    reads = True


class BrokenAudit(Audit):
    """Its disk is full."""

    def note(self, act: Act) -> None:
        raise OSError("No space left on device")


@click.group()
def things() -> None:
    """Things."""


@things.command()
@click.argument("name")
@click.pass_context
def drop(context: click.Context, name: str) -> None:
    """Drop a thing."""
    with noted(context, name):
        if name == "missing":
            raise click.ClickException("There is no such thing.")
        if name == "wrong":
            raise HeadraceError("wrong")
        if name == "half":
            context.exit(3)
        if name == "new":
            about(context, "thing 7")


@pytest.fixture(autouse=True)
def acts() -> Iterator[list[Act]]:
    Audit.acts.clear()
    yield Audit.acts
    Audit.acts.clear()


@contextlib.asynccontextmanager
async def admin(plugin: type[Audit] = Audit, role: str = "admin") -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {role}"} if role else {}
    async with (
        serve({}, {"audit": plugin}) as running,
        httpx.AsyncClient(base_url=running.url, headers=headers, trust_env=False, timeout=30) as client,
    ):
        yield client


# --- routes ---


async def test_an_act_says_who_did_what_from_where_and_how_it_ended(acts: list[Act]) -> None:
    async with admin() as client:
        await client.post("/admin/things/5?x=1", headers={"X-Request-ID": "my-id"})
    assert acts == [
        Act(
            action="POST /admin/things/{id}",
            about="/admin/things/5",
            by="api",
            id="id-admin",
            name="the admin",
            client="127.0.0.1",
            result="done",
            status=202,
            request_id="my-id",
        )
    ]


async def test_an_act_is_told_before_its_answer_is_out(acts: list[Act]) -> None:
    async with admin() as client:
        for count in range(1, 4):
            await client.delete("/admin/things/5")
            assert len(acts) == count


@pytest.mark.parametrize(
    ("path", "result", "status", "message"),
    [
        ("/admin/things/missing", "refused", 404, "There is no such thing."),
        ("/admin/things/broken", "failed", 500, "failed"),
    ],
)
async def test_what_was_not_done_is_told_with_the_reason(
    acts: list[Act], path: str, result: str, status: int, message: str
) -> None:
    async with admin() as client:
        assert (await client.post(path)).status_code == status
    (act,) = acts
    assert (act.result, act.status) == (result, status)
    assert message in act.message


async def test_a_caller_without_the_role_is_told_of_by_name(acts: list[Act]) -> None:
    async with admin(role="user") as client:
        assert (await client.post("/admin/things/5")).status_code == 403
    (act,) = acts
    assert (act.id, act.result, act.status) == ("id-user", "refused", 403)


async def test_callers_whom_nobody_knows_cannot_fill_the_audit_log(acts: list[Act]) -> None:
    async with admin(role="") as client:
        assert (await client.post("/admin/things/5")).status_code == 401
    assert acts == []


async def test_routes_that_need_no_admin_are_not_told_of(acts: list[Act]) -> None:
    async with admin() as client:
        assert (await client.post("/things")).status_code == 200
    assert acts == []


async def test_looking_is_told_only_to_an_auditor_that_wants_it(acts: list[Act]) -> None:
    async with admin() as client:
        await client.get("/admin/things/5")
    assert acts == []
    async with admin(CuriousAudit) as client:
        await client.get("/admin/things/5")
    assert [(act.action, act.changes) for act in acts] == [("GET /admin/things/{id}", False)]


async def test_a_handler_can_say_what_it_was_about(acts: list[Act]) -> None:
    async with admin() as client:
        await client.post("/admin/things/new")
    assert [act.about for act in acts] == ["thing 7"]


async def test_an_auditor_that_fails_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    async with admin(BrokenAudit) as client:
        assert (await client.post("/admin/things/5")).status_code == 202
    assert "the auditor BrokenAudit failed: OSError: No space left on device" in caplog.text


async def test_without_an_auditor_acts_are_messages_of_a_logger(caplog: pytest.LogCaptureFixture) -> None:
    class Nobody(Audit):
        def __init__(self, config: Any, gateway: Gateway) -> None: ...

    caplog.set_level(logging.INFO, "headrace.audit")
    async with admin(Nobody) as client:
        await client.post("/admin/things/5")
        await client.get("/admin/things/5")
    said = [each.getMessage() for each in caplog.records if each.name == "headrace.audit"]
    assert said == ["api, id-admin: POST /admin/things/{id} /admin/things/5: done "]


# --- commands ---


def headrace(*arguments: str, **environment: str | None) -> int:
    """Run a command with the plugin, and give its exit status."""
    gateway = Gateway(parse({"plugins": {"audit": {}}}), plugins={"audit": Audit})
    return CliRunner().invoke(main, ["--config", "x.toml", *arguments], obj=gateway, env=environment).exit_code


@pytest.mark.parametrize(
    ("name", "result", "status", "message", "what"),
    [
        ("five", "done", 0, "", "five"),
        ("new", "done", 0, "", "thing 7"),
        ("half", "failed", 3, "", "half"),
        ("missing", "failed", 1, "There is no such thing.", "missing"),
        ("wrong", "failed", 1, "wrong", "wrong"),
    ],
)
def test_a_command_is_told_of_with_how_it_ended(
    acts: list[Act], name: str, result: str, status: int, message: str, what: str
) -> None:
    assert headrace("things", "drop", name) == status
    (act,) = acts
    assert (act.action, act.about, act.by) == ("things drop", what, "command")
    assert (act.result, act.status, act.message) == (result, status, message)


def test_a_command_is_told_with_its_user_and_from_where(acts: list[Act]) -> None:
    headrace("things", "drop", "five", SUDO_USER="ada", SSH_CONNECTION="192.0.2.7 50000 192.0.2.1 22")
    headrace("things", "drop", "five", SUDO_USER=None, SSH_CONNECTION=None)
    assert [(act.name, act.client) for act in acts] == [("ada", "192.0.2.7"), ("", "local")]
    assert all(act.id for act in acts)


def test_a_command_whose_configuration_is_wrong_still_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[server]\nlisten = 5\n")
    done = CliRunner().invoke(main, ["--config", str(tmp_path / "x.toml"), "reload"])
    assert done.exit_code == 1
    assert "listen" in done.output


# --- reloads ---


async def test_a_reload_that_was_refused_is_told_with_the_reason(tmp_path: Path, acts: list[Act]) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(f'[server]\nanonymous = true\nlisten = "127.0.0.1:1"\nstate_dir = "{tmp_path}"\n')
    first = Gateway.from_file(path).assemble()
    Audit(None, first)
    tenures = Tenures(first, path, make_server(first).config)
    async with tenures.running():
        path.write_text("[server]\nlisten = 5\n")
        assert not (await tenures.reload()).ok
    (act,) = acts
    assert (act.action, act.about, act.by, act.result) == ("reload", str(path), "process", "refused")
    assert "listen" in act.message


async def test_a_reload_that_was_taken_over_is_told_with_the_digest_of_its_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headrace.audit")
    path = tmp_path / "headrace.toml"
    path.write_text(f'[server]\nanonymous = true\nlisten = "127.0.0.1:1"\nstate_dir = "{tmp_path}"\n')
    first = Gateway.from_file(path).assemble()
    tenures = Tenures(first, path, make_server(first).config)
    async with tenures.running():
        assert (await tenures.reload()).ok
    (said,) = [each.getMessage() for each in caplog.records if each.name == "headrace.audit"]
    assert said.endswith(f"reload {path}: done sha256 {digest(path)}")
