"""The circuit breaker, with the time as an argument."""

from authsidecar.store.breaker import FAILURES, OPEN_S, Breaker


def opened(at: float = 0.0) -> Breaker:
    """A breaker that has just opened."""
    breaker = Breaker()
    for _ in range(FAILURES):
        assert breaker.lets_through(at)
        breaker.failed(at)
    return breaker


def test_fewer_failures_than_five_in_a_row_stop_nobody() -> None:
    """An answer in between begins the count anew."""
    breaker = Breaker()
    for _ in range(10):
        for _ in range(FAILURES - 1):
            breaker.failed(0.0)
            assert breaker.lets_through(0.0)
        breaker.answered()


def test_five_failures_in_a_row_stop_everybody_for_a_quarter_of_a_second() -> None:
    """To the instant: nobody before, and one at it."""
    breaker = opened(at=100.0)
    assert not breaker.lets_through(100.0)
    assert not breaker.lets_through(100.0 + OPEN_S - 0.001)
    assert breaker.lets_through(100.0 + OPEN_S)


def test_one_tries_while_the_others_go_on_not_waiting() -> None:
    """Who comes while the one is under way is not let through with it."""
    breaker = opened()
    assert breaker.lets_through(OPEN_S)
    assert not breaker.lets_through(OPEN_S)
    assert not breaker.lets_through(2 * OPEN_S - 0.001)


def test_a_try_that_fails_keeps_it_open_from_its_end() -> None:
    """A slow failure does not let the next one through at once."""
    breaker = opened()
    assert breaker.lets_through(OPEN_S)
    breaker.failed(OPEN_S + 0.05)
    assert not breaker.lets_through(2 * OPEN_S + 0.049)
    assert breaker.lets_through(2 * OPEN_S + 0.05)


def test_a_try_that_is_answered_closes_it_for_all() -> None:
    """Recovery is as soon as anybody is answered."""
    breaker = opened()
    assert breaker.lets_through(OPEN_S)
    breaker.answered()
    assert all(breaker.lets_through(OPEN_S) for _ in range(10))


def test_a_try_that_never_ends_is_followed_by_another() -> None:
    """A caller that was cancelled tells nothing; the circuit is not open for ever."""
    breaker = opened()
    assert breaker.lets_through(OPEN_S)
    assert breaker.lets_through(2 * OPEN_S)
