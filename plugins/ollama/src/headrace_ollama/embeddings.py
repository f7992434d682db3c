"""From Ollama's embeddings to OpenAI's."""

from __future__ import annotations

import array
import asyncio
import base64
import sys

import msgspec

from headrace.errors import InvalidRequest, UpstreamError

from .requests import Embedding
from .wire import Embedded, count

_encode = msgspec.json.Encoder().encode
_embedded = msgspec.json.Decoder(Embedded).decode
_numbers = msgspec.json.Decoder(list[float]).decode
STEP_BYTES = 1 << 18
"""Others have their turn after so much of an answer."""


class Vector(msgspec.Struct):
    embedding: msgspec.Raw | str
    index: int
    object: str = "embedding"


class Vectors(msgspec.Struct):
    """The body of an answer (https://platform.openai.com/docs/api-reference/embeddings/object)."""

    data: list[Vector]
    model: str
    usage: dict[str, int]
    object: str = "list"


async def translated(content: bytes, asked: Embedding) -> bytes:
    """The body of an answer. The numbers are not read where they need not be.

    Raises:
        UpstreamError: what Ollama said cannot be read.
        InvalidRequest: the vectors have another length than was asked for.
    """
    try:
        said = _embedded(content)
        vectors: list[msgspec.Raw] | list[str] = said.embeddings
        if asked.encoding_format == "base64":
            vectors = await _packed(said.embeddings)
        if asked.dimensions is not None and said.embeddings:
            _check(len(_numbers(said.embeddings[0])), asked.dimensions)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UpstreamError("The backend's answer cannot be read.", detail=type(error).__name__) from error
    tokens = count(said.prompt_eval_count) or 0
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    data = [Vector(each, number) for number, each in enumerate[msgspec.Raw | str](vectors)]
    return _encode(Vectors(data, said.model, usage))


def _check(length: int, wanted: int) -> None:
    if length != wanted:
        raise InvalidRequest(
            f"The backend gives vectors of {length} numbers: this model, or this version of Ollama, cannot shorten "
            "them.",
            param="dimensions",
            code="unsupported_parameter",
        )


async def _packed(vectors: list[msgspec.Raw]) -> list[str]:
    """Each as the base64 of its numbers, 32 bits each, little-endian."""
    found, size = [], 0
    for each in vectors:
        size += memoryview(each).nbytes
        if size > STEP_BYTES:
            size = 0
            await asyncio.sleep(0)
        numbers = array.array("f", _numbers(each))
        if sys.byteorder == "big":
            numbers.byteswap()
        found.append(base64.b64encode(numbers.tobytes()).decode())
    return found
