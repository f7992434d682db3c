"""The assembled gateway: configuration, plugins, what they registered, and where things are kept."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from .config import Config
from .dialects import OPENAI_ENDPOINTS, Endpoint
from .errors import ConfigError, HeadraceError, PluginError, Problem
from .estimate import Estimator
from .hooks import Hooks
from .models import Model, Models, build_backend, build_models
from .providers import HealthCheck, InOrder, Provider, RoutingPolicy
from .registry import HookWrapper, compile_hooks, load_plugins, specifications, wrapped
from .settings import examine, read

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from .audit import Auditor
    from .exchange import Target
    from .foundation import Foundation
    from .health import HealthBoard
    from .ledger import Ledger
    from .limits import Wall
    from .reporting import Reporting
    from .upstream import Upstream

SOCKET_PATH_LIMIT = 90
"""Unix socket paths are limited to 104 bytes (macOS) or 108 (Linux); file names take the rest."""

CORE_PATHS = frozenset(
    (
        *("/v1/models", "/v1/models/{model:path}", "/v1/usage", "/health", "/health/live", "/health/ready"),
        *("/openapi.json", "/docs"),
    )
)
"""What core serves itself."""

Access = Literal["public", "user", "metrics", "admin"]
Handler = Callable[["Request"], Awaitable["Response"]]


class Register(Protocol):
    """What a `register_…` hook is given. The name defaults to the object's own `name` (an endpoint's: its path)."""

    def __call__(self, thing: Any, /, name: str | None = None) -> None: ...


class Route(msgspec.Struct, frozen=True):
    """An HTTP route of a plugin."""

    path: str
    handler: Handler
    methods: tuple[str, ...]
    require: Access
    summary: str


class Gateway:
    """Everything a plugin may need to know.

    Made without I/O: `assemble()` lets plugins register, `running()` opens what needs a loop.

    `upstream` may be used from `lifespan` on.
    """

    def __init__(
        self,
        config: Config,
        source: str = "configuration",
        plugins: Mapping[str, type[Any]] | None = None,
        earlier: Sequence[Problem] = (),
        before: Gateway | None = None,
    ) -> None:
        """
        Args:
            config: checked, as `settings.load` gives it.
            source: what problems are reported under, a file's name.
            plugins: classes to use for these names in place of what is installed: for tests.
            earlier: problems found before, to be raised along with those of the plugins.
            before: the gateway in this process that this one is to take over from.

        Raises:
            ConfigError, PluginError: everything that is wrong, at once.
        """
        self.config = config
        self.source = source
        self.state_dir = Path(config.server.state_dir).absolute()
        self.providers: dict[str, Provider] = {}
        self.policies: dict[str, RoutingPolicy] = {"in_order": InOrder()}
        self.health_checks: dict[str, HealthCheck] = {}
        self.endpoints: dict[str, Endpoint] = dict(OPENAI_ENDPOINTS)
        self.routes: list[Route] = []
        self.ledgers: dict[str, Ledger] = {}
        self.walls: list[Wall] = []
        """What a server in front may refuse by itself: a plugin adds to them when it is made."""
        self.counts = False
        """Whether a plugin counts with `ledger`: it says so when it is made."""
        self._before = before
        self.worker: int = before.worker if before else 0
        """Which of `workers` this process is."""
        self.workers: int = before.workers if before else config.server.workers
        """How many run: one without nginx, whatever is configured."""
        self.behind_front = False
        """Whether this process listens for the server in front alone."""
        self.longest_admission = 0.0
        """Seconds that a request may wait in `admit`: a plugin that makes it wait says so when it is made."""
        self.watches = False
        """Whether a plugin finds out in what condition backends are: it says so when it is made."""
        self.loads_wanted: set[str] = set()
        """Backends by name of whose engines a plugin wants to know how busy they are (`TargetState.engine`): it adds to
        them when it is made, and `routing` asks."""
        self.usage_wanted = False
        """Whether a plugin reads `Outcome.usage` of all requests: it says so when it is made. One that reads it of some
        says so for each, by `Exchange.usage_wanted`."""
        self.superseded = asyncio.Event()
        """Set when another gateway has taken over: what a plugin does beside requests ends then."""
        self.open_requests = 0
        """How many are being answered."""
        self.emptied: asyncio.Event | None = None
        """Set when `open_requests` comes to nothing, once another gateway has taken over."""
        self.looking = False
        """Whether it runs for a command that only looks: a plugin then begins nothing by itself."""
        self.reply_changer = ""
        """Why no answer can be delivered by nginx: a plugin that changes replies."""
        self.collectors: list[Any] = []
        """What plugins offer to be measured by: objects with a method `collect()`, as collectors of prometheus_client
        have it. A plugin appends its own when it is made, or in its lifespan; `metrics` calls them once a second."""
        self.auditors: list[Auditor] = []
        """Who is told what is done to the gateway itself: a plugin appends its own when it is made."""
        self.hook_wrapper: HookWrapper | None = None
        """Puts something around what plugins do per request, once, when the hooks are compiled: a plugin that measures
        them sets it when it is made."""
        self.on_fault: Callable[[str, str], None] | None = None
        """Told of a plugin and the hook in which it failed by a fault of its own: set like `hook_wrapper`."""
        self.models = Models(())
        self.estimator = Estimator()
        """How many tokens requests may cost."""
        self.hooks = Hooks(specifications())
        self.plugins, problems = load_plugins(config, self, source, plugins or {})
        self.hooks = Hooks(
            wrapped(
                compile_hooks(
                    self.plugins,
                    config.order,
                    source,
                    configured=config.plugins,
                    earlier=[*earlier, *_check_listen(config.server.listen, source), *problems],
                ),
                self.hook_wrapper,
            ),
            trace=config.server.trace_errors,
            startup_timeout=config.server.startup_timeout,
            on_fault=self.on_fault,
        )
        self._assembled = False

    @classmethod
    def from_file(cls, path: Path, before: Gateway | None = None) -> Gateway:
        """The gateway that a configuration file describes, not yet assembled.

        Raises:
            ConfigError: everything that is wrong with the file and its plugins, at once.
        """
        config, problems = examine(read(path), source=str(path))
        return cls(config, str(path), earlier=problems, before=before)

    def assemble(self) -> Gateway:
        """Let the plugins register what they bring, and put the models together. Does so once.

        Raises:
            ConfigError, PluginError: a plugin failed, a backend was refused, a name is unknown.
        """
        if not self._assembled:
            self._assembled = True
            self._register_everything()
        return self

    def _register_everything(self) -> None:
        self.hooks.setup("register_providers", self._register(self.providers))
        self.hooks.setup("register_routing_policies", self._register(self.policies))
        self.hooks.setup("register_health_checks", self._register(self.health_checks))
        self.hooks.setup("register_dialects", self._register(self.endpoints, key="path"))
        self.hooks.setup("register_ledgers", self._register(self.ledgers))
        self.models = build_models(self.config, self.providers, self.policies, self.source)
        if self._before is not None:
            self.models.adopt(self._before.models, watched=self.watches)
        for hook in ("transform_reply", "wrap_stream"):
            for plugin in self.hooks.implementers(hook):
                self.reply_changer = f"the plugin {plugin!r} changes replies ({hook})"
        self.hooks.setup("register_routes", self)

    def oddities(self) -> list[str]:
        """What is no mistake and hardly meant: said by `config check` and by `up`."""
        found = []
        if not self.config.server.anonymous and not self.hooks.implementers("authenticate"):
            found.append("every request will be refused: add [plugins.keys], or set server.anonymous = true")
        if not len(self.models) and not self.models.spare:
            found.append("there are no models: add [models.NAME]")
        return found

    def _register(self, into: dict[str, Any], key: str = "name") -> Register:
        def register(thing: Any, /, name: str | None = None) -> None:
            label = name or getattr(thing, key)
            if label in into:
                raise ConfigError([Problem(self.source, f"two plugins register {label!r}")])
            into[label] = thing

        return register

    def add_route(
        self,
        path: str,
        handler: Handler,
        *,
        methods: Sequence[str] = ("GET",),
        require: Access = "public",
        summary: str = "",
    ) -> None:
        """Serve an HTTP path from a plugin; see the hook `register_routes`."""
        if path in CORE_PATHS or path in self.endpoints or any(route.path == path for route in self.routes):
            raise ConfigError([Problem(self.source, f"the route {path} is taken")])
        self.routes.append(Route(path, handler, tuple(methods), require, summary))

    def backend(self, name: str) -> Target:
        """A backend by its name, `[backends.NAME]`, whether a model uses it or not. For `register_routes` and before:
        from then on it is one of `models.targets`.

        Raises:
            ConfigError: there is none of that name, or its provider refuses it.
        """
        for target in self.models.targets:
            if target.name == name:
                return target
        target = self.models.spare[name] = build_backend(self.config, self.providers, name, self.source)
        return target

    def discover(self, name: str, targets: Sequence[Target]) -> bool:
        """From now on clients may ask for this model, which nobody has configured: it is like a `[models.NAME]` with
        nothing but targets. Called again it has these targets; without any, it is gone.

        Returns whether the name is free: models that are configured, and their aliases, stay as they are.
        """
        return self.models.discover(Model(name, tuple(targets), self.policies["in_order"], self.config.server.delivery))

    @property
    def orphans(self) -> int:
        """Requests to backends, of the core's own, that nobody waits for any more: at least so many. Anything but 0 for
        longer than a moment is a fault of ours; metrics call it `headrace_upstream_orphans`."""
        return max(0, self.upstream.in_use - self.open_requests)

    @cached_property
    def ledger(self) -> Ledger:
        """What limits and budgets are counted with: what a plugin has registered, else a file that all workers share.

        Open while the gateway runs, if a plugin has set `counts`.
        """
        return next(iter(self.ledgers.values()), self.foundation.ledger)

    @cached_property
    def foundation(self) -> Foundation:
        """What this process has once; first used when it is known which worker it is."""
        from .foundation import Foundation

        return self._before.foundation if self._before is not None else Foundation(self)

    @property
    def runtime_dir(self) -> Path:
        """Where sockets and process ids live: `state_dir/run`, or a short path of the same user if that is too long.

        Not created by reading it: call `make_dirs`.
        """
        path = self.state_dir / "run"
        if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
            return path
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}-{digest}"

    @property
    def core_socket(self) -> Path:
        """The unix socket on which this worker of the core listens for our nginx."""
        return self.core_sockets[self.worker]

    @property
    def core_sockets(self) -> list[Path]:
        """Those of all workers."""
        more = range(1, self.config.server.workers)
        return [self.runtime_dir / "core.sock", *(self.runtime_dir / f"core-{number}.sock" for number in more)]

    def make_dirs(self) -> None:
        """Create the state and runtime directories, readable by their owner alone.

        Raises:
            HeadraceError: a directory exists and belongs to somebody else, or cannot be made.
        """
        for path in (self.state_dir, self.runtime_dir):
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise HeadraceError(f"cannot create {path}: {error.strerror}") from error
            if path.stat().st_uid != os.getuid():
                raise HeadraceError(f"{path} belongs to another user: set server.state_dir")

    @contextlib.asynccontextmanager
    async def running(self, *, looking: bool = False) -> AsyncIterator[None]:
        """Open the client and enter every plugin's lifespan; close them in the opposite order.

        `looking`: for a command that only looks, while another process may run this gateway.
        """
        from .health import HealthBoard, ListsModels
        from .upstream import Upstream

        self.make_dirs()
        self.looking = looking
        checks = {name: self.health_checks.get(name) or ListsModels(each) for name, each in self.providers.items()}
        self.health: HealthBoard = HealthBoard(self.config.health, checks)
        self.upstream: Upstream = Upstream()
        self.reporting: Reporting = self.foundation.reporting
        self._before = None
        try:
            async with contextlib.AsyncExitStack() as stack:
                if not looking:
                    await stack.enter_async_context(self.foundation.used(self))
                await stack.enter_async_context(self._counting(looking))
                await stack.enter_async_context(self.hooks.lifespan(self))
                yield
        finally:
            await self.upstream.aclose()

    def _counting(self, looking: bool) -> AbstractAsyncContextManager[None]:
        """What a plugin has registered is this gateway's alone."""
        if not self.counts:
            return contextlib.nullcontext()
        if looking:
            return self.ledger.reading()
        return contextlib.nullcontext() if self.ledger is self.foundation.ledger else self.ledger.running()


def _check_listen(listen: str, source: str) -> Iterator[Problem]:
    host, _, port = listen.rpartition(":")
    is_address = bool(host) and port.isdecimal() and int(port) <= 65535
    if not is_address and not (listen.startswith("unix:") and listen != "unix:"):
        yield Problem(f"{source}: [server] listen", f"{listen!r} is neither HOST:PORT nor unix:PATH")


__all__ = ["ConfigError", "Gateway", "PluginError", "Register", "Route"]
