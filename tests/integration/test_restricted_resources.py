"""A token that is restricted to resources: from Coolify's tables to the answer, and its cost."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from authsidecar.decision.model import Place, ResourceKind, TeamId, TokenId
from authsidecar.decision.restrictions import parse
from authsidecar.store import records
from authsidecar.store.keys import Keys, owner_bucket
from authsidecar.store.registry import Registry
from tests.integration.test_sync_live import sidecar as followed
from tests.integration.test_team_isolation import OF_TEAM_1, ROWS, TABLES, places
from tests.property.test_restricted_resources import Node, World, grown
from tests.support import seed
from tests.support.coolify import Coolify, bearer
from tests.support.coolify import follower as following
from tests.support.decisions import sidecar, world
from tests.support.sidecar import start_sidecar
from tests.support.topologies import cluster
from tests.support.waiting import until

APP = ("GET", "/api/v1/applications/app")
OTHER = ("GET", "/api/v1/applications/other")
IN_P = Place(TeamId(3), ResourceKind.APPLICATION, "p", "e1", "prod")
IN_Q = Place(TeamId(3), ResourceKind.APPLICATION, "q", "e2", "prod")


async def put(client: Redis, **places: Place | str | None) -> None:
    """Say in Redis where something lies, as the sync does, or write any text there."""
    for key, place in places.items():
        name = Keys().owners(owner_bucket(key))
        if place is None:
            await client.hdel(name, key)
        else:
            text = place if isinstance(place, str) else records.write_place(place)
            await client.hset(name, key, text)


@pytest.fixture
async def registry(redis_client: Redis) -> Registry:
    """Token 67 (read, write) of team 3 may name what lies in project p: `app`, not `other`."""
    registry = await world(redis_client)
    await put(redis_client, app=IN_P, other=IN_Q)
    await registry.set_restriction("token", 67, parse({"projects": ["p"]}))
    return registry


async def test_a_warm_request_costs_one_trip(registry: Registry, redis_url: str) -> None:
    """The charge proves where the resource lies; another token's request costs no look-up."""
    async with sidecar(redis_url) as one:
        assert await one.ask(67, *APP) == "allow"
        assert one.trips == ["instance", "token", "owner", "charge"]
        for who, route, expected in (
            (67, APP, "allow"),
            (67, OTHER, "resource_not_found"),
            (67, OTHER, "resource_not_found"),
        ):
            one.trips.clear()
            assert await one.ask(who, *route) == expected
        assert one.trips == ["charge"]
        one.trips.clear()
        assert await one.ask(68, *OTHER) == "allow"
        assert "owner" not in one.trips


async def test_a_move_is_seen_by_the_next_request(
    registry: Registry, redis_client: Redis, redis_url: str
) -> None:
    """Of every process, in both directions, however warm; and so is what is new or gone."""
    async with sidecar(redis_url) as one, sidecar(redis_url) as other:

        async def asked() -> list[str]:
            return [await process.ask(67, *APP) for process in (one, other) for _ in range(2)]

        assert await asked() == ["allow"] * 4
        for place, expected in (
            (IN_Q, "resource_not_found"),
            (IN_P, "allow"),
            (None, "token_restricted"),
            (IN_P, "allow"),
            ("3 application q", "resource_not_found"),
        ):
            await put(redis_client, app=place)
            assert await asked() == [expected] * 4, place


@pytest.mark.parametrize(
    "text",
    ["3", "3 planet p", "application p", "3  p", "x application p", "3 application p a b c d"],
)
async def test_a_place_that_cannot_be_read_admits_nobody(
    registry: Registry, redis_client: Redis, redis_url: str, text: str
) -> None:
    """What is damaged lies nowhere."""
    await put(redis_client, app=text)
    async with sidecar(redis_url) as one:
        for _ in range(2):
            assert await one.ask(67, *APP) == "token_restricted"


async def test_a_damaged_restriction_admits_nobody(
    registry: Registry, redis_client: Redis, redis_url: str
) -> None:
    """Neither what lay inside, nor a collection."""
    for text in (
        '{"projects": ["p"]',
        '{"projects": "p"}',
        '{"projects": ["p"], "planets": ["x"]}',
    ):
        await redis_client.hset(Keys().token(TokenId(67)), "restriction", text)
        async with sidecar(redis_url) as one:
            assert await one.ask(67, *APP) == "token_restricted"
            assert await one.ask(67) == "token_restricted"


async def test_only_admitted_requests_cost_a_use(registry: Registry, redis_url: str) -> None:
    """What lies outside, is unclear or has a body costs none."""
    await registry.set_restriction("token", 67, parse({"projects": ["p"], "uses": 2}))
    async with sidecar(redis_url) as one:
        for route, more, expected in (
            (OTHER, {}, "resource_not_found"),
            (("GET", f"{APP[1]}?uuid=other"), {}, "token_restricted"),
            (APP, {"body": True}, "token_restricted"),
            (APP, {}, "allow"),
            (("GET", "/api/v1/applications"), {}, "token_restricted"),
            (APP, {}, "allow"),
            (OTHER, {}, "resource_not_found"),
            (APP, {}, "token_restricted"),
        ):
            assert await one.ask(67, *route, **more) == expected


async def test_hours_and_places_are_looked_at_together(registry: Registry, redis_url: str) -> None:
    """Outside its time it refuses what lies inside."""
    for until_, expected in (
        ("2020-01-01T00:00:00Z", "token_restricted"),
        ("2099-01-01T00:00:00Z", "allow"),
    ):
        await registry.set_restriction("token", 67, parse({"projects": ["p"], "until": until_}))
        async with sidecar(redis_url) as one:
            assert await one.ask(67, *APP) == expected
            assert await one.ask(67, *OTHER) == (
                "token_restricted" if expected != "allow" else "resource_not_found"
            )


async def test_a_cluster_reads_it_for_each_request(tmp_path: Path) -> None:
    """There the places are in other slots than what is charged: a trip more, and as exact."""
    with cluster(tmp_path) as servers:
        async with sidecar(servers.url) as one:
            client = one.store._client
            registry = await world(client)
            await put(client, app=IN_P)
            await registry.set_restriction("token", 67, parse({"projects": ["p"]}))
            assert await one.ask(67, *APP) == "allow"
            await put(client, app=IN_Q)
            assert await one.ask(67, *APP) == "resource_not_found"


async def test_a_move_in_coolify_is_seen_within_a_round(
    coolify_db: Coolify, redis_url: str, redis_client: Redis, tmp_path: Path
) -> None:
    """Through the sync, over HTTP; the headers of every proxy's subrequest tell of a body."""
    await coolify_db.run(TABLES)
    await coolify_db.run(ROWS)
    registry = seed.registry(redis_client)
    with followed(
        tmp_path,
        redis_url,
        coolify_db.dsn,
        SYNC__RESOURCES="true",
        SYNC__INTERVAL_SECONDS="0.1",
    ) as process:
        await registry.set_restriction(
            "token", OF_TEAM_1, parse({"environments": ["project-1/prod"]})
        )

        def ask(path: str = "/api/v1/applications/applications-1", **headers: str):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return process.ask("GET", path, authorization=bearer(OF_TEAM_1), headers=named)

        assert ask().status == 200
        assert ask("/api/v1/services/services-1/databases/service_databases-1").status == 200
        assert ask("/api/v1/projects/project-1/prod").status == 200
        refused = ask(Content_Type="application/json; charset=utf-8")
        assert (refused.status, refused.json["code"]) == (403, "token_restricted")
        assert "without a body" in refused.json["detail"]
        assert ask(Content_Type="text/plain").status == 200
        await coolify_db.run(
            "INSERT INTO environments(id, uuid, name, project_id) VALUES (101, 'e', 'dev', 10);"
            "UPDATE applications SET environment_id = 101 WHERE uuid = 'applications-1'"
        )
        seconds = until(lambda: ask().status == 404, "the move")
        assert ask().json["message"] == "Application not found."

    assert seconds < 2


TABLE_OF = {
    "application": "applications(id, uuid, environment_id)",
    "database": "standalone_redis(id, uuid, environment_id)",
    "service": "services(id, uuid, environment_id)",
    "service-application": "service_applications(id, uuid, service_id)",
    "service-database": "service_databases(id, uuid, service_id)",
    "deployment": "application_deployment_queues(id, deployment_uuid, application_id)",
}
"""Where a node of a model's tree stands, with what is around it by its id."""


def rows(nodes: list[Node], team: int) -> Iterator[str]:
    """A model's tree as Coolify's tables have it."""
    ids = {node: 1000 * team + number for number, node in enumerate(nodes)}
    for node, number in ids.items():
        above = ids.get(node.above) if node.above is not None else None
        match node.kind:
            case "project" | "server":
                into, values = f"{node.kind}s(id, uuid, team_id)", f"'{node.uuid}', {team}"
            case "environment":
                into = "environments(id, uuid, name, project_id)"
                values = f"'{node.uuid}', '{node.name}', {above}"
            case kind:
                into, values = TABLE_OF[kind], f"'{node.uuid}', {above}"
        yield f"INSERT INTO {into} VALUES ({number}, {values});"


async def test_what_the_sync_says_of_random_trees_is_what_the_model_says(
    coolify_db: Coolify, redis_client: Redis
) -> None:
    """Of two teams with environments of the same names: each tree in the place of the one before.

    tests/property/test_restricted_resources.py judges by such trees.
    """
    await coolify_db.run(TABLES)
    follower = following(coolify_db.dsn, redis_client, owned=True)
    tables = ["servers", "projects", "environments", *(t.split("(")[0] for t in TABLE_OF.values())]
    seen = set()
    for tree in range(6):
        expected = {}
        await coolify_db.run("".join(f"DELETE FROM {table};" for table in tables))
        for team in (1, 3):
            nodes = grown(random.Random(f"{tree} of {team}")).nodes
            for node in nodes:
                node.uuid = f"{team}-{node.uuid}"
            world = World(nodes)
            await coolify_db.run("".join(rows(nodes, team)))
            for key, place in world.places.items():
                expected[key] = place._replace(team=TeamId(team))
                seen.add((team, place.kind))
        await follower.once()
        assert await places(redis_client) == expected
    assert len(seen) == 2 * len(ResourceKind)


async def test_what_is_remembered_of_a_request_is_proven_too(
    registry: Registry, redis_client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """The same bytes again and again, and the resource moves between two of them."""
    await registry.set_instance(api_enabled=True)
    process = start_sidecar(tmp_path, redis_url)
    try:

        def statuses() -> list[int]:
            asked = [process.ask(*APP, authorization=seed.bearer(67)) for _ in range(4)]
            return [answer.status for answer in asked]

        for place, status in ((IN_P, 200), (IN_Q, 404), (IN_P, 200), (None, 403), (IN_P, 200)):
            await put(redis_client, app=place)
            assert statuses() == [status] * 4, place
    finally:
        process.stop()
