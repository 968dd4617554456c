"""All that this program uses of redis-py without redis-py promising it (ADR 12).

A new version of redis-py that changes any of it fails tests/unit/store/test_redis_internals.py,
which says what.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from hiredis import PushNotification, pack_command
from redis import exceptions
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio.cluster import ClusterNode, RedisCluster

from authsidecar.store.login import renewing
from authsidecar.store.tls import SharedTls

_NOT_WHOLE = NOT_ENOUGH_DATA

USED = {
    "redis.asyncio.cluster.ClusterNode": ("_free", "_connections"),
    "redis.asyncio.cluster.RedisCluster": ("_initialize",),
    "redis.asyncio.connection.Connection": ("_connect", "_reader", "_writer", "_parser"),
    "redis._parsers.hiredis._AsyncHiredisParser": ("_reader", "parse_error"),
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


class DirectConnection(asyncio.Protocol):
    """A connection that redis-py has opened and logged in, for one call after the other.

    redis-py's way to an answer is a task and six coroutines. Here a command is written at once, and
    whoever waits is called with the answer in the tick in which it comes.
    """

    def __init__(self, connection: Any) -> None:
        """Take over a connection that is open and has nothing left to read.

        Args:
            connection: redis-py's; from here on, only its mark for a reconnect is looked at.
        """
        self._connection = connection
        self._answers = connection._parser._reader  # noqa: SLF001
        self._transport = connection._writer.transport  # noqa: SLF001
        self._done: Callable[[Any], None] | None = None
        self._transport.set_protocol(self)

    @property
    def usable(self) -> bool:
        """Whether it is open, to whom it should be, and nobody waits on it."""
        return (
            self._done is None
            and not self._transport.is_closing()
            and not self._connection.should_reconnect()
        )

    def send(self, command: bytes, done: Callable[[Any], None]) -> None:
        """Send a command.

        Args:
            command: as Redis reads it.
            done: called once with the answer, or with the error that it is or that ended it.
        """
        self._done = done
        self._transport.write(command)

    def close(self) -> None:
        """Close at once; who waits is not called."""
        self._done = None
        self._transport.abort()
        self._connection._reader = self._connection._writer = None  # noqa: SLF001

    def data_received(self, data: bytes) -> None:
        """Hand on an answer that is here whole; what nobody has asked for ends the connection."""
        self._answers.feed(data)
        try:
            answer = self._answers.gets()
            while isinstance(answer, PushNotification):
                answer = self._answers.gets()
        except exceptions.InvalidResponse as error:
            self._lost(exceptions.ConnectionError(str(error)))
            return
        if answer is _NOT_WHOLE:
            return
        done, self._done = self._done, None
        if done is None or self._answers.has_data():
            self._done = done
            self._lost(exceptions.ConnectionError("more than was asked for"))
        else:
            done(answer)

    def eof_received(self) -> None:
        """Redis has closed: so is this."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the name is asyncio's
        """Redis has closed, or the way to it is gone."""
        self._lost(exceptions.ConnectionError("the connection was lost"))

    def _lost(self, error: Exception) -> None:
        done = self._done
        self.close()
        if done is not None:
            done(error)
