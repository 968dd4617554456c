"""What a round cost: CPU of the server and of Redis, and the commands that Redis ran."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from redis import Redis

from benchmarks.load import Measured

OWN = frozenset({"info", "client|setinfo", "hello"})
"""Commands of this meter itself."""


@dataclass(frozen=True)
class Round:
    """One round of one contestant; what is counted is per request.

    Attributes:
        per_second: requests answered a second.
        p50_ms: half of the answers took at most this long.
        p99_ms: 99 of 100 answers took at most this long.
        server_us: CPU microseconds of the server.
        redis_us: CPU microseconds of Redis.
        commands: commands that Redis ran, those inside scripts included.
        scripts: script calls that Redis ran; what shares a call shares its trip.
        requests: answered in all.
    """

    per_second: float
    p50_ms: float
    p99_ms: float
    server_us: float
    redis_us: float
    commands: float
    scripts: float
    requests: int = 0


@dataclass(frozen=True)
class Reading:
    """Counters at one moment."""

    server_s: float
    redis_s: float
    commands: int
    scripts: int


class Meter:
    """Reads the counters of one server process and its Redis."""

    def __init__(self, server: int, redis: int, url: str) -> None:
        """Begin to watch.

        Args:
            server: its process id.
            redis: Redis's process id.
            url: Redis's address.
        """
        self._server, self._redis = psutil.Process(server), psutil.Process(redis)
        self._client: Any = Redis.from_url(url)

    def read(self) -> Reading:
        """The counters now."""
        stats = self._client.info("commandstats")
        calls = {name.removeprefix("cmdstat_"): s["calls"] for name, s in stats.items()}
        return Reading(
            cpu_s(self._server),
            cpu_s(self._redis),
            sum(n for name, n in calls.items() if name not in OWN),
            calls.get("evalsha", 0) + calls.get("eval", 0),
        )


def cost(measured: Measured, before: Reading, after: Reading) -> Round:
    """What the requests between two readings cost each."""
    n = measured.requests
    return Round(
        per_second=measured.per_second,
        p50_ms=measured.p50_ms,
        p99_ms=measured.p99_ms,
        server_us=(after.server_s - before.server_s) * 1e6 / n,
        redis_us=(after.redis_s - before.redis_s) * 1e6 / n,
        commands=(after.commands - before.commands) / n,
        scripts=(after.scripts - before.scripts) / n,
        requests=n,
    )


def cpu_s(process: psutil.Process) -> float:
    """Seconds that its threads and its workers' have run, to the nanosecond (the kernel's ticks of
    10 ms are too coarse for a second's round)."""
    return (
        sum(
            int(thread.read_text().split()[0])
            for one in (process, *process.children(recursive=True))
            for thread in Path(f"/proc/{one.pid}/task").glob("*/schedstat")
        )
        / 1e9
    )
