"""Load for a server on loopback: wrk where it is installed, else a small generator of our own.

Our own is also what asks exactly once, keeps a pace and tells one status from another: wrk can do
none of these.
"""

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import cast

import uvloop

NUMBER = "{number}"
"""Stands in a request for a number that is another one each time it is sent."""

FIRST_REFUSAL = 400
"""Statuses from here on are what wrk counts as errors."""


@dataclass(frozen=True)
class Measured:
    """One round: requests a second, latencies in milliseconds, requests in all.

    Attributes:
        refused: answers of 400 and above.
    """

    per_second: float
    p50_ms: float
    p99_ms: float
    requests: int
    refused: int


@dataclass
class Seen:
    """What a generator of our own has seen so far."""

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0


def numbered(requests: Iterable[bytes]) -> Iterator[bytes]:
    """The same with NUMBER replaced, in this run by another number than in any before."""
    mark = NUMBER.encode()
    for at, request in enumerate(requests, time.time_ns()):
        yield request.replace(mark, b"%d" % at) if mark in request else request


def generator() -> str:
    """The name of the generator that `drive` uses."""
    return "wrk" if shutil.which("wrk") else "benchmarks/load.py"


def drive(port: int, requests: list[bytes], *, connections: int, seconds: float) -> Measured:
    """Send the requests in turn over so many connections for so long.

    Args:
        port: on 127.0.0.1.
        requests: whole requests, at least one.
        connections: each has one request under way at any time.
        seconds: how long; wrk takes whole ones, so it is rounded for it.

    Raises:
        RuntimeError: a connection failed; such a round is no measurement.
    """
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\0".join(requests))
        file.flush()
        command = [sys.executable, __file__, str(port), file.name, str(connections), str(seconds)]
        if generator() == "wrk":
            script = Path(__file__).with_name("wrk.lua")
            command = [
                *("wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"),
                *(
                    "-s",
                    str(script),
                    f"http://127.0.0.1:{port}",
                    "--",
                    file.name,
                    str(time.time_ns()),
                ),
            ]
        out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        return read_result(out.stdout)


def read_result(text: str) -> Measured:
    """What wrk.lua and our own generator print: a line RESULT and a line STATUS.

    Raises:
        RuntimeError: connections failed.
    """
    lines = dict(
        line.split(" ", 1) for line in text.splitlines() if line[:6] in {"RESULT", "STATUS"}
    )
    total, micros, p50, p99, errors = (int(word) for word in lines["RESULT"].split())
    if errors:
        raise RuntimeError(f"{errors} connections failed")
    return Measured(total / (micros / 1e6), p50 / 1000, p99 / 1000, total, int(lines["STATUS"]))


def statuses(port: int, requests: Iterable[bytes], *, connections: int = 8) -> Counter[int]:
    """Ask each request exactly once: how often each status was answered."""

    async def ask() -> Counter[int]:
        seen = Seen()
        async with clients(port, numbered(requests), connections, seen) as finished:
            await asyncio.wait_for(finished, timeout=600)
        return seen.statuses

    return uvloop.run(ask())


@asynccontextmanager
async def clients(
    port: int,
    requests: Iterator[bytes],
    connections: int,
    seen: Seen,
    *,
    per_second: float | None = None,
) -> AsyncIterator["asyncio.Future[None]"]:
    """Ask until the context ends; the future is done when the requests have run out.

    Args:
        port: on 127.0.0.1.
        requests: taken in turn by all connections.
        connections: each has at most one request under way.
        seen: where the answers are counted.
        per_second: the pace of all together, evenly spread; None: as fast as answers come.

    Raises:
        RuntimeError: a connection was lost, so that some answer is missing.
    """
    loop = asyncio.get_running_loop()
    finished = loop.create_future()
    asking: set[_Client] = set()

    def client(number: int) -> _Client:
        schedule = None
        if per_second is not None:  # each connection has every so-many-th instant
            schedule = count(loop.time() + number / per_second, connections / per_second)
        return _Client(requests, seen, schedule, asking, finished)

    opened = [
        await loop.create_connection(partial(client, number), "127.0.0.1", port)
        for number in range(connections)
    ]
    try:
        yield finished
    finally:
        for transport, one in opened:
            asking.discard(one)
            transport.abort()
    if seen.lost:
        raise RuntimeError(f"{seen.lost} connections failed")


class _Client(asyncio.Protocol):
    """One connection that has one request under way, at once or on its schedule."""

    def __init__(
        self,
        requests: Iterator[bytes],
        seen: Seen,
        schedule: Iterator[float] | None,
        asking: "set[_Client]",
        finished: "asyncio.Future[None]",
    ) -> None:
        self.requests, self.seen, self.schedule = requests, seen, schedule
        self.asking, self.finished = asking, finished
        self.buffer = b""
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.asking.add(self)
        self.go_on()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.seen.lost += self in self.asking

    def go_on(self) -> None:
        if self.schedule is None:
            self.send()
        else:  # what is late is sent at once: the pace is kept over time
            asyncio.get_running_loop().call_at(next(self.schedule), self.send)

    def send(self) -> None:
        request = next(self.requests, None)
        if request is None:
            self.asking.discard(self)
            if not self.asking and not self.finished.done():
                self.finished.set_result(None)
        elif not self.transport.is_closing():
            self.sent = time.perf_counter()
            self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        at = lower.find(b"content-length:")
        length = 0 if at < 0 else int(lower[at + 15 :].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self.seen.latencies.append(time.perf_counter() - self.sent)
        self.seen.statuses[int(head[9:12])] += 1
        self.buffer = b""
        self.go_on()


async def _own(port: int, file: str, connections: int, seconds: float) -> None:
    requests = Path(file).read_bytes().split(b"\0")  # noqa: ASYNC240
    seen = Seen()
    start = time.perf_counter()
    async with clients(port, numbered(cycle(requests)), connections, seen):
        await asyncio.sleep(seconds)
        took = time.perf_counter() - start
    p50, p99 = percentiles(seen.latencies)
    refused = sum(n for status, n in seen.statuses.items() if status >= FIRST_REFUSAL)
    print(f"RESULT {len(seen.latencies)} {took * 1e6:.0f} {p50 * 1e3:.0f} {p99 * 1e3:.0f} 0")
    print(f"STATUS {refused}")


def percentiles(latencies: list[float]) -> tuple[float, float]:
    """p50 and p99 in milliseconds of latencies in seconds."""
    ordered = sorted(latencies)
    return ordered[len(ordered) // 2] * 1000, ordered[int(len(ordered) * 0.99)] * 1000


if __name__ == "__main__":
    _, port_, file_, connections_, seconds_ = sys.argv
    uvloop.run(_own(int(port_), file_, int(connections_), float(seconds_)))
