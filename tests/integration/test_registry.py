"""The registry: ids, removals that leave nothing, listings that never walk the keyspace."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from authsidecar.decision.model import Limit, Restriction, Role, TeamId, TokenId, UserId
from authsidecar.store.changes import Precondition
from authsidecar.store.entities import Member, Team, Token, User
from authsidecar.store.keys import Keys
from authsidecar.store.registry import EXPIRED_KEPT_MS, Registry
from authsidecar.times import UnixMs
from tests.support import seed
from tests.support.decisions import commands, sidecar, world

KEYS = Keys()
TEAM, USER, TOKEN = TeamId(3), UserId(7), TokenId(67)


@pytest.fixture
async def registry(redis_client: Redis) -> Registry:
    return await world(redis_client)


async def ids(tokens: AsyncIterator[Token]) -> list[int]:
    return [token.id async for token in tokens]


async def everything(client: Redis) -> dict[str, object]:
    """All that Redis holds, by key; nonces left out."""
    found: dict[str, object] = {}
    for key in sorted(await client.keys("*")):
        name, kind = key.decode(), await client.type(key)
        if ":nonce:" in name:
            continue
        if kind == b"hash":
            found[name] = await client.hgetall(key)
        elif kind == b"set":
            found[name] = await client.smembers(key)
        else:
            found[name] = await client.get(key)
    return found


# Ids


async def test_ids_count_up_and_are_never_given_twice(redis_client: Redis) -> None:
    """A removed user's id is not the next one's: whatever still names it must not mean another."""
    registry = seed.registry(redis_client)
    assert [await registry.add_user("a", "a@example.test") for _ in range(3)] == [1, 2, 3]
    await registry.remove_user(UserId(3))
    assert await registry.add_user("b", "b@example.test") == 4
    assert [await registry.add_team("t") for _ in range(2)] == [1, 2]
    assert [await registry.next_token_id() for _ in range(2)] == [1, 2]


async def test_a_given_id_is_taken_once_and_counting_goes_on_above_it(
    redis_client: Redis,
) -> None:
    """Coolify's ids can be kept, 0 too; a second owner of one is refused and changes nothing."""
    registry = seed.registry(redis_client)
    assert await registry.add_user("root", "root@example.test", UserId(0)) == 0
    assert await registry.add_user("ten", "ten@example.test", UserId(10)) == 10
    assert await registry.add_user("thief", "thief@example.test", UserId(10)) is None
    assert await registry.user(UserId(10)) == User(UserId(10), "ten", "ten@example.test")
    assert await registry.add_user("next", "next@example.test") == 11
    assert await registry.add_user("five", "five@example.test", UserId(5)) == 5
    assert await registry.add_user("after", "after@example.test") == 12
    await registry.put_tokens([seed.token(500, user=10, team=0)])
    assert await registry.next_token_id() == 501


async def test_an_id_at_the_end_of_all_numbers_leaves_ids_to_give(registry: Registry) -> None:
    """Whoever chooses it does not keep everybody else from adding anything."""
    last = 2**63 - 1
    assert await registry.add_team("last", TeamId(last)) == last
    assert await registry.add_team("next") == TEAM + 1
    assert await registry.add_user("last", "last@example.test", UserId(last)) == last
    assert await registry.add_user("next", "next@example.test") == USER + 1


async def test_one_of_many_who_want_an_id_gets_it(redis_client: Redis) -> None:
    """Twenty add the same id at once: one has it, and the record is that one's, whole."""
    registry = seed.registry(redis_client)
    added = await asyncio.gather(
        *(registry.add_user(f"u{i}", f"u{i}@example.test", UserId(9)) for i in range(20))
    )
    assert sorted(added, key=str) == [9] + [None] * 19
    winner = added.index(UserId(9))
    assert await registry.user(UserId(9)) == User(
        UserId(9), f"u{winner}", f"u{winner}@example.test"
    )


async def test_ids_given_at_the_same_time_are_all_different(redis_client: Redis) -> None:
    """Counting and explicit ids race: nobody shares one."""
    registry = seed.registry(redis_client)
    added = await asyncio.gather(
        *(registry.add_team(f"t{i}", TeamId(i) if i % 3 == 0 and i else None) for i in range(30))
    )
    found = [number for number in added if number is not None]
    assert len(found) == len(set(found))
    assert sorted(found) == [team.id for team in await registry.teams()]


# Removals


async def test_a_removed_user_takes_memberships_and_tokens_along(
    registry: Registry, redis_client: Redis
) -> None:
    """After the removal nothing in Redis names the user, but the nonce that proves it."""
    await registry.add_team("other", TeamId(4))
    before = await everything(redis_client)
    await seed.user(registry, 8, t3="member", t4="owner")
    await registry.put_tokens([seed.token(80, user=8, team=3), seed.token(81, user=8, team=4)])
    assert await registry.remove_user(UserId(8)) == 2
    after = await everything(redis_client)
    for counted in ("user", "token"):
        before.pop(KEYS.next_id(counted), None)
        after.pop(KEYS.next_id(counted), None)
    before.pop(KEYS.next_id("team"))
    after.pop(KEYS.next_id("team"))
    assert after == before
    assert await registry.remove_user(UserId(8)) is None


async def test_a_removed_team_takes_memberships_and_tokens_along(
    registry: Registry, redis_client: Redis
) -> None:
    """Its members stay users, and keep their tokens of other teams."""
    await seed.user(registry, 8, t3="member", t4="owner")
    await registry.put_tokens([seed.token(80, user=8, team=3), seed.token(81, user=8, team=4)])
    assert await registry.remove_team(TEAM) == 3
    assert await registry.team(TEAM) is None
    assert await registry.members(TEAM) == []
    assert await ids(registry.tokens()) == [81]
    assert await registry.user(USER) is not None
    assert await redis_client.smembers(KEYS.user_teams(UserId(8))) == {b"4"}
    assert await registry.remove_team(TEAM) is None


async def test_a_removed_membership_takes_its_tokens_along(registry: Registry) -> None:
    """Only those of that user in that team."""
    await seed.user(registry, 8, t3="member")
    await registry.add_team("other", TeamId(4))
    await registry.set_member(TeamId(4), USER, Role.ADMIN)
    await registry.put_tokens([seed.token(80, user=8, team=3), seed.token(70, user=7, team=4)])
    assert await registry.remove_member(TEAM, USER) == 2
    assert await registry.member(TEAM, USER) is None
    assert await registry.members(TEAM) == [Member(TEAM, UserId(8), Role.MEMBER)]
    assert sorted(await ids(registry.tokens())) == [70, 80]
    assert await registry.remove_member(TEAM, USER) is None


async def test_a_user_who_comes_back_has_nothing_of_before(
    redis_url: str, registry: Registry
) -> None:
    """The same id added again: no membership, and the old token stays unknown."""
    await registry.remove_user(USER)
    await registry.add_user("new", "new@example.test", USER)
    assert await registry.member(TEAM, USER) is None
    async with sidecar(redis_url) as here:
        assert await here.ask(67) == "token_unknown"
        await registry.set_member(TEAM, USER, Role.OWNER)
        assert await here.ask(67) == "token_unknown"


@pytest.mark.parametrize("gone", ["user", "team"])
async def test_a_membership_needs_its_user_and_its_team(
    registry: Registry, redis_client: Redis, gone: str
) -> None:
    """A role for somebody who is not there is refused, and leaves no trace to be inherited."""
    if gone == "user":
        await registry.remove_user(USER)
    else:
        await registry.remove_team(TEAM)
    before = await everything(redis_client)
    assert await registry.set_member(TEAM, USER, Role.OWNER) is False
    assert await everything(redis_client) == before


@pytest.mark.parametrize("remove", ["user", "team", "member"])
async def test_concurrent_changes_leave_no_half_states(redis_url: str, remove: str) -> None:
    """Roles and tokens given while user, team or member is removed: all of it, or nothing."""
    async with Redis.from_url(redis_url) as one, Redis.from_url(redis_url) as two:
        for _ in range(25):
            await one.flushall()
            here, there = await world(one), seed.registry(two)
            removal = {
                "user": lambda: there.remove_user(USER),  # noqa: B023  # awaited in this round
                "team": lambda: there.remove_team(TEAM),  # noqa: B023
                "member": lambda: there.remove_member(TEAM, USER),  # noqa: B023
            }[remove]
            await asyncio.gather(
                here.set_member(TEAM, USER, Role.ADMIN),
                removal(),
                here.set_member(TEAM, USER, Role.MEMBER),
                here.remove_token(TOKEN),
            )
            listed = await one.hexists(KEYS.team_members(TEAM), str(USER))
            indexed = await one.sismember(KEYS.user_teams(USER), str(TEAM))
            assert listed == indexed
            if remove != "member":
                assert not listed
            assert await ids(here.tokens()) == []
            assert not await one.exists(
                KEYS.token(TOKEN), KEYS.token(TokenId(68)), KEYS.user_tokens(USER)
            )


# Listings


async def test_listings_never_walk_the_keyspace(registry: Registry, redis_client: Redis) -> None:
    """Users, teams, members, tokens and limits come from index sets: no KEYS, no SCAN."""
    await registry.set_limit("user", 7, Limit(5))
    async with commands(redis_client) as seen:
        assert [user.id for user in await registry.users()] == [7]
        assert await registry.teams() == [Team(TEAM, "team 3", mcp_enabled=True)]
        assert await registry.members(TEAM) == [Member(TEAM, USER, Role.OWNER)]
        for tokens in (
            registry.tokens(),
            registry.tokens(user=USER),
            registry.tokens(team=TEAM),
            registry.tokens(user=USER, team=TEAM),
        ):
            assert await ids(tokens) == [67, 68]
        assert await registry.limits() == {("user", 7): Limit(5)}
    assert {"smembers", "hmget"} <= seen.keys()
    assert not {name for name in seen if name == "keys" or "scan" in name}


async def test_a_listing_reads_many_tokens_in_few_trips(
    registry: Registry, redis_client: Redis
) -> None:
    """1200 tokens come whole, by id, each once."""
    await registry.put_tokens([seed.token(1000 + i, user=7, team=3) for i in range(1200)])
    assert await ids(registry.tokens(team=TEAM)) == [67, 68, *range(1000, 2200)]


async def test_a_token_reads_back_as_it_was_written(registry: Registry) -> None:
    """Every field, with and without an expiry; written again without one, it has none."""
    soon = UnixMs(await registry.now() + 60_000)
    token = seed.token(70, user=7, team=3, permissions=("read", "read:sensitive"), expires_at=soon)
    await registry.put_tokens([token])
    assert await registry.token(TokenId(70)) == token
    lasting = seed.token(70, user=7, team=3)
    await registry.put_tokens([lasting])
    assert await registry.token(TokenId(70)) == lasting


async def test_a_token_that_moves_is_listed_where_it_is(registry: Registry) -> None:
    """Written again for another user and team, it leaves the old ones' lists."""
    await seed.user(registry, 8, t4="owner")
    await registry.put_tokens([seed.token(67, user=8, team=4)])
    assert await ids(registry.tokens(user=USER)) == [68]
    assert await ids(registry.tokens(team=TEAM)) == [68]
    assert await ids(registry.tokens(user=UserId(8))) == [67]
    assert await registry.remove_user(USER) == 1
    assert await registry.token(TOKEN) is not None


# Expiry


async def test_redis_removes_an_expired_token_after_a_week(
    registry: Registry, redis_client: Redis
) -> None:
    """Until then its refusal can say that it expired."""
    expires = UnixMs(await registry.now() + 60_000)
    await registry.put_tokens([seed.token(70, user=7, team=3, expires_at=expires)])
    assert EXPIRED_KEPT_MS == 7 * 24 * 60 * 60 * 1000
    assert await redis_client.pexpiretime(KEYS.token(TokenId(70))) == expires + EXPIRED_KEPT_MS
    await registry.put_tokens([seed.token(70, user=7, team=3)])
    assert await redis_client.pexpiretime(KEYS.token(TokenId(70))) == -1


async def test_a_limit_of_a_token_does_not_outlive_it(
    registry: Registry, redis_client: Redis
) -> None:
    """An override is part of the record: the expiry stays, and a removal takes it along."""
    expires = UnixMs(await registry.now() + 60_000)
    await registry.put_tokens([seed.token(70, user=7, team=3, expires_at=expires)])
    assert await registry.set_limit("token", 70, Limit(5))
    assert await redis_client.pexpiretime(KEYS.token(TokenId(70))) == expires + EXPIRED_KEPT_MS
    await registry.remove_token(TokenId(70))
    assert not await registry.set_limit("token", 70, Limit(5))
    assert not await redis_client.exists(KEYS.token(TokenId(70)))


@pytest.mark.parametrize("by", ["user", "team"])
async def test_listing_forgets_tokens_that_redis_has_removed(
    registry: Registry, redis_client: Redis, by: str
) -> None:
    """The index entry of a token that went by itself goes with the next listing."""
    long_ago = await registry.now() - EXPIRED_KEPT_MS - 1
    await registry.put_tokens([seed.token(70, user=7, team=3, expires_at=long_ago)])
    assert not await redis_client.exists(KEYS.token(TokenId(70)))
    index = KEYS.user_tokens(USER) if by == "user" else KEYS.team_tokens(TEAM)
    assert await redis_client.sismember(index, "70")
    listing = registry.tokens(user=USER) if by == "user" else registry.tokens(team=TEAM)
    assert await ids(listing) == [67, 68]
    assert await redis_client.smembers(index) == {b"67", b"68"}


# Limits and the instance


@pytest.mark.parametrize(("scope", "number"), [("user", 7), ("team", 3), ("token", 67)])
async def test_a_limit_is_set_and_cleared(registry: Registry, scope: str, number: int) -> None:
    """An override comes back as it was given, is gone once cleared, and needs its holder."""
    assert await registry.set_limit(scope, number, Limit(5, 1000))
    assert await registry.limit(scope, number) == Limit(5, 1000)
    assert await registry.set_limit(scope, number, None)
    assert await registry.limit(scope, number) is None
    assert not await registry.set_limit(scope, 999, Limit(5))
    assert await registry.limit(scope, 999) is None


async def test_a_new_installation_starts_as_it_is_told_and_only_once(
    redis_client: Redis,
) -> None:
    """Later starts, of any worker, leave the switch as it stands."""
    registry = seed.registry(redis_client)
    assert not (await registry.instance()).api_enabled
    assert await registry.first_start(api_enabled=False)
    await registry.set_instance(api_enabled=True)
    assert not await registry.first_start(api_enabled=False)
    assert (await registry.instance()).api_enabled


async def test_a_change_of_one_setting_leaves_the_others(registry: Registry) -> None:
    """Switches and allowlist are written one by one."""
    await registry.set_instance(allowlist="192.0.2.0/24")
    await registry.set_instance(mcp_enabled=False)
    instance = await registry.instance()
    assert (instance.api_enabled, instance.mcp_enabled) == (True, False)
    assert instance.allowlist.text == "192.0.2.0/24"


# Secrets


@pytest.mark.parametrize(
    ("key", "mine", "theirs"),
    [
        (
            KEYS.instance,
            lambda r: r.set_instance(api_enabled=False),
            lambda r: r.set_instance(mcp_enabled=False),
        ),
        (
            KEYS.user(USER),
            lambda r: r.remove_user(USER),
            lambda r: r.set_limit("user", 7, Limit(1)),
        ),
        (
            KEYS.team_members(TEAM),
            lambda r: r.set_member(TEAM, USER, Role.MEMBER),
            lambda r: r.set_member(TEAM, USER, Role.ADMIN),
        ),
        (
            KEYS.team(TEAM),
            lambda r: r.set_team_mcp(TEAM, enabled=False),
            lambda r: r.set_restriction("team", TEAM, Restriction(note="theirs")),
        ),
    ],
    ids=["instance", "user", "member", "team"],
)
async def test_a_precondition_is_held_by_the_change_itself(
    registry: Registry, redis_client: Redis, key: str, mine, theirs
) -> None:
    """Another writer comes after it was checked: it is checked again, and nothing is changed."""
    checked: list[object] = []

    async def check() -> None:
        checked.append(await everything(redis_client))
        if len(checked) > 1:
            raise LookupError
        await theirs(registry)

    guarded = Registry(redis_client, KEYS, None, Precondition((key,), check))
    with pytest.raises(LookupError):
        await mine(guarded)
    assert len(checked) == 2
    assert checked[0] != checked[1] == await everything(redis_client)


async def test_redis_never_holds_a_secret(
    redis_url: str, registry: Registry, redis_client: Redis
) -> None:
    """After tokens were written, used and guessed at, only digests are there, byte for byte."""
    async with sidecar(redis_url) as here:
        for _ in range(2):
            assert await here.ask(67, request_id="r") == "allow"
            await here.ask(99, request_id="r")
    for key in await redis_client.keys("*"):
        dump = await redis_client.dump(key)
        for number in (67, 68, 99):
            assert seed.secret_of(number).encode() not in key + dump
    held = await redis_client.hgetall(KEYS.token(TOKEN))
    assert len(held[b"sha256"]) == 32
    assert "sha256" not in repr(seed.token(1, user=1, team=1))
