"""Counts of all processes as series for charts."""

from math import inf

import pytest

from authsidecar.admin.fleet import quantile, series
from authsidecar.store.fleet import SPANS, Counts
from authsidecar.times import UnixMs

HOUR = SPANS["hour"]
NOW = UnixMs(1_800_000_005_000)
"""Five seconds into a slot."""


def slot(ago: int) -> int:
    """The start of the slot so many before this one."""
    return HOUR.start(NOW) - ago * HOUR.step_s


def test_rates_are_of_a_second_and_the_last_slot_is_not_over_yet():
    """20 admissions in the ten seconds of a slot are 2 a second; in five of them, 4."""
    counts = Counts({"none": 20, "token_unknown": 5}, {0.001: 25})
    found = series(HOUR, {slot(1): counts, slot(0): counts}, NOW)
    assert [(one.admitted, one.refused) for one in found.points[-2:]] == [(2, 0.5), (4, 1)]


def test_a_slot_that_has_just_begun_has_no_rate_yet():
    """What a process adds may be of the second before; the total has it."""
    found = series(HOUR, {slot(0): Counts({"none": 20}, {})}, UnixMs(NOW - 1))
    assert found.points[-1].admitted is None
    assert found.admitted == 20


def test_a_slot_that_nobody_wrote_is_a_gap_and_an_idle_one_is_zero():
    """That Redis was away does not look like silence."""
    found = series(HOUR, {slot(0): Counts({}, {})}, NOW)
    assert [one.admitted for one in found.points[-2:]] == [None, 0]
    assert found.points[-1].p99 is None


def test_a_series_is_whole_and_has_no_slot_of_another_time():
    """One point for each slot, and totals of these alone."""
    old = slot(HOUR.slots)
    found = series(HOUR, {old: Counts({"none": 9}, {}), slot(2): Counts({"none": 1}, {})}, NOW)
    assert [one.at for one in found.points] == [1000 * at for at in HOUR.starts(NOW)]
    assert found.admitted == 1


def test_refusals_are_by_reason_the_commonest_first():
    """Together over all slots; `none` is no refusal."""
    found = series(
        HOUR,
        {
            slot(1): Counts({"a": 1, "b": 1, "none": 7}, {0.001: 9}),
            slot(0): Counts({"b": 1}, {0.5: 1}),
        },
        NOW,
    )
    assert list(found.refused.items()) == [("b", 2), ("a", 1)]
    assert found.p50 == pytest.approx(0.001 * 5 / 9)
    assert found.p99 == pytest.approx(0.001 + 0.499 * 0.9)


@pytest.mark.parametrize(
    ("times", "part", "seconds"),
    [
        ({}, 0.5, None),
        ({0.001: 100}, 0.5, 0.0005),
        ({0.001: 98, 0.005: 2}, 0.99, 0.003),
        ({0.005: 1, 0.001: 0}, 1, 0.005),
        ({1.0: 1, inf: 9}, 0.99, 1.0),
    ],
)
def test_a_quantile_is_as_prometheus_has_it(times, part, seconds):
    """Even within a bucket; past the highest bound, that bound."""
    assert quantile(times, part) == seconds
