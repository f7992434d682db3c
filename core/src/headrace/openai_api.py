"""Speaking OpenAI's API to a backend that speaks it too: what the providers of such backends have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from .config import BackendConfig
from .dialects import Tokens, asks_for_usage
from .edits import edit
from .errors import UpstreamError
from .estimate import asked_tokens
from .exchange import Attempt, Exchange, Reply, Target, UpstreamRequest
from .upstream import forwarded_headers, target_headers

if TYPE_CHECKING:
    from .gateway import Gateway

PATHS = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "responses": "/responses",
    "messages": "/messages",
    "count_tokens": "/messages/count_tokens",
}
"""Where OpenAI's API, and servers that speak Anthropic's beside it, have what core and plugins call by these names
(https://platform.openai.com/docs/api-reference)."""
ENDPOINTS = frozenset(("chat", "completions", "embeddings"))
"""Those that every such server has."""


TELLS_USAGE = frozenset(("responses", "messages"))
"""Endpoints whose streams tell of usage unasked."""
ANSWER_FIELDS = ("max_tokens", "max_completion_tokens")
TOKENIZED = (
    *("messages", "prompt", "tools", "chat_template", "chat_template_kwargs", "add_generation_prompt"),
    *("continue_final_message", "add_special_tokens", "mm_processor_kwargs"),
)
"""Fields of a request that become its prompt."""


def _with_usage(exchange: Exchange) -> dict[str, Any]:
    """The client's `stream_options`, and that the usage is told."""
    given = exchange.fields.get("stream_options", msgspec.Raw(b"null"))
    options: dict[str, msgspec.Raw] = msgspec.json.decode(given, type=dict[str, msgspec.Raw] | None) or {}
    return {**options, "include_usage": True}


def _answer_field(exchange: Exchange, target: Target) -> str:
    """Every server knows `max_tokens`, but OpenAI's own, whose newer models refuse it in chats."""
    if exchange.endpoint.name == "responses":
        return "max_output_tokens"
    own = "//api.openai.com" in target.base_url or ".openai.azure.com" in target.base_url
    return "max_completion_tokens" if own and exchange.endpoint.name == "chat" else "max_tokens"


class _Counted(msgspec.Struct):
    count: Tokens


class _ModelEntry(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ModelEntry]


class OpenAIBackend:
    """Requests and replies keep their bytes; only the model's name is replaced, where the backend has another.

    A provider inherits this and adds `name` and `target()`; `endpoints` may be narrowed.
    """

    endpoints = ENDPOINTS
    native = endpoints

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def known(self, config: BackendConfig) -> frozenset[str] | None:
        """The endpoints that a backend's configuration names; None if it names none. Raises ValueError."""
        unknown = sorted(set(config.endpoints or ()) - self.endpoints)
        if unknown:
            raise ValueError(f"endpoints: there is no {unknown[0]!r} (there are: {', '.join(sorted(self.endpoints))})")
        return None if config.endpoints is None else frozenset(config.endpoints)

    def build(self, attempt: Attempt) -> UpstreamRequest:
        """The client's body, its headers that may pass, the target's own."""
        exchange, target = attempt.asked, attempt.target
        changes: dict[str, Any] = {}
        name = target.model or (attempt.model.name if attempt.model and attempt.model is not exchange.model else None)
        if name is not None and "*" in name:  # no name of its own
            name = None
        if name is not None and exchange.peek is not None and exchange.peek.model != name:
            changes["model"] = name
        if exchange.answer_limit is not None and exchange.endpoint.name != "embeddings" and not asked_tokens(exchange):
            given = [name for name in ANSWER_FIELDS if name in exchange.fields]
            changes.update(dict.fromkeys(given or (_answer_field(exchange, target),), exchange.answer_limit))
        if attempt.asked is not attempt.exchange and "max_tokens" in exchange.fields:
            field = _answer_field(exchange, target)
            if field != "max_tokens":
                changes.update({field: exchange.fields["max_tokens"], "max_tokens": None})
        told = exchange.endpoint.name not in TELLS_USAGE and target.stream_usage and exchange.streaming
        forced = told and exchange.wants_usage and not asks_for_usage(exchange.peek)
        if forced:
            changes["stream_options"] = _with_usage(exchange)
        body, edits = edit(exchange.body, exchange.fields, changes) if changes else (exchange.body, ())
        return UpstreamRequest(
            url=target.base_url + PATHS[exchange.endpoint.name],
            headers=lambda: forwarded_headers(exchange, target),
            body=body,
            edits=edits,
            hides_usage=forced,
        )

    async def send(self, attempt: Attempt) -> Reply:
        """Send what was built. Raises GatewayError."""
        assert attempt.request is not None
        streaming = attempt.asked.streaming
        return await self._gateway.upstream.send(attempt.target, attempt.request, streaming=streaming)

    async def count_prompt(self, exchange: Exchange, target: Target) -> int:
        """Tokens of a request's prompt, as vLLM's `/tokenize` counts them
        (https://docs.vllm.ai/en/latest/serving/openai_compatible_server/#tokenizer-api).

        Raises:
            GatewayError: the backend has no such thing, or cannot count this prompt.
        """
        assert exchange.peek is not None
        asked = {name: exchange.fields[name] for name in TOKENIZED if name in exchange.fields}
        request = UpstreamRequest(
            url=target.base_url.removesuffix("/v1") + "/tokenize",
            headers={"Content-Type": "application/json", **target_headers(target)},
            body=msgspec.json.encode({**asked, "model": target.model or exchange.peek.model}),
        )
        reply = await self._gateway.upstream.send(target, request)
        await reply.aclose()
        try:
            return msgspec.json.decode(reply.content or b"", type=_Counted).count
        except msgspec.MsgspecError as error:
            raise UpstreamError("The backend does not count tokens.", status=reply.status, detail=str(error)) from error

    async def models(self, target: Target) -> Sequence[str]:
        """The names under `/models`. Raises GatewayError."""
        request = UpstreamRequest(
            method="GET", url=target.base_url + "/models", headers=target_headers(target), body=b""
        )
        reply = await self._gateway.upstream.send(target, request)
        await reply.aclose()
        try:
            return [entry.id for entry in msgspec.json.decode(reply.content or b"", type=_ModelList).data]
        except msgspec.MsgspecError as error:
            raise UpstreamError(
                "The backend's list of models cannot be read: is its base_url right?", detail=str(error)
            ) from error
