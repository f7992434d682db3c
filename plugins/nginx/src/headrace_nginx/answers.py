"""nginx's own error answers: the same envelope, codes and types as the core's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from headrace.errors import (
    Forbidden,
    GatewayError,
    HeadersTooLarge,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    RateLimited,
    RequestTimeout,
    Unauthenticated,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
    envelope,
)
from headrace.limits import Wall

from .config import NginxConfig
from .quoting import quoted_json

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
RETRY_SECONDS = 2
"""What a client is told to wait when the core does not answer: a restart takes about that long."""


class Answer(msgspec.Struct, frozen=True):
    """One error that nginx may have to answer itself."""

    error: GatewayError
    nginx_codes: tuple[str, ...] = ()
    """The codes nginx has for it internally, when they differ from the status."""

    @property
    def status(self) -> int:
        return self.error.status

    @property
    def location(self) -> str:
        """Where the answer is made; nginx has no other use for paths that begin so."""
        name = self.error.code if self.nginx_codes else str(self.status)
        return f"/.headrace/{name}"


def answers(config: NginxConfig, max_body_bytes: int, walls: Sequence[Wall] = ()) -> list[Answer]:
    """Every answer, by status."""
    return [
        Answer(InvalidRequest("This is not a valid HTTP request.", code="invalid_http"), ("400", "501", "505")),
        Answer(InvalidRequest("This port speaks HTTPS: use https:// in the URL.", code="https_required"), ("497",)),
        Answer(InvalidRequest("The client certificate was not accepted.", code="invalid_certificate"), ("495", "496")),
        Answer(Unauthenticated("This path needs an API key. Send it as Authorization: Bearer KEY.")),
        Answer(Forbidden("This is not allowed.")),
        Answer(NotFound("There is nothing at this path.")),
        Answer(MethodNotAllowed("This method is not allowed.", headers={"Allow": ", ".join(METHODS)})),
        Answer(RequestTimeout("The request did not arrive in time.")),
        Answer(PayloadTooLarge(f"The body is larger than {max_body_bytes} bytes.")),
        Answer(
            GatewayError(
                "The URL of this request is too long.",
                status=414,
                type="invalid_request_error",
                code="uri_too_long",
            )
        ),
        Answer(_rate_limited(config, walls)),
        Answer(HeadersTooLarge("The headers of this request are too large."), ("494",)),
        Answer(GatewayError("The gateway failed to handle this request.", code="internal_error")),
        Answer(UpstreamError("The gateway is not answering. Try again.", headers=_retry(RETRY_SECONDS))),
        Answer(Unavailable("The gateway is busy. Try again.", headers=_retry(RETRY_SECONDS))),
        Answer(UpstreamTimeout("The gateway took too long to answer. Try again.", headers=_retry(RETRY_SECONDS))),
    ]


def _rate_limited(config: NginxConfig, walls: Sequence[Wall]) -> GatewayError:
    limits = config.throttle
    set_here = (limits.requests_per_minute, limits.address_requests_per_minute)
    rates = [rate for rate in (*set_here, *(2 * (wall.requests_per_minute or 0) for wall in walls)) if rate]
    return RateLimited(
        "Too many requests. Slow down, and try again.", headers=_retry(max(1, -(-60 // min(rates, default=60))))
    )


def _retry(seconds: int) -> Mapping[str, str]:
    return {"Retry-After": str(seconds)}


def maps(found: list[Answer]) -> list[str]:
    """Headers that only some of the answers carry, by the place where the answer is made."""
    names = dict.fromkeys(name for answer in found for name in answer.error.headers)
    lines = []
    for name in names:
        values = (f'{a.location} "{a.error.headers[name]}";' for a in found if name in a.error.headers)
        lines.append(f'map $uri {_variable(name)} {{ default ""; {" ".join(values)} }}')
    return lines


def error_pages(found: list[Answer], headers: list[str]) -> list[str]:
    """Which error is answered where, and the answers. `headers` are `add_header` lines that all of them carry.

    nginx's internal codes become public ones here (494 → 431, 495 to 497 → 400).
    """
    names = dict.fromkeys(name for answer in found for name in answer.error.headers)
    return [
        *(_error_page(answer) for answer in found),
        "location /.headrace/ {",
        "    internal;",
        "    client_max_body_size 0;",
        "    default_type application/json;",
        *(f"    {line}" for line in headers),
        *(f"    add_header {name} {_variable(name)} always;" for name in names),
        *(f"    {_location(answer)}" for answer in found),
        "}",
    ]


def _variable(header: str) -> str:
    return f"$headrace_error_{header.lower().replace('-', '_')}"


def _error_page(answer: Answer) -> str:
    if answer.nginx_codes:
        return f"error_page {' '.join(answer.nginx_codes)} ={answer.status} {answer.location};"
    return f"error_page {answer.status} {answer.location};"


def _location(answer: Answer) -> str:
    body = quoted_json(envelope(answer.error))
    return f"location = {answer.location} {{ internal; return {answer.status} {body}; }}"


__all__ = ["METHODS", "Answer", "answers", "error_pages", "maps"]
