"""From the setting `redis` to a client: one place that knows how Redis is reached."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit
from weakref import WeakSet

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, MaxConnectionsError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from authsidecar.store.calls import IN_FLIGHT
from authsidecar.store.cluster import Cluster
from authsidecar.store.embedded import LogEvent, embedded
from authsidecar.store.login import Login, Words, words
from authsidecar.store.redis_internals import packed_connection
from authsidecar.tasks import end

EMBEDDED: Final = "embedded"

SENTINEL_PORT: Final = 26379
REDIS_PORT: Final = 6379

FOLLOW_S: Final = 0.25
"""The time between two questions to a sentinel who the primary is, in seconds."""


@dataclass(frozen=True, slots=True)
class Connection:
    """How Redis is reached.

    Attributes:
        url: redis://, rediss://, unix://, either with +sentinel or +cluster, or `embedded`.
        data_dir: where an embedded server keeps its files.
        username: wins over the url's.
        password: wins over the url's; the url's is then the sentinels' own.
        timeout_s: of connecting and of one command, in seconds.
        max_connections: of one process, at most; script calls have two of them, and all else at
            least one.
        tls: files for a rediss:// url, as redis-py names them.
        again: reads all of this anew, which may block; None where nothing can have changed. Its
            logins are taken once Redis refuses those of before.
    """

    url: str
    data_dir: Path
    username: str | None = None
    password: str | None = None
    timeout_s: float = 1.0
    max_connections: int = 32
    tls: tuple[tuple[str, str], ...] = ()
    again: "Callable[[], Connection] | None" = None


Keep = Callable[[Callable[[], Coroutine[Any, Any, None]]], Coroutine[Any, Any, None]]
"""Does a task's work, and sees to it that it goes on."""


@asynccontextmanager
async def connected(
    how: Connection, log_event: LogEvent | None = None, keep: Keep | None = None
) -> AsyncIterator["Redis"]:
    """A client that answers in bytes and never repeats a command by itself.

    Nothing is sent before the first command. An embedded server is started first, and stopped
    by the last process that leaves it. On Redis Cluster it is a Cluster.

    Args:
        how: where, and as whom.
        log_event: if given, an embedded server that ends is started again, and this is told of it.
        keep: begins what runs beside commands, and again if it fails.
    """
    async with AsyncExitStack() as stack:
        scheme = how.url.partition("://")[0]
        if how.url == EMBEDDED:
            client: Any = _alone(
                how, await stack.enter_async_context(embedded(how.data_dir, log_event))
            )
        elif scheme.endswith("+cluster"):
            client = _cluster(how)
            stack.push_async_callback(client.aclose)
        elif scheme.endswith("+sentinel"):
            sentinels, service, db = _sentinels(how)
            stack.push_async_callback(sentinels.aclose)
            pool = _SentinelPool(
                service, sentinels, db=db, max_connections=_pooled(how), **_options(how)
            )
            client = _packing(pool)
            following = asyncio.create_task(keep(pool.follow) if keep else pool.follow())
            stack.push_async_callback(end, [following])
        else:
            client = _alone(how, how.url)
        if not isinstance(client, Cluster):
            await stack.enter_async_context(client)
        yield client


def _alone(how: Connection, url: str) -> "Redis":
    pool = Pool.from_url(
        url,
        max_connections=_pooled(how),
        timeout=how.timeout_s,
        retry=Retry(NoBackoff(), 0),
        **_patience(how),
        **dict(how.tls),
    )
    for name in ("username", "password"):
        pool.connection_kwargs.pop(name, None)
    pool.connection_kwargs |= _login(how, of_server)
    return _packing(pool)


def _pooled(how: Connection) -> int:
    """How many connections are left for the pool: script calls have their own."""
    return max(1, how.max_connections - IN_FLIGHT)


def _packing(pool: Any) -> "Redis":
    pool.connection_class = packed_connection(pool.connection_class)
    return Redis.from_pool(pool)


def _patience(how: Connection) -> dict[str, Any]:
    return {"socket_timeout": how.timeout_s, "socket_connect_timeout": how.timeout_s}


def of_server(how: Connection) -> Words:
    """The login of a server or of a cluster's node."""
    user, password = _in_url(how.url)
    return words(
        user if how.username is None else how.username,
        password if how.password is None else how.password,
    )


def of_sentinels(how: Connection) -> Words:
    """The sentinels' own login, which is in the url where that of the servers is not."""
    return () if how.password is None else words(*_in_url(how.url))


def _in_url(url: str) -> tuple[str, str]:
    user, _, password = urlsplit(url).netloc.rpartition("@")[0].partition(":")
    return unquote(user), unquote(password)


def _login(how: Connection, of: Callable[[Connection], Words]) -> dict[str, Any]:
    again = how.again
    if again is None and not of(how):
        return {}
    return {"credential_provider": Login(of(how), None if again is None else lambda: of(again()))}


def _tls(how: Connection) -> dict[str, Any]:
    return {"ssl": True, **dict(how.tls)} if how.url.startswith("rediss") else {}


def _options(how: Connection) -> dict[str, Any]:
    """How the servers behind sentinels, and the nodes of a cluster, are reached."""
    return {**_patience(how), **_tls(how), **_login(how, of_server)}


def _hosts(url: str, port: int) -> list[tuple[str, int]]:
    hosts = urlsplit(url).netloc.rpartition("@")[2].split(",")
    return [((one := urlsplit(f"//{host}")).hostname or "", one.port or port) for host in hosts]


class Pool(BlockingConnectionPool):
    """redis-py's connections; none is lost, whatever fails or is cancelled at whatever moment."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Nothing is connected yet; the arguments are redis-py's."""
        super().__init__(*args, **options)
        self._made = WeakSet[Any]()
        self._releases: set[asyncio.Task[None]] = set()

    def make_connection(self) -> Any:
        """A new connection, not open yet."""
        connection = super().make_connection()  # type: ignore[no-untyped-call]
        self._made.add(connection)
        return connection

    def renew(self) -> None:
        """Have every connection, also of script calls, opened anew before it is used again."""
        for connection in self._made:
            connection.mark_for_reconnect()

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        """A connection that nobody else uses.

        Raises:
            MaxConnectionsError: all were in use for too long.
        """
        try:
            connection = super().get_connection(*args, **options)  # type: ignore[no-untyped-call]
            return await connection
        except RedisConnectionError as error:
            if isinstance(error.__cause__, TimeoutError) and not self.can_get_connection():
                raise MaxConnectionsError("all connections are in use") from None
            raise

    async def ensure_connection(self, connection: Any) -> None:
        """See that a connection is open, and to whom it should be."""
        if connection.should_reconnect():
            await connection.disconnect(nowait=True)
        await super().ensure_connection(connection)

    async def release(self, connection: Any) -> None:
        """Give a connection back; it is given back although the caller is cancelled meanwhile.

        redis-py's own waits for a lock, and forgets the connection if it is cancelled there.
        """
        task = asyncio.ensure_future(super().release(connection))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)
        await asyncio.shield(task)

    async def aclose(self) -> None:
        """Close every connection, once those that are being given back are back."""
        while self._releases:
            await asyncio.wait(self._releases)
        await super().aclose()


def endpoints(url: str) -> list[tuple[str, int]]:
    """Host and port of each server that a url names."""
    sentinel = "+sentinel" in url.partition("://")[0]
    return _hosts(url, SENTINEL_PORT if sentinel else REDIS_PORT)


# Redis Cluster


def _cluster(how: Connection) -> Cluster:
    nodes = [ClusterNode(host, port) for host, port in _hosts(how.url, REDIS_PORT)]
    client = Cluster(
        startup_nodes=nodes,
        max_connections=how.max_connections,
        require_full_coverage=False,  # a shard that is down is down for its own users alone
        retry=Retry(NoBackoff(), 0),
        reinitialize_steps=0,  # the client looks again by itself, beside the commands
        **_options(how),
    )
    kind = packed_connection(client.connection_kwargs["connection_class"])
    client.connection_kwargs["connection_class"] = kind
    for node in client.nodes_manager.startup_nodes.values():
        node.connection_class = kind
    return client


# Redis Sentinel


class _Sentinels(Sentinel):
    """Sentinels that are asked in another order after one that did not answer well.

    A caller's patience may end before a silent sentinel's time does. Each question reorders a
    list of its own: redis-py swaps places in the one list that all use, and of two that ask at
    once the later would put one sentinel in another's place, which then is lost.
    """

    async def discover_master(self, service_name: str) -> Any:
        asking = copy(self)
        asking.sentinels = order = list(self.sentinels)
        try:
            return await super(_Sentinels, asking).discover_master(service_name)
        except MasterNotFoundError as error:
            order.append(order.pop(0))
            if AuthenticationError.__name__ in str(error):  # redis-py only names it
                raise AuthenticationError("a sentinel refuses the login") from None
            raise
        except BaseException:
            order.append(order.pop(0))
            raise
        finally:
            self.sentinels = order


class _SentinelPool(SentinelConnectionPool, Pool):
    """redis-py's connections to the current primary; who finds none free waits for one."""

    def __init__(self, service: str, sentinels: Sentinel, **options: Any) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            service,
            sentinels,
            timeout=options["socket_timeout"],
            retry=Retry(NoBackoff(), 0),
            **options,
        )

    async def get_master_address(self) -> Any:
        """Where the primary is; connections to another are not used any more."""
        before = self.master_address
        address = await super().get_master_address()  # type: ignore[no-untyped-call]
        if before not in {None, address}:
            self.renew()
        return address

    async def follow(self) -> None:
        """Leave a primary that was replaced although it still answers."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await self.get_master_address()


def _sentinels(how: Connection) -> tuple[Sentinel, str, int]:
    """The sentinels, the name of the service that they watch, and its database."""
    service, _, db = urlsplit(how.url).path.lstrip("/").partition("/")
    login = _login(how, of_sentinels)
    own = {**_patience(how), **_tls(how), **login, "retry": Retry(NoBackoff(), 0)}
    hosts = _hosts(how.url, SENTINEL_PORT)
    sentinels = _Sentinels(hosts, sentinel_kwargs=own)  # type: ignore[no-untyped-call]
    for one in sentinels.sentinels:
        pool = one.connection_pool
        pool.connection_class = packed_connection(pool.connection_class)
    return sentinels, unquote(service), int(db or 0)
