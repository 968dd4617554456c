"""The store of decisions over a Redis in memory: caches, proofs and what follows from them."""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest
from redis.asyncio import Redis

from authsidecar.decision.authorize import STALE, UNSYNCED, Charged, Claim, StoreError
from authsidecar.decision.model import Limit, Place, Role
from authsidecar.decision.ratelimit.charges import Charge, of_user
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.keys import Keys, owner_bucket
from authsidecar.store.refusals import FLOOD
from authsidecar.times import UnixMs
from tests.support.decisions import credential
from tests.support.memory import TEAM, TOKEN, USER, MemoryRedis, world

KEYS = Keys("")
COUNTER = of_user(USER, Limit(200))
STATUS_STALE, STATUS_REFUSED = 0, 2


@pytest.fixture
def redis() -> MemoryRedis:
    return world(KEYS)


@pytest.fixture
async def store(redis: MemoryRedis) -> AsyncIterator[DecisionStore]:
    made = DecisionStore(cast("Redis", redis), KEYS, budget_ms=5000)
    yield made
    await made.close()


async def test_a_record_is_known_once_it_was_loaded(store: DecisionStore) -> None:
    """For exactly that secret."""
    assert store.known(credential(TOKEN)) is None
    record = await store.load(credential(TOKEN), fresh=False)
    assert record is not None
    assert record.role is Role.OWNER
    assert store.known(credential(TOKEN)) is record
    assert store.known(credential(TOKEN, "guess")) is None


async def test_a_wrong_secret_does_not_push_out_the_right_one(store: DecisionStore) -> None:
    """Whoever guesses costs the owner nothing."""
    record = await store.load(credential(TOKEN), fresh=False)
    assert await store.load(credential(TOKEN, "guess"), fresh=False) is None
    assert store.known(credential(TOKEN)) is record


async def test_a_token_that_is_gone_is_forgotten(redis: MemoryRedis, store: DecisionStore) -> None:
    """By the first load that does not find it."""
    await store.load(credential(TOKEN), fresh=False)
    del redis.hashes[KEYS.token(TOKEN)]
    assert await store.load(credential(TOKEN), fresh=True) is None
    assert store.known(credential(TOKEN)) is None


@pytest.mark.parametrize(
    ("stale", "instance_kept", "record_kept"),
    [(1, False, True), (2, True, False), (3, False, False)],
)
async def test_what_failed_its_proof_is_forgotten_and_no_more(
    redis: MemoryRedis, store: DecisionStore, stale: int, instance_kept: bool, record_kept: bool
) -> None:
    """Bit 0 is the instance, bit 1 the record; nothing is taken as charged."""
    instance = await store.instance(fresh=False)
    record = await store.load(credential(TOKEN), fresh=False)
    redis.answers.append([STATUS_STALE, stale])
    assert await store.charge(Claim((COUNTER,), instance, record), repeat_key=None) is STALE
    assert (store.current() is instance) is instance_kept
    assert (store.known(credential(TOKEN)) is record) is record_kept


async def test_a_stale_record_that_is_proven_alone_is_forgotten(
    redis: MemoryRedis, store: DecisionStore
) -> None:
    """Without the instance, the record's proof is bit 0."""
    record = await store.load(credential(TOKEN), fresh=False)
    redis.answers.append([STATUS_STALE, 1])
    assert await store.charge(Claim((COUNTER,), None, record), repeat_key=None) is STALE
    assert store.known(credential(TOKEN)) is None


async def test_a_charge_says_what_is_left(redis: MemoryRedis, store: DecisionStore) -> None:
    """Of each counter, in their order, by Redis's clock."""
    other = Charge("team", "t:3", "team", Limit(10))
    redis.answers.append([1, 0, 5, 111, 6, 222])
    charged = await store.charge(Claim((COUNTER, other)), repeat_key=None)
    assert isinstance(charged, Charged)
    assert charged.admitted
    assert [(q.scope, q.remaining, q.reset_at) for q in charged.quotas] == [
        ("user", 5, 111),
        ("team", 6, 222),
    ]
    assert abs(charged.now - store.now()) < 1000


async def test_nothing_to_charge_and_nothing_to_prove_asks_nobody(
    redis: MemoryRedis, store: DecisionStore
) -> None:
    """It is admitted at once."""
    charged = await store.charge(Claim(()), repeat_key=b"x")
    assert isinstance(charged, Charged)
    assert charged.admitted
    assert redis.calls == 0


async def test_a_flood_is_refused_without_asking(redis: MemoryRedis, store: DecisionStore) -> None:
    """After as many refusals by Redis; a peek asks all the same."""
    claim = Claim((COUNTER,))
    far = store.now() + 60_000
    redis.answers += [[STATUS_REFUSED, 0, 0, far]] * (FLOOD + 1)
    for _ in range(FLOOD + 2):
        charged = await store.charge(claim, repeat_key=None)
        assert isinstance(charged, Charged)
        assert not charged.admitted
    assert redis.calls == FLOOD
    await store.charge(claim, repeat_key=None, peek=True)
    assert redis.calls == FLOOD + 1


async def test_no_state_is_used_before_a_sync_is_complete(redis: MemoryRedis) -> None:
    """Neither what it has begun, nor what Redis lost after it was complete."""
    store = DecisionStore(cast("Redis", redis), KEYS, budget_ms=5000, synced=True)
    with pytest.raises(StoreError) as error:
        await store.instance(fresh=False)
    assert error.value.kind == UNSYNCED
    redis.set_hash(KEYS.instance, synced=1)
    held = await store.instance(fresh=True)
    assert store.current() is held
    redis.set_hash(KEYS.instance, synced=0)
    with pytest.raises(StoreError):
        await store.instance(fresh=True)
    assert store.current() is None
    redis.set_hash(KEYS.instance, synced=None)
    with pytest.raises(StoreError):
        await store.instance(fresh=True)
    redis.set_hash(KEYS.sync_status, at=1)
    assert await store.instance(fresh=True)
    await store.close()


async def test_a_sync_that_was_released_asks_for_no_more(redis: MemoryRedis) -> None:
    """Its state is the operator's own from then on."""
    store = DecisionStore(cast("Redis", redis), KEYS, budget_ms=5000)
    redis.set_hash(KEYS.instance, synced=1)
    await store.instance(fresh=True)
    redis.set_hash(KEYS.instance, synced="")
    await store.instance(fresh=True)
    redis.set_hash(KEYS.instance, synced=None)
    assert await store.instance(fresh=True)
    await store.close()


async def test_those_who_ask_at_the_same_time_share_a_load(
    redis: MemoryRedis, store: DecisionStore
) -> None:
    """One reading for the instance, and the same object for all."""
    first, second = await asyncio.gather(store.instance(fresh=False), store.instance(fresh=False))
    assert first is second


async def test_a_place_is_kept_for_a_while(redis: MemoryRedis, store: DecisionStore) -> None:
    """Also that there is none."""
    key = KEYS.owners(owner_bucket("u1"))
    redis.set_hash(key, u1=TEAM)
    assert await store.places(("u1",)) == {"u1": Place(TEAM)}
    redis.set_hash(key, u1=9)
    assert await store.places(("u1", "u2")) == {"u1": Place(TEAM), "u2": None}


async def test_a_known_token_takes_no_place_in_the_pace(store: DecisionStore) -> None:
    """A refused address may look up one that it knew; guesses are paced."""
    await store.load(credential(TOKEN), fresh=False)
    store.refused_address("a:192.0.2.1", UnixMs(store.now() + 60_000))
    guesses = [store.may_look_up("a:192.0.2.1", credential(TOKEN, str(i))) for i in range(30)]
    assert not all(guesses)
    assert store.may_look_up("a:192.0.2.1", credential(TOKEN))


async def test_a_ping_sets_the_clock(redis: MemoryRedis, store: DecisionStore) -> None:
    """By Redis's, to the microsecond."""
    await store.ping()
    assert abs(store.clock_offset_ms) < 1000
    await store.ready()
    assert store.current() is not None
