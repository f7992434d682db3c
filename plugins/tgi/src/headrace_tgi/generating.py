"""OpenAI's completions as TGI's `/generate` takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from headrace.dialects import invalid_field
from headrace.errors import InvalidRequest
from headrace.exchange import Exchange
from headrace.presets import unheard

PASSED = (
    "repetition_penalty",
    "frequency_penalty",
    "typical_p",
    "truncate",
    "watermark",
    "seed",
    "adapter_id",
    "grammar",
)
"""Parameters that are called so by both."""
SPOKEN = frozenset(
    (
        *("model", "prompt", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k", "stop"),
        *("logprobs", "echo", "n", "best_of", *PASSED),
    )
)
"""Fields that are looked at; any other cannot be said."""


class Asked(msgspec.Struct):
    """A request for a completion: https://platform.openai.com/docs/api-reference/completions."""

    prompt: str | list[Any]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: str | list[str] | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0)] | bool | None = None
    echo: bool | None = None
    n: int | None = None

    def check(self) -> None:
        """Raise InvalidRequest if this cannot be asked; another backend may be."""
        if not self.text:
            raise InvalidRequest("The prompt is empty.", param="prompt", retryable=True)
        if (self.n or 1) > 1:
            raise InvalidRequest("This model gives one answer at a time.", param="n", retryable=True)

    @property
    def text(self) -> str:
        """The prompt. Raises InvalidRequest: there are several, or tokens in its place."""
        if isinstance(self.prompt, str):
            return self.prompt
        if len(self.prompt) == 1 and isinstance(self.prompt[0], str):
            return self.prompt[0]
        raise InvalidRequest("This model continues one text at a time.", param="prompt", retryable=True)

    @property
    def stops(self) -> list[str]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop]


NULL = b"null"
_asked = msgspec.json.Decoder(Asked).decode


def read(request: bytes) -> Asked:
    """A request. Raises InvalidRequest."""
    try:
        return _asked(request)
    except msgspec.ValidationError as error:
        raise invalid_field(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest("The body cannot be read.", code="invalid_json") from error


def left_out(exchange: Exchange) -> tuple[str, ...]:
    """Names of what cannot be said."""
    fields = exchange.fields
    return unheard(fields, (*(name for name in fields if name not in SPOKEN), "best_of"))


def body(asked: Asked, fields: Mapping[str, msgspec.Raw], limit: int | None) -> bytes:
    """The body of `/generate`.

    Args:
        fields: those of the request.
        limit: tokens that the answer may have if the request does not say.

    A temperature of 0 means greedy decoding, which TGI has by another name; it refuses 1 as `top_p`, and what is not
    positive as `top_k`: both mean that nothing is cut off.
    """
    parameters: dict[str, Any] = {
        "details": True,
        "do_sample": asked.temperature != 0,
        "max_new_tokens": asked.max_tokens or limit,
        "temperature": asked.temperature or None,
        "top_p": asked.top_p if asked.top_p is not None and asked.top_p < 1 else None,
        "top_k": asked.top_k if (asked.top_k or 0) > 0 else None,
        "stop": asked.stops or None,
        "top_n_tokens": int(asked.logprobs) if asked.logprobs else None,
        **{name: fields[name] for name in PASSED if bytes(fields.get(name, NULL)) != NULL},
    }
    given = {name: value for name, value in parameters.items() if value is not None}
    return msgspec.json.encode({"inputs": asked.text, "parameters": given})
