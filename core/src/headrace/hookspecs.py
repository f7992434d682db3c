"""Every hook of Headrace. A plugin is a class with some of these as methods, each marked `@hookimpl`.

A method may leave out arguments it does not need; it may not rename them, and it must be `async def` exactly where
the specification is. Hooks run in the order of the `[plugins.NAME]` tables unless `[order]` says otherwise.

A `GatewayError` raised by a request hook is an answer to the caller. Any other exception is a fault of the plugin,
and each hook says below what becomes of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from .errors import GatewayError
from .exchange import Attempt, Exchange, Outcome, Principal, Reply, Target
from .kinds import Kind, spec
from .limits import Standing
from .streaming import Tap

if TYPE_CHECKING:
    import click
    from starlette.types import ASGIApp

    from .gateway import Gateway, Register
    from .supervisor import Process

# --- Setup: sync, once, before the gateway listens. A failure of any of these stops the start. ---


@spec(Kind.EACH)
def register_providers(register: Register) -> None:
    """Register providers: `register(provider)`. See `headrace.providers.Provider`."""


@spec(Kind.EACH)
def register_routing_policies(register: Register) -> None:
    """Register routing policies: `register(policy)`. See `headrace.providers.RoutingPolicy`."""


@spec(Kind.EACH)
def register_health_checks(register: Register) -> None:
    """Register health checks: `register(check, name=PROVIDER)`. See `headrace.providers.HealthCheck`."""


@spec(Kind.EACH)
def register_dialects(register: Register) -> None:
    """Register endpoints that are answered by a backend: `register(endpoint)`, a `headrace.dialects.Endpoint`."""


@spec(Kind.EACH)
def register_ledgers(register: Register) -> None:
    """Register a ledger, `register(ledger, name="redis")`, a `headrace.ledger.Ledger`: what limits and budgets are
    counted with, in place of the file that the workers of one gateway share. The first one is used."""


@spec(Kind.EACH)
def register_routes(gateway: Gateway) -> None:
    """Add HTTP routes of the plugin's own: `gateway.add_route(path, handler, methods=…, summary=…)`.

    `handler` is an async Starlette endpoint (request → response). Routes are public unless `require="user"`,
    `"metrics"` or `"admin"` is given. `GatewayError` may be raised and is answered in the OpenAI envelope.
    """


@spec(Kind.EACH)
def register_commands(cli: click.Group) -> None:
    """Add commands to `headrace`. Called without a running gateway; import what a command needs inside it.

    The command gets the gateway (plugins made, nothing started) by `headrace.cli.gateway_of(context)`.
    """


@spec(Kind.COLLECT)
def nginx_fragments(gateway: Gateway) -> Mapping[str, str] | None:
    """Lines for the rendered nginx configuration, by place: `http`, `server` or `location`."""


@spec(Kind.CHAIN)
def asgi_wrapper(app: ASGIApp) -> ASGIApp | None:
    """Wrap the whole ASGI application; the first plugin is the innermost. None leaves it as it is.

    Whatever a wrapper does per chunk is paid per chunk: wrap `send` only for the response's start. Of an answer that
    nginx delivers a wrapper sees the redirect alone, and of the headers it adds to it the client gets those that nginx
    knows: `[plugins.nginx] response_headers`.
    """


@spec(Kind.ENTER)
def lifespan(gateway: Gateway) -> AbstractAsyncContextManager[None] | None:
    """Open and close what the plugin needs while the gateway runs (files, pools, tasks).

    Entered in order before the gateway listens, each within `server.startup_timeout`; left in reverse order
    after the last request. A failure here stops the start and leaves what was entered before.
    """


@spec(Kind.COLLECT)
def processes(gateway: Gateway) -> Sequence[Process] | None:
    """Processes that belong beside the core: engines, a front server. `headrace up` supervises them."""


@spec(Kind.EACH)
def check_reload(gateway: Gateway) -> None:
    """A running gateway is about to be reloaded; `gateway` is what its configuration says now, assembled and not at
    work. Raise `HeadraceError` if processes of the plugin's own, an nginx for instance, could not go along with it:
    then all stays as it was."""


@spec(Kind.EACH)
def reload(gateway: Gateway) -> None:
    """The core has taken over a new configuration: have processes of the plugin's own do so, too."""


@spec(Kind.COLLECT)
def announce(gateway: Gateway) -> Mapping[str, str] | None:
    """What `headrace up` tells once everything answers. The first plugin to say a field wins.

    `url`, `key` and `model` make the `READY` line; `cacert` (a file for clients to trust) and `playground` (a path)
    help a person on.
    """


# --- Per request, in the order in which they happen. ---


@spec(Kind.FIRST)
async def authenticate(exchange: Exchange) -> Principal | None:
    """Say who asks, or None if the request carries nothing this plugin knows.

    Raise `Unauthenticated` for credentials that are this plugin's and wrong. If every plugin returns None the
    request is refused, unless `server.anonymous` is true. Fails unexpectedly: the request is refused (500).
    """


@spec(Kind.EACH)
async def authorize(exchange: Exchange) -> None:
    """Raise `Forbidden` if `exchange.principal` may not do this. Fails unexpectedly: refused (500)."""


@spec(Kind.EACH)
async def transform_request(exchange: Exchange) -> None:
    """Change the request before it is admitted: `exchange.replace_fields(temperature=0)`.

    A changed body is sent by the core, and so is the answer. Fails unexpectedly: 500.
    """


@spec(Kind.ENTER)
def admit(exchange: Exchange) -> AbstractAsyncContextManager[None] | None:
    """Hold something for as long as the request lasts: a slot, a reservation, a place in a queue.

    Entering may wait or raise (`RateLimited`, `Unavailable`); leaving runs after the last byte, an error, or the
    client's departure. Sync itself: return None quickly when there is nothing to hold.
    Fails unexpectedly: refused (500).
    """


@spec(Kind.COLLECT)
def open_tap(exchange: Exchange) -> Tap | None:
    """Watch the reply to come without changing it: see `headrace.streaming.Tap`. Once per admitted request, before
    the reply, for what the taps want decides how it is delivered.

    Fails unexpectedly, here or later: logged, and the tap is detached.
    """


@spec(Kind.FIRST)
async def cache_lookup(exchange: Exchange) -> Reply | None:
    """Answer without a backend. Fails unexpectedly: logged, and treated as a miss."""


@spec(Kind.CHAIN)
def arrange(exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target] | None:
    """Change the order in which a model's targets are asked, after its routing policy: move to the end, or leave out,
    what is known not to answer. None leaves it as it is. Sync and cheap: it runs once a request.

    Raise `Unavailable`, with `Retry-After`, if nobody is left to be asked. Fails unexpectedly: logged, and the order
    stays as it was.
    """


@spec(Kind.EACH)
async def prepare_attempt(attempt: Attempt) -> None:
    """Change what one try sends: `attempt.request.headers["x-…"] = …`. Once per try, the request is built.

    Fails unexpectedly: this try fails and the next target is asked.
    """


@spec(Kind.NOTIFY)
async def on_attempt(attempt: Attempt, outcome: Outcome) -> None:
    """One try has ended, well or not. Exactly once per try. Fails unexpectedly: logged."""


@spec(Kind.EACH)
async def transform_reply(exchange: Exchange, reply: Reply) -> None:
    """Change the reply's status or headers before anything is sent.

    While a plugin implements it, nginx delivers no answer: to add headers, append to `exchange.response_headers`
    instead. Fails unexpectedly: 500.
    """


@spec(Kind.CHAIN)
def wrap_stream(exchange: Exchange, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes] | None:
    """Replace the reply's bytes on their way out. None: not interested, and then it costs nothing.

    Once per streamed reply; each plugin wraps what the one before it returned. Prevents offload for every request
    while a plugin implements it. Fails unexpectedly: 500.
    """


@spec(Kind.FIRST)
async def handle_error(exchange: Exchange, error: GatewayError) -> GatewayError | None:
    """Replace the error that is about to be answered. Fails unexpectedly: the original is kept."""


@spec(Kind.COLLECT)
async def standing(principal: Principal) -> Sequence[Standing] | None:
    """Say how the limits of this caller stand, for `GET /v1/usage`. Fails unexpectedly: 500 there, and nowhere else."""


@spec(Kind.NOTIFY)
async def on_complete(exchange: Exchange, outcome: Outcome) -> None:
    """The request is over. Exactly once for every request to an endpoint, refused ones included.

    Runs shielded from the client's disconnect, after the last byte: log, count, settle. Fails unexpectedly: logged.
    Afterwards the attempts let go of the exchange: `attempt.exchange` and `attempt.request` are gone.
    """
