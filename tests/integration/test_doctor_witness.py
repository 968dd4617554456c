"""The sidecar as a witness: only while a doctor is armed, only on one path, and of no secret."""

from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from authsidecar.decision.proxies.headers import IDENTITY
from authsidecar.doctor.one_time_key import ARMED_S, armed
from authsidecar.serving.doctor_probe import CODE, PATH, credential, digest
from authsidecar.store.keys import Keys
from tests.support.sidecar import SidecarProcess, start_sidecar
from tests.support.world import address

TEAMS = "/api/v1/teams"


@pytest.fixture(scope="module")
def sidecar(redis_server, tmp_path_factory) -> SidecarProcess:
    started = start_sidecar(tmp_path_factory.mktemp("witness"), redis_server.url)
    yield started
    started.stop()


@asynccontextmanager
async def doctor(redis_server):
    async with Redis.from_url(redis_server.url) as client, armed(client, Keys()) as key:
        yield key, client


def ask(sidecar, key, target=PATH, answer="allow", **more):
    return sidecar.ask("GET", target, authorization=credential(key, "probe", answer), **more)


async def test_an_armed_doctor_is_let_through_to_its_own_path_alone(sidecar, redis_server):
    """There it gets an identity that nobody has; everywhere else it is nobody."""
    async with doctor(redis_server) as (key, _):
        admitted = ask(sidecar, key.key)
        assert admitted.status == 200
        for name in IDENTITY:
            assert admitted.header(name) == f"doctor-{name.lower().removeprefix('x-auth-')}"
        for target, status, code in (
            (TEAMS, 401, "token_prefix_missing"),
            (f"{PATH}/below", 404, "route_unknown"),
            ("/mcp", 405, "method_not_allowed"),
            (f"/index.php{PATH}", 404, "route_unknown"),
            (f"/{PATH}", 400, "ambiguous_target"),
        ):
            answer = ask(sidecar, key.key, target, client=address())
            assert (answer.status, answer.json["code"]) == (status, code), target
        seen = await key.sightings()
    assert [s.target for s in seen][:2] == [PATH, TEAMS]
    assert seen[-1].refused == "ambiguous_target"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 503])
async def test_an_armed_doctor_is_refused_as_it_asks(sidecar, redis_server, status):
    """Written as any other refusal of that status."""
    async with doctor(redis_server) as (key, _):
        answer = ask(sidecar, key.key, answer=str(status))
        assert (answer.status, answer.json["code"]) == (status, CODE)
        through_nginx = ask(sidecar, key.key, answer=str(status), proxy="nginx")
        assert through_nginx.header("X-Authz-Status") == str(status)
    assert (answer.header("Retry-After") is not None) == (status in {429, 503})
    assert (answer.header("WWW-Authenticate") is not None) == (status == 401)


async def test_a_doctor_that_is_not_armed_is_a_token_without_its_id(sidecar, redis_server):
    """Before, afterwards, and with another key: nothing is let through or taken down."""
    async with doctor(redis_server) as (key, client):
        assert ask(sidecar, key.key).status == 200
        other = "k" * 43
        assert ask(sidecar, other, client=address()).status == 404
        assert ask(sidecar, other, TEAMS, client=address()).json["code"] == "token_prefix_missing"
        assert not await client.exists(Keys().doctor_sightings(digest(other)))
    assert ask(sidecar, key.key).json["code"] == "route_unknown"
    async with Redis.from_url(redis_server.url) as client:
        assert [name async for name in client.scan_iter("*doctor*")] == []


async def test_the_key_is_in_redis_as_a_digest_and_for_a_minute(sidecar, redis_server):
    """Whoever reads Redis or the log cannot pose as the doctor."""
    async with doctor(redis_server) as (key, client):
        ask(sidecar, key.key, headers={"Cookie": "session=hush", "X-Forwarded-Host": "a.test"})
        assert 0 < await client.ttl(Keys().doctor(digest(key.key))) <= ARMED_S
        assert 0 < await client.ttl(Keys().doctor_sightings(digest(key.key))) <= 2 * ARMED_S
        held = b"".join(await client.lrange(Keys().doctor_sightings(digest(key.key)), 0, -1))
        names = [name async for name in client.scan_iter("*")]
        [seen] = await key.sightings()
    assert key.key.encode() not in held + b"".join(names)
    assert b"hush" not in held
    assert key.key not in sidecar.log
    assert f'"event": "{CODE}"' in sidecar.log or f'"event":"{CODE}"' in sidecar.log
    assert "authorization" in seen.names
    assert "cookie" in seen.names
    assert seen.values("x-forwarded-host") == ["a.test"]


async def test_keys_that_are_not_armed_cost_a_bounded_number_of_trips(sidecar, redis_server):
    """Guessing keys asks Redis at most ten times a second for one address."""
    async with Redis.from_url(redis_server.url) as client:
        client_address = address()

        async def exists() -> int:
            return (await client.info("commandstats")).get("cmdstat_exists", {}).get("calls", 0)

        before = await exists()
        for number in range(60):
            ask(sidecar, f"{number:043}", client=client_address)
        assert 1 <= await exists() - before < 50


async def test_an_ordinary_request_asks_for_no_doctor(sidecar, redis_server):
    """Only a credential of exactly the doctor's shape is looked up."""
    async with Redis.from_url(redis_server.url) as client:
        before = (await client.info("commandstats")).get("cmdstat_exists", {}).get("calls", 0)
        for authorization in (
            None,
            "Bearer 1|secret",
            "Bearer doctor",
            f"Bearer doctor.{'k' * 42}.probe.allow",
            f"Bearer doctor.{'k' * 43}.probe.200",
            f"Bearer doctor.{'k' * 43}.PROBE.allow",
        ):
            sidecar.ask("GET", PATH, authorization=authorization, client=address())
        after = (await client.info("commandstats")).get("cmdstat_exists", {}).get("calls", 0)
    assert before == after


async def test_joined_credentials_are_seen_and_refused(sidecar, redis_server):
    """Envoy makes one line of two; the doctor is told, and not let through."""
    async with doctor(redis_server) as (key, _):
        mine = credential(key.key, "probe", "allow")
        answer = sidecar.ask("GET", PATH, authorization=f"{mine},Bearer 1|x", client=address())
        [seen] = await key.sightings()
    assert answer.status == 404
    assert seen.refused == "authorization_ambiguous"
