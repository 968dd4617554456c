"""A real Prometheus before a real sidecar: every query finds something, every alert its fault.

For the alerts a copy of the rules waits for a second where the files say minutes, and looks back
over seconds (`quicker`); thresholds are those of the files. When each fires by the real times, and
when not, is promtool's to say: test_alert_rules.py.
"""

import asyncio
import contextlib
import json
import math
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from tests.integration.test_metrics import SEED, junk, warm_up
from tests.integration.test_sync_readiness import PROGRAM, TASKS
from tests.support.coolify import Coolify, bearer, sync_once
from tests.support.postgres import fill, start_postgres
from tests.support.prometheus import (
    DEPLOY,
    MISSING,
    PROMETHEUS,
    Prometheus,
    rules,
    start_prometheus,
)
from tests.support.redis import start_redis
from tests.support.relay import relay
from tests.support.seed import bearer as seeded
from tests.support.seed import registry, token, user
from tests.support.sidecar import SidecarProcess, start_sidecar
from tests.support.waiting import until
from tests.support.wire import Wire, ask_all, subrequest
from tests.support.world import READ, populate

pytestmark = [pytest.mark.skipif(PROMETHEUS is None, reason=MISSING), pytest.mark.any_python]

GOOD = subrequest(authorization=seeded(1))


@contextlib.asynccontextmanager
async def asking(port: int, *requests: bytes) -> AsyncIterator[None]:
    """Ask all the time, each on a connection of its own, whatever is answered."""

    async def ask() -> None:
        while True:
            for request in requests:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    async with Wire(port) as wire:
                        await wire.ask(request)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(ask())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def watched(
    directory: Path, *sidecars: SidecarProcess, quick: bool = True
) -> AsyncIterator[Prometheus]:
    """A Prometheus that scrapes them, and has done so."""
    ports = [one.management_port for one in sidecars]
    made = start_prometheus(directory / "prometheus", ports, quick=quick)
    try:
        await asyncio.to_thread(made.until_scraped)
        yield made
    finally:
        made.stop()


async def firing(prometheus: Prometheus, *names: str) -> None:
    """Return once each of these alerts has been seen firing."""
    await asyncio.to_thread(prometheus.until_firing, *names)


@pytest.fixture
async def ready_redis(redis_client: Redis, redis_url: str) -> str:
    state = registry(redis_client)
    await state.set_instance(api_enabled=True)
    await user(state, 1, t0="owner")
    await state.put_tokens([token(1, user=1, team=0)])
    return redis_url


def questions() -> Sequence[str]:
    """What the dashboard and the recording rules ask, for all instances and the last minute."""
    panels = json.loads((DEPLOY / "grafana/authsidecar.json").read_text())["panels"]
    asked = [query["expr"] for panel in panels for query in panel.get("targets", ())]
    asked = [one.replace("$instance", ".+").replace("$__rate_interval", "1m") for one in asked]
    return [*asked, *(rule["expr"] for rule in rules("rules.yml"))]


async def test_every_query_finds_what_it_asks_for(
    coolify_db: Coolify, redis_url: str, tmp_path: Path
) -> None:
    """Of a sidecar with two workers that follows a Coolify, asked by good and bad callers."""
    process = start_sidecar(
        tmp_path,
        redis_url,
        "--workers",
        "2",
        SYNC__SOURCE="coolify",
        SYNC__DSN=coolify_db.dsn,
        LIMITS__USER="20",
    )
    try:
        good = subrequest(authorization=bearer(2))
        missing = list(questions())
        async with (
            asking(process.port, good, subrequest(), subrequest("TRACE")),
            watched(tmp_path, process, quick=False) as prometheus,
        ):

            def all_found() -> bool:
                missing[:] = [
                    one
                    for one in missing
                    if all(math.isnan(value) for _, value in prometheus.query(one))
                ]
                return not missing

            try:
                await asyncio.to_thread(until, all_found, "an answer to each")
            except AssertionError:
                raise AssertionError(missing) from None
            assert prometheus.query("up") == [
                (
                    {
                        "__name__": "up",
                        "instance": f"127.0.0.1:{process.management_port}",
                        "job": "authsidecar",
                    },
                    1.0,
                )
            ]
    finally:
        assert process.stop() == 0


@pytest.mark.slow
@pytest.mark.alone
async def test_random_requests_leave_prometheus_with_the_same_series(tmp_path: Path) -> None:
    """10,000 random paths, methods and tokens, after all that it can say was said once."""
    server = start_redis(tmp_path / "redis")
    await asyncio.to_thread(populate, server)
    process = start_sidecar(
        tmp_path,
        server.url,
        LOG__DECISIONS="none",
        LIMITS__FAILED="3",
        LIMITS__UNKNOWN="3",
        LIMITS__HEALTH="3",
    )
    scraped = '{job="authsidecar", __name__=~"(authsidecar|process)_.+"}'
    chance = random.Random(SEED)
    try:
        await warm_up(process, server)
        async with watched(tmp_path, process, quick=False) as prometheus:

            def series() -> set[tuple[tuple[str, str], ...]]:
                return {tuple(sorted(labels.items())) for labels, _ in prometheus.query(scraped)}

            before = series()
            await ask_all(process.port, (junk(chance) for _ in range(10_000)))
            counted = "sum(authsidecar_decisions_total)"
            until(lambda: prometheus.query(counted)[0][1] > 10_000, "the decisions")
            assert len(before) > 100
            assert series() == before
    finally:
        assert process.stop() == 0
        server.stop()


@pytest.mark.slow
@pytest.mark.alone
async def test_no_alert_fires_while_all_is_well(
    coolify_db: Coolify, redis_url: str, tmp_path: Path
) -> None:
    """Good callers, now and then a bad one, and a sync that follows."""
    process = start_sidecar(
        tmp_path, redis_url, SYNC__SOURCE="coolify", SYNC__DSN=coolify_db.dsn, LIMITS__USER="9999"
    )
    try:
        good = subrequest(authorization=bearer(2))
        async with (
            asking(process.port, *[good] * 50, subrequest()),
            watched(tmp_path, process) as prometheus,
        ):
            await asyncio.to_thread(prometheus.until_scraped, 30)
            # A machine that is busy with other tests is late, and slow, and that is told by right.
            busy = {"AuthsidecarEventLoopLate", "AuthsidecarSlow"}
            assert set(prometheus.firing()) <= busy
    finally:
        assert process.stop() == 0


@pytest.mark.slow
async def test_a_redis_that_stops_is_seen(tmp_path: Path) -> None:
    """By what it cannot do any more, by the 503s, by the trips that fail."""
    server = start_redis(tmp_path / "redis")
    await asyncio.to_thread(populate, server)
    process = start_sidecar(tmp_path, server.url, REDIS__BUDGET_MS="100")
    try:
        good = subrequest(authorization=seeded(READ))
        async with asking(process.port, good), watched(tmp_path, process) as prometheus:
            server.kill()
            await firing(
                prometheus,
                *("AuthsidecarNotReady", "AuthsidecarUnavailable", "AuthsidecarRedisErrors"),
            )
    finally:
        process.stop()
        server.stop()


@pytest.mark.slow
async def test_a_redis_that_is_away_at_the_start_is_seen_though_nobody_asks(
    tmp_path: Path,
) -> None:
    """No request, no trip, no series that grows: all the same it is not ready."""
    server = start_redis(tmp_path / "redis")
    server.stop()
    process = start_sidecar(tmp_path, server.url, wait_for="/healthz")
    try:
        async with watched(tmp_path, process) as prometheus:
            await firing(prometheus, "AuthsidecarNotReady")
    finally:
        process.stop()


@pytest.mark.slow
async def test_a_slow_redis_is_seen(ready_redis: str, tmp_path: Path) -> None:
    """Each of its answers is held back."""
    async with relay(ready_redis.removeprefix("unix://"), delay=lambda: 0.2) as port:
        made = start_sidecar(tmp_path, f"redis://127.0.0.1:{port}/0", wait=False)
        try:
            await asyncio.to_thread(until, made._ready, "the sidecar")
            async with asking(made.port, GOOD), watched(tmp_path, made) as prometheus:
                await firing(prometheus, "AuthsidecarSlow")
        finally:
            await asyncio.to_thread(made.stop)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_sync_that_stops_is_seen(redis_url: str, tmp_path: Path) -> None:
    """PostgreSQL is stopped: what is wrong at once, and that it is late a minute later."""
    postgres = start_postgres()
    name = await postgres.database()
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(postgres.stop)
        connection = await asyncpg.connect(postgres.dsn(name))
        await fill(connection)
        await connection.close()
        process = start_sidecar(
            tmp_path, redis_url, SYNC__SOURCE="coolify", SYNC__DSN=postgres.dsn(name)
        )
        stack.callback(process.stop)
        prometheus = await stack.enter_async_context(watched(tmp_path, process))
        assert "AuthsidecarSyncProblem" not in prometheus.firing()
        postgres.kill()
        await firing(prometheus, "AuthsidecarSyncProblem", "AuthsidecarSyncLate")


@pytest.mark.slow
async def test_a_sync_that_is_forgotten_is_seen(
    coolify_db: Coolify, redis_client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """Redis loses all, and the sidecar is started again: its age is not old, but absent."""
    await sync_once(coolify_db.dsn, redis_client)
    process = start_sidecar(tmp_path, redis_url)
    try:
        async with watched(tmp_path, process) as prometheus:
            age = "authsidecar_sync_age_seconds"
            await asyncio.to_thread(until, lambda: bool(prometheus.query(age)), "an age")
            process.stop()
            await redis_client.flushall()
            process.start()
            await firing(prometheus, "AuthsidecarSyncAbsent")
    finally:
        process.stop()


@pytest.mark.slow
async def test_a_log_that_nobody_reads_is_seen(ready_redis: str, tmp_path: Path) -> None:
    """Standard error is a pipe without a reader."""
    read_end, write_end = os.pipe()
    process = start_sidecar(tmp_path, ready_redis, stderr=write_end, LIMITS__USER="100000")
    try:
        async with watched(tmp_path, process) as prometheus:
            await ask_all(process.port, [GOOD] * 20_000)
            await firing(prometheus, "AuthsidecarLogLinesDropped")
    finally:
        process.stop()
        os.close(read_end)
        os.close(write_end)


@pytest.mark.slow
async def test_bad_callers_are_seen(ready_redis: str, tmp_path: Path) -> None:
    """Guessed tokens from many addresses, a proxy without headers, silent connections."""
    process = start_sidecar(tmp_path, ready_redis, LISTEN__FIRST_BYTE_TIMEOUT_SECONDS="1")
    guesses = [
        subrequest(authorization=f"Bearer {n}|{n:040}", client=f"10.0.0.{n}") for n in range(1, 60)
    ]
    try:
        async with (
            asking(process.port, *guesses, subrequest(uri=None)),
            watched(tmp_path, process) as prometheus,
        ):
            with contextlib.ExitStack() as stack:
                for _ in range(20):
                    one = socket.create_connection(("127.0.0.1", process.port))
                    stack.enter_context(one)
                await firing(
                    prometheus,
                    "AuthsidecarTokenGuessing",
                    "AuthsidecarProxyMisconfigured",
                    "AuthsidecarConnectionsDropped",
                )
    finally:
        process.stop()


@pytest.mark.slow
@pytest.mark.alone
async def test_a_process_that_does_not_get_to_run_is_seen(ready_redis: str, tmp_path: Path) -> None:
    """It is stopped and continued, as by a host that is too busy."""
    process = start_sidecar(tmp_path, ready_redis)

    async def hold() -> None:
        while True:
            process.signal(signal.SIGSTOP)
            await asyncio.sleep(0.15)
            process.signal(signal.SIGCONT)
            await asyncio.sleep(0.3)

    try:
        async with watched(tmp_path, process) as prometheus:
            holding = asyncio.create_task(hold())
            try:
                await firing(prometheus, "AuthsidecarEventLoopLate")
            finally:
                holding.cancel()
                await asyncio.gather(holding, return_exceptions=True)
    finally:
        process.stop()


@pytest.mark.slow
async def test_warnings_that_fail_are_seen(
    redis_client: Redis, ready_redis: str, tmp_path: Path
) -> None:
    """Nobody listens where the webhook leads; then the task itself breaks."""
    soon = int(time.time() * 1000) + 3_600_000
    await registry(redis_client).put_tokens([token(2, user=1, team=0, expires_at=soon)])
    file, switch = tmp_path / "program.py", tmp_path / "broken"
    file.write_text(PROGRAM.format(what=TASKS["warnings"]))
    process = start_sidecar(
        tmp_path,
        ready_redis,
        program=(str(file), str(switch)),
        MAIL__WEBHOOK_URL="http://127.0.0.1:9/",
    )
    try:
        async with watched(tmp_path, process) as prometheus:
            await firing(prometheus, "AuthsidecarWarningsFail")
            switch.touch()
            await firing(prometheus, "AuthsidecarTaskFailing")
    finally:
        process.stop()


@pytest.mark.slow
async def test_a_sidecar_that_restarts_and_stops_is_seen(ready_redis: str, tmp_path: Path) -> None:
    """Three starts within the time that is looked back over, then none."""
    process = start_sidecar(tmp_path, ready_redis)
    try:
        async with watched(tmp_path, process) as prometheus:
            started = "process_start_time_seconds"

            def begun() -> set[float]:
                return {value for _, value in prometheus.query(started)}

            seen = asyncio.create_task(firing(prometheus, "AuthsidecarRestarts"))
            while not seen.done():
                new = partial(lambda old: bool(begun() - old), begun())
                process.kill()
                process.start()
                await asyncio.to_thread(until, new, "the start of the new one")
            await seen
            process.stop()
            await firing(prometheus, "AuthsidecarDown")
    finally:
        process.stop()


@pytest.mark.slow
async def test_a_prometheus_that_looks_elsewhere_is_seen(tmp_path: Path) -> None:
    """One knows no target; the target of the other answers with metrics that are not ours."""
    nowhere = start_prometheus(tmp_path / "nowhere", [], quick=True)
    astray = start_prometheus(tmp_path / "astray", [nowhere.port], quick=True)
    try:
        await firing(nowhere, "AuthsidecarAbsent")
        await firing(astray, "AuthsidecarMetricsAbsent")
    finally:
        nowhere.stop()
        astray.stop()
