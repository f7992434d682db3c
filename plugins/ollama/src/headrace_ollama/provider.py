"""What `provider = "ollama"` means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import msgspec

from headrace.addresses import ca_bundle, http_proxy, root
from headrace.config import BackendConfig
from headrace.dialects import asks_for_usage
from headrace.edits import decode_fields
from headrace.errors import GatewayError, UpstreamError, UpstreamTimeout, envelope
from headrace.exchange import Attempt, Reply, Target, UpstreamRequest
from headrace.openai_api import ENDPOINTS, PATHS, OpenAIBackend
from headrace.timelimit import Deadline
from headrace.upstream import forwarded_headers, target_headers
from headrace.verdict import check

from . import embeddings, pictures
from .answering import ChatTranslation, CompletionTranslation
from .asking import Asked, Wish, ask_chat, ask_completion, ask_embedding
from .messages import NO_PICTURES, addresses
from .options import Options, read
from .requests import read_chat, read_embedding
from .stream import Events

if TYPE_CHECKING:
    from headrace.gateway import Gateway

DEFAULT_BASE_URL = "http://127.0.0.1:11434"
OWN_PATHS = ("/v1", "/api", "/api/chat", "/api/generate", "/api/embed", *PATHS.values())
"""What people write behind an address by mistake."""
PASSING = "ollama-openai"
"""The provider of backends with `api = "openai"`."""
NAMES = ("ollama", PASSING)
TOO_LONG = re.compile(
    r"longer than the context length|exceeds? (?:the |maximum )?context length|input is too long", re.I
)
"""How Ollama says it; the status differs from version to version."""
NO_LIMIT: AbstractContextManager[None] = nullcontext()
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]
JSON = [(b"content-type", b"application/json")]


class OllamaProvider:
    """Ollama by its address. Requests are translated into its own API; with `api = "openai"` they are not, and the
    target is another provider's."""

    name = "ollama"
    endpoints = ENDPOINTS
    native: frozenset[str] = frozenset()

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def target(self, name: str, config: BackendConfig) -> Target:
        """`base_url` is the server's address; without one it is Ollama on this machine."""
        options = read(config.options)
        return target_of(name, config, options, PASSING if options.api == "openai" else self.name)

    def build(self, attempt: Attempt) -> UpstreamRequest:
        """The request as it is asked in OpenAI's words: `send` translates it, so that whoever changes it before, to go
        on with an answer for instance, need not know Ollama's."""
        asked, target = attempt.asked, attempt.target
        return UpstreamRequest(
            url=target.base_url,
            headers=lambda: forwarded_headers(asked, target),
            body=asked.body,
            hides_usage=asked.streaming and asked.wants_usage and not asks_for_usage(attempt.asked.peek),
        )

    async def send(self, attempt: Attempt) -> Reply:
        """Translate, ask, translate. Raises GatewayError."""
        request = attempt.request
        assert request is not None
        if attempt.asked.endpoint.name == "embeddings":
            return await self._embed(attempt, request.body)
        asked = await self._asked(attempt, request.body)
        usage = asks_for_usage(attempt.asked.peek) or attempt.asked.wants_usage
        kind = ChatTranslation if attempt.asked.endpoint.name == "chat" else CompletionTranslation
        translation = kind(attempt.exchange.id, usage=usage)
        if attempt.asked.streaming:
            return await self._stream(attempt, asked, translation)
        reply = await self._ask(attempt, asked)
        if not reply.ok:
            return reply
        return Reply(reply.status, JSON, content=translation.whole(await _content(reply)), close=reply.aclose)

    async def _asked(self, attempt: Attempt, body: bytes) -> Asked:
        fields, wish = decode_fields(body), _wish(attempt)
        if attempt.asked.endpoint.name == "completions":
            asked = ask_completion(body, fields, wish)
        else:
            request = read_chat(body)
            origins = wish.options.image_origins
            named = addresses(request.messages) if origins else ()
            found = await pictures.fetched(named, origins, self._gateway.upstream) if named else NO_PICTURES
            asked = ask_chat(request, fields, wish, found)
        attempt.drop(*asked.dropped)
        return asked

    async def _stream(
        self, attempt: Attempt, asked: Asked, translation: ChatTranslation | CompletionTranslation
    ) -> Reply:
        """The reply, once its first event is here: until then another target can be asked."""
        seconds = attempt.target.timeouts.first_token
        patience = NO_LIMIT if seconds is None else Deadline(seconds, lambda: _late(seconds, attempt.target))
        with patience:
            reply = await self._ask(attempt, asked)
            if not reply.ok:
                return reply
            events = Events(reply, translation)
            try:
                await events.until_token(or_anything=seconds is None)
            except BaseException:
                await reply.aclose()
                raise
        return Reply(reply.status, EVENTS, stream=events, close=reply.aclose)

    async def _embed(self, attempt: Attempt, body: bytes) -> Reply:
        wanted = read_embedding(body)
        asked = ask_embedding(wanted, decode_fields(body), _wish(attempt))
        attempt.drop(*asked.dropped)
        reply = await self._ask(attempt, asked)
        if not reply.ok:
            return reply
        content = await embeddings.translated(await _content(reply), wanted)
        return Reply(reply.status, JSON, content=content, close=reply.aclose)

    async def _ask(self, attempt: Attempt, asked: Asked) -> Reply:
        """Ollama's reply, or the caller's error in OpenAI's words. Raises GatewayError: any other error."""
        assert attempt.request is not None
        target, streaming = attempt.target, attempt.asked.streaming
        headers = {**attempt.request.headers, "Content-Type": "application/json"}
        request = UpstreamRequest(url=target.base_url + asked.path, headers=headers, body=asked.body)
        reply = await self._gateway.upstream.send(target, request, checked=False, streaming=streaming)
        if reply.ok and (reply.stream is not None or reply.content):
            return reply
        try:
            error = error_of(reply)
            if error is None:
                check(reply, target)
                raise UpstreamError(f"The backend answered {reply.status} and nothing else: is its base_url right?")
        finally:
            await reply.aclose()
        return Reply(error.status, JSON, content=envelope(error))

    async def models(self, target: Target) -> Sequence[str]:
        """The models that have been pulled. Raises GatewayError."""
        return [each.name for each in (await tags(self._gateway, target)).models]


class PassingProvider(OpenAIBackend):
    """Ollama's OpenAI-compatible endpoints. Not to be named in a configuration: `api = "openai"` leads here."""

    name = PASSING
    endpoints = frozenset(("chat", "completions", "embeddings", "responses", "messages"))
    native = endpoints

    def target(self, name: str, config: BackendConfig) -> Target:
        return target_of(name, config, read({**config.options, "api": "openai"}), self.name)


def target_of(name: str, config: BackendConfig, options: Options, provider: str) -> Target:
    """A backend as a target. Raises ValueError: a sentence that says what to change."""
    base_url = root(config.base_url or DEFAULT_BASE_URL, OWN_PATHS)
    passing = provider == PASSING
    return Target(
        name=name,
        provider=provider,
        base_url=f"{base_url}/v1" if passing else base_url,
        model=config.model or None,
        api_key=config.api_key or None,
        headers=config.headers,
        weight=config.weight,
        timeouts=config.timeouts,
        max_connections=config.max_connections,
        prefill=config.prefill,
        stream_usage=config.stream_usage,
        verify=ca_bundle(config.verify),
        proxy=http_proxy(config.proxy),
        endpoints=_endpoints(config, PassingProvider.endpoints if passing else ENDPOINTS),
        options={"ollama": options},
    )


def _endpoints(config: BackendConfig, known: frozenset[str]) -> frozenset[str]:
    """Those that the configuration names; else those every Ollama has."""
    unknown = sorted(set(config.endpoints or ()) - known)
    if unknown:
        raise ValueError(f"endpoints: there is no {unknown[0]!r} (there are: {', '.join(sorted(known))})")
    return ENDPOINTS if config.endpoints is None else frozenset(config.endpoints)


def _wish(attempt: Attempt) -> Wish:
    asked, target = attempt.asked, attempt.target
    assert asked.peek is not None
    fallen_back = attempt.model is not None and attempt.model is not attempt.exchange.model
    name = target.model or (attempt.model.name if fallen_back and attempt.model is not None else asked.peek.model)
    return Wish(
        model=asked.peek.model if "*" in name else name,
        options=target.options["ollama"],
        streaming=asked.streaming,
        limit=asked.answer_limit,
        prefill=target.prefill,
    )


async def _content(reply: Reply) -> bytes:
    if reply.content is None:
        await reply.aclose()
        words = "The backend's answer is too long to be translated: ask for less at once."
        raise UpstreamError(words, retryable=False)  # nobody gives a shorter one
    return reply.content


def _late(seconds: float | None, target: Target) -> UpstreamTimeout:
    return UpstreamTimeout(f"The backend sent no token for {seconds:g} s.", detail=f"target {target.name}")


# --- errors ---


class _Error(msgspec.Struct):
    error: str


def error_of(reply: Reply) -> GatewayError | None:
    """What Ollama says is wrong with a request, in its own words; None if it is not the request that is wrong."""
    if reply.ok:
        return None
    try:
        words = msgspec.json.decode(reply.content or b"", type=_Error).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if TOO_LONG.search(words):
        return GatewayError(words, status=400, type="invalid_request_error", code="context_length_exceeded")
    if not 400 <= reply.status < 500 or reply.status in (401, 403, 407, 408, 429):
        return None
    missing = reply.status == 404 and "model" in words
    code = "model_not_found" if missing else "invalid_request"
    return GatewayError(
        words, status=reply.status, type="invalid_request_error", code=code, param="model" if missing else None
    )


# --- the models it has ---


class Tag(msgspec.Struct):
    """One of `GET /api/tags`."""

    name: str
    size: int = 0
    modified_at: str = ""
    details: dict[str, object] = {}


class Tags(msgspec.Struct):
    models: list[Tag]


async def tags(gateway: Gateway, target: Target) -> Tags:
    """The models that have been pulled. Raises GatewayError."""
    request = UpstreamRequest(
        method="GET", url=f"{own_root(target)}/api/tags", headers=target_headers(target), body=b""
    )
    reply = await gateway.upstream.send(target, request)
    await reply.aclose()
    try:
        return msgspec.json.decode(reply.content or b"", type=Tags)
    except msgspec.MsgspecError as error:
        raise UpstreamError(
            "The backend's list of models cannot be read: is its base_url right?", status=502, detail=str(error)
        ) from error


def own_root(target: Target) -> str:
    """The server's address."""
    return target.base_url.removesuffix("/v1")
