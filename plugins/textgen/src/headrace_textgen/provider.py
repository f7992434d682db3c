"""What `provider = "textgen"` means: text-generation-webui with `--api`
(https://github.com/oobabooga/text-generation-webui/blob/main/docs/12%20-%20OpenAI%20API.md).

It answers with the one model that is loaded, whatever is asked for. Some of its errors are OpenAI's, the rest
FastAPI's.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headrace.exchange import Target
from headrace.openai_api import ENDPOINTS
from headrace.presets import Rewording, meaning
from headrace.providers import Health

INFO = "/v1/internal/model/info"
NO_MODEL = ("", "None")
"""How it says that none is loaded."""


class _Info(msgspec.Struct):
    model_name: str | None = None


class TextgenProvider(Rewording):
    """A text-generation-webui by its address."""

    name = "textgen"
    default_base_url = "http://127.0.0.1:5000"
    endpoints = ENDPOINTS | {"messages"}

    async def health(self, target: Target) -> Health:
        """By the model that is loaded. What a backend calls its model is of no account: it is not looked at."""
        reply = await self.get(target, INFO)
        if reply.status in (401, 403):
            return Health(ok=False, reason=meaning(reply.status, INFO))
        names = _loaded(reply.content) if reply.status == 200 else await super().models(target)
        if not names:
            return Health(ok=False, reason="no model is loaded")
        return Health(ok=True)

    async def models(self, target: Target) -> Sequence[str]:
        """The one that is loaded, if one is; what else lies on its disk cannot be asked for. Raises GatewayError."""
        reply = await self.get(target, INFO)
        return _loaded(reply.content) if reply.status == 200 else await super().models(target)


def _loaded(content: bytes | None) -> list[str]:
    try:
        name = msgspec.json.decode(content or b"", type=_Info).model_name
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return []
    return [name] if name is not None and name not in NO_MODEL else []
