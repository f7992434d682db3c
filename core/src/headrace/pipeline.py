"""The whole way of a request, top to bottom."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from .choice import choose
from .connection import Connection
from .delivery import comment, deliver
from .errors import (
    Forbidden,
    GatewayError,
    InvalidRequest,
    PluginFault,
    Unauthenticated,
    UpstreamTimeout,
)
from .exchange import ANONYMOUS, Attempt, Exchange, Outcome, Principal, Reply, Target
from .failing import send_error, stopping
from .offload import CLIENT_LEFT, Report, conclude, hand_over
from .resume import can_go_on, continue_in, may_break, refused, resumed
from .retries import Walk
from .timelimit import Deadline
from .translation import asked_of, translated
from .verdict import PromptTooLong, check_length

if TYPE_CHECKING:
    from .dialects import Peek
    from .gateway import Gateway
    from .journal import Journal
    from .models import Model

NO_DEADLINE: AbstractContextManager[None] = nullcontext()
logger = logging.getLogger("headrace.pipeline")


async def answer(exchange: Exchange, gateway: Gateway, connection: Connection) -> None:
    """Answer one request. Returns when the last byte is out, or the client has left; then everybody has been told."""
    try:
        await run(exchange, gateway, connection)
    except asyncio.CancelledError:
        is_cancelled()  # the client has left: nobody is there to be told
    finally:
        await settle(exchange, gateway, connection)


async def run(exchange: Exchange, gateway: Gateway, connection: Connection) -> None:
    """From the caller's name to the last byte of the answer, or of an error."""
    hooks = gateway.hooks
    exchange.usage_wanted = gateway.usage_wanted
    try:
        exchange.principal = await identify(exchange, gateway)
        exchange.peek = await receive(exchange, gateway, connection)
        select_model(exchange, gateway, exchange.peek.model)
        await hooks.authorize(exchange)
        await hooks.transform_request(exchange)
        exchange.model = gateway.models.find(exchange.peek.model)  # a plugin may have changed it
        if exchange.model.bounds is not None:
            exchange.model.bounds.apply(exchange)
        exchange.attach(partial(comment, exchange, connection=connection), connection.stay)
        async with hooks.admit(exchange):
            with connection.watched(), deadline(exchange):
                exchange.taps = hooks.open_taps(exchange)
                reply = await hooks.cache_lookup(exchange) or await attempts(exchange, gateway, connection)
                if isinstance(reply, Report):
                    conclude(exchange, reply, connection)  # nginx has delivered it
                else:
                    await finish(exchange, reply, gateway, connection)
            exchange.completed = not connection.left  # it may have gone on for others
    except Exception as exception:
        await send_error(exchange, exception, gateway, connection)
    except asyncio.CancelledError as cancelled:
        if connection.left:
            raise
        stray = PluginFault("headrace", "pipeline", cancelled)
        await send_error(exchange, stopping() if is_cancelled() else stray, gateway, connection)


def deadline(exchange: Exchange) -> AbstractContextManager[None]:
    """Ends the answer when its model's `deadlines.total` is over. Raises UpstreamTimeout."""
    total = exchange.model.total if exchange.model is not None else None
    if total is None:
        return NO_DEADLINE
    left = exchange.started + total - time.perf_counter()
    error = UpstreamTimeout(f"The answer was not complete after {total:g} s.", code="deadline_exceeded")
    return Deadline(max(0.0, left), lambda: error)


async def identify(exchange: Exchange, gateway: Gateway) -> Principal:
    """Who asks. Raises Unauthenticated if nobody knows and strangers are not welcome, Forbidden if not here."""
    principal = await gateway.hooks.authenticate(exchange)
    if principal is None and not gateway.config.server.anonymous:
        raise unknown_caller()
    if principal is not None and (principal.endpoints is not None or principal.role == "metrics"):
        check_endpoint(exchange, principal)
    return principal or ANONYMOUS


def check_endpoint(exchange: Exchange, principal: Principal) -> None:
    """Raises Forbidden if this endpoint is not for this principal."""
    if principal.role == "metrics":
        raise Forbidden("This key may read metrics only.")
    if principal.endpoints is not None and exchange.endpoint.name not in principal.endpoints:
        raise Forbidden(f"This key may not use {exchange.endpoint.path}.")


def unknown_caller() -> GatewayError:
    """What a caller is told whom nobody knows."""
    return Unauthenticated(
        "No API key was given, or none that this gateway knows. Send it as 'Authorization: Bearer KEY'."
    )


async def receive(exchange: Exchange, gateway: Gateway, connection: Connection) -> Peek:
    """Read the body and peek into it; from here on the client's departure cancels everything."""
    server = gateway.config.server
    exchange.body = await connection.read_body(server.max_body_bytes, server.body_timeout)
    connection.watch()
    return exchange.endpoint.read(exchange.body)


def select_model(exchange: Exchange, gateway: Gateway, name: str) -> None:
    """Find the model that is asked for. Raises ModelNotFound, or Forbidden if it is not for this principal."""
    allowed = exchange.principal.models if exchange.principal else None
    exchange.model = gateway.models.find(name, allowed)
    if allowed is None:
        return
    if exchange.model.name not in allowed:
        raise Forbidden(f"This key may not use the model {exchange.model.name!r}.", param="model")
    if any(field != "model" and field.lower() == "model" for field in exchange.fields):
        raise InvalidRequest("The field 'model' stands there twice.", param="model")  # some backends ignore case


async def attempts(exchange: Exchange, gateway: Gateway, connection: Connection) -> Reply | Report:
    """Ask the targets one after the other, in the policy's order, until one answers.

    Returns:
        The answer, yet to be delivered; or nginx's report, if nginx has asked and delivered what it got.

    Raises:
        GatewayError: that of the last target asked, or of the first that must not be retried.
    """
    walk = Walk(exchange, gateway)
    target = walk.first()
    while target is not None:
        attempt = begin(walk, target, gateway)
        try:
            reply = await send(attempt, gateway, connection)
            if isinstance(reply, Report):
                return reply
            if walk.asked_for.midstream == "resume" and may_break(attempt.asked, reply):
                reply = resumed(reply, partial(go_on, walk, gateway, connection))
            return translated(reply, attempt)
        except PromptTooLong as error:
            await failed(attempt, gateway, error)
            target = walk.longer()
            if target is None:
                return translated(error.reply, attempt)
        except GatewayError as error:
            await failed(attempt, gateway, error)
            target = await walk.another(attempt, error)
    raise walk.refused or unsupported(exchange, walk.model)


def begin(walk: Walk, target: Target, gateway: Gateway) -> Attempt:
    """The next try."""
    exchange, provider = walk.exchange, gateway.providers[target.provider]
    asked = asked_of(exchange, target, provider)
    attempt = Attempt(exchange, len(exchange.attempts) + 1, target, provider, walk.model, asked)
    exchange.attempts.append(attempt)
    attempt.begin()
    return attempt


async def go_on(walk: Walk, gateway: Gateway, connection: Connection, journal: Journal, error: GatewayError) -> Reply:
    """A stream broke: have another target go on with it. Raises GatewayError: nobody does."""
    exchange, asked = walk.exchange, walk.exchange.attempts[-1].asked
    walk.suits = lambda target: is_asked(asked, exchange, target, gateway) and can_go_on(asked, target, journal=journal)
    while True:
        broken = exchange.attempts[-1]
        await failed(broken, gateway, error)
        attempt = begin(walk, await walk.another(broken, error), gateway)
        try:
            reply = await send(attempt, gateway, connection, journal)
        except GatewayError as again:
            error = again
            continue
        if isinstance(reply, Reply) and may_break(asked, reply):
            logger.info("request %s: target %s goes on", exchange.id, attempt.target.name)
            return reply
        if isinstance(reply, Reply):
            await reply.aclose()
        error = refused(reply)


def is_asked(asked: Exchange, exchange: Exchange, target: Target, gateway: Gateway) -> bool:
    """Whether this target, too, is asked it this way, and not in another dialect."""
    return asked_of(exchange, target, gateway.providers[target.provider]) is asked


async def failed(attempt: Attempt, gateway: Gateway, error: GatewayError) -> None:
    """One try has not brought an answer: say so."""
    attempt.end()
    why = error.detail or error.code or error.type
    logger.warning("request %s: target %s: %s (%s)", attempt.exchange.id, attempt.target.name, error.message, why)
    await asyncio.shield(report(attempt, gateway, Outcome(status=error.status, completed=False, error=error)))


def unsupported(exchange: Exchange, model: Model) -> GatewayError:
    """What is answered when no backend of a model has this endpoint."""
    message = f"The model {model.name!r} does not answer {exchange.endpoint.path}."
    return InvalidRequest(message, param="model", code="unsupported_endpoint")


async def send(
    attempt: Attempt, gateway: Gateway, connection: Connection, journal: Journal | None = None
) -> Reply | Report:
    """One try: build, prepare, send, or let nginx send. With a `journal`, to go on with what stands in it."""
    provider, exchange = attempt.provider, attempt.exchange
    try:
        exchange.dropped = attempt.asked.dropped if attempt.asked is not exchange else ()
        attempt.request = provider.build(attempt)
        if journal is not None:
            continue_in(attempt.request, attempt.asked, attempt.target, journal)
        attempt.built = attempt.request.body
        await gateway.hooks.prepare_attempt(attempt)
        choice = choose(attempt, gateway, connection)
        exchange.delivery, exchange.delivery_reason = choice.delivery, choice.reason
        if choice.handover is not None:
            return await hand_over(attempt, choice.handover, gateway.reporting, connection)
        reply: Reply = await provider.send(attempt)
        attempt.request.body = b""  # it is sent; a stream may last for minutes
    except GatewayError:
        raise
    except Exception as error:
        raise PluginFault(provider.name, "provider", error) from error
    if exchange.model is not None and exchange.model.longer:
        check_length(reply)
    return reply


def report(attempt: Attempt, gateway: Gateway, outcome: Outcome) -> asyncio.Task[None]:
    """Begin to tell the plugins how one try ended; goes on to its end even if the client leaves meanwhile."""
    attempt.reporting = asyncio.ensure_future(tell(attempt, gateway, outcome))
    return attempt.reporting


async def tell(attempt: Attempt, gateway: Gateway, outcome: Outcome) -> None:
    """Tell the plugins how one try ended."""
    outcome.target = attempt.target.name
    outcome.attempts = attempt.number
    outcome.duration_seconds = time.perf_counter() - attempt.started
    first_byte = attempt.exchange.first_byte_at
    own = first_byte is not None and first_byte >= attempt.started  # not that of a stream it went on with
    outcome.ttft_seconds = first_byte - attempt.started if own and first_byte is not None else None
    await gateway.hooks.on_attempt(attempt, outcome)


async def finish(exchange: Exchange, reply: Reply, gateway: Gateway, connection: Connection) -> None:
    """Deliver a reply; then give its connection back, or close it if the reply was not read to its end."""
    try:
        await gateway.hooks.transform_reply(exchange, reply)
        await deliver(exchange, reply, gateway.hooks, connection)
    finally:
        await reply.aclose()


def is_cancelled() -> bool:
    """Whether the current task is really being cancelled: a plugin may let another task's cancellation escape.

    The cancellation counts as taken note of.
    """
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        return False
    task.uncancel()
    return True


async def settle(exchange: Exchange, gateway: Gateway, connection: Connection) -> None:
    """Run `on_attempt` and `on_complete` exactly once, whatever happened: the client's departure is of no matter."""
    connection.unwatch()
    connection.release()
    exchange.close_taps(exchange.completed)  # if no reply did
    if exchange.usage is not None and exchange.attempts:
        gateway.estimator.learn(exchange, exchange.usage)
    outcome = outcome_of(exchange, connection)
    for attempt in exchange.attempts:
        attempt.end()
        if attempt.reporting is not None:
            await attempt.reporting
        elif gateway.hooks.tells_of_attempts:
            ended = outcome_of(exchange, connection)
            ended.error = exchange.failure  # whatever the client was told of it
            await tell(attempt, gateway, ended)
    await gateway.hooks.on_complete(exchange, outcome)
    exchange.attach()
    exchange.taps = None  # they know the exchange: its memory would wait for the garbage collector
    for attempt in exchange.attempts:
        attempt.let_go()


def outcome_of(exchange: Exchange, connection: Connection) -> Outcome:
    """What the plugins are told at the end."""
    target: Target | None = exchange.attempts[-1].target if exchange.attempts else None
    first_byte = exchange.first_byte_at
    return Outcome(
        status=connection.status or (exchange.error.status if exchange.error else CLIENT_LEFT),
        completed=exchange.completed,
        aborted=connection.left and not exchange.completed,
        error=exchange.error,
        target=target.name if target else None,
        delivery=exchange.delivery,
        delivery_reason=exchange.delivery_reason,
        source=exchange.source,
        usage=exchange.usage,
        bytes_sent=connection.bytes_sent,
        ttft_seconds=first_byte - exchange.started if first_byte is not None else None,
        duration_seconds=time.perf_counter() - exchange.started,
        attempts=len(exchange.attempts),
    )
