"""What nginx is told with a handover: where to send the request, with which headers, and how to change its body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from headrace import hookimpl
from headrace.dialects import OPENAI, ChatPeek, Endpoint
from headrace.edits import Edit, apply
from headrace.exchange import Attempt, Exchange
from headrace.front import lane_of
from headrace.testing import FakeBackend, serve

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
COUNTED = {**STREAM, "stream_options": {"include_usage": True}}

Fronted = Callable[..., Any]


def document(backend: FakeBackend, **fake: Any) -> dict[str, Any]:
    return backend.config(backends={"fake": {"provider": "openai", "base_url": backend.url, **fake}})


def told(response: httpx.Response) -> dict[str, str]:
    """The headers of a handover, without those that are empty of meaning."""
    assert (response.status_code, response.content) == (200, b"")
    found = {name: value for name, value in response.headers.items() if name not in ("content-length", "date")}
    assert "x-accel-redirect" in found
    return found


def preparing(change: Callable[[Attempt], Any]) -> type[Any]:
    class Preparing:
        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        async def prepare_attempt(self, attempt: Attempt) -> None:
            change(attempt)

    return Preparing


def setting(**headers: str) -> type[Any]:
    """A plugin that sets request headers; underscores for dashes."""
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return preparing(lambda attempt: attempt.request.headers.update(named))  # type: ignore[union-attr]


def answering(*headers: tuple[Any, Any]) -> type[Any]:
    class Answering:
        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        async def transform_request(self, exchange: Exchange) -> None:
            exchange.response_headers.extend(headers)

    return Answering


class Wrapping:
    """Another plugin's ASGI wrapper: the core then cannot write to the wire by itself."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    def asgi_wrapper(self, app: Any) -> Any:
        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            async def wrapped_send(message: Any) -> None:
                await send(message)

            await app(scope, receive, wrapped_send)

        return wrapped


class Counting:
    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    def open_tap(self, exchange: Exchange) -> None:
        exchange.usage_wanted = True


@pytest.mark.parametrize("plugins", [{}, {"wrapping": Wrapping}])
async def test_nginx_is_told_where_to_send_the_request(fronted: Fronted, backend: FakeBackend, plugins: Any) -> None:
    async with fronted(document(backend, api_key="sk-b"), plugins) as nginx:
        (target,) = nginx.gateway.models.find("test").targets
        lane = lane_of(target)
        assert lane is not None
        found = told(await nginx.ask(CHAT))
    assert found.pop("x-headrace-more", "") == "1" * bool(plugins)  # whoever wraps answers may add headers
    assert found == {
        "x-headrace-group": lane.group,
        "x-headrace-host": backend.url.removeprefix("http://").removesuffix("/v1"),
        "x-headrace-uri": "/v1/chat/completions",
        "x-headrace-authorization": "Bearer sk-b",
        "x-accel-redirect": lane.location,
    }


@pytest.mark.parametrize(
    ("plugin", "fake"),
    [
        (answering((b"x-cache", b"hit")), {}),
        (setting(traceparent="00-1"), {}),
        (None, {"headers": {"Accept": "text/plain"}}),
    ],
)
async def test_nginx_is_told_to_look_for_more_where_there_is_more(
    fronted: Fronted, backend: FakeBackend, plugin: Any, fake: Any
) -> None:
    async with fronted(document(backend, **fake), {"more": plugin} if plugin else {}) as nginx:
        assert told(await nginx.ask(CHAT))["x-headrace-more"] == "1"


async def test_a_backend_without_a_key_gets_none(fronted: Fronted, backend: FakeBackend) -> None:
    async with fronted(document(backend)) as nginx:
        found = told(await nginx.ask(CHAT, headers={"authorization": "Bearer the-clients"}))
    assert "x-headrace-authorization" not in found
    assert "the-clients" not in str(found)


async def test_a_backend_that_is_configured_anew_is_reached_by_its_new_way(
    fronted: Fronted, backend: FakeBackend
) -> None:
    groups = set()
    for limit in (5, 6):
        async with fronted(document(backend, max_connections=limit)) as nginx:
            groups.add(told(await nginx.ask(CHAT))["x-headrace-group"])
    assert len(groups) == 2


async def test_each_endpoint_has_its_path_below_the_base_url(fronted: Fronted, backend: FakeBackend) -> None:
    async with fronted(document(backend, base_url="http://127.0.0.1:9/a%20b/v2/")) as nginx:
        for name, body in (("completions", {"prompt": "x"}), ("embeddings", {"input": "x"})):
            found = told(await nginx.ask({"model": "test", **body}, path=f"/v1/{name}"))
            assert found["x-headrace-uri"] == f"/a%20b/v2/{name}"
            await nginx.report()


# --- The body ---


async def test_the_models_name_is_changed_by_an_edit(fronted: Fronted, backend: FakeBackend) -> None:
    body = b' {"model" : "test", "messages":[{"role":"user","content":"hi"}] }'
    async with fronted(document(backend, model="sm\u00f8l-\U0001f989")) as nginx:
        found = told(await nginx.ask(body))
    edits = msgspec.json.decode(found["x-headrace-edits"], type=tuple[Edit, ...])
    assert found["x-accel-redirect"].endswith("_edited")
    assert apply(body, edits) == body.replace(b'"test"', b'"sm\\u00f8l-\\ud83e\\udd89"')


async def test_a_body_that_is_sent_on_as_it_is_needs_no_edit(fronted: Fronted, backend: FakeBackend) -> None:
    async with fronted(document(backend, model="test")) as nginx:
        found = told(await nginx.ask(CHAT))
    assert "x-headrace-edits" not in found


async def test_usage_is_asked_for_by_an_edit_that_keeps_the_clients_options(
    fronted: Fronted, backend: FakeBackend
) -> None:
    options = b'{ "x" :\n[1e999, "\x7f\xc3\xa4"],\t"include_usage": false}'
    body = b'{"model":"test","messages":[{"role":"user"}],"stream":true,"stream_options":%s}' % options
    async with fronted(document(backend), {"counting": Counting}) as nginx:
        found = told(await nginx.ask(body))
    edits = msgspec.json.decode(found["x-headrace-edits"], type=tuple[Edit, ...])
    edited = msgspec.json.decode(apply(body, edits), type=dict[str, msgspec.Raw])
    asked = msgspec.json.decode(edited["stream_options"], type=dict[str, msgspec.Raw])
    assert bytes(asked["include_usage"]) == b"true"
    assert b"1e999" in bytes(asked["x"])
    assert msgspec.json.decode(bytes(asked["x"]).replace(b"1e999", b"1")) == [1, "\x7fä"]


@pytest.mark.parametrize(
    ("plugins", "body", "watch", "edited"),
    [
        ({}, CHAT, None, False),
        ({}, STREAM, "end", False),
        ({}, COUNTED, "end", False),
        ({"counting": Counting}, CHAT, "usage", False),
        ({"counting": Counting}, COUNTED, "usage", False),
        ({"counting": Counting}, STREAM, "hide", True),
    ],
)
async def test_a_reply_is_watched_no_more_than_it_must_be(
    fronted: Fronted, backend: FakeBackend, plugins: Any, body: Any, watch: str | None, edited: bool
) -> None:
    async with fronted(document(backend), plugins) as nginx:
        found = told(await nginx.ask(body))
    patience = " 1 120000" if watch and body.get("stream") else ""
    assert found.get("x-headrace-watch") == (watch and watch + patience)
    ending = "_edited" if edited else "_watched" if watch else ""
    assert found["x-accel-redirect"].partition("_")[2].partition("_")[::2][1] == ending.removeprefix("_")


async def test_nginx_is_told_the_dialect_of_a_stream_that_is_not_openais(
    fronted: Fronted, backend: FakeBackend
) -> None:
    class Dialect(type(OPENAI)):  # type: ignore[misc]
        name = "other"
        offloads = True

    class Bringing:
        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        def register_dialects(self, register: Any) -> None:
            register(Endpoint("chat", "/other/chat", ChatPeek, Dialect()))

    async with fronted(document(backend), {"bringing": Bringing}, dialects=frozenset({"other"})) as nginx:
        found = told(await nginx.ask(STREAM, path="/other/chat"))
        assert found["x-headrace-watch"] == "end 1 120000 other"


async def test_a_backend_that_may_not_be_asked_for_usage_is_not(fronted: Fronted, backend: FakeBackend) -> None:
    async with fronted(document(backend, stream_usage=False), {"counting": Counting}) as nginx:
        found = told(await nginx.ask(STREAM))
    assert "x-headrace-edits" not in found
    assert found["x-headrace-watch"] == "usage 1 120000"


# --- Headers of the request ---


async def test_headers_that_are_as_the_client_sent_them_are_not_repeated(
    fronted: Fronted, backend: FakeBackend
) -> None:
    def look(attempt: Attempt) -> None:
        assert attempt.request is not None
        assert attempt.request.headers["User-Agent"] == "mine/1"

    given = {"user-agent": "mine/1", "traceparent": "00-1", "accept": "text/event-stream"}
    async with fronted(document(backend), {"looking": preparing(look)}) as nginx:
        found = told(await nginx.ask(CHAT, headers=given))
    assert [name for name in found if name.startswith("x-headrace-send-")] == []


async def test_changed_and_new_headers_are_said(fronted: Fronted, backend: FakeBackend) -> None:
    changing = setting(user_agent="theirs/2", authorization="Bearer other", tracestate="a=b", x_tenant="t")
    async with fronted(
        document(backend, api_key="sk-b"), {"changing": changing}, request_headers=frozenset({"x-tenant"})
    ) as nginx:
        found = told(await nginx.ask(CHAT, headers={"user-agent": "mine/1"}))
    assert found["x-headrace-authorization"] == "Bearer other"
    said = {name: value for name, value in found.items() if name.startswith("x-headrace-send-")}
    assert said == {
        "x-headrace-send-user-agent": "theirs/2",
        "x-headrace-send-tracestate": "a=b",
        "x-headrace-send-x-tenant": "t",
    }


async def test_headers_that_are_set_one_by_one_are_said_as_others_are(fronted: Fronted, backend: FakeBackend) -> None:
    def change(attempt: Attempt) -> None:
        assert attempt.request is not None
        for name, value in (("tracestate", "a=b"), ("authorization", "Bearer other"), ("x-tenant", "t")):
            attempt.request.set_header(name, value)

    own = document(backend, api_key="sk-b", headers={"X-Tenant": "s"})
    known = frozenset({"x-tenant"})
    async with fronted(own, {"changing": preparing(change)}, request_headers=known) as nginx:
        response = await nginx.ask(CHAT, headers={"tracestate": "mine=1"})
    said = sorted(
        pair for pair in response.headers.multi_items() if pair[0].startswith(("x-headrace-send-", "x-headrace-au"))
    )
    assert said == [
        ("x-headrace-authorization", "Bearer other"),
        ("x-headrace-send-tracestate", "a=b"),
        ("x-headrace-send-x-tenant", "t"),
    ]


@pytest.mark.parametrize("looks", [False, True])
async def test_a_header_that_is_set_by_itself_takes_the_place_of_another(backend: FakeBackend, looks: bool) -> None:
    def change(attempt: Attempt) -> None:
        assert attempt.request is not None
        attempt.request.set_header("tracestate", "a=b")
        if looks:
            assert attempt.request.headers
        attempt.request.set_header("user-agent", "theirs/2")

    async with (
        serve(backend.config(), {"changing": preparing(change)}) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers={"tracestate": "mine=1"}) as client,
    ):
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    sent = backend.requests[0][1]
    assert (sent["tracestate"], sent["user-agent"]) == ("a=b", "theirs/2")


async def test_a_key_that_a_plugin_takes_away_is_not_said(fronted: Fronted, backend: FakeBackend) -> None:
    removing = preparing(lambda attempt: attempt.request.headers.pop("Authorization"))  # type: ignore[union-attr]
    async with fronted(document(backend, api_key="sk-b"), {"removing": removing}) as nginx:
        found = told(await nginx.ask(CHAT))
    assert "sk-b" not in str(found)


async def test_a_configured_header_is_said(fronted: Fronted, backend: FakeBackend) -> None:
    own = document(backend, headers={"User-Agent": "gateway", "X-Tenant": "t"})
    async with fronted(own, request_headers=frozenset({"x-tenant"})) as nginx:
        found = told(await nginx.ask(CHAT, headers={"user-agent": "mine/1"}))
    assert (found["x-headrace-send-user-agent"], found["x-headrace-send-x-tenant"]) == ("gateway", "t")


async def asked_with(nginx: Any, backend: FakeBackend, name: str) -> str:
    """The value of a header as the backend gets it, whoever asks it."""
    response = await nginx.ask(CHAT, headers={"user-agent": "the-clients/1"})
    if "x-accel-redirect" not in response.headers:
        return backend.requests[0][1].get(name, "").encode("latin-1").decode()
    raw = dict(response.headers.raw).get(f"x-headrace-send-{name}".encode(), b"")
    return raw.decode() or "the-clients/1"  # nginx takes an empty value for none


@pytest.mark.parametrize("delivery", ["inline", "auto"])
@pytest.mark.parametrize("value", ["Łódź", "Zürich", ""])
async def test_a_header_reaches_the_backend_as_a_plugin_set_it(
    fronted: Fronted, backend: FakeBackend, value: str, delivery: str
) -> None:
    own = {**document(backend), "server": {"anonymous": True, "delivery": delivery}}
    async with fronted(own, {"setting": setting(user_agent=value)}) as nginx:
        assert await asked_with(nginx, backend, "user-agent") == value


async def test_a_query_in_the_url_reaches_the_backend(fronted: Fronted, backend: FakeBackend) -> None:
    def version(attempt: Attempt) -> None:
        assert attempt.request is not None
        attempt.request.url += "?api-version=1"

    async with fronted(document(backend), {"versioning": preparing(version)}) as nginx:
        response = await nginx.ask(CHAT)
        found = response.headers.get("x-headrace-uri") or backend.requests[0][0]
    assert found == "/v1/chat/completions?api-version=1"


async def test_a_request_that_a_plugin_sends_elsewhere_does_not_go_to_the_target(
    fronted: Fronted, backend: FakeBackend
) -> None:
    async with FakeBackend() as elsewhere:

        def divert(attempt: Attempt) -> None:
            assert attempt.request is not None
            attempt.request.url = elsewhere.url + "/chat/completions"

        async with fronted(document(backend), {"diverting": preparing(divert)}) as nginx:
            response = await nginx.ask(CHAT)
        assert "x-accel-redirect" not in response.headers
        assert len(elsewhere.requests) == 1


# --- Headers of the answer ---


async def test_headers_of_the_answer_are_said_under_their_own_names(fronted: Fronted, backend: FakeBackend) -> None:
    headers = [(b"x-ratelimit-remaining-requests", b"5"), (b"vary", b"Origin"), (b"x-cost", b"1")]
    carried = frozenset({"x-ratelimit-remaining-requests", "vary", "x-cost"})
    async with fronted(document(backend), {"a": answering(*headers)}, response_headers=carried) as nginx:
        found = told(await nginx.ask(CHAT))
    assert {name: found[name.decode()].encode() for name, _ in headers} == dict(headers)


# --- What cannot stand in a header ---

BREAKS = [
    ("a\r\nx-accel-redirect: /evil", False),
    ("a\r\nx-accel-redirect: /evil", True),
    ("a\nx-headrace-group: evil", False),
    ("a\rb", False),
    ("a\0b", False),
    ("a\x7fb", True),
]


@pytest.mark.parametrize(("value", "wrapping"), BREAKS)
async def test_a_header_of_the_answer_that_would_break_lines_is_a_fault(
    fronted: Fronted, recorder: Any, backend: FakeBackend, value: str, wrapping: bool
) -> None:
    plugins = {"r": recorder, "a": answering((b"vary", value.encode())), **({"w": Wrapping} if wrapping else {})}
    async with fronted(document(backend), plugins) as nginx:
        response = await nginx.ask(CHAT)
        assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
        assert "evil" not in str(response.headers)
        assert (await recorder.outcome()).status == 500


@pytest.mark.parametrize(("value", "wrapping"), BREAKS)
async def test_a_header_of_the_request_that_would_break_lines_is_not_said(
    fronted: Fronted, recorder: Any, backend: FakeBackend, value: str, wrapping: bool
) -> None:
    plugins = {"r": recorder, "s": setting(user_agent=value), **({"w": Wrapping} if wrapping else {})}
    async with fronted(document(backend), plugins) as nginx:
        response = await nginx.ask(CHAT)
        assert "evil" not in str(response.headers)
        assert "x-accel-redirect" not in response.headers
        assert response.json().keys() in ({"error"}, {"id", "object", "created", "model", "choices", "usage"})
        assert (await recorder.outcome()).status == response.status_code


@pytest.mark.parametrize("key", ["sk\r\nx-accel-redirect: /evil", "sk\nx", "sk\0x"])
async def test_a_key_that_would_break_lines_is_not_said(fronted: Fronted, backend: FakeBackend, key: str) -> None:
    async with fronted(document(backend, api_key=key)) as nginx:
        response = await nginx.ask(CHAT)
    assert response.status_code == 502
    assert not {"x-accel-redirect", "x-headrace-authorization"} & response.headers.keys()


@pytest.mark.parametrize("path", ["/a b", "/\x85", "/\u2028", "/ä"])
async def test_a_path_that_cannot_stand_in_a_request_line_is_not_said(
    fronted: Fronted, backend: FakeBackend, path: str
) -> None:
    def change(attempt: Attempt) -> None:
        assert attempt.request is not None
        attempt.request.url = backend.url + path

    async with fronted(document(backend), {"changing": preparing(change)}) as nginx:
        response = await nginx.ask(CHAT)
    assert "x-accel-redirect" not in response.headers


@pytest.mark.parametrize("name", ["mo\r\nX-Accel-Redirect: evil", "mo\0\x7fdel", "\u2028\U0001f989"])
async def test_odd_names_of_models_stay_in_their_edit(fronted: Fronted, backend: FakeBackend, name: str) -> None:
    body = b'{"model":"test","messages":[{"role":"user","content":"hi"}]}'
    async with fronted(document(backend, model=name)) as nginx:
        found = told(await nginx.ask(body))
    assert found["x-accel-redirect"].startswith("@headrace_")
    edits = msgspec.json.decode(found["x-headrace-edits"], type=tuple[Edit, ...])
    assert msgspec.json.decode(apply(body, edits))["model"] == name
