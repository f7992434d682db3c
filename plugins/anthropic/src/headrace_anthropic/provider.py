"""What `provider = "anthropic"` means: Anthropic itself, or a server with the same API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from headrace import chat
from headrace.addresses import ca_bundle, http_proxy, openai_root
from headrace.config import BackendConfig
from headrace.dialects import Tokens, invalid_field
from headrace.edits import Edits, edit
from headrace.errors import InvalidRequest, UpstreamError
from headrace.exchange import Attempt, Exchange, Reply, Target, UpstreamRequest
from headrace.upstream import forwarded_headers, target_headers

from . import reply as replies
from .config import Options
from .events import chat_events
from .from_chat import as_messages, prompt
from .wire import VERSION

if TYPE_CHECKING:
    from headrace.gateway import Gateway

DEFAULT_BASE_URL = "https://api.anthropic.com/v1"
MOST_MODELS = 1000
"""Of one page of the list."""
PATHS = {"messages": "/messages", "count_tokens": "/messages/count_tokens", "chat": "/messages"}
NATIVE = frozenset(("messages", "count_tokens"))
NO_EDITS: Edits = ()
COUNTED = ("messages", "system", "tools", "tool_choice", "thinking", "output_config")
"""Fields of a Messages request that become its prompt."""
EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
JSON = [(b"content-type", b"application/json")]
_request = msgspec.json.Decoder(chat.Request).decode


class _Counted(msgspec.Struct):
    input_tokens: Tokens


class _Entry(msgspec.Struct):
    id: str


class _Listed(msgspec.Struct):
    data: list[_Entry]


class AnthropicProvider:
    """Messages pass byte for byte, but for the model's name; chats are translated."""

    name = "anthropic"
    endpoints = frozenset(PATHS)
    native = NATIVE

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def target(self, name: str, config: BackendConfig) -> Target:
        """`base_url` may be given with or without `/v1`; without one it is Anthropic's own. Raises ValueError."""
        if config.prefill:
            raise ValueError("prefill: the provider 'anthropic' does not go on with answers that others have begun")
        key = {"x-api-key": config.api_key} if config.api_key else {}
        return Target(
            name=name,
            provider=self.name,
            base_url=openai_root(config.base_url) if config.base_url else DEFAULT_BASE_URL,
            model=config.model or None,
            headers={**key, **{title.lower(): value for title, value in config.headers.items()}},
            weight=config.weight,
            timeouts=config.timeouts,
            max_connections=config.max_connections,
            verify=ca_bundle(config.verify),
            proxy=http_proxy(config.proxy),
            endpoints=_endpoints(config),
            options=msgspec.structs.asdict(_options(config)),
        )

    def build(self, attempt: Attempt) -> UpstreamRequest:
        """Raises InvalidRequest: a chat cannot be carried."""
        asked, target, edits, hides = attempt.asked, attempt.target, NO_EDITS, False
        assert asked.peek is not None
        if asked.endpoint.name == "chat":
            request = _decoded(asked)
            body, dropped = as_messages(request, _model(attempt), asked.answer_limit, Options(**target.options))
            attempt.drop(*dict.fromkeys((*chat.unknown(asked.fields), *dropped)))
            hides = asked.streaming and not (request.stream_options and request.stream_options.include_usage)
        else:
            changes: dict[str, Any] = {"model": name} if (name := _model(attempt)) != asked.peek.model else {}
            body, edits = edit(asked.body, asked.fields, changes) if changes else (asked.body, ())
        url = target.base_url + PATHS[asked.endpoint.name]
        return UpstreamRequest(url=url, headers=_headers(asked, target), body=body, edits=edits, hides_usage=hides)

    async def send(self, attempt: Attempt) -> Reply:
        """Raises GatewayError."""
        assert attempt.request is not None
        upstream, target = self._gateway.upstream, attempt.target
        reply = await upstream.send(target, attempt.request, checked=False, streaming=attempt.asked.streaming)
        try:
            replies.judge(reply, target)
            if attempt.asked.endpoint.name != "chat":
                reply.headers = replies.passed_on(reply.headers)
                return reply
            return _as_chat(reply)
        except BaseException:
            await reply.aclose()
            raise

    async def count_prompt(self, exchange: Exchange, target: Target) -> int:
        """Tokens of a request's prompt (https://platform.claude.com/docs/en/api/messages-count-tokens).

        Raises:
            GatewayError: the backend has no such thing, or cannot count this prompt.
        """
        assert exchange.peek is not None
        body: dict[str, Any] = {name: exchange.fields[name] for name in COUNTED if name in exchange.fields}
        if exchange.endpoint.name not in NATIVE:
            body = {name: value for name, value in prompt(_decoded(exchange), []).items() if value is not None}
        body["model"] = target.model or exchange.peek.model
        request = UpstreamRequest(
            url=target.base_url + PATHS["count_tokens"], headers=_own_headers(target), body=msgspec.json.encode(body)
        )
        reply = await self._gateway.upstream.send(target, request)
        await reply.aclose()
        try:
            return msgspec.json.decode(reply.content or b"", type=_Counted).input_tokens
        except msgspec.MsgspecError as error:
            raise UpstreamError("The backend does not count tokens.", status=reply.status, detail=str(error)) from error

    async def models(self, target: Target) -> Sequence[str]:
        """The names under `/models`. Raises GatewayError."""
        url = f"{target.base_url}/models?limit={MOST_MODELS}"
        request = UpstreamRequest(method="GET", url=url, headers=_own_headers(target), body=b"")
        reply = await self._gateway.upstream.send(target, request)
        await reply.aclose()
        try:
            return [entry.id for entry in msgspec.json.decode(reply.content or b"", type=_Listed).data]
        except msgspec.MsgspecError as error:
            raise UpstreamError(
                "The backend's list of models cannot be read: is its base_url right?", detail=str(error)
            ) from error


def _endpoints(config: BackendConfig) -> frozenset[str] | None:
    unknown = sorted(set(config.endpoints or ()) - PATHS.keys())
    if unknown:
        raise ValueError(f"endpoints: there is no {unknown[0]!r} (there are: {', '.join(sorted(PATHS))})")
    return None if config.endpoints is None else frozenset(config.endpoints)


def _options(config: BackendConfig) -> Options:
    try:
        return msgspec.convert(config.options, Options)
    except msgspec.ValidationError as error:
        raise ValueError(f"options: {error} (there are: max_tokens, thinking)") from error


def _model(attempt: Attempt) -> str:
    """The name that the backend knows the model by."""
    exchange, asked = attempt.exchange, attempt.asked
    assert asked.peek is not None
    falls_back = attempt.model is not None and attempt.model is not exchange.model
    name = attempt.target.model or (attempt.model.name if falls_back and attempt.model else asked.peek.model)
    return asked.peek.model if "*" in name else name


def _decoded(exchange: Exchange) -> chat.Request:
    try:
        return _request(exchange.body)
    except msgspec.ValidationError as error:
        raise invalid_field(error) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body cannot be read: {error}.", code="invalid_json") from error


def _headers(exchange: Exchange, target: Target) -> dict[str, str]:
    """Whatever version of the API a client names is its own affair; a chat's client names none."""
    found = {title.lower(): value for title, value in forwarded_headers(exchange, target).items()}
    if exchange.endpoint.name == "chat":
        found = {name: value for name, value in found.items() if name not in ("accept", "openai-beta")}
        found["content-type"] = "application/json"
    return {"anthropic-version": VERSION, **found}


def _own_headers(target: Target) -> dict[str, str]:
    return {"content-type": "application/json", "anthropic-version": VERSION, **target_headers(target)}


def _as_chat(reply: Reply) -> Reply:
    if not reply.ok:
        return Reply(reply.status, JSON, content=replies.refusal(reply), close=reply.aclose)
    if reply.stream is not None and reply.is_event_stream:
        return Reply(reply.status, EVENT_STREAM, stream=chat_events(reply.stream), close=reply.aclose)
    if reply.content is None:
        raise UpstreamError("The backend's answer is too long to be translated.")
    return Reply(reply.status, JSON, content=replies.whole(reply.content), close=reply.aclose)
