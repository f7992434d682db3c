"""What `[plugins.metrics]` may say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import msgspec

from headrace.config import Strict

Bounds = Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=60)]


class BucketsConfig(Strict, frozen=True):
    """`[plugins.metrics.buckets]`: upper bounds of histograms, rising. Those of OpenTelemetry's metrics are its own."""

    request_duration: Bounds = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600)
    """Seconds from a request's arrival to the last byte of its answer."""
    time_to_first_token: Bounds = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 40, 60)
    """Seconds from the arrival of a request for a stream to the first bytes of the answer."""
    time_per_output_token: Bounds = (
        *(0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5),
    )
    """Seconds for each token after the first."""
    queue_wait: Bounds = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
    """Seconds that requests which had to wait have waited in the plugin `queue`."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            bounds: Sequence[float] = getattr(self, name)
            if any(not 0 < bound < 1e9 for bound in bounds):
                raise ValueError(f"{name}: bounds are above 0 and below 1e9; what is above the last one has its own")
            if any(low >= high for low, high in pairwise(bounds)):
                raise ValueError(f"{name}: each bound must be larger than the one before")


class MetricsConfig(Strict, frozen=True):
    """`[plugins.metrics]`."""

    listen: str = ""
    """`HOST:PORT` of an address of its own, `127.0.0.1:9464` for instance, where `/metrics` is open to whoever can
    reach it; empty: there is none. One of the workers listens there, and answers for all."""
    route: bool = True
    """Whether the gateway's own address has `/metrics`, too, through nginx as well."""
    require: Literal["metrics", "admin", "public"] = "metrics"
    """Who may read that: the role of a key; `admin` may always."""
    tokens: bool = True
    """Whether backends are asked for token counts although nobody else needs them. If not, those are counted that come
    by themselves: in whole answers that the core delivers, and where another plugin asks."""
    opentelemetry: bool = True
    """Whether the metrics whose names are OpenTelemetry's are there (`gen_ai_…`)."""
    max_discovered: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 200
    """Models that backends have offered by themselves and that are counted apart; all others are `(other)`."""
    buckets: BucketsConfig = BucketsConfig()
    """Upper bounds of the histograms."""

    def __post_init__(self) -> None:
        for problem in (*_listen(self.listen), *self._somewhere()):
            raise ValueError(problem)

    def _somewhere(self) -> Iterator[str]:
        if not self.listen and not self.route:
            yield "nobody could read them: set listen, or route = true"


def _listen(listen: str) -> Iterator[str]:
    host, _, port = listen.rpartition(":")
    if listen and not (host and port.isascii() and port.isdecimal() and 0 < int(port) <= 65535):
        yield f"listen: {listen!r} is not HOST:PORT"
