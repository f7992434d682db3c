"""What a client speaks: the endpoints of a dialect, what core peeks from a body, and how errors are said.

OpenAI's dialect lives here because core is an OpenAI-compatible gateway; plugins register others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

import msgspec

from .errors import GatewayError, InvalidRequest, envelope
from .exchange import Usage
from .vetting import ABORTED, Vetting

if TYPE_CHECKING:
    from .translation import Translation

USAGE_BYTES = 4096
"""No usage object is longer."""
USAGE_TRIES = 64
"""How often the word may stand in an answer's end, as a token among log probabilities for instance."""

CHECKED_BYTES = 1_048_576
"""Messages, prompts and inputs up to this size are looked into."""


class Peek(msgspec.Struct, kw_only=True):
    """The fields core needs from every body. Fields not named in a peek are neither decoded nor touched.

    What may be large is `msgspec.Raw`, the client's bytes; `checks` names the type it must have. That is checked up to
    `CHECKED_BYTES`: beyond, the backend finds what is wrong, for objects made of megabytes would hold up everybody.
    """

    checks: ClassVar[Mapping[str, Any]] = {}

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    stream: bool | None = None


class Message(msgspec.Struct):
    """One message of a chat; its content stays undecoded."""

    role: str


class StreamOptions(msgspec.Struct):
    """OpenAI's `stream_options`."""

    include_usage: bool | None = None


Texts = str | list[str | int | list[int]]
"""One text, several texts, the tokens of one text, or those of several."""


ONE = msgspec.Raw(b"1")
"""How many answers there are if nobody says so. Whatever else is written there is for the backend to judge."""


class ChatPeek(Peek, kw_only=True):
    checks = {"messages": Annotated[list[Message], msgspec.Meta(min_length=1)]}

    messages: msgspec.Raw
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: msgspec.Raw = msgspec.field(default_factory=lambda: ONE)
    temperature: float | None = None
    stream_options: StreamOptions | None = None


class CompletionPeek(Peek, kw_only=True):
    checks = {"prompt": Texts}

    prompt: msgspec.Raw
    max_tokens: int | None = None
    n: msgspec.Raw = msgspec.field(default_factory=lambda: ONE)
    best_of: msgspec.Raw = msgspec.field(default_factory=lambda: ONE)
    temperature: float | None = None
    stream_options: StreamOptions | None = None


def asks_for_usage(peek: Peek | None) -> bool:
    """Whether the client wants to be told what its stream took."""
    options: StreamOptions | None = getattr(peek, "stream_options", None)
    return options is not None and bool(options.include_usage)


class EmbeddingPeek(Peek, kw_only=True):
    checks = {"input": Texts}

    input: msgspec.Raw
    encoding_format: Literal["float", "base64"] | None = None
    stream: Literal[False] | None = None


class Events(msgspec.Struct, frozen=True):
    """What nginx must know of a dialect's streams, whose events say what they are under the key `type`.

    Attributes:
        last: types after which nothing is missing.
        fails: types that tell of an error.
        counts: types that tell of tokens, two at most: `usage` is given the newest event of each, one after the
            other. If there are none, it is given the last object under the key `usage`.
    """

    last: tuple[str, ...]
    fails: tuple[str, ...]
    counts: tuple[str, ...] = ()


class Dialect(Protocol):
    """How one family of clients is answered.

    One whose whole answers tell their token counts in an object under the key `usage` may say `offloads = True`: then
    nginx may deliver them. So may it streams, if `events` is an `Events` and nginx has Headrace's module.
    """

    name: str

    def error_body(self, error: GatewayError) -> bytes:
        """The JSON body of an error answer."""
        ...

    def error_event(self, error: GatewayError) -> bytes:
        """The in-band event that tells of an error once a stream has begun, blank line included."""
        ...

    def is_complete(self, tail: bytes) -> bool:
        """Whether a stream that ended with these bytes said all it had to say."""
        ...

    def vetting(self, answers: int) -> Vetting | None:
        """What looks at the events of a stream of so many answers on their way; None if nobody does."""
        ...

    def usage(self, tail: bytes) -> Usage | None:
        """The token counts in a whole reply, or in the last bytes of a stream."""
        ...


class OpenAIDialect:
    """https://platform.openai.com/docs/api-reference: `{"error": {...}}`, and the same as an SSE event."""

    name = "openai"

    def error_body(self, error: GatewayError) -> bytes:
        return envelope(error)

    def error_event(self, error: GatewayError) -> bytes:
        return b"data: " + envelope(error) + b"\n\n"

    def is_complete(self, tail: bytes) -> bool:
        """`[DONE]` or a finish reason, and no error event: vLLM sends `[DONE]` after one, and after it has aborted."""
        if (b'"error"' in tail and _ERROR_EVENT.search(tail)) or _ABORTED.search(tail):
            return False
        return tail.rstrip().endswith(b"[DONE]") or _FINISHED.search(tail) is not None

    def vetting(self, answers: int) -> Vetting:
        return Vetting(answers)

    def usage(self, tail: bytes) -> Usage | None:
        at = len(tail)
        for _ in range(USAGE_TRIES):
            at = tail.rfind(b'"usage"', 0, at)
            if at < 0:
                return None
            start = at + len(b'"usage"')
            usage = _read_usage(tail[start : start + USAGE_BYTES])
            if usage is not None:
                return usage
        return None


_ERROR_EVENT = re.compile(rb'(?:^|[\r\n])data:\s*\{\s*"error"\s*:\s*["{]')
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
_ABORTED = re.compile(rb'"finish_reason"\s*:\s*"%s"' % ABORTED.encode())
_USAGE = re.compile(rb"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})")
"""What follows a `"usage"` key: numbers, and objects of numbers."""


def _read_usage(text: bytes) -> Usage | None:
    """Read the object after a `"usage"` key. Quotes inside a JSON string are escaped, so that key is a real one."""
    found = _USAGE.match(text)
    if found is None:
        return None
    try:
        counts = _COUNTS.decode(found[1])
    except (ValueError, msgspec.ValidationError):
        return None
    details = counts.prompt_tokens_details
    cached = details.cached_tokens if details else None
    return Usage(counts.prompt_tokens, counts.completion_tokens, cached or 0, tells_cached=cached is not None)


Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**33)]
"""What a backend may say: more is no number of tokens."""


class _Details(msgspec.Struct):
    cached_tokens: Tokens | None = None


class _Counts(msgspec.Struct):
    """https://platform.openai.com/docs/api-reference/chat/object: `usage`. Embeddings have no completion tokens."""

    prompt_tokens: Tokens
    completion_tokens: Tokens = 0
    prompt_tokens_details: _Details | None = None


_COUNTS = msgspec.json.Decoder(_Counts)


class Endpoint:
    """One path of a dialect that is answered by a backend.

    Args:
        name: what providers and plugins call it, `chat` for instance.
        path: the path clients post to.
        peek: the Struct that is read from the body.
        dialect: who words the errors.
        summary: one line for the OpenAPI page.
        translation: how backends are asked that do not have it; None: they are not.
    """

    def __init__(
        self,
        name: str,
        path: str,
        peek: type[Peek],
        dialect: Dialect,
        summary: str = "",
        translation: Translation | None = None,
    ) -> None:
        self.name = name
        self.translation = translation
        self.path = path
        self.dialect = dialect
        self.peek = peek
        self.known = frozenset(peek.__struct_encode_fields__)
        """Fields that are peeked at."""
        self.summary = summary
        self._decoder = msgspec.json.Decoder(peek)
        self._checks = [(name, msgspec.json.Decoder(kind)) for name, kind in peek.checks.items()]

    def read(self, body: bytes) -> Peek:
        """Peek into a request body.

        Raises:
            InvalidRequest: not UTF-8, not JSON, a field missing or of the wrong type.
        """
        try:
            body.decode("utf-8")
            peek = self._decoder.decode(body)
            self._check(peek)
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"The body is not valid UTF-8 (byte {error.start}).", code="invalid_encoding"
            ) from error
        except msgspec.ValidationError as error:
            raise invalid_field(error) from error
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from error
        except RecursionError as error:
            raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from error
        return peek

    def _check(self, peek: Peek) -> None:
        for name, decoder in self._checks:
            raw = getattr(peek, name)
            if memoryview(raw).nbytes > CHECKED_BYTES:
                continue
            try:
                decoder.decode(raw)
            except msgspec.ValidationError as error:
                raise invalid_field(error, name) from error


def invalid_field(error: msgspec.ValidationError, field: str = "") -> InvalidRequest:
    """Turn msgspec's wording (`Expected … - at `$.messages[0].role``) into OpenAI's `message` and `param`."""
    text, _, path = str(error).partition(" - at `")
    param = (field + path.rstrip("`").removeprefix("$")).removeprefix(".") or None
    if text.startswith("Object missing required field `"):
        missing = text.split("`")[1]
        param = f"{param}.{missing}" if param else missing
        return InvalidRequest(f"The field {param!r} is required.", param=param, code="missing_field")
    if param is None:
        return InvalidRequest(f"The body must be a JSON object: {text}.", code="invalid_json")
    return InvalidRequest(f"The field {param!r} is invalid: {text}.", param=param, code="invalid_field")


OPENAI = OpenAIDialect()

OPENAI_ENDPOINTS: Mapping[str, Endpoint] = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("chat", "/v1/chat/completions", ChatPeek, OPENAI, "Answer a conversation"),
        Endpoint("completions", "/v1/completions", CompletionPeek, OPENAI, "Continue a text"),
        Endpoint("embeddings", "/v1/embeddings", EmbeddingPeek, OPENAI, "Embed texts as vectors"),
    )
}
