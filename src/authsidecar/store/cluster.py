"""Redis Cluster as the rest of the store uses a single Redis.

Single commands and reads go through redis-py's own cluster client. What it lacks is here: changes
whose keys are in several slots, WAIT on every node that was written, and a view of the cluster
that is renewed beside the requests, not within their budget.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Protocol, Self

from redis import exceptions
from redis.asyncio.cluster import ClusterNode, ClusterPipeline, RedisCluster
from redis.commands import AsyncCoreCommands
from redis.crc import key_slot

from authsidecar.store.full import SET_IN_FULL, as_script, beside, single
from authsidecar.store.redis_internals import must_look, node_connections, set_must_look
from authsidecar.tasks import end

REFRESH_S: Final = 1.0
"""How long one look at the cluster may take, in seconds."""

REFRESH_PAUSE_S: Final = 0.1
"""The least time between two looks, in seconds: a failover is seen that much later at most."""

REDIRECTS: Final = 5
"""How often a command follows the cluster before it is given up."""

LOCK_MS: Final = 10_000
"""How long a writer that died keeps others out, in milliseconds."""

_LOCK_PAUSE_S: Final = 0.02

_UNLOCK: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"

_within_command: Final = ContextVar("_within_command", default=False)
"""Whether redis-py's own code for one command runs, in whatever task it is."""

_GROW: Final = frozenset({"SADD", "ZADD"})
_SHRINK: Final = frozenset({"SREM", "ZREM"})


def slot_of(key: str | bytes) -> int:
    """The slot that a key is in, 0 to 16383."""
    return int(key_slot(key.encode() if isinstance(key, str) else key))


class Cluster(RedisCluster):  # its signatures mix sync and async, so ours can't match them
    """redis-py's cluster client; a script call or a change is never sent twice by itself."""

    def __init__(self, *, max_connections: int, **options: Any) -> None:
        """Nothing is sent yet.

        Args:
            max_connections: commands under way at once, and as many pipelines; others wait.
            options: of RedisCluster.
        """
        # Each command and each pipeline has one connection to a node.
        super().__init__(max_connections=2 * max_connections, **options)
        self._commands = asyncio.Semaphore(max_connections)
        self._pipelines = asyncio.Semaphore(max_connections)
        self._look: asyncio.Task[None] | None = None
        self._looked_at = float("-inf")
        self._seen = False
        self.written: dict[str, str] = {}
        self.look_failed: Callable[[BaseException | None], None] = lambda _: None

    async def initialize(self, *_: Any, **__: Any) -> Self:
        """See the whole cluster, the first time; later, look again without waiting for it."""
        if not self._seen:
            with _redis_errors():
                await super().initialize()
            self._seen = True
        elif must_look(self):
            set_must_look(self, must=False)
            self.look_again()
        return self

    @property
    def connections(self) -> tuple[int, int]:
        """How many connections to all nodes are idle, and how many are used."""
        counts = [node_connections(node) for node in self.nodes_manager.nodes_cache.values()]
        return sum(idle for idle, _ in counts), sum(used for _, used in counts)

    def look_again(self) -> None:
        """Ask who serves which slots, beside other work."""
        under_way = self._look is not None and not self._look.done()
        if self._seen and not under_way and time.monotonic() - self._looked_at > REFRESH_PAUSE_S:
            self._looked_at = time.monotonic()
            self._look = asyncio.get_running_loop().create_task(self._looking())

    async def _looking(self) -> None:
        try:
            with contextlib.suppress(exceptions.RedisError, OSError, TimeoutError), _redis_errors():
                async with asyncio.timeout(REFRESH_S):
                    await self.nodes_manager.initialize()
            self.look_failed(None)
        except Exception as error:  # noqa: BLE001  # the next look may do better
            self.look_failed(error)

    async def node(self, slot: int) -> ClusterNode:
        """The node that serves a slot, as far as is known.

        Raises:
            ConnectionError: none is known.
        """
        if must_look(self):
            await asyncio.ensure_future(self.initialize())  # who asks may run outside of a task
        with _redis_errors():
            return self.nodes_manager.get_node_from_slot(slot)

    async def moved(self, error: exceptions.MovedError) -> None:
        """Follow a MOVED: nothing was done by the command that got it."""
        with contextlib.suppress(KeyError):  # nobody had the slot
            await self.nodes_manager.move_slot(error)
        self.look_again()  # where one slot moved, others did

    async def aclose(self) -> None:
        """Close every connection.

        redis-py calls it within commands, too, when the cluster is down: then, look again.
        """
        if _within_command.get():
            set_must_look(self, must=True)
            return
        if self._look is not None:
            await end([self._look])
        set_must_look(self, must=True)
        await self.nodes_manager.aclose()
        await self.nodes_manager.aclose("startup_nodes")

    async def __aexit__(self, *_: object) -> None:
        """Close every connection."""
        await self.aclose()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """One command on the node that its key is on."""
        async with self._commands:
            return await self._watched(super().execute_command(*args, **options))

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Any:  # noqa: ARG002
        """Commands that are sent together: `transaction` says whether in the order of Steps."""
        return Steps(self) if transaction else _Pipeline(self)  # type: ignore[abstract]

    def change(self, *, allow_oom: bool) -> Any:
        """A change, made on nodes that are full too with `allow_oom`."""
        return Steps(self, allow_oom=allow_oom)  # type: ignore[abstract]

    async def piped(self, commands: Coroutine[Any, Any, Any]) -> Any:
        """Run a pipeline, when there is room."""
        async with self._pipelines:
            return await self._watched(commands)

    async def _watched(self, command: Awaitable[Any]) -> Any:
        _within_command.set(True)
        try:
            with _redis_errors():
                return await command
        except exceptions.ResponseError as error:
            if isinstance(error, exceptions.ClusterDownError | exceptions.AskError):
                self.look_again()
            raise
        except BaseException:  # a frozen node shows as a cancellation by the budget
            self.look_again()
            raise
        finally:
            _within_command.set(False)

    async def time(self, near: str = "", **options: Any) -> Any:
        """The clock of the node that has the key `near`."""
        return await super().time(target_nodes=await self.node(slot_of(near)), **options)

    async def wait(self, num_replicas: int, timeout: int, **_: Any) -> int:  # noqa: ASYNC109
        """Wait for replicas of every node that was changed: how many have it at the worst."""
        waits = [self._wait(key, num_replicas, timeout) for key in self.written.values()]
        return min(await asyncio.gather(*waits), default=num_replicas)

    async def _wait(self, key: str, replicas: int, timeout_ms: int) -> int:
        # WAIT counts for its own connection, and what is written now comes after all before.
        mark = ("EVAL", SET_IN_FULL, 1, beside(key, "written"), "", 1000, "")
        node = await self.node(slot_of(key))
        answers = await on(node, [mark, ("WAIT", replicas, timeout_ms)])
        for one in answers:
            if isinstance(one, Exception):
                raise one
        return int(answers[-1])


@contextlib.contextmanager
def _redis_errors() -> Iterator[None]:
    """Say what is wrong with the cluster as a RedisError, which redis-py does not do."""
    try:
        yield
    except exceptions.RedisClusterException as error:
        if isinstance(error.__cause__, exceptions.AuthenticationError):
            raise error.__cause__ from None
        raise exceptions.ConnectionError(str(error)) from None


async def configurations(client: Any, pattern: str) -> list[dict[Any, Any]]:
    """What CONFIG GET says, of the one server or of every primary."""
    if not isinstance(client, Cluster):
        return [await client.config_get(pattern)]
    await client.initialize()
    return [await client.config_get(pattern, target_nodes=n) for n in client.get_primaries()]


class _Pipeline(ClusterPipeline):
    """redis-py's pipeline of commands that may go to several nodes."""

    async def execute(self, *args: Any, **options: Any) -> Any:
        client: Any = self.cluster_client
        return await client.piped(super().execute(*args, **options))


class Marks(Protocol):
    """Moves a mark of the writer's on each node behind what it has written there (epoch.py)."""

    def move(self, node: str) -> tuple[Any, ...]:
        """The command that is sent to a node behind a write, on the same connection."""

    def settle(self, node: str, said: Any) -> None:
        """Told of its answer."""


class Steps(AsyncCoreCommands):
    """A change whose keys are in several slots; used as redis-py's transactional pipeline.

    It cannot be one MULTI. So each record is changed in a MULTI of its own slot, and the order
    makes every state between harmless: first the indexes learn of what will be there, then the
    records change in the order of the commands, then the indexes forget what is gone, and at the
    very end the nonces are renewed, which makes what anybody read meanwhile stale. They are
    renewed also where a step before failed: it may have been done. WATCH becomes a lock, so that
    of the writers that read before they write one goes after the other.

    Attributes:
        marks: what goes with each write to a node, or None.
    """

    def __init__(self, client: Cluster, *, allow_oom: bool = False) -> None:
        """Nothing is sent yet.

        Args:
            client: the cluster.
            allow_oom: make the change on full nodes too (see full.py).
        """
        self._client = client
        self._allow_oom = allow_oom
        self._commands: list[tuple[Any, ...]] = []
        self._locks: list[str] = []
        self._owner = secrets.token_hex(12)
        self._gathering = True
        self.marks: Marks | None = None

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Give the locks back."""
        await self._unlock()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Read at once between `watch` and `multi`; else, keep for `execute`."""
        if self._gathering:
            self._commands.append(args)
            return self
        return self._read(args, options)

    async def watch(self, *names: Any) -> None:  # type: ignore[override]
        """Keep other writers that watch any of these keys out until this one is done."""
        await self._unlock()
        self._gathering = False
        for lock in sorted({beside(key, "lock") for key in names}):
            take = (SET_IN_FULL, 1, lock, self._owner, LOCK_MS, "NX")
            while not await self._client.eval(*take):  # noqa: ASYNC110
                await asyncio.sleep(_LOCK_PAUSE_S)
            self._locks.append(lock)

    def multi(self) -> None:
        """From now on, commands are kept for `execute`."""
        self._gathering = True

    async def execute(self) -> list[Any]:
        """Do what was kept; an answer for each key of each command, in their order.

        Raises:
            RedisError: part of it may be done; doing all of it again is harmless.
        """
        commands = [one for command in self._commands for one in single(command)]
        self._commands = []
        answers: list[Any] = [None] * len(commands)
        *before, nonces = _ordered(commands)
        try:
            for groups in before:
                for group in groups:
                    await self._change([commands[i] for i in group], group, answers)
        except BaseException:
            self.marks = None  # the nonces are renewed whatever the marks say
            raise
        finally:
            for group in nonces:
                await self._change([commands[i] for i in group], group, answers)
            await self._unlock()
        return answers

    async def _change(
        self, commands: Sequence[tuple[Any, ...]], places: Sequence[int], answers: list[Any]
    ) -> None:
        key = commands[0][1]
        for _ in range(REDIRECTS):
            node = await self._client.node(slot_of(key))
            self._client.written[node.name] = key
            mark = [] if self.marks is None else [self.marks.move(node.name)]
            change = self._sent(commands)
            replies = await self._client.piped(on(node, [*change, *mark]))
            done = replies[len(change) - 1]
            refused = next((r for r in replies[: len(change)] if isinstance(r, Exception)), None)
            if isinstance(refused, exceptions.MovedError):
                await self._client.moved(refused)
                continue
            if self.marks is not None and (
                refused is None or isinstance(refused, exceptions.OutOfMemoryError)
            ):
                self.marks.settle(node.name, replies[-1])  # all of it was done, or nothing
            if refused is not None:
                raise refused
            for place, answer in zip(places, done, strict=True):
                if isinstance(answer, Exception):
                    raise answer
                answers[place] = answer
            return
        raise exceptions.ClusterError("the slot moved on and on")

    def _sent(self, commands: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Commands of one slot as what a node runs as one; the last answer is theirs."""
        if self._allow_oom:
            return [as_script(commands)]
        return [("MULTI",), *commands, ("EXEC",)]

    async def _read(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        parts = single(args)
        if len(parts) == 1:
            return await self._client.execute_command(*args, **options)
        return sum([await self._client.execute_command(*part) for part in parts])

    async def _unlock(self) -> None:
        while self._locks:
            await self._client.eval(_UNLOCK, 1, self._locks.pop(), self._owner)


def _ordered(commands: Sequence[tuple[Any, ...]]) -> list[list[list[int]]]:
    """The places of commands: four phases, each of groups with one slot, by first appearance.

    What one key is given and loses stays together, in the order of the commands.
    """
    grown = {key for name, key, *_ in commands if name in _GROW}
    phases: list[dict[int, list[int]]] = [{}, {}, {}, {}]
    for place, (name, key, *_) in enumerate(commands):
        if ":nonce:" in f":{key}":
            phase = 3
        elif key in grown:
            phase = 0
        else:
            phase = 2 if name in _SHRINK else 1
        phases[phase].setdefault(slot_of(key), []).append(place)
    return [list(phase.values()) for phase in phases]


async def on(node: ClusterNode, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Commands on one connection, sent together: each answer, or the error it is.

    Raises:
        ConnectionError, OSError: what was done is not known.
    """
    connection: Any = node.acquire_connection()
    try:
        await node.disconnect_if_needed(connection)
        await connection.connect()
        packed = [part for command in commands for part in connection.pack_command(*command)]
        await connection.send_packed_command(packed)
        return [await answer(connection) for _ in commands]
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    finally:
        node.release(connection)


async def answer(connection: Any) -> Any:
    """The next answer, or the error it is."""
    try:
        return await connection.read_response()
    except exceptions.ResponseError as error:
        return error
