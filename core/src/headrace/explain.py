"""What would happen to a request: the pipeline's decisions, taken without sending anything."""

from __future__ import annotations

from typing import Any

import msgspec

from . import front
from .choice import NO_FRONT, NOTHING_NEEDS_IT, directions, obstacle, unwanted
from .errors import GatewayError, NotFound, error_object
from .exchange import Attempt, Exchange
from .gateway import Gateway
from .pipeline import identify, select_model, unsupported
from .providers import Explains, can_answer
from .translation import asked_of

SAMPLES: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "Hello"}]},
    "completions": {"prompt": "Hello"},
    "embeddings": {"input": "Hello"},
    "messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16},
    "count_tokens": {"messages": [{"role": "user", "content": "Hello"}]},
    "responses": {"input": "Hello"},
}
REQUEST_HOOKS = (
    "authenticate",
    "authorize",
    "transform_request",
    "admit",
    "open_tap",
    "cache_lookup",
    "arrange",
    "prepare_attempt",
    "on_attempt",
    "transform_reply",
    "wrap_stream",
    "handle_error",
    "on_complete",
)


async def explain(
    gateway: Gateway, *, model: str, key: str | None, endpoint: str = "chat", stream: bool = False
) -> dict[str, Any]:
    """Decide about a request as the pipeline would, up to but without `admit`.

    Returns:
        A JSON-ready report: who asks, the model, the targets in order with what each would be sent to, the delivery
        and why, the plugins behind every hook; under `error`, what the caller would be answered.

    Raises:
        NotFound: there is no endpoint of that name.
    """
    found = next((each for each in gateway.endpoints.values() if each.name == endpoint), None)
    if found is None:
        names = ", ".join(each.name for each in gateway.endpoints.values())
        raise NotFound(f"There is no endpoint {endpoint!r}; there are {names}.")
    body = msgspec.json.encode({"model": model, **({"stream": True} if stream else {}), **SAMPLES.get(endpoint, {})})
    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    scope = {"headers": headers, "method": "POST", "path": found.path, "client": ("127.0.0.1", 0)}
    exchange = Exchange(id="explain", endpoint=found, scope=scope, body=body)
    report: dict[str, Any] = {"endpoint": found.path, "model": model, "stream": stream}
    try:
        await _decide(exchange, gateway, report)
    except GatewayError as error:
        report["error"] = {"status": error.status, **error_object(error)}
    report["plugins"] = {hook: list(plugins) for hook in REQUEST_HOOKS if (plugins := gateway.hooks.implementers(hook))}
    return report


async def _decide(exchange: Exchange, gateway: Gateway, report: dict[str, Any]) -> None:
    exchange.principal = await identify(exchange, gateway)
    report["principal"] = {"id": exchange.principal.id, "name": exchange.principal.name}
    exchange.peek = exchange.endpoint.read(exchange.body)
    select_model(exchange, gateway, exchange.peek.model)
    await gateway.hooks.authorize(exchange)
    await gateway.hooks.transform_request(exchange)
    exchange.model = model = gateway.models.find(exchange.peek.model)
    report["policy"] = model.policy.name
    exchange.taps = gateway.hooks.open_taps(exchange)
    report["targets"] = [
        _target(exchange, gateway, number, target)
        for number, target in enumerate(gateway.hooks.arrange(exchange, model.ordered(exchange)), 1)
    ]
    if all("skipped" in target for target in report["targets"]):
        raise unsupported(exchange, model)
    first = next(target for target in report["targets"] if "skipped" not in target)
    report["delivery"] = first["delivery"]


def _target(exchange: Exchange, gateway: Gateway, number: int, target: Any) -> dict[str, Any]:
    provider = gateway.providers[target.provider]
    described = {"name": target.name, "provider": target.provider, "condition": target.state.condition}
    if exchange.model is not None and isinstance(exchange.model.policy, Explains):
        described["why"] = exchange.model.policy.why(exchange, target)
    if not can_answer(exchange.endpoint, target, provider):
        return {**described, "skipped": f"does not answer {exchange.endpoint.name}"}
    attempt = Attempt(exchange, number, target, provider, asked=asked_of(exchange, target, provider))
    attempt.request = provider.build(attempt)
    attempt.built = attempt.request.body
    sent = msgspec.json.decode(attempt.request.body)
    delivery = _delivery(attempt, gateway)
    return {**described, "url": attempt.request.url, "socket": target.socket, "model": sent.get("model"), **delivery}


def _delivery(attempt: Attempt, gateway: Gateway) -> dict[str, Any]:
    """Who would deliver, if the request came through the nginx that is configured last."""
    found = front.read(gateway.runtime_dir / front.FRONT_FILE)
    reason = unwanted(attempt.exchange, gateway) or obstacle(attempt, gateway)
    told = reason or (directions(attempt, found) if found is not None else NO_FRONT)
    if isinstance(told, str):
        return {"delivery": {"name": "inline", "reason": told}}
    return {"delivery": {"name": "offload", "reason": f"{NOTHING_NEEDS_IT}, if the request comes through nginx"}}
