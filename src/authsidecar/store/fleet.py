"""What all processes together have decided lately: counters in Redis, bounded, for charts.

Each process adds what it has decided since the last time, once a second, in one command; no
request writes anything. While Redis is away, what was to be added is dropped and counted: a chart
has a gap then, and nobody waits.

A slot is one hash, which expires. Slots of three lengths are written at once, so that an hour, a
day and a week are each read from at most 360 of them. All share a hash tag: on Redis Cluster they
are on one server.
"""

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry, Counter
from redis import exceptions

from authsidecar.observe.background import Background
from authsidecar.observe.metrics import Sums
from authsidecar.observe.tallies import BOUNDS_S
from authsidecar.store.keys import Keys
from authsidecar.times import UnixMs

EVERY_S: Final = 1.0
"""The time between two writes, in seconds."""

PATIENCE_S: Final = 1.0
"""How long a write may take, in seconds; then it is dropped."""

GONE_MS: Final = 15_000
"""A process that was silent for so long, in milliseconds, is no longer one of the fleet."""

PAGE: Final = 60
"""How many slots one trip reads: Redis, and this process, serve nobody else meanwhile."""

SpanName = Literal["hour", "day", "week"]


@dataclass(frozen=True, slots=True)
class TimeSpan:
    """A time that can be looked at, and how finely.

    Attributes:
        name: what people call it.
        step_s: the length of a slot, in seconds.
        slots: how many there are.
    """

    name: SpanName
    step_s: int
    slots: int

    @property
    def kept_s(self) -> int:
        """How long a slot stays, in seconds."""
        return (self.slots + 2) * self.step_s

    def start(self, now: UnixMs) -> int:
        """When the slot of this moment began, in seconds since 1970."""
        second = now // 1000
        return second - second % self.step_s

    def starts(self, now: UnixMs) -> range:
        """When each slot began, the one of this moment last."""
        last = self.start(now)
        return range(last - (self.slots - 1) * self.step_s, last + 1, self.step_s)


SPANS: Final[Mapping[SpanName, TimeSpan]] = {
    "hour": TimeSpan("hour", 10, 360),
    "day": TimeSpan("day", 300, 288),
    "week": TimeSpan("week", 1800, 336),
}

# The first field of a slot says that somebody was there, also where nothing was decided.
_WRITE: Final = """
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
for i = 2, #KEYS do
  for field = #KEYS + 4, #ARGV, 2 do
    redis.call('HINCRBY', KEYS[i], ARGV[field], ARGV[field + 1])
  end
  redis.call('EXPIRE', KEYS[i], ARGV[i + 3])
end
"""

_SECONDS: Final = "seconds"
_REASON: Final = "reason:"
_TIME: Final = "time:"
_BOUNDS: Final = (*map(str, BOUNDS_S), "inf")


@dataclass(frozen=True, slots=True)
class Counts:
    """What was decided in one slot, or in several together.

    Attributes:
        reasons: how many decisions, by reason code; `none`: admitted.
        times: how many took so long, by the upper bound in seconds, each beside those below it.
    """

    reasons: Mapping[str, int]
    times: Mapping[float, int]


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A process that runs.

    Attributes:
        host: the name of its machine.
        pid: its process id there.
        version: the sidecar's.
        config: the digest of the configuration that it decides by.
        started_at: when it was started.
        seen_at: when it was last heard of.
    """

    host: str
    pid: int
    version: str
    config: str
    started_at: UnixMs
    seen_at: UnixMs


class FleetWriter:
    """What one process has still to add."""

    def __init__(
        self,
        client: Any,
        keys: Keys,
        sums: Callable[[], Sums],
        *,
        version: str,
        config: Callable[[], str],
        now: Callable[[], UnixMs],
        registry: CollectorRegistry | None = None,
    ) -> None:
        """Begin with what is decided from now on.

        Args:
            client: redis-py's asyncio client.
            keys: the key names.
            sums: what this process has decided since its start.
            version: the sidecar's.
            config: the digest of the configuration in force.
            now: Redis's clock.
            registry: where the metric is; None: nowhere.
        """
        self._client = client
        self._keys = keys
        self._sums = sums
        self._config = config
        self._now = now
        self._told = sums()
        self._self = {
            "host": socket.gethostname()[:100],
            "pid": os.getpid(),
            "version": version,
            "started_at": int(time.time() * 1000),
        }
        self.dropped = 0
        self._dropped_count: Counter | None = None
        if registry is not None:
            self._dropped_count = Counter(
                "authsidecar_fleet_counts_dropped",
                "Decisions that are missing in the fleet's charts: Redis did not take them.",
                registry=registry,
            )

    async def write(self) -> None:
        """Add what was decided since the last time; what Redis does not take is dropped."""
        told, self._told = self._told, self._sums()
        added = _difference(told, self._told)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._write(added)
        except (exceptions.RedisError, OSError, TimeoutError):
            lost = sum(count for name, count in added.items() if name.startswith(_REASON))
            self.dropped += lost
            if self._dropped_count is not None:
                self._dropped_count.inc(lost)

    async def _write(self, added: Mapping[str, int]) -> None:
        now = self._now()
        spans = SPANS.values()
        await self._client.eval(
            _WRITE,
            1 + len(SPANS),
            self._keys.fleet_processes,
            *(self._keys.fleet_counts(span.step_s, span.start(now)) for span in spans),
            now,
            json.dumps({**self._self, "config": self._config()}, separators=(",", ":")),
            now - GONE_MS,
            GONE_MS,
            *(span.kept_s for span in spans),
            *(word for pair in added.items() for word in pair),
        )

    async def keep_writing(self) -> None:
        """Write once a second."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.write()


@contextlib.asynccontextmanager
async def counted(fleet: FleetWriter, background: Background) -> AsyncIterator[None]:
    """Add what is decided beside other work, and a last time at the end."""
    try:
        async with background.running("fleet", fleet.keep_writing):
            yield
    finally:
        await fleet.write()


def _difference(before: Sums, after: Sums) -> dict[str, int]:
    """What was decided in between, as a slot has it."""
    found = {_SECONDS: 1}
    for reason, count in after.reasons.items():
        found[_REASON + reason] = count - before.reasons.get(reason, 0)
    for bound, earlier, later in zip(_BOUNDS, before.times, after.times, strict=True):
        found[_TIME + bound] = later - earlier
    return {name: count for name, count in found.items() if count}


async def read_counts(client: Any, keys: Keys, span: TimeSpan, now: UnixMs) -> dict[int, Counts]:
    """The slots of a span that somebody has written, by their start in seconds since 1970.

    Raises:
        RedisError, OSError: Redis is away.
    """
    found: dict[int, Counts] = {}
    for starts in _pages(span.starts(now)):
        async with client.pipeline(transaction=False) as pipe:
            for start in starts:
                pipe.hgetall(keys.fleet_counts(span.step_s, start))
            slots = await pipe.execute()
        found |= {start: _counts(slot) for start, slot in zip(starts, slots, strict=True) if slot}
        await asyncio.sleep(0)
    return found


def _pages(starts: range) -> Iterator[range]:
    for first in range(0, len(starts), PAGE):
        yield starts[first : first + PAGE]


def _counts(slot: Mapping[bytes, bytes]) -> Counts:
    reasons: dict[str, int] = {}
    times: dict[float, int] = {}
    for field, value in slot.items():
        name = field.decode("utf-8", "replace")
        with contextlib.suppress(ValueError):  # of another release
            if name.startswith(_REASON):
                reasons[name.removeprefix(_REASON)] = int(value)
            elif name.startswith(_TIME):
                times[float(name.removeprefix(_TIME))] = int(value)
    return Counts(reasons, times)


async def read_processes(client: Any, keys: Keys, now: UnixMs) -> tuple[RunningProcess, ...]:
    """The processes that run, by machine and process id.

    Raises:
        RedisError, OSError: Redis is away.
    """
    rows = await client.zrangebyscore(keys.fleet_processes, now - GONE_MS, "+inf", withscores=True)
    found: dict[tuple[str, int], RunningProcess] = {}
    for text, score in rows:  # one that has another configuration now is there twice for a while
        with contextlib.suppress(ValueError, TypeError, KeyError):
            one = json.loads(text)
            process = RunningProcess(
                host=str(one["host"]),
                pid=int(one["pid"]),
                version=str(one["version"]),
                config=str(one["config"]),
                started_at=UnixMs(int(one["started_at"])),
                seen_at=UnixMs(int(score)),
            )
            found[process.host, process.pid] = process
    return tuple(one for _, one in sorted(found.items()))
