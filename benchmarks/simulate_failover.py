"""What becomes of the limiter's promise when Redis's primary fails.

One user's counter on a primary that replicates asynchronously. At a random moment the primary
dies; the promoted replica has missed the last milliseconds of admissions, and may have another
clock. The greatest number admitted in any window of real time is held against what can be
promised, in every run.
"""

import random
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

LIMIT = 200
WINDOW_MS = 60_000
GAP_MS = 5_000
"""From the primary's death until the replica serves: requests meanwhile get 503."""

BURST_GAP_MS = 1
"""Between two requests of a client that sends a thousand a second."""

STEADY_GAP_MS = 150
"""On average between two requests of clients that send twice the limit at random."""

FAILS_AT_MS = 2 * WINDOW_MS
RUNS = 60
SEED = 11


class Counter:
    """The sliding window of ratelimit/, one admission at a time, as the Lua script keeps it."""

    def __init__(self, times: Sequence[int] = ()) -> None:
        """Begin with what a replica has."""
        self.times = deque(times)

    def admit(self, now: int) -> bool:
        """Charge one request, if it fits."""
        times = self.times
        if times and times[-1] > now:  # time ran backwards: the future counts from now on
            times = self.times = deque(min(at, now) for at in times)
        while times and times[0] + WINDOW_MS <= now:
            times.popleft()
        if len(times) >= LIMIT:
            return False
        times.append(now)
        return True

    def retry_at(self) -> int:
        """When a full counter opens."""
        return self.times[len(self.times) - LIMIT] + WINDOW_MS


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens.

    Attributes:
        bursts: one client uses its limit up within 200 ms whenever it can, and the failure
            falls into a burst or just behind it; else traffic is steady, the failure anywhere.
        lag_ms: how far the promoted replica is behind.
        clock_ms: how far its clock is ahead; below 0: behind.
        wait: an admission is answered 200 only when a replica has it, else 503.
        wait_lag_ms: how far that replica is behind: the promoted one, or a faster one.
        failovers: how many, one soon after the other.
    """

    bursts: bool
    lag_ms: int = 0
    clock_ms: int = 0
    wait: bool = False
    wait_lag_ms: int = 0
    failovers: int = 1


@dataclass(frozen=True, slots=True)
class Found:
    """One run.

    Attributes:
        extra: admitted above the limit, in the worst window.
        bound: what can be promised of this run: the answered admissions that the replica missed,
            and where its clock is ahead, those that it forgot early.
        late_ms: how much later than the first legal moment a client was admitted, at the most.
    """

    extra: int
    bound: int
    late_ms: int


def run(scenario: Scenario, rng: random.Random) -> Found:
    """One history; times are real milliseconds, a server's own clock may differ."""
    gap: Callable[[], int] = partial(_gap, scenario.bursts, rng)
    counter, offset, answered = Counter(), 0, list[int]()
    at, bound, late, left = 0, 0, 0, scenario.failovers
    served_from, waited = 0, False
    fails_at = FAILS_AT_MS + _moment(scenario, rng)
    end = fails_at + 3 * WINDOW_MS
    while at < end:
        if left and at > fails_at:
            left -= 1
            missed, unanswered = _cut(answered, fails_at, scenario)
            bound += missed + _most_within(answered, scenario.clock_ms)
            kept = [t for t in counter.times if t - offset <= fails_at - scenario.lag_ms]
            del answered[len(answered) - unanswered :]
            counter, offset = Counter(kept), scenario.clock_ms
            at = served_from = fails_at + GAP_MS
            fails_at, waited = at + _moment(scenario, rng), False
            continue
        if counter.admit(at + offset):
            if waited and len(answered) >= LIMIT:
                late = max(late, at - max(answered[-LIMIT] + WINDOW_MS, served_from))
            answered.append(at)
            at, waited = at + gap(), False
        elif scenario.bursts:
            at, waited = max(at + 1, counter.retry_at() - offset), True
        else:
            at += gap()
    return Found(max(0, _most_within(answered, WINDOW_MS) - LIMIT), bound, late)


def _gap(bursts: bool, rng: random.Random) -> int:
    """Until the next request."""
    return BURST_GAP_MS if bursts else max(1, round(rng.expovariate(1 / STEADY_GAP_MS)))


def _moment(scenario: Scenario, rng: random.Random) -> int:
    """How long after the beginning of a window's traffic the primary dies."""
    return rng.randrange(LIMIT + scenario.lag_ms + 1 if scenario.bursts else WINDOW_MS)


def _cut(answered: list[int], fails_at: int, scenario: Scenario) -> tuple[int, int]:
    """How many answered admissions the replica missed, and how many had to be answered 503."""
    behind = sum(t > fails_at - scenario.lag_ms for t in answered)
    unanswered = scenario.wait * sum(t > fails_at - scenario.wait_lag_ms for t in answered)
    return max(0, behind - unanswered), unanswered


def _most_within(times: Sequence[int], length: int) -> int:
    """The greatest number of these ordered times in any half-open interval of that length."""
    if length <= 0:
        return 0
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - length:
            first += 1
        most = max(most, last - first + 1)
    return most


ROWS: tuple[tuple[str, Scenario], ...] = (
    ("steady, lag 10 ms", Scenario(False, lag_ms=10)),
    ("steady, lag 100 ms", Scenario(False, lag_ms=100)),
    ("steady, lag 1 s", Scenario(False, lag_ms=1_000)),
    ("burst, lag 1 ms", Scenario(True, lag_ms=1)),
    ("burst, lag 10 ms", Scenario(True, lag_ms=10)),
    ("burst, lag 100 ms", Scenario(True, lag_ms=100)),
    ("burst, lag 1 s", Scenario(True, lag_ms=1_000)),
    ("burst, lag 100 ms, three failovers in a row", Scenario(True, lag_ms=100, failovers=3)),
    (
        "burst, lag 100 ms, `WAIT` for the replica that is promoted",
        Scenario(True, lag_ms=100, wait=True, wait_lag_ms=100),
    ),
    (
        "burst, lag 100 ms, `WAIT` for another replica, 1 ms behind",
        Scenario(True, lag_ms=100, wait=True, wait_lag_ms=1),
    ),
    ("steady, clock 1 s ahead", Scenario(False, clock_ms=1_000)),
    ("burst, clock 100 ms ahead", Scenario(True, clock_ms=100)),
    ("burst, clock 10 s ahead", Scenario(True, clock_ms=10_000)),
    ("burst, clock 100 ms behind", Scenario(True, clock_ms=-100)),
    ("burst, clock 10 s behind", Scenario(True, clock_ms=-10_000)),
)


def simulate(scenario: Scenario, runs: int = RUNS) -> list[Found]:
    """So many histories of one scenario, the same ones every time.

    Raises:
        RuntimeError: in one of them more was admitted than can be promised.
    """
    rng = random.Random(SEED)
    found = [run(scenario, rng) for _ in range(runs)]
    for one in found:
        if one.extra > one.bound:
            raise RuntimeError(f"{scenario}: {one}")
    return found


def table(runs: int = RUNS) -> str:
    """The table of docs/explanation/scaling.md."""
    lines = [
        "| traffic and failure | above the limit, mean | worst | its bound | late by at most |",
        "|---|---|---|---|---|",
    ]
    for title, scenario in ROWS:
        found = simulate(scenario, runs)
        worst = max(found, key=lambda f: (f.extra, f.bound))
        late = f"{max(f.late_ms for f in found):,} ms"
        lines.append(
            f"| {title} | {statistics.mean(f.extra for f in found):.1f} | {worst.extra} "
            f"| {worst.bound} | {late if scenario.bursts else '-'} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
