"""Which delivery is chosen and why: every reason there is, in the words that stand in the log."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest

from headrace import hookimpl
from headrace.choice import HANDOVERS
from headrace.dialects import OPENAI, ChatPeek, Endpoint
from headrace.exchange import Attempt, Exchange, Reply
from headrace.openai_api import OpenAIBackend
from headrace.testing import FakeBackend

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
PLAIN = {**CHAT, "model": "fake-model"}
TAKEN = "nothing needs the reply's bytes"

Fronted = Callable[..., Any]


def document(backend: FakeBackend, **fake: Any) -> dict[str, Any]:
    """The model `test`, also called `fake-model`, at a backend that calls it so; `fake` is added to its table."""
    table = {"provider": "openai", "base_url": backend.url, "model": "fake-model", **fake}
    return backend.config(backends={"fake": table}, models={"test": {"targets": ["fake"], "aliases": ["fake-model"]}})


@contextlib.asynccontextmanager
async def deciding(
    fronted: Fronted, recorder: Any, backend: FakeBackend, plugin: type[Any] | None = None, **changes: Any
) -> AsyncIterator[SimpleNamespace]:
    """`decide(body)` is the (delivery, reason) of one request; one that is handed over ends at once."""
    plugins = {"recorder": recorder, **({"other": plugin} if plugin else {})}
    async with fronted(changes.pop("document", None) or document(backend), plugins, **changes) as nginx:

        async def decide(body: Any = CHAT, **asked: Any) -> tuple[str, str]:
            response = await nginx.ask(body, **asked)
            if "x-accel-redirect" in response.headers:
                await nginx.report()
            outcome = await recorder.outcome()
            return outcome.delivery, outcome.delivery_reason

        yield SimpleNamespace(decide=decide, nginx=nginx)


def plugin(**methods: Any) -> type[Any]:
    """A plugin with these hooks."""
    return type("Plugin", (), {"__init__": lambda *_: None, **{name: hookimpl(f) for name, f in methods.items()}})


def preparing(change: Callable[[Attempt], Any]) -> type[Any]:
    async def prepare_attempt(self: Any, attempt: Attempt) -> None:
        change(attempt)

    return plugin(prepare_attempt=prepare_attempt)


def transforming(change: Callable[[Exchange], None]) -> type[Any]:
    async def transform_request(self: Any, exchange: Exchange) -> None:
        change(exchange)

    return plugin(transform_request=transform_request)


def tapping(wants: str) -> type[Any]:
    def open_tap(self: Any, exchange: Exchange) -> Any:
        return SimpleNamespace(wants=wants, feed=lambda item: None, close=lambda completed: None)

    return plugin(open_tap=open_tap)


async def transform_reply(self: Any, exchange: Exchange, reply: Reply) -> None: ...


def wrap_stream(self: Any, exchange: Exchange, stream: AsyncIterator[bytes]) -> None: ...


def set_header(name: str, value: str) -> type[Any]:
    return preparing(lambda attempt: attempt.request.headers.update({name: value}))  # type: ignore[union-attr]


def unset_header(name: str) -> type[Any]:
    return preparing(lambda attempt: attempt.request.headers.pop(name))  # type: ignore[union-attr]


def answering(name: bytes, value: bytes) -> type[Any]:
    return transforming(lambda exchange: exchange.response_headers.append((name, value)))


def another_body(attempt: Attempt) -> None:
    assert attempt.request is not None
    attempt.request.body = b"%s " % attempt.request.body


def another_method(attempt: Attempt) -> None:
    assert attempt.request is not None
    attempt.request.method = "PUT"


def another_address(attempt: Attempt) -> None:
    assert attempt.request is not None
    attempt.request.url = attempt.request.url.replace("127.0.0.1", "localhost")


def an_inline_reason(exchange: Exchange) -> None:
    exchange.inline_reason = "its words are checked"


REASONS: dict[str, tuple[type[Any], str]] = {
    "a hook on replies": (
        plugin(transform_reply=transform_reply),
        "the plugin 'other' changes replies (transform_reply)",
    ),
    "a hook on streams": (plugin(wrap_stream=wrap_stream), "the plugin 'other' changes replies (wrap_stream)"),
    "a tap for bytes": (tapping("bytes"), "the plugin 'other' watches the reply"),
    "a tap for events": (tapping("events"), "the plugin 'other' watches the reply"),
    "a plugin that says so": (transforming(an_inline_reason), "its words are checked"),
    "a changed body": (transforming(lambda e: e.replace_fields(user="u")), "a plugin changed the request's body"),
    "another body": (preparing(another_body), "the request's body is not the client's"),
    "a new request header": (set_header("X-Tenant", "t"), "nginx does not send the header 'X-Tenant'"),
    "another request id": (set_header("X-Request-ID", "t"), "nginx does not send the header 'X-Request-ID'"),
    "another encoding": (set_header("Accept-Encoding", "gzip"), "nginx does not send the header 'Accept-Encoding'"),
    "a removed header": (unset_header("User-Agent"), "a plugin removed the header 'user-agent'"),
    "an empty header": (set_header("User-Agent", ""), "nginx does not send the header 'User-Agent' as it is"),
    "a header of two lines": (
        set_header("User-Agent", "a\r\nb"),
        "nginx does not send the header 'User-Agent' as it is",
    ),
    "another method": (preparing(another_method), "the request's body is not the client's"),
    "another address": (preparing(another_address), "the request goes to another address than the backend's"),
    "a new response header": (answering(b"x-cost", b"5"), "nginx does not add the header 'x-cost' to answers"),
}


@pytest.mark.parametrize("name", REASONS)
async def test_the_core_delivers_because_of_a_plugin(
    fronted: Fronted, recorder: Any, backend: FakeBackend, name: str
) -> None:
    plugin, reason = REASONS[name]
    async with deciding(fronted, recorder, backend, plugin) as stage:
        assert await stage.decide() == ("inline", reason)


async def test_nginx_delivers_where_nothing_needs_the_reply(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with deciding(fronted, recorder, backend) as stage:
        assert await stage.decide() == ("offload", TAKEN)
        assert await stage.decide({**CHAT, "stream": True}) == ("offload", TAKEN)
        assert await stage.decide({"model": "test", "prompt": "x"}, path="/v1/completions") == ("offload", TAKEN)
        assert await stage.decide({"model": "test", "input": "x"}, path="/v1/embeddings") == ("offload", TAKEN)
        assert backend.requests == []


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"server": {"delivery": "inline"}}, ("inline", "configured")),
        ({"models": {"test": {"targets": ["fake"], "delivery": "inline"}}}, ("inline", "configured")),
        (
            {
                "server": {"delivery": "inline"},
                "models": {"test": {"targets": ["fake"], "delivery": "offload"}},
            },
            ("offload", TAKEN),
        ),
    ],
)
async def test_the_configuration_chooses(
    fronted: Fronted, recorder: Any, backend: FakeBackend, tables: dict[str, Any], expected: tuple[str, str]
) -> None:
    own = backend.config(**tables)
    own["server"] = {"anonymous": True, **own["server"]}
    async with deciding(fronted, recorder, backend, document=own) as stage:
        assert await stage.decide() == expected


@pytest.mark.parametrize(
    ("fake", "changes", "reason"),
    [
        ({"proxy": "http://127.0.0.1:9"}, {}, "the backend is reached through a proxy"),
        ({}, {"lanes": frozenset()}, "nginx does not know this backend"),
        ({"base_url": "http://127.0.0.1:9/ä"}, {}, "nginx cannot ask for this path"),
        ({"headers": {"X-Tenant": "t"}}, {}, "nginx does not send the header 'X-Tenant'"),
    ],
)
async def test_nginx_cannot_reach_the_backend_as_the_core_does(
    fronted: Fronted, recorder: Any, backend: FakeBackend, fake: Any, changes: Any, reason: str
) -> None:
    async with deciding(fronted, recorder, backend, document=document(backend, **fake), **changes) as stage:
        assert await stage.decide() == ("inline", reason)


async def test_a_body_is_edited_up_to_the_size_that_nginx_can(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    size = len(b'{"model":"test","messages":[{"role":"user","content":"hi"}]}')
    async with deciding(fronted, recorder, backend, edit_bytes=size) as stage:
        assert await stage.decide() == ("offload", TAKEN)
        longer = {**CHAT, "messages": [{"role": "user", "content": "hi!"}]}
        assert await stage.decide(longer) == ("inline", f"nginx edits bodies up to {size} bytes")
        assert await stage.decide({**PLAIN, "user": "x" * size}) == ("offload", TAKEN)  # nothing to edit


async def test_a_body_that_nginx_put_on_the_disk_is_not_edited(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with deciding(fronted, recorder, backend) as stage:
        spooled = {"headers": {"x-headrace-spooled": "/var/lib/nginx/body/1"}}
        assert await stage.decide(**spooled) == ("inline", "nginx edits bodies up to 131072 bytes")
        assert await stage.decide(PLAIN, **spooled) == ("offload", TAKEN)


async def test_a_field_that_stands_there_twice_cannot_be_edited(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    body = b'{"model":"x","model":"test","messages":[{"role":"user","content":"hi"}]}'
    async with deciding(fronted, recorder, backend) as stage:
        assert await stage.decide(body) == ("inline", "the request's body is not the client's")


async def test_a_backend_of_another_dialect_is_asked_by_the_core(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    class Translating(OpenAIBackend):
        name = "translating"
        native = frozenset({"completions"})

        def target(self, name: str, config: Any) -> Any:
            openai = self._gateway.providers["openai"].target(name, config)
            return msgspec.structs.replace(openai, provider=self.name)

    class Bringing:
        def __init__(self, config: Any, gateway: Any) -> None:
            self.gateway = gateway

        @hookimpl
        def register_providers(self, register: Any) -> None:
            register(Translating(self.gateway))

    own = document(backend, provider="translating")
    async with deciding(fronted, recorder, backend, Bringing, document=own) as stage:
        assert await stage.decide() == ("inline", "the backend speaks another dialect")


async def test_an_endpoint_of_another_dialect_is_answered_by_the_core(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    class Dialect(type(OPENAI)):  # type: ignore[misc]
        name = "other"

    class Bringing:
        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        def register_dialects(self, register: Any) -> None:
            register(Endpoint("chat", "/other/chat", ChatPeek, Dialect()))

    async with deciding(fronted, recorder, backend, Bringing) as stage:
        assert await stage.decide(path="/other/chat") == ("inline", "the backend speaks another dialect")


@pytest.mark.parametrize(
    ("known", "expected"),
    [({"other"}, ("offload", TAKEN)), ({"odd"}, ("inline", "nginx does not know how streams of this dialect end"))],
)
async def test_nginx_delivers_streams_of_the_dialects_that_it_knows(
    fronted: Fronted, recorder: Any, backend: FakeBackend, known: set[str], expected: tuple[str, str]
) -> None:
    class Dialect(type(OPENAI)):  # type: ignore[misc]
        name = "other"
        offloads = True

    class Bringing:
        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        def register_dialects(self, register: Any) -> None:
            register(Endpoint("chat", "/other/chat", ChatPeek, Dialect()))

    async with deciding(fronted, recorder, backend, Bringing, dialects=frozenset(known)) as stage:
        assert await stage.decide({**CHAT, "stream": True}, path="/other/chat") == expected
        assert await stage.decide(path="/other/chat") == ("offload", TAKEN)


async def test_nginx_is_asked_as_often_as_it_can_follow(fronted: Fronted, recorder: Any, backend: FakeBackend) -> None:
    targets = [{"provider": "openai", "base_url": backend.url}] * (HANDOVERS + 2)
    own = backend.config(models={"test": {"targets": [{**each, "model": f"m{n}"} for n, each in enumerate(targets)]}})
    async with fronted(own, {"recorder": recorder}) as nginx:
        response = await nginx.ask(CHAT)
        for _ in range(HANDOVERS):
            assert "x-accel-redirect" in response.headers
            response = await nginx.again()
        assert response.json()["object"] == "chat.completion"
        outcome = await recorder.outcome()
    assert (outcome.delivery, outcome.delivery_reason) == ("inline", "nginx has been asked often enough")
    assert (outcome.attempts, len(backend.requests)) == (HANDOVERS + 1, 1)


# --- Where the request came from ---


async def test_a_request_without_our_mark_is_answered_by_the_core(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with deciding(fronted, recorder, backend) as stage:
        for mark in ("", "wrong 1", stage.nginx.front.mark, f"{stage.nginx.front.mark} x"):
            found = await stage.decide(mark=mark)
            assert found == ("inline", "the request did not come through our nginx"), mark


async def test_a_request_without_nginxs_id_is_answered_by_the_core(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with deciding(fronted, recorder, backend) as stage:
        for key in ("", "A" * 32, "a" * 31):
            found = await stage.decide(exchange=key)
            assert found == ("inline", "the request did not come through our nginx"), key


async def test_a_right_mark_means_nothing_over_tcp(fronted: Fronted, recorder: Any, backend: FakeBackend) -> None:
    async with (
        deciding(fronted, recorder, backend) as stage,
        httpx.AsyncClient(base_url=stage.nginx.url, trust_env=False, timeout=30) as client,
    ):
        found = await stage.decide(client=client)
        assert found == ("inline", "the request did not come through our nginx")


async def test_an_nginx_that_has_not_reported_is_asked_for_a_report_first(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with fronted(document(backend), {"recorder": recorder}, proven=False) as nginx:
        response = await nginx.ask(CHAT)
        outcome = await recorder.outcome()
        assert (outcome.delivery, outcome.delivery_reason) == ("inline", "nginx has not sent a report yet")
        assert (response.headers["x-headrace-report"], response.json()["object"]) == ("1", "chat.completion")
        assert nginx.gateway.reporting.unknown == 0
        await nginx.report()
        await nginx.heard()
        assert "x-accel-redirect" in (await nginx.ask(CHAT)).headers
        await nginx.report()
        assert (await recorder.outcome()).delivery == "offload"


async def test_no_report_is_asked_for_where_the_core_must_deliver_anyway(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with fronted(document(backend), {"r": recorder, "tap": tapping("bytes")}, proven=False) as nginx:
        response = await nginx.ask(CHAT)
        assert (await recorder.outcome()).delivery_reason == "the plugin 'tap' watches the reply"
    assert "x-headrace-report" not in response.headers


async def test_each_worker_of_nginx_has_to_report(fronted: Fronted, recorder: Any, backend: FakeBackend) -> None:
    async with deciding(fronted, recorder, backend) as stage:
        stage.nginx.pid += 1
        assert await stage.decide() == ("inline", "nginx has not sent a report yet")


async def test_a_model_that_wants_offload_and_does_not_get_it_is_warned_of_once(
    fronted: Fronted, recorder: Any, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    own = backend.config(models={"wanting": {"targets": ["fake"], "delivery": "offload"}})
    async with deciding(fronted, recorder, backend, tapping("bytes"), document=own) as stage:
        for mark in ("", stage.nginx.mark, "", stage.nginx.mark):
            assert (await stage.decide({**CHAT, "model": "wanting"}, mark=mark))[0] == "inline"
    said = [record.getMessage() for record in caplog.records if record.name == "headrace.delivery"]
    reasons = ("the request did not come through our nginx", "the plugin 'other' watches the reply")
    assert said == [
        f"model 'wanting' has delivery = \"offload\", but the core delivers: {reason}" for reason in reasons
    ]
