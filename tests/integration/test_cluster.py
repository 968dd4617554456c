"""Redis Cluster: three primaries with replicas, real servers, one of them killed."""

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio.cluster import ClusterNode

from authsidecar.admin.state_export import export_state
from authsidecar.admin.state_import import StateReport, import_state
from authsidecar.decision.model import Limit, Role, TeamId, TokenId, UserId
from authsidecar.decision.ratelimit.charges import Charge
from authsidecar.store.calls import Part
from authsidecar.store.cluster import Cluster, Steps, slot_of
from authsidecar.store.cluster_calls import ClusterCalls
from authsidecar.store.connect import Connection, connected
from authsidecar.store.keys import Keys
from authsidecar.store.registry import Registry
from tests.support import seed
from tests.support.decisions import LIMITS, outside_a_task, rules, sidecar, world
from tests.support.failover import Load
from tests.support.topologies import RedisCluster, client, cluster, until, until_in_step

pytestmark = pytest.mark.any_python

KEYS = Keys()
TEAM, USER, TOKEN = TeamId(3), UserId(7), TokenId(67)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """A cluster whose servers all live as long as the module."""
    with cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@contextlib.asynccontextmanager
async def registered(at: RedisCluster) -> AsyncIterator[tuple[Cluster, Registry]]:
    async with connected(Connection(at.url, data_dir=None)) as made:  # type: ignore[arg-type]
        assert isinstance(made, Cluster)
        yield made, await world(made)


@pytest.fixture
async def registry(servers: RedisCluster) -> AsyncIterator[Registry]:
    """The usual world in an empty cluster."""
    servers.until_whole()
    servers.take_back()
    for server in servers.servers[: servers.primaries]:
        with client(server) as node:
            node.flushall()
    async with registered(servers) as (_, made):
        yield made


@pytest.fixture
async def members(registry: Registry) -> list[int]:
    """Thirty users, 100 to 129, each with a token of the same number: in slots of every node."""
    users = list(range(100, 130))
    for user in users:
        await seed.user(registry, user, t3="member")
    await registry.put_tokens([seed.token(user, user=user, team=3) for user in users])
    nodes = {slot_of(KEYS.user_nonce(UserId(user))) * 3 // 16384 for user in users}
    assert nodes == {0, 1, 2}
    return users


@contextlib.contextmanager
def calls_seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The KEYS of every request that goes to a script."""
    seen: list[list[str]] = []
    charge = ClusterCalls.charge

    def told(self: ClusterCalls, part: Part) -> Awaitable[Any]:
        keys = part.packed_keys.decode().split("\r\n")[1::2]
        assert len(keys) == part.keys
        seen.append(keys)
        return charge(self, part)

    with monkeypatch.context() as patch:
        patch.setattr(ClusterCalls, "charge", told)
        yield seen


async def test_38_the_keys_of_every_script_call_are_declared_and_in_one_slot(
    servers: RedisCluster, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 38: by CRC16; and a real cluster, which refuses anything else, takes them all."""
    limits = rules({**LIMITS, "token": Limit(50), "team": Limit(50), "address": Limit(50)})
    async with sidecar(servers.url) as here:
        with calls_seen(monkeypatch) as seen:
            assert await here.ask(67, rules=limits) == "allow"
            assert await here.ask(67, rules=limits, request_id="again") == "allow"
            assert await here.ask(67, rules=limits, request_id="again") == "allow"
            assert await here.ask(99, rules=limits) == "token_unknown"
            assert await here.ask(None, "GET", "/api/health", rules=limits) == "allow"
            assert await here.ask(67, "GET", "/api/v1/nothing", rules=limits) == "route_unknown"
            await registry.set_limit("user", 7, None)
            assert await here.ask(67, rules=limits) == "allow"
    assert {frozenset(slot_of(key) for key in keys) for keys in seen if len(keys) > 1} != set()
    for keys in seen:
        assert len({slot_of(key) for key in keys}) == 1, keys
    assert {key.split("{")[1][0] for keys in seen for key in keys} == {"u", "t", "a"}


@pytest.mark.parametrize(
    "change",
    ["revoked", "role", "member removed", "user removed", "team removed", "user's limit", "mcp"],
)
async def test_39_a_change_is_seen_by_the_very_next_request_of_another_process(
    servers: RedisCluster, registry: Registry, change: str
) -> None:
    """Whatever concerns a user, a team or a token is proven in the charge's own call."""
    changes: dict[str, tuple[Awaitable[object], str, tuple[str, ...]]] = {
        "revoked": (registry.remove_token(TOKEN), "token_unknown", ()),
        "role": (registry.set_member(TEAM, USER, Role.MEMBER), "team_role_required", ()),
        "member removed": (registry.remove_member(TEAM, USER), "token_unknown", ()),
        "user removed": (registry.remove_user(USER), "token_unknown", ()),
        "team removed": (registry.remove_team(TEAM), "token_unknown", ()),
        "user's limit": (registry.set_limit("user", 7, Limit(1)), "rate_limited", ()),
        "mcp": (registry.set_team_mcp(TEAM, enabled=False), "team_mcp_disabled", ("POST", "/mcp")),
    }
    doing, expected, route = changes.pop(change)
    for unused, _, _ in changes.values():
        unused.close()  # type: ignore[attr-defined]
    async with sidecar(servers.url) as here, sidecar(servers.url) as elsewhere:
        for each in (here, elsewhere):
            assert await each.ask(67, *route) == "allow"
        await doing
        for each in (here, elsewhere):
            assert await each.ask(67, *route) == expected


async def test_the_switches_and_the_allowlist_are_seen_within_a_second(
    servers: RedisCluster, registry: Registry
) -> None:
    """They are in another slot than any counter: read again once a second, at the latest."""
    async with sidecar(servers.url) as here:
        for changed, expected in (
            ({"allowlist": "198.51.100.1"}, "address_not_allowed"),
            ({"allowlist": ""}, "allow"),
            ({"api_enabled": False}, "api_disabled"),
        ):
            await registry.set_instance(**changed)
            late = time.monotonic() + 1.0
            while time.monotonic() < late:
                await here.ask(68)
                await asyncio.sleep(0.1)
            assert await here.ask(67) == expected


async def test_a_warm_request_is_one_script_call_and_those_who_wait_share_it(
    servers: RedisCluster, registry: Registry, members: list[int]
) -> None:
    """A hundred requests of thirty users are one trip to each of the three nodes."""
    assert registry is not None
    async with sidecar(servers.url) as here:
        assert {await here.ask(user) for user in members} == {"allow"}
        here.trips.clear()
        assert await here.ask(100) == "allow"
        assert here.trips == ["charge"]
        here.trips.clear()
        asked = [here.ask(user) for user in members for _ in range(4)]
        assert set(await asyncio.gather(*asked)) == {"allow"}
        # The first that come find the line free; all others share the next call.
        assert here.trips.count("charge") <= 6, here.trips


async def test_a_cold_start_of_many_tokens_waits_for_connections_and_fails_nobody(
    servers: RedisCluster, registry: Registry, members: list[int]
) -> None:
    """More loads at once than there are connections are a queue, not an outage."""
    assert registry is not None
    async with sidecar(servers.url) as here:
        unknown = [here.ask(10_000 + i, client=f"192.0.{i // 200}.{i % 200}") for i in range(200)]
        known = [here.ask(user) for user in members]
        assert set(await asyncio.gather(*known)) == {"allow"}
        assert set(await asyncio.gather(*unknown)) == {"token_unknown"}


async def test_26_parallel_requests_of_many_processes_pass_exactly_up_to_the_limit(
    servers: RedisCluster, registry: Registry
) -> None:
    """Pitfall 26: of 300 parallel requests on three processes, 200 pass."""
    assert registry is not None
    async with contextlib.AsyncExitStack() as stack:
        here = [await stack.enter_async_context(sidecar(servers.url)) for _ in range(3)]
        answers = await asyncio.gather(*(here[i % 3].ask(67) for i in range(300)))
    assert answers.count("allow") == 200
    assert answers.count("rate_limited") == 100


async def test_a_user_over_its_limit_costs_its_team_nothing(
    servers: RedisCluster, registry: Registry
) -> None:
    """The user's slot is charged first; only then the team's and the address's."""
    both = rules({**LIMITS, "user": Limit(2), "team": Limit(10)})
    async with sidecar(servers.url) as here:
        for expected in ("allow", "allow", "rate_limited", "rate_limited"):
            assert await here.ask(67, rules=both) == expected
        await registry.reset(Charge("user", "u:7", "user", Limit(2)))
        await asyncio.sleep(0.3)  # a flood's refusals stand for a quarter of a second
        outcome = await here.outcome(67, rules=both)
    assert [(q.scope, q.remaining) for q in outcome.quotas] == [("user", 1), ("team", 7)]


async def test_a_full_team_leaves_the_user_charged(
    servers: RedisCluster, registry: Registry
) -> None:
    """What is promised of a cluster, and no more: the later refusal does not undo the first."""
    assert registry is not None
    both = rules({**LIMITS, "user": Limit(10), "team": Limit(1)})
    async with sidecar(servers.url) as here:
        assert await here.ask(67, rules=both) == "allow"
        outcome = await here.outcome(67, rules=both)
    assert [(q.scope, q.remaining) for q in outcome.quotas] == [("user", 8), ("team", 0)]


@pytest.mark.parametrize("limited", ["user", "team"])
async def test_a_repeat_costs_nothing_in_any_slot(
    servers: RedisCluster, registry: Registry, limited: str
) -> None:
    """The mark of a request that was charged is in its user's slot, whatever counts."""
    assert registry is not None
    some = rules({limited: Limit(2), "address": Limit(2)})
    async with sidecar(servers.url) as here, sidecar(servers.url) as elsewhere:
        for each in (here, elsewhere, here):
            assert await each.ask(67, rules=some, request_id="one") == "allow"
        assert await here.ask(67, rules=some, request_id="two") == "allow"
        assert await here.ask(67, rules=some, request_id="three") == "rate_limited"
        assert await elsewhere.ask(67, rules=some, request_id="two") == "allow"


async def test_37_a_lost_script_is_loaded_again_on_every_node(
    servers: RedisCluster, registry: Registry, members: list[int]
) -> None:
    """Pitfall 37: NOSCRIPT means that nothing ran, and is the one answer that is sent again."""
    assert registry is not None
    async with sidecar(servers.url) as here:
        assert {await here.ask(user) for user in members} == {"allow"}
        for server in servers.servers[:3]:
            with client(server) as node:
                node.script_flush()
        outcomes = await asyncio.gather(*(here.outcome(user) for user in members))
    assert {q.remaining for outcome in outcomes for q in outcome.quotas} == {198}


async def test_connections_that_the_nodes_closed_cost_no_request(
    servers: RedisCluster, registry: Registry, members: list[int]
) -> None:
    """Idle connections cut by a node's `timeout` are opened again unseen, by all who use them."""
    async with sidecar(servers.url, cache_records=0) as here:
        for _ in range(2):
            assert set(await asyncio.gather(*(here.ask(user) for user in members))) == {"allow"}
            assert await registry.set_limit("user", 7, None)
            for server in servers.servers[:3]:
                with client(server) as node:
                    node.client_kill_filter(_type="normal", skipme=True)
                    # It ends them a moment later.
                    until(lambda node=node: len(node.client_list(_type="normal")) == 1, "their end")
            await asyncio.sleep(0.05)  # the end of each stream is read


def test_a_change_renews_the_nonces_last_and_forgets_in_the_index_after_the_record() -> None:
    """Every state between two slots is one in which nobody has more than before or after."""

    class Seen(Cluster):
        def __init__(self) -> None:
            super().__init__(startup_nodes=[ClusterNode("127.0.0.1", 1)], max_connections=1)
            self.order: list[str] = []

        async def node(self, slot: int) -> Any:
            return ClusterNode("127.0.0.1", slot)

        async def piped(self, commands: Any) -> list[Any]:
            sent = commands.cr_frame.f_locals["commands"]
            commands.close()
            self.order += [f"{name} {key}" for name, key, *_ in sent[1:-1]]
            return [True] * (len(sent) - 1) + [[1] * (len(sent) - 2)]

    async def change() -> list[str]:
        seen = Seen()
        pipe: Any = Steps(seen)
        pipe.srem("users", 7)
        pipe.set("p:nonce:{u:7}", "new")
        pipe.delete("token:1", "user:7")
        pipe.sadd("teams", 3)
        await pipe.execute()
        return seen.order

    assert asyncio.run(change()) == [
        "SADD teams",
        "DEL token:1",
        "DEL user:7",
        "SREM users",
        "SET p:nonce:{u:7}",
    ]


async def test_a_token_that_is_written_again_stays_in_its_indexes(
    servers: RedisCluster, registry: Registry
) -> None:
    """It leaves them and comes back in one change, in this order on any Redis."""
    assert servers is not None
    await registry.put_tokens([seed.token(67, user=7, team=3)])
    assert [token.id async for token in registry.tokens(user=USER)] == [67, 68]
    await seed.user(registry, 8, t4="member")
    await registry.put_tokens([seed.token(67, user=8, team=4)])
    assert [token.id async for token in registry.tokens(user=USER)] == [68]
    assert [token.id async for token in registry.tokens(team=TeamId(4))] == [67]
    assert await registry.remove_member(TEAM, USER) == 1
    assert await registry.remove_team(TeamId(4)) == 1


async def test_writers_that_read_first_go_one_after_the_other(
    servers: RedisCluster, registry: Registry
) -> None:
    """Ids are given once, and of many who add the same user one does."""
    async with connected(Connection(servers.url, data_dir=None)) as made:  # type: ignore[arg-type]
        other = Registry(made, KEYS)
        added = await asyncio.gather(
            *(each.add_user("x", "x@example.test", UserId(50)) for each in (registry, other) * 5)
        )
        fresh = await asyncio.gather(*(each.add_team("t") for each in (registry, other) * 5))
    assert sorted(added, key=str) == [50, *[None] * 9]
    assert len(set(fresh)) == 10


async def test_a_slot_that_moves_is_followed_and_charged_once(
    servers: RedisCluster, registry: Registry
) -> None:
    """MOVED and ASK mean that nothing ran: the call goes to the node that they name."""
    slot = slot_of(KEYS.user_nonce(USER))
    owner = servers.primary_of(KEYS.user_nonce(USER))
    old, new = servers.servers[owner], servers.servers[(owner + 1) % 3]

    def move(source: Any, target: Any, *, done: bool) -> None:
        with client(source) as a, client(target) as b:
            ids = [node.execute_command("CLUSTER MYID") for node in (a, b)]
            b.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[0])
            a.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
            for key in a.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
                a.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
            if done:
                for node in (b, a):
                    node.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[1])

    async with sidecar(servers.url) as here:
        # As on a connection; the first one also asks the cluster what it looks like.
        here.store._client._initialize = True
        assert (await outside_a_task(here.outcome(67))).quotas[0].remaining == 199
        move(old, new, done=False)
        assert (await outside_a_task(here.outcome(67))).quotas[0].remaining == 198  # ASK
        move(old, new, done=True)
        assert (await outside_a_task(here.outcome(67))).quotas[0].remaining == 197  # MOVED
        await registry.set_member(TEAM, USER, Role.MEMBER)
        assert await here.ask(67) == "team_role_required"
        move(new, old, done=True)
        assert await here.ask(67) == "team_role_required"
    servers.until_whole()


async def test_a_frozen_node_is_an_outage_for_its_own_users_alone(
    servers: RedisCluster, registry: Registry, members: list[int]
) -> None:
    """Each node has its own line of calls, so nobody waits for another's node."""
    assert registry is not None
    at = {user: servers.primary_of(KEYS.user_nonce(UserId(user))) for user in members}
    needed = servers.primary_of(KEYS.instance)  # by everybody, once a second
    frozen = next(node for node in at.values() if node != needed)
    async with sidecar(servers.url, budget_ms=500, cache_max_age_s=60) as here:
        for user in members:
            await here.until_allowed(user)
        servers.servers[frozen].freeze()
        try:
            answers = await asyncio.gather(*(here.ask(user) for user in members))
        finally:
            servers.servers[frozen].thaw()
    for user, answer in zip(members, answers, strict=True):
        assert answer == ("store_unavailable" if at[user] == frozen else "allow")
    servers.until_whole()


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(180)
async def test_a_killed_primary_under_load_lets_nobody_in_and_is_forgotten_quickly(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """After WAITed changes there is no wrong allow; recovery is under 5 s after promotion."""
    with cluster(tmp_path) as servers:
        async with registered(servers) as (made, registry):
            killed = servers.primary_of(KEYS.user_nonce(USER))
            # Revoked tokens, and one that is demoted: half of their records die with the primary.
            await registry.put_tokens(
                [seed.token(i, user=7, team=3, permissions=("read", "write")) for i in range(1, 41)]
            )
            async with contextlib.AsyncExitStack() as stack:
                sides = [
                    await stack.enter_async_context(sidecar(servers.url, budget_ms=100))
                    for _ in range(2)
                ]
                load = Load(sides, rules({"user": Limit(1_000_000)}))
                for token in range(1, 41):
                    for side in sides:
                        await side.until_allowed(token)
                async with load.running([67], expected="allow"):
                    for token in range(1, 41):
                        await registry.remove_token(TokenId(token))
                    assert await made.wait(1, 20_000) >= 1
                    load.forbidden = list(range(1, 41))
                    await asyncio.sleep(0.2)
                    load.killed_at = time.monotonic()
                    servers.servers[killed].kill()
                    await asyncio.to_thread(servers.until_promoted, killed)
                    promoted = time.monotonic()
                    recovered = await load.until_good(67, after=promoted)
                    await asyncio.sleep(0.5)
                assert load.wrong == []
                assert load.asked_forbidden > 50
                tell(
                    f"cluster: promoted {promoted - load.killed_at:.2f} s after the kill, "
                    f"first good answer {recovered:.2f} s after that"
                )
                assert recovered < 5.0
                # A command, which is a process of its own, works again, and all see what it does.
                how = Connection(servers.url, data_dir=None)  # type: ignore[arg-type]
                async with connected(how) as command:
                    await Registry(command, KEYS).set_member(TEAM, USER, Role.MEMBER)
                for side in sides:
                    assert await side.decided(67, rules=load.rules) == "team_role_required"


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_failover_keeps_the_limit_but_for_what_was_not_replicated(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """Admissions that the replica had are counted; so at most the lag is admitted on top."""
    limit = 400
    with cluster(tmp_path) as servers:
        async with registered(servers), sidecar(servers.url, budget_ms=2000) as here:
            killed = servers.primary_of(KEYS.user_nonce(USER))
            some = rules({"user": Limit(limit, 600_000)})
            admitted = 0
            for _ in range(5):
                answers = await asyncio.gather(*(here.ask(67, rules=some) for _ in range(50)))
                admitted += answers.count("allow")
            assert admitted == 250
            until_in_step(servers.servers[killed], servers.replica_of(killed))
            servers.servers[killed].kill()
            await asyncio.to_thread(servers.until_promoted, killed)
            await Load([here], some).until_good(67, after=time.monotonic())
            admitted += 1
            for _ in range(6):
                answers = await asyncio.gather(*(here.ask(67, rules=some) for _ in range(50)))
                admitted += answers.count("allow")
            tell(f"cluster: {admitted} of {limit} admitted across a failover")
            assert admitted == limit


async def test_closing_a_cluster_closes_its_connections(servers: RedisCluster) -> None:
    """For whoever is done with it; used again, it opens them again."""
    async with connected(Connection(servers.url, data_dir=None)) as made:  # type: ignore[arg-type]
        assert isinstance(made, Cluster)
        await made.set("one", "1")
        nodes = list(made.nodes_manager.nodes_cache.values())

        def opened() -> list[Any]:
            return [c for node in nodes for c in node._connections if c.is_connected]

        assert opened()
        await made.aclose()
        assert not opened()
        assert await made.get("one") == b"1"


async def test_a_trial_ends_on_a_cluster_as_well(registry: Registry) -> None:
    """The setting and what was before are in one hash, so in one slot."""
    await registry.set_instance(allowlist="192.0.2.0/24")
    await registry.trials.begin("allowlist", "198.51.100.0/24", 1)
    await asyncio.sleep(0.01)
    (ended,) = await registry.trials.roll_back()
    assert ended.before == "192.0.2.0/24"
    assert (await registry.instance()).allowlist.text == "192.0.2.0/24"
    trial = await registry.trials.begin("allowlist", "198.51.100.0/24", 60_000)
    assert await registry.trials.confirm(trial)
    assert await registry.trials.pending() == []
    assert (await registry.instance()).allowlist.text == "198.51.100.0/24"


async def test_state_moves_from_and_to_a_cluster(servers: RedisCluster, registry: Registry) -> None:
    """Every key of every node is in the file, and is brought to the node that serves it."""
    await registry.set_instance(allowlist="192.0.2.0/24")
    before = await seed_state(registry)
    lines: list[str] = []
    async with registered_as_it_is(servers) as made:
        report = await export_state(made, KEYS, lines.append)
        assert report.unknown_count == 0
        for server in servers.servers[: servers.primaries]:
            with client(server) as node:
                node.flushall()
        file = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
        found = await import_state(made, KEYS, file, merge=False)
    assert isinstance(found, StateReport)
    assert (found.whole, found.kept, found.added) == (True, 0, report.total)
    assert await seed_state(registry) == before


async def seed_state(registry: Registry) -> tuple[object, ...]:
    teams = await registry.teams()
    return (
        await registry.users(),
        teams,
        [await registry.members(team.id) for team in teams],
        [token async for token in registry.tokens()],
        await registry.limits(),
        (await registry.instance()).allowlist.text,
        (await registry.instance()).api_enabled,
    )


@contextlib.asynccontextmanager
async def registered_as_it_is(at: RedisCluster) -> AsyncIterator[Any]:
    async with connected(Connection(at.url, data_dir=None)) as made:  # type: ignore[arg-type]
        assert isinstance(made, Cluster)
        yield made
