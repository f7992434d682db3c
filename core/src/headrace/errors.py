"""One tree of errors, one function that puts any of them into words for a caller.

    HeadraceError
    ├── ConfigError              start-up: every problem of the configuration at once
    ├── PluginError              start-up: one plugin cannot be used, and why
    └── GatewayError             while answering a request
        ├── InvalidRequest       400
        ├── Unauthenticated      401
        ├── Forbidden            403
        ├── NotFound             404
        │   └── ModelNotFound    404
        ├── MethodNotAllowed     405
        ├── RequestTimeout       408
        ├── PayloadTooLarge      413
        ├── RateLimited          429
        ├── HeadersTooLarge      431
        ├── PluginFault          500
        ├── UpstreamError        502
        ├── Unavailable          503
        └── UpstreamTimeout      504

`message` is written for the caller; `detail` is only ever logged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec


class HeadraceError(Exception):
    """The root of everything Headrace raises on purpose."""


class Problem(msgspec.Struct, frozen=True):
    """One thing wrong with the configuration: where it stands and what to do about it."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class ConfigError(HeadraceError):
    """The configuration cannot be used. Carries every problem found, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class PluginError(HeadraceError):
    """A plugin cannot be loaded or started; names the plugin and, where there is one, the hook."""

    def __init__(self, plugin: str, message: str, hook: str | None = None) -> None:
        self.plugin = plugin
        self.hook = hook
        self.problem = message
        super().__init__(f"plugin {plugin!r}{f', hook {hook!r}' if hook else ''}: {message}")


class GatewayError(HeadraceError):
    """A request that ends in an error answer.

    Args:
        message: public, shown to the caller; says what to do where something can be done.
        status: HTTP status; each subclass has its own.
        type, code, param: the fields of OpenAI's error object
            (https://platform.openai.com/docs/guides/error-codes).
        detail: for the log only.
        evidence: what a backend said, for the log of those who log prompts: it may repeat them.
        headers: extra response headers, `Retry-After` for instance.
        retryable: whether another target may be asked instead.
    """

    status = 500
    type = "server_error"
    code: str | None = None
    retryable = False
    reached = True
    """Whether a backend may have begun to work; False if it cannot even be reached."""
    request_id: str | None = None
    """Of the request that it answers, once it does: for dialects whose errors name it."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        detail: str | None = None,
        evidence: str | None = None,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.detail = detail
        self.evidence = evidence
        self.headers: dict[str, str] = dict(headers)
        if status is not None:
            self.status = status
        if type is not None:
            self.type = type
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable


class InvalidRequest(GatewayError):
    status, type, code = 400, "invalid_request_error", "invalid_request"


class Unauthenticated(GatewayError):
    status, type, code = 401, "authentication_error", "invalid_api_key"

    def __init__(self, message: str, **fields: object) -> None:
        super().__init__(message, **fields)  # type: ignore[arg-type]
        self.headers.setdefault("WWW-Authenticate", "Bearer")


class Forbidden(GatewayError):
    status, type, code = 403, "permission_error", "forbidden"


class NotFound(GatewayError):
    status, type, code = 404, "invalid_request_error", "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(GatewayError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class RequestTimeout(GatewayError):
    status, type, code = 408, "invalid_request_error", "request_timeout"


class PayloadTooLarge(GatewayError):
    status, type, code = 413, "invalid_request_error", "request_too_large"


class RateLimited(GatewayError):
    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class HeadersTooLarge(GatewayError):
    status, type, code = 431, "invalid_request_error", "headers_too_large"


class PluginFault(GatewayError):
    """A plugin failed while it handled a request. The caller learns that much and no more."""

    status, type, code = 500, "server_error", "internal_error"

    def __init__(self, plugin: str, hook: str, cause: BaseException) -> None:
        super().__init__(
            "The gateway failed to handle this request. The operator finds the reason in the log "
            "under this request's id.",
            detail=f"plugin {plugin!r}, hook {hook!r}: {type(cause).__name__}: {cause}",
        )
        self.plugin, self.hook = plugin, hook
        self.__cause__ = cause


class UpstreamError(GatewayError):
    status, type, code, retryable = 502, "upstream_error", "upstream_error", True


class Unavailable(GatewayError):
    status, type, code, retryable = 503, "upstream_error", "unavailable", True


class UpstreamTimeout(GatewayError):
    status, type, code, retryable = 504, "upstream_error", "upstream_timeout", True


def error_object(error: GatewayError) -> dict[str, str | None]:
    """OpenAI's error object: the value under the key `error`."""
    return {"message": error.message, "type": error.type, "param": error.param, "code": error.code}


def envelope(error: GatewayError) -> bytes:
    """The whole OpenAI error body as JSON."""
    return msgspec.json.encode({"error": error_object(error)})
