"""The model of the sliding window, example by example (its laws are in tests/property)."""

import pytest

from authsidecar.decision.model import Limit
from authsidecar.decision.ratelimit.sliding_window import Counted, charge, count, current
from authsidecar.times import UnixMs

LIMIT = Limit(2, 1000)


def at(now: int) -> UnixMs:
    return UnixMs(now)


def test_an_empty_counter_has_all_its_room() -> None:
    """It would be full again a window from now."""
    assert count((), LIMIT, at(5000)) == Counted(True, 2, at(6000))


def test_a_counter_that_is_used_says_what_is_left() -> None:
    """And when its oldest leaves."""
    assert count((5000,), LIMIT, at(5400)) == Counted(True, 1, at(6000))


def test_a_full_counter_says_when_its_oldest_leaves() -> None:
    """That millisecond admits, the one before does not."""
    state = (5000, 5400)
    assert count(state, LIMIT, at(5999)) == Counted(False, 0, at(6000))
    assert current(state, LIMIT, at(5999)) == state
    assert current(state, LIMIT, at(6000)) == (5400,)


def test_all_counters_are_charged_or_none() -> None:
    """A full second counter leaves the first as it was."""
    states, admitted, counted = charge(((), (5000,)), (LIMIT, Limit(1, 1000)), at(5001))
    assert (states, admitted) == (((), (5000,)), False)
    assert counted == (Counted(True, 2, at(6001)), Counted(False, 0, at(6000)))
    states, admitted, counted = charge(((), (5000,)), (LIMIT, Limit(1, 1000)), at(6000))
    assert (states, admitted) == (((6000,), (6000,)), True)
    assert counted == (Counted(True, 1, at(7000)), Counted(True, 0, at(7000)))


def test_a_charge_tells_of_the_oldest_that_counts() -> None:
    """What is left, and when the first of them leaves."""
    states, admitted, counted = charge(((5000,),), (LIMIT,), at(5400))
    assert (states, admitted, counted) == (((5000, 5400),), True, (Counted(True, 0, at(6000)),))


def test_a_counter_needs_its_limit() -> None:
    """One without the other is a mistake, and charges nothing."""
    with pytest.raises(ValueError, match="zip"):
        charge(((),), (LIMIT, LIMIT), at(5000))
    with pytest.raises(ValueError, match="zip"):
        charge(((), ()), (LIMIT,), at(5000))


def test_a_lowered_limit_waits_for_as_many_as_are_too_many() -> None:
    """Three were admitted, one is now the limit: the last of them has to leave first."""
    assert count((10, 20, 30), Limit(1, 1000), at(40)).reset_at == 1030


def test_what_lies_in_the_future_counts_from_now() -> None:
    """After a clock that ran back, for one window and no longer."""
    assert current((9000, 9500), LIMIT, at(5000)) == (5000, 5000)
    assert current((5000, 5000), LIMIT, at(6000)) == ()
