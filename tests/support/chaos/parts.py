"""The parts: a Redis with two replicas and three sentinels, a PostgreSQL, and the sidecars.

All processes are started in the main thread, and die with it (tests.support.redis.GUARD).
"""

import asyncio
import atexit
import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis

from tests.support.fork_server import Process
from tests.support.postgres import PostgresProcess
from tests.support.redis import RedisProcess, start_redis
from tests.support.topologies import REPLICATION, client, until

NAME = "auth"
# A primary that can't save answers no PING, is replaced, and as a replica would end itself.
OPTIONS = (*REPLICATION, "--replica-ignore-disk-write-errors", "yes")
DOWN_MS = 1000
"""After how long without an answer the sentinels take a server for dead."""

# A sentinel looks rarely and believes slowly by default; a test has no time for that.
QUICK = (
    *("info-period", "500", "ping-period", "250", "ask-period", "250", "publish-period", "250"),
    *("tilt-period", "500", "election-timeout", "2000"),
)
WHOLE_S = 40.0
"""How long the parts may take to find together again: that is Redis's own affair."""

PIPE_BYTES = 4096
TMPFS = "size=4m"


PORTS = range(32_000, 32_700)
"""Apart from those of other tests: whoever is down for a while must find its port free again."""


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on, and that was not given before."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
    raise RuntimeError("no port is free")


_given: set[int] = set()

# Redis


@dataclass(eq=False)
class Servers:
    """Three servers, one of them the primary, and the sentinels that watch them."""

    servers: tuple[RedisProcess, ...]
    sentinels: tuple[RedisProcess, ...]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{NAME}"

    def primary(self) -> RedisProcess:
        """Whom the sentinels call so."""
        found: list[RedisProcess] = []

        def agreed() -> bool:
            named = {self._named(sentinel) for sentinel in self.sentinels if sentinel.running}
            found[:] = [server for server in self.servers if {server.port} == named]
            return bool(found)

        until(agreed, "the sentinels name one primary", WHOLE_S)
        return found[0]

    def replicas(self) -> list[RedisProcess]:
        """The others."""
        primary = self.primary()
        return [server for server in self.servers if server is not primary]

    def until_other(self, old: RedisProcess) -> RedisProcess:
        """The new primary, once it is one and every sentinel that answers says so."""
        new: list[RedisProcess] = []

        def other() -> bool:
            named = {self._named(sentinel) for sentinel in self.sentinels if sentinel.running}
            new[:] = [server for server in self.servers if {server.port} == named]
            return bool(new) and new[0] is not old and _role(new[0]) == "master"

        until(other, "another primary", WHOLE_S)
        return new[0]

    def until_whole(self) -> RedisProcess:
        """The primary, once all sentinels name it and both others follow it."""
        primary: list[RedisProcess] = []

        def whole() -> bool:
            primary[:] = [self.primary()]
            first, others = primary[0], [s for s in self.servers if s is not primary[0]]
            if _role(first) != "master":
                return False
            for other in others:
                with client(other) as node:
                    told = node.info("replication")
                    if told["role"] != "slave" or told["master_port"] != first.port:
                        return False
                    if told["master_link_status"] != "up":
                        return False
            return True

        until(whole, f"Redis is whole: {self.state()}", WHOLE_S)
        return primary[0]

    def until_in_step(self) -> None:
        """Return once no replica lacks what the primary has been told so far."""
        with client(self.primary()) as first:
            told = first.info("replication")["master_repl_offset"]
        for replica in self.replicas():
            with client(replica) as node:
                until(
                    lambda node=node: node.info("replication")["slave_repl_offset"] >= told,
                    "a replica has all",
                )

    def state(self) -> str:
        """Each server's role in a line, for people."""
        words = []
        for number, server in enumerate(self.servers):
            with contextlib.suppress(redis.RedisError, OSError):
                words.append(f"server {number} ({server.port}): {_role(server)}")
        for number, sentinel in enumerate(self.sentinels):
            with contextlib.suppress(redis.RedisError, OSError):
                words.append(f"sentinel {number} names {self._named(sentinel)}")
        return "; ".join(words)

    def hurry(self) -> None:
        """Make the sentinels quick; one that is started again has forgotten it."""
        for sentinel in self.sentinels:
            with client(sentinel) as node:
                node.execute_command("SENTINEL DEBUG", *QUICK)

    def name(self, server: RedisProcess) -> str:
        return f"server {self.servers.index(server)}"

    def _named(self, sentinel: RedisProcess) -> int:
        with client(sentinel) as node:
            return int(node.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", NAME)[1])


def _role(server: RedisProcess) -> str:
    with client(server) as node:
        return str(node.role()[0])


@contextlib.contextmanager
def servers(directory: Path) -> Iterator[Servers]:
    """The three servers and their sentinels, of one mind."""
    with contextlib.ExitStack() as stack:

        def start(name: str, text: str, *words: str) -> RedisProcess:
            place = directory / name
            place.mkdir(parents=True)
            file = place / "redis.conf"
            file.write_text(text)
            server = start_redis(place, str(file), *words, port=free_port())
            stack.callback(server.stop)
            return server

        # Whom a server follows is in its file alone: it is rewritten by the sentinels' orders.
        first = start("server0", "\n", *OPTIONS)
        replicaof = f"replicaof 127.0.0.1 {first.port}\n"
        others = [start(f"server{i}", replicaof, *OPTIONS) for i in (1, 2)]
        watch = (
            f"sentinel monitor {NAME} 127.0.0.1 {first.port} 2\n"
            f"sentinel down-after-milliseconds {NAME} {DOWN_MS}\n"
            f"sentinel failover-timeout {NAME} 2000\n"
        )
        watchers = [start(f"sentinel{i}", watch, "--sentinel") for i in range(3)]
        made = Servers((first, *others), tuple(watchers))
        made.hurry()
        made.until_whole()
        for watcher in watchers:
            with client(watcher) as node:
                until(lambda node=node: _sees_all(node), "the sentinels know each other")
        yield made


def _sees_all(node: redis.Redis) -> bool:
    seen = node.execute_command("SENTINEL MASTER", NAME)
    if not isinstance(seen, dict):
        seen = dict(zip(seen[::2], seen[1::2], strict=True))
    return int(seen["num-other-sentinels"]) == 2 and int(seen["num-slaves"]) == 2


# PostgreSQL


def postgres_processes(server: PostgresProcess) -> list[psutil.Process]:
    """The server and its helpers, which lead sessions of their own."""
    assert server._process is not None, "not running"
    first = psutil.Process(server._process.pid)
    return [first, *first.children(recursive=True)]


@contextlib.contextmanager
def frozen_postgres(server: PostgresProcess) -> Iterator[None]:
    """It holds every connection, and never answers; it goes on whatever becomes of the test."""
    processes = postgres_processes(server)
    # One that is stopped does not heed the signal that ends it with the test run.
    pids = " ".join(str(process.pid) for process in processes)
    waking = f"while kill -0 {os.getpid()}; do sleep 1; done; kill -CONT {pids}"
    guard = subprocess.Popen(
        ("sh", "-c", waking),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _tell_all(processes, signal.SIGSTOP)
        yield
    finally:
        _tell_all(processes, signal.SIGCONT)
        guard.kill()
        guard.wait()


def _tell_all(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


class Line:
    """The line to PostgreSQL: connections on it can fall silent, as behind a lost network."""

    def __init__(self, port: int) -> None:
        """Nothing is listened on yet.

        Args:
            port: where it leads, on 127.0.0.1.
        """
        self._to = port
        self._silence = asyncio.Event()
        self._ended = asyncio.Event()  # never: whoever is silent waits for it, and is not forgotten
        self._silent: set[asyncio.Task[None] | None] = set()
        self.port = 0

    async def run(self) -> None:
        """Carry bytes until cancelled."""
        server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            await self._ended.wait()
        finally:
            server.close()

    async def fall_silent(self) -> None:
        """Carry nothing more on the connections of now, and never tell; new ones are well."""
        self._silence.set()
        self._silence = asyncio.Event()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silence = self._silence
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.close()
            return
        ways = [
            asyncio.ensure_future(_pump(reader, back)),
            asyncio.ensure_future(_pump(there, writer)),
        ]
        quiet = asyncio.ensure_future(silence.wait())
        try:
            await asyncio.wait([*ways, quiet], return_when=asyncio.FIRST_COMPLETED)
            if silence.is_set():
                for way in ways:
                    way.cancel()
                self._silent.add(asyncio.current_task())
                await self._ended.wait()
        finally:
            for each in (*ways, quiet):
                each.cancel()
            back.close()
            writer.close()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()


# Sidecars


class Drain:
    """Reads what a sidecar writes, as a log collector does, and can stop reading."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read, self.write = os.pipe()
        fcntl.fcntl(self._read, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._going = threading.Event()
        self._going.set()
        threading.Thread(target=self._work, daemon=True).start()

    def stop(self) -> None:
        """Read nothing more; the pipe fills."""
        self._going.clear()

    def go(self) -> None:
        self._going.set()

    def close(self) -> None:
        """End the reading, once no sidecar has the other end."""
        os.close(self.write)
        self._going.set()

    def _work(self) -> None:
        with self._path.open("ab", buffering=0) as file:
            while True:
                self._going.wait()
                data = os.read(self._read, 65536)
                if not data:
                    os.close(self._read)
                    return
                file.write(data)


@dataclass(eq=False)
class Sidecar:
    """One `authsidecar serve`, with what is known of why it may not answer.

    Attributes:
        name: for people.
        down: whether it is killed or frozen by the test; then nothing is expected of it.
        since: since when it is up, on the monotonic clock.
        lost: how it ended although nobody had killed it.
    """

    name: str
    environ: Mapping[str, str]
    port: int
    management_port: int
    log_path: Path
    drain: Drain | None = None
    down: bool = True
    since: float = 0.0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not running"
        return self._process

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def lost(self) -> int | None:
        """With what it has ended although nobody had ended it."""
        return None if self.down or self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it, as a supervisor does: nobody waits until it is ready."""
        out = self.drain.write if self.drain is not None else None
        with contextlib.ExitStack() as stack:
            if out is None:
                out = stack.enter_context(self.log_path.open("ab", buffering=0)).fileno()
            self._process = Process(
                [sys.executable, "-m", "authsidecar", "serve"],
                env={**os.environ, **self.environ},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.up()

    def up(self) -> None:
        """Expect answers of it from now on."""
        self.since = time.monotonic()
        self.down = False

    def kill(self) -> None:
        """End it as a crash does."""
        self.down = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        self.down = True
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.up()

    def cpu_s(self) -> float:
        """What it has used of a processor so far, in seconds."""
        used = psutil.Process(self.process.pid).cpu_times()
        return used.user + used.system

    def last_lines(self, number: int = 25) -> list[str]:
        """The end of its log."""
        with contextlib.suppress(OSError):
            return self.log.splitlines()[-number:]
        return ["its log cannot be read"]


@dataclass(frozen=True)
class Disk:
    """A small disk under a log, that can be filled."""

    directory: Path

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.directory / "neighbour").open("ab", buffering=0) as file:
            for size in (65536, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def free(self) -> None:
        """Make room again."""
        with contextlib.suppress(OSError):
            (self.directory / "neighbour").unlink()

    def rotate(self, path: Path) -> None:
        """Keep a log from filling it by itself; whoever writes it appends."""
        if path.stat().st_size > 1_500_000:
            os.truncate(path, 0)


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Disk | None]:
    """A disk of a few megabytes; None where this user can mount none."""
    directory.mkdir(parents=True)
    mounted = subprocess.run(
        ("mount", "-t", "tmpfs", "-o", TMPFS, "tmpfs", str(directory)),
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        yield None
        return

    def unmount() -> None:
        subprocess.run(("umount", "-l", str(directory)), capture_output=True, check=False)

    atexit.register(unmount)
    try:
        yield Disk(directory)
    finally:
        unmount()


@contextlib.contextmanager
def sidecars(
    directory: Path, redis_url: str, dsn: str, disk: Disk | None, **more: str
) -> Iterator[tuple[Sidecar, ...]]:
    """Two that follow Coolify; the first writes its log to a pipe, the second to a disk.

    Args:
        directory: where they log and keep files.
        redis_url: their Redis.
        dsn: Coolify's database.
        disk: where the second one logs, if there is one.
        more: settings by the environment's names without the prefix.
    """
    made: list[Sidecar] = []
    drains: list[Drain] = []
    try:
        for number, name in enumerate("AB"):
            port, management_port = free_port(), free_port()
            settings = {
                "LISTEN__ADDRESS": f"127.0.0.1:{port}",
                "MANAGEMENT__ADDRESS": f"127.0.0.1:{management_port}",
                "REDIS__URL": redis_url,
                "REDIS__BUDGET_MS": "500",
                "DATA_DIR": str(directory / f"data-{name}"),
                "SYNC__SOURCE": "coolify",
                "SYNC__DSN": dsn,
                "SYNC__INTERVAL_SECONDS": "0.5",
                "LIMITS__USER": "100000",
                "LIMITS__FAILED": "100000",
                "LIMITS__UNKNOWN": "100000",
                "LIMITS__LOOKUPS_PER_SECOND": "1000",
                "LOG__FORMAT": "json",
                **more,
            }
            log_path = directory / f"sidecar-{name}.log"
            drain = None
            if number and disk is not None:
                log_path = disk.directory / "sidecar.log"
            else:
                drain = Drain(log_path)
                drains.append(drain)
            environ = {f"AUTHSIDECAR_{key}": value for key, value in settings.items()}
            one = Sidecar(name, environ, port, management_port, log_path, drain)
            made.append(one)
            atexit.register(one.kill)
            one.start()
        yield tuple(made)
    finally:
        for one in made:
            one.kill()
        for drain in drains:
            drain.close()
