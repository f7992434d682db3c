"""The lines of a running gateway: real requests through real sockets into a real file."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest

from headrace.dialects import OPENAI_ENDPOINTS
from headrace.errors import ConfigError, PluginError, RateLimited
from headrace.exchange import Exchange, Outcome, Principal
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace_logs.fields import level_of, request_line
from headrace_logs.redaction import REDACTED, Redactor

if TYPE_CHECKING:
    from plugins.logs.tests.conftest import Run

KEY = "sk-cccc1111CCCC2222dddd3333"


async def test_an_answered_request_is_one_line_with_every_field(run: Run) -> None:
    async with run() as gateway:
        reply = await gateway.chat("ok", headers={"X-Request-ID": "my-id"})
        assert reply.status_code == 200
    (line,) = gateway.requests()
    assert datetime.datetime.fromisoformat(line.pop("timestamp")).tzinfo == datetime.UTC
    assert 0 < line.pop("gen_ai.response.time_to_first_chunk") <= line.pop("duration_seconds") < 60
    assert line == {
        "level": "info",
        "event": "request",
        "request_id": "my-id",
        "http.request.method": "POST",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
        "completed": True,
        "aborted": False,
        "client.address": "127.0.0.1",
        "user.id": "anonymous",
        "user.name": "anonymous",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "ok",
        "gen_ai.request.stream": False,
        "target": "behind",
        "gen_ai.provider.name": "openai",
        "attempts": 1,
        "delivery": "inline",
        "delivery_reason": line["delivery_reason"],
        "http.response.body.size": len(reply.content),
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 2,
    }


async def test_a_stream_is_logged_once_with_its_usage(run: Run) -> None:
    async with run() as gateway:
        reply = await gateway.chat("streams", stream=True)
        assert "[DONE]" in reply.text
    (line,) = gateway.requests()
    assert line["gen_ai.request.stream"] is True
    assert line["completed"] is True
    assert (line["gen_ai.usage.input_tokens"], line["gen_ai.usage.output_tokens"]) == (7, 2)


async def test_a_refused_request_is_a_warning_that_says_why(run: Run) -> None:
    async with run() as gateway:
        assert (await gateway.chat("unknown")).status_code == 404
    (line,) = gateway.requests()
    assert (line["level"], line["http.response.status_code"]) == ("warning", 404)
    assert (line["error.type"], line["error.code"]) == ("invalid_request_error", "model_not_found")
    assert "'unknown' does not exist" in line["error.message"]
    assert "target" not in line


async def test_a_request_that_is_not_json_is_logged_without_a_model(run: Run) -> None:
    async with run() as gateway:
        assert (await gateway.client.post("/v1/chat/completions", content=b"{")).status_code == 400
    (line,) = gateway.requests()
    assert line["error.code"] == "invalid_json"
    assert "gen_ai.request.model" not in line


async def test_the_backends_refusal_is_a_warning(run: Run) -> None:
    async with run() as gateway:
        assert (await gateway.chat("refuses")).status_code == 400
    (line,) = gateway.requests()
    assert (line["level"], line["http.response.status_code"]) == ("warning", 400)


async def test_a_failed_backend_is_an_error_without_the_backends_words(run: Run) -> None:
    async with run() as gateway:
        assert (await gateway.chat("fails")).status_code == 502
    (line,) = gateway.requests()
    assert (line["level"], line["http.response.status_code"], line["completed"]) == ("error", 502, False)
    assert "answered 500" in line["error.detail"]
    assert "error.evidence" not in line


async def test_with_bodies_a_failed_backends_words_are_logged_redacted(run: Run) -> None:
    async with run(bodies=True) as gateway:
        assert (await gateway.chat("fails")).status_code == 502
    (line,) = gateway.requests()
    assert REDACTED in line["error.evidence"]
    assert "aaaaAAAA" not in line["error.evidence"]
    assert "ada@" not in line["error.evidence"]


async def test_a_cut_stream_is_an_error_although_its_status_is_200(run: Run) -> None:
    async with run() as gateway:
        reply = await gateway.chat("cuts", stream=True)
        assert reply.status_code == 200
    (line,) = gateway.requests()
    assert (line["level"], line["http.response.status_code"], line["completed"]) == ("error", 200, False)
    assert line["error.code"] == "stream_truncated"


async def test_a_client_that_leaves_is_a_warning(run: Run) -> None:
    async with run() as gateway:
        body = {"model": "hangs", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        async with gateway.client.stream("POST", "/v1/chat/completions", json=body) as reply:
            await anext(reply.aiter_bytes())
        async with asyncio.timeout(20):
            await gateway.backend.left.wait()
    (line,) = gateway.requests()
    assert (line["level"], line["aborted"], line["completed"]) == ("warning", True, False)


async def test_a_key_shows_in_no_field_of_any_line(run: Run) -> None:
    async with run(level="debug") as gateway:
        headers = {"Authorization": f"Bearer {KEY}", "X-Request-ID": KEY, "User-Agent": KEY, "X-Api-Key": KEY}
        assert (await gateway.chat("ok", headers=headers, user=KEY)).status_code == 200
        assert (await gateway.chat(KEY, headers=headers)).status_code == 404
        logging.getLogger("headrace.test").error("plugin failed with %r", {"authorization": KEY})
        logging.getLogger("headrace.test").error("the key was %s", KEY)
    assert len(gateway.lines()) >= 4
    assert KEY[:10] not in gateway.path.read_text()


async def test_prompts_and_answers_are_not_logged_unless_asked_for(run: Run) -> None:
    async with run(level="debug") as gateway:
        await gateway.chat("ok")
        await gateway.chat("streams", stream=True)
        await gateway.chat("fails")
    text = gateway.path.read_text()
    assert "the prompt" not in text
    assert "Hello" not in text
    assert len(gateway.requests()) == 3


async def test_prompts_and_answers_are_logged_redacted_when_asked_for(run: Run) -> None:
    async with run(bodies=True) as gateway:
        await gateway.chat("ok", user="ada@example.org")
        await gateway.chat("streams", stream=True)
        await gateway.chat("unknown")
    whole, streamed, refused = gateway.requests()
    body = json.loads(whole["request_body"])
    assert (body["messages"][0]["content"], body["user"]) == ("the prompt", REDACTED)
    assert whole["response_text"] == "Hello!"
    assert streamed["response_text"] == "Hello!"
    assert "response_text" not in refused


async def test_hostile_names_stay_in_one_line(run: Run) -> None:
    hostile = 'x\n{"event":"request"}\r\x1b[2J\u2028\x00'
    async with run() as gateway:
        assert (await gateway.chat(hostile)).status_code == 404
    (line,) = gateway.requests()
    assert line["gen_ai.request.model"] == hostile
    assert all(each.isprintable() for each in gateway.path.read_text("utf-8").split("\n"))


async def test_messages_of_the_gateway_and_its_server_have_the_same_form(run: Run) -> None:
    async with run() as gateway:
        logging.getLogger("headrace.hooks").error("plugin %r failed for %s", "x", "ada@example.org")
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        try:
            raise ValueError("Bearer a1b2c3d4e5f6")
        except ValueError:
            logging.getLogger("headrace.pipeline").exception("request failed")
    mine = [line for line in gateway.lines() if line["level"] in ("warning", "error")]
    assert [(line["logger"], line["level"]) for line in mine] == [
        ("headrace.hooks", "error"),
        ("uvicorn.error", "warning"),
        ("headrace.pipeline", "error"),
    ]
    assert mine[0]["event"] == f"plugin 'x' failed for {REDACTED}"
    assert "Traceback" in mine[2]["exception"]
    assert "a1b2c3" not in mine[2]["exception"]


async def test_lines_below_the_level_are_not_written(run: Run) -> None:
    async with run(level="error") as gateway:
        await gateway.chat("ok")
        await gateway.chat("unknown")
        await gateway.chat("fails")
        logging.getLogger("headrace.test").warning("not this")
    assert [line["level"] for line in gateway.requests()] == ["error"]
    assert "not this" not in gateway.path.read_text()


async def test_the_file_may_be_rotated_while_the_gateway_runs(run: Run) -> None:
    async with run() as gateway:
        await gateway.chat("ok")
        await until(lambda: gateway.path.exists() and gateway.requests())
        gateway.path.rename(gateway.path.with_suffix(".1"))
        await gateway.chat("streams", stream=True)
    assert [line["gen_ai.request.model"] for line in gateway.requests()] == ["streams"]
    assert '"ok"' in gateway.path.with_suffix(".1").read_text()


async def test_a_full_disk_does_not_break_replies_and_is_said_once(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    async with run(path="/dev/full") as gateway:
        for _ in range(3):
            assert (await gateway.chat("ok")).status_code == 200
            await asyncio.sleep(0.05)  # so that the lines are not all in one write
    said = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(each["level"], each["file"]) for each in said] == [("warning", "/dev/full")]
    assert "No space left" in said[0]["reason"]


async def test_without_a_file_lines_go_to_standard_error(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    async with run(path=None) as gateway:
        await gateway.chat("ok")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["gen_ai.request.model"] for line in lines if line["event"] == "request"] == ["ok"]


PROGRAM = """
import asyncio, socket, sys
from pathlib import Path
from headrace.gateway import Gateway
from headrace.server import serve

listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
asyncio.run(serve(Gateway.from_file(Path(sys.argv[1])).assemble(), [listener]))
"""


async def test_no_line_is_lost_when_the_process_is_told_to_stop(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(f'[server]\nanonymous = true\nstate_dir = "{tmp_path}/state"\n[plugins.logs]\n')
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, str(config), stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    try:
        port = int(await asyncio.wait_for(process.stdout.readline(), 60))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            for _ in range(200):
                await client.post("/v1/chat/completions", json={"model": "x", "messages": [{"role": "user"}]})
        process.terminate()
        _, said = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = [json.loads(line) for line in said.decode().splitlines() if line.startswith("{")]
    assert len([line for line in lines if line["event"] == "request"]) == 200


async def test_console_lines_are_for_people(run: Run) -> None:
    async with run(format="console") as gateway:
        await gateway.chat("ok")
        await gateway.chat("x\x1b[31m\ny")
    first, second = [line for line in gateway.path.read_text().splitlines() if "request_id" in line]
    assert "http.response.status_code=200" in first
    assert "\x1b" not in second
    assert "\\x1b[31m\\ny" in second


def exchange(**principal: Any) -> Exchange:
    endpoint = OPENAI_ENDPOINTS["/v1/completions"]
    scope: dict[str, Any] = {"headers": [], "method": "POST", "path": endpoint.path, "client": ("10.0.0.1", 5)}
    made = Exchange(id="a" * 32, endpoint=endpoint, scope=scope, body=b'{"model":"m","prompt":"p"}')
    made.peek = endpoint.read(made.body)
    made.principal = Principal(**principal) if principal else None
    return made


def fields_of(made: Exchange, outcome: Outcome) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(request_line(made, outcome, Redactor(), "now", "info"))
    return fields


def test_the_principal_is_named_as_the_operator_named_it() -> None:
    made = exchange(id="k3m9x2p7", name="ada@example.org", team="maths")
    fields = fields_of(made, Outcome(status=200, completed=True))
    assert (fields["user.id"], fields["user.name"], fields["team"]) == ("k3m9x2p7", "ada@example.org", "maths")
    assert fields["gen_ai.operation.name"] == "text_completion"


def test_fields_that_do_not_apply_are_left_out() -> None:
    fields = fields_of(exchange(), Outcome(status=401, completed=False))
    assert None not in fields.values()
    assert not [name for name in fields if name.startswith(("user.", "error.", "gen_ai.usage"))]


def test_an_answer_from_a_cache_says_so() -> None:
    assert fields_of(exchange(), Outcome(status=200, completed=True, source="cache"))["source"] == "cache"
    assert "source" not in fields_of(exchange(), Outcome(status=200, completed=True))


def test_a_long_detail_is_cut() -> None:
    error = RateLimited("m", detail="x" * 100_000)
    fields = fields_of(exchange(), Outcome(status=429, completed=False, error=error))
    assert len(fields["error.detail"]) < 2100


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        (Outcome(status=200, completed=True), "INFO"),
        (Outcome(status=302, completed=True), "INFO"),
        (Outcome(status=400, completed=True), "WARNING"),
        (Outcome(status=429, completed=False), "WARNING"),
        (Outcome(status=200, completed=False, aborted=True), "WARNING"),
        (Outcome(status=499, completed=False, aborted=True), "WARNING"),
        (Outcome(status=200, completed=False), "ERROR"),
        (Outcome(status=502, completed=False), "ERROR"),
    ],
)
def test_the_level_follows_from_the_outcome(outcome: Outcome, level: str) -> None:
    assert logging.getLevelName(level_of(outcome)) == level


def configured(tmp_path: Path, **options: object) -> Gateway:
    return Gateway(parse({"server": {"state_dir": str(tmp_path)}, "plugins": {"logs": options}})).assemble()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"redact": ["("]}, "'(' is not a regular expression"),
        ({"redact": ["a", "x*"]}, "'x*' matches the empty text"),
        ({"path": " "}, "path: is empty"),
        ({"format": "xml"}, "format"),
        ({"level": "loud"}, "level"),
        ({"buffer_bytes": 5}, "buffer_bytes"),
        ({"colour": True}, "colour"),
    ],
)
def test_a_wrong_option_is_explained_at_the_start(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        configured(tmp_path, **options)
    assert words in str(raised.value)


async def test_a_file_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    gateway = configured(tmp_path, path="file/gateway.log")
    with pytest.raises(PluginError, match=r"cannot write .*gateway\.log"):
        async with gateway.running():
            pytest.fail("it started")


def test_the_plugin_is_made_without_touching_the_disk(tmp_path: Path) -> None:
    configured(tmp_path / "state", path="gateway.log")
    assert not list(tmp_path.iterdir())


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.01)
