"""The fleet's counters in a real Redis."""

from collections.abc import Callable
from pathlib import Path

from redis.asyncio import Redis

from authsidecar.admin.fleet import read_series
from authsidecar.observe.metrics import Sums
from authsidecar.observe.tallies import BOUNDS_S
from authsidecar.store.fleet import SPANS, FleetWriter, read_processes
from authsidecar.store.keys import Keys
from authsidecar.store.kinds import kind_of
from authsidecar.times import UnixMs
from tests.support.redis import start_redis

KEYS = Keys()
NOW = UnixMs(1_800_000_000_000)


class Process:
    """A process of the fleet that decides what it is told to."""

    def __init__(self, client: Redis, version: str, now: Callable[[], UnixMs]) -> None:
        self.reasons: dict[str, int] = {}
        self.times = [0] * (len(BOUNDS_S) + 1)
        self.config = "c0ffee"
        self.writer = FleetWriter(
            client,
            KEYS,
            lambda: Sums(dict(self.reasons), list(self.times)),
            version=version,
            config=lambda: self.config,
            now=now,
        )

    def decide(self, reason: str, count: int, bucket: int = 1) -> None:
        """Decide so many, each within the bound of a bucket."""
        self.reasons[reason] = self.reasons.get(reason, 0) + count
        self.times[bucket] += count


async def test_two_processes_add_up(redis_client):
    """Each adds what is new since its last write, once."""
    one, two = (Process(redis_client, version, lambda: NOW) for version in ("1.0", "1.1"))
    one.decide("none", 30)
    two.decide("none", 10)
    two.decide("token_unknown", 5, bucket=4)
    for process in (one, two, one, two):
        await process.writer.write()
    one.decide("none", 1)
    await one.writer.write()
    for name in SPANS:
        found = await read_series(redis_client, KEYS, name, NOW)
        assert (found.admitted, dict(found.refused)) == (41, {"token_unknown": 5})
        assert BOUNDS_S[3] < found.p99 <= BOUNDS_S[4]


async def test_what_was_decided_before_is_not_counted_again(redis_client):
    """A writer begins with what is decided after it was made."""
    process = Process(redis_client, "1.0", lambda: NOW)
    process.decide("none", 3)
    await process.writer.write()
    await process.writer.write()
    assert (await read_series(redis_client, KEYS, "hour", NOW)).admitted == 3


async def test_all_of_it_expires_and_is_bounded(redis_client):
    """Each slot is a key that goes by itself, so there are never more than there are slots."""
    at = NOW
    process = Process(redis_client, "1.0", lambda: at)
    for _ in range(50):
        at = UnixMs(at + 10_000)
        process.decide("none", 1)
        await process.writer.write()
    found = [key.decode() async for key in redis_client.scan_iter("*")]
    most = {span.step_s: span.kept_s for span in SPANS.values()}
    for key in found:
        name = key.removeprefix(KEYS.prefix)
        kind = kind_of(name)
        assert kind is not None
        assert kind.role == "passing"
        assert "{fleet}" in key
        left = await redis_client.ttl(key)
        step = name.split(":")[1]
        assert 0 < left <= (15 if step == "processes" else most[int(step)])
    assert len(found) == 1 + 50 + 2 + 1
    assert sum(span.slots + 2 for span in SPANS.values()) < 1000


async def test_processes_come_and_go(redis_client):
    """Each is named with its version and configuration, until it has been silent for a while."""
    at = NOW
    process = Process(redis_client, "1.0", lambda: at)
    await process.writer.write()
    at = UnixMs(at + 1000)
    process.config = "deca"
    await process.writer.write()
    (seen,) = await read_processes(redis_client, KEYS, at)
    assert (seen.version, seen.config, seen.seen_at) == ("1.0", "deca", at)
    assert await read_processes(redis_client, KEYS, UnixMs(at + 15_001)) == ()


async def test_while_redis_is_away_counts_are_dropped_and_counted(tmp_path: Path):
    """Nothing is raised, nothing comes too late, and it goes on when Redis is back."""
    server = start_redis(tmp_path)
    async with Redis.from_url(server.url) as client:
        process = Process(client, "1.0", lambda: NOW)
        server.stop()
        process.decide("none", 7)
        process.decide("token_unknown", 1)
        await process.writer.write()
        assert process.writer.dropped == 8
        server.start()
        process.decide("none", 2)
        await process.writer.write()
        assert process.writer.dropped == 8
        assert (await read_series(client, KEYS, "hour", NOW)).admitted == 2
    server.stop()
