"""What the bytes of requests and streams weigh in tokens, where nobody has counted them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

BYTES_PER_TOKEN = 4
"""Of a prompt, roughly: for estimates alone."""
PICTURE_TOKENS = 1500
"""Of a picture or a sound in a prompt: engines make some hundreds to some thousands of one."""
MEDIA = (b'"image_url":', b'"input_audio":', b'"video_url":', b'"audio_url":', b'"base64"', b'"file_data":')
ENCODED = re.compile(
    rb'"(?:(?:(?:image_)?url|file_data)"\s*:\s*"data:[^",]{0,64};base64,|data"\s*:\s*")[A-Za-z0-9+/=]*'
)
"""A picture or a sound as JSON has it. Within a text these quotes would be escaped."""
EVENT_BYTES = 300
"""Of a stream, with one token in it: few servers say more around it."""
LOGPROB_BYTES, MOST_LOGPROBS = 100, 20
"""Of an event, for each token whose probability is told, the token itself included; and how many of them there are."""


def measured(body: bytes) -> tuple[int, int]:
    """The bytes of a prompt without the pictures and sounds in it, and how many of these it has, in it or by their
    address. Most bodies have none, and cost two searches."""
    if b"_url" not in body and b'data"' not in body:
        return len(body), 0
    count = sum(body.count(word) for word in MEDIA)
    encoded = sum(found.end() - found.start() for found in ENCODED.finditer(body)) if count else 0
    return len(body) - encoded, count


def event_bytes(fields: Mapping[str, msgspec.Raw]) -> int:
    """The least that an event of a stream weighs: more if log probabilities are asked for."""
    asked = bytes(fields.get("logprobs", b"false"))
    if asked in (b"false", b"null", b"0"):
        return EVENT_BYTES
    most = bytes(fields.get("top_logprobs", asked))
    told = min(MOST_LOGPROBS, int(most)) if most.isdigit() and len(most) < 3 else 0
    return EVENT_BYTES + LOGPROB_BYTES * (1 + told)
