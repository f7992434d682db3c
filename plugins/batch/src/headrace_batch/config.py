"""What `[plugins.batch]` may say."""

from __future__ import annotations

from headrace.config import Count, Positive, Strict


class BatchConfig(Strict, frozen=True):
    """`[plugins.batch]`: how large a batch may be, and how much of it is asked at the same time."""

    max_items: Count = 128
    """Chats in one batch; more are refused."""
    max_body_bytes: Count | None = None
    """The largest body; left out, `server.max_body_bytes`."""
    concurrency: Count = 8
    """Chats of one batch that are answered at the same time."""
    max_concurrency: Count = 64
    """Chats of all batches together that are answered at the same time, in each worker."""
    max_batches: Count = 16
    """Batches that are answered at the same time, in each worker; further ones are refused with 503. Their answers are
    in memory until they are complete: `max_batches` times `max_items` times `max_reply_bytes` at most."""
    max_reply_bytes: Count = 1_048_576
    """Bytes of one chat's answer; a larger one is an error of its item."""
    timeout: Positive = 600.0
    """Seconds after which whatever has not been answered ends with an error of its item."""
