"""Budgets in turns of the event loop: what is used up, and what a busy process does not use up."""

import asyncio
import time

import pytest

from authsidecar.store import deadlines as deadlines_module
from authsidecar.store.deadlines import LONGEST, TICKS, Deadlines

BUDGET_S = 0.05


async def test_what_never_ends_is_ended_with_its_budget() -> None:
    """Not before it, and a tick or two later on an idle machine."""
    deadlines = Deadlines(BUDGET_S)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        async with deadlines.limit():
            await asyncio.Event().wait()
    assert time.monotonic() - start >= BUDGET_S * 0.99


async def test_what_ends_in_time_is_left_alone() -> None:
    """Its deadline comes and goes; the task goes on."""
    deadlines = Deadlines(0.01)
    async with deadlines.limit():
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)


async def test_a_budget_is_not_used_up_while_this_process_has_no_turn() -> None:
    """The loop is held up for three budgets; what was there meanwhile is in time."""
    deadlines = Deadlines(BUDGET_S)
    reader = asyncio.StreamReader()

    def answer_late() -> None:
        time.sleep(3 * BUDGET_S)
        reader.feed_data(b"an answer")

    asyncio.get_running_loop().call_later(BUDGET_S / 2, answer_late)
    async with deadlines.limit():
        assert await reader.read(100) == b"an answer"


async def test_a_deadline_acts_after_whoever_was_woken_in_the_same_turn() -> None:
    """What was read in the very turn of the deadline is seen first."""
    deadlines = Deadlines(0.0)  # the shortest ticks
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[None] = loop.create_future()
    over = asyncio.Event()
    seen: list[str] = []

    async def wait() -> None:
        await answer
        seen.append("answered")

    def count() -> None:
        if not answer.done():
            answer.set_result(None)  # what the loop has read just before
        Deadlines._count(deadlines)

    def expire() -> None:
        seen.append("over")
        over.set()

    deadlines._count = count  # type: ignore[method-assign]
    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    deadlines.at_end(expire)
    deadlines._counted += deadlines._ticks - 1  # the next tick is the last one
    await over.wait()
    assert seen == ["answered", "over"]
    await task


async def test_no_timer_is_left_when_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle process does not wake up for it."""
    monkeypatch.setattr(deadlines_module, "is_crowded", lambda: False)  # others test beside it
    deadlines = Deadlines(0.01)
    async with deadlines.limit():
        await asyncio.sleep(0)
    while deadlines._timer is not None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert deadlines._counted <= TICKS + 1


async def test_late_ticks_use_up_no_budget() -> None:
    """A host that is busy all the time makes a budget longer, as far as a bound."""
    deadlines = Deadlines(BUDGET_S)
    over = asyncio.Event()
    start = time.monotonic()

    async def hold_up() -> None:
        while not over.is_set():
            time.sleep(2 * BUDGET_S / TICKS)  # noqa: ASYNC251
            await asyncio.sleep(0)

    busy = asyncio.ensure_future(hold_up())
    with pytest.raises(TimeoutError):
        async with deadlines.limit():
            await asyncio.Event().wait()
    over.set()
    await busy
    assert LONGEST * BUDGET_S <= time.monotonic() - start < 2 * LONGEST * BUDGET_S


async def test_nothing_is_used_up_while_the_host_is_crowded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Redis may wait for a processor then, though every tick here is in time; not for ever."""
    monkeypatch.setattr(deadlines_module, "is_crowded", lambda: True)
    deadlines = Deadlines(0.01)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        async with deadlines.limit():
            await asyncio.Event().wait()
    assert time.monotonic() - start >= LONGEST * 0.01
