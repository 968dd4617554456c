"""A token is disabled, enabled and gets another secret: seen by the very next request."""

import asyncio
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from redis.asyncio import Redis

from authsidecar.admin.tokens import rotate
from authsidecar.decision.authorize import Rules
from authsidecar.decision.model import Credential, Limit, TokenId
from authsidecar.decision.policy import Policy
from authsidecar.decision.proxies.replies import VALID_UNTIL, render
from authsidecar.decision.restrictions import parse
from authsidecar.decision.routes import coolify
from authsidecar.decision.whoami import whoami
from authsidecar.store.registry import Registry
from authsidecar.times import rfc3339
from tests.support import seed
from tests.support.decisions import Sidecar, code, credential, request, sidecar, world
from tests.support.redis import RedisProcess, start_redis
from tests.support.sidecar import start_sidecar
from tests.support.wire import Wire, subrequest
from tests.support.world import populate, world_of

RULES = Rules(Policy(coolify("4.3")), {"user": Limit(100_000), "failed": Limit(100_000)})
PLENTY = 1_000_000


@pytest.fixture
async def registry(redis_client: Redis) -> Registry:
    """Token 67 (read, write) and 68 (read) of user 7 in team 3."""
    return await world(redis_client)


def secret(plain: str) -> Credential:
    number, _, text = plain.partition("|")
    return Credential(TokenId(int(number)), sha256(text.encode()).digest())


async def test_a_disabled_token_is_refused_by_the_next_request_of_every_process(
    registry: Registry, redis_url: str
) -> None:
    """Under load, with warm caches, back and forth; the user's other token goes on."""
    async with sidecar(redis_url) as one, sidecar(redis_url) as other:
        both = (one, other)
        stop = asyncio.Event()

        async def load(process: Sidecar) -> None:
            while not stop.is_set():
                await asyncio.gather(*(process.ask(68, rules=RULES) for _ in range(8)))

        async with asyncio.TaskGroup() as group:
            for process in both:
                group.create_task(load(process))
            for _ in range(10):
                assert [await p.ask(67, rules=RULES) for p in both] == ["allow"] * 2
                assert await registry.disable_token(TokenId(67), disabled=True)
                assert [await p.ask(67, rules=RULES) for p in both] == ["token_disabled"] * 2
                assert await registry.disable_token(TokenId(67), disabled=False)
            stop.set()
        assert await one.ask(68, rules=RULES) == "allow"


async def test_a_disabled_token_costs_its_address_and_tells_nothing_else(
    registry: Registry, redis_url: str
) -> None:
    """It is a failed authentication, at whoami too; with a wrong secret it is an unknown one."""
    await registry.disable_token(TokenId(67), disabled=True)
    async with sidecar(redis_url) as one:
        outcome = await one.outcome(67, rules=RULES)
        assert (code(outcome), outcome.record) == ("token_disabled", None)
        assert [quota.scope for quota in outcome.quotas] == ["failed"]
        assert code((await whoami(request(67), RULES, one.store))[0]) == "token_disabled"
        assert await one.ask(credential(67, "wrong"), rules=RULES) == "token_unknown"
    assert not await registry.disable_token(TokenId(999), disabled=True)


async def test_both_secrets_work_until_the_overlap_ends(
    registry: Registry, redis_client: Redis, redis_url: str
) -> None:
    """With the same id, restriction and counters; only the old one's answers say until when."""
    await registry.set_restriction("token", 67, parse({"routes": ["GET /api/v1/teams"]}))
    async with sidecar(redis_url) as one, sidecar(redis_url) as other:
        assert [await p.ask(67, rules=RULES) for p in (one, other)] == ["allow"] * 2
        made = await rotate(registry, TokenId(67), PLENTY)
        assert made is not None
        new, until = secret(made[0]), made[1]
        for process in (one, other):
            old_answer = await process.outcome(67, rules=RULES)
            new_answer = await process.outcome(new, rules=RULES)
            assert (code(old_answer), code(new_answer)) == ("allow", "allow")
            said = dict(render(old_answer, None, "d").headers)
            assert said[VALID_UNTIL] == rfc3339(until)
            assert VALID_UNTIL not in dict(render(new_answer, None, "d").headers)
            refused = await process.outcome(67, "GET", "/api/v1/servers", rules=RULES)
            assert code(refused) == "token_restricted"
            assert dict(render(refused, None, "d").headers)[VALID_UNTIL] == rfc3339(until)
            new_refused = await process.ask(new, "GET", "/api/v1/servers", rules=RULES)
            assert new_refused == "token_restricted"
            assert await process.ask(credential(67, "wrong"), rules=RULES) == "token_unknown"
        # One counter for both: the user's.
        assert (await one.outcome(new, rules=RULES)).quotas[0].remaining == 100_000 - 11


async def test_the_old_secret_ends_by_the_clock(registry: Registry, redis_url: str) -> None:
    """At once with no overlap, and while a process holds its record; the new one goes on."""
    async with sidecar(redis_url) as one:
        made = await rotate(registry, TokenId(67), 4000)
        assert made is not None
        assert await one.ask(67, rules=RULES) == "allow"
        async with asyncio.timeout(10):
            while (await registry.now()) <= made[1] + 1:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert await one.ask(67, rules=RULES) == "token_expired"
        assert await one.ask(secret(made[0]), rules=RULES) == "allow"
        again = await rotate(registry, TokenId(67), 0)
        assert again is not None
        assert await one.ask(secret(made[0]), rules=RULES) == "token_expired"
        assert await one.ask(67, rules=RULES) == "token_unknown"
        assert await one.ask(secret(again[0]), rules=RULES) == "allow"
    assert await rotate(registry, TokenId(999), 0) is None


async def test_a_token_that_is_written_anew_has_no_old_secret(
    registry: Registry, redis_url: str
) -> None:
    """Imported, or Coolify's of the same id: the secret that was rotated away stays away."""
    made = await rotate(registry, TokenId(67), PLENTY)
    assert made is not None
    await registry.put_tokens([seed.token(67, user=7, team=3, secret="another")])
    async with sidecar(redis_url) as one:
        assert await one.ask(67, rules=RULES) == "token_unknown"
        assert await one.ask(secret(made[0]), rules=RULES) == "token_unknown"
        assert await one.ask(credential(67, "another"), rules=RULES) == "allow"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = start_redis(tmp_path_factory.mktemp("redis"))
    populate(server)
    yield server
    server.stop()


@pytest.mark.parametrize("kind", ["fast", "aiohttp"])
async def test_the_same_bytes_are_answered_by_what_the_token_is_now(
    server: RedisProcess, tmp_path: Path, kind: str
) -> None:
    """Over HTTP, where a subrequest that was seen before is not parsed again."""
    process = start_sidecar(tmp_path, server.url, LISTEN__SERVER=kind)
    try:
        async with world_of(process, server) as there, Wire(process.port) as wire:
            number = TokenId(await there.newcomer())
            same = subrequest(authorization=seed.bearer(number))

            async def said() -> tuple[int, str | None]:
                answer = await wire.ask(same)
                return answer.status, answer.header(VALID_UNTIL)

            assert [await said() for _ in range(4)] == [(200, None)] * 4
            await there.registry.disable_token(number, disabled=True)
            assert await said() == (401, None)
            await there.registry.disable_token(number, disabled=False)
            assert [await said() for _ in range(3)] == [(200, None)] * 3
            made = await rotate(there.registry, number, 4000)
            assert made is not None
            until = rfc3339(made[1])
            assert [await said() for _ in range(3)] == [(200, until)] * 3
            async with asyncio.timeout(10):
                while await there.registry.now() <= made[1] + 5:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert (await said())[0] == 401
    finally:
        assert process.stop() == 0
