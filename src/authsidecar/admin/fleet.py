"""How the whole fleet is doing: what it admitted and refused, and how long that took, over time."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Final

from authsidecar.store.fleet import SPANS, Counts, SpanName, TimeSpan, read_counts
from authsidecar.store.keys import Keys
from authsidecar.times import UnixMs

ADMITTED: Final = "none"
"""What decisions without a reason code are counted under."""


YOUNG_S: Final = 5.0
"""A slot that began so lately, in seconds, has no rates yet: processes write once a second."""


@dataclass(frozen=True, slots=True)
class Point:
    """What was decided in one slot of time.

    Attributes:
        at: when it began, in milliseconds.
        admitted: admissions a second; None: nobody has counted, or only just begun to.
        refused: refusals a second; the same.
        p50: half of the decisions took no longer, in seconds; None: none was measured.
        p99: 99 of 100 took no longer; the same.
    """

    at: UnixMs
    admitted: float | None = None
    refused: float | None = None
    p50: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """A time in slots, and as a whole.

    Attributes:
        span: which time.
        points: its slots, without gaps in time, the latest last.
        admitted: how many decisions admitted.
        refused: how many refused, by reason code, the commonest first.
        p50: of all of them, in seconds.
        p99: the same.
    """

    span: TimeSpan
    points: tuple[Point, ...]
    admitted: int
    refused: Mapping[str, int]
    p50: float | None
    p99: float | None


async def read_series(client: Any, keys: Keys, name: SpanName, now: UnixMs) -> Series:
    """What all processes have decided in the last hour, day or week.

    Args:
        client: redis-py's asyncio client.
        keys: the key names.
        name: which.
        now: Redis's clock.

    Raises:
        RedisError, OSError: Redis is away.
    """
    span = SPANS[name]
    return series(span, await read_counts(client, keys, span, now), now)


def series(span: TimeSpan, slots: Mapping[int, Counts], now: UnixMs) -> Series:
    """Slots as a series.

    Args:
        span: which time.
        slots: what was counted, by the slot's start in seconds since 1970.
        now: the moment at which the last slot ends so far.
    """
    starts = span.starts(now)
    total = _together(slots[start] for start in starts if start in slots)
    refused = Counter({code: n for code, n in total.reasons.items() if code != ADMITTED})
    return Series(
        span=span,
        points=tuple(_point(span, start, slots.get(start), now) for start in starts),
        admitted=total.reasons.get(ADMITTED, 0),
        refused=dict(sorted(refused.items(), key=lambda one: (-one[1], one[0]))),
        p50=quantile(total.times, 0.5),
        p99=quantile(total.times, 0.99),
    )


def _point(span: TimeSpan, start: int, counts: Counts | None, now: UnixMs) -> Point:
    at = UnixMs(start * 1000)
    seconds = min(span.step_s, (now - at) / 1000)  # the last one is not over yet
    if counts is None or seconds < YOUNG_S:
        return Point(at)
    admitted = counts.reasons.get(ADMITTED, 0)
    return Point(
        at,
        admitted=admitted / seconds,
        refused=(sum(counts.reasons.values()) - admitted) / seconds,
        p50=quantile(counts.times, 0.5),
        p99=quantile(counts.times, 0.99),
    )


def _together(many: Iterable[Counts]) -> Counts:
    reasons: Counter[str] = Counter()
    times: Counter[float] = Counter()
    for one in many:
        reasons.update(one.reasons)
        times.update(one.times)
    return Counts(reasons, times)


def quantile(times: Mapping[float, int], part: float) -> float | None:
    """How long such a part of the decisions took at the most, about; None: there were none.

    Within a bucket they are taken as evenly spread, as Prometheus does. What took longer than the
    highest bound is said to have taken as long as that.

    Args:
        times: how many took so long, by the upper bound in seconds.
        part: of all of them, 0 to 1.

    >>> quantile({0.001: 50, 0.005: 50}, 0.5)
    0.001
    """
    wanted = part * sum(times.values())
    if not wanted:
        return None
    below, lower = 0, 0.0
    for bound, count in sorted(times.items()):
        if below + count >= wanted:
            if bound == inf:
                return lower
            return lower + (bound - lower) * (wanted - below) / count
        below, lower = below + count, bound
    return lower
