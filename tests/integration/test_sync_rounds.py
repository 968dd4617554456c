"""One round after another, in this process, on a real PostgreSQL and a real Redis."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from authsidecar.coolify import rounds, status, sync
from authsidecar.coolify.source import SchemaError
from authsidecar.coolify.status import StatusRecord
from authsidecar.coolify.sync import BusyError, DoubtError, Follower, SyncOptions, planned
from authsidecar.decision.model import TeamId, UserId
from authsidecar.store.bulk import Bulk, FencedChanges
from authsidecar.store.entities import User
from authsidecar.store.epoch import Fence, FenceBroken
from authsidecar.store.keys import Keys
from tests.support import seed
from tests.support.coolify import (
    SECRETS,
    Coolify,
    Lines,
    admitted,
    contents,
    follower,
    state,
    sync_once,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.any_python

CHANGES = (
    "DELETE FROM personal_access_tokens WHERE id = 2",
    "UPDATE personal_access_tokens SET abilities = '[\"read\"]' WHERE id = 5",
    'UPDATE personal_access_tokens SET abilities = \'["read", "deploy"]\' WHERE id = 7',
    "UPDATE personal_access_tokens SET expires_at = '2020-01-01' WHERE id = 3",
    "UPDATE personal_access_tokens SET expires_at = NULL WHERE id = 9",
    "UPDATE personal_access_tokens SET tokenable_id = 3 WHERE id = 3",
    "UPDATE personal_access_tokens SET team_id = '1' WHERE id IN (10, 20)",
    "UPDATE personal_access_tokens SET token = repeat('0', 64) WHERE id = 4",
    "UPDATE team_user SET role = 'member' WHERE user_id = 1 AND team_id = 1",
    "UPDATE team_user SET role = 'owner' WHERE user_id = 2",
    "INSERT INTO team_user(team_id, user_id, role) VALUES (1, 4, 'owner')",
    "UPDATE teams SET is_mcp_server_enabled = true, name = 'renamed'",
    "UPDATE users SET name = 'renamed', email = id || '@example.test'",
    "UPDATE instance_settings SET is_mcp_server_enabled = false, allowed_ips = '10.0.0.0/8,bad'",
    "UPDATE instance_settings SET is_api_enabled = false, allowed_ips = NULL",
    "INSERT INTO teams(id, name) VALUES (77, 'found again')",
    "DELETE FROM team_user WHERE user_id = 2",
    "DELETE FROM users WHERE id = 1",
    "DELETE FROM teams WHERE id = 1",
    "DELETE FROM personal_access_tokens",
)


async def test_rounds_leave_what_a_first_snapshot_would(
    coolify_db: Coolify, redis_client: Redis
) -> None:
    """Whatever changes, one after the other: applied in steps it is what is read afresh."""
    following = follower(coolify_db.dsn, redis_client)
    await following.once()
    for number, change in enumerate(CHANGES):
        before = await state(redis_client)
        await coolify_db.run(change)
        await following.once()
        seen = await state(redis_client)
        fresh = Keys(f"fresh-{number}:")
        await follower(coolify_db.dsn, redis_client, keys=fresh).once()

        assert before != seen, change
        assert await state(redis_client, fresh) == seen, change


async def test_using_tokens_is_no_change(coolify_db: Coolify, redis_client: Redis) -> None:
    """last_used_at and updated_at move with every request: no digest has them."""
    follower_ = follower(coolify_db.dsn, redis_client)
    await follower_.once()
    await coolify_db.run(
        "UPDATE personal_access_tokens SET last_used_at = now(), updated_at = now(), "
        "api_token_expiration_warning_sent_at = now()"
    )

    assert sum((await follower_.once()).values()) == 0


async def test_what_was_managed_here_gives_way(coolify_db: Coolify, redis_client: Redis) -> None:
    """A user of the same number may be another person: nothing of the old state is left."""
    registry = seed.registry(redis_client)
    await seed.user(registry, 1, t1="owner", t9="owner")
    await seed.user(registry, 50, t1="owner")
    await registry.put_tokens(
        [
            seed.token(2, user=1, team=1, permissions=("root",)),
            seed.token(900, user=50, team=1, permissions=("root",)),
        ]
    )

    await sync_once(coolify_db.dsn, redis_client)
    seen = await state(redis_client)

    await redis_client.flushdb()
    await sync_once(coolify_db.dsn, redis_client)
    assert await state(redis_client) == seen
    assert 900 not in {token.id for token in seen["tokens"]}


async def test_limits_of_operators_survive(coolify_db: Coolify, redis_client: Redis) -> None:
    """An override is ours, not Coolify's: a round that rewrites its holder keeps it."""
    from authsidecar.decision.model import Limit

    await sync_once(coolify_db.dsn, redis_client)
    registry = seed.registry(redis_client)
    for scope, number in (("user", 1), ("team", 1), ("token", 2)):
        assert await registry.set_limit(scope, number, Limit(7))
    await coolify_db.run("UPDATE users SET name = 'new'")
    await coolify_db.run("UPDATE teams SET name = 'new'")
    await coolify_db.run("UPDATE personal_access_tokens SET name = 'new'")
    await sync_once(coolify_db.dsn, redis_client)

    assert set((await registry.limits()).items()) == {
        (("user", 1), Limit(7)),
        (("team", 1), Limit(7)),
        (("token", 2), Limit(7)),
    }


class _KilledError(Exception):
    """Stands for SIGKILL: nothing is written after it."""


class _DyingChanges(FencedChanges):
    """Writes so many times, and then never again."""

    writes_left = 0

    @contextlib.asynccontextmanager
    async def multi(self, *, allow_oom: bool = False) -> AsyncIterator[Any]:
        if self.writes_left == 0:
            raise _KilledError
        self.writes_left -= 1
        async with super().multi(allow_oom=allow_oom) as pipe:
            yield pipe


def dying_follower(dsn: str, client: Redis, writes_left: int) -> Follower:
    dying = follower(dsn, client)
    changes = _DyingChanges(client, Keys(), dying._lease.fence)
    changes.writes_left = writes_left
    dying._bulk._changes = changes
    return dying


# Each of these would let somebody in half way, if it were applied in a careless order.
TANGLED = (
    """UPDATE personal_access_tokens SET abilities = '["root"]' WHERE id = 7;
    UPDATE team_user SET role = 'member' WHERE user_id IN (1, 3)""",
    """UPDATE personal_access_tokens SET abilities = '["read"]' WHERE id = 8;
    DELETE FROM team_user WHERE user_id = 2""",
    """UPDATE personal_access_tokens SET abilities = '["read", "deploy"]' WHERE id = 8""",
    """UPDATE instance_settings SET allowed_ips = '203.0.113.1';
    UPDATE personal_access_tokens SET abilities = '["root"]' WHERE id = 7""",
    """UPDATE instance_settings SET allowed_ips = NULL;
    DELETE FROM personal_access_tokens WHERE id IN (1, 2, 5, 13)""",
    """UPDATE personal_access_tokens SET tokenable_id = 3 WHERE id < 9;
    UPDATE team_user SET user_id = 30 WHERE user_id = 3""",
    """DELETE FROM users WHERE id = 1; DELETE FROM teams WHERE id = 0;
    INSERT INTO team_user(team_id, user_id, role) VALUES (1, 4, 'owner')""",
    """UPDATE personal_access_tokens SET team_id = '0'""",
)


@pytest.mark.parametrize("change", TANGLED)
async def test_a_kill_at_any_write_lets_nobody_in_whom_neither_state_lets_in(
    coolify_db: Coolify, redis_client: Redis, change: str
) -> None:
    """Every half state is within the old state or within the new one, token by token."""
    await coolify_db.run("UPDATE instance_settings SET allowed_ips = '192.0.2.1'")
    await sync_once(coolify_db.dsn, redis_client)
    held = {key: await redis_client.dump(key) for key in await redis_client.keys("*")}
    old = await admitted(redis_client, list(SECRETS))
    await coolify_db.run(change)

    halves = []
    finished = False
    while not finished:
        await redis_client.flushdb()
        for key, value in held.items():
            await redis_client.restore(key, 0, value or b"")
        dying = dying_follower(coolify_db.dsn, redis_client, writes_left=len(halves))
        try:
            await dying.once()
            finished = True
        except _KilledError:
            pass
        halves.append(await admitted(redis_client, list(SECRETS)))

    new = halves[-1]
    assert len(halves) > 2
    assert [half - (old | new) for half in halves] == [set()] * len(halves)


async def test_a_fresh_start_adds_tokens_when_all_else_is_there(
    coolify_db: Coolify, redis_client: Redis
) -> None:
    """A kill in the middle of the very first snapshot: who is let in is let in at the end too."""
    halves = []
    finished = False
    while not finished:
        await redis_client.flushdb()
        dying = dying_follower(coolify_db.dsn, redis_client, writes_left=len(halves))
        try:
            await dying.once()
            finished = True
        except _KilledError:
            pass
        halves.append(await admitted(redis_client, list(SECRETS)))

    assert halves[-1]
    assert all(half <= halves[-1] for half in halves)


@pytest.mark.parametrize(
    ("emptied", "said"),
    [
        ("TRUNCATE personal_access_tokens", "personal_access_tokens is empty"),
        ("DELETE FROM users", "users is empty"),
        ("DELETE FROM teams", "teams is empty"),
        ("DELETE FROM instance_settings", "instance_settings has no row 0"),
        (
            "TRUNCATE personal_access_tokens, users, teams, team_user, instance_settings",
            "instance_settings has no row 0",
        ),
    ],
)
async def test_an_emptied_database_is_believed_only_on_demand(
    coolify_db: Coolify, redis_client: Redis, emptied: str, said: str
) -> None:
    """A restore or a migration in the middle wipes nothing."""
    follower_ = follower(coolify_db.dsn, redis_client)
    await follower_.once()
    before = await state(redis_client)
    await coolify_db.run(emptied)

    for doubtful in (follower_, follower(coolify_db.dsn, redis_client)):
        with pytest.raises(DoubtError, match=said):
            await doubtful.once()
        assert await state(redis_client) == before

    await sync_once(coolify_db.dsn, redis_client, allow_empty=True)
    assert await state(redis_client) != before


async def test_the_last_token_can_be_revoked(coolify_db: Coolify, redis_client: Redis) -> None:
    """Rows deleted from the table that was read before are a revocation, all of them too."""
    await sync_once(coolify_db.dsn, redis_client)
    await coolify_db.run("DELETE FROM personal_access_tokens")

    await sync_once(coolify_db.dsn, redis_client)

    assert (await state(redis_client))["tokens"] == []


async def test_an_empty_coolify_is_followed_where_there_is_nothing_to_lose(
    coolify_db: Coolify, redis_client: Redis
) -> None:
    """A first start beside a Coolify that nobody has set up: everything is off."""
    await coolify_db.run(
        "TRUNCATE personal_access_tokens, users, teams, team_user, instance_settings"
    )

    await sync_once(coolify_db.dsn, redis_client)

    assert (await state(redis_client))["settings"] == (False, False, "")


@pytest.mark.parametrize(
    ("broken", "missing"),
    [
        ("ALTER TABLE personal_access_tokens RENAME TO old", "personal_access_tokens.id"),
        ("ALTER TABLE personal_access_tokens DROP COLUMN abilities", "abilities"),
        ("DROP TABLE users", "users.id"),
        ("ALTER TABLE instance_settings DROP COLUMN allowed_ips", "allowed_ips"),
    ],
)
async def test_a_half_migrated_database_changes_nothing(
    coolify_db: Coolify, redis_client: Redis, broken: str, missing: str
) -> None:
    """What decisions need and is not there is named, and the last state stays."""
    await sync_once(coolify_db.dsn, redis_client)
    before = await state(redis_client)
    await coolify_db.run(broken)

    with pytest.raises(SchemaError, match=missing):
        await sync_once(coolify_db.dsn, redis_client, allow_empty=True)

    assert await state(redis_client) == before


async def test_an_older_coolify_reads_as_its_defaults(
    coolify_db: Coolify, redis_client: Redis
) -> None:
    """4.0 has no MCP switches and no mark of warnings: instance off, teams on; 4.1 has two."""
    follower_ = follower(coolify_db.dsn, redis_client)
    await coolify_db.run("ALTER TABLE teams DROP COLUMN is_mcp_server_enabled")
    await coolify_db.run("ALTER TABLE instance_settings DROP COLUMN is_mcp_server_enabled")
    await coolify_db.run(
        "ALTER TABLE personal_access_tokens DROP COLUMN api_token_expiration_warning_sent_at"
    )
    await follower_.once()
    old = await state(redis_client)
    assert old["settings"] == (True, False, "")
    assert {team.mcp_enabled for team in old["teams"]} == {True}
    assert len(old["tokens"]) == 25

    await coolify_db.run(
        "ALTER TABLE instance_settings ADD is_mcp_server_enabled boolean NOT NULL DEFAULT true"
    )
    await follower_.once()
    assert (await state(redis_client))["settings"] == (True, True, "")

    await coolify_db.run(
        "ALTER TABLE teams ADD is_mcp_server_enabled boolean NOT NULL DEFAULT false"
    )
    await follower_.once()
    assert {team.mcp_enabled for team in (await state(redis_client))["teams"]} == {False}


async def test_rows_beyond_all_bounds_are_refused_and_crash_nothing(
    coolify_db: Coolify, redis_client: Redis
) -> None:
    """Negative ids, infinite times, deep JSON, foreign digests: odd rows, and the others go on."""
    await coolify_db.run("UPDATE personal_access_tokens SET id = -5 WHERE id = 2")
    await coolify_db.run("UPDATE personal_access_tokens SET id = 0 WHERE id = 3")
    await coolify_db.run("UPDATE personal_access_tokens SET expires_at = 'infinity' WHERE id = 4")
    await coolify_db.run("UPDATE personal_access_tokens SET expires_at = '-infinity' WHERE id = 5")
    await coolify_db.run(
        "UPDATE personal_access_tokens SET expires_at = '200000-01-01', "
        "abilities = repeat('[', 200000) WHERE id = 6"
    )
    await coolify_db.run("UPDATE personal_access_tokens SET token = upper(token) WHERE id = 7")
    await coolify_db.run("UPDATE personal_access_tokens SET team_id = repeat('9', 30) WHERE id = 8")
    await coolify_db.run("UPDATE personal_access_tokens SET id = 9223372036854775807 WHERE id = 13")
    await coolify_db.run("INSERT INTO users(id, name, email) VALUES (-1, 'x', 'x@example.test')")
    await coolify_db.run("INSERT INTO teams(id, name) VALUES (-1, 'x')")
    await coolify_db.run("INSERT INTO team_user(team_id, user_id, role) VALUES (-1, -1, 'owner')")

    await sync_once(coolify_db.dsn, redis_client)
    tokens = {token.id: token for token in (await state(redis_client))["tokens"]}

    assert {-5, 0, 7}.isdisjoint(tokens)
    assert {tokens[4].expires_at, tokens[5].expires_at} == {0}
    assert tokens[6].permissions == frozenset()
    assert tokens[8].team is None
    assert 9223372036854775807 in tokens
    assert (await sync_once(coolify_db.dsn, redis_client)).total() == 0


async def test_a_dry_run_says_what_would_change_and_changes_nothing(
    coolify_db: Coolify, redis_client: Redis
) -> None:
    """One line for each fact, and Redis is what it was, key for key."""
    await sync_once(coolify_db.dsn, redis_client)
    await coolify_db.run("DELETE FROM personal_access_tokens WHERE id = 2")
    await coolify_db.run("UPDATE team_user SET role = 'member' WHERE user_id = 3 AND team_id = 1")
    await coolify_db.run("INSERT INTO teams(id, name) VALUES (8, 'new')")
    await coolify_db.run("UPDATE instance_settings SET is_api_enabled = false")
    before = await contents(redis_client)

    options = SyncOptions(coolify_db.dsn)
    seen = [change async for change in planned(options, redis_client, Keys())]

    assert [(change.sign, change.entity, change.text) for change in seen] == [
        ("~", "member", "user 3 in team 1: member"),
        ("-", "token", "2 of user 1, team 1: read"),
        ("+", "team", "8 'new', MCP on"),
        ("~", "settings", "API off, MCP on, allowlist everyone"),
    ]
    assert await contents(redis_client) == before


async def test_a_writer_that_was_replaced_writes_no_more(redis_client: Redis) -> None:
    """However late it wakes up, and whatever it had read before."""
    keys = Keys()
    await redis_client.set(keys.sync_fence, "one")
    bulk = Bulk(redis_client, keys, Fence(keys.sync_fence, b"one"))
    user = User(UserId(1), "ann", "ann@example.test")
    await bulk.put_users([user])

    await redis_client.set(keys.sync_fence, "two")
    with pytest.raises(FenceBroken):
        await bulk.drop_users([user])
    with pytest.raises(FenceBroken):
        await bulk.set_instance(api_enabled=True)

    await redis_client.set(keys.sync_fence, "one")

    async def overtaken() -> None:
        async with bulk._changes.multi() as pipe:
            pipe.delete(keys.user(UserId(1)))
            await redis_client.set(keys.sync_fence, "two")
            await pipe.execute()

    with pytest.raises(FenceBroken):
        await overtaken()
    assert await seed.registry(redis_client).user(UserId(1)) == user


async def test_one_round_waits_for_the_lease_and_names_who_has_it(
    coolify_db: Coolify, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once are one at a time."""
    monkeypatch.setattr(sync, "RENEW_S", 0.01)
    await redis_client.set(Keys().sync_lease, "somebody/else", px=200)
    assert (await sync_once(coolify_db.dsn, redis_client)).total() > 0

    monkeypatch.setattr(sync, "LEASE_MS", 100)
    await redis_client.set(Keys().sync_lease, "somebody/else")
    with pytest.raises(BusyError, match="somebody/else"):
        await sync_once(coolify_db.dsn, redis_client)


async def test_a_flushed_redis_is_filled_again(coolify_db: Coolify, redis_client: Redis) -> None:
    """Nothing in PostgreSQL has changed, and yet everything is to be written."""
    task = asyncio.create_task(follower(coolify_db.dsn, redis_client).run())
    try:
        await eventually(lambda: _synced(redis_client), "the first round")
        await redis_client.flushdb()
        await eventually(lambda: _holds_all(redis_client), "the snapshot after the flush")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_doubts_are_told_once_and_counted(coolify_db: Coolify, redis_client: Redis) -> None:
    """An emptied database is one log line, a problem in the status, and a growing count."""
    lines = Lines()
    await sync_once(coolify_db.dsn, redis_client)
    await coolify_db.run("DELETE FROM users")
    task = asyncio.create_task(follower(coolify_db.dsn, redis_client, lines).run())
    try:

        async def counted() -> bool:
            told = await status.read(redis_client, Keys())
            return told is not None and told.kept > 2

        await eventually(counted, "the third doubt")
        told = await status.readiness(redis_client, Keys())
        await coolify_db.run(
            "INSERT INTO users(id, name, email) SELECT i, 'back', i || '@x' "
            "FROM generate_series(0, 4) i"
        )
        await eventually(lambda: _synced(redis_client), "the round after")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert told is not None
    assert (told["problem"], told["detail"]) == ("emptied", "users is empty")
    assert len(lines.all("sync_emptied")) == 1
    assert await status.read_owner(redis_client, Keys()) == "coolify"


async def test_an_idle_round_asks_for_nothing_but_the_snapshot(
    coolify_db: Coolify, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No write in the whole database: not even digests are computed."""
    looks = 0
    original = rounds.DatabaseView.at

    async def counting(view: Any) -> rounds.DatabaseView:
        nonlocal looks
        looks += 1
        return await original(view)

    monkeypatch.setattr(rounds.DatabaseView, "at", counting)
    one: Follower = follower(coolify_db.dsn, redis_client, interval_s=0.01)
    task = asyncio.create_task(one.run())
    try:
        await eventually(lambda: _synced(redis_client), "the first round")
        first = await StatusRecord(redis_client, Keys()).client.hget(Keys().sync_status, "at")

        async def later() -> bool:
            return bool(await redis_client.hget(Keys().sync_status, "at") != first)

        await eventually(later, "another round")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert looks <= 2  # another transaction of this server may have ended in between


async def test_a_role_that_may_only_read_columns_is_enough(
    coolify_db: Coolify, redis_client: Redis
) -> None:
    """The role of docs/how-to/coolify.md syncs, reads no secret and cannot write anything."""
    from pathlib import Path
    from urllib.parse import urlsplit

    text = (Path(__file__).parents[2] / "docs/how-to/coolify.md").read_text()
    grants = text.split("```sql\n", 1)[1].split("```", 1)[0]
    await coolify_db.run("DROP ROLE IF EXISTS authsidecar")
    await coolify_db.run(grants.replace("DATABASE coolify", f"DATABASE {coolify_db.name}"))
    port = urlsplit(coolify_db.dsn).port
    dsn = f"postgresql://authsidecar:choose-one@127.0.0.1:{port}/{coolify_db.name}"
    reader = await asyncpg.connect(dsn)
    try:
        await sync_once(dsn, redis_client)
        for forbidden in (
            "SELECT password FROM users",
            "SELECT remember_token FROM users",
            "SELECT two_factor_secret FROM users",
            "SELECT * FROM users",
            "DELETE FROM personal_access_tokens",
            "UPDATE personal_access_tokens SET abilities = '[\"root\"]'",
            "INSERT INTO team_user(team_id, user_id, role) VALUES (0, 1, 'owner')",
            "UPDATE instance_settings SET is_api_enabled = true",
            "TRUNCATE teams",
            "CREATE TABLE x (id int)",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await reader.execute(forbidden)
    finally:
        await reader.close()
        await coolify_db.run("DROP OWNED BY authsidecar")
        await coolify_db.run("DROP ROLE authsidecar")
    assert len((await state(redis_client))["tokens"]) == 25


async def _synced(client: Redis) -> bool:
    told = await status.read(client, Keys())
    if told is None or told.age_s is None or told.problem is not None:
        return False
    return await seed.registry(client).team(TeamId(0)) is not None


async def _holds_all(client: Redis) -> bool:
    return len((await state(client))["tokens"]) == 25
