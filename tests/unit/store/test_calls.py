"""Who waits for a script call is refused for Redis's silence alone, not for a long queue."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from authsidecar.decision.authorize import StoreError
from authsidecar.store import deadlines
from authsidecar.store.calls import BATCH, BESIDE, ChargeCalls, Part
from authsidecar.store.deadlines import LONGEST
from authsidecar.store.trips import Trips

BUDGET_S = 0.05
PART = Part.of(["key"], [1])


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests beside these do not make the host a crowded one."""
    monkeypatch.setattr(deadlines, "is_crowded", lambda: False)


class Redis(ChargeCalls):
    """Its answers come when the test says."""

    def __init__(self, answer_s: Callable[[], float]) -> None:
        super().__init__(None, Trips(BUDGET_S, lambda *_: None))  # type: ignore[arg-type]
        self._answer_s = answer_s

    async def _evaluate(self, batch: list[Any]) -> list[Any]:
        await asyncio.sleep(self._answer_s())
        return [0, *[[]] * len(batch)]


async def asked(redis: Redis, number: int) -> list[Any]:
    return await asyncio.gather(
        *(redis.charge(PART) for _ in range(number)), return_exceptions=True
    )


class Held(ChargeCalls):
    """Its calls are answered when the test says; `sizes` are how many share each."""

    def __init__(self) -> None:
        super().__init__(None, Trips(60, lambda *_: None))  # type: ignore[arg-type]
        self.answer = asyncio.Event()
        self.sizes: list[int] = []

    async def _evaluate(self, batch: list[Any]) -> list[Any]:
        self.sizes.append(len(batch))
        await self.answer.wait()
        return [0, *[[]] * len(batch)]


@pytest.mark.parametrize(
    ("first", "waiting", "sizes"),
    [
        (1, 1, [1, 1]),
        (3, 2, [3]),
        (3, 3, [3, 3]),
        (BESIDE + 1, BESIDE - 1, [BESIDE + 1]),
        (BESIDE + 1, BESIDE, [BESIDE + 1, BESIDE]),
    ],
)
async def test_a_call_is_made_beside_another_once_as_many_wait(
    first: int, waiting: int, sizes: list[int]
) -> None:
    """So the two take turns; more than BESIDE wait for no other. There is no third one."""
    redis = Held()
    answers = [redis.charge(PART) for _ in range(first)]
    await asyncio.sleep(0.001)
    for _ in range(waiting):
        answers.append(redis.charge(PART))
        await asyncio.sleep(0.001)
    assert redis.sizes == sizes
    if len(sizes) == 2:
        answers += [redis.charge(PART) for _ in range(BATCH)]
        await asyncio.sleep(0.001)
        assert redis.sizes == sizes
    redis.answer.set()
    await asyncio.gather(*answers)
    await redis.close()


async def test_who_comes_alone_is_sent_at_once() -> None:
    """Others are waited for where the call before was of more than one."""
    redis = Held()
    redis.answer.set()
    made: list[int] = []
    redis._begin = lambda first, batch: made.append(len(batch))  # type: ignore[method-assign]
    for waiting, at_once in ((1, []), (1, [1]), (3, [1]), (1, []), (1, [1])):
        made.clear()
        answers = [redis.charge(PART) for _ in range(waiting)]
        assert made == at_once
        await asyncio.gather(*answers)
    await redis.close()


async def test_all_are_answered_before_it_is_told_that_they_are() -> None:
    redis = Held()
    redis.answer.set()
    answers: list[asyncio.Future[Any]] = []
    seen: list[int] = []
    redis.settled = lambda: seen.append(sum(answer.done() for answer in answers))
    answers += [redis.charge(PART) for _ in range(3)]
    await asyncio.gather(*answers)
    assert seen == [3]
    await redis.close()


async def test_a_defect_of_who_is_told_reaches_nobody_and_is_told() -> None:
    """They have their answers already."""
    redis = Held()
    redis.answer.set()
    defects: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: defects.append(what))
    redis.settled = lambda: 1 / 0  # type: ignore[assignment, return-value]
    answers = await asyncio.gather(*[redis.charge(PART) for _ in range(3)])
    assert answers == [(0, [])] * 3
    assert [type(one["exception"]) for one in defects] == [ZeroDivisionError]
    await redis.close()


async def test_a_queue_that_moves_is_longer_than_the_budget_for_nobody() -> None:
    """Each call is in time, the last of the queue comes after three budgets."""
    redis = Redis(lambda: BUDGET_S / 2)
    start = asyncio.get_running_loop().time()
    answers = await asked(redis, 12 * BATCH)
    assert asyncio.get_running_loop().time() - start > 2 * BUDGET_S
    assert answers == [(0, [])] * 12 * BATCH
    await redis.close()


async def test_a_queue_ends_with_the_first_silence() -> None:
    """Redis answers once and then no more: all who wait are refused within one budget of that."""
    answered: list[float] = []
    loop = asyncio.get_running_loop()

    def answer_s() -> float:
        answered.append(loop.time())
        return BUDGET_S / 2 if len(answered) < 2 else 60

    redis = Redis(answer_s)
    start = loop.time()
    answers = await asked(redis, 12 * BATCH)
    assert loop.time() - start < (LONGEST / 5) * BUDGET_S
    assert answers[:BATCH] == [(0, [])] * BATCH
    assert {type(one) for one in answers[BATCH:]} == {StoreError}
    await redis.close()


async def test_nobody_waits_for_ever_in_a_queue_that_moves() -> None:
    """A request is refused after so many budgets, whoever else is answered."""
    redis = Redis(lambda: BUDGET_S / 2)
    answers = await asked(redis, 8 * LONGEST * BATCH)
    assert (0, []) in answers
    refused = [one for one in answers if isinstance(one, StoreError)]
    assert refused
    assert {one.kind for one in refused} == {"timeout"}
    await redis.close()
