"""When, from where and for what a token was last used: written late, and never too much."""

import asyncio
from ipaddress import ip_address

import pytest
from redis import exceptions

from authsidecar.decision.model import TeamId, TokenId, UserId
from authsidecar.store.keys import Keys
from authsidecar.store.last_used import LastUses, Use, last_use
from authsidecar.times import UnixMs
from tests.support import seed
from tests.support.cli import invoke, with_registry
from tests.support.redis import start_redis
from tests.support.seed import bearer
from tests.support.sidecar import start_sidecar
from tests.support.waiting import until

ONE, TWO = TokenId(1), TokenId(2)
HOME = ip_address("192.0.2.9")
LONG = "/api/v1/databases/{uuid}/backups/{scheduled_backup_uuid}/executions/{execution_uuid}"


@pytest.fixture
async def world(redis_client):
    """A registry with tokens 1 and 2 of user 7 in team 3."""
    registry = seed.registry(redis_client)
    await seed.user(registry, 7, t3="owner")
    await registry.put_tokens([seed.token(n, user=7, team=3) for n in (1, 2)])
    return registry


async def test_the_latest_use_of_each_token_is_written(world, redis_client):
    """Of many uses the last one, whole, for tokens that were used and no others."""
    uses = LastUses(redis_client, Keys())
    for at in (1000, 2000, 3000):
        uses.used(ONE, UnixMs(at), HOME, f"/api/v1/teams/{at}")
    assert await last_use(redis_client, Keys(), [ONE, TWO]) == {}
    await uses.write()
    found = await last_use(redis_client, Keys(), [ONE, TWO])
    assert found == {ONE: Use(UnixMs(3000), "192.0.2.9", "/api/v1/teams/3000")}


async def test_a_long_route_is_kept_whole_and_leaves_with_the_next(world, redis_client):
    """It takes a second field, which a shorter route after it takes away."""
    uses = LastUses(redis_client, Keys())
    for at, route in ((1000, LONG), (2000, "/api/v1/teams")):
        uses.used(ONE, UnixMs(at), ip_address("2001:db8::1"), route)
        await uses.write()
        assert await last_use(redis_client, Keys(), [ONE]) == {
            ONE: Use(UnixMs(at), "2001:db8::1", route)
        }


async def test_a_later_use_of_another_process_stays(world, redis_client):
    """Processes write in any order; the latest use wins."""
    early, late = LastUses(redis_client, Keys()), LastUses(redis_client, Keys())
    early.used(ONE, UnixMs(999), HOME, "/api/v1/early")
    late.used(ONE, UnixMs(1000), HOME, "/api/v1/late")
    await late.write()
    await early.write()
    assert (await last_use(redis_client, Keys(), [ONE]))[ONE].route == "/api/v1/late"


async def test_a_revoked_token_does_not_come_back_by_its_use(world, redis_client):
    """The write comes after the revocation, and leaves nothing; the other one is written."""
    uses = LastUses(redis_client, Keys())
    uses.used(ONE, UnixMs(1000), HOME, "/api/v1/teams")
    uses.used(TWO, UnixMs(1000), HOME, "/api/v1/teams")
    await world.remove_token(ONE)
    await uses.write()
    assert not await redis_client.exists(Keys().token(ONE))
    assert set(await last_use(redis_client, Keys(), [ONE, TWO])) == {TWO}


async def test_a_use_changes_neither_the_token_nor_its_time_to_live(world, redis_client):
    """Judged as before, removed by Redis when it would have been."""
    expiring = seed.token(5, user=7, team=3, expires_at=4_000_000_000_000)
    await world.put_tokens([expiring])
    before = await redis_client.pexpiretime(Keys().token(expiring.id))
    uses = LastUses(redis_client, Keys())
    uses.used(expiring.id, UnixMs(1000), HOME, LONG)
    await uses.write()
    assert await redis_client.pexpiretime(Keys().token(expiring.id)) == before > 0
    assert await world.token(expiring.id) == expiring
    await world.put_tokens([expiring])  # as a sync writes it again
    assert set(await last_use(redis_client, Keys(), [expiring.id])) == {expiring.id}


async def test_a_use_costs_about_150_bytes(world, redis_client):
    """Measured by Redis itself; the longest address and a long route included."""
    before = await redis_client.memory_usage(Keys().token(ONE))
    uses = LastUses(redis_client, Keys())
    uses.used(ONE, UnixMs(1_732_420_000_000), HOME, "/api/v1/applications/{uuid}")
    await uses.write()
    usual = await redis_client.memory_usage(Keys().token(ONE)) - before
    longest = ip_address("2001:db8:1111:2222:3333:4444:5555:6666")
    uses.used(ONE, UnixMs(1_732_420_000_001), longest, LONG)
    await uses.write()
    most = await redis_client.memory_usage(Keys().token(ONE)) - before
    assert usual <= 150
    assert most <= 256


async def test_what_redis_misses_is_kept_and_written_later(tmp_path):
    """Down, then back: the use is there, and what is remembered is bounded."""
    from redis.asyncio import Redis

    server = start_redis(tmp_path)
    async with Redis.from_url(server.url) as client:
        registry = seed.registry(client)
        await seed.user(registry, 7, t3="owner")
        await registry.put_tokens([seed.token(n, user=7, team=3) for n in range(1, 8)])
        await client.save()
        uses = LastUses(client, Keys(), kept=5)
        server.kill()
        for number in range(1, 8):
            uses.used(TokenId(number), UnixMs(1000), HOME, "/api/v1/teams")
        with pytest.raises((exceptions.RedisError, OSError)):
            await uses.write()
        server.start()
        await uses.write()
        found = await last_use(client, Keys(), map(TokenId, range(1, 8)))
        assert set(found) == {3, 4, 5, 6, 7}
    server.stop()


async def _two_tokens(registry):
    await seed.user(registry, 7, t3="owner")
    await registry.set_instance(api_enabled=True)
    await registry.put_tokens([seed.token(n, user=UserId(7), team=TeamId(3)) for n in (1, 2)])


def test_an_authenticated_request_is_a_use_and_a_wrong_secret_is_none(redis_url, tmp_path):
    """Over HTTP: also a refused one, as in Coolify; written by the stop at the latest; shown."""
    asyncio.run(with_registry(redis_url, _two_tokens))
    sidecar = start_sidecar(tmp_path, redis_url)
    assert sidecar.ask("POST", "/api/v1/projects", authorization=bearer(1)).status == 403
    assert sidecar.ask("GET", "/api/v1/teams", authorization=bearer(2, "wrong")).status == 401
    assert sidecar.stop() == 0
    one, two = invoke("token", "list", "--json", url=redis_url).json["items"]
    assert (one["last_used_address"], one["last_used_route"]) == ("192.0.2.1", "/api/v1/projects")
    assert one["last_used_at"].startswith("20")
    assert (two["last_used_at"], two["last_used_address"], two["last_used_route"]) == (None,) * 3
    assert one.items() <= invoke("token", "show", 1, "--json", url=redis_url).json.items()
    shown = invoke("token", "show", 1, url=redis_url).out
    assert "from 192.0.2.1 for /api/v1/projects" in shown
    assert "last used    never" in invoke("token", "show", 2, url=redis_url).out
    assert "LAST USED" in invoke("token", "list", url=redis_url).out


def test_uses_are_written_while_it_runs(redis_url, tmp_path):
    """Within seconds, without a write per request."""
    asyncio.run(with_registry(redis_url, _two_tokens))
    sidecar = start_sidecar(tmp_path, redis_url)
    for _ in range(5):
        assert sidecar.ask("GET", "/api/v1/teams", authorization=bearer(1)).status == 200

    def written() -> bool:
        return "for /api/v1/teams" in invoke("token", "show", 1, url=redis_url).out

    until(written, "the use")
    sidecar.stop()
