"""`[plugins.redis]`, and where the server is."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

from headrace.config import Secret, Strict

OnFailure = Literal["local", "open", "closed"]
PORT = 6379
FORMS = "write redis://HOST:PORT/DATABASE, rediss://HOST:PORT/DATABASE or unix:///PATH?db=DATABASE"


class RedisConfig(Strict, frozen=True):
    """`[plugins.redis]`: the server that counts, and what happens while it does not answer."""

    url: Secret = Secret("redis://127.0.0.1:6379/0")
    """Where the server is: `redis://`, `rediss://` (TLS) or `unix://`. May hold a user and a password, and is never
    shown."""
    username: str | None = None
    """The user, where `url` has none."""
    password: Secret | None = None
    """The password, where `url` has none."""
    ca: str | None = None
    """A file of authorities to check the server's certificate against (`rediss://`), in place of the usual ones."""
    certificate: str | None = None
    """A file with this gateway's certificate and private key, for servers that want to see one."""
    prefix: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "{headrace}:"
    """What all keys begin with. Gateways that share limits must have the same. The braces keep all keys on one shard of
    a cluster."""
    deadline: Annotated[float, msgspec.Meta(ge=0.001, le=5)] = 0.05
    """Seconds that a request waits for the server at the most. Two round trips must fit."""
    on_failure: OnFailure = "local"
    """What happens while the server does not answer: `local`: each gateway counts by itself; `open`: nothing is
    limited; `closed`: requests that are limited are answered 503."""
    probe_seconds: Annotated[float, msgspec.Meta(ge=0.05, le=60)] = 1.0
    """How long to wait between two looks whether a server that has failed answers again."""

    def __post_init__(self) -> None:
        address_of(self)


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server is, and how to be let in."""

    path: str = ""
    """Of a unix socket; empty for TCP."""
    host: str = ""
    port: int = PORT
    tls: bool = False
    database: int = 0
    username: str = ""
    password: Secret = Secret("")

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


def address_of(config: RedisConfig) -> Address:
    """What a configuration says about the server. Raises ValueError, which never repeats the URL."""
    try:
        parts = urlsplit(config.url.reveal())
        port = parts.port
    except ValueError:
        raise ValueError(f"url: is not a URL: {FORMS}") from None
    tls = parts.scheme == "rediss"
    if (config.ca or config.certificate) and not tls:
        raise ValueError("ca and certificate go with rediss:// alone")
    username = unquote(parts.username or "") or config.username or ""
    password = Secret(unquote(parts.password or "")) or config.password or Secret("")
    if username and not password:
        raise ValueError("username: there is no password")
    if parts.scheme == "unix" and parts.path and not parts.hostname:
        query = dict(parse_qsl(parts.query))
        database = _database(query.pop("db", ""), query)
        return Address(path=unquote(parts.path), database=database, username=username, password=password)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ValueError(f"url: is not understood: {FORMS}")
    return Address(
        host=parts.hostname,
        port=port or PORT,
        tls=tls,
        database=_database(parts.path.strip("/"), _options(parts)),
        username=username,
        password=password,
    )


def _options(parts: SplitResult) -> dict[str, str]:
    return {"#": ""} if parts.fragment else dict(parse_qsl(parts.query, keep_blank_values=True))


def _database(text: str, options: dict[str, str]) -> int:
    if options:
        raise ValueError("url: has options that are not known: write them as keys of [plugins.redis]")
    if text and not (text.isascii() and text.isdigit() and len(text) < 6):
        raise ValueError(f"url: the database is not a number: {FORMS}")
    return int(text or 0)
