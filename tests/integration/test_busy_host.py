"""A host whose processors are all busy with something else: slow, but nobody is refused."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from authsidecar.decision.model import Limit
from tests.support import seed
from tests.support.decisions import world
from tests.support.redis import guarded, start_redis
from tests.support.sidecar import start_sidecar
from tests.support.wire import Wire, subrequest

CONNECTIONS = 1000
MINUTE_S = 60.0
BUSY_LOOPS = 3

GOOD = subrequest(authorization=seed.bearer(67))


@contextlib.contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """So many processes that do nothing but use a processor."""
    loops = [
        subprocess.Popen(guarded(sys.executable, "-c", "while True: pass")) for _ in range(number)
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


async def asked(port: int, seconds: float) -> Counter[int]:
    """How often a thousand connections, each busy all the time, got which status."""
    seen: Counter[int] = Counter()
    until = time.monotonic() + seconds

    async def caller() -> None:
        async with Wire(port) as wire:
            while time.monotonic() < until:
                seen[(await wire.ask(GOOD)).status] += 1

    await asyncio.gather(*(caller() for _ in range(CONNECTIONS)))
    return seen


@pytest.mark.slow
@pytest.mark.alone
async def test_a_busy_host_refuses_no_right_request(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """Three busy loops, a thousand connections, the budget that ships; Redis is well."""
    server = start_redis(tmp_path / "redis")
    async with Redis.from_url(server.url) as client:
        registry = await world(client)
        await registry.set_limit("user", 7, Limit(10_000_000))
    process = start_sidecar(tmp_path / "sidecar", server.url, REDIS__BUDGET_MS="50")
    try:
        with busy_loops(BUSY_LOOPS):
            seen = await asked(process.port, MINUTE_S)
    finally:
        process.stop()
        server.stop()
    tell(f"busy host, {CONNECTIONS} connections: {dict(seen)}")
    assert set(seen) == {200}
    assert seen[200] > CONNECTIONS
