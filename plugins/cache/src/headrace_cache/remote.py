"""Clients of servers: aiocache's, with what it does not let be set."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from headrace.errors import PluginError

from .config import Address

PACKAGES = {"redis": "redis", "memcached": "aiomcache"}
CONNECTIONS = 32
"""At most, of each process."""
CONNECT_SECONDS = 1.0


def check_installed(address: Address) -> None:
    """Raises PluginError, naming what to install."""
    if importlib.util.find_spec(PACKAGES[address.kind]) is None:
        raise PluginError(
            "cache", f"url needs another package: run pip install 'headrace-cache[{address.kind}]' and start again"
        )


class Remote:
    """What is asked of a server. Keys are ASCII without spaces. Raises any of `errors`."""

    errors: tuple[type[Exception], ...] = (OSError, EOFError, TimeoutError)

    def is_refusal(self, error: BaseException) -> bool:
        """Whether the server answers, and does not take this one value."""
        return False

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    async def several(self, names: Sequence[str]) -> list[bytes | None]:
        """The values of these keys; None for those that are not there."""
        found = await self._cache.multi_get(list(names))
        return list(found) if len(found) == len(names) else [None] * len(names)  # AIOCACHE_DISABLE=1 gives nothing

    async def put(self, name: str, value: bytes, seconds: int | None) -> None:
        """Write it, for so many seconds or for good."""
        await self._cache.set(name, value, ttl=seconds)

    async def add(self, name: str, value: bytes) -> None:
        """Write it, unless it is there."""
        try:
            await self._cache.add(name, value, ttl=None)
        except ValueError:
            return

    async def close(self) -> None:
        """Close all connections."""
        await self._cache.close()


class Redis(Remote):
    """Redis or Valkey."""

    def __init__(self, address: Address) -> None:
        import redis.asyncio as redis
        from aiocache.backends.redis import RedisCache  # type: ignore[import-untyped]
        from aiocache.serializers import NullSerializer  # type: ignore[import-untyped]

        def pool(**_: Any) -> redis.BlockingConnectionPool:
            return redis.BlockingConnectionPool(max_connections=CONNECTIONS, timeout=None, **_options(address))

        super().__init__(RedisCache(NullSerializer(encoding=None), connection_pool_class=pool, timeout=None))
        self.errors = (*Remote.errors, redis.RedisError)

    def is_refusal(self, error: BaseException) -> bool:
        from redis.exceptions import ResponseError

        return isinstance(error, ResponseError)

    async def put(self, name: str, value: bytes, seconds: int | None) -> None:
        await self._cache.client.set(
            name, value, ex=seconds
        )  # aiocache's `set` and `close` call what is on its way out

    async def close(self) -> None:
        await self._cache.client.aclose()


def _options(address: Address) -> dict[str, Any]:
    import redis.asyncio as redis

    options: dict[str, Any] = {
        "db": address.database,
        "username": address.username or None,
        "password": address.password.reveal() or None,
        "decode_responses": False,
        "socket_connect_timeout": CONNECT_SECONDS,
        "retry": None,
    }
    if address.path:
        del options["socket_connect_timeout"]
        return {**options, "connection_class": redis.UnixDomainSocketConnection, "path": address.path}
    options |= {"host": address.host, "port": address.port}
    if address.tls:
        return {**options, "connection_class": redis.SSLConnection, "ssl_check_hostname": True}
    return options


class Memcached(Remote):
    """Memcached. Answers of more than its item size (1 MiB, unless it is told otherwise) it does not take."""

    def __init__(self, address: Address) -> None:
        import aiomcache
        from aiocache.backends.memcached import MemcachedCache  # type: ignore[import-untyped]

        class Client(aiomcache.Client):
            async def _execute_simple_command(self, conn: Any, raw_command: bytes) -> bytes:
                """aiomcache's own reads for ever, and lets nobody else run, when the server closes the connection."""
                conn.writer.write(raw_command)
                await conn.writer.drain()
                line: bytes = await conn.reader.readline()
                if not line.endswith(b"\r\n"):
                    raise EOFError("the server has closed the connection")
                return line[:-2]

        from aiocache.serializers import NullSerializer

        cache = MemcachedCache(NullSerializer(encoding=None), endpoint=address.host, port=address.port, timeout=None)
        cache.client = Client(address.host, address.port, pool_size=CONNECTIONS, pool_minsize=1)
        super().__init__(cache)
        self.errors = (*Remote.errors, aiomcache.exceptions.ClientException)

    def is_refusal(self, error: BaseException) -> bool:
        return "SERVER_ERROR" in str(error)


def connect(address: Address) -> Remote:
    """A client, without I/O yet."""
    return Redis(address) if address.kind == "redis" else Memcached(address)
