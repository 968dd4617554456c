"""From start to end: signals, a Redis that is late, load balancers that are slow, restarts."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis

from tests.support.fork_server import Process
from tests.support.redis import RedisProcess, guarded, start_redis
from tests.support.seed import bearer, registry, token, user
from tests.support.sidecar import SidecarProcess, get, start_sidecar
from tests.support.topologies import client
from tests.support.waiting import eventually, until
from tests.support.wire import Wire, subrequest

GOOD = subrequest(authorization=bearer(1))
WORKERS = pytest.mark.parametrize("workers", [1, 2])


@pytest.fixture
async def ready_redis(redis_client: Redis, redis_url: str) -> str:
    await populate(redis_client)
    return redis_url


async def populate(client: Redis) -> None:
    state = registry(client)
    await state.set_instance(api_enabled=True)
    await user(state, 1, t0="owner")
    await state.put_tokens([token(1, user=1, team=0)])


def started(directory: Path, url: str, workers: int = 1, **settings: str) -> SidecarProcess:
    process = start_sidecar(
        directory, url, "--workers", str(workers), LIMITS__USER="100000", **settings
    )
    until(lambda: workers == 1 or len(children(process)) == workers, "all workers")
    return process


def signalled(process: SidecarProcess, number: signal.Signals) -> None:
    """Send a signal, and wait for a line about it."""
    before = lines_about(process, number)
    process.signal(number)
    until(lambda: lines_about(process, number) > before, f"a line about {number.name}")


def lines_about(process: SidecarProcess, number: signal.Signals) -> int:
    return sum(number.name in line for line in process.log.splitlines())


def children(process: SidecarProcess) -> set[int]:
    return {child.pid for child in psutil.Process(process.pid).children()}


class Load:
    """Requests all the while, on kept connections and on new ones; all must be answered well."""

    def __init__(self) -> None:
        self.answered = 0

    async def keep(self, place: int | str) -> None:
        while True:
            async with Wire(place) as wire:
                await self._ask(wire, times=50)

    async def renew(self, place: int | str) -> None:
        while True:
            async with Wire(place) as wire:
                await self._ask(wire, times=1)

    async def more(self, times: int = 100) -> None:
        """Wait until so many more are answered."""
        before = self.answered

        async def enough() -> bool:
            return self.answered - before >= times

        await eventually(enough, f"{times} answers")

    async def _ask(self, wire: Wire, *, times: int) -> None:
        for _ in range(times):
            answer = await wire.ask(GOOD)
            assert answer.status == 200
            self.answered += 1
            if (answer.header("Connection") or "").lower() == "close":
                return
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def load(place: int | str) -> AsyncIterator[Load]:
    made = Load()
    tasks = [asyncio.ensure_future(made.keep(place)) for _ in range(4)]
    tasks += [asyncio.ensure_future(made.renew(place)) for _ in range(4)]
    try:
        yield made
        assert not [task for task in tasks if task.done()], [task.exception() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    failures = [one for one in ended if not isinstance(one, asyncio.CancelledError)]
    assert not failures
    assert made.answered > 50


@WORKERS
async def test_signals_of_terminals_are_harmless(
    ready_redis: str, tmp_path: Path, workers: int
) -> None:
    """SIGUSR1 and SIGUSR2 are logged, and no request is lost; of SIGHUP see test_reload.py."""
    process = started(tmp_path, ready_redis, workers)
    async with load(process.port):
        for number in (signal.SIGUSR1, signal.SIGUSR2) * 2:
            await asyncio.to_thread(signalled, process, number)
    assert process.running
    assert process.stop() == 0


@WORKERS
async def test_a_stop_gives_load_balancers_their_time(
    ready_redis: str, tmp_path: Path, workers: int
) -> None:
    """Not ready at once, and requests are answered for shutdown.delay_seconds."""
    process = started(tmp_path, ready_redis, workers, SHUTDOWN__DELAY_SECONDS="3")
    async with load(process.port):
        process.signal(signal.SIGTERM)
        start = time.monotonic()

        def stopping() -> bool:
            ready = get(process.management_port, "/readyz", {})
            return ready.status == 503 and ready.json["missing"] == {"process": "stopping"}

        await asyncio.to_thread(until, stopping, "not being ready")
        assert get(process.management_port, "/healthz", {}).status == 200
        await asyncio.sleep(1.5 - (time.monotonic() - start))
    assert await asyncio.to_thread(process.wait) == 0
    assert time.monotonic() - start >= 3


@WORKERS
async def test_a_hurried_stop_does_not_wait(ready_redis: str, tmp_path: Path, workers: int) -> None:
    """Ctrl-C ends it at once, whatever the load balancers need."""
    process = started(tmp_path, ready_redis, workers, SHUTDOWN__DELAY_SECONDS="200")
    process.signal(signal.SIGINT)
    assert await asyncio.to_thread(process.wait) == 0


async def test_a_second_signal_ends_the_delay(ready_redis: str, tmp_path: Path) -> None:
    """An operator may have changed their mind."""
    process = started(tmp_path, ready_redis, SHUTDOWN__DELAY_SECONDS="200")
    process.signal(signal.SIGTERM)
    until(lambda: bool(process.events("stopping")), "the stop")
    process.signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait) == 0


@WORKERS
@pytest.mark.parametrize("unix", [False, True])
async def test_a_restart_refuses_nobody(
    ready_redis: str, tmp_path: Path, workers: int, unix: bool
) -> None:
    """Three times a new process takes over from the old one, under load; nothing fails."""
    sockets = {"LISTEN__UNIX_SOCKET": str(tmp_path / "s")} if unix else {}
    process = started(tmp_path, ready_redis, workers, LISTEN__REUSE_PORT="true", **sockets)
    async with load(sockets.get("LISTEN__UNIX_SOCKET", process.port)):
        for _ in range(3):
            new = process.another()
            new.start(wait=False)
            await asyncio.to_thread(until, lambda: bool(new.events("listening")), "the new one")  # noqa: B023
            if workers > 1:
                await asyncio.to_thread(until, lambda: len(children(new)) == workers, "workers")  # noqa: B023
            assert await asyncio.to_thread(process.stop) == 0
            process = new
    assert process.stop() == 0
    assert not (tmp_path / "s").exists()


def test_a_used_port_is_refused_unless_it_is_shared(ready_redis: str, tmp_path: Path) -> None:
    """By default, a second sidecar on the same port is a mistake, and said."""
    process = started(tmp_path, ready_redis)
    other = process.another()
    other.start(wait=False)
    assert other.wait() == 1
    assert "listen.address: cannot listen on" in other.log
    assert "in use" in other.log
    assert process.stop() == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis that is away, and knows a token when it comes."""
    made = start_redis(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always")

    async def fill() -> None:
        async with Redis.from_url(made.url) as store:
            await populate(store)

    asyncio.run(fill())
    made.kill()
    yield made
    made.stop()


def alive(process: SidecarProcess) -> bool:
    with contextlib.suppress(OSError):
        return get(process.management_port, "/healthz", {}).status == 200
    return False


@WORKERS
def test_a_redis_that_is_away_at_start_is_waited_for(
    server: RedisProcess, tmp_path: Path, workers: int
) -> None:
    """Alive, not ready, 503 to subrequests, one line; then it comes, and all is well."""
    process = start_sidecar(tmp_path, server.url, "--workers", str(workers), wait=False)
    try:
        until(lambda: alive(process), "life")
        ready = get(process.management_port, "/readyz", {})
        assert (ready.status, ready.json["missing"]) == (503, {"redis": "connection"})
        answer = process.ask("GET", "/api/v1/teams", authorization=bearer(1))
        assert (answer.status, answer.json["code"]) == (503, "store_unavailable")
        until(lambda: bool(process.events("waiting_for_redis")), "a line")
        assert "is it running?" in process.events("waiting_for_redis")[0]["problem"]
        server.start()
        until(
            lambda: process.ask("GET", "/api/v1/teams", authorization=bearer(1)).status == 200,
            "a good answer",
        )
        until(lambda: get(process.management_port, "/readyz", {}).status == 200, "readiness")
    finally:
        assert process.stop() == 0


@WORKERS
def test_a_start_that_waits_heeds_sigterm(
    server: RedisProcess, tmp_path: Path, workers: int
) -> None:
    """It ends as any other."""
    process = start_sidecar(tmp_path, server.url, "--workers", str(workers), wait=False)
    until(lambda: alive(process), "life")
    assert process.stop() == 0


@WORKERS
@pytest.mark.parametrize("seconds", ["0", "1"])
def test_a_wait_for_redis_can_be_bounded(
    server: RedisProcess, tmp_path: Path, workers: int, seconds: str
) -> None:
    """redis.wait_at_start_seconds: then it ends, and says why."""
    with pytest.raises(RuntimeError, match="does not answer"):
        start_sidecar(
            *(tmp_path, server.url, "--workers", str(workers)), REDIS__WAIT_AT_START_SECONDS=seconds
        )


@WORKERS
def test_a_refused_login_ends_the_start(tmp_path: Path, workers: int) -> None:
    """No waiting mends it."""
    server = start_redis(tmp_path / "redis", port=0)
    with client(server) as plain:
        plain.config_set("requirepass", "right")
    with pytest.raises(RuntimeError, match="refuses the login"):
        start_sidecar(
            *(tmp_path, server.tcp_url, "--workers", str(workers)), REDIS__PASSWORD="wrong"
        )
    server.stop()


DEAF = "127.0.0.99"
"""The address of a name server that never answers."""


@pytest.fixture
def deaf_resolver(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Words before a command that has to ask a name server that never answers."""
    resolver = tmp_path / "resolv.conf"
    resolver.write_text(f"nameserver {DEAF}\noptions timeout:30 attempts:3\n")
    words = ("unshare", "-m", "sh", "-c", f'mount --bind {resolver} /etc/resolv.conf && exec "$@"')
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        try:
            server.bind((DEAF, 53))
            subprocess.run([*words, "sh", "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs root and a mount namespace of its own")
        yield (*words, "sh")


@WORKERS
def test_a_name_server_that_never_answers_holds_nothing_up(
    tmp_path: Path, deaf_resolver: tuple[str, ...], workers: int
) -> None:
    """Alive, not ready, and gone at once on SIGTERM: a look-up would go on for minutes."""
    process = start_sidecar(tmp_path, "redis://redis.example.com", wait=False)
    process.stop()
    with process.log_path.open("ab") as out:
        started = subprocess.Popen(
            [
                *deaf_resolver,
                *guarded(sys.executable, "-m", "authsidecar", "serve", "--workers", str(workers)),
            ],
            env={**os.environ, **process.environ},
            stdout=out,
            stderr=out,
        )
    try:
        until(lambda: alive(process), "life")
        until(lambda: bool(process.events("waiting_for_redis")), "a line")
        start = time.monotonic()
        started.terminate()
        assert started.wait(60) == 0
        assert time.monotonic() - start < 20
    finally:
        started.kill()
        started.wait()


@pytest.mark.parametrize(
    ("words", "environ"),
    [
        (("notify",), {"AUTHSIDECAR_MAIL__WEBHOOK_URL": "http://127.0.0.1:1/"}),
        (("sync", "coolify"), {"AUTHSIDECAR_SYNC__DSN": "postgresql://u:p@127.0.0.1:1/d"}),
    ],
)
def test_other_commands_that_keep_running_ignore_the_same_signals(
    ready_redis: str, tmp_path: Path, words: tuple[str, ...], environ: dict[str, str]
) -> None:
    """A closed terminal or a reload ends none of them."""
    process = start_sidecar(tmp_path, ready_redis, wait=False)
    process.stop()
    log = tmp_path / "command.log"
    with log.open("ab") as out:
        started = Process(
            [sys.executable, "-m", "authsidecar", *words],
            env={**os.environ, **process.environ, **environ},
            stdout=out,
            stderr=out,
        )
    try:
        until(lambda: '"event"' in log.read_text(), "a line")
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            started.send_signal(number)
            until(lambda: number.name in log.read_text(), "a line about it")  # noqa: B023
        started.terminate()
        assert started.wait(30) == 0
    finally:
        started.kill()
        started.wait()
