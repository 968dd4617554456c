"""Deadlines of many things with one timer."""

import asyncio

from authsidecar.deadlines import Deadlines
from tests.support.waiting import eventually


async def many(reported: list, count: int) -> None:
    async def enough() -> bool:
        return len(reported) >= count

    await eventually(enough, f"{count} reports")


async def test_what_lasts_too_long_is_reported_once_in_order() -> None:
    """What was stopped is not; what began again has its whole time again."""
    late: list[str] = []
    deadlines: Deadlines[str] = Deadlines(0.2, late.append)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for one in ("a", "b", "c", "d"):
        deadlines.start(one)
    deadlines.stop("b")
    deadlines.stop("never begun")
    await asyncio.sleep(0.1)
    deadlines.start("a")
    await many(late, 3)
    assert late == ["c", "d", "a"]
    assert loop.time() - begun >= 0.29
    assert len(deadlines) == 0


async def test_closed_ones_report_nothing() -> None:
    """And hold no timer."""
    late: list[str] = []
    deadlines: Deadlines[str] = Deadlines(0.01, late.append)
    deadlines.start("a")
    deadlines.close()
    await asyncio.sleep(0.05)
    assert late == []


async def test_what_is_started_while_others_are_reported_is_kept() -> None:
    """A report may start another one."""
    late: list[str] = []

    def expired(one: str) -> None:
        late.append(one)
        if len(late) < 3:
            deadlines.start(one + one)

    deadlines: Deadlines[str] = Deadlines(0.02, expired)
    deadlines.start("a")
    await many(late, 3)
    assert late == ["a", "aa", "aaaa"]
