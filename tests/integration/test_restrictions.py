"""A restriction in Redis: seen by the very next request, counted exactly, lost by nothing else."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from redis.asyncio import Redis

from authsidecar.decision.authorize import Rules
from authsidecar.decision.model import Allow, Limit, Restriction, TeamId, TokenId, UserId
from authsidecar.decision.policy import Policy
from authsidecar.decision.ratelimit import charges
from authsidecar.decision.restrictions import parse
from authsidecar.decision.routes import coolify
from authsidecar.store.keys import Keys, owner_bucket
from authsidecar.store.registry import EXPIRED_KEPT_MS, Registry
from tests.support import seed
from tests.support.coolify import Coolify, sync_once
from tests.support.decisions import RULES, sidecar, world
from tests.support.topologies import cluster

TEAMS = ("GET", "/api/v1/teams")
PROJECTS = ("POST", "/api/v1/projects")
ONLY_TEAMS = parse({"routes": ["GET /api/v1/teams"]})
ONLY_PROJECTS = parse({"routes": ["POST /api/v1/projects"]})
BUDGET = Keys().counter(charges.budget(TokenId(67), UserId(7), 1))


@pytest.fixture
async def registry(redis_client: Redis) -> Registry:
    """Token 67 (read, write) and 68 (read) of user 7 in team 3."""
    return await world(redis_client)


@pytest.mark.parametrize("holder", [("token", 67), ("user", 7), ("team", 3)])
async def test_a_change_is_seen_by_the_next_request_of_every_process(
    registry: Registry, redis_url: str, holder: tuple[str, int]
) -> None:
    """Narrowed, narrowed otherwise, and taken back, by processes that hold the token's record."""
    async with sidecar(redis_url) as one, sidecar(redis_url) as other:

        async def asked() -> list[str]:
            return [await s.ask(67, *route) for s in (one, other) for route in (TEAMS, PROJECTS)]

        assert await asked() == ["allow"] * 4
        await registry.set_restriction(*holder, ONLY_TEAMS)
        assert await asked() == ["allow", "token_restricted"] * 2
        await registry.set_restriction(*holder, ONLY_PROJECTS)
        assert await asked() == ["token_restricted", "allow"] * 2
        await registry.set_restriction(*holder, None)
        assert await asked() == ["allow"] * 4


async def test_only_its_own_token_is_narrowed(registry: Registry, redis_url: str) -> None:
    """Another one of the same user does what it did."""
    await registry.set_restriction("token", 67, ONLY_PROJECTS)
    async with sidecar(redis_url) as one:
        assert (await one.ask(67), await one.ask(68)) == ("token_restricted", "allow")


async def test_a_warm_request_of_a_restricted_token_costs_one_trip(
    registry: Registry, redis_url: str
) -> None:
    """The charge, as ever: it proves the restriction too."""
    await registry.set_restriction(
        "token", 67, parse({"uses": 50, "rate": "20/60s", "hours": ["Mon-Sun 00:00-24:00 UTC"]})
    )
    async with sidecar(redis_url) as one:
        await one.ask(67)
        one.trips.clear()
        assert await one.ask(67) == "allow"
        assert one.trips == ["charge"]


async def test_hours_are_looked_at_for_each_request(registry: Registry, redis_url: str) -> None:
    """A record that is held and proven is judged anew as time goes by."""
    async with sidecar(redis_url) as one:
        now = one.store.now()
        await registry.set_restriction("token", 67, Restriction(until=type(now)(now + 600_000)))
        assert await one.ask(67) == "allow"
        one.trips.clear()
        one.store.now = lambda: type(now)(now + 600_001)  # type: ignore[method-assign]
        assert await one.ask(67) == "token_restricted"
        assert one.trips == ["charge"]


async def test_a_refused_request_is_charged_to_the_user_alone(
    registry: Registry, redis_client: Redis, redis_url: str
) -> None:
    """Neither the budget nor the rate of a restriction pays for what is refused."""
    both = parse({"uses": 2, "rate": "2/1h", "routes": ["GET /api/v1/teams"]})
    await registry.set_restriction("token", 67, both)
    async with sidecar(redis_url) as one:
        for _ in range(3):
            assert await one.ask(67, *PROJECTS) == "token_restricted"
        over = parse({"uses": 2, "until": "2020-01-01T00:00:00Z"})
        await registry.set_restriction("token", 67, over)
        assert await one.ask(67) == "token_restricted"
    assert await redis_client.get(BUDGET) == b"0"
    assert await redis_client.llen(Keys().counter(charges.of_user(UserId(7), Limit(1)))) == 4
    assert not [key for key in await redis_client.keys() if b"restriction:" in key]


async def test_what_isolation_refuses_is_not_charged_to_a_budget(
    registry: Registry, redis_client: Redis, redis_url: str
) -> None:
    """Whose a resource is, is known before the uses are counted."""
    rules = Rules(Policy(coolify("4.3"), team_isolation=True), {"user": Limit(200)})
    await redis_client.hset(Keys().owners(owner_bucket("theirs")), "theirs", 9)
    await registry.set_restriction("token", 67, parse({"uses": 5}))
    async with sidecar(redis_url) as one:
        path = "/api/v1/servers/theirs"
        assert await one.ask(67, "GET", path, rules=rules) == "resource_not_found"
        assert await one.ask(67, "GET", "/api/v1/servers/new", rules=rules) == "allow"
    assert await redis_client.get(BUDGET) == b"1"


async def test_a_budget_of_n_is_n_for_64_clients_of_two_sidecars(
    registry: Registry, redis_client: Redis, redis_url: str
) -> None:
    """Exactly: whatever comes after is refused, for ever, and is no 429."""
    await registry.set_restriction("token", 67, parse({"uses": 100}))
    await registry.set_limit("user", 7, Limit(100_000))
    async with sidecar(redis_url) as one, sidecar(redis_url) as other:

        async def client(number: int) -> list[str]:
            return [await (one, other)[number % 2].ask(67) for _ in range(5)]

        answers = await asyncio.gather(*(client(number) for number in range(64)))
        found = Counter(answer for each in answers for answer in each)
        assert found == {"allow": 100, "token_restricted": 220}
        outcome = await one.outcome(67)
        assert not isinstance(outcome.verdict, Allow)
        assert outcome.verdict.detail == "its uses are spent"
        assert [quota.scope for quota in outcome.quotas] == ["user"]
        assert await registry.used(TokenId(67), UserId(7)) == 100


async def test_a_spent_budget_leaves_the_user_what_it_has(
    registry: Registry, redis_client: Redis, redis_url: str
) -> None:
    """All or none: a refusal by the budget is charged to no counter."""
    await registry.set_restriction("token", 67, parse({"uses": 1}))
    async with sidecar(redis_url) as one:
        assert [await one.ask(67) for _ in range(4)] == ["allow", *["token_restricted"] * 3]
    assert await redis_client.llen(Keys().counter(charges.of_user(UserId(7), Limit(1)))) == 1


async def test_a_rate_is_a_counter_of_its_own(registry: Registry, redis_url: str) -> None:
    """A 429 with its name; another token of the user has the user's room."""
    await registry.set_restriction("token", 67, parse({"rate": "2/1h"}))
    async with sidecar(redis_url) as one:
        outcomes = [await one.outcome(67) for _ in range(3)]
        assert [isinstance(o.verdict, Allow) for o in outcomes] == [True, True, False]
        assert [(q.scope, q.remaining) for q in outcomes[2].quotas] == [
            ("user", 198),
            ("restriction", 0),
        ]
        assert await one.ask(67) == "rate_limited"
        assert await one.ask(68) == "allow"


async def test_a_repeat_of_one_client_request_is_one_use(
    registry: Registry, redis_client: Redis, redis_url: str
) -> None:
    """As for every counter, where the proxy marks it."""
    await registry.set_restriction("token", 67, parse({"uses": 1}))
    async with sidecar(redis_url) as one:
        assert [await one.ask(67, request_id="same") for _ in range(3)] == ["allow"] * 3
        assert await one.ask(67, request_id="another") == "token_restricted"


async def test_a_lost_budget_has_nothing_left(
    registry: Registry, redis_client: Redis, redis_url: str
) -> None:
    """Nobody gets a fresh one because Redis has forgotten the old."""
    await registry.set_restriction("token", 67, parse({"uses": 5}))
    async with sidecar(redis_url) as one:
        assert await one.ask(67) == "allow"
        await redis_client.delete(BUDGET)
        assert await one.ask(67) == "token_restricted"
    assert not await redis_client.exists(BUDGET)


async def test_what_was_used_is_kept_as_long_as_the_token_is_restricted(
    registry: Registry, redis_client: Redis, redis_url: str
) -> None:
    """A restriction that is written again, with more uses or fewer, gives none of them back."""
    async with sidecar(redis_url) as one:
        await registry.set_restriction("token", 67, parse({"uses": 2}))
        assert await one.ask(67) == "allow"
        await registry.set_restriction("token", 67, parse({"uses": 2, "note": "again"}))
        assert [await one.ask(67) for _ in range(2)] == ["allow", "token_restricted"]
        await registry.set_restriction("token", 67, parse({"uses": 3}))
        assert [await one.ask(67) for _ in range(2)] == ["allow", "token_restricted"]
        await registry.set_restriction("token", 67, None)
        assert not await redis_client.exists(BUDGET)
        await registry.set_restriction("token", 67, parse({"uses": 1}))
        assert [await one.ask(67) for _ in range(2)] == ["allow", "token_restricted"]


async def test_it_goes_with_the_token_and_a_budget_with_it(
    registry: Registry, redis_client: Redis
) -> None:
    """Nothing is left for whoever gets the id next."""
    await registry.set_restriction("token", 67, parse({"uses": 5}))
    await registry.remove_token(TokenId(67))
    assert not await redis_client.exists(BUDGET)
    await registry.put_tokens([seed.token(67, user=7, team=3)])
    assert await registry.restriction("token", 67) is None
    assert not await registry.set_restriction("token", 99, ONLY_TEAMS)
    assert not await redis_client.exists(Keys().token(TokenId(99)))


async def test_a_budget_of_a_token_that_expires_goes_when_that_does(
    registry: Registry, redis_client: Redis
) -> None:
    """Redis removes both by itself."""
    expiry = int(await registry.now()) + 3_600_000
    await registry.put_tokens([seed.token(70, user=7, team=3, expires_at=expiry)])
    await registry.set_restriction("token", 70, parse({"uses": 5}))
    left = await redis_client.pttl(Keys().counter(charges.budget(TokenId(70), UserId(7), 1)))
    assert 0 < left - EXPIRED_KEPT_MS <= 3_600_000


DAMAGES: tuple[Any, ...] = (b"", b"{", b'{"permissions":["read"],"later":1}', b"\xff\xfe", b"[]")


@pytest.mark.parametrize("text", DAMAGES)
async def test_what_cannot_be_read_admits_nobody_and_is_told(
    registry: Registry, redis_client: Redis, redis_url: str, text: bytes
) -> None:
    """Of the token, its user or its team."""
    told: list[tuple[str, str]] = []
    keys = Keys()
    async with sidecar(redis_url, unreadable=lambda *what: told.append(what)) as one:
        for holder, key in (
            (("token", 67), keys.token(TokenId(67))),
            (("user", 7), keys.user(UserId(7))),
            (("team", 3), keys.team(TeamId(3))),
        ):
            await redis_client.hset(key, "restriction", text)
            await redis_client.set(keys.user_nonce(UserId(7)), f"{holder}{text!r}")
            assert await one.ask(67) == "token_restricted"
            assert told[-1] == (key, "restriction")
            assert await registry.set_restriction(*holder, None)
            assert await one.ask(67) == "allow"


@pytest.mark.parametrize("text", [b"", b"5", b"5/0", b"5/60000x"])
async def test_a_limit_that_cannot_be_read_admits_nobody_and_is_told(
    registry: Registry, redis_client: Redis, redis_url: str, text: bytes
) -> None:
    """Of the token, its user or its team, until it is set again or cleared."""
    told: list[tuple[str, str]] = []
    keys = Keys()
    holders: tuple[tuple[Any, str], ...] = (
        (("token", 67), keys.token(TokenId(67))),
        (("user", 7), keys.user(UserId(7))),
        (("team", 3), keys.team(TeamId(3))),
    )
    async with sidecar(redis_url, unreadable=lambda *what: told.append(what)) as one:
        for mended in (None, Limit(500, 60_000)):
            for holder, key in holders:
                await redis_client.hset(key, "limit", text)
                await redis_client.set(keys.user_nonce(UserId(7)), f"{mended}{holder}{text!r}")
                assert await one.ask(67) == "token_restricted"
                assert told[-1] == (key, "limit")
                assert await registry.set_limit(holder[0], holder[1], mended)
                assert await one.ask(67) == "allow"


async def test_a_sync_leaves_restrictions_alone(
    coolify_db: Coolify, redis_client: Redis, redis_url: str
) -> None:
    """Rounds that change nothing, the token or its name; a token that is deleted takes its own."""
    await sync_once(coolify_db.dsn, redis_client)
    registry = seed.registry(redis_client)
    await registry.set_restriction("token", 2, parse({"routes": ["GET /api/v1/teams"], "uses": 9}))
    token = await registry.token(TokenId(2))
    assert token is not None
    assert token.team is not None
    await registry.set_restriction("user", token.user, ONLY_TEAMS)
    await registry.set_restriction("team", token.team, ONLY_TEAMS)
    holders = (("token", 2), ("user", token.user), ("team", token.team))

    await coolify_db.run("UPDATE personal_access_tokens SET name = 'renamed' WHERE id = 2")
    await coolify_db.run(f"UPDATE teams SET name = 'renamed' WHERE id = {token.team}")
    await coolify_db.run(f"UPDATE users SET name = 'renamed' WHERE id = {token.user}")
    for _ in range(2):
        await sync_once(coolify_db.dsn, redis_client)
        assert [await registry.restriction(*holder) is None for holder in holders] == [False] * 3
    renamed = await registry.token(TokenId(2))
    assert renamed is not None
    assert renamed.name == "renamed"
    budget = Keys().counter(charges.budget(TokenId(2), token.user, 1))
    assert await redis_client.get(budget) == b"0"

    await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 2")
    await sync_once(coolify_db.dsn, redis_client)
    assert await registry.restriction("token", 2) is None
    assert not await redis_client.exists(budget)
    assert await registry.restriction("user", token.user) is not None


async def test_under_load_each_request_after_a_change_is_judged_by_it(
    registry: Registry, redis_url: str
) -> None:
    """Narrowed, widened and revoked while 16 clients ask: nothing later sees the old state."""
    await registry.set_limit("user", 7, Limit(100_000))
    ended = asyncio.Event()
    async with sidecar(redis_url) as one, sidecar(redis_url) as other:

        async def noise(number: int) -> None:
            while not ended.is_set():
                await (one, other)[number % 2].ask(67, *(TEAMS, PROJECTS)[number % 4 // 2])

        clients = [asyncio.create_task(noise(number)) for number in range(16)]
        for turn in range(30):
            wanted = (ONLY_TEAMS, ONLY_PROJECTS)[turn % 2]
            await registry.set_restriction("token", 67, wanted)
            for store in (one, other):
                found = (await store.ask(67, *TEAMS), await store.ask(67, *PROJECTS))
                expected = ("allow", "token_restricted")
                assert found == (expected if turn % 2 == 0 else expected[::-1])
        await registry.set_restriction("token", 67, None)
        for store in (one, other):
            assert [await store.ask(67, *asked) for asked in (TEAMS, PROJECTS)] == ["allow"] * 2
        await registry.remove_token(TokenId(67))
        for store in (one, other):
            # The clients go on with a token that is gone, until failures are limited.
            assert await store.ask(67, *TEAMS) in {"token_unknown", "rate_limited"}
        ended.set()
        await asyncio.gather(*clients)


async def test_on_a_cluster_a_budget_is_exact_too(tmp_path: Any) -> None:
    """It is in the user's slot, with the proof."""
    with cluster(tmp_path) as nodes:
        async with sidecar(nodes.url) as one, sidecar(nodes.url) as other:
            client = one.store._client
            registry = await world(client)
            await registry.set_restriction("token", 67, parse({"uses": 10, "rate": "50/60s"}))
            asks = [(one, other)[i % 2].ask(67, rules=RULES) for i in range(30)]
            assert Counter(await asyncio.gather(*asks)) == {"allow": 10, "token_restricted": 20}
            await registry.set_restriction("token", 67, None)
            assert await other.ask(67) == "allow"
