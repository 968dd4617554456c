"""All that this program uses of redis-py without redis-py promising it (ADR 12).

A new version of redis-py that changes any of it fails tests/unit/store/test_redis_internals.py,
which says what.
"""

from typing import Any

from hiredis import pack_command
from redis.asyncio.cluster import ClusterNode, RedisCluster

from authsidecar.store.login import renewing
from authsidecar.store.tls import SharedTls

USED = {
    "redis.asyncio.cluster.ClusterNode": ("_free", "_connections"),
    "redis.asyncio.cluster.RedisCluster": ("_initialize",),
    "redis.asyncio.connection.Connection": ("_connect", "_reader"),
}
"""What is used, by the class that has it."""


def node_connections(node: ClusterNode) -> tuple[int, int]:
    """How many connections to a node of a cluster are idle, and how many are used."""
    idle = len(node._free)  # noqa: SLF001
    return idle, len(node._connections) - idle  # noqa: SLF001


def must_look(client: RedisCluster) -> bool:
    """Whether a cluster's client asks who serves which slots before its next command."""
    return bool(client._initialize)  # noqa: SLF001


def set_must_look(client: RedisCluster, *, must: bool) -> None:
    """Have a cluster's client ask so, or not."""
    client._initialize = must  # noqa: SLF001


def packed_connection(connection: type[Any]) -> type[Any]:
    """The same kind of connection, writing commands with hiredis instead of in Python.

    redis-py does so itself for its synchronous connections; a call of 64 shared charges has
    hundreds of arguments. And one that is closed, or that Redis has closed meanwhile, is opened as
    a new one is: redis-py's cluster client would not notice, and behind sentinels it would go
    back to where the primary was.
    """
    tls = SharedTls()

    class Packed(renewing(connection)):  # type: ignore[misc]  # only known at run time
        async def connect(self) -> None:
            try:
                await super().connect()
            except BaseException:
                tls.failed()
                raise

        async def _connect(self) -> None:
            if (context := getattr(self, "ssl_context", None)) is not None:
                await tls.lend(context)
            await super()._connect()

        def pack_command(self, *args: Any) -> list[bytes]:
            name, *rest = args
            return [pack_command((*str(name).split(), *rest))]

        async def send_packed_command(self, *args: Any, **options: Any) -> None:
            if self._reader is not None and self._reader.at_eof():
                await self.disconnect(nowait=True)
            if not self.is_connected:
                await self.connect()
            await super().send_packed_command(*args, **options)

    return Packed
