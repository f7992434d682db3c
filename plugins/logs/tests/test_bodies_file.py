"""`bodies_file`: what was asked and answered, beside the lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from headrace_logs.redaction import REDACTED

if TYPE_CHECKING:
    from plugins.logs.tests.conftest import Run, Running


def bodies(gateway: Running, name: str = "bodies.jsonl") -> list[dict[str, Any]]:
    text = (gateway.path.parent / name).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


async def test_bodies_go_to_their_file_and_not_into_the_line(run: Run) -> None:
    async with run(bodies=True, bodies_file="bodies.jsonl") as gateway:
        await gateway.chat("streams", stream=True, user="ada@example.org", headers={"X-Request-ID": "my-id"})
    (line,) = gateway.requests()
    assert not {"request_body", "response_text"} & set(line)
    (found,) = bodies(gateway)
    body = json.loads(found.pop("request_body"))
    assert (body["messages"][0]["content"], body["user"]) == ("the prompt", REDACTED)
    assert found == {
        "timestamp": line["timestamp"],
        "event": "bodies",
        "request_id": "my-id",
        "user.id": "anonymous",
        "gen_ai.request.model": "streams",
        "http.response.status_code": 200,
        "response_text": "Hello!",
    }


async def test_what_a_failed_backend_said_is_there_too(run: Run) -> None:
    async with run(bodies=True, bodies_file="bodies.jsonl") as gateway:
        await gateway.chat("fails")
    (found,) = bodies(gateway)
    assert REDACTED in found["error.evidence"]
    assert "error.evidence" not in gateway.requests()[0]


async def test_nothing_is_stored_by_default(run: Run) -> None:
    async with run() as gateway:
        await gateway.chat("ok")
    assert [each.name for each in gateway.path.parent.iterdir() if each.is_file()] == ["gateway.log"]


async def test_only_requests_are_kept_where_that_is_wanted_and_the_core_need_not_deliver(run: Run) -> None:
    async with run(bodies=True, bodies_file="bodies.jsonl", bodies_of="requests") as gateway:
        await gateway.chat("ok")
    (found,) = bodies(gateway)
    assert "request_body" in found
    assert "response_text" not in found
    assert "watches" not in gateway.requests()[0]["delivery_reason"]


async def test_only_the_chosen_models_are_kept(run: Run) -> None:
    async with run(bodies=True, bodies_file="bodies.jsonl", bodies_models=["ok"]) as gateway:
        for model in ("ok", "streams", "unknown"):
            await gateway.chat(model)
    assert [each["gen_ai.request.model"] for each in bodies(gateway)] == ["ok"]
    assert len(gateway.requests()) == 3


async def test_a_model_that_nobody_knows_is_mentioned(run: Run) -> None:
    async with run(bodies=True, bodies_models=["ok", "okay"]) as gateway:
        pass
    (said,) = [line["event"] for line in gateway.lines() if "bodies_models" in line["event"]]
    assert "no model is called 'okay'" in said


@pytest.mark.parametrize(("user", "count"), [("anonymous", 1), ("somebody else", 0)])
async def test_only_the_chosen_callers_are_kept(run: Run, user: str, count: int) -> None:
    async with run(bodies=True, bodies_file="bodies.jsonl", bodies_users=[user]) as gateway:
        await gateway.chat("ok")
    assert len(bodies(gateway)) == count


async def test_the_chosen_models_hold_for_bodies_in_lines_as_well(run: Run) -> None:
    async with run(bodies=True, bodies_models=["ok"]) as gateway:
        await gateway.chat("ok")
        await gateway.chat("streams", stream=True)
    assert ["request_body" in line for line in gateway.requests()] == [True, False]


async def test_a_request_whose_line_is_not_written_leaves_no_bodies(run: Run) -> None:
    async with run(bodies=True, bodies_file="bodies.jsonl", sample=0.0) as gateway:
        await gateway.chat("ok")
        await gateway.chat("unknown")
    assert [each["gen_ai.request.model"] for each in bodies(gateway)] == ["unknown"]


async def test_no_more_of_a_body_is_kept_than_wanted_and_no_more_of_the_file(run: Run) -> None:
    options = {"bodies": True, "bodies_file": "bodies.jsonl", "max_body_bytes": 1000, "bodies_files": 2}
    async with run(**options, bodies_file_bytes=131_072) as gateway:
        for _ in range(50):
            await gateway.chat("ok", long=["\u2028" * 900] * 3)
    sizes = [each.stat().st_size for each in gateway.path.parent.glob("bodies.jsonl*")]
    assert len(sizes) == 2
    assert max(sizes) <= 131_072
    assert max(len(each["request_body"]) for each in bodies(gateway)) <= 1001


async def test_a_full_disk_fails_no_request_and_is_said_in_the_log_once(run: Run) -> None:
    async with run(bodies=True, bodies_file="bodies.jsonl", buffer_bytes=65_536) as gateway:
        path = gateway.path.parent / "bodies.jsonl"
        path.unlink()
        path.mkdir()  # as good as a full disk: it cannot be written
        for _ in range(3):
            assert (await gateway.chat("ok")).status_code == 200
    said = [line for line in gateway.lines() if line.get("file") == str(path)]
    assert [(each["level"], each["logger"]) for each in said] == [("warning", "headrace.logs")]
    assert len(gateway.requests()) == 3
