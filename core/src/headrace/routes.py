"""Core's own routes: models, health and readiness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .dialects import OPENAI, ChatPeek, Endpoint
from .errors import Forbidden
from .exchange import ANONYMOUS, Exchange, Principal
from .gateway import Access, Gateway, Route
from .models import Model
from .pipeline import unknown_caller
from .providers import can_answer

if TYPE_CHECKING:
    from .providers import Health

_ROUTE = Endpoint("route", "", ChatPeek, OPENAI)
STARTED = 0
"""`created` of a model: not known here, and OpenAI clients only need a number."""


def core_routes(gateway: Gateway) -> list[Route]:
    """The routes that exist without any plugin."""
    handlers = _Handlers(gateway)
    return [
        Route("/v1/models", handlers.models, ("GET",), "user", "List the models"),
        Route("/v1/models/{model:path}", handlers.model, ("GET",), "user", "One model"),
        Route("/v1/usage", handlers.usage, ("GET",), "user", "Who asks, what they may do, and how their limits stand"),
        Route("/health", handlers.health, ("GET",), "public", "Is the gateway up"),
        Route("/health/live", handlers.health, ("GET",), "public", "Is the process alive"),
        Route("/health/ready", handlers.ready, ("GET",), "public", "Can every model be answered"),
    ]


async def require(request: Request, gateway: Gateway, access: Access) -> Principal:
    """Authenticate a request to a route and check its role.

    Raises:
        Unauthenticated, Forbidden.
    """
    exchange = Exchange(id=request.scope["headrace.id"], endpoint=_ROUTE, scope=dict(request.scope))
    principal = await gateway.hooks.authenticate(exchange)
    if principal is None:
        if gateway.config.server.anonymous and access == "user":
            principal = ANONYMOUS
        else:
            raise unknown_caller()
    request.state.principal = principal
    if access == "user" and principal.role == "metrics":
        raise Forbidden("This key may read metrics only.")
    if access != "user" and principal.role not in (access, "admin"):
        raise Forbidden(f"This path needs the role {access!r}.")
    return principal


class _Handlers:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def models(self, request: Request) -> Response:
        allowed = request.state.principal.models
        listed = [
            _describe(name, model, self._gateway)
            for model in self._gateway.models
            if allowed is None or model.name in allowed
            for name in (model.name, *model.aliases)
        ]
        return _json({"object": "list", "data": listed})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        model = self._gateway.models.find(name)
        allowed = request.state.principal.models
        if allowed is not None and model.name not in allowed:
            raise Forbidden(f"This key may not use the model {model.name!r}.", param="model")
        return _json(_describe(name, model, self._gateway))

    async def usage(self, request: Request) -> Response:
        """Of the caller's own key alone."""
        principal = request.state.principal
        return _json({**described(principal), "limits": await self._gateway.hooks.standing(principal)})

    async def health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Ready when every model has at least one backend that answers. Says which do not, and why."""
        found = await self._gateway.health.report(self._gateway.models)
        models = {model.name: any(found[target.name].ok for target in model.targets) for model in self._gateway.models}
        ready = all(models.values())
        body = {
            "status": "ready" if ready else "not ready",
            "models": {name: "ready" if ok else "no backend answers" for name, ok in models.items()},
            "backends": {name: _health(health) for name, health in found.items()},
        }
        return _json(body, 200 if ready else 503)


def described(principal: Principal) -> dict[str, Any]:
    """Who somebody is and what they may do, as they are told themselves."""
    return {
        "id": principal.id,
        "name": principal.name,
        "owner": principal.owner,
        "team": principal.team,
        "role": principal.role,
        "models": None if principal.models is None else sorted(principal.models),
        "endpoints": None if principal.endpoints is None else sorted(principal.endpoints),
    }


def _describe(name: str, model: Model, gateway: Gateway) -> dict[str, Any]:
    """As OpenAI does, and what else clients may want to know."""
    endpoints = [
        endpoint.name
        for endpoint in gateway.endpoints.values()
        if any(can_answer(endpoint, target, gateway.providers[target.provider]) for target in model.targets)
    ]
    said = msgspec.structs.asdict(model.capabilities).items()
    told = {
        "endpoints": endpoints,
        "context_window": model.context_window,
        "capabilities": {key: value for key, value in said if value is not None},
        "prefill": any(target.prefill for target in model.targets) or None,
    }
    own = {"id": name, "object": "model", "created": STARTED, "owned_by": model.targets[0].provider}
    return {**own, **{key: value for key, value in told.items() if value}}


def _health(health: Health) -> dict[str, Any]:
    milliseconds = None if health.latency_seconds is None else round(health.latency_seconds * 1000, 1)
    return {"status": "ok" if health.ok else "down", "reason": health.reason, "latency_ms": milliseconds}


def _json(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
