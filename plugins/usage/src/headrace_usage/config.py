"""What `[plugins.usage]` may say."""

from __future__ import annotations

from typing import Annotated

import msgspec

from headrace.config import Secret, Strict

from .place import is_postgres, is_url, postgres_place
from .times import DAY, span

PerMillion = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
"""Money for 1,000,000 tokens."""
FOR_EVER = "forever"


class PriceConfig(Strict, frozen=True):
    """`[plugins.usage.prices."MODEL"]`: what a model costs, in `currency`; tokens per 1,000,000 of them."""

    input: PerMillion
    """Of the prompt, per 1,000,000 tokens."""
    output: PerMillion
    """Of the answer, per 1,000,000 tokens."""
    cached_input: PerMillion | None = None
    """Of that part of the prompt which the backend had in its cache; left out: as `input`."""
    request: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    """Of each request that is answered, whatever its length."""


class UsageConfig(Strict, frozen=True):
    """`[plugins.usage]`: where the ledger is, and for how long it keeps what."""

    database: Secret | None = None
    """A SQLite file on a local disk, `usage.db` if left out (a relative path starts at `server.state_dir`); or
    `postgresql://USER@HOST/DATABASE`. Treated as a secret, for such a URL may have a password in it."""
    retention: str = "90d"
    """How long single requests are kept: `90d`, `26w`, or `forever`. Whole days are deleted, UTC."""
    summary_retention: str = "forever"
    """How long the sums of days are kept, which reports are made of where single requests are gone. No shorter than
    `retention`."""
    addresses: bool = False
    """Keep the addresses of clients, too."""
    strangers: bool = True
    """Keep requests that were refused because nobody knew who asked, too."""
    prices: dict[str, PriceConfig] = msgspec.field(default_factory=dict)
    """What models cost, by their names here; `"MODEL@TARGET"` is what one target of a model costs that costs otherwise.
    The same as `[plugins.budget.prices]`, where that is used. Each request keeps the price of its day."""
    currency: Annotated[str, msgspec.Meta(min_length=1, max_length=16, pattern=r"^[^\s=+@-]\S*$")] = "USD"
    """Of prices: how it is written, nothing is converted."""
    queue_rows: Annotated[int, msgspec.Meta(ge=100, le=1_000_000)] = 10_000
    """Rows that may wait in each worker's memory: for a fifth of a second, and while not even the spool can be written.
    What is beyond them is lost, and told in the log."""
    spool_bytes: Annotated[int, msgspec.Meta(ge=0)] = 268_435_456
    """How large the files in `state_dir/usage-spool` may become, all together, that take up rows while the database
    cannot. 0: none are written."""
    admin_api: bool = False
    """Serve `GET /admin/usage/report` and `GET /admin/usage/requests` to administrators."""

    def __post_init__(self) -> None:
        self._check_spans()
        if self.database is not None:
            _check_place(self.database.reveal().strip())

    def _check_spans(self) -> None:
        for name in ("retention", "summary_retention"):
            try:
                kept = milliseconds(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            if kept is not None and kept < DAY:
                raise ValueError(f"{name}: is less than a day")
        rows, days = milliseconds(self.retention), milliseconds(self.summary_retention)
        if days is not None and (rows is None or days < rows):
            raise ValueError("summary_retention: is shorter than retention")


def milliseconds(text: str) -> int | None:
    """How long something is kept; None: for ever. Raises ValueError."""
    return None if text.strip() == FOR_EVER else span(text)


def _check_place(place: str) -> None:
    if not place or "\0" in place:
        raise ValueError("database: is empty, or no path")
    if is_postgres(place):
        try:
            postgres_place(place)
        except ValueError as error:
            raise ValueError(f"database: {error}") from None
    elif is_url(place):  # its password must not be shown as part of a path
        raise ValueError("database: is neither a file nor postgresql://USER@HOST/DATABASE")
