"""What `provider = "lmstudio"` means: LM Studio's server (https://lmstudio.ai/docs/developer).

Its errors are OpenAI's in some versions and mere texts in others; what it does not know it answers with status 200 and
an error.
"""

from __future__ import annotations

import msgspec

from headrace.errors import UpstreamError
from headrace.exchange import Attempt, Reply, Target
from headrace.openai_api import ENDPOINTS
from headrace.presets import Rewording, meaning
from headrace.providers import Health

REFUSED = b'{"error"'
"""How an answer begins that is none, whatever its status."""


class _Model(msgspec.Struct):
    """https://lmstudio.ai/docs/developer/rest/endpoints: `GET /api/v0/models`."""

    id: str
    state: str = "loaded"
    """`loaded`, `not-loaded`, or on its way."""
    max_context_length: int | None = None
    """What the model could take."""
    loaded_context_length: int | None = None
    """What it was loaded for."""


class _Models(msgspec.Struct):
    data: list[_Model]


class LMStudioProvider(Rewording):
    """An LM Studio server by its address."""

    name = "lmstudio"
    default_base_url = "http://127.0.0.1:1234"
    endpoints = ENDPOINTS | {"responses", "messages"}
    usual = endpoints

    async def send(self, attempt: Attempt) -> Reply:
        """Send what was built. Raises GatewayError."""
        reply = await super().send(attempt)
        if reply.ok and (reply.content or b"").lstrip().replace(b'{ "', b'{"', 1).startswith(REFUSED):
            await reply.aclose()
            raise UpstreamError(
                "The backend does not know this endpoint: is it too old for it, or its base_url wrong?",
                detail=f"target {attempt.target.name} answered {reply.status} with an error",
                evidence=(reply.content or b"")[:500].decode("utf-8", "replace"),
            )
        return reply

    async def health(self, target: Target) -> Health:
        """By its own list, which tells what is loaded; older and newer versions have only OpenAI's.

        A model that is not loaded is well: the first request loads it.
        """
        reply = await self.get(target, "/api/v0/models")
        if reply.status in (401, 403):
            return Health(ok=False, reason=meaning(reply.status, "/api/v0/models"))
        try:
            found = msgspec.json.decode(reply.content or b"", type=_Models).data
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self.judged(target, await self.models(target))
        model = next((each for each in found if each.id == target.model), None)
        window = (model.loaded_context_length or model.max_context_length) if model is not None else None
        health = self.judged(target, [each.id for each in found], window)
        if model is None or health.reason or model.state == "loaded":
            return health
        return Health(ok=True, reason=f"the model {model.id!r} is {model.state}: the first request waits until it is")
