"""Eight callers without a token who send the worst that they can find, through each proxy."""

import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from authsidecar.decision.model import Proxy
from tests.e2e.scenarios import PROXIES
from tests.support.lab import Lab
from tests.support.redis import guarded
from tests.support.wire import Wire
from tests.support.world import READ

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.slow,
    pytest.mark.alone,
]

CALLERS = 8
SECONDS = 3.0
EVERY_S = 0.02
ROUNDS = 2
WORSE = 2.0
"""How much later the ninety-ninth answer in a hundred may be."""

SHORT_MS = 5.0
"""What is never more than the machine's own noise, in milliseconds."""

# In a process of its own, so that what is measured does not wait for it.
CALLING = """
import asyncio, sys
port, target = int(sys.argv[1]), sys.argv[2]
request = f"GET {target} HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\n\\r\\n".encode()
async def caller():
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while True:
                writer.write(request)
                head = await reader.readuntil(b"\\r\\n\\r\\n")
                _, _, length = head.lower().partition(b"content-length: ")
                if not length or b"connection: close" in head.lower():
                    break
                await reader.readexactly(int(length.split()[0]))
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.01)
async def main():
    await asyncio.gather(*(caller() for _ in range(int(sys.argv[3]))))
asyncio.run(main())
"""

PLAIN = "/api/v1/teams"
WORST = "/api/v1/teams?" + "aaaaa;" * 60 + "%20" * 2400
"""Of those that a query may hold, what costs most; nginx takes no longer line than 8 KiB."""


@contextlib.contextmanager
def calling(port: int, target: str | None) -> Iterator[None]:
    """Callers who send this again and again, or nobody."""
    if target is None:
        yield
        return
    command = guarded(sys.executable, "-c", CALLING, str(port), target, str(CALLERS))
    callers = subprocess.Popen(command)
    try:
        yield
    finally:
        callers.kill()
        callers.wait()


async def legitimate(lab: Lab, proxy: Proxy) -> tuple[float, Counter[int]]:
    """The 99th percentile of right requests, in milliseconds, and their statuses."""
    request = lab.request(proxy, "GET", "/api/v1/teams", "Connection: keep-alive", token=READ)
    took: list[float] = []
    seen: Counter[int] = Counter()
    async with Wire(lab.port(proxy)) as wire:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            start = time.perf_counter()
            seen[(await wire.ask(request)).status] += 1
            took.append((time.perf_counter() - start) * 1000)
            await asyncio.sleep(EVERY_S)
    return statistics.quantiles(took, n=100)[98], seen


@pytest.mark.parametrize("proxy", PROXIES)
async def test_costly_callers_cost_the_others_no_more_than_plain_ones(
    lab: Lab, proxy: Proxy, tell: Callable[[str], None]
) -> None:
    """None is refused, and the latest are at most twice as late as beside plain callers."""
    nobody, plain, worst = [], [], []
    statuses: Counter[int] = Counter()
    for _ in range(ROUNDS):
        for target, p99s in ((None, nobody), (PLAIN, plain), (WORST, worst)):
            with calling(lab.port(proxy), target):
                await asyncio.sleep(0.3)
                p99, seen = await legitimate(lab, proxy)
            p99s.append(p99)
            statuses += seen
    tell(
        f"{proxy}: p99 alone {min(nobody):.1f} ms, beside {CALLERS} plain callers "
        f"{min(plain):.1f} ms, beside {CALLERS} costly ones {min(worst):.1f} ms; {dict(statuses)}"
    )
    assert set(statuses) == {200}
    assert min(worst) <= WORSE * max(min(plain), SHORT_MS)
