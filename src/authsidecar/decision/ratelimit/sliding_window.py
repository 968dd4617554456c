"""The exact sliding window as a pure function: the model that the Lua script is held to.

State is the admission times, oldest first. An admission at `t` counts in every window up to,
but not including, `t + window`: so at most `limit` admissions lie in any half-open interval of
the window's length, no request that fits is refused, and `t + window` of the right admission is
the first millisecond at which the next one fits. Refused requests leave no trace.

Time that runs backwards (a corrected clock, a failover to a server behind) moves admissions that
lie in the future to now: they count for a full window from now, and no longer.
"""

from typing import NamedTuple

from authsidecar.decision.model import Limit
from authsidecar.times import UnixMs

State = tuple[int, ...]


class Counted(NamedTuple):
    """A counter as it stands: `reset_at` is when it next admits more than now.

    For a full counter that is the retry instant; one millisecond earlier is still refused.
    """

    fits: bool
    remaining: int
    reset_at: UnixMs


def current(state: State, limit: Limit, now: UnixMs) -> State:
    """The admissions that still count at `now`."""
    return tuple(min(at, now) for at in state if min(at, now) + limit.window_ms > now)


def count(state: State, limit: Limit, now: UnixMs) -> Counted:
    """What a counter says at `now`, without charging it; `state` must be current."""
    used = len(state)
    if used >= limit.requests:
        return Counted(False, 0, UnixMs(state[used - limit.requests] + limit.window_ms))
    return Counted(
        True, limit.requests - used, UnixMs((state[0] if state else now) + limit.window_ms)
    )


def charge(
    states: tuple[State, ...], limits: tuple[Limit, ...], now: UnixMs
) -> tuple[tuple[State, ...], bool, tuple[Counted, ...]]:
    """Charge one unit to all counters, or to none if any is full.

    Returns:
        The new states, whether the request is admitted, and every counter after it.
    """
    kept = tuple(current(s, lim, now) for s, lim in zip(states, limits, strict=True))
    counted = tuple(count(s, lim, now) for s, lim in zip(kept, limits, strict=True))
    if not all(c.fits for c in counted):
        return kept, False, counted
    after = tuple((*s, int(now)) for s in kept)
    return (
        after,
        True,
        tuple(
            Counted(True, lim.requests - len(s), UnixMs(s[0] + lim.window_ms))
            for s, lim in zip(after, limits, strict=True)
        ),
    )
