"""What one client request is made of: Exchange, its Attempts at Targets, the Reply and the Outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from .config import Secret, TargetTimeouts
from .edits import Edits, decode_fields, merge_fields
from .errors import GatewayError
from .fleet import TargetState
from .limits import Budget, RateLimits
from .weighing import BYTES_PER_TOKEN, EVENT_BYTES, PICTURE_TOKENS, event_bytes, measured

if TYPE_CHECKING:
    from .dialects import Endpoint, Peek
    from .models import Model
    from .streaming import Taps

Headers = list[tuple[bytes, bytes]]
"""Header fields as ASGI carries them: lower-case names, raw bytes, in order."""

Role = Literal["user", "metrics", "admin"]
DeliveryName = Literal["inline", "offload"]
Source = Literal["upstream", "cache", "gateway"]
"""Who gave an answer: a backend, a cache, or the gateway by itself."""


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. `id` is stable and safe to log; a secret never stands here."""

    id: str
    name: str = ""
    role: Role = "user"
    owner: str | None = None
    """Whose key this is: a person, where `name` is what the key is for."""
    team: str | None = None
    models: frozenset[str] | None = None
    """Names this principal may ask for; None means every one."""
    endpoints: frozenset[str] | None = None
    """Names of the endpoints this principal may use, `chat` for instance; None means every one."""
    limits: RateLimits | None = None
    """Of this principal alone, beside those of the configuration; the plugin `ratelimit` keeps them."""
    budget: Budget | None = None
    """The same; the plugin `budget` keeps it."""
    metadata: dict[str, Any] = {}


ANONYMOUS = Principal(id="anonymous", name="anonymous")


class Usage(msgspec.Struct, frozen=True):
    """Token counts as the backend reported them (OpenAI's names)."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    estimated: bool = False
    """Whether these are our own estimates: the answer ended, or its report was lost, before the backend counted."""
    tells_cached: bool = False
    """Whether the backend said how many tokens it had cached; else `cached_tokens` is 0 and nobody knows."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One backend that can serve a model: where it is and how to talk to it."""

    name: str
    """Unique within its model, safe to log and to use as a metric label."""
    provider: str
    base_url: str
    """Without a trailing slash. With `socket` set, only the path counts."""
    socket: str | None = None
    """Path of a unix socket to connect to instead of the URL's host."""
    model: str | None = None
    """The model's name at this backend; None sends the client's name unchanged."""
    api_key: Secret | None = None
    headers: dict[str, Secret] = {}
    weight: int = 1
    timeouts: TargetTimeouts = TargetTimeouts()
    max_connections: int = 1024
    verify: bool | str = True
    proxy: Secret | None = None
    prefill: bool = False
    """Whether this backend goes on with an answer whose beginning it is given."""
    stream_usage: bool = True
    """Whether this backend may be asked for token counts in streams."""
    endpoints: frozenset[str] | None = None
    """Those it has, of its provider's; None: all of them."""
    options: dict[str, Any] = {}
    state: TargetState = msgspec.field(default_factory=TargetState)
    """What is known of it now."""


class UpstreamRequest:
    """What one attempt will send. `prepare_attempt` may change the headers.

    Attributes:
        edits: how `body` came out of the client's: what nginx repeats when it sends the request.
        hides_usage: whether the usage at a stream's end was asked for by us alone, and is not shown to the client.
    """

    __slots__ = ("_headers", "body", "edits", "hides_usage", "method", "set_headers", "url")

    def __init__(
        self,
        *,
        url: str,
        headers: dict[str, str] | Callable[[], dict[str, str]],
        body: bytes,
        method: str = "POST",
        edits: Edits = (),
        hides_usage: bool = False,
    ) -> None:
        """`headers` may be a function: it is called when somebody looks at them, which nobody may ever do."""
        self.url, self.body, self.method, self.edits, self.hides_usage = url, body, method, edits, hides_usage
        self._headers = headers
        self.set_headers: dict[str, str] | None = None
        """What `set_header` has set while nobody had looked at the headers, by names in lower case."""

    @property
    def headers(self) -> dict[str, str]:
        if callable(self._headers):
            self._headers = self._headers()
            for name, value in (self.set_headers or {}).items():
                _replace(self._headers, name, value)
            self.set_headers = None
        return self._headers

    def set_header(self, name: str, value: str) -> None:
        """Set a header, whose name is in lower case. The same as through `headers`, at a tenth of its cost where nobody
        else looks at them: nginx is told of this one alone."""
        if callable(self._headers):
            self.set_headers = {**(self.set_headers or {}), name: value}
        else:
            _replace(self._headers, name, value)

    @property
    def has_usual_headers(self) -> bool:
        """Whether nobody has looked at the headers, let alone changed them."""
        return callable(self._headers)


def _replace(headers: dict[str, str], name: str, value: str) -> None:
    """Set a header, in whatever case it stands there."""
    headers[next((title for title in headers if title.lower() == name), name)] = value


class Reply:
    """A backend's (or a cache's) answer: a head, and a body whole or as a stream of byte chunks.

    Exactly one of `content` and `stream` is set. `aclose` releases the connection and may be called twice.
    """

    __slots__ = ("_close", "content", "headers", "source", "status", "stream")

    def __init__(
        self,
        status: int,
        headers: Headers,
        *,
        content: bytes | None = None,
        stream: AsyncIterator[bytes] | None = None,
        close: Callable[[], Awaitable[None]] | None = None,
        source: Source = "upstream",
    ) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        self.stream = stream
        self.source = source
        self._close = close

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_event_stream(self) -> bool:
        return self.media_type == "text/event-stream"

    @property
    def media_type(self) -> str:
        """The content type without its parameters, in lower case; empty if there is none."""
        return (header(self.headers, b"content-type") or "").partition(";")[0].strip().lower()

    async def aclose(self) -> None:
        close, self._close = self._close, None
        if close is not None:
            await close()


class Attempt:
    """One try at one target. `exchange.attempts` holds them in order; `number` counts from 1.

    `exchange` and `request` are there until `on_complete` has been called everywhere.
    """

    __slots__ = (
        *(
            "_counted",
            "asked",
            "built",
            "exchange",
            "handed_over",
            "model",
            "number",
            "provider",
            "reporting",
            "request",
        ),
        *("started", "target"),
    )

    def __init__(
        self,
        exchange: Exchange,
        number: int,
        target: Target,
        provider: Any,
        model: Model | None = None,
        asked: Exchange | None = None,
    ) -> None:
        self.exchange = exchange
        self.asked = asked or exchange
        """What the target is asked: the client's request itself, or one that it has been translated into."""
        self.model = model or exchange.model
        """Whose target it is: the model that was asked for, or one that it falls back on."""
        self.number = number
        self.target = target
        self.provider = provider
        self.request: UpstreamRequest | None = None
        self.built: bytes = b""
        """The body that the provider built: if a plugin sets another, nginx cannot send it."""
        self.handed_over = False
        """Whether nginx asked the backend, and not the core."""
        self.started = time.perf_counter()
        self.reporting: asyncio.Task[None] | None = None
        """Tells the plugins how this try ended, from its end on."""
        self._counted = False

    def drop(self, *names: str) -> None:
        """Note what of the request the target is not asked, since it cannot be said to it: the client is told so."""
        self.exchange.dropped += names

    def begin(self) -> None:
        """From now on the target is busy with it."""
        self._counted = True
        self.target.state.begin()

    def end(self) -> None:
        """The target is done with it. May be called twice."""
        if self._counted:
            self._counted = False
            self.target.state.end()

    def let_go(self) -> None:
        """All is over. An exchange holds its attempts: were it held by them, its memory would wait for the garbage
        collector."""
        self.request = None
        del self.exchange, self.asked


class Outcome(msgspec.Struct, kw_only=True):
    """How an exchange, or one attempt of it, ended. Equal for both deliveries.

    `completed` is true only when the whole answer reached the client; an answer that was cut, and one the
    client did not wait for (`aborted`), are not complete.
    """

    status: int
    completed: bool
    aborted: bool = False
    error: GatewayError | None = None
    target: str | None = None
    delivery: DeliveryName = "inline"
    delivery_reason: str = ""
    source: Source = "upstream"
    usage: Usage | None = None
    """What backends have spent on it: of an answer from a cache, no tokens."""
    bytes_sent: int = 0
    """Body bytes handed towards the client."""
    ttft_seconds: float | None = None
    """From the request's arrival (an attempt: from its start) to the first body bytes from the backend."""
    duration_seconds: float = 0.0
    attempts: int = 0


class Exchange:
    """One client request on its way through the gateway, from arrival to `on_complete`.

    Plugins keep what belongs to the request in `state`, under their own name: attributes cannot be added.
    """

    __slots__ = (
        *("__weakref__", "_by_name", "_comment", "_fields", "_measure", "_stay", "answer_limit"),
        *("asks_for_report", "attempts", "body", "body_changed", "client", "completed", "delivery"),
        *("delivery_reason", "demand", "dropped", "endpoint", "error", "events", "failure", "fields_checked"),
        *("first_byte_at", "headers", "id", "inline_reason", "method", "model", "path", "peek", "principal"),
        *("prompt_estimate", "prompt_tokens", "response_headers", "source", "started", "state", "status"),
        *("taps", "translated", "usage", "usage_wanted"),
    )

    def __init__(self, *, id: str, endpoint: Endpoint, scope: Mapping[str, Any], body: bytes = b"") -> None:
        self.id = id
        self.endpoint = endpoint
        self.headers: Headers = scope["headers"]
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.client: str = client_address(scope)
        self.body = body
        self.body_changed = False
        self.peek: Peek | None = None
        self.principal: Principal | None = None
        self.model: Model | None = None
        self.attempts: list[Attempt] = []
        self.state: dict[str, Any] = {}
        self.started = time.perf_counter()
        self.delivery: DeliveryName = "inline"
        self.delivery_reason = ""
        self.inline_reason = ""
        """Why this answer must be delivered by the core: set by a plugin or a routing policy that wants it so."""
        self.usage_wanted = False
        """Set by a plugin that reads `Outcome.usage`, in `open_tap` at the latest; a tap for usage does the same."""
        self.asks_for_report = False
        """Whether nginx shall report this answer although the core delivers it."""
        self.taps: Taps | None = None
        """Who watches the reply."""
        self.response_headers: Headers = []
        """Added to whatever answer goes out: plugins append here."""
        self.fields_checked = False
        """Whether `headrace.estimate.check_fields` has found nothing."""
        self.prompt_tokens: int | None = None
        """Tokens of the prompt, if a backend has been asked to count them before it answers."""
        self.answer_limit: int | None = None
        """How many tokens an answer may have if the client sets no limit: a plugin that has reserved no more says so
        in `admit`, and the backend is told."""
        self.status: int | None = None
        """Of the reply, once it goes out."""
        self.source: Source = "upstream"
        """The reply's, likewise."""
        self.completed = False
        """Whether the whole answer has been handed to the client."""
        self.error: GatewayError | None = None
        """What went wrong, once it has, as the client is told."""
        self.failure: GatewayError | None = None
        """The same, before a plugin has worded it anew."""
        self.first_byte_at: float | None = None
        """`time.perf_counter()` at the first body bytes of the reply."""
        self.events = 0
        """How many pieces of a stream have passed: what its tokens are estimated by if it is cut."""
        self.usage: Usage | None = None
        self.translated: Exchange | None = None
        """What backends are asked that do not speak the client's dialect."""
        self.dropped: tuple[str, ...] = ()
        """What of the request the last of them was not asked, by name."""
        self.demand: tuple[int, int] | None = None
        """What `headrace.estimate.demand` has found."""
        self.prompt_estimate: int | None = None
        """What `headrace.estimate.Estimator.prompt` has found."""
        self._comment: Callable[[bytes], Awaitable[None]] | None = None
        self._stay: Callable[[Callable[[], bool] | None], None] | None = None
        self._measure: tuple[int, int] | None = None
        self._by_name: dict[bytes, bytes] | None = None
        self._fields: dict[str, msgspec.Raw] | None = None

    def header(self, name: bytes) -> str | None:
        """The first value of a request header, by its lower-case name."""
        if self._by_name is None:
            self._by_name = dict(reversed(self.headers))
        value = self._by_name.get(name)
        return None if value is None else value.decode("latin-1")

    def attach(
        self,
        comment: Callable[[bytes], Awaitable[None]] | None = None,
        stay: Callable[[Callable[[], bool] | None], None] | None = None,
    ) -> None:
        """From now on `comment`, and `share` and `abandon`, go to the client's connection through these; nowhere
        without them."""
        self._comment, self._stay = comment, stay

    @property
    def streaming(self) -> bool:
        """Whether the client asked for a stream."""
        return self.peek is not None and bool(self.peek.stream)

    @property
    def wants_usage(self) -> bool:
        """Whether a plugin needs the reply's token counts, asked for by the client or not."""
        return self.usage_wanted or (self.taps is not None and self.taps.wants_usage)

    async def comment(self, text: bytes) -> None:
        """Send a comment to the client of a stream, so that nobody on the way takes the connection for dead.

        For `admit`, while the request waits. It begins the answer: from then on the core delivers it, what goes wrong
        is told as an event of the stream, and headers that are added later do not go out. Of a request for a whole
        answer nothing is sent. `text` is one line.
        """
        if self.streaming and self._comment is not None:
            await self._comment(text)

    def share(self, wanted: Callable[[], bool]) -> None:
        """Others than its client may wait for this answer, too. Should the client leave while `wanted()` is true, it
        goes on, to its taps alone; `Outcome.aborted` is true then.

        Call `abandon` once nobody wants it any more.
        """
        if self._stay is not None:
            self._stay(wanted)

    def abandon(self) -> None:
        """Nobody but its client waits for this answer: if the client has left, it ends now."""
        if self._stay is not None:
            self._stay(None)

    def saw(self, pieces: int, size: int) -> None:
        """So many pieces of a stream, and bytes, have passed. To whoever reads slowly, many events come in one piece:
        then the size tells how many they were, unless they are larger than usual."""
        self.events = pieces
        if size // EVENT_BYTES > pieces:
            self.events = max(pieces, size // event_bytes(self.fields))

    def close_taps(self, completed: bool) -> None:
        """The reply is over: tell those who watched it. What a stream has cost that was not counted is estimated."""
        if self.usage is None and self.events and not (completed and not self.wants_usage):
            self.usage = self.estimate(self.events)
        if self.taps is not None:
            self.taps.close(self.usage, completed)

    def estimate(self, completion_tokens: int) -> Usage:
        """The usage of an answer of so many tokens to this request."""
        prompt = self.prompt_tokens
        if prompt is None:
            prompt = self.text_bytes // BYTES_PER_TOKEN + self.pictures * PICTURE_TOKENS
        return Usage(prompt, completion_tokens, estimated=True)

    @property
    def text_bytes(self) -> int:
        """The body's length without the pictures and sounds in it."""
        return self.measure[0]

    @property
    def pictures(self) -> int:
        """How many pictures and sounds the prompt has, in it or by their address."""
        return self.measure[1]

    @property
    def measure(self) -> tuple[int, int]:
        """`text_bytes` and `pictures`."""
        if self._measure is None:
            self._measure = measured(self.body)
        return self._measure

    @property
    def fields(self) -> dict[str, msgspec.Raw]:
        """The body's top-level fields, each still the bytes the client sent."""
        if self._fields is None:
            self._fields = decode_fields(self.body)
        return self._fields

    def replace_fields(self, **changes: Any) -> None:
        """Set top-level fields of the body (None removes one); every other field keeps its bytes."""
        self.body_changed = True
        self.take_body(merge_fields(self.fields, changes))

    def take_body(self, body: bytes) -> None:
        """Ask this instead. Raises InvalidRequest."""
        self.body = body
        self._fields = self._measure = self.demand = self.prompt_estimate = self.translated = None
        self.peek = self.endpoint.read(body)


def header(headers: Headers, name: bytes) -> str | None:
    """The first value of header `name` (lower-case) as text, or None."""
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None


def client_address(scope: Mapping[str, Any]) -> str:
    """The peer's address; over the unix socket that only our nginx uses, what nginx says it is."""
    client = scope.get("client")
    if client:
        return str(client[0])
    return header(scope["headers"], b"x-real-ip") or ""
