"""Refusals that stand without asking Redis, with the time as an argument."""

from hypothesis import given
from hypothesis import strategies as st

from authsidecar.decision.model import Limit, Quota
from authsidecar.decision.ratelimit.charges import Charge
from authsidecar.store.refusals import FLOOD, FORGET_MS, RECHECK_MS, Refusals
from authsidecar.times import UnixMs

FAR = 1_000_000
LIMIT = Limit(200)


def full(reset_at: int = FAR) -> Quota:
    return Quota("user", LIMIT, 0, UnixMs(reset_at))


def counter(user: str, limit: Limit = LIMIT) -> Charge:
    return Charge("user", f"u:{user}", "user", limit)


KEY = counter("7")


def flooded(quota: Quota, at: int = 0) -> Refusals:
    """Redis has refused a key often enough, just now."""
    refusals = Refusals()
    for _ in range(FLOOD):
        refusals.note(KEY, quota, UnixMs(at))
    return refusals


def test_who_is_refused_now_and_then_is_always_asked_about() -> None:
    """So a raised limit or a reset is noticed at once by whoever does not flood."""
    refusals = Refusals()
    for turn in range(10):
        at = UnixMs(turn * RECHECK_MS)
        for _ in range(FLOOD - 1):
            refusals.note(KEY, full(), at)
            assert refusals.standing(KEY, at) is None


def test_a_flood_is_refused_for_a_quarter_of_a_second_and_then_asked_about() -> None:
    """To the millisecond, and with what Redis said."""
    quota = full()
    refusals = flooded(quota, at=1000)
    assert refusals.standing(KEY, UnixMs(1000)) is quota
    assert refusals.standing(KEY, UnixMs(1000 + RECHECK_MS - 1)) is quota
    assert refusals.standing(KEY, UnixMs(1000 + RECHECK_MS)) is None
    assert refusals.standing(KEY, UnixMs(1000 + RECHECK_MS)) is quota, "one asks for all"
    refusals.note(KEY, quota, UnixMs(1000 + RECHECK_MS))
    assert refusals.standing(KEY, UnixMs(1000 + 2 * RECHECK_MS - 1)) is quota, "still a flood"


def test_a_flood_that_was_asked_about_stands_from_then() -> None:
    """However long nobody asked, and however soon somebody did."""
    for asked in (RECHECK_MS - 1, 10 * RECHECK_MS):
        refusals = flooded(full())
        refusals.note(KEY, full(), UnixMs(asked))
        assert refusals.standing(KEY, UnixMs(asked + RECHECK_MS - 1)) == full()
        assert refusals.standing(KEY, UnixMs(asked + RECHECK_MS)) is None


def test_what_nobody_meets_again_is_forgotten() -> None:
    """Else one refusal has all requests look for theirs, until a restart."""
    refusals = flooded(full())
    refusals.note(counter("8"), full(), UnixMs(100))
    assert refusals.touches((counter("9"), KEY))
    assert not refusals.touches((counter("9"),))
    refusals.forget_old(UnixMs(FORGET_MS - 1))
    assert len(refusals.seen) == 2
    assert refusals.standing(KEY, UnixMs(FORGET_MS - 1)) is None, "one asks, it is met again"
    refusals.forget_old(UnixMs(FORGET_MS + 100))
    assert list(refusals.seen) == [KEY]
    refusals.forget_old(UnixMs(2 * FORGET_MS))
    assert not refusals.seen


def test_a_clock_that_was_set_back_keeps_no_refusal() -> None:
    """Its time would never be over."""
    refusals = flooded(full(), at=FORGET_MS)
    refusals.forget_old(UnixMs(FORGET_MS - 1))
    assert refusals.seen, "this is only what Redis said a moment ago"
    refusals.forget_old(UnixMs(0))
    assert not refusals.seen


def test_an_admission_of_a_counter_that_nobody_refused_is_nothing() -> None:
    """Most are."""
    refusals = Refusals()
    refusals.clear(KEY)
    assert refusals.standing(KEY, UnixMs(0)) is None


def test_an_admission_ends_it() -> None:
    """A raised limit: the one that asked was admitted, so nobody is refused without asking."""
    refusals = flooded(full())
    assert refusals.standing(KEY, UnixMs(RECHECK_MS)) is None
    refusals.clear(KEY)
    assert refusals.standing(KEY, UnixMs(RECHECK_MS)) is None
    assert not refusals.seen


def test_a_refusal_never_stands_at_the_instant_that_its_window_opens() -> None:
    """Retry-After is exact in a flood, too."""
    refusals = flooded(full(reset_at=1010), at=1000)
    assert refusals.standing(KEY, UnixMs(1009)) is not None
    assert refusals.standing(KEY, UnixMs(1010)) is None


def test_a_refusal_of_one_key_says_nothing_of_another() -> None:
    """One flood hurts nobody else."""
    assert flooded(full()).standing(counter("8"), UnixMs(0)) is None


def test_a_refusal_ends_with_the_limit_that_was_refused() -> None:
    """A process that knows of the raised limit asks Redis at once."""
    assert flooded(full()).standing(counter("7", Limit(400)), UnixMs(0)) is None


def test_a_clock_that_goes_back_ends_it() -> None:
    """A time before the refusal is none that it was made for."""
    assert flooded(full(), at=1000).standing(KEY, UnixMs(999)) is None


def test_only_so_many_keys_are_remembered() -> None:
    """The one that was unseen for longest is forgotten: it is asked about."""
    refusals = Refusals(keys=2)
    for key in ("a", "b", "a", "c"):
        for _ in range(FLOOD):
            refusals.note(counter(key), full(), UnixMs(0))
    assert [refusals.standing(counter(key), UnixMs(0)) is None for key in "abc"] == [
        False,
        True,
        False,
    ]


@given(st.lists(st.integers(0, 400), max_size=60), st.integers(1, 2000))
def test_nothing_stands_longer_than_promised(gaps: list[int], reset_at: int) -> None:
    """Whatever the times: never RECHECK_MS after Redis was asked first, nor when it opens."""
    refusals, now, asked = Refusals(), 0, list[int]()
    for gap in gaps:
        now += gap
        if refusals.standing(KEY, UnixMs(now)) is None:
            asked.append(now)
            refusals.note(KEY, full(reset_at), UnixMs(now))
        else:
            assert now < reset_at
            assert any(now - then < RECHECK_MS for then in asked[-FLOOD:])
