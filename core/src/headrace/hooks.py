"""The typed face of the compiled hooks: one method per hook, and what becomes of a failure in each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, GatewayError, HeadraceError, PluginError, PluginFault, Problem
from .exchange import Attempt, Exchange, Outcome, Principal, Reply, Target
from .limits import Standing
from .registry import Hook
from .streaming import Tap, Taps
from .timelimit import Rest, time_limit, within

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from .gateway import Gateway
    from .supervisor import Process

logger = logging.getLogger("headrace.hooks")

NOTIFY_SECONDS = 10.0
"""How long one plugin may take to hear of something."""

Calls = tuple[tuple[str, Callable[..., Any]], ...]


class Hooks:
    """Calls hooks in their frozen order. Holds no state of a request.

    `trace` logs tracebacks with failures that are survived; `startup_timeout` (seconds) interrupts a setup hook that
    blocks; `on_fault` is told of each plugin and hook of a request that failed.
    """

    def __init__(
        self,
        hooks: Mapping[str, Hook],
        *,
        trace: bool = False,
        startup_timeout: float = 30.0,
        on_fault: Callable[[str, str], None] | None = None,
    ) -> None:
        self._calls: dict[str, Calls] = {name: hook.calls for name, hook in hooks.items()}
        self.compiled = dict(hooks)
        self.trace = trace
        self._startup_timeout = startup_timeout
        self._on_fault = on_fault
        calls = self._calls
        self._authenticate = calls["authenticate"]
        self._authorize = calls["authorize"]
        self._transform_request = calls["transform_request"]
        self._admit = calls["admit"]
        self._arrange = calls["arrange"]
        self._cache_lookup = calls["cache_lookup"]
        self._prepare_attempt = calls["prepare_attempt"]
        self._on_attempt = calls["on_attempt"]
        self._transform_reply = calls["transform_reply"]
        self._open_tap = calls["open_tap"]
        self._on_complete = calls["on_complete"]
        self.tells_of_attempts = bool(self._on_attempt)
        """Whether anybody wants to hear of single attempts."""

    def implementers(self, hook: str) -> tuple[str, ...]:
        """The plugins that implement a hook, in order."""
        return tuple(name for name, _ in self._calls[hook])

    # --- setup -------------------------------------------------------------------------------------------------

    def setup(self, hook: str, *arguments: Any) -> None:
        """Call one of the `register_…` hooks.

        Raises:
            PluginError: naming the plugin and the hook.
            ConfigError: several plugins failed.
        """
        failures: list[PluginError] = []
        for name, call in self._calls[hook]:
            try:
                with self._starting(name, hook):
                    call(*arguments)
            except PluginError as error:
                failures.append(error)
        if len(failures) > 1:
            raise ConfigError([Problem(f"plugin {each.plugin!r}, hook {hook!r}", each.problem) for each in failures])
        for failure in failures:
            raise failure

    def collect_setup(self, hook: str, *arguments: Any) -> list[Any]:
        """The answers of a COLLECT hook of the setup that are not None. Raises PluginError."""
        answers = []
        for name, call in self._calls[hook]:
            with self._starting(name, hook):
                answers.append(call(*arguments))
        return [answer for answer in answers if answer is not None]

    def nginx_fragments(self, gateway: Gateway) -> list[Mapping[str, str]]:
        return self.collect_setup("nginx_fragments", gateway)

    def processes(self, gateway: Gateway) -> list[Process]:
        return [process for found in self.collect_setup("processes", gateway) for process in found]

    def announce(self, gateway: Gateway) -> dict[str, str]:
        fields: dict[str, str] = {}
        for found in self.collect_setup("announce", gateway):
            fields = {**found, **fields}
        return fields

    def asgi_wrapper(self, app: ASGIApp) -> ASGIApp:
        for name, call in self._calls["asgi_wrapper"]:
            with self._starting(name, "asgi_wrapper"):
                app = call(app) or app
        return app

    @contextlib.asynccontextmanager
    async def lifespan(self, gateway: Gateway) -> AsyncIterator[None]:
        """Enter every plugin's lifespan, each within the time limit; leave them all, whatever one of them does."""
        async with AsyncExitStack() as stack:
            for name, call in self._calls["lifespan"]:
                with self._starting(name, "lifespan"):
                    manager = call(gateway)
                if manager is not None:
                    await self._enter(name, manager, stack)
            yield

    async def _enter(self, plugin: str, manager: AbstractAsyncContextManager[None], stack: AsyncExitStack) -> None:
        """Enter one lifespan. What waits too long is cancelled; what blocks the loop is interrupted a little later."""
        seconds = self._startup_timeout
        with _start_up_fault(plugin, "lifespan"), time_limit(plugin, "the start", seconds + 1.0, "lifespan"):
            try:
                async with asyncio.timeout(seconds) as limit:
                    await stack.enter_async_context(manager)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                message = f"did not start in {seconds:g} s (server.startup_timeout)"
                raise PluginError(plugin, message, "lifespan") from error

    @contextlib.contextmanager
    def _starting(self, plugin: str, hook: str) -> Iterator[None]:
        with _start_up_fault(plugin, hook), time_limit(plugin, "the call", self._startup_timeout, hook):
            yield

    # --- per request -------------------------------------------------------------------------------------------

    async def authenticate(self, exchange: Exchange) -> Principal | None:
        for name, call in self._authenticate:
            try:
                principal: Principal | None = await call(exchange)
            except GatewayError:
                raise
            except Exception as error:
                raise self._fault(name, "authenticate", error) from error
            if principal is not None:
                return principal
        return None

    def authorize(self, exchange: Exchange) -> Awaitable[None]:
        return self._each(self._authorize, "authorize", exchange)

    def transform_request(self, exchange: Exchange) -> Awaitable[None]:
        return self._each(self._transform_request, "transform_request", exchange)

    def admit(self, exchange: Exchange) -> AbstractAsyncContextManager[None]:
        """Everything the request holds while it lasts, as one context."""
        return _Admission(self._admit, exchange, self._fault) if self._admit else _NOTHING

    async def cache_lookup(self, exchange: Exchange) -> Reply | None:
        for name, call in self._cache_lookup:
            try:
                reply: Reply | None = await call(exchange)
            except GatewayError:
                raise
            except Exception as error:
                self._log(name, "cache_lookup", error, exchange)
                continue
            if reply is not None:
                return reply
        return None

    def arrange(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target]:
        for name, call in self._arrange:
            try:
                arranged: Sequence[Target] | None = call(exchange, targets)
            except GatewayError:
                raise
            except Exception as error:
                self._log(name, "arrange", error, exchange)
                continue
            if arranged is not None:
                targets = arranged
        return targets

    def prepare_attempt(self, attempt: Attempt) -> Awaitable[None]:
        return self._each(self._prepare_attempt, "prepare_attempt", attempt)

    def on_attempt(self, attempt: Attempt, outcome: Outcome) -> Awaitable[None]:
        return self._notify(self._on_attempt, "on_attempt", attempt.exchange, attempt, outcome)

    def transform_reply(self, exchange: Exchange, reply: Reply) -> Awaitable[None]:
        return self._each(self._transform_reply, "transform_reply", exchange, reply)

    def wrap_stream(self, exchange: Exchange, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        for name, call in self._calls["wrap_stream"]:
            try:
                stream = call(exchange, stream) or stream
            except GatewayError:
                raise
            except Exception as error:
                raise self._fault(name, "wrap_stream", error) from error
        return stream

    async def standing(self, principal: Principal) -> list[Standing]:
        """How the caller's limits stand. Raises GatewayError."""
        found: list[Standing] = []
        for name, call in self._calls["standing"]:
            try:
                found += await call(principal) or ()
            except GatewayError:
                raise
            except Exception as error:
                raise self._fault(name, "standing", error) from error
        return found

    def open_taps(self, exchange: Exchange) -> Taps | None:
        """Everybody who watches the reply to come; None if nobody does."""
        taps: list[tuple[str, Tap]] = []
        for name, call in self._open_tap:
            try:
                tap = call(exchange)
            except Exception as error:
                self._log(name, "open_tap", error, exchange)
                continue
            if tap is not None:
                taps.append((name, tap))
        return Taps(taps, lambda plugin, error: self._log(plugin, "open_tap", error, exchange)) if taps else None

    async def handle_error(self, exchange: Exchange, error: GatewayError) -> GatewayError:
        for name, call in self._calls["handle_error"]:
            try:
                replaced: GatewayError | None = await call(exchange, error)
            except GatewayError as raised:
                return raised
            except (Exception, asyncio.CancelledError) as fault:
                if is_own_cancellation(fault):
                    raise
                self._log(name, "handle_error", fault, exchange)
                continue
            if replaced is not None:
                return replaced
        return error

    def on_complete(self, exchange: Exchange, outcome: Outcome) -> Awaitable[None]:
        return self._notify(self._on_complete, "on_complete", exchange, exchange, outcome)

    async def _each(self, calls: Calls, hook: str, *arguments: Any) -> None:
        for name, call in calls:
            try:
                await call(*arguments)
            except GatewayError:
                raise
            except Exception as error:
                raise self._fault(name, hook, error) from error

    async def _notify(self, calls: Calls, hook: str, exchange: Exchange, *arguments: Any) -> None:
        """Tell everybody: what one of them does, or does not get done in time, is no matter of the others."""
        for name, call in calls:
            try:
                work = call(*arguments)
                try:
                    waited_for = work.send(None)
                except StopIteration:
                    continue
                await within(NOTIFY_SECONDS, Rest(work, waited_for))
            except (Exception, asyncio.CancelledError) as error:
                if is_own_cancellation(error):
                    raise
                self._log(name, hook, error, exchange)

    def _fault(self, plugin: str, hook: str, error: Exception) -> PluginFault:
        """What the client is told of a plugin that failed."""
        if self._on_fault is not None:
            self._on_fault(plugin, hook)
        return PluginFault(plugin, hook, error)

    def _log(self, plugin: str, hook: str, error: BaseException, exchange: Exchange) -> None:
        """Mention a failure that is survived."""
        if self._on_fault is not None:
            self._on_fault(plugin, hook)
        logger.error(
            "plugin %r failed in hook %r (request %s): %s: %s",
            plugin,
            hook,
            exchange.id,
            type(error).__name__,
            error,
            exc_info=error if self.trace else None,
        )


def is_own_cancellation(error: BaseException) -> bool:
    """Whether it is this task that is being cancelled: a plugin may let another task's cancellation escape."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


class _Admission:
    """Enters what the `admit` hooks return, in order, and leaves it in reverse. An AsyncExitStack at a fifth of its
    cost: nothing that is held here may swallow an exception."""

    __slots__ = ("_calls", "_entered", "_exchange", "_fault")

    def __init__(self, calls: Calls, exchange: Exchange, fault: Callable[[str, str, Exception], PluginFault]) -> None:
        self._calls = calls
        self._exchange = exchange
        self._fault = fault
        self._entered: list[AbstractAsyncContextManager[None]] = []

    async def __aenter__(self) -> None:
        asked = ""
        try:
            for name, call in self._calls:
                asked = name
                manager = call(self._exchange)
                if manager is not None:
                    await manager.__aenter__()
                    self._entered.append(manager)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            if isinstance(error, GatewayError) or not isinstance(error, Exception):
                raise
            raise self._fault(asked, "admit", error) from error

    async def __aexit__(self, *exception: Any) -> None:
        """Leaves all of them, whatever one of them does; of what they raise, the last is raised."""
        raised: BaseException | None = None
        while self._entered:
            try:
                await self._entered.pop().__aexit__(*exception)
            except BaseException as error:
                raised, exception = error, (type(error), error, error.__traceback__)
        if raised is not None:
            raise raised


_NOTHING: AbstractAsyncContextManager[None] = contextlib.nullcontext()


@contextlib.contextmanager
def _start_up_fault(plugin: str, hook: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise PluginError(plugin, "; ".join(problem.message for problem in error.problems), hook) from error
    except PluginError:
        raise
    except HeadraceError as error:
        raise PluginError(plugin, str(error), hook) from error
    except Exception as error:
        raise PluginError(plugin, f"failed: {type(error).__name__}: {error}", hook) from error


__all__: Sequence[str] = ["Hooks"]
