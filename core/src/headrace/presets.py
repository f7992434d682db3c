"""Servers that speak OpenAI's API and have ways of their own: what their providers and health checks have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from .addresses import ca_bundle, http_proxy, openai_root
from .config import BackendConfig
from .dialects import invalid_field
from .errors import GatewayError, InvalidRequest
from .exchange import Attempt, Reply, Target, UpstreamRequest, header
from .openai_api import ENDPOINTS, OpenAIBackend
from .providers import Health
from .upstream import target_headers

NOTHING = (b"null", b"false", b"0", b"0.0", b'""', b"[]", b"{}", b'"auto"')
"""Values of fields that ask for nothing special."""
COUNTS = ("n", "best_of")
"""Fields whose value 1 asks for nothing special, either."""


class Preset(OpenAIBackend):
    """The provider of one kind of server. It inherits this, and sets what is different.

    Attributes:
        name: the provider's.
        default_base_url: where such a server listens if nobody says otherwise.
        usual: the endpoints that a backend has if its configuration does not name them.
    """

    name = ""
    default_base_url = ""
    usual = ENDPOINTS

    def target(self, name: str, config: BackendConfig) -> Target:
        """`base_url` may be given with or without `/v1`, or left out. Raises ValueError."""
        if config.options:
            raise ValueError(f"options: the provider {self.name!r} has none, but {', '.join(config.options)} was given")
        return Target(
            name=name,
            provider=self.name,
            base_url=openai_root(config.base_url or self.default_base_url),
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
            endpoints=self.known(config) or self.usual,
        )

    async def get(self, target: Target, path: str) -> Reply:
        """What the server says at a path of its root, whatever its status. Raises GatewayError: it says nothing."""
        request = UpstreamRequest(method="GET", url=root_of(target) + path, headers=target_headers(target), body=b"")
        reply = await self._gateway.upstream.send(target, request, checked=False)
        await reply.aclose()
        return reply

    async def health(self, target: Target) -> Health:
        """How the server is: well, if it lists its models. A provider that knows a better way overrides it."""
        return self.judged(target, await self.models(target))

    def judged(self, target: Target, names: Iterable[str], window: int | None = None) -> Health:
        """The health of a server that answers.

        Args:
            names: the models that it serves.
            window: how many tokens it takes, prompt and answer together, if it says so.
        """
        if target.model is not None and target.model not in names:
            return Health(ok=True, reason=f"answers, but does not list the model {target.model!r}: is its name right?")
        for model in self._gateway.models if window is not None else ():
            if window is not None and (model.context_window or 0) > window and target.name in _names(model.targets):
                told = f"context_window of the model {model.name!r} is {model.context_window}"
                return Health(ok=True, reason=f"it takes {window} tokens, but {told}")
        return Health(ok=True)

    async def listed(self, target: Target) -> Health:
        """The health of a server that is up, whatever it lists. Raises GatewayError: it refuses our key."""
        try:
            return self.judged(target, await self.models(target))
        except GatewayError as error:
            if error.code == "upstream_auth":
                raise
            return Health(ok=True)


class PresetCheck:
    """The health check of a preset: what its provider finds."""

    def __init__(self, provider: Preset) -> None:
        self._provider = provider

    async def check(self, target: Target) -> Health:
        """May raise GatewayError."""
        return await self._provider.health(target)


class Rewording(Preset):
    """A preset whose errors are not OpenAI's: they are put into the words of the caller's dialect.

    nginx passes errors on as they are, so nothing is native here and the core delivers. Good answers keep their bytes.
    """

    native: frozenset[str] = frozenset()

    async def send(self, attempt: Attempt) -> Reply:
        """Send what was built. Raises GatewayError."""
        reply = await super().send(attempt)
        error = None if reply.ok else refusal(reply)
        if error is None:
            return reply
        return replaced(reply, attempt.asked.endpoint.dialect.error_body(error))


def replaced(reply: Reply, content: bytes) -> Reply:
    """The same reply with another body, which is JSON."""
    kept = [each for each in reply.headers if each[0] not in (b"content-type", b"content-length")]
    kept.append((b"content-type", b"application/json"))
    return Reply(reply.status, kept, content=content, close=reply.aclose, source=reply.source)


class _Said(msgspec.Struct):
    error: Any = None
    detail: Any = None
    message: Any = None


_said = msgspec.json.Decoder(_Said).decode


def refusal(reply: Reply) -> GatewayError | None:
    """The error that a server tells of in a form of its own; None if it is in OpenAI's (or Anthropic's) already.

    Known are `{"error": "…"}`, `{"message": "…"}`, and FastAPI's `{"detail": "…"}` and `{"detail": [{"loc": […],
    "msg": "…"}]}` (https://fastapi.tiangolo.com/tutorial/handling-errors/).
    """
    if reply.content is None or header(reply.headers, b"content-encoding"):
        return None
    try:
        said = _said(reply.content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        said = _Said()
    if isinstance(said.error, dict) and isinstance(said.error.get("message"), str):
        return None
    message, param = words(said)
    message = message or f"The backend refused the request with status {reply.status}."
    return GatewayError(message, status=reply.status, type="invalid_request_error", param=param)


def words(said: _Said) -> tuple[str, str | None]:
    """What an error says, and which field it is about."""
    for text in (said.error, said.detail, said.message):
        if isinstance(text, str) and text:
            return text, None
    first = said.detail[0] if isinstance(said.detail, list) and said.detail else None
    if not isinstance(first, dict) or not isinstance(first.get("msg"), str):
        return "", None
    place = first.get("loc")
    param = ".".join(map(str, place[1:])) if isinstance(place, list) else ""
    return (f"{param}: {first['msg']}" if param else first["msg"]), param or None


ANY = msgspec.json.Decoder()


def decoded(fields: Mapping[str, msgspec.Raw], name: str, decoder: msgspec.json.Decoder[Any] = ANY) -> Any:
    """The value of a request's field. Raises InvalidRequest: it cannot be read, or is of another type."""
    try:
        return decoder.decode(fields[name])
    except msgspec.ValidationError as error:
        raise invalid_field(error, name) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The field {name!r} cannot be read.", param=name, code="invalid_field") from error


def unheard(fields: Mapping[str, msgspec.Raw], names: Iterable[str]) -> tuple[str, ...]:
    """Those of these fields that a request has, and that ask for something."""
    return tuple(name for name in names if name in fields and _asks(name, bytes(fields[name])))


def _asks(name: str, value: bytes) -> bool:
    return value not in NOTHING and not (value == b"1" and name in COUNTS)


def root_of(target: Target) -> str:
    """The server's address without `/v1`."""
    return target.base_url.removesuffix("/v1")


def meaning(status: int, path: str) -> str:
    """What a health check says of a status that it did not expect."""
    if status in (401, 403, 407):
        return f"it refuses our key: {status} at {path}"
    advice = ": is its base_url right?" if status in (404, 405) or 300 <= status < 400 else ""
    return f"it answers {status} at {path}{advice}"


def _names(targets: Iterable[Target]) -> list[str]:
    return [target.name for target in targets]
