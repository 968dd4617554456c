"""What is read of a record, over a Redis in memory."""

import pytest

from authsidecar.decision.model import Place, ResourceKind, Role, UserId
from authsidecar.store.keys import Keys, owner_bucket
from authsidecar.store.loading import Loader
from tests.support.decisions import credential
from tests.support.memory import TEAM, TOKEN, USER, MemoryRedis, world

KEYS = Keys("")


@pytest.fixture
def redis() -> MemoryRedis:
    return world(KEYS)


@pytest.fixture(params=[True, False], ids=["one server", "a cluster"])
def ordered(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_a_record_is_read_with_its_owner_and_a_nonce(
    redis: MemoryRedis, ordered: bool
) -> None:
    """A missing nonce is made first, and the same one proves the next reading."""
    loader = Loader(redis, KEYS, ordered=ordered)
    record, digest = await loader.record(credential(TOKEN))
    assert record is not None
    assert (record.user, record.team, record.role) == (USER, TEAM, Role.OWNER)
    assert digest == credential(TOKEN).digest
    assert record.nonce
    assert record.nonce == redis.texts[KEYS.user_nonce(USER)]
    again, _ = await loader.record(credential(TOKEN))
    assert again is not None
    assert again.nonce == record.nonce


async def test_a_wrong_secret_and_an_unknown_id_read_no_more(redis: MemoryRedis) -> None:
    """No nonce is made for them either."""
    loader = Loader(redis, KEYS)
    right = credential(TOKEN).digest
    assert await loader.record(credential(TOKEN, "guess")) == (None, right)
    assert await loader.record(credential(99)) == (None, b"")
    assert redis.texts == {}


@pytest.mark.parametrize("owner", [None, b"x", b"\xff"])
async def test_a_token_whose_owner_cannot_be_read_is_unknown(
    redis: MemoryRedis, owner: bytes | None
) -> None:
    """Whatever its secret."""
    redis.set_hash(KEYS.token(TOKEN), user=owner)
    record, _ = await Loader(redis, KEYS).record(credential(TOKEN))
    assert record is None


@pytest.mark.parametrize(
    "gone", [KEYS.user(USER), KEYS.team(TEAM), KEYS.team_members(TEAM)], ids=str
)
async def test_a_membership_does_not_outlive_what_it_is_made_of(
    redis: MemoryRedis, gone: str
) -> None:
    """The user, the team, or itself."""
    del redis.hashes[gone]
    record, _ = await Loader(redis, KEYS).record(credential(TOKEN))
    assert record is not None
    assert record.role is None


async def test_a_token_in_no_team_has_no_role(redis: MemoryRedis) -> None:
    """Its team is not a plain number, or not there."""
    redis.set_hash(KEYS.token(TOKEN), team="x")
    record, _ = await Loader(redis, KEYS).record(credential(TOKEN))
    assert record is not None
    assert (record.team, record.role, record.team_mcp) == (None, None, True)


@pytest.mark.parametrize("changed", [{"user": 8}, {"team": 4}, {"sha256": b"another"}])
async def test_a_token_that_moves_while_it_is_read_is_unknown(
    redis: MemoryRedis, changed: dict[str, int | bytes]
) -> None:
    """What was read belongs to two owners, or to another secret."""

    class Moving(MemoryRedis):
        def pipeline(self, *, transaction: bool):
            redis.set_hash(KEYS.token(TOKEN), **changed)
            return super().pipeline(transaction=transaction)

    moving = Moving()
    moving.hashes, moving.texts = redis.hashes, {KEYS.user_nonce(USER): b"n"}
    record, _ = await Loader(moving, KEYS).record(credential(TOKEN))
    assert record is None


async def test_the_nonce_is_older_than_what_it_proves(redis: MemoryRedis) -> None:
    """On a cluster, where no order holds, it is read in a trip of its own before."""
    order: list[str] = []

    class Watched(MemoryRedis):
        async def get(self, key: str):
            order.append("nonce")
            return await super().get(key)

        def pipeline(self, *, transaction: bool):
            order.append("record")
            return super().pipeline(transaction=transaction)

    watched = Watched()
    watched.hashes, watched.texts = redis.hashes, {KEYS.user_nonce(USER): b"n"}
    await Loader(watched, KEYS, ordered=False).record(credential(TOKEN))
    assert order == ["nonce", "record"]


async def test_the_instance_is_read_with_what_a_sync_says(
    redis: MemoryRedis, ordered: bool
) -> None:
    """Its own nonce proves it."""
    redis.set_hash(KEYS.instance, synced=1)
    instance, synced = await Loader(redis, KEYS, ordered=ordered).instance()
    assert instance.api_enabled
    assert instance.nonce == redis.texts[KEYS.instance_nonce]
    assert synced == b"1"


async def test_a_sync_is_followed_once_it_has_told(redis: MemoryRedis) -> None:
    """Its status says when."""
    loader = Loader(redis, KEYS)
    assert not await loader.followed()
    redis.set_hash(KEYS.sync_status, at=1)
    assert await loader.followed()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("3", Place(TEAM)),
        ("3 server", Place(TEAM, ResourceKind.SERVER)),
        ("3 application p e a%20b", Place(TEAM, ResourceKind.APPLICATION, "p", "e", "a b")),
        ("3 planet p", Place(TEAM)),
        ("3 server a b c d e", Place(TEAM)),
        ("x server", None),
        (None, None),
        ("-3", None),
    ],
)
async def test_a_place_that_cannot_be_read_is_not_known(
    redis: MemoryRedis, text: str | None, place: Place | None
) -> None:
    """A team's id and what lies around it, or the team alone, or nothing."""
    redis.set_hash(KEYS.owners(owner_bucket("u1")), u1=text)
    assert await Loader(redis, KEYS).places(("u1", "u2")) == {"u1": place, "u2": None}


async def test_values_that_cannot_be_read_are_told_with_their_key(redis: MemoryRedis) -> None:
    """Each time that they are met; the log has them once."""
    told: list[tuple[str, str]] = []
    loader = Loader(redis, KEYS, unreadable=lambda key, field: told.append((key, field)))
    await loader.record(credential(TOKEN))
    await loader.instance()
    assert told == []
    redis.set_hash(KEYS.token(TOKEN), expires_at="soon")
    redis.set_hash(KEYS.user(USER), limit="5")
    redis.set_hash(KEYS.team(TEAM), mcp_enabled="yes")
    redis.set_hash(KEYS.team_members(TEAM), **{str(USER): "boss"})
    redis.set_hash(KEYS.instance, api_enabled="on")
    record, _ = await loader.record(credential(TOKEN))
    await loader.instance()
    assert told == [
        (KEYS.token(TOKEN), "expires_at"),
        (KEYS.user(USER), "limit"),
        (KEYS.team(TEAM), "mcp_enabled"),
        (KEYS.team_members(TEAM), "role"),
        (KEYS.instance, "api_enabled"),
    ]
    assert record is not None
    assert (record.role, record.team_mcp, record.expires_at, record.limits) == (None, False, 0, {})
    assert UserId(7) == record.user
