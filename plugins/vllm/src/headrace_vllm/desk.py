"""What can be asked of a running vLLM beside answers: its adapters, and to sleep and wake.

https://docs.vllm.ai/en/latest/features/lora/#dynamically-serving-lora-adapters,
https://docs.vllm.ai/en/latest/features/sleep_mode/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from headrace.errors import GatewayError, InvalidRequest, NotFound, UpstreamError
from headrace.exchange import Target, UpstreamRequest
from headrace.upstream import target_headers

from .provider import root_of

if TYPE_CHECKING:
    from headrace.gateway import Gateway

NO_LORA = (
    "This vLLM loads no adapters while it runs: start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 "
    "(an engine of the gateway's: runtime_lora = true)."
)
NO_SLEEP = (
    "This vLLM cannot sleep: start it with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1 (an engine of the gateway's: "
    "sleep_mode = true)."
)


class _Card(msgspec.Struct):
    id: str
    root: str | None = None
    parent: str | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


class _Sleeping(msgspec.Struct):
    is_sleeping: bool


class _Error(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)


class Adapter(msgspec.Struct, frozen=True):
    """A LoRA adapter of a server."""

    name: str
    path: str | None
    base: str | None
    """The model that it changes."""


class Desk:
    """Asks servers. The gateway must be running. Every method raises GatewayError."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def targets(self) -> dict[str, Target]:
        """The backends that are vLLM's, by name: each once, whatever models they serve."""
        targets = self._gateway.models.targets
        return {target.name: target for target in targets if target.provider == "vllm"}

    def target(self, name: str) -> Target:
        """Raises NotFound."""
        found = self.targets()
        if name not in found:
            raise NotFound(f"There is no vLLM backend {name!r} (there are: {', '.join(found) or 'none'}).")
        return found[name]

    async def adapters(self, target: Target) -> list[Adapter]:
        """Those that are loaded."""
        cards = await self._ask(target, "GET", f"{target.base_url}/models", None, _Cards)
        return [Adapter(card.id, card.root, card.parent) for card in cards.data if card.parent is not None]

    async def load(self, target: Target, name: str, path: str, *, replace: bool = False) -> None:
        """Load an adapter from a path that the server can read, or from the hub."""
        body = {"lora_name": name, "lora_path": path, **({"load_inplace": True} if replace else {})}
        await self._ask(target, "POST", f"{target.base_url}/load_lora_adapter", body, missing=NO_LORA)

    async def unload(self, target: Target, name: str) -> None:
        body = {"lora_name": name}
        await self._ask(target, "POST", f"{target.base_url}/unload_lora_adapter", body, missing=NO_LORA)

    async def sleep(self, target: Target, level: int) -> None:
        """Give GPU memory back; requests fail until it is woken."""
        await self._ask(target, "POST", f"{root_of(target)}/sleep?level={level}", {}, missing=NO_SLEEP)

    async def wake(self, target: Target) -> None:
        await self._ask(target, "POST", f"{root_of(target)}/wake_up", {}, missing=NO_SLEEP)

    async def is_sleeping(self, target: Target) -> bool:
        found = await self._ask(target, "GET", f"{root_of(target)}/is_sleeping", None, _Sleeping, missing=NO_SLEEP)
        return bool(found.is_sleeping)

    async def _ask(
        self,
        target: Target,
        method: str,
        url: str,
        body: dict[str, Any] | None,
        kind: Any = None,
        *,
        missing: str = "",
    ) -> Any:
        """The decoded answer, if a kind is given. `missing`: what it means that there is no such path."""
        headers = {"Content-Type": "application/json", **target_headers(target)}
        data = b"" if body is None else msgspec.json.encode(body)
        request = UpstreamRequest(method=method, url=url, headers=headers, body=data)
        reply = await self._gateway.upstream.send(target, request, checked=False)
        await reply.aclose()
        if not reply.ok:
            raise _refused(target, reply.status, reply.content or b"", missing)
        if kind is None:
            return None
        try:
            return msgspec.json.decode(reply.content or b"", type=kind)
        except msgspec.MsgspecError as error:
            raise UpstreamError(
                f"The answer of {target.name} cannot be read: is it vLLM?", detail=str(error)
            ) from error


def _refused(target: Target, status: int, content: bytes, missing: str) -> GatewayError:
    """An answer that is no success, in our words or, where they say more, in vLLM's."""
    said = _words(content)
    if status in (401, 403):
        return UpstreamError(f"{target.name} refuses our key.", code="upstream_auth")
    if status in (404, 405) and not said and missing:
        return InvalidRequest(missing, code="not_enabled")
    if status == 404:
        return NotFound(said or f"{target.name} has no such path.")
    if 400 <= status < 500:
        return InvalidRequest(said or f"{target.name} answers {status}.")
    return UpstreamError(said or f"{target.name} answers {status}.")


def _words(content: bytes) -> str:
    """vLLM's own message, if it is one of its errors."""
    try:
        return msgspec.json.decode(content, type=_Refusal).error.message
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
