"""The charge script by itself, on a real Redis: proofs, markers, the clock, what it leaves."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from authsidecar.decision.model import Limit
from tests.support.charge_script import (
    ADMITTED,
    REFUSED,
    REPEAT,
    STALE,
    Ask,
    ChargeScript,
    Counter,
)

pytestmark = pytest.mark.any_python

NOW = 1_800_000_000_000
MINUTE = 60_000
USER = Counter("{u:7}user", Limit(3, MINUTE))
TOKEN = Counter("{u:7}token", Limit(2, MINUTE))


@pytest.fixture
def script(redis_url: str) -> Iterator[ChargeScript]:
    with redis.Redis.from_url(redis_url) as client:
        yield ChargeScript(client)


def test_all_counters_are_charged_or_none(script: ChargeScript) -> None:
    """A refusal by the second counter leaves the first as it was."""
    assert script.ask(NOW, USER, TOKEN).counted == ((2, NOW + MINUTE), (1, NOW + MINUTE))
    assert script.ask(NOW, USER, TOKEN).admitted
    refused = script.ask(NOW, USER, TOKEN)
    assert refused.status == REFUSED
    assert refused.counted == ((1, NOW + MINUTE), (0, NOW + MINUTE))
    assert script.client.llen(USER.key) == 2


@pytest.mark.parametrize("text", ["", "x", "5/60000"])
def test_a_limit_that_is_no_number_admits_nothing(script: ChargeScript, text: str) -> None:
    """None comes from here: records says what a limit is. The script fails, which refuses."""
    odd = Counter(USER.key, Limit(text, MINUTE))  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(redis.ResponseError, match="script"):
            script.ask(NOW, odd, TOKEN)
    assert script.client.llen(TOKEN.key) == 0


def test_requests_of_one_call_are_charged_one_after_the_other(script: ChargeScript) -> None:
    """Four waiting requests of one user with room for three: the first three pass."""
    asks = [Ask((USER,))] * 4
    statuses = [answer.status for answer in script.call(NOW, asks)[1]]
    assert statuses == [ADMITTED, ADMITTED, ADMITTED, REFUSED]


def test_a_peek_charges_nothing_and_leaves_no_marker(script: ChargeScript) -> None:
    """Looking is free, and does not make the request that follows a repeat."""
    marker = ("{u:7}marker", 10_000)
    [peeked] = script.call(NOW, [Ask((USER,), peek=True, marker=marker)])[1]
    assert (peeked.status, peeked.counted) == (ADMITTED, ((3, NOW + MINUTE),))
    assert script.client.dbsize() == 0
    [charged] = script.call(NOW, [Ask((USER,), marker=marker)])[1]
    assert (charged.status, charged.counted) == (ADMITTED, ((2, NOW + MINUTE),))


def test_a_repeat_in_the_same_call_is_free(script: ChargeScript) -> None:
    """Two subrequests of one client request may wait for the same script call."""
    ask = Ask((TOKEN,), marker=("{u:7}marker", 10_000))
    answers = script.call(NOW, [ask, ask, ask])[1]
    assert [a.status for a in answers] == [ADMITTED, REPEAT, REPEAT]
    assert {a.counted[0][0] for a in answers} == {1}


def test_a_repeat_passes_even_when_its_counter_is_full(script: ChargeScript) -> None:
    """The client request was admitted; its later subrequests must not be refused."""
    one = Counter("one", Limit(1, MINUTE))
    ask = Ask((one,), marker=("marker", 10_000))
    assert [a.status for a in script.call(NOW, [ask, Ask((one,)), ask])[1]] == [
        ADMITTED,
        REFUSED,
        REPEAT,
    ]


def test_a_marker_lives_no_longer_than_asked(script: ChargeScript) -> None:
    """By Redis's own clock, the marker is gone after its milliseconds, and so is its freedom."""
    script.call(None, [Ask((USER,), marker=("marker", 10_000))])
    assert 9_000 < script.client.pttl("marker") <= 10_000


@pytest.mark.parametrize(
    ("held", "expected", "stale"),
    [
        (("a", "b"), ("a", "b"), 0),
        (("x", "b"), ("a", "b"), 1),
        (("a", "x"), ("a", "b"), 2),
        (("x", "x"), ("a", "b"), 3),
        ((None, "b"), ("a", "b"), 1),
        ((None, "b"), ("", "b"), 1),
        (("a", None), ("a", ""), 2),
    ],
)
def test_a_stale_proof_charges_nothing_and_says_which(
    script: ChargeScript,
    held: tuple[str | None, str | None],
    expected: tuple[str, str],
    stale: int,
) -> None:
    """Each nonce must be there and equal; missing means stale, even where none was expected."""
    for key, value in zip(("n1", "n2"), held, strict=True):
        if value is not None:
            script.client.set(key, value)
    proofs = (("n1", expected[0]), ("n2", expected[1]))
    first, second = script.call(NOW, [Ask((USER,), proofs=proofs), Ask((USER,))])[1]
    assert (first.status, first.stale) == (STALE if stale else ADMITTED, stale)
    # The request behind it is read and charged as if it came alone.
    assert second.counted == ((2 if stale else 1, NOW + MINUTE),)


def test_requests_that_share_a_proof_are_each_held_to_what_they_expect(
    script: ChargeScript,
) -> None:
    """A nonce is read once in a call; whoever expects another one, or a missing one, is stale."""
    script.client.set("all", "a")
    script.client.set("own", "b")

    def ask(everyones: str, own: str, key: str = "own") -> Ask:
        return Ask((USER,), proofs=(("all", everyones), (key, own)))

    asks = [
        *(ask("a", "b"), ask("x", "b"), ask("a", "x"), ask("a", "b")),
        *(ask("a", "a", "all"), ask("a", "", "none"), ask("a", "", "none"), ask("x", "x")),
    ]
    answers = script.call(NOW, asks)[1]
    assert [answer.stale for answer in answers] == [0, 1, 2, 0, 0, 2, 2, 3]
    assert [answer.admitted for answer in answers] == [not answer.stale for answer in answers]
    assert script.client.llen(USER.key) == 3


def test_requests_of_one_call_may_differ_in_all_that_they_ask(script: ChargeScript) -> None:
    """Of each form the first is read, and the others are taken for the same."""
    script.client.set("n", "a")
    narrow, budget = Counter(USER.key, Limit(1, MINUTE)), Counter("budget", Limit(3, 0))
    script.client.set("budget", 1)
    forms = [
        Ask((USER,), peek=True),
        Ask((USER, budget), proofs=(("n", "a"),)),
        Ask((narrow,)),
        Ask((TOKEN, USER), marker=("{u:7}marker", 10_000)),
        Ask(),
    ]
    told = [[left for left, _ in one.counted] for one in script.call(NOW, forms * 2)[1]]
    assert told == [[3], [2, 1], [0], [1, 1], [], [1], [0, 0], [0], [1, 0], []]
    assert script.client.get("budget") == b"3"


def test_the_script_says_the_time_of_redis(script: ChargeScript) -> None:
    """Without an injected time, `now` lies between two answers of Redis's own TIME."""
    before = script.client.time()
    at, [answer] = script.call(None, [Ask((USER,))])
    after = script.client.time()
    assert before[0] * 1000 + before[1] // 1000 <= at <= after[0] * 1000 + after[1] // 1000
    assert answer.counted == ((2, at + MINUTE),)
    assert script.client.lrange(USER.key, 0, -1) == [str(at).encode()]


def test_counters_expire_with_their_last_admission(script: ChargeScript) -> None:
    """A client that stays away leaves nothing behind in Redis."""
    script.call(None, [Ask((USER, Counter("short", Limit(5, 1000))))])
    assert MINUTE - 1000 < script.client.pttl(USER.key) <= MINUTE
    assert 0 < script.client.pttl("short") <= 1000


def test_times_of_this_century_are_kept_to_the_millisecond(script: ChargeScript) -> None:
    """Lua's numbers are floating point; none of our times is written as 1.8e+12."""
    for at in (NOW - 1, NOW + 999, 4_102_444_799_999):
        script.ask(at, Counter(f"c{at}", Limit(1, MINUTE)))
        assert script.client.lrange(f"c{at}", 0, -1) == [str(at).encode()]


WORKER = """
import asyncio, sys, time
skew = float(sys.argv[2])
real = time.time
time.time = lambda: real() + skew
from redis.asyncio import Redis
from authsidecar.decision.authorize import Claim
from authsidecar.decision.model import Limit
from authsidecar.decision.ratelimit.charges import Charge
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.keys import Keys

async def work():
    claim = Claim((Charge("user", "u:7", "user", Limit(20, 60_000)),))
    async with Redis.from_url(sys.argv[1]) as client:
        store = DecisionStore(client, Keys(), budget_ms=10_000)
        answers = [await store.charge(claim, repeat_key=None) for _ in range(15)]
        print(sum(a.admitted for a in answers), answers[-1].now, round(store.now() - real() * 1000))
        await store.close()

asyncio.run(work())
"""


def test_30_workers_with_wrong_clocks_share_one_exact_counter(
    redis_url: str, tmp_path: Path
) -> None:
    """Pitfall 30: two workers 30 s behind and ahead: together they admit exactly the limit.

    Both end up with Redis's time, not their own.
    """
    answers = []
    for skew in ("-30", "30"):
        done = subprocess.run(
            [sys.executable, "-c", WORKER, redis_url, skew],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={**os.environ},
            cwd=tmp_path,
        )
        answers.append([int(word) for word in done.stdout.split()])
    (first, first_now, first_off), (second, second_now, second_off) = answers
    assert (first, second) == (15, 5)
    assert 0 <= second_now - first_now < 30_000
    assert abs(first_off) < 1000
    assert abs(second_off) < 1000
