"""llama.cpp's errors in OpenAI's words."""

from __future__ import annotations

import re
from typing import Any

from headrace.errors import GatewayError, InvalidRequest, Unavailable

FIELD = re.compile(r"Field '(\w+)': ")
TOO_LARGE = "too large to process"
"""What llama.cpp says, with status 500, of an embedding input that does not fit into one step."""


def as_gateway_error(error: dict[str, Any]) -> GatewayError:
    """llama.cpp's error object (`code` is an HTTP status) as an error that is answered."""
    message, status = str(error.get("message", "")), error.get("code", 500)
    if error.get("type") == "exceed_context_size_error":
        return _too_long(error["n_prompt_tokens"], error["n_ctx"])
    if TOO_LARGE in message:
        return InvalidRequest("The input is too long for one embedding.", code="context_length_exceeded", param="input")
    if status == 503:
        return Unavailable(message)
    if status in (400, 501):
        field = FIELD.match(message)
        return InvalidRequest(message, param=field[1] if field else None)
    return GatewayError("The engine failed.", detail=message)


def _too_long(tokens: int, context: int) -> InvalidRequest:
    return InvalidRequest(
        f"The prompt has {tokens} tokens; this model takes {context}, prompt and answer together. Shorten the prompt.",
        code="context_length_exceeded",
    )
