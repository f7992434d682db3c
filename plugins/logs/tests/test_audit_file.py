"""What administrators do, in a file."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from headrace import hookimpl
from headrace.audit import Act
from headrace.exchange import Principal, Role
from headrace.gateway import Gateway
from headrace.server import make_server
from headrace.settings import parse
from headrace.tenure import Tenures, digest
from headrace.testing import serve
from headrace_logs import LogsConfig
from headrace_logs.audit import REFUSALS_A_MINUTE, AuditFile
from headrace_logs.redaction import REDACTED

KEY = "hr-k3m9x2p7q4w8-Zt4Qm1Vx8Lr2Nw6Ys9Kb3Hd7Fc5Jg0Ap"


class Admin:
    """Routes for administrators, and callers whose key is their role."""

    def __init__(self, config: Any, gateway: Gateway) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Any) -> Principal | None:
        role = (exchange.header(b"authorization") or "").removeprefix("Bearer ")
        return Principal(id=f"id-{role}", name=f"{role}@example.org", role=cast(Role, role)) if role else None

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        gateway.add_route("/admin/things/{id}", self._answer, methods=("GET", "POST"), require="admin")

    async def _answer(self, request: Request) -> Response:
        return JSONResponse({}, 202)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@contextlib.asynccontextmanager
async def admin(folder: Path, role: str = "admin", **options: object) -> AsyncIterator[httpx.AsyncClient]:
    logs = {"audit_file": "audit.jsonl", "path": "gateway.log", **options}
    document = {"server": {"state_dir": str(folder)}, "plugins": {"logs": logs}}
    headers = {"Authorization": f"Bearer {role}"} if role else {}
    async with (
        serve(document, {"admin": Admin}) as running,
        httpx.AsyncClient(base_url=running.url, headers=headers, trust_env=False, timeout=30) as client,
    ):
        yield client


def audit_file(folder: Path) -> AuditFile:
    gateway = Gateway(parse({"server": {"state_dir": str(folder)}}))
    return AuditFile(LogsConfig(audit_file="audit.jsonl"), gateway)


def act(**more: Any) -> Act:
    given: dict[str, Any] = {"action": "reload", "by": "command", "id": "root", "result": "done", "status": 0, **more}
    return Act(**given)


async def test_an_act_is_one_line_that_is_there_before_the_answer(tmp_path: Path) -> None:
    async with admin(tmp_path) as client:
        await client.post("/admin/things/5", headers={"X-Request-ID": "my-id"})
        (line,) = lines(tmp_path / "audit.jsonl")
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "audit",
        "action": "POST /admin/things/{id}",
        "about": "/admin/things/5",
        "by": "api",
        "user.id": "id-admin",
        "user.name": "admin@example.org",
        "client.address": "127.0.0.1",
        "result": "done",
        "http.response.status_code": 202,
        "request_id": "my-id",
    }


async def test_a_caller_without_the_role_is_in_it_and_an_unknown_one_is_not(tmp_path: Path) -> None:
    async with admin(tmp_path, role="user") as client:
        await client.post("/admin/things/5")
        await client.post("/admin/things/5", headers={"Authorization": ""})
    (line,) = lines(tmp_path / "audit.jsonl")
    assert (line["user.id"], line["result"], line["http.response.status_code"]) == ("id-user", "refused", 403)
    assert "role" in line["error.message"]


@pytest.mark.parametrize("reads", [True, False])
async def test_looking_is_in_it_only_where_that_is_wanted(tmp_path: Path, reads: bool) -> None:
    async with admin(tmp_path, audit_reads=reads) as client:
        await client.get("/admin/things/5")
    assert len(lines(tmp_path / "audit.jsonl")) == reads


async def test_without_the_file_acts_are_messages_in_the_log(tmp_path: Path) -> None:
    async with admin(tmp_path, audit_file=None) as client:
        await client.post("/admin/things/5")
    said = [line["event"] for line in lines(tmp_path / "gateway.log") if line.get("logger") == "headrace.audit"]
    assert said == ["api, id-admin: POST /admin/things/{id} /admin/things/5: done "]


async def test_a_key_that_stands_in_a_path_does_not_show(tmp_path: Path) -> None:
    async with admin(tmp_path) as client:
        await client.post(f"/admin/things/{KEY}")
    assert lines(tmp_path / "audit.jsonl")[0]["about"] == f"/admin/things/{REDACTED}"


async def test_a_full_disk_fails_no_request_and_the_act_is_told_in_the_log(tmp_path: Path) -> None:
    async with admin(tmp_path) as client:
        (tmp_path / "audit.jsonl").unlink()
        (tmp_path / "audit.jsonl").symlink_to("/dev/full")
        assert (await client.post("/admin/things/5")).status_code == 202
    (said,) = [line["event"] for line in lines(tmp_path / "gateway.log") if "cannot be written" in line["event"]]
    assert "No space left" in said
    assert '"action":"POST /admin/things/{id}"' in said


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    audit_file(tmp_path).note(act())
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o600


def test_the_file_may_be_moved_away_between_two_acts(tmp_path: Path) -> None:
    audit, path = audit_file(tmp_path), tmp_path / "audit.jsonl"
    audit.note(act(about="first"))
    path.rename(tmp_path / "audit.jsonl.1")
    audit.note(act(about="second"))
    assert [each["about"] for each in lines(path)] == ["second"]


def test_half_a_line_is_ended_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"event":"au')
    audit_file(tmp_path).note(act())
    assert json.loads(path.read_text().splitlines()[1])["action"] == "reload"


def test_refusals_cannot_fill_the_disk_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    audit = audit_file(tmp_path)
    for _ in range(3 * REFUSALS_A_MINUTE):
        audit.note(act(result="refused"))
    audit.note(act())
    found = lines(tmp_path / "audit.jsonl")
    written = sum(each["result"] == "refused" for each in found)
    assert REFUSALS_A_MINUTE <= written <= 2 * REFUSALS_A_MINUTE  # the minute may have changed meanwhile
    assert sum(each.get("refusals_left_out", 0) for each in found) == 3 * REFUSALS_A_MINUTE - written
    assert found[-1]["result"] == "done"


def test_the_directory_s_owner_can_write_what_root_has_begun(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, 12345)
    audit_file(tmp_path).note(act())
    assert (tmp_path / "audit.jsonl").stat().st_uid == tmp_path.stat().st_uid


CONFIG = """
[server]
listen = "127.0.0.1:1"
anonymous = true
state_dir = "{folder}"
[plugins.logs]
path = "gateway.log"
audit_file = "audit.jsonl"
"""


def test_a_command_writes_to_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(CONFIG.format(folder=tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "headrace", "--config", str(path), "reload"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SUDO_USER": "ada"},
    )
    assert done.returncode == 1
    (line,) = lines(tmp_path / "audit.jsonl")
    assert (line["action"], line["by"], line["user.name"]) == ("reload", "command", "ada")
    assert (line["result"], line["exit_status"], line["about"]) == ("failed", 1, str(path))
    assert "no gateway runs" in line["error.message"]


async def test_a_reload_is_in_it_whether_it_was_taken_over_or_not(tmp_path: Path) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(CONFIG.format(folder=tmp_path))
    gateway = Gateway.from_file(path).assemble()
    tenures = Tenures(gateway, path, make_server(gateway).config)
    async with tenures.running():
        assert (await tenures.reload()).ok
        text = digest(path)
        path.write_text(CONFIG.format(folder=tmp_path) + 'redact = ["("]\n')
        assert not (await tenures.reload()).ok
    taken, refused = lines(tmp_path / "audit.jsonl")
    assert (taken["by"], taken["result"], taken["detail"]) == ("process", "done", f"sha256 {text}")
    assert (refused["by"], refused["result"]) == ("process", "refused")
    assert "is not a regular expression" in refused["error.message"]


async def test_a_reload_whose_file_cannot_be_written_leaves_everything_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(CONFIG.format(folder=tmp_path))
    gateway = Gateway.from_file(path).assemble()
    tenures = Tenures(gateway, path, make_server(gateway).config)
    async with tenures.running():
        handlers = logging.getLogger("headrace").handlers[:]
        bad = CONFIG.format(folder=tmp_path) + 'bodies = true\nbodies_file = "gateway.log/bodies"\n'
        path.write_text(bad)
        assert not (await tenures.reload()).ok
        assert logging.getLogger("headrace").handlers == handlers
    assert "bodies_file: cannot write" in lines(tmp_path / "audit.jsonl")[0]["error.message"]
