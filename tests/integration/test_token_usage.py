"""For what tokens are used, by days: what is kept, how much of it, and how `advise` tells it."""

import asyncio
import random
import shlex
from pathlib import Path

import pytest
from redis.asyncio import Redis

from authsidecar.decision.model import Place, ResourceKind, TeamId, TokenId
from authsidecar.decision.usage import Used
from authsidecar.store.keys import Keys, owner_bucket
from authsidecar.store.last_used import LastUses
from authsidecar.store.records import write_place
from authsidecar.store.registry import Registry
from authsidecar.store.usage import (
    DAY_MS,
    KEPT_DAYS,
    LARGEST,
    MOST,
    TRIES,
    Days,
    Usage,
    read,
    usage_of,
    usage_since,
)
from authsidecar.times import UnixMs
from tests.support import seed
from tests.support.cli import invoke, with_registry
from tests.support.seed import bearer
from tests.support.sidecar import start_sidecar

ONE, TWO = TokenId(1), TokenId(2)
KEYS = Keys()
DEPLOY = "POST /api/v1/deploy"
IN_P = ("p1", "e1", "prod")


@pytest.fixture
async def world(redis_client: Redis) -> Registry:
    """Tokens 1 and 2 of user 7 in team 3."""
    registry = seed.registry(redis_client)
    await seed.user(registry, 7, t3="owner")
    await registry.put_tokens([seed.token(n, user=7, team=3) for n in (1, 2)])
    return registry


def noting(client: Redis) -> LastUses:
    """What one process notes."""
    return LastUses(client, KEYS)


def note(uses: LastUses, day: int, route: str, *names: str, token: TokenId = ONE) -> None:
    uses.note(token, UnixMs(day * DAY_MS + 5), Used(route, names))


async def kept(client: Redis, token: TokenId = ONE) -> Usage:
    return (await usage_of(client, KEYS, [token])).get(token, Usage())


async def test_days_are_counted_and_not_requests(world: Registry, redis_client: Redis) -> None:
    """By whatever process, in whatever order; once a day it costs a write."""
    first, second = noting(redis_client), noting(redis_client)
    for day in (100, 100, 101, 103):
        for uses in (first, second):
            note(uses, day, DEPLOY, "=deploy/app1")
            await uses.write()
    note(second, 101, "GET /api/v1/teams")
    await second.write()
    found = await kept(redis_client)
    assert found.days == found.routes[DEPLOY] == found.names["=deploy/app1"] == Days(100, 103, 3)
    assert found.routes["GET /api/v1/teams"].days == 1
    before = await redis_client.info("commandstats")
    note(first, 103, DEPLOY, "=deploy/app1")
    await first.write()
    after = await redis_client.info("commandstats")
    assert after["cmdstat_set"]["calls"] == before["cmdstat_set"]["calls"]
    assert await kept(redis_client, TWO) == Usage()
    await redis_client.delete(KEYS.usage_since)
    note(second, 104, "GET /api/v1/teams")
    await second.write()
    assert await usage_since(redis_client, KEYS), "it is said anew each day"


async def test_no_token_has_more_than_its_room(world: Registry, redis_client: Redis) -> None:
    """64 routes and 64 names of the greatest length; what is not kept is told."""
    uses = noting(redis_client)
    for number in range(MOST + 20):
        route = f"GET /{number:03}{'r' * 151}"
        note(uses, 200, route, f"=application/{number:03}{'n' * 143}")
    await uses.write()
    found = await kept(redis_client)
    assert (len(found.routes), len(found.names)) == (MOST, MOST)
    assert set(found.unsure) == {"?routes", "?names"}
    assert LARGEST * 0.8 < await redis_client.memory_usage(KEYS.usage(ONE)) <= LARGEST
    note(uses, 200 + KEPT_DAYS, "GET /new", "=server/new")
    await uses.write()
    assert "GET /new" not in (await kept(redis_client)).routes
    note(uses, 201 + KEPT_DAYS, "GET /new", "=server/new")
    await uses.write()
    later = await kept(redis_client)
    assert "GET /new" in later.routes
    assert "=server/new" in later.names
    assert (len(later.routes), len(later.names)) == (MOST, MOST)


async def test_usual_use_costs_about_300_bytes(world: Registry, redis_client: Redis) -> None:
    """A job that deploys two applications and looks whether that went well."""
    uses = noting(redis_client)
    for name in ("bo8s4k4g0kw4kgsg8wk8wcow", "wk8s4k4g0kw4kgsg8wk8wcbo"):
        note(uses, 20_000, DEPLOY, f"=deploy/{name}")
        note(uses, 20_000, "GET /api/v1/deployments/{uuid}", f"=application/{name}")
    await uses.write()
    assert await redis_client.memory_usage(KEYS.usage(ONE)) <= 400


async def test_a_process_notes_a_bounded_number_of_names(
    world: Registry, redis_client: Redis
) -> None:
    """A client that asks for thousands of resources costs no more; what is not noted is told."""
    uses = noting(redis_client)
    for number in range(MOST + 500):
        note(uses, 200, f"GET /{number}", f"=server/{number}")
    noted = uses._notes
    assert len(noted._noted[ONE].texts) == 2 * MOST + len(("*", "?names", "?routes"))
    assert uses.has_named_too_much(ONE, UnixMs(200 * DAY_MS + 5))
    assert not uses.has_named_too_much(ONE, UnixMs(201 * DAY_MS))
    await uses.write()
    assert noted._waiting == {}
    assert set((await kept(redis_client)).unsure) == {"?names", "?routes"}


async def test_it_goes_with_its_token(world: Registry, redis_client: Redis) -> None:
    """Revoked, expired, or gone before it was written."""
    await world.put_tokens([seed.token(2, user=7, team=3, expires_at=4_000_000_000_000)])
    uses = noting(redis_client)
    for token in (ONE, TWO):
        note(uses, 200, DEPLOY, token=token)
    await uses.write()
    ends = await redis_client.pexpiretime(KEYS.token(TWO))
    assert await redis_client.pexpiretime(KEYS.usage(TWO)) == pytest.approx(ends, abs=1000)
    await world.remove_token(ONE)
    note(uses, 201, DEPLOY)
    await uses.write()
    assert not await redis_client.exists(KEYS.usage(ONE))
    assert await kept(redis_client) == Usage()


async def test_a_deployment_is_noted_as_its_applications(
    world: Registry, redis_client: Redis
) -> None:
    """Also one that the sync sees later; one that it never sees can't be told."""
    uses = noting(redis_client)
    for name in ("=deployment/d1", "=deployment/d2"):
        note(uses, 200, "GET /api/v1/deployments/{uuid}", name)
    await uses.write()
    assert (await kept(redis_client)).names == {}
    place = write_place(Place(TeamId(3), ResourceKind.DEPLOYMENT, *IN_P, "app1"))
    await redis_client.hset(KEYS.owners(owner_bucket("d1")), "d1", place)
    for _ in range(TRIES):
        await uses.write()
    found = await kept(redis_client)
    assert set(found.names) == {"=application/app1"}
    assert set(found.unsure) == {"?unknown"}
    assert uses._notes._waiting == {}


def test_a_text_that_can_not_be_read_narrows_nothing() -> None:
    """What is there in pieces may have been more."""
    found = read(b"20000 20001 2 GET /a\nnonsense\n")
    assert set(found.routes) == {"GET /a"}
    assert set(found.unsure) == {"?routes", "?names"}


# ------------------------------------------------------------------ from a request to the advice


async def _fleet(registry: Registry) -> None:
    await seed.user(registry, 7, t3="owner")
    await registry.set_instance(api_enabled=True)
    held = ("read", "write", "deploy")
    await registry.put_tokens([seed.token(n, user=7, team=3, permissions=held) for n in (1, 2)])
    for key, place in (
        ("app1", Place(TeamId(3), ResourceKind.APPLICATION, *IN_P)),
        ("dep1", Place(TeamId(3), ResourceKind.DEPLOYMENT, *IN_P, "app1")),
    ):
        name = KEYS.owners(owner_bucket(key))
        await registry._client.hset(name, key, write_place(place))


def test_the_advice_of_a_day(redis_url: str, tmp_path: Path) -> None:
    """Cold and warm requests are noted, refused ones are not; the command can be typed."""
    asyncio.run(with_registry(redis_url, _fleet))
    sidecar = start_sidecar(tmp_path, redis_url)
    asked = [("POST", "/api/v1/deploy?uuid=app1"), ("GET", "/api/v1/deployments/dep1")]
    for _ in range(4):
        for method, target in asked:
            assert sidecar.ask(method, target, authorization=bearer(1)).status == 200
    assert sidecar.ask("POST", "/api/v1/enable", authorization=bearer(1)).status == 403
    assert sidecar.ask("GET", "/api/v1/servers", authorization=bearer(1, "x")).status == 401
    assert sidecar.stop() == 0
    shown = invoke("token", "advise", 1, "--json", url=redis_url).json
    command = (
        "authsidecar token restrict 1 --permission deploy --permission read "
        "--route 'GET /api/v1/deployments/{uuid}' --route 'POST /api/v1/deploy' --resource app1"
    )
    assert shown["command"] == command
    assert (shown["used_days"], shown["days_without_use"]) == (1, 0)
    assert shown["unused_permissions"] == ["write"]
    assert [one["resource"] for one in shown["resources"]] == ["application/app1", "deploy/app1"]
    assert shown["known_since"] == shown["last_day"]
    text = invoke("token", "advise", 1, url=redis_url).out
    assert command in text
    assert "never used   write" in text
    assert "used         on no day" in invoke("token", "advise", 2, url=redis_url).out
    one, two = invoke("token", "advise", "--json", url=redis_url).json["items"]
    assert (one, two["command"]) == (shown, None)
    assert invoke(*shlex.split(command)[1:], url=redis_url).code == 0
    again = start_sidecar(tmp_path, redis_url)
    for method, target in random.Random(1).sample(asked * 3, 6):
        assert again.ask(method, target, authorization=bearer(1)).status == 200
    assert again.stop() == 0
    assert invoke("token", "advise", 1, "--json", url=redis_url).json["command"] is None
    assert "nothing would be" in invoke("token", "advise", 1, url=redis_url).out


@pytest.mark.parametrize("words", [(3,), (1, "--days", 0), (1, "--days", 401), ("x",)])
def test_what_can_not_be_advised_on(redis_url: str, words: tuple[object, ...]) -> None:
    """A token that is not there, and days that nobody keeps."""
    asyncio.run(with_registry(redis_url, _fleet))
    assert invoke("token", "advise", *words, url=redis_url).code in {1, 2}
