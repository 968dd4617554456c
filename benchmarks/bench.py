"""`make bench`: what one authorization check costs, as ratios within one run."""

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from redis.asyncio import Redis

from benchmarks.load import Measured, drive, generator
from tests.support.redis import free_port, guarded, start_redis
from tests.support.seed import bearer, registry, token, user
from tests.support.sidecar import start_sidecar

USERS = 500
"""Users whose tokens take turns, so that no limit is reached."""


def request(authorization: str, uri: str = "/api/v1/servers") -> bytes:
    """A subrequest as Traefik sends it."""
    return (
        f"GET /authz/traefik HTTP/1.1\r\nHost: 127.0.0.1:4190\r\nUser-Agent: curl/8.5.0\r\n"
        f"Authorization: {authorization}\r\nX-Forwarded-For: 192.0.2.7\r\n"
        f"X-Forwarded-Host: coolify.example.test\r\nX-Forwarded-Method: GET\r\n"
        f"X-Forwarded-Port: 443\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Server: proxy\r\n"
        f"X-Forwarded-Uri: {uri}\r\nAccept-Encoding: gzip\r\n\r\n"
    ).encode()


async def seed(url: str) -> None:
    """Users 1 to USERS, each with one token that may read."""
    async with Redis.from_url(url) as client:
        state = registry(client)
        await state.set_instance(api_enabled=True, allowlist="192.0.2.0/24,10.0.0.0/8")
        for number in range(1, USERS + 1):
            await user(state, number, t0="member")
        await state.put_tokens([token(n, user=n, team=0) for n in range(1, USERS + 1)])


@contextmanager
def contestant(name: str) -> Iterator[int]:
    """A server of contestants.py on a free port."""
    port = free_port()
    command = guarded(sys.executable, "-m", "benchmarks.contestants", name, str(port))
    process = subprocess.Popen(command)
    try:
        time.sleep(1)
        yield port
    finally:
        process.terminate()
        process.wait()


def run(rounds: int, seconds: float, connections: int) -> dict[str, list[Measured]]:
    """Drive every contestant in turn, so many rounds."""
    allowed = [request(bearer(n)) for n in range(1, USERS + 1)]
    with ExitStack() as stack, tempfile.TemporaryDirectory() as directory:
        redis = start_redis(Path(directory, "redis"), port=0)
        stack.callback(redis.stop)
        asyncio.run(seed(redis.url))
        sidecar = start_sidecar(
            Path(directory), redis.url, LIMITS__USER="100000", LOG__DECISIONS="denied"
        )
        stack.callback(sidecar.stop)
        ports = {"empty": stack.enter_context(contestant("empty")), "allow": sidecar.port}
        results: dict[str, list[Measured]] = {name: [] for name in ports}
        for port in ports.values():  # warm up
            drive(port, allowed, connections=connections, seconds=1)
        for _ in range(rounds):
            for name, port in ports.items():
                measured = drive(port, allowed, connections=connections, seconds=seconds)
                if measured.refused:
                    raise RuntimeError(f"{name}: {measured.refused} requests were refused")
                results[name].append(measured)
        return results


def table(results: dict[str, list[Measured]]) -> str:
    """Medians and spread, and every ratio to the empty handler."""
    base = statistics.median(m.per_second for m in results["empty"])
    lines = [f"{'':24}{'requests/s':>12}{'spread':>14}{'ratio':>8}{'p50 ms':>9}{'p99 ms':>9}"]
    for name, rounds in results.items():
        rates = [m.per_second for m in rounds]
        lines.append(
            f"{name:24}{statistics.median(rates):12,.0f}"
            f"{min(rates):8,.0f}-{max(rates):,.0f}"
            f"{statistics.median(rates) / base:8.2f}"
            f"{statistics.median(m.p50_ms for m in rounds):9.2f}"
            f"{statistics.median(m.p99_ms for m in rounds):9.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = run(arguments.rounds, arguments.seconds, arguments.connections)
    print(f"load: {generator()}, {arguments.connections} connections, {platform.processor()}")
    print(table(results))
    if arguments.json:
        rows = {name: [asdict(m) for m in rounds] for name, rounds in results.items()}
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
