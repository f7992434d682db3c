"""What `[plugins.gpu]` may say."""

from __future__ import annotations

from typing import Annotated

import msgspec

from headrace.config import Strict


class GpuConfig(Strict, frozen=True):
    """`[plugins.gpu]`."""

    interval: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 10.0
    """Seconds between two readings of all GPUs."""
    timeout: Annotated[float, msgspec.Meta(gt=0, le=600)] = 5.0
    """Seconds that the driver may take to answer; one that hangs is waited for no longer, and nothing else waits."""
