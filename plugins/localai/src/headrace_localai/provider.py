"""What `provider = "localai"` means: LocalAI (https://localai.io/reference/api-errors/).

Its errors are OpenAI's, and Anthropic's at `/v1/messages`, so that nginx may deliver whatever it says.
"""

from __future__ import annotations

from headrace.exchange import Target
from headrace.openai_api import ENDPOINTS
from headrace.presets import Preset, meaning
from headrace.providers import Health


class LocalAIProvider(Preset):
    """A LocalAI server by its address."""

    name = "localai"
    default_base_url = "http://127.0.0.1:8080"
    endpoints = ENDPOINTS | {"responses", "messages"}
    native = endpoints
    usual = endpoints

    async def health(self, target: Target) -> Health:
        """By `/readyz`, which is 503 while it starts and while it stops; `/healthz` tells whether it is there at all.

        A model that is not loaded is well: the first request loads it.
        """
        status = (await self.get(target, "/readyz")).status
        if status == 503:
            alive = (await self.get(target, "/healthz")).status == 200
            return Health(ok=False, starting=alive, reason="it starts or stops: 503 at /readyz")
        if status != 200:
            return Health(ok=False, reason=meaning(status, "/readyz"))
        return await self.listed(target)
