"""The hooks of the start: what they are given, what None means, and what becomes of an error."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse

from headrace import hookimpl
from headrace.dialects import OPENAI, Endpoint, Peek
from headrace.errors import ConfigError, HeadraceError, PluginError, RateLimited
from headrace.exchange import Reply, Target, UpstreamRequest
from headrace.gateway import Gateway
from headrace.providers import Health
from headrace.registry import specifications
from headrace.settings import parse
from headrace.supervisor import Process
from headrace.testing import FakeBackend, serve

REASON = "disk sda1 is full"
CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}


def plugin(**hooks: Callable[..., Any]) -> type[Any]:
    """A plugin class with these functions as its hooks."""

    def init(self: Any, config: Any, gateway: Gateway) -> None:
        pass

    return type("Plugin", (), {"__init__": init, **{name: staticmethod(hookimpl(f)) for name, f in hooks.items()}})


def assembled(*plugins: type[Any], **tables: Any) -> Gateway:
    """A gateway that is not running, with these plugins as p0, p1, …"""
    named = {f"p{number}": each for number, each in enumerate(plugins)}
    document = {"plugins": {name: {} for name in named}, **tables}
    return Gateway(parse(document), "test", named).assemble()


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


def giving(value: Any) -> Callable[[], Any]:
    return lambda: value


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


class EchoProvider:
    """Answers by itself, with the body it was asked to send."""

    name = "echo"
    endpoints = native = frozenset({"chat", "poem"})

    def target(self, name: str, config: Any) -> Target:
        if config.model == "refused":
            raise ValueError("model 'refused' is refused")
        return Target(name=name, provider=self.name, base_url=config.base_url)

    def build(self, attempt: Any) -> UpstreamRequest:
        return UpstreamRequest(url="", headers={}, body=attempt.exchange.body)

    async def send(self, attempt: Any) -> Reply:
        return Reply(200, [(b"content-type", b"application/json")], content=attempt.request.body)

    async def models(self, target: Target) -> list[str]:
        return ["echo"]


ECHO = {"models": {"test": {"targets": [{"provider": "echo"}]}}}


async def test_hook_register_providers_brings_a_provider_that_models_can_name() -> None:
    async with running(plugin(register_providers=lambda register: register(EchoProvider())), **ECHO) as echo:
        assert (await echo.chat()).json() == CHAT


def test_hook_register_providers_passes_on_what_the_provider_refuses_with_its_place() -> None:
    refused = {"models": {"test": {"targets": [{"provider": "echo", "model": "refused"}]}}}
    with pytest.raises(ConfigError, match=r"test: \[models.test\] targets\[0\]: model 'refused' is refused"):
        assembled(plugin(register_providers=lambda register: register(EchoProvider())), **refused)


@pytest.mark.parametrize("hook", ["register_providers", "register_routing_policies", "register_health_checks"])
def test_two_registrations_under_one_name_stop_the_start(hook: str) -> None:
    twice = plugin(**{hook: lambda register: register(EchoProvider())})
    with pytest.raises(HeadraceError, match="two plugins register 'echo'"):
        assembled(twice, plugin(**{hook: lambda register: register(EchoProvider())}))


SETUP = [
    name for name, hook in specifications().items() if name.startswith("register_") and name != "register_commands"
]


@pytest.mark.parametrize("hook", SETUP)
def test_a_failing_setup_hook_stops_the_start_and_names_plugin_and_hook(hook: str) -> None:
    def fail() -> None:
        raise OSError(REASON)

    with pytest.raises(PluginError, match=f"plugin 'p0', hook '{hook}': failed: OSError: {REASON}"):
        assembled(plugin(**{hook: fail}))


async def test_hook_register_routing_policies_brings_a_policy_that_orders_the_targets() -> None:
    class Reversed:
        name = "reversed"

        def order(self, exchange: Any, targets: Any) -> Any:
            return tuple(reversed(targets))

    there = plugin(register_routing_policies=lambda register: register(Reversed()))
    async with FakeBackend() as other:
        targets = [
            {"provider": "openai", "base_url": "http://127.0.0.1:9"},
            {"provider": "openai", "base_url": other.url},
        ]
        async with running(there, models={"test": {"targets": targets, "policy": "reversed"}}) as gateway:
            assert (await gateway.chat()).status_code == 200
            assert len(other.requests) == 1


async def test_hook_register_health_checks_brings_the_check_of_a_provider() -> None:
    class Check:
        async def check(self, target: Target) -> Health:
            return Health(ok=False, reason=f"{target.name} is asleep")

    async with running(plugin(register_health_checks=lambda register: register(Check(), name="openai"))) as gateway:
        ready = await gateway.client.get("/health/ready")
        assert (ready.status_code, ready.json()["backends"]["fake"]["reason"]) == (503, "fake is asleep")


async def test_hook_register_dialects_brings_an_endpoint_that_backends_answer() -> None:
    class PoemPeek(Peek, kw_only=True):
        topic: str

    poem = Endpoint("poem", "/v1/poems", PoemPeek, OPENAI)
    there = plugin(
        register_dialects=lambda register: register(poem), register_providers=lambda register: register(EchoProvider())
    )
    async with running(there, **ECHO) as gateway:
        said = await gateway.client.post("/v1/poems", json={"model": "test", "topic": "rain"})
        missing = await gateway.client.post("/v1/poems", json={"model": "test"})
    assert said.json() == {"model": "test", "topic": "rain"}
    assert (missing.status_code, error_of(missing)["param"]) == (400, "topic")


async def test_hook_register_ledgers_brings_what_limits_are_counted_with() -> None:
    entered = []

    class Abacus:
        @contextlib.asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            entered.append("in")
            yield
            entered.append("out")

    abacus: Any = Abacus()

    @contextlib.asynccontextmanager
    async def counting(gateway: Gateway) -> AsyncIterator[None]:
        assert gateway.ledger is abacus and entered == ["in"]
        yield

    there = plugin(register_ledgers=lambda register: register(abacus, name="abacus"), lifespan=counting)

    class Counting(there):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any, gateway: Gateway) -> None:
            gateway.counts = True

    async with running(Counting):
        pass
    assert entered == ["in", "out"]


async def test_a_gateway_that_counts_nothing_keeps_no_counts(tmp_path: Path) -> None:
    async with running(plugin(), server={"state_dir": str(tmp_path)}):
        pass
    assert not list(tmp_path.glob("ledger*"))


async def test_hook_register_routes_adds_a_route_whose_gateway_error_is_answered_in_the_envelope() -> None:
    async def handler(request: Request) -> JSONResponse:
        if "fail" in request.query_params:
            raise RateLimited("later", headers={"Retry-After": "7"})
        return JSONResponse({"method": request.method})

    there = plugin(register_routes=lambda gateway: gateway.add_route("/mine", handler, methods=("PUT",)))
    async with running(there) as gateway:
        assert (await gateway.client.put("/mine")).json() == {"method": "PUT"}
        refused = await gateway.client.put("/mine?fail")
    assert (refused.status_code, refused.headers["retry-after"], error_of(refused)["message"]) == (429, "7", "later")


@pytest.mark.parametrize("path", ["/mine", "/v1/chat/completions", "/health", "/docs"])
def test_hook_register_routes_refuses_a_path_that_is_taken(path: str) -> None:
    async def handler(request: Request) -> JSONResponse:
        raise NotImplementedError

    taking = [plugin(register_routes=lambda gateway: gateway.add_route(path, handler)) for _ in range(2)]
    with pytest.raises(HeadraceError, match=f"the route {path} is taken"):
        assembled(*(taking if path == "/mine" else taking[:1]))


def test_hook_register_commands_adds_to_the_command_line() -> None:
    group = click.Group()
    gateway = assembled(plugin(register_commands=lambda cli: cli.add_command(click.Command("hello"))))
    gateway.hooks.setup("register_commands", group)
    assert list(group.commands) == ["hello"]


def test_hook_nginx_fragments_are_collected_in_order_without_none() -> None:
    first, nothing, last = {"http": "a;"}, None, {"server": "b;"}
    gateway = assembled(*(plugin(nginx_fragments=giving(it)) for it in (first, nothing, last)))
    assert gateway.hooks.nginx_fragments(gateway) == [first, last]


async def test_hook_asgi_wrapper_wraps_the_application_with_the_first_plugin_innermost() -> None:
    seen: list[str] = []

    def wrapping(name: str) -> type[Any]:
        def wrapper(app: Any) -> Any:
            async def wrapped(scope: Any, receive: Any, send: Any) -> None:
                seen.append(name)
                await app(scope, receive, send)

            return wrapped

        return plugin(asgi_wrapper=wrapper)

    async with running(wrapping("inner"), plugin(asgi_wrapper=lambda app: None), wrapping("outer")) as gateway:
        assert (await gateway.chat()).status_code == 200
    assert seen == ["outer", "inner"]


async def test_hook_lifespan_is_entered_in_order_and_left_in_reverse() -> None:
    seen: list[str] = []

    def living(name: str, error: Exception | None = None) -> type[Any]:
        @contextlib.asynccontextmanager
        async def lifespan(gateway: Gateway) -> AsyncIterator[None]:
            seen.append(f"{name} in")
            if error:
                raise error
            try:
                yield
            finally:
                seen.append(f"{name} out")

        return plugin(lifespan=lifespan)

    async with running(living("a"), plugin(lifespan=lambda: None), living("b")):
        seen.append("serving")
    assert seen == ["a in", "b in", "serving", "b out", "a out"]
    seen.clear()
    with pytest.raises(PluginError, match=f"plugin 'p1', hook 'lifespan': failed: OSError: {REASON}"):
        async with running(living("a"), living("b", OSError(REASON)), living("c")):
            pass
    assert seen == ["a in", "b in", "a out"]


async def test_hook_lifespan_that_does_not_begin_in_time_stops_the_start() -> None:
    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield

    with pytest.raises(PluginError, match=r"did not start in 0.05 s \(server.startup_timeout\)"):
        async with running(plugin(lifespan=lifespan), server={"startup_timeout": 0.05}):
            pass


def test_hook_processes_are_collected_from_every_plugin() -> None:
    one, two = Process(name="one", argv=["1"]), Process(name="two", argv=["2"])
    gateway = assembled(*(plugin(processes=giving(it)) for it in ([one], None, [two])))
    assert gateway.hooks.processes(gateway) == [one, two]


def test_hook_announce_takes_each_field_from_the_first_plugin_that_says_it() -> None:
    said = ({"url": "first"}, None, {"url": "second", "key": "k"})
    gateway = assembled(*(plugin(announce=giving(it)) for it in said))
    assert gateway.hooks.announce(gateway) == {"url": "first", "key": "k"}


# --- check_reload, reload ---


def test_hook_check_reload_may_refuse_the_new_configuration() -> None:
    def check_reload(gateway: Gateway) -> None:
        raise HeadraceError("the port cannot change")

    gateway = assembled(plugin(check_reload=check_reload))
    with pytest.raises(PluginError, match="'p0', hook 'check_reload': the port cannot change"):
        gateway.hooks.setup("check_reload", gateway)


def test_hook_reload_is_given_the_new_gateway() -> None:
    given: list[Gateway] = []

    def reload(gateway: Gateway) -> None:
        given.append(gateway)

    gateway = assembled(plugin(reload=reload))
    gateway.hooks.setup("reload", gateway)
    assert given == [gateway]
