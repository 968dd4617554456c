"""What a sync tells of itself in Redis, and how every process passes it on.

The process that syncs may have no metrics of its own, so it leaves word in Redis: its last good
round, what keeps it from another, and what is odd. Any sidecar on that Redis says so in
`/readyz` and `/metrics`.
"""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge
from redis import exceptions
from redis.asyncio import Redis

from authsidecar.coolify.rows import Odd
from authsidecar.observe.background import Background
from authsidecar.store import audit
from authsidecar.store.audit import Origin
from authsidecar.store.changes import Changes
from authsidecar.store.keys import Keys
from authsidecar.store.records import SYNC_ENDED, SYNCED

OWNER: Final = "coolify"

_RELEASE: Final = """
if redis.call('EXISTS', KEYS[1]) == 1 then return -1 end
return redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
"""

_EVERY_S: Final = 1.0
"""The time between two looks at what the sync tells, in seconds."""


# What follows a first write that needs no memory is done on a full Redis, too.
_TELL: Final = """
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
if ARGV[1] == 'at' then
  local now = redis.call('TIME')
  local ms = now[1] * 1000 + math.floor(now[2] / 1000)
  redis.call('HSET', KEYS[1], 'at', string.format('%.0f', ms))
elseif ARGV[1] == 'kept' then
  redis.call('HINCRBY', KEYS[1], 'kept', 1)
end
"""


class Problem(StrEnum):
    """What keeps a sync from following; closed, since it labels a metric."""

    OUTAGE = "outage"
    SCHEMA = "schema"
    EMPTIED = "emptied"
    REDIS = "redis"
    REPLICAS = "replicas"
    INSTANT = "instant"
    DEFECT = "defect"
    OTHER = "other"


_NOT_KEPT: Final = {Problem.OUTAGE, Problem.REDIS, Problem.REPLICAS, Problem.DEFECT}
"""What keeps a round from being made; the others are rounds that were not believed."""


@dataclass(frozen=True, slots=True)
class Status:
    """What a sync tells of itself.

    Attributes:
        age_s: the seconds since Redis was last seen to say what Coolify says; None: never.
        problem: what keeps it from following, or None.
        detail: the same for people; no secret.
        kept: in how many rounds a doubtful database was not followed.
        odd: how many odd rows there are, by what is wrong.
    """

    age_s: float | None
    problem: Problem | None
    detail: str
    kept: int
    odd: Mapping[Odd, int]

    def as_json(self) -> dict[str, object]:
        """The object `sync` of `/readyz`."""
        return {
            "source": OWNER,
            "age_seconds": None if self.age_s is None else round(self.age_s, 3),
            "problem": self.problem,
            "detail": self.detail or None,
            "kept_rounds": self.kept,
            "odd_rows": sum(self.odd.values()),
        }


@dataclass(slots=True)
class StatusRecord:
    """Where a sync leaves word.

    Attributes:
        client: redis-py's asyncio client.
        keys: the key names.
    """

    client: Any = field(repr=False)
    keys: Keys

    async def tokens_file(self) -> str:
        """The table whose tokens were last applied; "" if unknown."""
        return _text(await self.client.hget(self.keys.sync_status, "tokens_file"))

    async def claim(self) -> None:
        """Say that the state is a sync's, before the first change of it."""
        await self._tell("", {"owner": OWNER})

    async def followed(
        self,
        odd: Mapping[Odd, int],
        tokens_file: str,
        problem: Problem | None = None,
        detail: str = "",
    ) -> None:
        """Say that Redis says what Coolify says.

        Args:
            odd: how many odd rows there are, by what is wrong.
            tokens_file: the table whose tokens were applied.
            problem: what is wrong all the same, or None.
            detail: the same for people.
        """
        fields = {
            "owner": OWNER,
            "problem": "" if problem is None else problem.value,
            "detail": detail,
            "odd": json.dumps(odd),
            "tokens_file": tokens_file,
        }
        await self._tell("at", fields)

    async def troubled(self, problem: Problem, detail: str) -> None:
        """Say why Redis may not say what Coolify says."""
        kept = "" if problem in _NOT_KEPT else "kept"
        await self._tell(kept, {"owner": OWNER, "problem": problem.value, "detail": detail})

    async def _tell(self, also: str, fields: Mapping[str, str]) -> None:
        words = [word for field in fields.items() for word in field]
        names = (self.keys.sync_status, self.keys.sync_room)
        await self.client.eval(_TELL, 2, *names, also, *words)


async def read_owner(client: "Redis", keys: Keys) -> str | None:
    """Who owns users, teams, tokens and settings: "coolify" if they are synced, else None."""
    anyway: Any = client
    return _text(await anyway.hget(keys.sync_status, "owner")) or None


async def release(client: "Redis", keys: Keys, origin: Origin | None = None) -> bool | None:
    """Let the state be managed here again, as it is.

    Args:
        client: redis-py's asyncio client.
        keys: the key names.
        origin: who does it, for the audit.

    Returns:
        Whether a sync owned it; None: one is running, would take it back, and still owns it.
    """
    anyway: Any = client
    names = [keys.sync_lease, keys.sync_status, keys.sync_fence, keys.sync_epoch]
    found = int(await anyway.eval(_RELEASE, len(names), *names))
    if found > 0:
        async with Changes(client, keys).multi() as pipe:
            pipe.hset(keys.instance, SYNCED, SYNC_ENDED)
            pipe.delete(keys.instance_nonce)
            was = {"owner": OWNER}
            audit.write(pipe, keys, origin, "sync.release", "instance", before=was)
            await pipe.execute()
    return None if found < 0 else found > 0


async def read(client: "Redis", keys: Keys) -> Status | None:
    """What the sync tells; None if there is none."""
    anyway: Any = client
    names = ["owner", "at", "problem", "detail", "kept", "odd"]
    who, at, problem, detail, kept, odd = await anyway.hmget(keys.sync_status, names)
    if who is None:
        return None
    seconds, micros = await anyway.time()
    return Status(
        age_s=None if at is None else max(0.0, seconds + micros / 1e6 - _number(at) / 1000),
        problem=_problem(_text(problem)),
        detail=_text(detail),
        kept=_number(kept),
        odd=_odd(odd),
    )


def _problem(text: str) -> Problem | None:
    """What is told there; a sync of another version may know more."""
    try:
        return Problem(text) if text else None
    except ValueError:
        return Problem.OTHER


def _odd(text: bytes | None) -> Mapping[Odd, int]:
    try:
        found = json.loads(text or b"{}")
        return {Odd(name): int(found[name]) for name in found if name in set(Odd)}
    except (ValueError, TypeError, AttributeError):
        return {}


def _number(text: bytes | None) -> int:
    """What cannot be read is 0: of a time, long ago."""
    return int(text) if text is not None and text.isdigit() else 0


NEVER: Final = Status(age_s=None, problem=None, detail="", kept=0, odd={})
"""What there is to tell where a sync is expected and has told nothing."""


async def readiness(
    client: "Redis", keys: Keys, *, expected: bool = False
) -> Mapping[str, object] | None:
    """What `/readyz` says of the sync; None if there is none, or Redis does not say.

    Args:
        client: redis-py's asyncio client.
        keys: the key names.
        expected: whether there is to be one.
    """
    try:
        status = await read(client, keys)
    except (exceptions.RedisError, OSError):
        return None
    if status is None and expected:
        status = NEVER
    return None if status is None else status.as_json()


class Gauges:
    """What the sync tells, as metrics; absent as long as there is no sync."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the metrics."""

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(
                f"authsidecar_sync_{name}",
                text,
                labels,
                registry=registry,
                multiprocess_mode="mostrecent",
            )

        # A gauge without labels would say 0 where there is no sync: 0 seconds old is a lie.
        self._age = gauge(
            "age_seconds", "Since Redis was last seen to say what Coolify says.", "source"
        )
        self._kept = gauge(
            "kept_rounds", "Rounds that did not follow a doubtful database.", "source"
        )
        self._problem = gauge("problem", "What keeps the sync from following: 1 if so.", "problem")
        self._odd = gauge("odd_rows", "Odd rows in Coolify's tables, by what is wrong.", "reason")
        self._seen = False
        self._age_s = math.inf
        self._set_at = 0.0

    def set(self, status: Status | None) -> None:
        """Bring the metrics up to date; what was there once and is not any more is for ever old."""
        if status is None and not self._seen:
            return
        status, self._seen = status or NEVER, True
        self._age_s = math.inf if status.age_s is None else status.age_s
        self._set_at = time.monotonic()
        self._age.labels(OWNER).set(self._age_s)
        self._kept.labels(OWNER).set(status.kept)
        for problem in Problem:
            self._problem.labels(problem.value).set(problem is status.problem)
        for reason in Odd:
            self._odd.labels(reason.value).set(status.odd.get(reason, 0))

    def grow_old(self) -> None:
        """Let the age go on: nobody says that it does not."""
        if self._seen:
            self._age.labels(OWNER).set(self._age_s + time.monotonic() - self._set_at)


@contextlib.asynccontextmanager
async def exported(
    client: "Redis",
    keys: Keys,
    registry: CollectorRegistry,
    background: Background,
    *,
    expected: bool,
) -> AsyncIterator[None]:
    """Keep the metrics of the sync up to date, until the context ends.

    Args:
        client: redis-py's asyncio client.
        keys: the key names.
        registry: where the metrics are.
        background: keeps it going.
        expected: whether there is to be a sync.
    """
    gauges = Gauges(registry)
    if expected:
        gauges.set(NEVER)

    async def keep() -> None:
        while True:
            try:
                gauges.set(await read(client, keys))
            except (exceptions.RedisError, OSError):
                gauges.grow_old()
            await asyncio.sleep(_EVERY_S)

    async with background.running("sync_status", keep):
        yield


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
