"""What `provider = "tgi"` means: Hugging Face's text-generation-inference.

Chats go to its `/v1/chat/completions`, for it has the template; completions to `/generate` and `/generate_stream`,
which take more and tell more than its `/v1/completions`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

import msgspec

from headrace.config import BackendConfig
from headrace.edits import decode_fields, merge_fields
from headrace.errors import GatewayError, RateLimited, UpstreamError
from headrace.exchange import Attempt, Exchange, Reply, Target, UpstreamRequest, header
from headrace.presets import Rewording, meaning, replaced, root_of, unheard
from headrace.providers import Health
from headrace.upstream import forwarded_headers, target_headers

from . import answering, chatting, generating, wire

ANY = "tgi"
"""The name by which TGI's one model is asked; any other names an adapter."""
PROMPT_TOKENS = b"x-prompt-tokens"
_EVENT = re.compile(r"data:\s*(\{[^\r\n]*\})")
_TOKENS = msgspec.json.Decoder(list[msgspec.Raw])


class _Tokenized(msgspec.Struct):
    tokenize_response: list[msgspec.Raw]


class TgiProvider(Rewording):
    """A text-generation-inference server by its address."""

    name = "tgi"
    default_base_url = "http://127.0.0.1:3000"
    endpoints = frozenset(("chat", "completions"))
    usual = endpoints

    def target(self, name: str, config: BackendConfig) -> Target:
        """`model` is an adapter, or left out. Raises ValueError."""
        return msgspec.structs.replace(super().target(name, config), model=config.model or ANY)

    def build(self, attempt: Attempt) -> UpstreamRequest:
        """Raises InvalidRequest."""
        if attempt.asked.endpoint.name == "completions":
            return _generation(attempt)
        request, fields = super().build(attempt), attempt.asked.fields
        attempt.drop(*unheard(fields, (name for name in fields if name not in chatting.SPOKEN)))
        built = decode_fields(request.body)
        changes = chatting.changes(built)
        if attempt.target.model is None:  # found in its list: the name is no adapter's
            changes["model"] = ANY
        if changes:
            request.body, request.edits = merge_fields(built, changes), ()
        return request

    async def send(self, attempt: Attempt) -> Reply:
        """Send what was built. Raises GatewayError."""
        asked = _translate(attempt) if attempt.asked.endpoint.name == "completions" else None
        try:
            reply = await super().send(attempt)
        except UpstreamError as error:
            refused = _refused(error, attempt)
            if refused is None:
                raise
            return refused
        if reply.status == 424:  # "Request failed during generation"
            raise UpstreamError("The backend failed with status 424.", evidence=_words(reply))
        if not reply.ok:
            return reply
        return _completion(reply, attempt, asked) if asked is not None else _chat(reply)

    async def health(self, target: Target) -> Health:
        """By `/health`: 503 if its shards do not answer. Until its model is loaded, its port is closed."""
        status = (await self.get(target, "/health")).status
        if status != 200:
            why = "its model does not answer: 503 at /health" if status == 503 else meaning(status, "/health")
            return Health(ok=False, reason=why)
        found = await self._info(target)
        return self.judged(target, (found.model_id, *([target.model] if target.model else ())), found.max_total_tokens)

    async def models(self, target: Target) -> Sequence[str]:
        """The one that it serves, by `/info`. Raises GatewayError."""
        return [(await self._info(target)).model_id]

    async def _info(self, target: Target) -> wire.Info:
        reply = await self.get(target, "/info")
        if reply.status in (401, 403):
            raise UpstreamError("The backend refused the gateway's own credentials.", code="upstream_auth")
        try:
            return wire.info(reply.content or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UpstreamError("The backend's /info cannot be read: is its base_url right?") from error

    async def count_prompt(self, exchange: Exchange, target: Target) -> int:
        """Tokens of a request's prompt, as `/chat_tokenize` and `/tokenize` count them. Raises GatewayError."""
        chats = exchange.endpoint.name == "chat"
        request = UpstreamRequest(
            url=root_of(target) + ("/chat_tokenize" if chats else "/tokenize"),
            headers={"Content-Type": "application/json", **target_headers(target)},
            body=exchange.body if chats else msgspec.json.encode({"inputs": generating.read(exchange.body).text}),
        )
        reply = await self._gateway.upstream.send(target, request)
        await reply.aclose()
        try:
            if chats:
                return len(msgspec.json.decode(reply.content or b"", type=_Tokenized).tokenize_response)
            return len(_TOKENS.decode(reply.content or b""))
        except msgspec.MsgspecError as error:
            raise UpstreamError("The backend does not count tokens.", status=reply.status, detail=str(error)) from error


def _generation(attempt: Attempt) -> UpstreamRequest:
    """A completion, yet in OpenAI's words: a stream that breaks is gone on with in them. Raises InvalidRequest."""
    exchange, target = attempt.asked, attempt.target
    generating.read(exchange.body).check()
    attempt.drop(*generating.left_out(exchange))
    path = "/generate_stream" if exchange.streaming else "/generate"
    return UpstreamRequest(
        url=root_of(target) + path,
        headers=lambda: forwarded_headers(exchange, target),
        body=exchange.body,
        hides_usage=exchange.streaming and exchange.wants_usage and not _tells_usage(exchange),
    )


def _translate(attempt: Attempt) -> generating.Asked:
    """Put what was built into TGI's words."""
    request = attempt.request
    assert request is not None
    asked = generating.read(request.body)
    request.body = generating.body(asked, decode_fields(request.body), attempt.asked.answer_limit)
    return asked


def _tells_usage(exchange: Exchange) -> bool:
    options = getattr(exchange.peek, "stream_options", None)
    return options is not None and bool(options.include_usage)


def _completion(reply: Reply, attempt: Attempt, asked: generating.Asked) -> Reply:
    """An answer of `/generate` or `/generate_stream`. Raises UpstreamError: it is none."""
    exchange, request = attempt.asked, attempt.request
    assert request is not None and exchange.peek is not None
    translation = answering.Answering(
        exchange.id,
        exchange.peek.model,
        asked.stops,
        prefix=asked.text if asked.echo else "",
        logprobs=bool(asked.logprobs),
        usage=request.hides_usage or _tells_usage(exchange),
    )
    if reply.stream is not None and reply.is_event_stream:
        return _streamed(reply, answering.events(reply.stream, translation))
    counted = header(reply.headers, PROMPT_TOKENS) or ""
    return replaced(reply, translation.whole(reply.content or b"", int(counted) if counted.isdecimal() else None))


class _Events:
    """The events of a stream, which can be told that all has been said as the stream itself can."""

    def __init__(self, events: AsyncGenerator[bytes, None], hurry: Callable[[], None] | None) -> None:
        self._events, self.hurry, self.aclose = events, hurry, events.aclose

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._events

    async def __anext__(self) -> bytes:
        return await anext(self._events)


def _streamed(reply: Reply, events: AsyncGenerator[bytes, None]) -> Reply:
    stream = _Events(events, getattr(reply.stream, "hurry", None))
    return Reply(reply.status, reply.headers, stream=stream, close=reply.aclose)


def _chat(reply: Reply) -> Reply:
    if reply.stream is not None and reply.is_event_stream:
        return _streamed(reply, chatting.stream(reply.stream))
    if reply.content is None or not chatting.marked(reply.content):
        return reply
    return replaced(reply, chatting.amended(reply.content, set()))


class _Begun(msgspec.Struct):
    error: str
    error_type: str = ""


def _refused(error: UpstreamError, attempt: Attempt) -> Reply | None:
    """A stream that begins with an error: of status 200 though it is the caller's own fault, as a refusal.

    Raises:
        RateLimited: the server has too much to do.
    """
    found = _EVENT.search(error.evidence or "")
    try:
        begun = msgspec.json.decode(found[1], type=_Begun) if found else None
    except msgspec.MsgspecError:
        return None
    if begun is None:
        return None
    if begun.error_type == "overloaded":
        message = "The backend is receiving too many requests."
        raise RateLimited(message, code="upstream_rate_limited", retryable=True) from error
    if begun.error_type not in ("validation", "template_error", "tool_error"):
        return None
    told = GatewayError(begun.error, status=422, type="invalid_request_error")
    body = attempt.asked.endpoint.dialect.error_body(told)
    return Reply(422, [(b"content-type", b"application/json")], content=body)


def _words(reply: Reply) -> str:
    return (reply.content or b"")[: answering.WORDS].decode("utf-8", "replace")
