"""The sliding window: the script on a real Redis, its model, and an oracle that only counts.

The script and the model could share a mistake. The oracle shares nothing with them: it keeps
every admission for ever and looks at every window.
"""

from collections.abc import Iterator
from ipaddress import ip_address
from itertools import count as counting
from typing import NamedTuple

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from authsidecar.decision.authorize import Outcome
from authsidecar.decision.model import Deny, Limit, Quota
from authsidecar.decision.policy import RATE_LIMITED
from authsidecar.decision.proxies.replies import render
from authsidecar.decision.ratelimit import sliding_window as model
from authsidecar.times import UnixMs
from tests.support.charge_script import Answered, Ask, ChargeScript, Counter, as_said
from tests.support.redis import RedisProcess

START = 1_800_000_000_000
RUNS = counting()
QUICK = settings(max_examples=60, deadline=None)
LONG = settings(max_examples=3000, deadline=None)


@pytest.fixture(scope="module")
def script(redis_server: RedisProcess) -> Iterator[ChargeScript]:
    with redis.Redis.from_url(redis_server.url) as client:
        yield ChargeScript(client)


class Step(NamedTuple):
    """A script call: milliseconds since the last one, and who asks for which counters."""

    gap: int
    asks: tuple[tuple[tuple[int, ...], bool], ...]  # indexes of counters, peek


class Oracle:
    """All admissions that ever were, counter by counter."""

    def __init__(self, limits: tuple[Limit, ...]) -> None:
        self.limits = limits
        self.admitted: list[list[int]] = [[] for _ in limits]

    def legal(self, index: int, now: int) -> bool:
        """Whether one more admission leaves every half-open window within the limit."""
        times = [*self.admitted[index], now]
        limit = self.limits[index]
        return all(
            sum(start <= at < start + limit.window_ms for at in times) <= limit.requests
            for start in times
        )

    def retry_at(self, indexes: tuple[int, ...], now: int) -> int:
        """The first millisecond from now on at which all of them have room."""
        return next(t for t in counting(now) if all(self.legal(i, t) for i in indexes))


class Model:
    """The pure function, with a place for its states."""

    def __init__(self) -> None:
        self.states: dict[str, model.State] = {}

    def ask(
        self, now: int, counters: tuple[Counter, ...], *, peek: bool
    ) -> tuple[bool, tuple[tuple[int, int], ...]]:
        states = tuple(self.states.get(key, ()) for key, _ in counters)
        limits = tuple(limit for _, limit in counters)
        if peek:
            kept = tuple(
                model.current(s, lim, UnixMs(now)) for s, lim in zip(states, limits, strict=True)
            )
            counted = tuple(
                model.count(s, lim, UnixMs(now)) for s, lim in zip(kept, limits, strict=True)
            )
            after, admitted = kept, all(c.fits for c in counted)
        else:
            after, admitted, counted = model.charge(states, limits, UnixMs(now))
        self.states.update(zip((key for key, _ in counters), after, strict=True))
        return admitted, as_said(counted)


LIMITS = st.lists(
    st.builds(Limit, st.integers(1, 4), st.integers(1, 30)), min_size=1, max_size=3
).map(tuple)


@st.composite
def histories(draw: st.DrawFn) -> tuple[tuple[Limit, ...], list[Step]]:
    """Up to three counters, and requests for any of them in a clock that never runs back."""
    limits = draw(LIMITS)
    some = st.sets(st.integers(0, len(limits) - 1), min_size=1).map(lambda s: tuple(sorted(s)))
    ask = st.tuples(some, st.sampled_from([False, False, False, True]))
    edges = [0, 0, 1, *(limit.window_ms + d for limit in limits for d in (-1, 0, 1))]
    gap = st.one_of(st.sampled_from(edges), st.integers(0, 40))
    step = st.builds(Step, gap, st.lists(ask, min_size=1, max_size=3).map(tuple))
    return limits, draw(st.lists(step, max_size=14))


def counters_of(limits: tuple[Limit, ...]) -> tuple[Counter, ...]:
    run = next(RUNS)
    return tuple(Counter(f"law:{run}:{i}", limit) for i, limit in enumerate(limits))


def hold_to_oracle(script: ChargeScript, limits: tuple[Limit, ...], steps: list[Step]) -> None:
    counters = counters_of(limits)
    oracle, pure, now = Oracle(limits), Model(), START
    for gap, asks in steps:
        now += gap
        sent = [Ask(tuple(counters[i] for i in chosen), peek=peek) for chosen, peek in asks]
        at, answers = script.call(now, sent)
        assert at == now
        for (chosen, peek), ask, answer in zip(asks, sent, answers, strict=True):
            legal = all(oracle.legal(i, now) for i in chosen)
            assert answer.admitted is legal
            assert pure.ask(now, ask.counters, peek=peek) == (legal, answer.counted)
            if legal and not peek:
                for i in chosen:
                    oracle.admitted[i].append(now)
        for (chosen, _), ask in zip(asks, sent, strict=True):
            retry_is_exact(script, oracle, chosen, ask.counters, now)
    for (key, _), times in zip(counters, oracle.admitted, strict=True):
        kept = [int(at) for at in script.client.lrange(key, 0, -1)]
        assert times[len(times) - len(kept) :] == kept, "only admissions are recorded"


def retry_is_exact(
    script: ChargeScript,
    oracle: Oracle,
    chosen: tuple[int, ...],
    counters: tuple[Counter, ...],
    now: int,
) -> None:
    answer = script.peek_later(now, *counters)
    if answer.admitted:
        return
    retry_at = answer.retry_at
    assert retry_at == oracle.retry_at(chosen, now)
    assert script.peek_later(retry_at, *counters).admitted
    assert not script.peek_later(retry_at - 1, *counters).admitted


@QUICK
@given(histories())
def test_exactly_the_legal_requests_pass(
    script: ChargeScript, history: tuple[tuple[Limit, ...], list[Step]]
) -> None:
    """Never more than the limit in any window, no legal request refused, all counters or none.

    Refused and peeking requests leave no trace, and each retry instant is exact.
    """
    hold_to_oracle(script, *history)


@pytest.mark.slow
@LONG
@given(histories())
def test_exactly_the_legal_requests_pass_at_length(
    script: ChargeScript, history: tuple[tuple[Limit, ...], list[Step]]
) -> None:
    """The same law over many more histories."""
    hold_to_oracle(script, *history)


WINDOW = 60_000  # long enough that Redis's own clock expires nothing while a history runs
WILD_STEPS = st.lists(
    st.tuples(
        st.one_of(
            st.sampled_from([0, 1, -1, WINDOW, -WINDOW, WINDOW - 1, 1 - WINDOW]),
            st.integers(-2 * WINDOW, 2 * WINDOW),
        ),
        st.lists(
            st.tuples(
                st.integers(0, 1),
                st.builds(Limit, st.integers(1, 5), st.sampled_from([WINDOW, 2 * WINDOW])),
            ),
            min_size=1,
            max_size=2,
            unique_by=lambda chosen: chosen[0],
        ),
        st.booleans(),
    ),
    max_size=20,
)
Wild = list[tuple[int, list[tuple[int, Limit]], bool]]


def hold_to_model(script: ChargeScript, steps: Wild) -> None:
    run, pure, now = next(RUNS), Model(), START
    for gap, chosen, peek in steps:
        now += gap
        counters = tuple(Counter(f"wild:{run}:{i}", limit) for i, limit in chosen)
        answer = script.ask(now, *counters, peek=peek)
        assert pure.ask(now, counters, peek=peek) == (answer.admitted, answer.counted)
        if not answer.admitted:
            assert script.peek_later(answer.retry_at, *counters).admitted
            assert not script.peek_later(answer.retry_at - 1, *counters).admitted


@QUICK
@given(WILD_STEPS)
def test_script_and_model_agree_while_clocks_and_limits_jump(
    script: ChargeScript, steps: Wild
) -> None:
    """Time may run backwards and limits may change: both still say the same, and retry exactly."""
    hold_to_model(script, steps)


@pytest.mark.slow
@LONG
@given(WILD_STEPS)
def test_script_and_model_agree_while_clocks_and_limits_jump_at_length(
    script: ChargeScript, steps: Wild
) -> None:
    """The same law over many more histories."""
    hold_to_model(script, steps)


@QUICK
@given(st.integers(1, 4), st.lists(st.integers(-3 * WINDOW, 0), min_size=1, max_size=12))
def test_a_clock_that_runs_back_lets_nobody_through(
    script: ChargeScript, requests: int, gaps: list[int]
) -> None:
    """While no time passes, the limit holds, however far the clock is set back; then all is free.

    A corrected clock must neither forget admissions nor lock a client out for the correction.
    """
    [counter] = counters_of((Limit(requests, WINDOW),))
    now, admitted = START, 0
    for gap in gaps:
        now += gap
        admitted += script.ask(now, counter).admitted
    assert admitted == min(requests, len(gaps))
    assert script.ask(now + WINDOW, counter, peek=True).counted[0][0] == requests


@QUICK
@given(st.lists(st.tuples(st.integers(0, WINDOW // 2), st.integers(1, 5)), min_size=1, max_size=15))
def test_a_changed_limit_counts_what_was_admitted_before(
    script: ChargeScript, steps: list[tuple[int, int]]
) -> None:
    """A request is judged by today's limit over all admissions of its window."""
    [key] = [c.key for c in counters_of((Limit(1, WINDOW),))]
    now, admitted = START, []
    for gap, requests in steps:
        now += gap
        recent = sum(at + WINDOW > now for at in admitted)
        answer = script.ask(now, Counter(key, Limit(requests, WINDOW)))
        assert answer.admitted is (recent < requests)
        if answer.admitted:
            admitted.append(now)
            assert answer.counted[0][0] == requests - recent - 1
        else:
            # Room is made once all but `requests - 1` of the recent ones have left.
            assert answer.retry_at == admitted[-requests] + WINDOW


@QUICK
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 2)), min_size=1, max_size=15),
)
def test_a_repeat_with_the_same_marker_is_free(
    script: ChargeScript, requests: int, steps: list[tuple[int, int]]
) -> None:
    """Only the first admitted request of an id is charged; a refused one leaves no marker."""
    run, [counter] = next(RUNS), counters_of((Limit(requests, WINDOW),))
    now, charged = START, set()
    for gap, request_id in steps:
        now += gap
        ask = Ask((counter,), marker=(f"marker:{run}:{request_id}", 10_000))
        [answer] = script.call(now, [ask])[1]
        if request_id in charged:
            assert answer.status == 3
        elif len(charged) < requests:
            assert answer.status == 1
            charged.add(request_id)
        else:
            assert answer.status == 2
        assert answer.counted[0][0] == requests - len(charged)


@pytest.mark.parametrize("spacing", [0, 1, 7, 299])
def test_31_the_retry_instant_is_exact_to_the_millisecond(
    script: ChargeScript, spacing: int
) -> None:
    """Pitfall 31: at the refused request's retry instant it passes, one millisecond before not."""
    limit = Limit(200, WINDOW)
    [counter] = counters_of((limit,))
    times = [START + i * spacing for i in range(limit.requests)]
    for at in times:
        assert script.ask(at, counter).admitted
    refused = script.ask(times[-1], counter)
    assert not refused.admitted
    assert refused.retry_at == START + WINDOW
    assert not script.ask(refused.retry_at - 1, counter).admitted
    assert script.ask(refused.retry_at, counter).admitted


@QUICK
@given(st.integers(1, 5000), st.integers(0, 6000), st.integers(1, 3))
def test_31_a_client_that_waits_for_retry_after_passes(
    script: ChargeScript, window: int, waited: int, requests: int
) -> None:
    """Pitfall 31: Retry-After is the exact instant in whole seconds, rounded up, at least one."""
    [counter] = counters_of((Limit(requests, window),))
    for _ in range(requests):
        script.ask(START, counter)
    now = START + waited % window
    refused = script.ask(now, counter)
    [(remaining, reset_at)] = refused.counted
    quota = Quota("user", counter.limit, remaining, UnixMs(reset_at))
    outcome = Outcome(Deny(RATE_LIMITED), UnixMs(now), (quota,))
    seconds = int(dict(render(outcome, ip_address("192.0.2.1"), "d").headers)["Retry-After"])
    assert seconds >= 1
    assert script.peek_later(now + seconds * 1000, counter).admitted
    if seconds > 1:
        assert not script.peek_later(now + (seconds - 1) * 1000, counter).admitted


def test_29_refused_requests_are_never_recorded(script: ChargeScript) -> None:
    """Pitfall 29: a client that hammers while it is refused passes at the very retry instant."""
    [counter] = counters_of((Limit(5, WINDOW),))
    for _ in range(5):
        assert script.ask(START, counter).admitted
    for at in range(START, START + WINDOW, 500):
        assert not script.ask(at, counter).admitted
    assert script.client.llen(counter.key) == 5
    for _ in range(5):
        assert script.ask(START + WINDOW, counter).admitted


def hundreds(script: ChargeScript, counter: Counter, now: int, requests: int) -> int:
    """How many of so many requests at one instant are admitted."""
    answers: list[Answered] = []
    for start in range(0, requests, 100):
        asks = [Ask((counter,))] * min(100, requests - start)
        answers += script.call(now, asks)[1]
    return sum(answer.admitted for answer in answers)


def test_27_the_edge_of_a_minute_does_not_double_the_limit(script: ChargeScript) -> None:
    """Pitfall 27: around a full minute a fixed window admits 400, the exact window 200."""
    limit = Limit(200, WINDOW)
    [counter] = counters_of((limit,))
    minute = START - START % WINDOW + WINDOW
    exact, fixed = 0, {}
    for now in (minute - 1, minute):
        exact += hundreds(script, counter, now, 200)
        used = fixed.setdefault(now // WINDOW, [])
        used += [now] * min(200, limit.requests - len(used))
    assert sum(len(used) for used in fixed.values()) == 400
    assert exact == 200


class TwoBuckets:
    """The usual approximation: this bucket's count and the last one's, weighted by overlap."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.counts: dict[int, int] = {}

    def admits(self, now: int) -> bool:
        bucket, into = divmod(now, self.limit.window_ms)
        weight = 1 - into / self.limit.window_ms
        used = self.counts.get(bucket, 0) + self.counts.get(bucket - 1, 0) * weight
        if used + 1 > self.limit.requests:
            return False
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        return True


def most_in_a_window(times: list[int], window: int) -> int:
    return max(sum(start <= at < start + window for at in times) for start in set(times))


def test_28_a_fully_legal_client_is_never_refused(script: ChargeScript) -> None:
    """Pitfall 28: 200 every 61 s at 200 a minute: the exact log admits all 4000, two buckets don't.

    Two weighted buckets take the last burst for evenly spread, and refuse nearly half.
    """
    limit = Limit(200, WINDOW)
    [counter] = counters_of((limit,))
    start = START - START % WINDOW
    exact = approximate = 0
    buckets = TwoBuckets(limit)
    for burst in range(20):
        now = start + burst * 61_000
        exact += hundreds(script, counter, now, 200)
        approximate += sum(buckets.admits(now) for _ in range(200))
    assert exact == 4000
    assert approximate < 2400


def test_28_bursts_never_exceed_the_limit_in_any_window(script: ChargeScript) -> None:
    """Pitfall 28: 400 every 45 s: two buckets let more than 200 into one minute, the log never."""
    limit = Limit(200, WINDOW)
    [counter] = counters_of((limit,))
    start = START - START % WINDOW
    buckets = TwoBuckets(limit)
    exact: list[int] = []
    approximate: list[int] = []
    for burst in range(20):
        now = start + burst * 45_000
        exact += [now] * hundreds(script, counter, now, 400)
        approximate += [now for _ in range(400) if buckets.admits(now)]
    assert most_in_a_window(exact, WINDOW) == 200
    assert most_in_a_window(approximate, WINDOW) > 200
