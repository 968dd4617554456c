"""Whether Redis still has what a writer has written: an epoch that changes with every write.

Replication and the append-only file keep the order of writes. So a server that was promoted,
restored or started anew and that missed any write also missed the last epoch, and shows another
one or none. Each write tells the epoch that it expects and leaves a new one, in one script: a
write never goes on top of a state that has lost the write before it.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from redis import exceptions
from redis.asyncio import Redis
from redis.commands import AsyncCoreCommands

from authsidecar.store.cluster import Cluster, on, slot_of
from authsidecar.store.keys import Keys
from authsidecar.store.trips import kind_of

WAIT_SLICE_MS: Final = 500
"""Milliseconds of one WAIT: less than the connection's own patience with an answer."""

DONE, NO_FENCE, NO_EPOCH = 1, 0, -1
"""What the scripts say."""

# A Redis that is full refuses MULTI, and of a script the first write if it needs memory; what
# follows a first write that needs none is let through. So a removal is possible on a full Redis.
_WRITE: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[2] then return -1 end
if ARGV[4] == '1' then redis.call('DEL', KEYS[2]) end
redis.call('SET', KEYS[2], ARGV[3])
local at = 5
while at <= #ARGV do
  local words = tonumber(ARGV[at])
  redis.call(unpack(ARGV, at + 1, at + words))
  at = at + words + 1
end
return 1
"""

# The same for one node of a cluster, which looks at the fence elsewhere.
_MOVE: Final = """
if ARGV[1] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""

_TRIES: Final = 4096
"""How many slots are tried to find one of a node's."""

_LOST: Final = "lost"
"""An epoch that no server has: what became of a write is not known."""


@dataclass(frozen=True, slots=True)
class Fence:
    """A key, and the value that it has as long as its writer may write."""

    key: str
    value: bytes


class FenceBroken(Exception):  # noqa: N818  # it is no failure: another one writes
    """Another writer has taken over; nothing was written."""


class WritesLost(Exception):  # noqa: N818  # it is no failure of a write
    """Redis is not as the last write left it; nothing was written."""


class Epoch(Protocol):
    """The epoch of one writer, wherever Redis keeps it."""

    async def begin(self) -> None:
        """Leave an epoch, whatever there was: what is read from now on is what it stands for.

        Raises:
            FenceBroken: another writer has taken over.
        """

    async def stands(self) -> bool:
        """Whether Redis is as the last write left it; one cheap trip.

        Raises:
            FenceBroken: another writer has taken over.
        """

    async def confirmed(self, replicas: int, timeout_ms: int) -> int:
        """Wait until this many replicas have all that was written: how many have.

        Raises:
            WritesLost: Redis is not as the last write left it.
        """


def epoch(client: "Redis | Cluster", keys: Keys, fence: Fence) -> "OneEpoch | ClusterEpoch":
    """The epoch of the writer that has this fence."""
    if isinstance(client, Cluster):
        return ClusterEpoch(client, keys, fence)
    return OneEpoch(client, keys, fence)


class OneEpoch:
    """On a single Redis, or behind sentinels: it moves within the script that writes."""

    def __init__(self, client: "Redis", keys: Keys, fence: Fence) -> None:
        """Nothing is sent yet, and no epoch is expected before `begin`."""
        self._client: Any = client
        self._keys = [fence.key, keys.sync_epoch]
        self._fence = fence
        self._value = ""

    async def begin(self) -> None:  # noqa: D102  # as Epoch has them
        self._value = ""
        await self.write([], forced=True)

    async def stands(self) -> bool:  # noqa: D102
        fence, found = await self._client.mget(*self._keys)
        if fence != self._fence.value:
            raise FenceBroken
        return bool(found == self._value.encode())

    async def confirmed(self, replicas: int, timeout_ms: int) -> int:  # noqa: D102
        # WAIT counts for its own connection, and what is written now comes after all before.
        expected, value = self._next()
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.eval(_WRITE, 2, *self._keys, self._fence.value, expected, value, 1)
            for start in range(0, timeout_ms, WAIT_SLICE_MS):
                pipe.wait(replicas, min(WAIT_SLICE_MS, timeout_ms - start))
            said, *found = await pipe.execute()
        self._settle(said, value)
        return int(found[-1])

    async def write(self, commands: Sequence[tuple[Any, ...]], *, forced: bool) -> None:
        """Run commands and move on, as one.

        Args:
            commands: each with its words; they only write.
            forced: also on a Redis that is full.

        Raises:
            FenceBroken, WritesLost: nothing was written.
        """
        expected, value = self._next()
        words = [word for command in commands for word in (len(command), *command)]
        try:
            said = await self._client.eval(
                *(_WRITE, 2, *self._keys),
                *(self._fence.value, expected, value, int(forced)),
                *words,
            )
        except exceptions.ResponseError as error:
            if not forced and kind_of(error) == "full":
                self._value = expected  # the first command of all was refused
            raise
        self._settle(said, value)

    def _next(self) -> tuple[str, str]:
        """What is expected, and what is left; until it is answered, nothing is known."""
        expected, self._value = self._value, _LOST
        return expected, _fresh()

    def _settle(self, said: int, value: str) -> None:
        if said == NO_FENCE:
            raise FenceBroken
        if said == NO_EPOCH:
            raise WritesLost
        self._value = value


class Batch(AsyncCoreCommands):
    """Commands that are kept until `execute` and then are one script; used as a pipeline."""

    def __init__(self, epoch: OneEpoch, *, forced: bool) -> None:
        """Nothing is sent yet."""
        self._epoch = epoch
        self._forced = forced
        self._commands: list[tuple[Any, ...]] = []

    def execute_command(self, *args: Any, **_: Any) -> Any:
        """Keep it for `execute`."""
        self._commands.append(args)
        return self

    async def execute(self) -> None:
        """Do what was kept.

        Raises:
            FenceBroken, WritesLost: nothing was written.
        """
        commands, self._commands = self._commands, []
        await self._epoch.write(commands, forced=self._forced)


class ClusterEpoch:
    """On a cluster: one on each primary, for each may fail over by itself.

    A primary's epoch moves behind each of its writes, on the same connection: both are in the
    stream of that very server. Where slots have moved, nothing is known any more.
    """

    def __init__(self, client: Cluster, keys: Keys, fence: Fence) -> None:
        """Nothing is sent yet."""
        self._client = client
        self._keys = keys
        self._fence = fence
        self._marks: dict[str, tuple[str, str]] = {}
        self._moving = _LOST
        self._primaries: frozenset[str] = frozenset()

    async def begin(self) -> None:  # noqa: D102
        await self._look_at_fence()
        self._marks = {}
        await self._client.initialize()
        self._primaries = self._names()
        for node in self._client.get_primaries():
            key = await self._key_on(node.name)
            if key is not None:
                self._marks[node.name] = (key, "")
                said, *_ = await self._client.piped(on(node, [self.move(node.name)]))
                self.settle(node.name, said)

    async def stands(self) -> bool:  # noqa: D102
        await self._look_at_fence()
        if self._names() != self._primaries:
            return False
        for name, (key, value) in self._marks.items():
            found = await self._client.get(key)
            if found != value.encode() or (await self._client.node(slot_of(key))).name != name:
                return False
        return True

    async def confirmed(self, replicas: int, timeout_ms: int) -> int:  # noqa: D102
        return await self._client.wait(replicas, timeout_ms)

    def move(self, node: str) -> tuple[Any, ...]:
        """The command that goes with a write to a node, behind it.

        Raises:
            WritesLost: no epoch is known there.
        """
        if node not in self._marks:
            raise WritesLost
        key, expected = self._marks[node]
        self._moving = _fresh()
        self._marks[node] = (key, _LOST)
        return ("EVAL", _MOVE, 1, key, expected, self._moving)

    def settle(self, node: str, said: Any) -> None:
        """Take note of what that command was answered.

        Raises:
            WritesLost: the node is not as the last write left it.
        """
        if said != DONE:
            raise WritesLost
        self._marks[node] = (self._marks[node][0], self._moving)

    def _names(self) -> frozenset[str]:
        return frozenset(node.name for node in self._client.get_primaries())

    async def _look_at_fence(self) -> None:
        if await self._client.get(self._fence.key) != self._fence.value:
            raise FenceBroken

    async def _key_on(self, node: str) -> str | None:
        """A key of ours in one of a node's slots; None if it has none to speak of."""
        for number in range(_TRIES):
            key = self._keys.sync_epoch_on(number)
            try:
                if (await self._client.node(slot_of(key))).name == node:
                    return key
            except exceptions.ConnectionError:  # nobody serves that slot
                continue
        return None


def _fresh() -> str:
    return secrets.token_hex(8)
