"""Many requests at once on real processes: exactly the limit passes, and nobody is left behind."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import aiohttp
import pytest
from redis.asyncio import Redis

from authsidecar.decision.model import Limit, Role, TeamId, TokenId, UserId
from authsidecar.store.refusals import RECHECK_MS
from authsidecar.store.registry import Registry
from tests.support import seed
from tests.support.decisions import world
from tests.support.redis import RedisProcess
from tests.support.sidecar import SidecarProcess, start_sidecar

PROCESSES = 4
ADMITTED, REFUSED = 200, 429


@pytest.fixture(scope="module")
def sidecars(
    redis_server: RedisProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[SidecarProcess]]:
    """They outlive the tests: each begins with an empty Redis, which no process may overlook."""
    with ExitStack() as stack:
        started = []
        for _ in range(PROCESSES):
            started.append(start_sidecar(tmp_path_factory.mktemp("sidecar"), redis_server.url))
            stack.callback(started[-1].stop)
        yield started


@pytest.fixture(autouse=True)
async def registry(redis_client: Redis, sidecars: list[SidecarProcess]) -> Registry:
    # The processes outlive the test before, and may refuse its flood for as long without asking.
    await asyncio.sleep(RECHECK_MS / 1000)
    return await world(redis_client)


async def ask(
    session: aiohttp.ClientSession, to: SidecarProcess, token: int = 67, client: str = "192.0.2.1"
) -> tuple[int, dict[str, str]]:
    """One subrequest as Traefik sends it: status and headers."""
    fields = {
        "X-Forwarded-Method": "GET",
        "X-Forwarded-Uri": "/api/v1/teams",
        "X-Forwarded-For": client,
        "Authorization": seed.bearer(token),
    }
    async with session.get(f"{to.url}/authz/traefik", headers=fields) as answer:
        await answer.read()
        return answer.status, dict(answer.headers)


def crowd() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=100), timeout=aiohttp.ClientTimeout(60)
    )


async def test_26_of_500_concurrent_requests_on_four_processes_exactly_200_pass(
    sidecars: list[SidecarProcess],
) -> None:
    """Pitfall 26: one user, one Redis, limit 200: 200 pass, and every remainder is given once."""
    async with crowd() as session:
        answers = await asyncio.gather(
            *(ask(session, sidecars[i % PROCESSES], token=67 + i % 2) for i in range(500))
        )
    assert Counter(status for status, _ in answers) == {ADMITTED: 200, REFUSED: 300}
    remaining = [int(fields["X-RateLimit-Remaining"]) for status, fields in answers if status < 300]
    assert sorted(remaining) == list(range(200))
    for status, fields in answers:
        if status == REFUSED:
            assert 1 <= int(fields["Retry-After"]) <= 60


async def test_users_do_not_wait_for_each_others_limits(
    registry: Registry, sidecars: list[SidecarProcess]
) -> None:
    """Ten users with thirty requests each at once: all pass, whoever else is at work."""
    for number in range(20, 30):
        await seed.user(registry, number, t3="member")
    await registry.put_tokens([seed.token(i, user=i, team=3) for i in range(20, 30)])
    async with crowd() as session:
        answers = await asyncio.gather(
            *(ask(session, sidecars[i % PROCESSES], token=20 + i % 10) for i in range(300))
        )
    assert {status for status, _ in answers} == {ADMITTED}
    assert Counter(fields["X-Auth-User-Id"] for _, fields in answers) == {
        str(i): 30 for i in range(20, 30)
    }


async def test_39_a_revocation_is_seen_by_the_next_request_of_every_process(
    registry: Registry, sidecars: list[SidecarProcess]
) -> None:
    """Pitfall 39: under load, no request that begins after the revocation passes anywhere."""
    revoked = asyncio.Event()

    async def hammer(session: aiohttp.ClientSession, number: int) -> list[int]:
        after: list[int] = []
        while len(after) < 5:
            began_after = revoked.is_set()
            # Each from an address of its own: no bucket of failures is full before the end.
            status, _ = await ask(session, sidecars[number], client=f"192.0.2.{number + 1}")
            if began_after:
                after.append(status)
            else:
                assert status in {ADMITTED, 401}
        return after

    await registry.set_limit("user", 7, Limit(100_000))
    async with crowd() as session:
        for each in sidecars:
            assert (await ask(session, each))[0] == ADMITTED
        work = [asyncio.ensure_future(hammer(session, n)) for n in range(len(sidecars))]
        await asyncio.sleep(0.05)
        await registry.remove_token(TokenId(67))
        revoked.set()
        for answers in await asyncio.gather(*work):
            assert answers == [401] * 5


async def test_39_a_role_change_is_seen_by_the_next_request_of_every_process(
    registry: Registry, sidecars: list[SidecarProcess]
) -> None:
    """Pitfall 39: owner, member, owner, member: each answer is of the role at that moment."""
    async with crowd() as session:
        for role, status in ((Role.MEMBER, 403), (Role.ADMIN, ADMITTED)) * 3:
            await registry.set_member(TeamId(3), UserId(7), role)
            for each in sidecars:
                assert (await ask(session, each))[0] == status
