"""Time limits of many things with one timer."""

import asyncio
import time

from authsidecar.serving.time_limits import TimeLimits
from tests.support.waiting import eventually


async def many(reported: list, count: int) -> None:
    async def enough() -> bool:
        return len(reported) >= count

    await eventually(enough, f"{count} reports")


async def test_what_lasts_too_long_is_reported_once_in_order() -> None:
    """What was stopped is not; what began again has its whole time again."""
    late: list[str] = []
    limits: TimeLimits[str] = TimeLimits(0.2, late.append)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for one in ("a", "b", "c", "d"):
        limits.start(one)
    limits.stop("b")
    limits.stop("never begun")
    await asyncio.sleep(0.1)
    limits.start("a")
    await many(late, 3)
    assert late == ["c", "d", "a"]
    assert loop.time() - begun >= 0.29
    assert len(limits) == 0


async def test_closed_ones_report_nothing() -> None:
    """And hold no timer."""
    late: list[str] = []
    limits: TimeLimits[str] = TimeLimits(0.01, late.append)
    limits.start("a")
    limits.close()
    await asyncio.sleep(0.05)
    assert late == []


async def test_what_is_started_while_others_are_reported_is_kept() -> None:
    """A report may start another one."""
    late: list[str] = []

    def expired(one: str) -> None:
        late.append(one)
        if len(late) < 3:
            limits.start(one + one)

    limits: TimeLimits[str] = TimeLimits(0.02, expired)
    limits.start("a")
    await many(late, 3)
    assert late == ["a", "aa", "aaaa"]


async def test_what_came_while_this_process_stood_still_is_read_first() -> None:
    """The loop has a turn between the standstill and the report."""
    late: list[str] = []
    limits: TimeLimits[str] = TimeLimits(0.1, late.append)
    limits.start("in time")
    limits.start("late")
    time.sleep(0.5)  # noqa: ASYNC251  # the whole process
    asyncio.get_running_loop().call_later(0.01, limits.stop, "in time")
    await many(late, 1)
    await asyncio.sleep(0.3)
    assert late == ["late"]
