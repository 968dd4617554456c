"""A Redis that a neighbour has filled (noeviction): what takes rights away works all the same."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from redis import exceptions
from redis.asyncio import Redis

from authsidecar.decision.model import Limit, Role, TeamId, TokenId, UserId
from authsidecar.store.bulk import Bulk, FencedChanges
from authsidecar.store.changes import Changes
from authsidecar.store.connect import Connection, connected
from authsidecar.store.epoch import Fence, FenceBroken
from authsidecar.store.keys import Keys
from authsidecar.store.registry import Registry
from tests.support import seed
from tests.support.cli import invoke
from tests.support.decisions import READ_ROUTE, Sidecar, sidecar, world
from tests.support.redis import RedisProcess, start_redis
from tests.support.topologies import client, cluster

pytestmark = pytest.mark.any_python

KEYS = Keys()
TEAM, USER, TOKEN = TeamId(3), UserId(7), TokenId(67)
WRITE_ROUTE = ("POST", "/api/v1/projects")
MCP_ROUTE = ("POST", "/mcp")
VALUE = "x" * 100_000
DOCUMENTED = Path("docs/how-to/redis.md").read_text("utf-8")


@dataclass(frozen=True)
class Store:
    """A Redis, alone or as a cluster, that is filled and emptied."""

    url: str
    servers: Sequence[RedisProcess]

    def empty(self) -> None:
        for server in self.servers:
            with client(server) as node:
                node.config_set("maxmemory", 0)
                node.flushall()

    def fill(self) -> None:
        """Let a neighbour write until there is no room, on every server."""
        for server in self.servers:
            with client(server) as node:
                node.config_set("maxmemory-policy", "noeviction")
                node.config_set("maxmemory", node.info("memory")["used_memory"] + 8_000_000)
                with contextlib.suppress(exceptions.OutOfMemoryError):
                    for number in itertools.count():
                        with contextlib.suppress(exceptions.MovedError):
                            node.set(f"neighbour:{number}", VALUE)
                # A connection that is closed, or a buffer that shrinks, makes no room.
                node.config_set("maxmemory", node.info("memory")["used_memory"] - 4_000_000)

    def make_room(self) -> None:
        """Let the neighbour delete all that it wrote."""
        for server in self.servers:
            with client(server) as node:
                for key in node.scan_iter("neighbour:*", count=1000):
                    node.delete(key)
                memory = node.info("memory")
                assert memory["used_memory"] < memory["maxmemory"]


@pytest.fixture(scope="module", params=["alone", "cluster"])
def stores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("full")
    if request.param == "alone":
        server = start_redis(directory)
        yield Store(server.url, [server])
        server.stop()
    else:
        with cluster(directory, replicas=False) as made:
            yield Store(made.url, made.servers)


@pytest.fixture
def store(stores: Store) -> Iterator[Store]:
    stores.empty()
    yield stores
    stores.empty()


@pytest.fixture(scope="module")
def lone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    server = start_redis(tmp_path_factory.mktemp("lone"))
    yield Store(server.url, [server])
    server.stop()


@pytest.fixture
def lone(lone_server: Store) -> Store:
    lone_server.empty()
    return lone_server


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Any]:
    async with connected(Connection(url, data_dir=None)) as made:  # type: ignore[arg-type]
        yield made


async def first_of(process: Sidecar, route: tuple[str, str], *, admitted: int) -> str:
    """The first decision, but for as many admissions as a new counter has room for."""
    answer = await process.decided(67, *route)
    for _ in range(admitted):
        if answer == "allow":
            answer = await process.decided(67, *route)
    return answer


Change = Callable[[Registry], Awaitable[object]]

TAKEN: dict[str, tuple[Change, tuple[str, str], str]] = {
    "token revoked": (lambda r: r.remove_token(TOKEN), READ_ROUTE, "token_unknown"),
    "user removed": (lambda r: r.remove_user(USER), READ_ROUTE, "token_unknown"),
    "team removed": (lambda r: r.remove_team(TEAM), READ_ROUTE, "token_unknown"),
    "member removed": (lambda r: r.remove_member(TEAM, USER), READ_ROUTE, "token_unknown"),
    "role lowered": (
        lambda r: r.set_member(TEAM, USER, Role.MEMBER),
        READ_ROUTE,
        "team_role_required",
    ),
    "permission lowered": (
        lambda r: r.put_tokens([seed.token(67, user=7, team=3)]),
        WRITE_ROUTE,
        "permission_missing",
    ),
    "expiry shortened": (
        lambda r: r.put_tokens([seed.token(67, user=7, team=3, expires_at=int(time.time() * 1e3))]),
        READ_ROUTE,
        "token_expired",
    ),
    "limit lowered": (lambda r: r.set_limit("user", 7, Limit(1)), READ_ROUTE, "rate_limited"),
    "limit of a team lowered": (
        lambda r: r.set_limit("team", 3, Limit(1)),
        READ_ROUTE,
        "rate_limited",
    ),
    "limit of a token lowered": (
        lambda r: r.set_limit("token", 67, Limit(1)),
        READ_ROUTE,
        "rate_limited",
    ),
    "API off": (lambda r: r.set_instance(api_enabled=False), READ_ROUTE, "api_disabled"),
    "allowlist": (
        lambda r: r.set_instance(allowlist="198.51.100.0/24"),
        READ_ROUTE,
        "address_not_allowed",
    ),
    "MCP off": (lambda r: r.set_instance(mcp_enabled=False), MCP_ROUTE, "mcp_disabled"),
    "MCP of a team off": (lambda r: r.set_team_mcp(TEAM, False), MCP_ROUTE, "team_mcp_disabled"),
}


@pytest.mark.parametrize("what", TAKEN)
async def test_what_takes_rights_away_works_on_a_full_redis(store: Store, what: str) -> None:
    """It is done at once, and once there is room again no process goes by what it read before."""
    change, route, expected = TAKEN[what]
    async with opened(store.url) as made, sidecar(store.url, cache_max_age_s=300) as process:
        registry = await world(made)
        assert await process.decided(67, *route) == "allow"
        store.fill()
        assert await process.ask(67, *route) == "store_unavailable", "it fails closed"
        await change(registry)
        assert await process.ask(67, *route) != "allow"
        store.make_room()
        if made.__class__.__name__ == "Cluster":
            await asyncio.sleep(1.1)  # for so long the settings are taken as read
        assert await first_of(process, route, admitted=1 if "limit" in what else 0) == expected


async def test_what_adds_to_a_full_redis_is_refused_and_leaves_nothing(store: Store) -> None:
    """Users, teams and tokens take room that a neighbour may need; those there are written."""
    async with opened(store.url) as made:
        registry = await world(made)
        store.fill()
        new, known = seed.token(99, user=7, team=3), seed.token(67, user=7, team=3)
        for adding in (
            lambda: registry.add_user("u", "u@example.test"),
            lambda: registry.add_team("t"),
            lambda: registry.put_tokens([new, known]),
        ):
            with pytest.raises(exceptions.OutOfMemoryError):
                await adding()
        assert await registry.token(TokenId(99)) is None
        assert await registry.token(TOKEN) == known, "its right to write is gone"
        assert await registry.user_ids() == [USER]


async def test_a_sync_drops_from_a_full_redis(store: Store) -> None:
    """A followed deletion is done in Coolify already: it can't wait for room."""
    async with opened(store.url) as made:
        registry = await world(made)
        await made.set(KEYS.sync_fence, "me")
        bulk = Bulk(made, KEYS, Fence(KEYS.sync_fence, b"me"))
        await bulk.epoch.begin()
        store.fill()
        token, user = await registry.token(TOKEN), await registry.user(USER)
        members, team = await registry.members(TEAM), await registry.team(TEAM)
        await bulk.drop_tokens([token])  # type: ignore[list-item]
        await bulk.drop_members(members)
        await bulk.drop_users([user])  # type: ignore[list-item]
        await bulk.drop_teams([team])  # type: ignore[list-item]
        assert await registry.token(TOKEN) is None
        assert (await registry.members(TEAM), await registry.user_ids()) == ([], [])
        assert await registry.team(TEAM) is None


# A full Redis is watched as any other


async def test_what_was_watched_is_compared_on_a_full_redis(lone: Store) -> None:
    """A key that is deleted between the read and the write starts the change again."""
    async with Redis.from_url(lone.url) as made, Redis.from_url(lone.url) as other:
        await made.set("read", "before")
        changes, reads = Changes(made, KEYS), []
        lone.fill()

        async def change(pipe: Any) -> None:
            reads.append(await pipe.get("read"))
            if len(reads) == 1:
                await other.delete("read")
            pipe.multi()
            pipe.hset("written", "field", len(reads))
            pipe.delete("a", "b")

        await changes.transaction(change, ["read", "never-there"], allow_oom=True)
        assert reads == [b"before", None]
        assert await made.hgetall("written") == {b"field": b"2"}


async def test_a_fence_is_watched_on_a_full_redis(lone: Store) -> None:
    """A writer whose fence goes while it gathers its change writes nothing."""
    async with Redis.from_url(lone.url) as made, Redis.from_url(lone.url) as other:
        await made.set(KEYS.sync_fence, "me")
        changes = FencedChanges(made, KEYS, Fence(KEYS.sync_fence, b"me"))
        lone.fill()

        async def write() -> None:
            async with changes.multi(allow_oom=True) as pipe:
                pipe.set("written", 1)
                await other.delete(KEYS.sync_fence)
                await pipe.execute()

        with pytest.raises(FenceBroken):
            await write()
        assert await made.get("written") is None


async def test_a_change_that_may_not_go_past_the_limit_does_not(lone: Store) -> None:
    """Only who asks for it writes on a full Redis."""
    async with Redis.from_url(lone.url) as made:
        lone.fill()
        async with Changes(made, KEYS).multi() as pipe:
            pipe.set("more", 1)
            with pytest.raises(exceptions.OutOfMemoryError):
                await pipe.execute()


async def test_the_documented_redis_user_may_change_a_full_redis(lone: Store) -> None:
    """The script needs no right that the sidecar had no need of before."""
    async with Redis.from_url(lone.url) as admin:
        await world(admin)
        words = DOCUMENTED.partition("ACL SETUSER ")[2].partition("```")[0].split()
        await admin.execute_command("ACL SETUSER", *words)
        lone.fill()
        async with Redis.from_url(lone.url, username="sidecar", password="choose-one") as made:
            assert await seed.registry(made).remove_user(USER) == 2
        assert await seed.registry(admin).token(TOKEN) is None
        await admin.execute_command("ACL DELUSER", words[0])


# The command line


REVOKING: list[tuple[list[object], str]] = [
    (["token", "revoke", 67], "token 67 revoked\n"),
    (["api", "disable"], "the API is off\n"),
    (["mcp", "disable"], "MCP is off"),
    (["mcp", "disable", "--team", 3], "MCP of team 3 is off"),
    (["allowlist", "set", "192.0.2.0/24", "--my-ip", "192.0.2.7"], "saved:\n192.0.2.0/24\n"),
    (
        ["limit", "set", "--user", 7, "--limit", 1],
        "user 7: 1 requests in 60 s (the configured window)\n",
    ),
    (["limit", "clear", "--user", 7], "user 7: as configured\n"),
    (["member", "set", "--team", 3, "--user", 7, "--role", "member"], "user 7 is member"),
    (["member", "remove", "--team", 3, "--user", 7], "user 7 is out of team 3"),
    (["user", "remove", 7], "user 7 removed"),
    (["team", "remove", 3], "team 3 removed"),
]


@pytest.fixture
def full(lone: Store) -> Store:
    async def made() -> None:
        async with Redis.from_url(lone.url) as there:
            await world(there)

    asyncio.run(made())
    lone.fill()
    return lone


@pytest.mark.parametrize(("words", "said"), REVOKING, ids=lambda value: str(value)[:30])
def test_commands_that_take_rights_away_work_on_a_full_redis(
    full: Store, words: list[object], said: str
) -> None:
    """As on any other."""
    result = invoke(*words, url=full.url)
    assert result.code == 0, result.err
    assert said in result.out


READING = ("--permission", "read", "--expires", "7")


@pytest.mark.parametrize(
    "words",
    [
        ["user", "add", "u", "--email", "u@example.test"],
        ["team", "add", "t"],
        [*("token", "create", "--user", "7", "--team", "3", "--name", "more"), *READING],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_command_that_adds_says_that_redis_is_full(full: Store, words: list[str]) -> None:
    """One line with what to do, exit code 1; nothing is left of it."""
    before = invoke("token", "list", "--json", url=full.url).out
    result = invoke(*words, url=full.url)
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        "authsidecar: Redis is full: it has no room for more (maxmemory); make room or raise "
        "maxmemory, and repeat the command\n"
    )
    assert invoke("token", "list", "--json", url=full.url).out == before


def test_a_full_redis_does_not_keep_a_sidecar_from_starting(full: Store) -> None:
    """What `serve` writes at its first start is there already."""

    async def started() -> bool:
        async with Redis.from_url(full.url) as there:
            return await seed.registry(there).first_start(api_enabled=True)

    assert not asyncio.run(started())
    with redis.Redis.from_url(full.url) as there, pytest.raises(exceptions.OutOfMemoryError):
        there.set("still", "full")
