"""Asking Ollama how it is: whether it answers, and has the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from headrace.exchange import Target, UpstreamRequest
from headrace.providers import Health
from headrace.upstream import target_headers

from .provider import own_root, tags

if TYPE_CHECKING:
    from headrace.gateway import Gateway


class OllamaCheck:
    """The check for targets of the provider `ollama`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def check(self, target: Target) -> Health:
        """May raise GatewayError."""
        names = {full_name(each.name) for each in (await tags(self._gateway, target)).models}
        if target.model is None or full_name(target.model) in names or await self._knows(target, target.model):
            return Health(ok=True)
        return Health(
            ok=False,
            reason=f"it does not have the model {target.model!r}: headrace ollama pull {target.model} "
            f"--backend {target.name}",
        )

    async def _knows(self, target: Target, model: str) -> bool:
        """Whether it can say something of a model that it does not list, as of one that runs elsewhere."""
        request = UpstreamRequest(
            url=f"{own_root(target)}/api/show",
            headers={"Content-Type": "application/json", **target_headers(target)},
            body=msgspec.json.encode({"model": model}),
        )
        reply = await self._gateway.upstream.send(target, request, checked=False)
        await reply.aclose()
        return reply.ok


def full_name(model: str) -> str:
    """A model's name with its tag, which is `latest` where none is said."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"
