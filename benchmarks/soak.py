"""`make soak`: at half of capacity for ten minutes, memory stays flat."""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import psutil
import uvloop

from benchmarks import requests
from benchmarks.load import Seen, clients, drive, generator, percentiles
from tests.support.redis import start_redis
from tests.support.sidecar import start_sidecar

CAPACITY_S = 5
CONNECTIONS = 32
SHARE = 0.5
"""Of capacity: half leaves room for whatever else the machine does."""

WARM_UP_MINUTES = 2
"""Caches and the counters' windows fill; a shorter run takes a fifth of it."""

SMOOTHING = 10
"""Seconds whose median is one sample: an allocator's momentary peak is no growth."""

FLAT = 0.05

BUSY = (0.2, 2.0)
"""How busy a user is, as a share of the average. Equally busy ones fill and free the pieces of
their counters in step, and Redis's allocator keeps what was just freed for ten seconds."""


def deviation(samples: Sequence[float], skip: int) -> float:
    """How far memory strays from where it was after warming up, as a share of that.

    Args:
        samples: one a second.
        skip: seconds of warming up, fewer than there are samples.
    """
    kept = samples[skip:]
    medians = [
        statistics.median(kept[at : at + SMOOTHING]) for at in range(0, len(kept), SMOOTHING)
    ]
    return max(abs(m - medians[0]) for m in medians) / medians[0]


def unequal(sent: Sequence[bytes]) -> list[bytes]:
    """Many of these requests in a random order, of some more often than of others."""
    rng = random.Random(5)
    weights = [rng.uniform(*BUSY) for _ in sent]
    return rng.choices(sent, weights, k=20_000)


def warm_up(minutes: float) -> int:
    """Seconds that are not judged."""
    return round(min(WARM_UP_MINUTES, minutes / 5) * 60)


async def soak(
    port: int, sent: list[bytes], rate: float, watched: Mapping[str, psutil.Process], minutes: float
) -> dict[str, list[float]]:
    """Keep the pace, and sample resident memory every second; a line a minute.

    Raises:
        RuntimeError: an answer was not 200, or a connection was lost.
    """
    samples: dict[str, list[float]] = {name: [] for name in watched}
    seen = Seen()
    start, asked = time.monotonic(), 0
    async with clients(port, cycle(sent), CONNECTIONS, seen, per_second=rate):
        for second in range(1, round(minutes * 60) + 1):
            await asyncio.sleep(max(0, start + second - time.monotonic()))
            for name, process in watched.items():
                samples[name].append(process.memory_info().rss)
            if set(seen.statuses) - {200}:
                raise RuntimeError(f"expected only 200, got {dict(seen.statuses)}")
            if second % 60 == 0 or second == round(minutes * 60):
                p50, p99 = percentiles(seen.latencies)
                sizes = ", ".join(f"{n} {s[-1] / 1e6:.1f} MB" for n, s in samples.items())
                done = (seen.statuses.total() - asked) / ((second - 1) % 60 + 1)
                print(
                    f"{second / 60:5.1f} min: {done:,.0f} requests/s, "
                    f"p50 {p50:.2f} ms, p99 {p99:.2f} ms; {sizes}",
                    flush=True,
                )
                asked = seen.statuses.total()
                seen.latencies.clear()
    return samples


def main() -> int:
    """Run; 1 if memory was not flat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    sent = requests.allowed()
    with tempfile.TemporaryDirectory() as name:
        redis = start_redis(Path(name, "redis"))
        uvloop.run(requests.seed(redis.url))
        sidecar = start_sidecar(Path(name), redis.url, LIMITS__USER="100000", LOG__DECISIONS="none")
        try:
            found = drive(sidecar.port, sent, connections=CONNECTIONS, seconds=CAPACITY_S)
            rate = found.per_second * SHARE
            print(f"capacity {found.per_second:,.0f}/s ({generator()}); {rate:,.0f}/s from now on")
            watched = {
                "sidecar": psutil.Process(sidecar.pid),
                "Redis": psutil.Process(redis.pid),
            }
            samples = uvloop.run(soak(sidecar.port, unequal(sent), rate, watched, minutes))
        finally:
            sidecar.stop()
            redis.stop()
    strayed = {name: deviation(found, warm_up(minutes)) for name, found in samples.items()}
    for name, share in strayed.items():
        print(f"{'flat' if share <= FLAT else 'NOT FLAT':9}{name}: within {share:.1%}")
    return int(max(strayed.values()) > FLAT)


if __name__ == "__main__":
    sys.exit(main())
