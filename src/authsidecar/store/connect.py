"""From the setting `redis` to a client: one place that knows how Redis is reached."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hiredis import pack_command
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from authsidecar.store.embedded import embedded

EMBEDDED: Final = "embedded"


@dataclass(frozen=True, slots=True)
class Connection:
    """How Redis is reached.

    Attributes:
        url: redis://, rediss://, unix://, or `embedded`.
        data_dir: where an embedded server keeps its files.
        username: wins over the url's.
        password: wins over the url's.
        timeout_s: of connecting and of one command, in seconds.
        max_connections: of one process.
        tls: files for a rediss:// url, as redis-py names them.
    """

    url: str
    data_dir: Path
    username: str | None = None
    password: str | None = None
    timeout_s: float = 1.0
    max_connections: int = 32
    tls: tuple[tuple[str, str], ...] = ()


@asynccontextmanager
async def connected(how: Connection) -> AsyncIterator["Redis"]:
    """A client that answers in bytes and never repeats a command by itself.

    Nothing is sent before the first command. An embedded server is started first, and stopped
    by the last process that leaves it.
    """
    if how.url == EMBEDDED:
        async with embedded(how.data_dir) as url, _client(how, url) as client:
            yield client
    else:
        async with _client(how, how.url) as client:
            yield client


def _client(how: Connection, url: str) -> "Redis":
    options: dict[str, Any] = dict(how.tls)
    if how.username is not None:
        options["username"] = how.username
    if how.password is not None:
        options["password"] = how.password
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=how.max_connections,
        timeout=how.timeout_s,
        socket_timeout=how.timeout_s,
        socket_connect_timeout=how.timeout_s,
        retry=Retry(NoBackoff(), 0),
        **options,
    )
    pool.connection_class = _packed(pool.connection_class)
    return Redis.from_pool(pool)


def _packed(connection: type[Any]) -> type[Any]:
    """The same kind of connection, writing commands with hiredis instead of in Python.

    redis-py does so itself for its synchronous connections; a call of 64 shared charges has
    hundreds of arguments.
    """

    class Packed(connection):  # type: ignore[misc]  # a class that is only known at run time
        def pack_command(self, *args: Any) -> list[bytes]:
            name, *rest = args
            return [pack_command((*str(name).split(), *rest))]

    return Packed
