"""The pace of look-ups for addresses that have used up their failed authentications."""

from hypothesis import given
from hypothesis import strategies as st

from authsidecar.decision.ratelimit.pace import AddressPace
from authsidecar.times import UnixMs

NOW = UnixMs(1_800_000_000_000)
LATER = UnixMs(NOW + 60_000)


def look_ups(pace: AddressPace, address: str, now: int, tries: int) -> int:
    return sum(pace.may_look_up(address, UnixMs(now)) for _ in range(tries))


def test_an_address_that_was_never_refused_is_not_paced() -> None:
    """However often it asks."""
    pace = AddressPace(10)
    pace.refuse("other", LATER)
    assert look_ups(pace, "a", NOW, 1000) == 1000


def test_a_refused_address_has_ten_look_ups_a_second() -> None:
    """Ten at once, then one each tenth of a second."""
    pace = AddressPace(10)
    pace.refuse("a", LATER)
    assert look_ups(pace, "a", NOW, 50) == 10
    assert look_ups(pace, "a", NOW + 99, 50) == 0
    assert look_ups(pace, "a", NOW + 100, 50) == 1
    assert look_ups(pace, "a", NOW + 1100, 50) == 10


def test_unless_told_otherwise_the_pace_is_ten() -> None:
    """The figure of the documentation."""
    pace = AddressPace()
    pace.refuse("a", LATER)
    assert look_ups(pace, "a", NOW, 50) == 10


def test_a_new_rate_counts_for_those_that_are_refused() -> None:
    """What they have left is cut to it, and grows by it."""
    pace = AddressPace(10)
    pace.refuse("a", LATER)
    assert look_ups(pace, "a", NOW, 1) == 1
    pace.set_rate(3)
    assert look_ups(pace, "a", NOW, 50) == 3
    assert look_ups(pace, "a", NOW + 1000, 50) == 3


def test_a_refused_address_goes_behind_those_that_were_seen_before() -> None:
    """Whoever is refused again, or asks, is forgotten last."""
    pace = AddressPace(10)
    for address in ("a", "b", "a"):
        pace.refuse(address, LATER)
    assert list(pace._refused) == ["b", "a"]
    look_ups(pace, "b", NOW, 1)
    assert list(pace._refused) == ["a", "b"]


def test_a_later_refusal_lasts_longer() -> None:
    """The last one says until when, and what was left stays."""
    pace = AddressPace(10)
    pace.refuse("a", UnixMs(NOW + 50))
    assert look_ups(pace, "a", NOW, 7) == 7
    pace.refuse("a", UnixMs(NOW + 60))
    assert look_ups(pace, "a", NOW + 50, 50) == 3
    assert look_ups(pace, "a", NOW + 60, 50) == 50


def test_a_refusal_ends_with_its_window() -> None:
    """At the instant that admits again, the address is like any other."""
    pace = AddressPace(10)
    pace.refuse("a", UnixMs(NOW + 50))
    assert look_ups(pace, "a", NOW, 50) == 10
    assert look_ups(pace, "a", NOW + 49, 50) == 0
    assert look_ups(pace, "a", NOW + 50, 50) == 50


def test_another_refusal_gives_no_new_look_ups() -> None:
    """An attacker can't refill by being refused again."""
    pace = AddressPace(10)
    for _ in range(5):
        pace.refuse("a", LATER)
        look_ups(pace, "a", NOW, 50)
    assert look_ups(pace, "a", NOW, 50) == 0


def test_a_clock_that_runs_back_gives_nothing() -> None:
    """Nor does it lock the address out beyond its pace."""
    pace = AddressPace(10)
    pace.refuse("a", LATER)
    assert look_ups(pace, "a", NOW, 50) == 10
    assert look_ups(pace, "a", NOW - 5000, 50) == 0
    assert look_ups(pace, "a", NOW - 4000, 50) == 10


def test_memory_is_bounded_and_the_longest_unseen_goes_first() -> None:
    """A million addresses cost what ten thousand do."""
    pace = AddressPace(10, addresses=3)
    for address in ("a", "b", "c"):
        pace.refuse(address, LATER)
    look_ups(pace, "a", NOW, 50)
    pace.refuse("d", LATER)
    assert list(pace._refused) == ["c", "a", "d"]
    assert look_ups(pace, "b", NOW, 50) == 50


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 30)), max_size=30),
)
def test_no_stretch_of_time_sees_more_than_its_pace(
    rate: int, tries: list[tuple[int, int]]
) -> None:
    """A burst of `rate`, then `rate` a second: never more in any stretch of time."""
    pace = AddressPace(rate)
    pace.refuse("a", UnixMs(NOW + 10_000_000))
    now, taken = int(NOW), []
    for gap, count in tries:
        now += gap
        taken += [now] * look_ups(pace, "a", now, count)
    for first, start in enumerate(taken):
        for count, end in enumerate(taken[first:], 1):
            assert count <= rate + (end - start) * rate / 1000 + 1e-6
