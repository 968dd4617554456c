"""One trip: its budget, and what may be said of its failure."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from redis import exceptions

from authsidecar.decision.authorize import StoreError
from authsidecar.store.breaker import FAILURES
from authsidecar.store.trips import KINDS, Trips

SECRET = "67|planted"  # what must not show


async def failing(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(SECRET), "timeout"),
        (exceptions.TimeoutError(SECRET), "timeout"),
        (exceptions.ReadOnlyError(SECRET), "replica"),
        (exceptions.ResponseError(f"Error running script: -READONLY {SECRET}"), "replica"),
        (exceptions.MasterDownError(SECRET, status_code="MASTERDOWN"), "replica"),
        (exceptions.ResponseError(f"NOREPLICAS Not enough good replicas {SECRET}"), "noreplicas"),
        (exceptions.ResponseError(f"MISCONF Redis is configured to {SECRET}"), "misconf"),
        (exceptions.OutOfMemoryError(SECRET, status_code="OOM"), "full"),
        (exceptions.ResponseError(f"BUSY Redis is busy running a script {SECRET}"), "busy"),
        (exceptions.BusyLoadingError(SECRET), "loading"),
        (exceptions.AuthenticationError(SECRET), "auth"),
        (exceptions.NoPermissionError(SECRET, status_code="NOPERM"), "permission"),
        (exceptions.ConnectionError(SECRET), "connection"),
        (exceptions.MaxConnectionsError(SECRET), "pool"),
        (OSError(SECRET), "connection"),
        (exceptions.ResponseError(SECRET), "other"),
        (exceptions.ClusterDownError(SECRET, status_code="CLUSTERDOWN"), "cluster"),
    ],
)
async def test_a_failure_is_told_by_a_closed_kind_and_nothing_else(
    error: Exception, kind: str
) -> None:
    """What Redis or redis-py said may hold a key or an argument: it goes no further."""
    seen: list[tuple[str, str | None]] = []
    trips = Trips(1.0, lambda operation, _, told: seen.append((operation, told)))
    with pytest.raises(StoreError) as raised:
        await trips.make("charge", failing(error))
    assert (raised.value.kind, seen) == (kind, [("charge", kind)])
    assert SECRET not in str(raised.value)
    assert kind in KINDS


async def hanging(ended: asyncio.Event) -> None:
    """Never ends by itself."""
    try:
        await asyncio.Event().wait()
    finally:
        ended.set()


async def test_a_trip_ends_with_its_budget() -> None:
    """A command that never ends is cancelled, and told as a timeout."""
    ended = asyncio.Event()

    with pytest.raises(StoreError) as raised:
        await Trips(0.01, lambda *_: None).make("token", hanging(ended))
    assert raised.value.kind == "timeout"
    assert ended.is_set()


async def test_a_good_answer_is_given_back_and_told() -> None:
    """Observed with its time and no error."""
    seen: list[tuple[str, bool, str | None]] = []
    trips = Trips(1.0, lambda name, took, kind: seen.append((name, 0 <= took < 1, kind)))

    async def answer() -> int:
        return 5

    assert await trips.make("ping", answer()) == 5
    assert seen == [("ping", True, None)]


async def test_an_open_circuit_starts_nothing_and_is_not_observed() -> None:
    """After five failures in a row a trip fails at once; its command never runs."""
    seen: list[str | None] = []
    trips = Trips(1.0, lambda *told: seen.append(told[2]))
    started = []

    def command() -> Coroutine[Any, Any, None]:
        async def run() -> None:
            started.append(1)
            raise OSError

        return run()

    kinds = []
    for _ in range(FAILURES + 3):
        with pytest.raises(StoreError) as raised:
            await trips.make("charge", command())
        kinds.append(raised.value.kind)
    assert kinds == [*["connection"] * FAILURES, *["open"] * 3]
    assert len(started) == FAILURES == len(seen)


async def test_error_replies_open_no_circuit() -> None:
    """A Redis that says no has answered: only silence is not worth asking again."""
    trips = Trips(1.0, lambda *_: None)
    for _ in range(FAILURES + 1):
        with pytest.raises(StoreError) as raised:
            await trips.make("charge", failing(exceptions.ResponseError("NOREPLICAS")))
        assert raised.value.kind == "noreplicas"


async def test_a_cancelled_caller_is_no_failure_of_redis() -> None:
    """Clients that leave do not open the circuit."""
    trips = Trips(5.0, lambda *_: None)
    for _ in range(FAILURES + 1):
        task = asyncio.ensure_future(trips.make("charge", asyncio.Event().wait()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def answer() -> int:
        return 1

    assert await trips.make("charge", answer()) == 1


async def test_a_trip_that_is_given_up_ends_its_command() -> None:
    """Whoever leaves takes along what was under way."""
    ended = asyncio.Event()

    trip = asyncio.ensure_future(Trips(10, lambda *_: None).make("token", hanging(ended)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    trip.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trip
    await asyncio.wait_for(ended.wait(), 1)
