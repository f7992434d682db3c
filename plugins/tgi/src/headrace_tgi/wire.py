"""TGI's own API as types: `/generate`, `/generate_stream`, `/info`, `/tokenize`
(https://huggingface.github.io/text-generation-inference/, `docs/openapi.json` of its repository)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from headrace.dialects import Tokens

FINISH = {"length": "length", "eos_token": "stop", "stop_sequence": "stop", "stop": "stop"}
"""TGI's reasons for an end, and OpenAI's."""


class Token(msgspec.Struct):
    text: str
    logprob: float | None = None
    special: bool = False


class Details(msgspec.Struct):
    """Of a whole answer, or of a stream's last token."""

    finish_reason: Literal["length", "eos_token", "stop_sequence"]
    generated_tokens: Tokens
    input_length: Tokens | None = None
    """Tokens of the prompt: in streams."""
    prefill: list[Any] = []
    tokens: list[Token] = []
    top_tokens: list[list[Token]] = []


class Whole(msgspec.Struct):
    """An answer of `/generate`."""

    generated_text: str
    details: Details | None = None


class Said(msgspec.Struct):
    """One event of `/generate_stream`: a token, or an error."""

    token: Token | None = None
    top_tokens: list[Token] = []
    details: Details | None = None
    error: str | None = None
    error_type: str | None = None


class Info(msgspec.Struct):
    """`/info`."""

    model_id: str
    max_total_tokens: int | None = None
    """Of a prompt and its answer."""


whole = msgspec.json.Decoder(Whole).decode
said = msgspec.json.Decoder(Said).decode
info = msgspec.json.Decoder(Info).decode
