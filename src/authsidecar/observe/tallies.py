"""What is counted before its series have it: plain numbers cost no lock and no look-up."""

from bisect import bisect_left
from operator import add
from typing import Final

from prometheus_client import Counter

from authsidecar.observe.batch_histogram import BatchHistogram

BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""The upper bounds of the buckets that times are counted in, in seconds."""


class Times:
    """Times that a histogram does not have yet.

    Attributes:
        written: how many it has, by bucket of BOUNDS_S; at last those that took longer.
    """

    __slots__ = ("_series", "_times", "_total", "written")

    def __init__(self, series: BatchHistogram) -> None:
        self._series = series
        self.written = [0] * (len(BOUNDS_S) + 1)
        self._clear()

    def add(self, seconds: float) -> None:
        """One more."""
        self._times[bisect_left(BOUNDS_S, seconds)] += 1
        self._total += seconds

    def write(self) -> int:
        """Have the histogram observe them: how many they are."""
        number = sum(self._times)
        if number:
            self._series.add(self._times, self._total)
            self.written = list(map(add, self.written, self._times))
            self._clear()
        return number

    def _clear(self) -> None:
        self._times = [0] * (len(BOUNDS_S) + 1)
        self._total = 0.0


class Tally:
    """Decisions of one kind that their counter does not have yet.

    Attributes:
        times: of those that are measured, which are counted by them.
        unmeasured: how many the others are.
        written: how many the counter has.
    """

    __slots__ = ("_counter", "times", "unmeasured", "written")

    def __init__(self, counter: Counter, times: BatchHistogram) -> None:
        self._counter = counter
        self.times = Times(times)
        self.unmeasured = 0
        self.written = 0

    def write(self) -> None:
        """Have the series count them."""
        number = self.times.write() + self.unmeasured
        if number:
            self._counter.inc(number)
            self.written += number
            self.unmeasured = 0
