"""A token is told about itself: the facts, at no cost to its limits, and nothing to others."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from authsidecar.decision.authorize import Rules
from authsidecar.decision.model import Limit, TokenId, UserId
from authsidecar.decision.policy import Policy
from authsidecar.decision.proxies.replies import EXPOSED
from authsidecar.decision.restrictions import parse
from authsidecar.decision.routes import coolify
from authsidecar.decision.whoami import Facts, whoami
from authsidecar.store.keys import Keys
from tests.support import seed
from tests.support.decisions import Sidecar, code, request, sidecar, world
from tests.support.redis import RedisProcess, start_redis
from tests.support.sidecar import Answer, SidecarProcess, start_sidecar
from tests.support.topologies import cluster
from tests.support.wire import ask, subrequest
from tests.support.world import (
    EXPIRED,
    READ,
    ROOT_OF_LONER,
    ROOT_OF_MEMBER,
    World,
    address,
    populate,
    world_of,
)

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs/reference/whoami.schema.json").read_text("utf-8")
)
VALID = jsonschema.Draft202012Validator(
    SCHEMA, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
)
RULES = Rules(
    Policy(coolify("4.3")),
    {"user": Limit(200), "team": Limit(500), "failed": Limit(30), "whoami": Limit(3)},
)


async def facts(one: Sidecar, token: int, rules: Rules = RULES, **more: Any) -> Facts:
    outcome, found = await whoami(request(token, **more), rules, one.store)
    assert code(outcome) == "allow", outcome
    VALID.validate(json.loads(json.dumps(found)))
    return found


async def test_limits_are_read_and_not_charged_in_one_trip(
    redis_client: Redis, redis_url: str
) -> None:
    """What is left is what the requests before have left, however often it is asked."""
    registry = await world(redis_client)
    narrowed = parse({"rate": "10/1h", "uses": 5, "permissions": ["read"], "note": "of the CI"})
    await registry.set_restriction("token", 67, narrowed)
    async with sidecar(redis_url) as one:
        assert await one.ask(67, rules=RULES) == "allow"
        await facts(one, 67)
        one.trips.clear()
        found = await facts(one, 67)
        assert one.trips == ["charge"]
        left = {limit["name"]: limit["remaining"] for limit in found["limits"]}  # type: ignore[attr-defined]
        assert left == {"user": 199, "team": 499, "restriction": 9, "uses": 4}
        assert found["restrictions"] == {
            "token": {"rate": "10/3600s", "uses": 5, "permissions": ["read"]}
        }
        assert (found["permissions"], found["effective_permissions"]) == (
            ["read", "write"],
            ["read"],
        )
        assert (await one.outcome(67, rules=RULES)).quotas[0].remaining == 198


async def test_its_own_bucket_is_by_address_and_admits_no_more(
    redis_client: Redis, redis_url: str
) -> None:
    """The fourth of three is refused, from that address alone; the token goes on."""
    await world(redis_client)
    async with sidecar(redis_url) as one:
        asked = [await whoami(request(67), RULES, one.store) for _ in range(4)]
        assert [code(outcome) for outcome, _ in asked] == ["allow"] * 3 + ["rate_limited"]
        assert [quota.scope for quota in asked[3][0].quotas] == ["whoami"]
        assert asked[3][1] == {}
        await facts(one, 67, client="192.0.2.2")
        assert await one.ask(67) == "allow"


async def test_a_change_is_seen_by_the_very_next_answer(
    redis_client: Redis, redis_url: str
) -> None:
    """Restricted, switched off, listed, revoked."""
    registry = await world(redis_client)
    rules = Rules(Policy(coolify("4.3")), {"user": Limit(200)})
    async with sidecar(redis_url) as one:
        assert (await facts(one, 67, rules))["refused_with"] is None
        await registry.set_restriction("user", 7, parse({"from": ["198.51.100.0/24"]}))
        found = await facts(one, 67, rules)
        assert (found["refused_with"], found["address_allowed"]) == ("token_restricted", False)
        await registry.set_restriction("user", 7, None)
        await registry.set_instance(allowlist="203.0.113.9")
        found = await facts(one, 67, rules)
        assert (found["refused_with"], found["address_allowed"]) == ("address_not_allowed", False)
        await registry.set_instance(api_enabled=False)
        found = await facts(one, 67, rules)
        assert (found["refused_with"], found["api_enabled"]) == ("api_disabled", False)
        await registry.remove_token(TokenId(67))
        outcome, found = await whoami(request(67), rules, one.store)
        assert (code(outcome), found) == ("token_unknown", {})


async def test_a_spent_budget_and_a_damaged_restriction_are_told(
    redis_client: Redis, redis_url: str
) -> None:
    """Both refuse whatever the token asks."""
    registry = await world(redis_client)
    await registry.set_restriction("token", 67, parse({"uses": 1}))
    async with sidecar(redis_url) as one:
        assert (await facts(one, 67))["refused_with"] is None
        assert await one.ask(67) == "allow"
        found = await facts(one, 67)
        assert found["refused_with"] == "token_restricted"
        [uses] = [one for one in found["limits"] if one["name"] == "uses"]  # type: ignore[attr-defined]
        assert (uses["remaining"], uses["window_seconds"], uses["resets_at"]) == (0, None, None)
        await redis_client.hset(Keys().token(TokenId(68)), "restriction", "{")
        await redis_client.set(Keys().user_nonce(UserId(7)), "another")
        found = await facts(one, 68)
        assert found["refused_with"] == "token_restricted"
        assert found["restrictions"] == {"token": {"routes": []}}


async def test_a_cluster_tells_every_limit(tmp_path: Path) -> None:
    """Counters of user and team are in other slots, a full one among them."""
    with cluster(tmp_path) as nodes:
        async with sidecar(nodes.url) as one:
            registry = await world(one.store._client)
            await registry.set_limit("user", 7, Limit(1, 3_600_000))
            assert await one.ask(67, rules=RULES) == "allow"
            assert await one.ask(67, rules=RULES) == "rate_limited"
            found = await facts(one, 67)
            left = {limit["name"]: limit["remaining"] for limit in found["limits"]}  # type: ignore[attr-defined]
            assert left["user"] == 0
            assert set(left) == {"user", "team"}


# Over HTTP, on both servers


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = start_redis(tmp_path_factory.mktemp("redis"))
    populate(server)
    yield server
    server.stop()


@pytest.fixture(scope="module", params=["fast", "aiohttp"])
def process(
    server: RedisProcess, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[SidecarProcess]:
    with SyncRedis.from_url(server.url) as client:
        for key in client.scan_iter("authsidecar:rate:*"):
            client.delete(key)
    process = start_sidecar(
        tmp_path_factory.mktemp("sidecar"),
        server.url,
        LISTEN__SERVER=request.param,
        ENFORCEMENT="report",
    )
    yield process
    assert process.stop() == 0
    assert "Traceback" not in process.log
    assert '"defect"' not in process.log


@pytest.fixture
async def served(process: SidecarProcess, server: RedisProcess) -> AsyncIterator[World]:
    async with world_of(process, server) as world:
        yield world


async def asked(
    world: World,
    token: int | None,
    *headers: tuple[str, str],
    method: str = "GET",
    authorization: str | None = None,
    client: str | None = None,
) -> Answer:
    if token is not None:
        authorization = seed.bearer(token)
    sent = subrequest(
        None,
        None,
        authorization=authorization,
        client=client or address(),
        headers=headers,
        line=f"{method} /authz/whoami HTTP/1.1",
    )
    [answer] = await ask(world.sidecar.port, sent)
    return answer


async def test_a_good_token_is_told(served: World) -> None:
    """One line of JSON that a browser's script may read, without a secret or an identity."""
    answer = await asked(served, READ)
    assert answer.status == 200
    VALID.validate(answer.json)
    assert (answer.json["id"], answer.json["name"], answer.json["user"]) == (
        READ,
        f"token {READ}",
        1,
    )
    assert answer.header("Content-Type") == "application/json"
    assert answer.header("Access-Control-Allow-Origin") == "*"
    assert answer.header("Access-Control-Expose-Headers") == ", ".join(EXPOSED)
    assert answer.header("Cache-Control") == "no-store"
    assert answer.header("RateLimit-Policy") == '"whoami";q=60;w=60'
    assert not [name for name, _ in answer.headers if name.lower().startswith("x-auth")]
    assert seed.secret_of(READ).encode() not in answer.body


async def test_a_token_that_every_route_refuses_is_told_why(served: World) -> None:
    """A member with root."""
    assert (await asked(served, ROOT_OF_MEMBER)).json["refused_with"] == "team_role_required"


@pytest.mark.parametrize(
    ("token", "authorization", "expected"),
    [
        (None, None, "token_missing"),
        (None, "Bearer 10|wrong", "token_unknown"),
        (None, "Bearer 999|wrong", "token_unknown"),
        (None, "Bearer secret", "token_prefix_missing"),
        (EXPIRED, None, "token_expired"),
        (ROOT_OF_LONER, None, "not_team_member"),
    ],
)
async def test_others_are_told_nothing(
    served: World, token: int | None, authorization: str | None, expected: str
) -> None:
    """401 as ever, though `enforcement: report` lets all others through."""
    answer = await asked(served, token, authorization=authorization)
    assert (answer.status, answer.json["code"]) == (401, expected)
    assert set(answer.json) == {"message", "code", "decision_id"}


async def test_bad_tokens_are_counted_with_all_other_failures(served: World) -> None:
    """Thirty a minute and address, here and on every other route together."""
    client = address()
    statuses = [
        (await asked(served, None, authorization="Bearer 10|wrong", client=client)).status
        for _ in range(31)
    ]
    assert statuses == [401] * 30 + [429]


async def test_head_post_and_a_preflight(served: World) -> None:
    """As HTTP and the Fetch standard have it."""
    answer = await asked(served, READ, method="POST")
    assert (answer.status, answer.header("Allow")) == (405, "GET, HEAD")
    origin = ("Origin", "https://app.test"), ("Access-Control-Request-Method", "GET")
    answer = await asked(served, None, *origin, method="OPTIONS")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.header("Access-Control-Allow-Origin") == "*"
    assert answer.header("Access-Control-Allow-Methods") == "GET, HEAD"
    assert answer.header("Access-Control-Allow-Headers") == "Authorization, *"
