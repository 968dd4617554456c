"""`make bench` with `--growth`: what stays the same when tokens, entries and routes grow.

A small sidecar and a grown one take turns, so that each ratio is within one moment. The requests
are those of the same number of active tokens in both.
"""

import asyncio
import random
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from redis.asyncio import Redis

from authsidecar.decision.routes.loading import released
from authsidecar.store.keys import Keys
from benchmarks import cores
from benchmarks.load import drive, statuses
from benchmarks.many_tokens import write_owners, write_tokens
from benchmarks.requests import ALLOWLIST, subrequest
from benchmarks.results import MAIN, Growth, Spread
from tests.support.redis import RedisProcess, start_redis
from tests.support.seed import bearer, registry
from tests.support.sidecar import SidecarProcess, start_sidecar

FEWEST_TOKENS = 1_000
ACTIVE = 1_000
"""Tokens that take turns, among however many there are."""

CACHED = 50_000
"""Tokens that are asked for once, to see what each costs the process."""

ENTRIES = (10, 100, 1_000, 10_000)
ROUTES = (300, 1_000, 3_000)
SMALLEST = "4.0"
"""The release line with the fewest rows, in front of which the operator's rows stand."""

SEED = 5

Starts = Callable[..., SidecarProcess]
"""Starts a sidecar on the Redis of a URL, with further settings."""

Compares = Callable[..., Spread]
"""The throughput of a grown sidecar by that of the small one."""


def grow(
    directory: Path, rounds: int, seconds: float, most_tokens: int
) -> tuple[list[Growth], float]:
    """Grow one thing after the other: ratios, and the memory of a cached token.

    Args:
        directory: where servers work.
        rounds: pairs of measurements at each size.
        seconds: of one measurement.
        most_tokens: the last power of ten of tokens.
    """
    with ExitStack() as stack:

        def redis(name: str) -> RedisProcess:
            process = start_redis(directory / name, port=0)
            stack.callback(process.stop)
            return process

        def sidecar(url: str, **settings: str) -> SidecarProcess:
            with cores.for_servers():
                process = start_sidecar(
                    directory,
                    url,
                    LIMITS__USER="100000",
                    LOG__DECISIONS="none",
                    COOLIFY__ROUTES=SMALLEST,
                    **settings,
                )
            stack.callback(process.stop)
            return process

        fewer, more = redis("fewer"), redis("more")
        asyncio.run(_owners(fewer.url))
        asyncio.run(_tokens(fewer.url, 1, FEWEST_TOKENS))
        small = sidecar(fewer.url)

        def ratio(grown: SidecarProcess, known: int = FEWEST_TOKENS) -> Spread:
            return _ratio(small.port, grown.port, known, rounds, seconds)

        tokens, record_bytes = _grow_tokens(more, sidecar, ratio, most_tokens)
        return [
            tokens,
            Growth("allowlist", _grow_allowlist(more, sidecar, ratio)),
            Growth("routes", _grow_routes(fewer, directory, sidecar, ratio)),
        ], record_bytes


def _ratio(small: int, grown: int, known: int, rounds: int, seconds: float) -> Spread:
    """Throughput of the grown one by the small one's, in turns."""
    few = _requests(range(1, ACTIVE + 1))
    many = _requests(random.Random(SEED).sample(range(1, known + 1), ACTIVE))
    found = []
    for turn in range(rounds + 1):
        rates = {}
        for port, sent in [(small, few), (grown, many)][:: 1 if turn % 2 else -1]:
            if set(seen := statuses(port, sent)) != {200}:
                raise RuntimeError(f"expected only 200, got {dict(seen)}")
            measured = drive(port, sent, connections=MAIN, seconds=seconds)
            if measured.refused:
                raise RuntimeError(f"{measured.refused} were refused")
            rates[port] = measured.per_second
        found.append(rates[grown] / rates[small])
    return Spread.of(found[1:])  # the first warms up


def _requests(numbers: Iterable[int]) -> list[bytes]:
    return [subrequest(bearer(number)) for number in numbers]


def _grow_tokens(
    redis: RedisProcess, sidecar: Starts, ratio: Compares, most: int
) -> tuple[Growth, float]:
    ratios: dict[int, Spread] = {}
    sizes: dict[int, float] = {}
    asyncio.run(_instance(redis.url))
    empty = asyncio.run(_memory(redis.url))
    asyncio.run(_owners(redis.url))
    grown, size, have = sidecar(redis.url), FEWEST_TOKENS * 10, 0
    while size <= most:
        asyncio.run(_tokens(redis.url, have + 1, size))
        have = size
        sizes[size] = (asyncio.run(_memory(redis.url)) - empty) / size
        ratios[size] = ratio(grown, size)
        size *= 10
    return Growth("tokens", ratios, sizes), _record_bytes(sidecar(redis.url), have)


def _record_bytes(fresh: SidecarProcess, known: int) -> float:
    """Resident memory of a sidecar for each token that it has been asked for."""
    process = psutil.Process(fresh.pid)
    statuses(fresh.port, _requests(range(1, ACTIVE + 1)))
    before = process.memory_info().rss
    asked = min(CACHED, known - ACTIVE)
    statuses(fresh.port, _requests(range(ACTIVE + 1, ACTIVE + asked + 1)), connections=MAIN)
    return float(process.memory_info().rss - before) / asked


def _grow_allowlist(redis: RedisProcess, sidecar: Starts, ratio: Compares) -> dict[int, Spread]:
    found = {}
    grown = sidecar(redis.url)
    for size in ENTRIES:
        entries = [f"10.{n >> 8}.{n & 255}.0/25" for n in range(size - 1)]
        asyncio.run(_instance(redis.url, ",".join([*entries, "192.0.2.0/24"])))
        found[size] = ratio(grown)
    asyncio.run(_instance(redis.url))
    return found


def _grow_routes(
    redis: RedisProcess, directory: Path, sidecar: Starts, ratio: Compares
) -> dict[int, Spread]:
    found = {}
    for size in ROUTES:
        file = directory / f"routes-{size}"
        rows = (
            f"GET /api/v1/extra{n}/{{uuid}} read\n" for n in range(size - len(released(SMALLEST)))
        )
        file.write_text("".join(rows))
        grown = sidecar(redis.url, COOLIFY__EXTRA_ROUTES=str(file))
        found[size] = ratio(grown)
        grown.stop()
    return found


async def _owners(url: str) -> None:
    await _instance(url)
    async with Redis.from_url(url) as client:
        await write_owners(client, Keys())


async def _tokens(url: str, first: int, last: int) -> None:
    async with Redis.from_url(url) as client:
        await write_tokens(client, Keys(), first, last)


async def _instance(url: str, allowlist: str = ALLOWLIST) -> None:
    async with Redis.from_url(url) as client:
        await registry(client).set_instance(api_enabled=True, allowlist=allowlist)


async def _memory(url: str) -> int:
    async with Redis.from_url(url) as client:
        info: Any = await client.info("memory")
        return int(info["used_memory"])
