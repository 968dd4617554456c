"""`make bench`: what one authorization check costs, as ratios within one run."""

import argparse
import asyncio
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from redis import Redis

from benchmarks import before, cores, requests, results, startup
from benchmarks.growth import grow
from benchmarks.load import FIRST_REFUSAL, drive, generator, statuses
from benchmarks.meter import Meter, Round, cost
from benchmarks.nginx_lua import missing, nginx_lua
from benchmarks.pipes import read_pipe
from benchmarks.results import MAIN, Run
from tests.support.operator import signed_in
from tests.support.redis import RedisProcess, free_port, guarded, start_redis
from tests.support.sidecar import SidecarProcess, start_sidecar

START_S = 15
PAIRS = 9
"""Rounds of this tree and of the commit before, where these alone take part: two minutes."""

EVERY_LIMIT: dict[str, Any] = {
    f"LIMITS__{bucket}__{name}": value
    for bucket in ("TOKEN", "TEAM", "ADDRESS")
    for name, value in (("LIMIT", "100000"), ("WINDOW_SECONDS", "1"))
}
"""Beside the user's: per token, team and address together. All share one team and one address, so
the window is so short that nobody reaches them."""

MANY_CONNECTIONS = ("empty", "allow", "before", "nginx-lua", "flood")
"""Who is measured with one connection and with many as well."""

OTHERS = ("empty", "before", "nginx-lua")
"""Those of them that are not this tree's: where their connections fail, the run goes on without."""

SAMPLE = 16
"""Requests of a contestant whose status is looked at before and after each round."""

PLENTY = {
    "LIMITS__USER": "100000",
    "LIMITS__FAILED__LIMIT": "30",
    "LIMITS__FAILED__WINDOW_SECONDS": "3600",
}
"""So many that no round reaches it; and failed authentications of an address: the default, for so
long that no round sees it open."""


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

    @classmethod
    def of(cls, server: "Server", sent: list[bytes], status: int) -> "Contestant":
        """A server that is asked these requests."""
        return cls(server.port, sent, status, Meter(server.pid, server.redis.pid, server.redis.url))

    def warm_up(self) -> None:
        """Ask once for each user, or as often for the one that floods."""
        statuses(self.port, (self.requests * requests.USERS)[: requests.USERS])

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
        if not measured.requests:
            raise RuntimeError(f"no answer in {seconds:g} s at {connections} connections")
        self.check()
        wanted = measured.requests if self.status >= FIRST_REFUSAL else 0
        if measured.refused != wanted:
            raise RuntimeError(f"{measured.refused} of {measured.requests} were refused")
        return cost(measured, before, after)


@dataclass(frozen=True)
class Server:
    """A server that was started: its port, its process id, its Redis, itself if it is ours."""

    port: int
    pid: int
    redis: RedisProcess
    sidecar: SidecarProcess | None = None


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


class Servers:
    """Servers that end with the context, each with a Redis of its own, so that nobody pays for
    others; all of these are seeded alike."""

    def __init__(self, directory: Path) -> None:
        """Seed what each Redis begins with.

        Args:
            directory: where servers work; it exists.
        """
        self._directory, self._stack = directory, ExitStack()
        seeded = start_redis(directory / "seed")
        asyncio.run(requests.seed(seeded.url))
        client: Any = Redis.from_url(seeded.url)
        client.save()
        seeded.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def sidecar(self, name: str, source: Path | None = None, **settings: str) -> Server:
        """A sidecar as it ships, but for limits that nobody reaches: each decision has a line.

        Args:
            name: told apart by it; each is used once.
            source: `src` of another commit, if not this tree's.
            settings: more settings, as `start_sidecar` takes them.
        """
        state, log = self._redis(name), self._directory / f"{name}.log"
        lines = self._stack.enter_context(read_pipe(log))
        settings = {**PLENTY, **settings}
        try:
            with cores.for_servers(int(settings.get("LISTEN__WORKERS", "1"))):
                process = start_sidecar(
                    self._directory, state.url, stderr=lines, source=source, **settings
                )
        except RuntimeError:
            raise RuntimeError(f"{name} does not start: {log.read_text()}") from None
        self._stack.callback(process.stop)
        return Server(process.port, process.pid, state, process)

    def other(self, name: str, *, on_servers_core: bool = True) -> Server:
        """A contestant that is no sidecar.

        Args:
            name: which one; each is used once.
            on_servers_core: False where it is not what is measured.
        """
        state, port = self._redis(name), free_port()
        server = nginx_lua(port, state) if name == "nginx-lua" else None
        with cores.for_servers() if on_servers_core else nullcontext():
            pid = self._stack.enter_context(server or aiohttp_server(name, port, state.url))
        accepting(port)
        return Server(port, pid, state)

    def _redis(self, name: str) -> RedisProcess:
        (self._directory / name).mkdir()
        shutil.copy(self._directory / "seed/dump.rdb", self._directory / name)
        process = start_redis(self._directory / name)
        self._stack.callback(process.stop)
        return process


def contestants(servers: Servers, source: Path | None) -> dict[str, Contestant]:
    """All that can run here, warm.

    Args:
        servers: what starts them.
        source: `src` of the commit before, if it takes part.
    """
    allowed = requests.allowed()
    default = servers.sidecar("default")
    quiet = servers.sidecar("quiet", LOG__DECISIONS="none")
    mixed = servers.sidecar("mixed")  # else the two before would not be asked alike
    asked = {"empty": (servers.other("empty"), allowed, 200)}
    if missing() is None:
        asked["nginx-lua"] = (servers.other("nginx-lua"), allowed, 200)
    asked |= {  # what ratios are taken of is asked one soon after the other
        "allow": (default, allowed, 200),
        "allow-quiet": (quiet, allowed, 200),
        "restricted": (default, requests.restricted(), 200),
        "limited": (servers.sidecar("limited", **EVERY_LIMIT), allowed, 200),
        "isolated": (
            servers.sidecar("isolated", SYNC__TEAM_ISOLATION="true"),
            requests.of_the_team(),
            200,
        ),
        "aiohttp": (servers.sidecar("aiohttp", LISTEN__SERVER="aiohttp"), allowed, 200),
        "flood": (default, requests.flood(), 429),
        "flood-quiet": (quiet, requests.flood(), 429),
        "counted": (mixed, requests.restricted(requests.COUNTED), 200),
        "bad-token": (mixed, requests.strangers(), 429),
        "naive": (servers.other("naive"), allowed, 200),
        "limits": (servers.other("limits"), allowed, 200),
        "never-seen": (mixed, requests.never_seen(), 200),
    }
    if source is not None:
        before = servers.sidecar("before", source)
        asked["before-never-seen"] = (before, requests.never_seen(), 200)
        asked["before"] = (before, allowed, 200)
    found = {name: Contestant.of(*row) for name, row in asked.items()}
    for one in found.values():
        one.warm_up()
    return found


Asked = dict[str, tuple[list[bytes], int, int]]
"""By title: requests, the only right answer, connections."""


def compare(
    sides: tuple[Server, Server], asked: Asked, pairs: int, seconds: float
) -> dict[str, tuple[list[Round], list[Round]]]:
    """Ask two servers in turn: the rounds of each, by what was asked.

    Args:
        sides: the two.
        asked: what both are asked.
        pairs: rounds of each.
        seconds: of one round.
    """
    for sent, status, _ in asked.values():
        for side in sides:
            Contestant.of(side, sent, status).warm_up()
    found: dict[str, tuple[list[Round], list[Round]]] = {}
    for turn in range(pairs):
        for title, (sent, status, connections) in asked.items():
            both = found.setdefault(title, ([], []))
            for side in (0, 1) if turn % 2 else (1, 0):
                one = Contestant.of(sides[side], sent, status)
                both[side].append(one.round(connections, seconds))
    return found


def compare_before(
    servers: Servers, commit: str, source: Path | None, pairs: int, seconds: float
) -> str:
    """This tree and the commit before: the table of both."""
    asked = {
        "allowed, 32 connections": (requests.allowed(), 200, MAIN),
        "allowed, 1 connection": (requests.allowed(), 200, 1),
        "allowed, never seen": (requests.never_seen(), 200, MAIN),
        "over the limit": (requests.flood(), 429, MAIN),
    }
    sides = servers.sidecar("now"), servers.sidecar("before", source)
    return before.table(("now", commit[:9]), compare(sides, asked, pairs, seconds))


def compare_workers(servers: Servers, pairs: int, seconds: float) -> str:
    """Two workers and one: the table of both."""
    asked = {
        "allowed, 256 connections": (requests.allowed(), 200, 256),
        "allowed, 4 connections": (requests.allowed(), 200, 4),
    }
    sides = servers.sidecar("two", LISTEN__WORKERS="2"), servers.sidecar("one")
    text = before.table(("2 workers", "1 worker"), compare(sides, asked, pairs, seconds))
    if cores.enough(2):
        return text
    return f"{text}\nNo core is left for the load generator and Redis, so this says little."


def compare_receipts(servers: Servers, pairs: int, seconds: float) -> str:
    """Receipts at their default, and with a share of 0, each beside none at all: both tables."""
    asked = {"allowed, 32 connections": (requests.allowed(), 200, MAIN)}
    none = servers.sidecar("none", RECEIPTS__ENABLED="false")
    texts = [
        before.table((name, "none"), compare((side, none), asked, pairs, seconds))
        for name, side in (
            ("default", servers.sidecar("default")),
            ("share 0", servers.sidecar("share-0", RECEIPTS__SHARE="0")),
        )
    ]
    return "\n\n".join(texts)


def compare_restricted(servers: Servers, pairs: int, seconds: float) -> str:
    """Tokens that are restricted, and those with counters of their own, beside others: a table."""
    server = servers.sidecar("restricted")
    plain = Contestant.of(server, requests.allowed(), 200)
    texts = []
    for name, what in (("narrowed", requests.RESTRICTED), ("counted", requests.COUNTED)):
        narrow = Contestant.of(server, requests.restricted(what), 200)
        both: tuple[list[Round], list[Round]] = ([], [])
        for one in (narrow, plain):
            one.warm_up()
        for turn in range(pairs):
            for side in (0, 1) if turn % 2 else (1, 0):
                both[side].append((narrow, plain)[side].round(MAIN, seconds))
        texts.append(before.table((name, "plain"), {f"allowed, {MAIN} connections": both}))
    return "\n\n".join(texts)


def compare_console(servers: Servers, pairs: int, seconds: float) -> str:
    """The console's live view open in front of one sidecar, and closed: the table of both."""
    asked = {
        "allowed, 32 connections": (requests.allowed(), 200, MAIN),
        "over the limit, a refusal each": (requests.flood(), 429, MAIN),
    }
    opened, closed = servers.sidecar("open"), servers.sidecar("closed")
    with live_view(opened) as seen:
        text = before.table(("open", "closed"), compare((opened, closed), asked, pairs, seconds))
    sampled = sum("event: sample" in one for one in seen)
    return f"{text}\nthe live view was read {len(seen)} times; {sampled} times it was a sample"


@contextmanager
def live_view(server: Server) -> Iterator[list[str]]:
    """Read a sidecar's live view once a second, as a browser does: what was read."""
    seen: list[str] = []
    over = threading.Event()

    def read() -> None:
        assert server.sidecar is not None
        with signed_in(server.sidecar) as operator:
            last = ""
            while not over.wait(1):
                _, text, _ = operator.get("/decisions/live", **{"Last-Event-ID": last})
                seen.append(text)
                last = text.partition("\nid: ")[2].partition("\n")[0]

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield seen
    finally:
        over.set()
        reader.join()


COMPARISONS: dict[str, Callable[[Servers, int, float], str]] = {
    "workers": compare_workers,
    "receipts": compare_receipts,
    "restricted": compare_restricted,
    "console": compare_console,
}


def compare_starts(servers: Servers, directory: Path, source: Path | None, rounds: int) -> str:
    """An empty aiohttp application and the sidecar: the table of their starts."""
    redis = servers.other("empty").redis
    starts: dict[str, startup.Start] = {
        "empty aiohttp application": ((sys.executable, "-c", startup.EMPTY, "PORT"), {}),
        "sidecar": startup.sidecar(redis.url, directory),
    }
    if source is not None:
        starts["- of the commit before"] = startup.sidecar(redis.url, directory, source)
    return startup.table(starts, rounds)


def measure(found: dict[str, Contestant], plan: dict[int, tuple[int, float]]) -> Run:
    """Drive every contestant in turn, each round beginning with another one.

    Args:
        found: who takes part; all of them at MAIN connections, else those of MANY_CONNECTIONS.
        plan: by number of connections: how many rounds, of how many seconds.

    Raises:
        RuntimeError: a round failed of one that is this tree's, or that ratios are taken to.
    """
    rounds: dict[str, dict[int, list[Round]]] = {name: {} for name in found}
    failed: dict[str, dict[int, str]] = {}
    for connections, (number, seconds) in plan.items():
        names = [n for n in found if connections == MAIN or n in MANY_CONNECTIONS]
        for turn in range(number):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                if connections in failed.get(name, ()):
                    continue
                try:
                    one = found[name].round(connections, seconds)
                except RuntimeError as error:
                    if name not in OTHERS or connections == MAIN:
                        raise RuntimeError(f"{name}, {connections} connections: {error}") from None
                    failed.setdefault(name, {})[connections] = str(error)
                    rounds[name].pop(connections, None)
                else:
                    rounds[name].setdefault(connections, []).append(one)
    skipped = {"nginx-lua": why} if (why := missing()) is not None else {}
    method = {
        "load": generator(),
        "rounds": ", ".join(
            f"{number} of {seconds:g} s at {c} connections" for c, (number, seconds) in plan.items()
        ),
    }
    return Run(machine(), method, rounds, skipped, failed)


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
    parser.add_argument("--rounds", type=int, help="at 32 connections; 9, or 2 if quick")
    parser.add_argument("--seconds", type=float, help="of a round; 1")
    parser.add_argument("--most-tokens", type=int, default=1_000_000, help="of --growth")
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--before", metavar="COMMIT", help="an earlier commit takes part, too")
    parser.add_argument(
        "--only",
        choices=["before", "start", *COMPARISONS],
        help="this tree and that commit alone; the time to the first answer; two workers and one; "
        "receipts at their default, of a share of 0, and none; restricted tokens and others; the "
        "console's live view open and closed",
    )
    arguments = parser.parse_args()
    number = arguments.rounds or (2 if arguments.quick else 9)
    seconds = arguments.seconds or 1
    others = (1, seconds) if arguments.quick else (min(number, 5), seconds)
    cores.leave(2 if arguments.only == "workers" else 1)
    plan = {1: others, MAIN: (number, seconds), 256: others, 1000: (others[0], seconds + 2)}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        source = before.source(arguments.before, directory) if arguments.before else None
        servers = stack.enter_context(Servers(directory))
        pairs, moment = arguments.rounds or PAIRS, arguments.seconds or 1
        match arguments.only:
            case None:
                text = None
            case "before" if source is None:
                parser.error("--only before: say --before COMMIT, too")
            case "before":
                text = compare_before(servers, arguments.before, source, pairs, moment)
            case "start":
                text = compare_starts(servers, directory, source, pairs)
            case _:
                text = COMPARISONS[arguments.only](servers, pairs, moment)
        if text is not None:
            print(text)
            return
        run = measure(contestants(servers, source), plan)
        if arguments.growth:
            grown, record_bytes = grow(directory, number, seconds, arguments.most_tokens)
            run = replace(run, growth=grown, record_bytes=record_bytes)
    print(f"load: {run.method['load']}; {run.method['rounds']}; {run.machine['processor']}\n")
    print(results.table(run))
    if arguments.json:
        arguments.json.write_text(results.to_json(run))


if __name__ == "__main__":
    main()
