"""`[plugins.cache]`."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

import msgspec

from headrace.config import Secret, Strict

LONGEST = 2_592_000
"""Seconds. Memcached takes a larger number for a date."""
Ttl = Annotated[int, msgspec.Meta(ge=1, le=LONGEST)]
Bytes = Annotated[int, msgspec.Meta(ge=1024, le=2**40)]
Partition = Literal["team", "key", "shared"]
Harmless = Literal["user", "safety_identifier", "prompt_cache_key"]
FORMS = (
    "write redis://HOST:PORT/DATABASE, rediss://HOST:PORT/DATABASE, unix:///PATH?db=DATABASE or memcached://HOST:PORT"
)


class ModelRules(Strict, frozen=True):
    """`[plugins.cache.models.NAME]`: what is different for one model."""

    enabled: bool = True
    """Whether its answers are cached at all."""
    ttl: Ttl | None = None
    """Seconds that its answers are kept. Left out: as for all models."""
    always: bool | None = None
    """As `always` of the plugin, for this model. Left out: as for all models."""


class CacheConfig(Strict, frozen=True):
    """`[plugins.cache]`."""

    url: Secret | None = None
    """A server that keeps answers, too, for all workers and gateways: `redis://`, `rediss://`, `unix://` (Redis or
    Valkey) or `memcached://`. May hold a user and a password, and is never shown. Left out: memory alone."""
    memory: bool = True
    """Whether to keep answers in memory. With `url` that is the first of two levels; with `memory = false` the server
    is the only one."""
    memory_bytes: Bytes = 134_217_728
    """What the answers in memory may take, in each worker; the least recently used go first."""
    memory_ttl: Ttl = 60
    """With `url`: seconds that an answer stays in memory before the server is asked again. Another gateway's
    `cache clear` is seen after so long at the latest."""
    max_entry_bytes: Bytes = 1_048_576
    """The largest answer that is kept, and the largest beginning of a stream that others can still join."""
    ttl: Ttl = 3600
    """Seconds that an answer is kept."""
    always: bool = False
    """Cache requests that are not deterministic, too. False: only those with `temperature` 0 or a seed, embeddings,
    and what a client asks for with `X-Headrace-Cache: on`."""
    on_request: bool = True
    """Whether `X-Headrace-Cache: on` is heeded. False: it changes nothing."""
    partition: Partition = "team"
    """Who shares answers: a `team` (a caller without one is alone), each `key` by itself, or all callers: `shared`."""
    ignore: tuple[Harmless, ...] = ()
    """Fields of chats, completions and embeddings in which requests may differ and be the same all the same."""
    models: dict[str, ModelRules] = msgspec.field(default_factory=dict)
    """What is different for single models, by name."""
    prefix: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern="^[!-~]+$")] = "headrace-cache:"
    """What the server's keys begin with. Gateways with the same prefix share answers: a model's name must mean the same
    to them."""
    deadline: Annotated[float, msgspec.Meta(ge=0.001, le=1)] = 0.015
    """Seconds that a request waits for the server at the most."""
    probe_seconds: Annotated[float, msgspec.Meta(ge=0.05, le=60)] = 1.0
    """How long to wait between two looks whether a server that has failed answers again."""
    admin_api: bool = False
    """Serve `/admin/cache` to administrators."""

    def __post_init__(self) -> None:
        if self.url is None and not self.memory:
            raise ValueError("memory = false needs a url: else nothing is kept anywhere")
        if self.max_entry_bytes > self.memory_bytes:
            raise ValueError("max_entry_bytes is more than memory_bytes")
        if self.url is not None:
            address_of(self.url)


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server is, and how to be let in."""

    kind: Literal["redis", "memcached"]
    host: str = ""
    port: int = 0
    path: str = ""
    """Of a unix socket; empty for TCP."""
    tls: bool = False
    database: int = 0
    username: str = ""
    password: Secret = Secret("")

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


def address_of(url: Secret) -> Address:
    """What a URL says. Raises ValueError, which never repeats it."""
    try:
        parts = urlsplit(url.reveal())
        port = parts.port
    except ValueError:
        raise ValueError(f"url: is not a URL: {FORMS}") from None
    host, username = parts.hostname or "", unquote(parts.username or "")
    password = Secret(unquote(parts.password or ""))
    query = dict(pair.partition("=")[::2] for pair in parts.query.split("&") if pair)
    match parts.scheme:
        case "memcached" if host and not (username or password or query or parts.path.strip("/")):
            return Address(kind="memcached", host=host, port=port or 11211)
        case "redis" | "rediss" if host and not query:
            return Address(
                kind="redis",
                host=host,
                port=port or 6379,
                tls=parts.scheme == "rediss",
                database=_number(parts.path.strip("/")),
                username=username,
                password=password,
            )
        case "unix" if parts.path and not host and not set(query) - {"db"}:
            path, database = unquote(parts.path), _number(query.get("db", ""))
            return Address(kind="redis", path=path, database=database, username=username, password=password)
    raise ValueError(f"url: is not understood: {FORMS}")


def _number(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and len(text) < 6):
        raise ValueError(f"url: the database is not a number: {FORMS}")
    return int(text or 0)
