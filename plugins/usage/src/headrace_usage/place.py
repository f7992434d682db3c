"""Where a database on a PostgreSQL server is: a URL, taken apart, whose password never shows itself."""

from __future__ import annotations

from typing import Literal, get_args
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

from headrace.config import Secret

SCHEMES = ("postgresql", "postgres")
TLS = Literal["disable", "prefer", "require", "verify-full"]
OPTIONS = ("host", "port", "user", "password", "dbname", "sslmode", "sslrootcert")
"""What may stand behind the `?`, named as libpq names it."""


class PostgresPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A database of a server. `str()` gives it without its password."""

    host: str
    """A name, an address, or the directory of a unix socket (which begins with a slash)."""
    port: int = 5432
    user: str
    password: Secret
    database: str
    tls: TLS = "prefer"
    """As libpq's `sslmode`: `prefer` takes what the server has, only `verify-full` proves that it is the right one."""
    certificates: str | None = None
    """A file of certificate authorities, for `verify-full`; None: those of the system."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"the PostgreSQL database {self.database!r} at {host}:{self.port}"

    __repr__ = __str__


def is_postgres(text: str) -> bool:
    """Whether this means a PostgreSQL server, and not a file."""
    return text.lower().startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def is_url(text: str) -> bool:
    """Whether this is meant as a URL, be it misspelt."""
    return "://" in text or text.lower().startswith(tuple(f"{scheme}:" for scheme in SCHEMES))


def postgres_place(url: str) -> PostgresPlace:
    """Take a URL apart.

    Raises:
        ValueError: what is wrong with it; never shows any part of it that might be a secret.
    """
    try:
        parts = urlsplit(url)
        given = _options(parts)
        port = int(given.get("port") or parts.port or 5432)
    except ValueError as error:
        raise ValueError(_harmless(error)) from None
    place = PostgresPlace(
        host=given.get("host") or unquote(parts.hostname or "") or "localhost",
        port=port,
        user=given.get("user") or unquote(parts.username or ""),
        password=Secret(given.get("password") or unquote(parts.password or "")),
        database=given.get("dbname") or unquote(parts.path.removeprefix("/")),
        tls=_tls(given.get("sslmode", "prefer")),
        certificates=given.get("sslrootcert"),
    )
    _check(place)
    return place


def _options(parts: SplitResult) -> dict[str, str]:
    if parts.fragment:
        raise ValueError("a '#' must be written %23")
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    if not given.keys() <= set(OPTIONS):
        raise ValueError(f"behind the '?' may stand {', '.join(OPTIONS)}")
    return given


def _harmless(error: ValueError) -> str:
    """urllib and int() repeat what they could not read, which may be half a password."""
    text = str(error)
    ours = text.startswith(("a '#'", "behind the"))
    return text if ours else "the URL cannot be read: is every special character in it written %XX?"


def _tls(word: str) -> TLS:
    for known in get_args(TLS):
        if word == known:
            return known  # type: ignore[no-any-return]
    raise ValueError(f"sslmode is one of {', '.join(get_args(TLS))}")


def _check(place: PostgresPlace) -> None:
    if not place.user:
        raise ValueError("the URL names no user: postgresql://USER@HOST/DATABASE")
    if not place.database:
        raise ValueError("the URL names no database: postgresql://USER@HOST/DATABASE")
    if not 0 < place.port < 65536:
        raise ValueError("the port is a number from 1 to 65535")
    if "\0" in place.user + place.database + place.host + place.password.reveal():
        raise ValueError("the URL has a NUL in it")
