"""Ready means that a request would be decided: every way in which Redis fails, on a real server."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from tests.support import seed
from tests.support.decisions import world
from tests.support.faults import OPTIONS, Admin
from tests.support.redis import RedisProcess, start_redis
from tests.support.sidecar import SidecarProcess, get, start_sidecar
from tests.support.waiting import eventually, until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    made = start_redis(tmp_path_factory.mktemp("redis"), *OPTIONS)

    async def fill() -> None:
        async with Redis.from_url(made.url) as client:
            await world(client)
        await Admin([made]).fill()

    asyncio.run(fill())
    yield made
    made.stop()


@pytest.fixture(scope="module")
def process(
    server: RedisProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SidecarProcess]:
    made = start_sidecar(
        tmp_path_factory.mktemp("sidecar"),
        server.url,
        REDIS__BUDGET_MS="1000",
        LIMITS__USER="100000",
    )
    yield made
    made.stop()


@asynccontextmanager
async def few_rights(admin: Admin) -> AsyncIterator[None]:
    """The user that the sidecar is may not write."""
    await admin.do("ACL", "SETUSER", "operator", "on", ">operator", "allkeys", "+@all")
    await admin.do("ACL", "SETUSER", "default", "-evalsha", "-eval")
    try:
        yield
    finally:
        await admin.do("ACL", "SETUSER", "default", "+@all")


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("replica", "readonly"),
        ("replica", "masterdown"),
        ("noreplicas", "noreplicas"),
        ("misconf", "misconf"),
        ("full", "full"),
        ("loading", "loading"),
        ("busy", "busy"),
        ("auth", "other_password"),
        ("permission", "few_rights"),
        ("timeout", "frozen"),
        ("connection", "killed"),
    ],
)
async def test_what_refuses_every_request_is_not_ready_and_named(
    server: RedisProcess, process: SidecarProcess, kind: str, fault: str
) -> None:
    """`/readyz`, the log and the metric say the same kind; then the very next request passes."""

    def ready() -> dict[str, str]:
        return dict(get(process.management_port, "/readyz", {}).json["missing"])

    def status() -> int:
        answer = process.ask("GET", "/api/v1/teams", authorization=seed.bearer(67))
        return answer.status

    def told_well() -> bool:
        assert status() == 200
        told = [line for line in process.log.splitlines() if '"event": "redis_' in line]
        return not told or '"redis_answers"' in told[-1]

    async def missing() -> bool:
        return await asyncio.to_thread(ready) == {"redis": kind}

    async def told() -> bool:
        await asyncio.to_thread(status)
        log = process.log[logged:]
        # One that reads its data may be too late for a request; one that is gone is not asked.
        details = (f'"redis: {kind}"', '"redis: timeout"', '"redis: open"')
        return f'"redis_fails", "kind": "{kind}"' in log and any(one in log for one in details)

    admin = Admin([server])
    await asyncio.to_thread(until, lambda: not ready(), "ready before")
    # A change within a second of the last one is not told: the fault before may still stand there.
    await asyncio.to_thread(until, told_well, "Redis is told to answer", patience_s=5)
    logged = len(process.log)
    admin.load_delay_us = "25000"  # seven seconds, to look around in
    async with few_rights(admin) if fault == "few_rights" else getattr(admin, fault)():
        await eventually(missing, f"not ready for {kind}", patience_s=5)
        assert await asyncio.to_thread(status) == 503
        await eventually(told, f"a line that says {kind}", patience_s=15)
        metrics = await asyncio.to_thread(get, process.management_port, "/metrics", {})
    assert f'authsidecar_store_errors_total{{kind="{kind}"}}'.encode() in metrics.body
    took = await asyncio.to_thread(until, lambda: status() == 200, "requests pass", patience_s=5)
    assert took < 2
    await asyncio.to_thread(until, lambda: not ready(), "ready again", patience_s=5)


async def test_a_server_that_is_a_primary_again_refuses_nobody_more(
    server: RedisProcess, process: SidecarProcess
) -> None:
    """After NOREPLICAS and READONLY the first request passes: no closed connection is asked."""
    admin = Admin([server])
    for fault in (admin.noreplicas, admin.readonly):
        for _ in range(3):
            async with fault():
                assert (await asyncio.to_thread(_ask, process)) == 503
            assert (await asyncio.to_thread(_ask, process)) == 200


def _ask(process: SidecarProcess) -> int:
    return process.ask("GET", "/api/v1/teams", authorization=seed.bearer(67)).status
