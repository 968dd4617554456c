"""What a process keeps of token records, and for how long."""

from dataclasses import replace
from hashlib import sha256

from authsidecar.decision.model import (
    Credential,
    Permission,
    Role,
    TeamId,
    TokenId,
    TokenRecord,
    UserId,
)
from authsidecar.store.near_cache import DUE, NearCache


def credential(token: int, secret: str = "right") -> Credential:
    return Credential(TokenId(token), sha256(secret.encode()).digest())


def record(token: int, secret: str = "right") -> TokenRecord:
    return TokenRecord(
        token=TokenId(token),
        digest=credential(token, secret).digest,
        name="",
        user=UserId(1),
        team=TeamId(1),
        permissions=frozenset({Permission.READ}),
        expires_at=None,
        role=Role.MEMBER,
    )


def test_a_record_is_found_by_its_id_and_secret_alone() -> None:
    """Another secret or another id finds nothing."""
    cache = NearCache(10, 5.0)
    cache.hold(made := record(1), 100.0)
    found = cache.find(credential(1), 100.0)
    assert found is not None
    assert found.record is made
    assert cache.find(credential(1, "wrong"), 100.0) is None
    assert cache.find(credential(2), 100.0) is None


def test_a_record_past_its_age_is_only_recognised() -> None:
    """It is not used, but its owner is no stranger."""
    cache = NearCache(10, 5.0)
    cache.hold(record(1), 100.0)
    assert cache.find(credential(1), 105.0) is not None
    assert cache.find(credential(1), 105.1) is None
    assert cache.recognises(credential(1))
    assert not cache.recognises(credential(1, "wrong"))


def test_a_record_that_says_the_same_stays_the_one_that_is_held() -> None:
    """What is remembered of it stays remembered; its age begins anew. Any change is a new one."""
    cache = NearCache(10, 5.0)
    cache.hold(first := record(1), 100.0)
    cache.hold(record(1), 104.0)
    found = cache.find(credential(1), 108.0)
    assert found is not None
    assert found.record is first
    for changed in ({"name": "other"}, {"nonce": b"new"}, {"role": None}):
        cache.hold(read := replace(record(1), **changed), 104.0)
        found = cache.find(credential(1), 108.0)
        assert found is not None
        assert found.record is read


def test_records_that_are_read_together_are_due_at_different_times() -> None:
    """All before their greatest age, spread over a fifth of it."""
    cache = NearCache(1000, 5.0)
    for number in range(1, 501):
        cache.hold(record(number), 100.0)
    due = [held.due_at for n in range(1, 501) if (held := cache.find(credential(n), 100.0))]
    low, high = (100.0 + 5.0 * share for share in DUE)
    assert all(low <= at <= high for at in due)
    assert max(due) - min(due) > 0.8 * (high - low)


def test_the_longest_unused_goes_first() -> None:
    """Use keeps a record; what is held is bounded."""
    cache = NearCache(2, 5.0)
    cache.hold(record(1), 100.0)
    cache.hold(record(2), 100.0)
    cache.find(credential(1), 100.0)
    cache.hold(record(3), 100.0)
    assert len(cache) == 2
    assert cache.find(credential(2), 100.0) is None
    assert cache.find(credential(1), 100.0) is not None


def test_nothing_is_held_where_nothing_may_be() -> None:
    """A cache of no records is one that never finds."""
    cache = NearCache(0, 5.0)
    cache.hold(record(1), 100.0)
    assert cache.find(credential(1), 100.0) is None


def test_a_wrong_guess_leaves_the_right_record() -> None:
    """Only another digest in Redis drops what is held."""
    cache = NearCache(10, 5.0)
    cache.hold(made := record(1), 100.0)
    cache.absent(TokenId(1), made.digest)
    assert cache.find(credential(1), 100.0) is not None
    cache.absent(TokenId(1), b"")
    assert cache.find(credential(1), 100.0) is None
    cache.absent(TokenId(2), b"")


def test_only_the_very_record_is_outdated() -> None:
    """One that was read since is used on."""
    cache = NearCache(10, 5.0)
    cache.hold(old := record(1), 100.0)
    cache.hold(replace(old, nonce=b"new"), 101.0)
    cache.outdate(old)
    found = cache.find(credential(1), 101.0)
    assert found is not None
    cache.outdate(found.record)
    assert cache.find(credential(1), 101.0) is None
    assert not cache.holds(found.record, 101.0)
    assert cache.recognises(credential(1))


def test_use_by_a_held_judgement_keeps_a_record_too() -> None:
    """It asks with the record, not with the secret."""
    cache = NearCache(4, 60.0)
    for number in range(1, 5):
        cache.hold(record(number), 100.0)
    first = cache.find(credential(1), 100.0)
    assert first is not None
    for number in range(2, 5):
        cache.find(credential(number), 100.0)
    assert cache.holds(first.record, 100.0)
    cache.hold(record(5), 100.0)
    assert cache.find(credential(2), 100.0) is None
    assert cache.find(credential(1), 100.0) is not None
