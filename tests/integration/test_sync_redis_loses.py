"""Redis loses, or is given, what the sync did not write: it is noticed and mended."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis
from redis.asyncio import Redis

from authsidecar.coolify import status, sweep, triggers
from authsidecar.decision.authorize import Rules, authorize
from authsidecar.decision.model import Allow, TeamId, TokenId, UserId
from authsidecar.decision.policy import Policy
from authsidecar.decision.routes import coolify
from authsidecar.store.connect import Connection, connected
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.epoch import WritesLost
from authsidecar.store.keys import Keys
from tests.support import seed
from tests.support.coolify import (
    SECRETS,
    Coolify,
    Lines,
    admitted,
    asks,
    bearer,
    contents,
    follower,
    state,
)
from tests.support.failover import Address, address
from tests.support.redis import RedisProcess, start_redis
from tests.support.sidecar import start_sidecar
from tests.support.topologies import REPLICATION, RedisCluster, client, cluster, until
from tests.support.waiting import eventually

pytestmark = pytest.mark.any_python

SOON_S = 5.0
"""How soon Redis says what Coolify says after it is back."""

KEYS = Keys()
ALL = list(SECRETS)


@dataclass
class Pair:
    """A primary and its replica, and the address under which the primary is known."""

    first: RedisProcess
    second: RedisProcess
    address: Address

    def in_step(self) -> None:
        """Return once the replica has all."""
        with client(self.first) as first, client(self.second) as second:
            told = first.info("replication")["master_repl_offset"]
            until(lambda: second.info("replication")["slave_repl_offset"] >= told, "all is there")

    def cut_off(self) -> None:
        """Promote the replica by hand: it gets nothing more, and nobody knows it yet."""
        self.in_step()
        with client(self.second) as second:
            second.replicaof("NO", "ONE")

    async def fail_over(self) -> None:
        """The primary is gone, and the replica has its address."""
        self.first.kill()
        await self.address.move(self.second)


@pytest.fixture(autouse=True)
def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep takes a minute: here it takes as long as it needs."""
    monkeypatch.setattr(sweep, "PASS_S", 0.0)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    first = start_redis(tmp_path / "first", *REPLICATION, port=0)
    second = start_redis(
        tmp_path / "second", *REPLICATION, "--replicaof", f"127.0.0.1 {first.port}", port=0
    )
    try:
        with client(second) as replica:
            until(lambda: replica.role()[3] == "connected", "the replica is in step")
        async with address(first) as known:
            yield Pair(first, second, known)
    finally:
        first.stop()
        second.stop()


@asynccontextmanager
async def following(
    database: Coolify, url: str, lines: Lines | None = None, **options: Any
) -> AsyncIterator[Redis]:
    """A sync that follows, and has done its first round; yields a client of the same Redis."""
    async with connected(Connection(url, data_dir=None)) as made:  # type: ignore[arg-type]
        one = follower(database.dsn, made, lines, **options)
        task = asyncio.create_task(one.run())
        try:
            await eventually(lambda: followed(made), "the first round")
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def followed(made: Redis) -> bool:
    told = await status.read(made, KEYS)
    return told is not None and told.age_s is not None


async def answers(made: Redis) -> bool:
    with contextlib.suppress(sync_redis.RedisError, OSError):
        return bool(await made.ping())
    return False


async def refused(made: Redis, token: int) -> bool:
    return not await admitted(made, [token])


async def as_coolify_says(database: Coolify, made: Redis, spare: Redis) -> Callable[[], Any]:
    """Whether decisions are those of a Redis that was filled from nothing."""
    await spare.flushall()
    await follower(database.dsn, spare).once()
    right, facts = await admitted(spare, ALL), await state(spare)

    async def same() -> bool:
        return await admitted(made, ALL) == right and await state(made) == facts

    return same


@pytest.mark.parametrize("before", ["nothing", "another change"])
async def test_a_failover_that_lost_a_revocation_brings_no_token_back(
    coolify_db: Coolify, pair: Pair, redis_client: Redis, before: str
) -> None:
    """The replica missed the sync's last write, or its last two: it is told again."""
    lines = Lines()
    async with following(coolify_db, pair.address.url, lines) as made:
        assert not await refused(made, 2)
        if before == "nothing":
            pair.cut_off()
        await coolify_db.run("UPDATE personal_access_tokens SET abilities = '[]' WHERE id = 3")
        await eventually(lambda: refused(made, 3), "the first change")
        if before != "nothing":
            pair.cut_off()
        await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 2")
        await eventually(lambda: refused(made, 2), "the revocation")
        await pair.fail_over()

        back = time.monotonic()
        await eventually(lambda: refused(made, 2), "the revocation after the failover")
        same = await as_coolify_says(coolify_db, made, redis_client)
        await eventually(same, "all that Coolify says")
        assert time.monotonic() - back < SOON_S

    assert lines.all("sync_redis_lost_writes")


async def test_a_sidecar_refuses_again_what_a_failover_brought_back(
    coolify_db: Coolify, pair: Pair, tmp_path: Path
) -> None:
    """The whole process, as it was found: within the lease, and with a record in its cache."""
    process = await asyncio.to_thread(
        lambda: start_sidecar(
            tmp_path / "sidecar",
            pair.address.url,
            SYNC__SOURCE="coolify",
            SYNC__DSN=coolify_db.dsn,
            LIMITS__USER="100000",
            LIMITS__FAILED="100000",
        )
    )

    async def status_of(token: int) -> int:
        answer = await asyncio.to_thread(
            lambda: process.ask("GET", "/api/v1/teams", authorization=bearer(token))
        )
        return answer.status

    try:
        assert await status_of(2) == 200
        pair.cut_off()
        await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 2")

        async def refused_now() -> bool:
            return await status_of(2) == 401

        await eventually(refused_now, "the revocation")
        await pair.fail_over()
        back = time.monotonic()
        seen = set()
        while time.monotonic() - back < SOON_S:  # it is back at first, and may be refused or not
            seen.add(await status_of(2))
        for _ in range(20):
            assert await status_of(2) == 401, seen
        assert await status_of(27) == 200
    finally:
        process.stop()


async def test_a_failover_that_lost_nothing_is_no_loss(
    coolify_db: Coolify, pair: Pair, redis_client: Redis
) -> None:
    """The epoch came along, so the sync goes on from where it was."""
    lines = Lines()
    async with following(coolify_db, pair.address.url, lines) as made:
        pair.cut_off()
        # What this test's own promotion made it miss of the status is no write of facts.
        await pair.fail_over()
        await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 2")
        await eventually(lambda: refused(made, 2), "a revocation after the failover")
        same = await as_coolify_says(coolify_db, made, redis_client)
        await eventually(same, "all that Coolify says")

    assert not lines.all("sync_redis_lost_writes")


async def test_rounds_a_minute_apart_notice_a_failover_in_seconds(
    coolify_db: Coolify, pair: Pair
) -> None:
    """Redis is looked at between the rounds, too."""
    await triggers.run(coolify_db.dsn, triggers.installing())
    try:
        options: dict[str, Any] = {"interval_s": 60.0, "instant": True}
        async with following(coolify_db, pair.address.url, **options) as made:
            pair.cut_off()
            await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 2")
            await eventually(lambda: refused(made, 2), "the revocation")
            await pair.fail_over()

            back = time.monotonic()
            await eventually(lambda: refused(made, 2), "the revocation after the failover")
            assert time.monotonic() - back < SOON_S
    finally:
        await triggers.run(coolify_db.dsn, triggers.removing())


async def test_a_write_does_not_go_on_top_of_a_state_that_lost_the_one_before(
    coolify_db: Coolify, pair: Pair
) -> None:
    """A failover in the middle of an application ends it: the next one compares everything."""
    async with connected(Connection(pair.address.url, data_dir=None)) as made:  # type: ignore[arg-type]
        one = follower(coolify_db.dsn, made)
        assert await one._lease.acquire()
        bulk = one._bulk
        await bulk.epoch.begin()
        pair.cut_off()
        token = seed.token(900, user=1, team=1)
        await bulk.put_tokens([token])
        await pair.address.move(pair.second)
        await eventually(lambda: answers(made), "a new connection")

        with pytest.raises(WritesLost):
            await bulk.drop_tokens([token])
        with pytest.raises(WritesLost):
            await bulk.put_tokens([token])
        assert not await made.exists(KEYS.token(token.id))


async def test_a_redis_that_comes_back_empty_is_filled(
    coolify_db: Coolify, pair: Pair, redis_client: Redis
) -> None:
    """Killed, and nothing was on disk."""
    async with following(coolify_db, pair.address.url) as made:
        pair.first.kill()
        pair.first.start()
        same = await as_coolify_says(coolify_db, made, redis_client)
        await eventually(same, "all that Coolify says")


async def test_an_older_snapshot_that_is_put_back_is_noticed(
    coolify_db: Coolify, pair: Pair, redis_client: Redis
) -> None:
    """The state of a minute ago, key by key, the lease and the status too."""
    async with following(coolify_db, pair.address.url) as made:
        snapshot = {key: await made.dump(key) for key in await made.keys("*")}
        await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 2")
        await eventually(lambda: refused(made, 2), "the revocation")
        async with made.pipeline(transaction=True) as pipe:
            pipe.flushall()
            for key, value in snapshot.items():
                pipe.restore(key, 0, value or b"")
            pipe.pexpire(KEYS.sync_lease, 3000)
            await pipe.execute()

        await eventually(lambda: refused(made, 2), "the revocation after the restore")
        same = await as_coolify_says(coolify_db, made, redis_client)
        await eventually(same, "all that Coolify says")


Tamper = Callable[[Redis], Any]


async def _wider(made: Redis) -> None:
    await made.hset(KEYS.token(TokenId(2)), "permissions", "root")
    await made.set(KEYS.user_nonce(UserId(1)), "x")


async def _role(made: Redis) -> None:
    await made.hset(KEYS.team_members(TeamId(1)), "2", "owner")
    await made.set(KEYS.user_nonce(UserId(2)), "x")


async def _gone(made: Redis) -> None:
    await made.delete(KEYS.token(TokenId(2)))


async def _back(made: Redis) -> None:
    """A token that Coolify does not know, and that no index names."""
    fields: Any = await made.hgetall(KEYS.token(TokenId(2)))
    await made.hset(KEYS.token(TokenId(2_000_000)), mapping=fields)


async def _stranger(made: Redis) -> None:
    """A role in the team's own record alone."""
    await made.hset(KEYS.team_members(TeamId(1)), "4", "owner")


async def _switch(made: Redis) -> None:
    await made.hset(KEYS.instance, "allowlist", "10.0.0.0/8")
    await made.set(KEYS.instance_nonce, "x")


async def _index(made: Redis) -> None:
    await made.delete(KEYS.users, KEYS.teams, KEYS.user_tokens(UserId(1)))


@pytest.mark.parametrize("tamper", [_wider, _role, _gone, _back, _stranger, _switch, _index])
async def test_what_was_changed_by_hand_is_mended(
    coolify_db: Coolify, redis_url: str, tmp_path: Path, tamper: Tamper
) -> None:
    """Nothing changes in Coolify, and no epoch tells: the sweep finds it."""
    spare = start_redis(tmp_path / "spare")
    try:
        async with following(coolify_db, redis_url) as made, Redis.from_url(spare.url) as other:
            same = await as_coolify_says(coolify_db, made, other)
            await eventually(same, "the first state")
            before = await facts_of(made)
            for _ in range(20):  # the sweep may mend it before it is looked at
                await tamper(made)
                if await facts_of(made) != before:
                    break
            else:
                raise AssertionError(f"{tamper.__name__} changes nothing")

            async def mended() -> bool:
                return await facts_of(made) == before

            await eventually(mended, f"the end of {tamper.__name__}")
    finally:
        spare.stop()


async def facts_of(made: Redis) -> dict[bytes, Any]:
    """Every key that decisions or indexes depend on."""
    found = await contents(made)
    own = (b"nonce", b"{sync", b"rate:", b"repeat:")
    prefix = KEYS.prefix.encode()
    return {k: v for k, v in found.items() if not k.removeprefix(prefix).startswith(own)}


async def test_the_sweep_reads_a_bounded_part_and_all_in_the_end(
    coolify_db: Coolify, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bucket a look, however many there are; every one is read in a pass."""
    await coolify_db.run(
        "INSERT INTO users(id, name, email) SELECT i, 'u', i || '@x' "
        "FROM generate_series(1000, 60000, 100) i"
    )
    one = follower(coolify_db.dsn, redis_client)
    await one.once()
    snapshot = one._snapshot
    assert snapshot is not None
    read: list[tuple[str, int]] = []
    original = sweep.Sweep._compared

    def watching(self: sweep.Sweep, snapshot: Any, entity: Any, i: int) -> Any:
        read.append((entity.name, i))
        return original(self, snapshot, entity, i)

    monkeypatch.setattr(sweep.Sweep, "_compared", watching)
    every = {(entity, i) for entity, buckets in snapshot.buckets.items() for i in buckets}
    looks = 0
    while set(read) != every:
        before = len(read)
        assert await one._sweep.look(snapshot) == []
        assert len(read) - before <= 1
        looks += 1
        assert looks <= len(every) + 1

    monkeypatch.setattr(sweep, "PASS_S", 60.0)
    another = follower(coolify_db.dsn, redis_client)
    await another.once()
    assert another._snapshot is not None
    read.clear()
    start = time.monotonic()
    for _ in range(1000):
        await another._sweep.look(another._snapshot)
    assert len(read) <= 1 + (time.monotonic() - start) * (len(every) + 1) / 60


# Replicas


async def test_the_sync_waits_for_replicas_and_tells_where_they_are_late(
    coolify_db: Coolify, pair: Pair
) -> None:
    """redis.wait_replicas holds for what is followed: it is confirmed, or a problem."""
    lines = Lines()
    options = {"wait_replicas": 1, "wait_timeout_ms": 300}
    async with following(coolify_db, pair.address.url, lines, **options) as made:
        pair.second.freeze()
        try:
            await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 2")

            async def late() -> bool:
                told = await status.read(made, KEYS)
                return told is not None and told.problem == "replicas"

            await eventually(late, "the late replica")
            assert await refused(made, 2)
        finally:
            pair.second.thaw()

        async def confirmed() -> bool:
            told = await status.read(made, KEYS)
            return told is not None and told.problem is None

        await eventually(confirmed, "the replica's answer")
        pair.in_step()
        with sync_redis.Redis.from_url(pair.second.url) as replica:
            assert not replica.exists(KEYS.token(TokenId(2)))
    assert len(lines.all("sync_unconfirmed")) == 1
    assert lines.all("sync_confirmed")


# Few rights


async def test_the_documented_rights_are_enough_to_follow(
    coolify_db: Coolify, pair: Pair, redis_client: Redis
) -> None:
    """Epoch, sweep, walk and WAIT by the user of docs/how-to/redis.md."""
    text = (Path(__file__).parents[2] / "docs/how-to/redis.md").read_text()
    words = text.split("ACL SETUSER sidecar ", 1)[1].split("```", 1)[0].split()
    with client(pair.first) as node:
        node.execute_command("ACL SETUSER", "sidecar", *words)
    url = pair.address.url.replace("://", "://sidecar:choose-one@")
    lines = Lines()
    async with following(coolify_db, url, lines, wait_replicas=1) as made:
        async with Redis.from_url(pair.first.url) as all_rights:
            await _back(all_rights)

            async def mended() -> bool:
                return not await all_rights.exists(KEYS.token(TokenId(2_000_000)))

            await eventually(mended, "the end of a token that nobody knows of")
            await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 2")
            await eventually(lambda: refused(all_rights, 2), "the revocation")
            same = await as_coolify_says(coolify_db, all_rights, redis_client)
            await eventually(same, "all that Coolify says")
        assert made is not None
    assert not lines.all("sync_redis")
    assert not lines.all("sync_unconfirmed")


# A full Redis

TAKEN = (
    ("DELETE FROM personal_access_tokens WHERE id = 2", KEYS.token(TokenId(2))),
    ("DELETE FROM users WHERE id = 2", KEYS.user(UserId(2))),
    ("DELETE FROM teams WHERE id = 1", KEYS.team(TeamId(1))),
)
"""What is deleted in Coolify, and what is then to be gone."""


def fill(server: RedisProcess) -> None:
    """A neighbour uses all memory, so that nothing more is taken."""
    with client(server) as node:
        node.config_set("maxmemory", node.info("memory")["used_memory"] + 200_000)
        with contextlib.suppress(sync_redis.exceptions.OutOfMemoryError):
            for number in range(100_000):
                node.set(f"neighbour:{number}", "x" * 1000)
        # Buffers come and go: so that it stays full, whatever is freed.
        node.config_set("maxmemory", node.info("memory")["used_memory"] // 2)
        with pytest.raises(sync_redis.exceptions.OutOfMemoryError):
            node.set("one more", "x")


def make_room(server: RedisProcess) -> None:
    with client(server) as node:
        node.config_set("maxmemory", 0)


async def test_what_coolify_takes_away_is_gone_on_a_full_redis(
    coolify_db: Coolify, pair: Pair, redis_client: Redis
) -> None:
    """Tokens, users, roles, permissions, the allowlist; and who starts then gets the lease."""
    address, lines = pair.address.url, Lines()
    async with following(coolify_db, address, lines) as made:
        fill(pair.first)
        for statement, key in TAKEN:
            await coolify_db.run(statement)

            async def gone(key: str = key) -> bool:
                return not await made.exists(key)

            await eventually(gone, statement)
        await coolify_db.run("UPDATE instance_settings SET allowed_ips = '10.0.0.0/8'")
        await coolify_db.run("UPDATE personal_access_tokens SET abilities = '[]' WHERE id = 13")

        async def narrowed() -> bool:
            held = await made.hget(KEYS.token(TokenId(13)), "permissions")
            return held == b"" and await made.hget(KEYS.instance, "allowlist") == b"10.0.0.0/8"

        await eventually(narrowed, "what is narrowed")
    async with following(coolify_db, address, lines) as made:
        await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 5")

        async def late_gone() -> bool:
            return not await made.exists(KEYS.token(TokenId(5)))

        await eventually(late_gone, "a revocation after a restart")
        await coolify_db.add_token(900, user=3)

        async def full() -> bool:
            told = await status.read(made, KEYS)
            return told is not None and told.problem == "redis"

        await eventually(full, "what could not be added")
        make_room(pair.first)
        same = await as_coolify_says(coolify_db, made, redis_client)
        await eventually(same, "all that Coolify says")


# Cluster


async def test_a_node_that_lost_a_nonce_alone_revives_no_cached_record(
    coolify_db: Coolify, nodes: RedisCluster
) -> None:
    """The token is gone on one node, and its user's old nonce is back on another."""
    rules = Rules(Policy(coolify("4.3")), {})
    async with (
        following(coolify_db, nodes.url) as made,
        connected(Connection(nodes.url, data_dir=None)) as other,  # type: ignore[arg-type]
    ):
        store = DecisionStore(other, KEYS, budget_ms=5000)
        try:
            assert await allowed(store, rules, 2)
            nonce = await made.get(KEYS.user_nonce(UserId(1)))
            await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 2")

            async def gone() -> bool:
                return not await made.exists(KEYS.token(TokenId(2)))

            await eventually(gone, "the revocation")
            # What a failover of these nodes' replicas would leave, in one step.
            await made.set(KEYS.user_nonce(UserId(1)), nonce or "")
            async for key in made.scan_iter(f"{KEYS.prefix}{{sync-*"):
                await made.set(key, "an older one")

            async def refused_again() -> bool:
                return not await allowed(store, rules, 2)

            back = time.monotonic()
            await eventually(refused_again, "the refusal")
            assert time.monotonic() - back < SOON_S
        finally:
            await store.close()


async def allowed(store: DecisionStore, rules: Rules, token: int) -> bool:
    return isinstance((await authorize(asks(token), rules, store)).verdict, Allow)


async def test_what_coolify_takes_away_is_gone_on_a_full_cluster(
    coolify_db: Coolify, tmp_path: Path
) -> None:
    """Every node is full: a lock, a fence and an epoch need room too."""
    with cluster(tmp_path, replicas=False) as nodes:
        async with following(coolify_db, nodes.url) as made:
            for server in nodes.servers:
                fill_node(server)
            for statement, key in TAKEN:
                await coolify_db.run(statement)

                async def gone(key: str = key) -> bool:
                    return not await made.exists(key)

                await eventually(gone, statement)


def fill_node(server: RedisProcess) -> None:
    with client(server) as node:
        node.config_set("maxmemory", 1)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[RedisCluster]:
    with cluster(tmp_path) as made:
        yield made


async def test_one_node_of_a_cluster_that_lost_a_revocation_is_mended(
    coolify_db: Coolify, nodes: RedisCluster
) -> None:
    """A single node fails over to a replica that missed the last write to it."""
    # Each of these tokens is on the node that fails over, the sync's own keys are not.
    own = nodes.primary_of(KEYS.sync_lease)
    there = next(
        token
        for token in (2, 3, 4, 5, 6, 7, 8, 13)
        if nodes.primary_of(KEYS.token(TokenId(token))) != own
    )
    failing = nodes.primary_of(KEYS.token(TokenId(there)))
    primary, replica = nodes.servers[failing], nodes.replica_of(failing)
    lines = Lines()
    async with following(coolify_db, nodes.url, lines) as made:
        assert not await refused(made, there)
        with client(primary) as node:
            node.config_set("repl-timeout", 2)
            until(lambda: node.info("replication")["connected_slaves"] == 1, "the replica")
            await asyncio.sleep(0.2)
            replica.freeze()
            until(lambda: node.info("replication")["connected_slaves"] == 0, "it is cut off")
        await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = $1", there)
        await eventually(lambda: refused(made, there), "the revocation")
        primary.kill()
        replica.thaw()
        await asyncio.to_thread(nodes.until_promoted, failing)

        back = time.monotonic()

        async def gone() -> bool:
            with contextlib.suppress(sync_redis.RedisError, OSError):
                return not await made.exists(KEYS.token(TokenId(there)))
            return False

        await eventually(gone, "the revocation after the failover")
        assert time.monotonic() - back < 2 * SOON_S
        await eventually(lambda: refused(made, there), "the refusal")
