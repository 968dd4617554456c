"""Load for a server on loopback: wrk where it is installed, else a small generator of our own."""

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import uvloop


@dataclass(frozen=True)
class Measured:
    """One round: requests a second, latencies in milliseconds, answers that were not 2xx or 3xx."""

    per_second: float
    p50_ms: float
    p99_ms: float
    refused: int


def generator() -> str:
    """The name of the generator that `drive` uses."""
    return "wrk" if shutil.which("wrk") else "benchmarks/load.py"


def drive(port: int, requests: list[bytes], *, connections: int, seconds: float) -> Measured:
    """Send the requests in turn over so many connections for so long.

    Raises:
        RuntimeError: a connection failed; such a round is no measurement.
    """
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\0".join(requests))
        file.flush()
        if generator() == "wrk":
            return _wrk(port, file.name, connections, seconds)
        command = [sys.executable, __file__, str(port), file.name, str(connections), str(seconds)]
        out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        return _read(out.stdout)


def _wrk(port: int, file: str, connections: int, seconds: float) -> Measured:
    script = Path(__file__).with_name("wrk.lua")
    out = subprocess.run(
        [
            *("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script)),
            *(f"http://127.0.0.1:{port}", "--", file),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return _read(out.stdout)


def _read(text: str) -> Measured:
    lines = dict(
        line.split(" ", 1) for line in text.splitlines() if line[:6] in {"RESULT", "STATUS"}
    )
    total, micros, p50, p99, errors = (int(word) for word in lines["RESULT"].split())
    if errors:
        raise RuntimeError(f"{errors} connections failed")
    return Measured(total / (micros / 1e6), p50 / 1000, p99 / 1000, int(lines["STATUS"]))


class _Client(asyncio.Protocol):
    """One connection that always has one request under way."""

    def __init__(self, requests: list[bytes], turn: list[int], latencies: list[float]) -> None:
        self.requests, self.turn, self.latencies = requests, turn, latencies
        self.buffer = b""
        self.refused = 0
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._send()

    def _send(self) -> None:
        self.turn[0] = (self.turn[0] + 1) % len(self.requests)
        self.sent = time.perf_counter()
        self.transport.write(self.requests[self.turn[0]])

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
        self.latencies.append(time.perf_counter() - self.sent)
        self.refused += head[9:10] not in {b"2", b"3"}
        self.buffer = b""
        self._send()


async def _own(port: int, file: str, connections: int, seconds: float) -> None:
    requests = Path(file).read_bytes().split(b"\0")  # noqa: ASYNC240
    latencies: list[float] = []
    turn = [0]
    loop = asyncio.get_running_loop()
    clients = [
        (
            await loop.create_connection(
                lambda: _Client(requests, turn, latencies), "127.0.0.1", port
            )
        )
        for _ in range(connections)
    ]
    latencies.clear()
    start = time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - start
    seen = sorted(latencies)
    for transport, _ in clients:
        transport.abort()
    refused = sum(client.refused for _, client in clients)
    p50, p99 = seen[len(seen) // 2], seen[int(len(seen) * 0.99)]
    print(f"RESULT {len(seen)} {took * 1e6:.0f} {p50 * 1e6:.0f} {p99 * 1e6:.0f} 0")
    print(f"STATUS {refused}")


if __name__ == "__main__":
    _, port_, file_, connections_, seconds_ = sys.argv
    uvloop.run(_own(int(port_), file_, int(connections_), float(seconds_)))
