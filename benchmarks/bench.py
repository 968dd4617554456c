"""`make bench`: what one authorization check costs, as ratios within one run."""

import argparse
import asyncio
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks import cores, requests, results
from benchmarks.growth import grow
from benchmarks.load import FIRST_REFUSAL, drive, generator, statuses
from benchmarks.meter import Meter, Round, cost
from benchmarks.nginx_lua import missing, nginx_lua
from benchmarks.results import MAIN, Run
from tests.support.redis import RedisProcess, free_port, guarded, start_redis
from tests.support.sidecar import start_sidecar

START_S = 15
SAMPLE = 16
"""Requests of a contestant whose status is looked at before and after each round."""

HOUR = {"LIMITS__FAILED__LIMIT": "30", "LIMITS__FAILED__WINDOW_SECONDS": "3600"}
"""Failed authentications of an address: the default, for so long that no round sees it open."""


@dataclass(frozen=True)
class Contestant:
    """One server, and what is asked of it.

    Attributes:
        port: on 127.0.0.1.
        requests: sent in turn.
        status: the only right answer.
        meter: of its process and its Redis.
    """

    port: int
    requests: list[bytes]
    status: int
    meter: Meter

    def check(self) -> None:
        """See that it answers what it should.

        Raises:
            RuntimeError: it does not; then its figures mean nothing.
        """
        seen = statuses(self.port, self.requests[:SAMPLE])
        if set(seen) != {self.status}:
            raise RuntimeError(f"expected only {self.status}, got {dict(seen)}")

    def round(self, connections: int, seconds: float) -> Round:
        """Measure one round; all of its answers are checked to be of the right sort."""
        self.check()
        statuses(self.port, self.requests[: requests.USERS])  # it has rested while others ran
        before = self.meter.read()
        measured = drive(self.port, self.requests, connections=connections, seconds=seconds)
        after = self.meter.read()
        self.check()
        wanted = measured.requests if self.status >= FIRST_REFUSAL else 0
        if measured.refused != wanted:
            raise RuntimeError(f"{measured.refused} of {measured.requests} were refused")
        return cost(measured, before, after)


@dataclass(frozen=True)
class Server:
    """A server that was started: its port, its process id, its Redis."""

    port: int
    pid: int
    redis: RedisProcess


@contextmanager
def aiohttp_server(name: str, port: int, redis_url: str) -> Iterator[int]:
    """A server of contestants.py on a port: its process id."""
    command = guarded(sys.executable, "-m", "benchmarks.contestants", name, str(port), redis_url)
    process = subprocess.Popen(command)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def accepting(port: int) -> None:
    """Return once somebody listens."""
    patience = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > patience:
                raise
            time.sleep(0.02)
        else:
            return


@contextmanager
def contestants(directory: Path) -> Iterator[dict[str, Contestant]]:
    """All that can run here, warm, each with a Redis of its own, so that nobody pays for others."""
    seeded = start_redis(directory / "seed")
    asyncio.run(requests.seed(seeded.url))
    client: Any = Redis.from_url(seeded.url)
    client.save()
    seeded.stop()
    with ExitStack() as stack:

        def redis(name: str) -> RedisProcess:
            (directory / name).mkdir()
            shutil.copy(directory / "seed/dump.rdb", directory / name)
            process = start_redis(directory / name)
            stack.callback(process.stop)
            return process

        def sidecar(name: str, decisions: str = "none") -> Server:
            state = redis(name)
            process = start_sidecar(
                directory, state.url, LIMITS__USER="100000", LOG__DECISIONS=decisions, **HOUR
            )
            stack.callback(process.stop)
            return Server(process.port, process.pid, state)

        def other(name: str) -> Server:
            state, port = redis(name), free_port()
            if name == "nginx-lua":
                pid = stack.enter_context(nginx_lua(port, state))
            else:
                pid = stack.enter_context(aiohttp_server(name, port, state.url))
            accepting(port)
            return Server(port, pid, state)

        allowed, flood = requests.allowed(), requests.flood()
        asked = {
            "empty": (other("empty"), allowed, 200),
            "allow": (sidecar("allow"), allowed, 200),
            "flood": (sidecar("flood"), flood, 429),
            "flood-logged": (sidecar("flood-logged", "denied"), flood, 429),
            "bad-token": (sidecar("bad-token"), requests.strangers(), 429),
            "naive": (other("naive"), allowed, 200),
            "limits": (other("limits"), allowed, 200),
        }
        if missing() is None:
            asked["nginx-lua"] = (other("nginx-lua"), allowed, 200)
        found = {
            name: Contestant(
                server.port, sent, status, Meter(server.pid, server.redis.pid, server.redis.url)
            )
            for name, (server, sent, status) in asked.items()
        }
        for server, _, _ in asked.values():
            cores.give(server.pid)
        for one in found.values():
            statuses(one.port, (one.requests * 100)[: requests.USERS])
        yield found


def measure(found: dict[str, Contestant], plan: dict[int, tuple[int, float]]) -> Run:
    """Drive every contestant in turn, each round beginning with another one.

    Args:
        found: who takes part.
        plan: by number of connections: how many rounds, of how many seconds.
    """
    rounds: dict[str, dict[int, list[Round]]] = {n: {c: [] for c in plan} for n in found}
    names = list(found)
    for connections, (number, seconds) in plan.items():
        for turn in range(number):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                rounds[name][connections].append(found[name].round(connections, seconds))
    skipped = {"nginx-lua": why} if (why := missing()) is not None else {}
    method = {
        "load": generator(),
        "rounds": ", ".join(
            f"{number} of {seconds:g} s at {c} connections" for c, (number, seconds) in plan.items()
        ),
    }
    return Run(machine(), method, rounds, skipped)


def machine() -> dict[str, str]:
    """What this runs on, without its name."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "processor": f"{len(cores.ALL)} cores, {model}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("authsidecar", "aiohttp", "redis", "uvloop", "limits")},
    }


def main() -> None:
    """Run, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about 40 seconds, for CI")
    parser.add_argument("--growth", action="store_true", help="tokens, allowlist, routes as well")
    parser.add_argument("--rounds", type=int, help="at 32 connections; 5, or 2 if quick")
    parser.add_argument("--seconds", type=float, help="of a round; 2, or 1 if quick")
    parser.add_argument("--most-tokens", type=int, default=1_000_000, help="of --growth")
    parser.add_argument("--json", type=Path, help="where the result is written")
    arguments = parser.parse_args()
    number = arguments.rounds or (2 if arguments.quick else 5)
    seconds = arguments.seconds or (1 if arguments.quick else 2)
    others = (1, min(seconds, 1)) if arguments.quick else (min(number, 3), seconds)
    cores.leave_one()
    plan = {1: others, MAIN: (number, seconds), 256: others}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with contestants(directory) as found:
            run = measure(found, plan)
        if arguments.growth:
            grown, record_bytes = grow(directory, number, seconds, arguments.most_tokens)
            run = replace(run, growth=grown, record_bytes=record_bytes)
    print(f"load: {run.method['load']}; {run.method['rounds']}; {run.machine['processor']}\n")
    print(results.table(run))
    if arguments.json:
        arguments.json.write_text(results.to_json(run))


if __name__ == "__main__":
    main()
