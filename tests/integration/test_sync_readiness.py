"""Before the first sync nothing is known, and whatever fails beside requests is told."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from authsidecar.coolify import status
from authsidecar.coolify.status import OWNER
from authsidecar.observe.background import BACKOFF_S, Background
from authsidecar.store.keys import Keys
from tests.support.coolify import Coolify, Lines, bearer, follower, sync_once
from tests.support.postgres import fill, start_postgres
from tests.support.redis import free_port, start_redis
from tests.support.sidecar import Answer, SidecarProcess, get, start_sidecar
from tests.support.topologies import cluster
from tests.support.waiting import eventually, until

KEYS = Keys()


@contextmanager
def unready(directory: Path, redis_url: str, dsn: str, **settings: Any) -> Iterator[SidecarProcess]:
    """A sidecar that follows and need not be ready to be started."""
    process = start_sidecar(
        directory,
        redis_url,
        wait_for="/healthz",
        **{
            "SYNC__SOURCE": "coolify",
            "SYNC__DSN": dsn,
            "SYNC__INTERVAL_SECONDS": "0.1",
            "LIMITS__USER": "100000",
            **settings,
        },
    )
    try:
        yield process
    finally:
        process.stop()


def readyz(process: SidecarProcess) -> Answer:
    return get(process.management_port, "/readyz", {})


def age(process: SidecarProcess) -> float | None:
    text = get(process.management_port, "/metrics", {}).body.decode()
    found = re.search(r'sync_age_seconds\{source="coolify"\} (\S+)', text)
    return float(found[1]) if found else None


def asked(process: SidecarProcess, token: int) -> tuple[int, str | None]:
    answer = process.ask("GET", "/api/v1/teams", authorization=bearer(token))
    return answer.status, answer.json["code"] if answer.body else None


def test_a_follower_that_never_reached_its_database_is_not_ready(
    redis_url: str, tmp_path: Path
) -> None:
    """A token may be Coolify's: it is 503, never unknown, and the alert has something to go by."""
    nowhere = f"postgresql://nobody@127.0.0.1:{free_port()}/coolify"
    with unready(tmp_path, redis_url, nowhere) as process:
        until(lambda: "sync_outage" in process.log, "the outage")
        until(lambda: readyz(process).json.get("sync", {}).get("problem") == "outage", "in readyz")
        answer = readyz(process)
        assert answer.status == 503
        assert answer.json["missing"] == {"sync": "not complete yet"}
        assert answer.json["sync"]["age_seconds"] is None
        for _ in range(40):  # and none of them counts as a guess
            assert asked(process, 2) == (503, "store_unavailable")
        assert process.ask("GET", "/api/health").status == 200
        assert age(process) == float("inf")


async def test_after_a_flush_nothing_is_known_until_all_is_there(
    coolify_db: Coolify, tmp_path: Path
) -> None:
    """Ready, flushed with the database away: not ready and 503, until it is back."""
    server, postgres = start_redis(tmp_path / "redis", port=0), start_postgres()
    try:
        name = await postgres.database()
        connection = await asyncpg.connect(postgres.dsn(name))
        await fill(connection)
        await connection.close()
        with unready(tmp_path, server.url, postgres.dsn(name)) as process:
            until(lambda: readyz(process).status == 200, "the first sync")
            assert asked(process, 2) == (200, None)
            until(lambda: (age(process) or 0) < 60, "an age")
            postgres.kill()
            async with Redis.from_url(server.url) as made:
                await made.flushall()
            assert asked(process, 2) == (503, "store_unavailable")
            until(lambda: readyz(process).status == 503, "a readiness that is asked anew")
            until(lambda: age(process) == float("inf"), "the age in the metrics")
            postgres.start()
            until(lambda: readyz(process).status == 200, "the sync after the flush")
            assert asked(process, 2) == (200, None)
    finally:
        server.stop()
        postgres.stop()


async def test_a_sidecar_that_does_not_follow_itself_waits_for_the_first_sync_too(
    coolify_db: Coolify, redis_client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """The one that follows has begun and is not done: it says so in Redis."""
    process = start_sidecar(tmp_path, redis_url)
    try:
        assert asked(process, 2) == (401, "token_unknown")
        one = follower(coolify_db.dsn, redis_client)
        assert await one._lease.acquire()
        await one._bulk.epoch.begin()
        await one._status.claim()
        await one._bulk.say_synced(complete=False)
        assert asked(process, 2) == (503, "store_unavailable")
        until(lambda: readyz(process).status == 503, "a readiness that is asked anew")
        assert readyz(process).json["sync"]["age_seconds"] is None
        await one._lease.release()
        await sync_once(coolify_db.dsn, redis_client)
        assert asked(process, 2) == (200, None)
        until(lambda: readyz(process).status == 200, "a readiness that is asked anew")
        await redis_client.flushall()
        assert asked(process, 2) == (503, "store_unavailable")
        await sync_once(coolify_db.dsn, redis_client)
        assert asked(process, 2) == (200, None)
        # An older version's sync says no more than when its last round was.
        await redis_client.hdel(KEYS.instance, "synced")
        await redis_client.delete(KEYS.instance_nonce)
        assert asked(process, 2) == (200, None)
        assert await status.release(redis_client, KEYS)
        assert asked(process, 2) == (200, None)
        await redis_client.flushall()
        assert asked(process, 2) == (401, "token_unknown")
    finally:
        process.stop()


async def test_a_flushed_cluster_knows_nothing_either(coolify_db: Coolify, tmp_path: Path) -> None:
    """There no charge proves the settings: an unknown token has them read again."""
    with (
        cluster(tmp_path / "cluster", replicas=False) as nodes,
        unready(tmp_path, nodes.url, coolify_db.dsn) as process,
    ):
        until(lambda: readyz(process).status == 200, "the first sync")
        assert asked(process, 2) == (200, None)
        await coolify_db.run("ALTER TABLE users RENAME TO away")
        until(lambda: "sync_schema" in process.log, "the sync stands still")
        for server in nodes.servers:
            async with Redis.from_url(server.url) as node:
                await node.flushall()
        assert asked(process, 2) == (503, "store_unavailable")
        assert asked(process, 3) == (503, "store_unavailable")


async def test_a_status_that_cannot_be_read_ends_nothing(
    coolify_db: Coolify, redis_client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """A newer sync's problem, or rubbish: it is told as far as it can be read."""
    process = start_sidecar(tmp_path, redis_url)
    rubbish: dict[Any, Any] = {
        "owner": OWNER,
        "at": "soon",
        "problem": "moon",
        "kept": "x",
        "odd": "[1",
    }
    try:
        await redis_client.hset(KEYS.sync_status, mapping=rubbish)
        assert readyz(process).json["sync"]["problem"] == "other"
        until(lambda: (age(process) or 0) > 1e6, "an age that nobody takes for good")
        await redis_client.hset(KEYS.sync_status, "odd", '{"moon": 2, "id": 3}')
        assert readyz(process).json["sync"]["odd_rows"] == 3
    finally:
        process.stop()


async def test_a_defect_of_the_sync_is_told_and_does_not_spin(
    coolify_db: Coolify, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error nobody foresaw: in the log once, in Redis, in this process; and then it is over."""
    from authsidecar.coolify import rounds

    lines = Lines()
    reports: list[str | None] = []
    original, tries = rounds.DatabaseView.at, 0

    async def broken(view: object) -> rounds.DatabaseView:
        nonlocal tries
        tries += 1
        raise ValueError("a secret")

    monkeypatch.setattr(rounds.DatabaseView, "at", broken)
    one = follower(coolify_db.dsn, redis_client, lines)
    one._report = reports.append
    task = asyncio.create_task(one.run())
    try:

        async def told() -> bool:
            found = await status.read(redis_client, KEYS)
            return found is not None and found.problem == "defect" and tries > 1

        await eventually(told, "the defect")
        await asyncio.sleep(1.0)
        assert tries <= 5
        assert "ValueError" in (reports[-1] or "")
        assert len(lines.all("sync_defect")) == len(lines.all("sync_leading")) == 1
        assert "a secret" not in lines.stream.getvalue()
        monkeypatch.setattr(rounds.DatabaseView, "at", original)

        async def over() -> bool:
            found = await status.read(redis_client, KEYS)
            return found is not None and found.problem is None and found.age_s is not None

        await eventually(over, "the end of it")
        assert reports[-1] is None
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


TASKS = {
    "last_used": "from authsidecar.store.last_used import LastUses as it; name = 'write'",
    "sync_status": "from authsidecar.coolify.status import Gauges as it; name = 'set'",
    "sync": "from authsidecar.coolify.sync import Follower as it; name = 'run'",
    "warnings": "from authsidecar.expiry.rounds import Rounds as it; name = 'once'",
}
"""A task beside requests, and what it calls again and again."""

PROGRAM = """
import pathlib, runpy, sys
{what}
real, switch = getattr(it, name), pathlib.Path(sys.argv[1])
def broken(*args, **kwargs):
    if switch.exists():
        raise LookupError("a secret")
    return real(*args, **kwargs)
setattr(it, name, broken)
sys.argv[1:2] = []
runpy.run_module("authsidecar", run_name="__main__")
"""


@pytest.mark.parametrize("task", TASKS)
async def test_what_fails_beside_requests_is_told_and_begun_again(
    coolify_db: Coolify, redis_url: str, tmp_path: Path, task: str
) -> None:
    """Log, metric and `/readyz`; requests go on; without the fault it is well again."""
    file, switch = tmp_path / "program.py", tmp_path / "broken"
    file.write_text(PROGRAM.format(what=TASKS[task]))
    if task == "sync":  # it is begun once
        switch.touch()
    process = start_sidecar(
        tmp_path,
        redis_url,
        program=(str(file), str(switch)),
        wait_for="/healthz",
        SYNC__SOURCE="coolify",
        SYNC__DSN=coolify_db.dsn,
        MAIL__WEBHOOK_URL="http://127.0.0.1:9/",
    )
    switch.touch()
    try:
        # A failure that is met in the round of usage comes only if there is something to write.
        if task == "last_used":
            until(lambda: asked(process, 2)[0] == 200, "a request")
        until(lambda: task in readyz(process).json.get("background", {}), f"{task} in /readyz")
        assert "LookupError" in readyz(process).json["background"][task]
        metrics = get(process.management_port, "/metrics", {}).body.decode()
        assert f'authsidecar_background_failing{{task="{task}"}} 1.0' in metrics
        assert f'background_failures_total{{task="{task}"}} 0.0' not in metrics
        assert process.log.count('"background_failed"') == 1
        assert "a secret" not in process.log
        if task != "sync":
            until(lambda: asked(process, 2)[0] == 200, "a request beside it")
        if task in {"sync", "warnings"}:
            switch.unlink()
            until(lambda: "background" not in readyz(process).json, "the end of it")
    finally:
        process.stop()


async def test_a_task_is_begun_again_after_pauses_that_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And a task that has gone well for long enough counts as well."""
    from authsidecar.observe import background

    monkeypatch.setattr(background, "BACKOFF_S", (0.01, 0.02, 0.05))
    monkeypatch.setattr(background, "WELL_S", 0.3)
    lines = Lines()
    watch = Background(lines.log)
    loop = asyncio.get_running_loop()
    begun: list[float] = []

    async def work() -> None:
        begun.append(loop.time())
        if len(begun) < 6:
            raise ValueError("a secret")
        await asyncio.Event().wait()

    async with watch.running("last_used", work):

        async def well() -> bool:
            return len(begun) == 6 and not watch.failing

        await eventually(well, "the end of the failures")
    pauses = [after - before for before, after in pairwise(begun)]
    assert all(p >= least for p, least in zip(pauses, (0.01, 0.02, 0.05, 0.05), strict=False))
    assert len(lines.all("background_failed")) == len(lines.all("background_recovered")) == 1
    assert "a secret" not in lines.stream.getvalue()
    assert list(BACKOFF_S) == sorted(BACKOFF_S)
