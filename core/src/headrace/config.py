"""The configuration's shape: TOML tables as frozen Structs. `settings.py` reads files into them.

Every key's documentation is the string below it; `docs/reference/configuration.md` is generated from these.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import msgspec

Positive = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]
"""Seconds, up to a year."""
Count = Annotated[int, msgspec.Meta(ge=1)]


class Secret:
    """A value that never shows itself: `str()`, `repr()` and every dump print `***`. `reveal()` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret('***')" if self._value else "Secret('')"

    __str__ = __repr__


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every configuration table, core's and plugins': frozen, and unknown keys are errors."""


class TargetTimeouts(Strict, frozen=True):
    """How long a backend may be silent, in seconds."""

    connect: Positive = 5.0
    """To open the connection, TLS included, or to wait until one of `max_connections` is free."""
    first_byte: Positive = 600.0
    """From sending the request to the first byte of the answer's body; for a reply that is not streamed
    this is the whole generation."""
    first_token: Positive | None = None
    """From sending a request for a stream to the first token of its answer: a head, a role and comments do not count.
    Where it is set, the core delivers streams."""
    idle: Positive = 120.0
    """Between two chunks of a stream."""
    keep_alive: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 1.5
    """For how long an unused connection is kept for the next request. Must be shorter than the backend's own limit
    (gunicorn: 2 s, uvicorn and so vLLM: 5 s), or requests meet a connection that is just being closed; 0 keeps none."""


class BackendConfig(Strict, frozen=True):
    """A backend: which provider plugin speaks to it, where it is, and with which key."""

    provider: str
    """The provider plugin's name, `openai` for any OpenAI-compatible server."""
    base_url: str = ""
    """Where the server is. Each provider says what may be left out."""
    model: str | None = None
    """The model's name at the backend; left out, the name the client asked for is sent on."""
    api_key: Secret | None = None
    """Sent as `Authorization: Bearer …`; the client's own key never goes upstream."""
    headers: dict[str, Secret] = {}
    """Extra request headers for this backend; their values are treated as secrets."""
    weight: Count = 1
    """Share of the traffic, for routing policies that weigh."""
    timeouts: TargetTimeouts = TargetTimeouts()
    """Connect, first-byte and idle limits."""
    max_connections: Count = 1024
    """Size of the connection pool to this backend; requests beyond it wait for `timeouts.connect`."""
    verify: bool | str = True
    """TLS verification: true, the path of a CA bundle, or false (never do that beyond a test)."""
    proxy: Secret | None = None
    """An HTTP proxy to go through. Proxy variables of the environment are ignored."""
    prefill: bool = False
    """Whether this backend goes on with an answer whose beginning it is given (`continue_final_message`, which vLLM
    has): what `midstream = "resume"` asks for. A server that ignores the field would begin anew."""
    stream_usage: bool = True
    """Whether to ask for token counts in streams (`stream_options.include_usage`) when a plugin wants them and the
    client did not ask; they are not shown to that client. False for servers that refuse the field."""
    endpoints: list[str] | None = None
    """The endpoints this backend has itself, `chat` or `responses` for instance; left out, those its provider expects.
    Requests to others are translated where that can be done."""
    options: dict[str, Any] = {}
    """Settings only this provider knows; see its README."""


class Deadlines(Strict, frozen=True):
    """How long answers of one model may take, in seconds; what is set here goes before the backends' own timeouts."""

    connect: Positive | None = None
    """As `timeouts.connect` of a backend."""
    first_byte: Positive | None = None
    """As `timeouts.first_byte` of a backend."""
    first_token: Positive | None = None
    """As `timeouts.first_token` of a backend."""
    idle: Positive | None = None
    """As `timeouts.idle` of a backend."""
    total: Positive | None = None
    """From the request's arrival to the last byte of the answer, whoever gives it. Where it is set, the core
    delivers."""


Failure = Literal["unavailable", "upstream_error", "upstream_timeout", "upstream_rate_limited", "upstream_auth"]
"""Codes of errors that backends cause."""


class RetryConfig(Strict, frozen=True):
    """When a request that a backend has failed is tried again, and where.

    In each round all targets are asked that have not been asked in it, those of `fallback_models` last.
    """

    rounds: Count = 2
    """How often one target may be asked; 1: never again after it has failed. One that kept silent is not asked again,
    nor one that refuses our key."""
    attempts: Count = 8
    """Tries of one request, of all targets together."""
    on: tuple[Failure, ...] = get_args(Failure)
    """Errors after which the next target is asked; any other is answered at once."""
    backoff: Positive = 0.25
    """Seconds before the second round at most: how many is left to chance. Doubled before each further one."""
    max_backoff: Positive = 5.0
    """Seconds before a round at most."""
    max_retry_after: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 10.0
    """A backend that asks for more patience (`Retry-After`, in seconds) is not asked again."""
    budget: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.2
    """Tries after the first round, per request in the long run, in each worker: so that a fleet that struggles is not
    asked ever more. Tries after a refused connection do not count: they have cost no backend anything."""
    budget_floor: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    """So many such tries a second are always made."""


class Caps(Strict, frozen=True):
    """The most that requests for one model may ask for; what is above is lowered."""

    max_tokens: Count | None = None
    """Tokens of an answer, by whatever name the request calls them; also of a request that sets no limit."""
    temperature: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """The highest temperature."""
    n: Count | None = None
    """Answers to one request."""


class Capabilities(Strict, frozen=True):
    """What a model can do, for clients to see in `/v1/models`: nothing is refused for it."""

    tools: bool | None = None
    """Whether it calls tools."""
    vision: bool | None = None
    """Whether it sees pictures."""
    audio: bool | None = None
    """Whether it hears."""
    reasoning: bool | None = None
    """Whether it thinks before it answers."""
    structured_output: bool | None = None
    """Whether it keeps to a JSON schema."""


class ModelConfig(Strict, frozen=True):
    """A model that clients can ask for, and the backends that serve it.

    Its name, and its aliases, may have `*` in them, which stands for anything: `[models."gpt-*"]`. Backends are then
    asked for the model by the client's name, unless theirs is given. The name without `*` goes first, then the longest.
    """

    targets: list[str | BackendConfig] = []
    """Backends in order of preference: names of `[backends.NAME]` tables, or whole tables."""
    fallback: list[str] = []
    """More backends, asked when `targets` have failed and `use_fallback` is true."""
    use_fallback: bool = True
    """Whether `fallback` is used at all."""
    policy: str = "in_order"
    """The routing policy that orders the targets; core has `in_order`, plugins bring others."""
    delivery: Literal["auto", "inline", "offload"] | None = None
    """Overrides `server.delivery` for this model."""
    aliases: list[str] = []
    """Other names clients may use for it."""
    fallback_models: list[str] = []
    """Models whose targets are asked, in this order, when this one's have failed. A caller who may not use a model is
    not given its answers."""
    context_window: Count | None = None
    """Tokens that a prompt and its answer may have together: tells requests that surely fit from others."""
    context_window_fallbacks: list[str] = []
    """Models that are asked when a backend says that a prompt is too long for it. The core delivers requests that may
    be too long."""
    midstream: Literal["error", "resume"] = "error"
    """What becomes of a stream that breaks: `error` ends it with an error event; `resume` has another target, or the
    same one, go on with the answer, and the core deliver it."""
    defaults: dict[str, Any] = {}
    """Fields that requests get which do not have them: `{ temperature = 0.2, max_tokens = 1024 }`. But for
    `max_tokens`, the core delivers what is changed so."""
    caps: Caps = Caps()
    """The most that requests may ask for."""
    capabilities: Capabilities = Capabilities()
    """What it can do, for clients to see."""
    retry: RetryConfig = RetryConfig()
    """When a failed request is tried again."""
    deadlines: Deadlines = Deadlines()
    """How long answers may take."""


class HealthConfig(Strict, frozen=True):
    """How `/health/ready` finds out whether backends answer."""

    interval: Positive = 10.0
    """A check's result is used for this many seconds."""
    timeout: Positive = 5.0
    """A check that takes longer has failed."""


class ServerConfig(Strict, frozen=True):
    """Where the core listens and what it accepts."""

    listen: str = "127.0.0.1:8080"
    """`HOST:PORT`, or `unix:PATH`. Behind nginx the core listens on a unix socket in `state_dir` as well."""
    state_dir: str = ".headrace"
    """Where keys, certificates, logs and sockets are kept; relative to the working directory."""
    anonymous: bool = False
    """Answer requests that no plugin could authenticate."""
    delivery: Literal["auto", "inline", "offload"] = "auto"
    """Who moves the reply's bytes: `inline` the core; `auto` nginx, wherever it can; `offload` as `auto`, and what the
    core has to deliver all the same is logged once."""
    workers: Count = 1
    """Core processes behind nginx. Requests with one key always reach the same one."""
    max_body_bytes: Count = 33_554_432
    """The largest request body; a larger one is answered 413."""
    max_header_bytes: Count = 32_768
    """The largest request head, names and values together; a larger one is answered 431."""
    body_timeout: Positive = 60.0
    """Seconds a client may take to send its body."""
    startup_timeout: Positive = 30.0
    """Seconds one plugin may take to be imported, to be made, or to enter its lifespan."""
    shutdown_timeout: Positive = 30.0
    """Seconds that open requests get to finish when the gateway stops."""
    report_timeout: Positive = 3600.0
    """Seconds after which a stream that nginx delivers counts as over if nginx has not said so."""
    reload_on_change: bool = False
    """Take over the configuration whenever its file has changed, as `headrace reload` does."""
    trace_errors: bool = False
    """Log a traceback with an unexpected failure of a plugin."""
    docs: bool = True
    """Serve `/docs` and `/openapi.json`."""


class Config(Strict, frozen=True):
    """The whole file, but for `[plugins.NAME]`, which each plugin's own Struct describes."""

    server: ServerConfig = ServerConfig()
    """Where the core listens and what it accepts."""
    backends: dict[str, BackendConfig] = {}
    """Backends by name, for models to refer to."""
    models: dict[str, ModelConfig] = {}
    """Models by the name clients ask for."""
    health: HealthConfig = HealthConfig()
    """How readiness is found out."""
    order: dict[str, list[str]] = {}
    """Per hook, the plugins that come first, in this order; the rest follow in file order."""
    plugins: dict[str, dict[str, Any]] = {}
    """One table per plugin, in the order in which their hooks are called. `enabled = false` parks one."""
