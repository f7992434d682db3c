"""What `[plugins.responses]` may say."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from headrace.config import Count, Positive, Strict


class ResponsesConfig(Strict, frozen=True):
    """`[plugins.responses]`: where answers are kept that callers go on from with `previous_response_id`."""

    store: Literal["sqlite", "memory", "off"] = "sqlite"
    """`sqlite`: in a file, which all workers share and which outlives restarts; `memory`: in the process, until it
    ends or reloads its configuration; `off`: nowhere. Prompts and answers are kept as they are."""
    database: str = "responses.db"
    """The file. A relative path starts at `server.state_dir`."""
    ttl: Positive = 86_400.0
    """Seconds for which an answer is kept."""
    max_entries: Count = 100_000
    """Answers that are kept. When there are more, those are forgotten first that are the oldest of whoever has the
    most."""
    max_bytes: Annotated[int, msgspec.Meta(ge=65_536)] = 268_435_456
    """Bytes of all that is kept; the same is done when there are more. Each answer is kept with its whole
    conversation."""
    max_entry_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 16_777_216
    """Bytes of one answer with its conversation; what is larger is not kept."""
