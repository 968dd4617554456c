"""Another team's uuid in the path is not found at the edge: from Coolify's tables to the answer."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from authsidecar.coolify.owners import DEPLOYMENTS, NEEDS, NEWEST, PARTS, PLACED
from authsidecar.coolify.sync import planned
from authsidecar.decision.authorize import Rules
from authsidecar.decision.model import Limit, Place, ResourceKind, TeamId
from authsidecar.decision.policy import Policy
from authsidecar.decision.routes import coolify
from authsidecar.store import records
from authsidecar.store.connect import Connection, connected
from authsidecar.store.keys import OWNER_BUCKETS, Keys, owner_bucket
from tests.integration.test_sync_live import sidecar as followed
from tests.support import seed
from tests.support.coolify import Coolify, Lines, bearer, contents, follower, state, sync_once
from tests.support.decisions import sidecar, world
from tests.support.topologies import cluster
from tests.support.waiting import until

pytestmark = pytest.mark.any_python

# What matters here of Coolify's own tables: not all columns, and no foreign keys.
TABLES = (
    """
CREATE TABLE servers (id bigserial, uuid varchar(255) NOT NULL UNIQUE, team_id bigint NOT NULL,
  deleted_at timestamp(0));
CREATE TABLE projects (id bigserial, uuid varchar(255) NOT NULL UNIQUE, team_id bigint NOT NULL);
CREATE TABLE environments (id bigserial, uuid varchar(255) UNIQUE,
  name varchar(255) NOT NULL, project_id bigint NOT NULL);
CREATE TABLE application_deployment_queues (id bigserial PRIMARY KEY,
  deployment_uuid varchar(255) NOT NULL UNIQUE, application_id varchar(255) NOT NULL);
"""
    + "".join(
        f"CREATE TABLE {table} (id bigserial, uuid varchar(255) NOT NULL UNIQUE,"
        " environment_id bigint NOT NULL, deleted_at timestamp(0));"
        for table in PLACED
    )
    + "".join(
        f"CREATE TABLE {table} (id bigserial, uuid varchar(255) NOT NULL UNIQUE,"
        " service_id bigint NOT NULL, deleted_at timestamp(0));"
        for table in PARTS
    )
)

# Teams 1 and 3 have a server, a project and one of everything in it; `-1` and `-3` name the team.
ROWS = (
    """
INSERT INTO servers(uuid, team_id) VALUES ('server-1', 1), ('server-3', 3);
INSERT INTO projects(id, uuid, team_id) VALUES (10, 'project-1', 1), (30, 'project-3', 3);
INSERT INTO environments(id, uuid, name, project_id)
  VALUES (100, 'environment-1', 'prod', 10), (300, 'environment-3', 'prod', 30);
INSERT INTO application_deployment_queues(deployment_uuid, application_id)
  VALUES ('deployment-1', '1'), ('deployment-3', '2'), ('deployment-4', '99');
"""
    + "".join(
        f"INSERT INTO {table}(uuid, environment_id) VALUES ('{table}-1', 100), ('{table}-3', 300);"
        for table in PLACED
    )
    + "".join(
        f"INSERT INTO {table}(uuid, service_id) VALUES ('{table}-1', 1), ('{table}-3', 2);"
        for table in PARTS
    )
)

NAMES = ("server", "project", "environment", *PLACED, *PARTS, "deployment")
OWNERS = {f"{name}-{team}": team for name in NAMES for team in (1, 3)} | {
    "project-1/prod": 1,
    "project-3/prod": 3,
}
BELOW = ("environment", *PLACED, *PARTS, "deployment")
"""What lies in an environment."""


def place(name: str, team: int) -> Place:
    """Where one of these lies."""
    if name == "server":
        return Place(TeamId(team), ResourceKind.SERVER)
    if name == "project":
        return Place(TeamId(team), ResourceKind.PROJECT, f"project-{team}")
    kind, within = ResourceKind.ENVIRONMENT, ""
    if name in PLACED:
        kind = PLACED[name]
    elif name in PARTS:
        kind, within = PARTS[name], f"services-{team}"
    elif name == "deployment":
        kind, within = ResourceKind.DEPLOYMENT, f"applications-{team}"
    return Place(TeamId(team), kind, f"project-{team}", f"environment-{team}", "prod", within)


OF_TEAM_1 = 2
OF_TEAM_3 = 27
"""Tokens of coolify-seed.sql, both with `read`."""

PATHS = (
    ("/api/v1/servers/{server}", "Server"),
    ("/api/v1/servers/{server}/domains", "Server"),
    ("/api/v1/projects/{project}", "Project"),
    ("/api/v1/projects/{project}/production", "Project"),
    ("/api/v1/applications/{applications}/envs", "Application"),
    ("/api/v1/deployments/applications/{applications}", "Application"),
    ("/api/v1/services/{services}", "Service"),
    *((f"/api/v1/databases/{{{table}}}", "Database") for table in list(PLACED)[2:]),
)


def path(template: str, team: int) -> str:
    """The path with the uuids of that team's resources."""
    return template.format_map({name: f"{name}-{team}" for name in NAMES})


async def owners(client: Redis) -> dict[str, int]:
    """What Redis says of who owns what."""
    return {uuid: place.team for uuid, place in (await places(client)).items()}


async def places(client: Redis) -> dict[str, Place]:
    """What Redis says of what lies where."""
    found: dict[str, Place] = {}
    for bucket in range(OWNER_BUCKETS):
        held = await client.hgetall(Keys().owners(bucket))
        assert all(owner_bucket(uuid.decode()) == bucket for uuid in held)
        for uuid, text in held.items():
            assert isinstance(text, bytes)
            where = records.place(text)
            assert where is not None
            found[uuid.decode()] = where
    return found


async def own(client: Redis, **teams: int) -> None:
    """Say in Redis who owns what."""
    for uuid, team in teams.items():
        await client.hset(Keys().owners(owner_bucket(uuid)), uuid, team)


@pytest.fixture
async def owned(coolify_db: Coolify) -> AsyncIterator[Coolify]:
    """Coolify's database, with resources of two teams."""
    await coolify_db.run(TABLES)
    await coolify_db.run(ROWS)
    return coolify_db


# ------------------------------------------------------------------------------- following


async def test_every_table_is_followed_to_its_team(owned: Coolify, redis_client: Redis) -> None:
    """Servers and projects name it; all else by its environment, and where it lies is told."""
    await sync_once(owned.dsn, redis_client, owned=True)

    assert await owners(redis_client) == OWNERS
    found = await places(redis_client)
    for team in (1, 3):
        for name in NAMES:
            assert found[f"{name}-{team}"] == place(name, team)
        assert found[f"project-{team}/prod"] == place("environment", team)


async def test_nothing_is_followed_unless_it_is_switched_on(
    owned: Coolify, redis_client: Redis
) -> None:
    """Not one key; and switched off again, the next sync removes them."""
    await sync_once(owned.dsn, redis_client)
    assert not [key for key in await redis_client.keys() if b"owners" in key]

    await sync_once(owned.dsn, redis_client, owned=True)
    kept = await state(redis_client)
    await sync_once(owned.dsn, redis_client)

    assert not [key for key in await redis_client.keys() if b"owners" in key]
    assert await state(redis_client) == kept


CHANGES: tuple[tuple[str, dict[str, int | None]], ...] = (
    ("INSERT INTO servers(uuid, team_id) VALUES ('new', 0)", {"new": 0}),
    ("UPDATE servers SET team_id = 3 WHERE uuid = 'server-1'", {"server-1": 3}),
    ("UPDATE servers SET deleted_at = now() WHERE uuid = 'new'", {"new": None}),
    (
        "UPDATE applications SET environment_id = 300 WHERE uuid = 'applications-1'",
        {"applications-1": 3, "deployment-1": 3},
    ),
    (
        "DELETE FROM services WHERE uuid = 'services-3'",
        {"services-3": None, **{f"{table}-3": None for table in PARTS}},
    ),
    (
        "UPDATE projects SET team_id = 2 WHERE id = 30",
        {uuid: 2 for uuid in OWNERS if "-3" in uuid and uuid != "server-3"}
        | {"services-3": None, **{f"{table}-3": None for table in PARTS}}
        | {"applications-1": 2, "deployment-1": 2},
    ),
    (
        "UPDATE environments SET name = 'live' WHERE id = 100",
        {"project-1/prod": None, "project-1/live": 1},
    ),
    (
        "DELETE FROM environments WHERE id = 100",
        {f"{name}-1": None for name in BELOW if name not in {"applications", "deployment"}}
        | {"project-1/live": None},
    ),
    ("UPDATE servers SET uuid = 'SERVER-3' WHERE uuid = 'server-3'", {"server-3": None}),
    ("DROP TABLE standalone_keydbs", {"standalone_keydbs-3": None}),
)


async def test_each_round_follows_what_has_changed(owned: Coolify, redis_client: Redis) -> None:
    """Created, moved, deleted, renamed; with the same sync, and as a first sync would say."""
    one = follower(owned.dsn, redis_client, owned=True)
    await one.once()
    expected: dict[str, int | None] = dict(OWNERS)
    for statement, change in CHANGES:
        await owned.run(statement)
        await one.once()
        expected |= change
        if "SERVER-3" in statement:
            expected["SERVER-3"] = 3
        known = {uuid: team for uuid, team in expected.items() if team is not None}
        assert await owners(redis_client) == known, statement

    before = await contents(redis_client)
    await sync_once(owned.dsn, redis_client, owned=True)
    after = await contents(redis_client)
    assert {k: v for k, v in after.items() if b"{sync}" not in k} == {
        k: v for k, v in before.items() if b"{sync}" not in k
    }


async def test_a_uuid_of_two_teams_is_nobodys(owned: Coolify, redis_client: Redis) -> None:
    """Unique in its table alone: Coolify would serve each team its own, so both pass."""
    await owned.run("INSERT INTO services(uuid, environment_id) VALUES ('server-1', 300)")
    await owned.run("INSERT INTO standalone_redis(uuid, environment_id) VALUES ('server-3', 300)")

    await sync_once(owned.dsn, redis_client, owned=True)

    found = await owners(redis_client)
    assert "server-1" not in found
    assert found["server-3"] == 3
    assert (await places(redis_client))["server-3"] == Place(TeamId(3))


async def test_only_the_newest_deployments_are_followed(
    owned: Coolify, redis_client: Redis
) -> None:
    """Coolify keeps them all: a round must not cost more each day."""
    await owned.run(
        f"INSERT INTO {DEPLOYMENTS}(deployment_uuid, application_id) "
        f"SELECT 'more-' || i, '1' FROM generate_series(1, {NEWEST - 1}) i"
    )
    one = follower(owned.dsn, redis_client, owned=True)
    await one.once()
    found = await places(redis_client)
    assert sum(where.kind is ResourceKind.DEPLOYMENT for where in found.values()) == NEWEST - 1
    assert not {"deployment-1", "deployment-3"} & found.keys()


async def test_a_move_within_a_team_changes_the_place(owned: Coolify, redis_client: Redis) -> None:
    """Of all that lies below it too, within one round."""
    one = follower(owned.dsn, redis_client, owned=True)
    await one.once()
    await owned.run(
        "INSERT INTO projects(id, uuid, team_id) VALUES (11, 'project-9', 1);"
        "INSERT INTO environments(id, uuid, name, project_id) VALUES (110, 'new', 'a b/ü', 11);"
        "UPDATE services SET environment_id = 110 WHERE uuid = 'services-1'"
    )
    await one.once()
    found = await places(redis_client)
    assert found["services-1"] == Place(
        TeamId(1), ResourceKind.SERVICE, "project-9", "new", "a b/ü"
    )
    assert found["service_databases-1"].environment == "new"
    assert found["project-9/a b/ü"] == found["new"]


async def test_an_older_coolify_has_environments_without_a_uuid(
    owned: Coolify, redis_client: Redis
) -> None:
    """They are found by their names; whose everything is stays known."""
    await owned.run("ALTER TABLE environments DROP COLUMN uuid; DROP TABLE service_databases")
    lines = Lines()
    await follower(owned.dsn, redis_client, lines, owned=True).once()
    found = await places(redis_client)
    assert found["project-1/prod"] == Place(
        TeamId(1), ResourceKind.ENVIRONMENT, "project-1", "", "prod"
    )
    assert found["applications-1"].environment_name == "prod"
    missing = lines.all("sync_owners_incomplete")[0]["missing"]
    assert missing == ["environments.uuid", "service_databases"]


async def test_what_cannot_be_read_is_told_once_and_the_rest_followed(
    owned: Coolify, redis_client: Redis
) -> None:
    """An older Coolify has no ClickHouse, say; the tokens are followed all the same."""
    await owned.run("DROP TABLE standalone_clickhouses; ALTER TABLE services DROP COLUMN uuid")
    lines = Lines()
    one = follower(owned.dsn, redis_client, lines, owned=True)
    await one.once()
    await owned.run("UPDATE servers SET team_id = 2")
    await one.once()

    told = lines.all("sync_owners_incomplete")
    assert [line["missing"] for line in told] == [["services.uuid", "standalone_clickhouses"]]
    left = {"standalone_clickhouses", "services", *PARTS}
    assert set(await owners(redis_client)) == {
        u for u in OWNERS if u.rpartition("-")[0] not in left
    }
    assert (await state(redis_client))["tokens"]


async def test_a_coolify_without_any_of_the_tables_is_followed(
    coolify_db: Coolify, redis_client: Redis
) -> None:
    """Nothing of it is needed to decide."""
    lines = Lines()
    await follower(coolify_db.dsn, redis_client, lines, owned=True).once()

    assert await owners(redis_client) == {}
    assert set(lines.all("sync_owners_incomplete")[0]["missing"]) == set(NEEDS)
    assert (await state(redis_client))["tokens"]


async def test_a_dry_run_names_owners(owned: Coolify, redis_client: Redis) -> None:
    """As every other change, and writes nothing."""
    options = follower(owned.dsn, redis_client, owned=True)._options

    texts = [c.text async for c in planned(options, redis_client, Keys()) if c.entity == "owner"]

    assert "of 'server-1': team 1, server" in texts
    assert len(texts) == len(OWNERS)
    assert await redis_client.dbsize() == 0


async def test_the_role_of_the_documentation_reads_all_owners(
    owned: Coolify, redis_client: Redis
) -> None:
    """With both blocks of docs/how-to/coolify.md, and no secret column among them."""
    text = (Path(__file__).parents[2] / "docs/how-to/coolify.md").read_text()
    blocks = [part.split("```", 1)[0] for part in text.split("```sql\n")[1:]]
    assert len(blocks) == 2
    await owned.run("DROP ROLE IF EXISTS authsidecar")
    await owned.run(blocks[0].replace("DATABASE coolify", f"DATABASE {owned.name}"))
    port = urlsplit(owned.dsn).port
    dsn = f"postgresql://authsidecar:choose-one@127.0.0.1:{port}/{owned.name}"
    lines = Lines()
    try:
        one = follower(dsn, redis_client, lines, owned=True)
        await one.once()
        assert await owners(redis_client) == {}
        await owned.run(blocks[1])
        await one.once()
    finally:
        await owned.run("DROP OWNED BY authsidecar")
        await owned.run("DROP ROLE authsidecar")

    assert [set(line["missing"]) for line in lines.all("sync_owners_incomplete")] == [
        set(NEEDS),
        set(),
    ]
    assert await owners(redis_client) == OWNERS


async def test_thousands_of_owners_stay_compact(owned: Coolify, redis_client: Redis) -> None:
    """Every hash is one compact block: a third of what a key for each would take."""
    await owned.run(
        "INSERT INTO servers(uuid, team_id) SELECT left(md5(i::text), 24), 1 "
        "FROM generate_series(1, 10000) i"
    )
    await sync_once(owned.dsn, redis_client, owned=True)

    assert len(await owners(redis_client)) == 10_000 + len(OWNERS)
    names = [Keys().owners(bucket) for bucket in range(OWNER_BUCKETS)]
    assert {await redis_client.object("ENCODING", name) for name in names} == {b"listpack"}
    assert sum([await redis_client.memory_usage(name) for name in names]) < 50 * 10_000


# --------------------------------------------------------------------------------- deciding


async def test_another_teams_resource_is_not_found_by_http(
    owned: Coolify, redis_url: str, tmp_path: Path
) -> None:
    """Each noun, its own team and another; a uuid that nobody has, and one that is new."""
    with followed(tmp_path, redis_url, owned.dsn, SYNC__TEAM_ISOLATION="true") as process:
        for template, noun in PATHS:
            for token, mine, theirs in ((OF_TEAM_1, 1, 3), (OF_TEAM_3, 3, 1)):
                for method in ("GET", "HEAD"):
                    answer = process.ask(method, path(template, mine), authorization=bearer(token))
                    assert answer.status == 200, (template, answer.body)
                answer = process.ask("GET", path(template, theirs), authorization=bearer(token))
                assert answer.status == 404, template
                assert answer.json["code"] == "resource_not_found"
                assert answer.json["message"] == f"{noun} not found."
                assert "docs" not in answer.json
                assert answer.header("X-RateLimit-Remaining") is not None
        nobodys = process.ask("GET", "/api/v1/servers/nobodys", authorization=bearer(OF_TEAM_1))
        nginx = process.ask(
            "GET", "/api/v1/servers/server-3", authorization=bearer(OF_TEAM_1), proxy="nginx"
        )
        assert nobodys.status == 200
        assert (nginx.status, nginx.header("X-Authz-Status")) == (403, "404")


async def test_a_move_is_felt_within_a_round_and_the_age_of_the_cache(
    owned: Coolify, redis_url: str, tmp_path: Path
) -> None:
    """By the team that it leaves, and by the one that it comes to."""

    def status(token: int) -> int:
        answer = process.ask("GET", "/api/v1/servers/server-1", authorization=bearer(token))
        return answer.status

    with followed(
        tmp_path,
        redis_url,
        owned.dsn,
        SYNC__TEAM_ISOLATION="true",
        SYNC__INTERVAL_SECONDS="0.1",
        REDIS__CACHE_MAX_AGE_SECONDS="0.2",
    ) as process:
        assert (status(OF_TEAM_1), status(OF_TEAM_3)) == (200, 404)
        await owned.run("UPDATE servers SET team_id = 3 WHERE uuid = 'server-1'")
        seconds = until(lambda: (status(OF_TEAM_1), status(OF_TEAM_3)) == (404, 200), "the move")

    assert seconds < 2


ON = Rules(Policy(coolify("4.3"), team_isolation=True), {"user": Limit(200)})
OFF = Rules(Policy(coolify("4.3")), {"user": Limit(200)})
OURS, THEIRS = ("GET", "/api/v1/servers/ours"), ("GET", "/api/v1/servers/theirs")
NEW = ("GET", "/api/v1/servers/new")


@pytest.fixture
async def redis_world(redis_client: Redis) -> Redis:
    """Token 67 of team 3; a server of that team and one of another."""
    await world(redis_client)
    await own(redis_client, ours=3, theirs=9)
    return redis_client


async def test_a_warm_request_costs_one_trip(redis_world: Redis, redis_url: str) -> None:
    """The first one of a uuid reads whose it is, once for however many; then it is the charge."""
    async with sidecar(redis_url) as one:
        assert await one.ask(67, *OURS, rules=ON) == "allow"
        assert one.trips == ["instance", "token", "charge", "owner"]
        for route, expected in ((THEIRS, "resource_not_found"), (NEW, "allow")):
            one.trips.clear()
            assert await one.ask(67, *route, rules=ON) == expected
            assert one.trips == ["charge", "owner"]
        for route, expected in ((OURS, "allow"), (THEIRS, "resource_not_found"), (NEW, "allow")):
            one.trips.clear()
            assert await one.ask(67, *route, rules=ON) == expected
            assert one.trips == ["charge"]


async def test_a_uuid_of_any_script_is_looked_up(redis_world: Redis, redis_url: str) -> None:
    """What a path may hold may be asked about: nobody's, or another team's."""
    await own(redis_world, **{"日本#1": 9})
    async with sidecar(redis_url) as one:
        for path, expected in (("日本#1", "resource_not_found"), ("prüfung", "allow")):
            assert await one.ask(67, "GET", f"/api/v1/servers/{path}", rules=ON) == expected


async def test_off_it_costs_nothing(redis_world: Redis, redis_url: str) -> None:
    """Not a trip, and nothing is refused."""
    async with sidecar(redis_url) as one:
        for _ in range(2):
            assert await one.ask(67, *THEIRS, rules=OFF) == "allow"
        assert "owner" not in one.trips


@pytest.mark.parametrize(
    ("who", "route", "expected"),
    [
        (68, ("PATCH", "/api/v1/servers/theirs"), "permission_missing"),
        (999, THEIRS, "token_unknown"),
        (None, THEIRS, "token_missing"),
        (67, ("GET", "/api/v1/teams"), "allow"),
    ],
)
async def test_only_what_everything_else_lets_in_is_looked_up(
    redis_world: Redis, redis_url: str, who: Any, route: tuple[str, str], expected: str
) -> None:
    """The last check: what is refused anyway, or names nothing, costs no look-up."""
    async with sidecar(redis_url) as one:
        assert await one.ask(who, *route, rules=ON) == expected
        assert "owner" not in one.trips


async def test_past_its_limit_nobody_costs_a_look_up(redis_world: Redis, redis_url: str) -> None:
    """New uuids are no way around the refusals that a process answers by itself."""
    await seed.registry(redis_world).set_limit("user", 7, Limit(1, 3_600_000))
    async with sidecar(redis_url) as one:
        assert await one.ask(67, *THEIRS, rules=ON) == "resource_not_found"
        one.trips.clear()
        for number in range(5):
            assert await one.ask(67, "GET", f"/api/v1/servers/{number}", rules=ON) == "rate_limited"
        assert set(one.trips) <= {"charge"}


async def test_a_refused_request_is_counted(redis_world: Redis, redis_url: str) -> None:
    """Nobody may try uuids for free."""
    async with sidecar(redis_url) as one:
        left = [(await one.outcome(67, *THEIRS, rules=ON)).quotas[0].remaining for _ in range(3)]
        assert left == [199, 198, 197]


async def test_what_is_kept_is_bounded_in_number_and_in_age(
    redis_world: Redis, redis_url: str
) -> None:
    """A guesser of uuids fills no memory; with an age of 0 every request reads again."""
    async with sidecar(redis_url, cache_records=3) as one:
        for number in range(10):
            assert await one.ask(67, "GET", f"/api/v1/servers/{number}", rules=ON) == "allow"
        assert len(one.store._places) == 3
    async with sidecar(redis_url, cache_max_age_s=0.0) as one:
        assert await one.ask(67, *THEIRS, rules=ON) == "resource_not_found"
        await own(redis_world, theirs=3)
        assert await one.ask(67, *THEIRS, rules=ON) == "allow"


async def test_letter_case_tells_uuids_apart(redis_world: Redis, redis_url: str) -> None:
    """As Coolify's columns do."""
    async with sidecar(redis_url) as one:
        assert await one.ask(67, "GET", "/api/v1/servers/THEIRS", rules=ON) == "allow"


async def test_a_cluster_follows_and_decides_alike(owned: Coolify, tmp_path: Path) -> None:
    """The hashes lie in slots of every node."""
    with cluster(tmp_path) as servers:
        async with connected(Connection(servers.url, data_dir=tmp_path)) as client:
            one = follower(owned.dsn, client, owned=True)
            await one.once()
            assert await owners(client) == OWNERS
            await owned.run("DELETE FROM services WHERE uuid = 'services-3'")
            await one.once()
            assert "services-3" not in await owners(client)
            await world(client)
            await own(client, ours=3, theirs=9)
        async with sidecar(servers.url) as asked:
            assert await asked.ask(67, *THEIRS, rules=ON) == "resource_not_found"
            assert await asked.ask(67, *OURS, rules=ON) == "allow"
