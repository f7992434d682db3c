"""The hooks of a request: what each is given and when, what None means, and what becomes of an error."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest

from headrace import hookimpl
from headrace.errors import Forbidden, GatewayError, RateLimited, Unauthenticated, Unavailable
from headrace.exchange import Principal, Reply, Usage
from headrace.gateway import Gateway
from headrace.registry import PER_REQUEST, specifications
from headrace.testing import COMPLETION, DONE, FakeBackend, serve

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
SECRET = "disk sda1 is full"
EACH_REQUEST = ["authenticate", "authorize", "transform_request", "prepare_attempt", "transform_reply"]
NOWHERE = {"provider": "openai", "base_url": "http://127.0.0.1:9"}


def plugin(**hooks: Callable[..., Any]) -> type[Any]:
    """A plugin class with these functions as its hooks."""

    def init(self: Any, config: Any, gateway: Gateway) -> None:
        pass

    return type("Plugin", (), {"__init__": init, **{name: staticmethod(hookimpl(f)) for name, f in hooks.items()}})


@contextlib.asynccontextmanager
async def running(*plugins: type[Any], **tables: Any) -> AsyncIterator[SimpleNamespace]:
    """A running gateway with these plugins as p0, p1, … in front of one backend."""
    named = {f"p{number}": each for number, each in enumerate(plugins)}
    async with (
        FakeBackend() as backend,
        serve(backend.config(**tables), named) as gateway,
        httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as client,
    ):

        async def chat(body: Any = CHAT, **headers: str) -> httpx.Response:
            return await client.post("/v1/chat/completions", json=body, headers=headers)

        yield SimpleNamespace(backend=backend, client=client, chat=chat)


def failing(error: Exception) -> Callable[..., Any]:
    async def hook() -> None:
        raise error

    return hook


def answering(value: Any = None, calls: list[str] | None = None, name: str = "") -> Callable[..., Any]:
    async def hook() -> Any:
        if calls is not None:
            calls.append(name)
        return value

    return hook


def giving(value: Any) -> Callable[[], Any]:
    return lambda: value


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_every_hook_has_a_test_of_its_own() -> None:
    sources = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    tested = re.findall(r"^(?:async )?def (test_hook_\w+)", sources, re.MULTILINE)
    untested = [hook for hook in specifications() if not any(name.startswith(f"test_hook_{hook}_") for name in tested)]
    assert untested == []


async def test_hook_authenticate_takes_the_first_answer_before_the_body_is_read() -> None:
    seen: list[Any] = []

    async def authenticate(exchange: Any) -> Principal:
        seen.extend((exchange.body, exchange.peek, exchange.header(b"authorization")))
        return Principal(id="alice")

    async def authorize(exchange: Any) -> None:
        seen.append(exchange.principal.id)

    third = plugin(authenticate=answering(Principal(id="mallory"), seen, "asked again"))
    plugins = (plugin(authenticate=answering()), plugin(authenticate=authenticate, authorize=authorize), third)
    async with running(*plugins, server={"anonymous": False}) as gateway:
        assert (await gateway.chat(authorization="Bearer k")).status_code == 200
    assert seen == [b"", None, "Bearer k", "alice"]


async def test_hook_authenticate_that_knows_nobody_leaves_the_request_refused() -> None:
    async with running(plugin(authenticate=answering()), server={"anonymous": False}) as gateway:
        refused = await gateway.chat()
        assert (refused.status_code, error_of(refused)["code"]) == (401, "invalid_api_key")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert gateway.backend.requests == []


@pytest.mark.parametrize("hook", [*EACH_REQUEST, "cache_lookup"])
async def test_a_gateway_error_of_a_request_hook_is_the_answer(hook: str) -> None:
    async with running(plugin(**{hook: failing(Forbidden("not on Sundays", headers={"X-Day": "0"}))})) as gateway:
        refused = await gateway.chat()
    assert (refused.status_code, refused.headers["x-day"]) == (403, "0")
    assert (error_of(refused)["message"], error_of(refused)["code"]) == ("not on Sundays", "forbidden")


@pytest.mark.parametrize("hook", EACH_REQUEST)
async def test_a_failing_request_hook_is_a_500_whose_reason_only_the_log_has(
    hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(plugin(**{hook: failing(OSError(SECRET))})) as gateway:
        response = await gateway.chat(**{"x-request-id": "req-7"})
    assert (response.status_code, error_of(response)["code"]) == (500, "internal_error")
    assert SECRET not in response.text
    assert f"request req-7 failed: plugin 'p0', hook '{hook}': OSError: {SECRET}" in caplog.text
    assert "Traceback" not in caplog.text


async def test_hook_authorize_asks_every_plugin_until_one_refuses() -> None:
    calls: list[str] = []
    plugins = [plugin(authorize=answering(None, calls, "a")), plugin(authorize=failing(Forbidden("no")))]
    async with running(*plugins, plugin(authorize=answering(None, calls, "c"))) as gateway:
        assert (await gateway.chat()).status_code == 403
        assert gateway.backend.requests == []
    assert calls == ["a"]


async def test_hook_transform_request_changes_what_the_backend_gets() -> None:
    async def transform(exchange: Any) -> None:
        exchange.replace_fields(temperature=0, user=None)

    async with running(plugin(transform_request=transform)) as gateway:
        await gateway.chat({**CHAT, "user": "u", "seed": 1})
        assert msgspec.json.decode(gateway.backend.requests[0][2]) == {
            **CHAT, "model": "fake-model", "seed": 1, "temperature": 0
        }  # fmt: skip


def holding(seen: list[str], name: str, error: Exception | None = None) -> type[Any]:
    @contextlib.asynccontextmanager
    async def admit() -> AsyncIterator[None]:
        if error:
            raise error
        seen.append(f"{name} in")
        try:
            yield
        finally:
            seen.append(f"{name} out")

    return plugin(admit=admit)


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_hook_admit_holds_in_order_and_lets_go_in_reverse_however_it_ends(status: int) -> None:
    seen: list[str] = []
    async with running(holding(seen, "a"), plugin(admit=lambda exchange: None), holding(seen, "b")) as gateway:
        gateway.backend.status = status
        await gateway.chat()
    assert seen == ["a in", "b in", "b out", "a out"]


@pytest.mark.parametrize(
    ("error", "status"), [(RateLimited("full"), 429), (Unavailable("x"), 503), (OSError(SECRET), 500)]
)
async def test_hook_admit_that_raises_refuses_and_lets_go_of_what_was_held(error: Exception, status: int) -> None:
    seen: list[str] = []
    async with running(holding(seen, "a"), holding(seen, "b", error), holding(seen, "c")) as gateway:
        refused = await gateway.chat()
        assert (refused.status_code, gateway.backend.requests) == (status, [])
    assert SECRET not in refused.text
    assert seen == ["a in", "a out"]


# --- Per request: around the backend ---


async def test_hook_cache_lookup_answers_without_a_backend_and_none_is_a_miss() -> None:
    calls: list[str] = []

    cached = Reply(200, [(b"content-type", b"application/json")], content=b'{"cached":true}', source="cache")
    plugins = [plugin(cache_lookup=answering(None, calls, "a")), plugin(cache_lookup=answering(cached))]
    async with running(*plugins, plugin(cache_lookup=answering(None, calls, "c"))) as gateway:
        assert (await gateway.chat()).json() == {"cached": True}
        assert gateway.backend.requests == []
    assert calls == ["a"]


async def test_hook_cache_lookup_that_fails_is_a_miss_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with running(plugin(cache_lookup=failing(OSError(SECRET)))) as gateway:
        assert (await gateway.chat()).content == COMPLETION
    assert "plugin 'p0' failed in hook 'cache_lookup'" in caplog.text


async def test_hook_prepare_attempt_changes_what_one_try_sends() -> None:
    async def prepare(attempt: Any) -> None:
        attempt.request.headers["x-try"] = f"{attempt.number} {attempt.target.name}"

    async with running(plugin(prepare_attempt=prepare)) as gateway:
        await gateway.chat()
        assert gateway.backend.requests[0][1]["x-try"] == "1 fake"


async def test_hook_prepare_attempt_that_fails_moves_on_to_the_next_target() -> None:
    async def prepare(attempt: Any) -> None:
        if attempt.number == 1:
            raise OSError(SECRET)

    two = [NOWHERE, "fake"]
    async with running(plugin(prepare_attempt=prepare), models={"test": {"targets": two}}) as gateway:
        assert (await gateway.chat()).status_code == 200


@pytest.mark.parametrize("hook", sorted(PER_REQUEST))
async def test_who_counts_faults_hears_of_each_once(hook: str) -> None:
    faults: list[tuple[str, str]] = []

    class Counting:
        def __init__(self, config: Any, gateway: Gateway) -> None:
            gateway.on_fault = lambda plugin, hook: faults.append((plugin, hook))

    def fails() -> None:
        raise OSError(SECRET)

    fault = failing(OSError(SECRET)) if specifications()[hook].is_async else fails
    hooks = {hook: fault} if hook != "handle_error" else {hook: fault, "authorize": failing(Forbidden("no"))}
    models = {"test": {"targets": [{**NOWHERE}, "fake"]}} if hook == "arrange" else {}
    async with running(Counting, plugin(**hooks), **({"models": models} if models else {})) as gateway:
        await gateway.chat(STREAM if hook == "wrap_stream" else CHAT)
    assert faults == [("p1", hook)]


async def test_who_counts_faults_does_not_hear_of_refusals() -> None:
    faults: list[tuple[str, str]] = []

    class Counting:
        def __init__(self, config: Any, gateway: Gateway) -> None:
            gateway.on_fault = lambda plugin, hook: faults.append((plugin, hook))

    async with running(Counting, plugin(authorize=failing(Forbidden("no")))) as gateway:
        assert (await gateway.chat()).status_code == 403
    assert faults == []


async def test_usage_that_is_wanted_of_all_requests_is_wanted_of_each() -> None:
    seen: list[bool] = []

    class Wanting:
        def __init__(self, config: Any, gateway: Gateway) -> None:
            gateway.usage_wanted = True

    async def authorize(exchange: Any) -> None:
        seen.append(exchange.wants_usage)

    async with running(Wanting, plugin(authorize=authorize)) as gateway:
        await gateway.chat()
    assert seen == [True]


async def test_hook_on_attempt_hears_of_every_try_once() -> None:
    heard: list[Any] = []

    async def on_attempt(attempt: Any, outcome: Any) -> None:
        code = outcome.error.code if outcome.error else None
        heard.append((attempt.number, outcome.target, outcome.status, outcome.completed, code))

    two = [NOWHERE, "fake"]
    async with running(plugin(on_attempt=on_attempt), models={"test": {"targets": two}}) as gateway:
        await gateway.chat()
    assert heard == [(1, "test-0", 503, False, "unavailable"), (2, "fake", 200, True, None)]


@pytest.mark.parametrize("body", [CHAT, STREAM])
@pytest.mark.parametrize("hook", ["on_attempt", "on_complete", "open_tap"])
async def test_a_failing_watcher_never_breaks_a_reply_nor_silences_the_next(
    hook: str, body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def fail() -> None:
        raise OSError(SECRET)

    def listen() -> None:
        calls.append("next")

    sync = hook == "open_tap"
    first, second = (fail, listen) if sync else (failing(OSError(SECRET)), answering(None, calls, "next"))
    async with running(plugin(**{hook: first}), plugin(**{hook: second})) as gateway:
        response = await gateway.chat(body)
    assert (response.status_code, calls) == (200, ["next"])
    assert response.content.endswith(DONE if body is STREAM else COMPLETION)
    assert f"plugin 'p0' failed in hook '{hook}'" in caplog.text
    assert SECRET in caplog.text


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_hook_transform_reply_changes_status_and_headers_before_they_go_out(body: Any) -> None:
    async def transform(exchange: Any, reply: Reply) -> None:
        reply.status = 201
        reply.headers.append((b"x-source", reply.source.encode()))
        exchange.response_headers.append((b"x-model", exchange.model.name.encode()))

    async with running(plugin(transform_reply=transform)) as gateway:
        response = await gateway.chat(body)
    assert (response.status_code, response.headers["x-source"], response.headers["x-model"]) == (
        201,
        "upstream",
        "test",
    )


def replacing(old: bytes, new: bytes) -> type[Any]:
    def wrap(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async def wrapped() -> AsyncIterator[bytes]:
            async for chunk in stream:
                yield chunk.replace(old, new)

        return wrapped()

    return plugin(wrap_stream=wrap)


async def test_hook_wrap_stream_chains_the_plugins_and_none_leaves_the_stream_alone() -> None:
    plugins = (replacing(b"t1", b"u1"), plugin(wrap_stream=lambda exchange: None), replacing(b"u1", b"v1"))
    async with running(*plugins) as gateway:
        streamed, whole = await gateway.chat(STREAM), await gateway.chat()
    assert b'"content":"v1 "' in streamed.content
    assert streamed.content.endswith(DONE)
    assert whole.content == COMPLETION


@pytest.mark.parametrize(("error", "status"), [(OSError(SECRET), 500), (Forbidden("no"), 403)])
async def test_hook_wrap_stream_that_fails_is_an_error_answer(error: Exception, status: int) -> None:
    def wrap() -> None:
        raise error

    async with running(plugin(wrap_stream=wrap)) as gateway:
        gateway.backend.pause = 0.05
        response = await gateway.chat(STREAM)
        assert response.status_code == status
        assert SECRET not in response.text
        await asyncio.wait_for(gateway.backend.closed_early.wait(), 5)


async def test_hook_wrap_stream_that_fails_midway_ends_the_stream_with_an_error_event() -> None:
    def wrap(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async def wrapped() -> AsyncIterator[bytes]:
            yield await anext(stream)
            raise OSError(SECRET)

        return wrapped()

    async with running(plugin(wrap_stream=wrap)) as gateway:
        response = await gateway.chat(STREAM)
    assert response.content.splitlines()[-2].startswith(b'data: {"error":')
    assert DONE not in response.content
    assert SECRET not in response.text


class Tap:
    def __init__(self, wants: Any, fail_at: int = -1) -> None:
        self.wants = wants
        self.items: list[Any] = []
        self.closed: list[bool] = []
        self._fail_at = fail_at

    def feed(self, item: Any) -> None:
        if len(self.items) == self._fail_at:
            raise OSError(SECRET)
        self.items.append(item)

    def close(self, completed: bool) -> None:
        self.closed.append(completed)


async def test_hook_open_tap_shows_the_reply_as_bytes_events_or_usage() -> None:
    taps = [Tap("bytes"), Tap("events"), Tap("usage")]
    async with running(*(plugin(open_tap=giving(it)) for it in taps), plugin(open_tap=lambda exchange: None)) as it:
        response = await it.chat({**STREAM, "stream_options": {"include_usage": True}})
    assert b"".join(taps[0].items) == response.content
    assert b"".join(b"data: " + event.data + b"\n\n" for event in taps[1].items) == response.content
    assert taps[2].items == [Usage(5, 3)]
    assert [tap.closed for tap in taps] == [[True]] * 3


async def test_hook_open_tap_shows_a_whole_reply_as_one_event() -> None:
    tap = Tap("events")
    async with running(plugin(open_tap=lambda: tap)) as gateway:
        await gateway.chat()
    assert [event.data for event in tap.items] == [COMPLETION]


async def test_hook_open_tap_that_raises_later_is_detached_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    broken, well = Tap("events", fail_at=1), Tap("events")
    async with running(plugin(open_tap=lambda: broken), plugin(open_tap=lambda: well)) as gateway:
        response = await gateway.chat(STREAM)
    assert response.content.endswith(DONE)
    assert (len(broken.items), len(well.items)) == (1, 5)
    assert (broken.closed, well.closed) == ([], [True])
    assert caplog.text.count("plugin 'p0' failed in hook 'open_tap'") == 1


async def test_hook_handle_error_replaces_the_error_and_none_keeps_it() -> None:
    async def handle(error: GatewayError) -> GatewayError | None:
        return Unauthenticated("who?") if error.status == 400 else None

    async with running(plugin(handle_error=answering()), plugin(handle_error=handle)) as gateway:
        replaced, kept = await gateway.chat({}), await gateway.chat({**CHAT, "model": "x"})
    assert (replaced.status_code, error_of(replaced)["message"]) == (401, "who?")
    assert kept.status_code == 404


async def test_hook_on_complete_is_told_once_when_the_last_byte_is_out() -> None:
    seen: list[Any] = []

    async def on_complete(exchange: Any, outcome: Any) -> None:
        seen.append((exchange.completed, outcome.status, outcome.completed, outcome.aborted, outcome.attempts))

    async with running(plugin(on_complete=on_complete)) as gateway:
        await gateway.chat(STREAM)
        await gateway.chat({})
    assert seen == [(True, 200, True, False, 1), (False, 400, False, False, 0)]


@pytest.mark.parametrize(("error", "status"), [(Forbidden("no"), 403), (OSError(SECRET), 400)])
async def test_hook_handle_error_that_raises_answers_with_a_gateway_error_and_else_keeps_the_original(
    error: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(plugin(handle_error=failing(error))) as gateway:
        assert (await gateway.chat({})).status_code == status
    assert ("plugin 'p0' failed in hook 'handle_error'" in caplog.text) == (status == 400)
