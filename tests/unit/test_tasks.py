"""Tasks that are to end do, whatever they make of it."""

import asyncio

from authsidecar.tasks import end


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    """The second one, or the third, ends it."""
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    task = asyncio.ensure_future(stubborn())
    await asyncio.sleep(0)
    await asyncio.wait_for(end([task], again_s=0.01), 5)
    assert task.cancelled()
    assert swallowed == 3


async def test_cleaning_up_is_not_disturbed() -> None:
    """A second cancellation comes only after a while."""
    cleaned = False

    async def tidy() -> None:
        nonlocal cleaned
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            cleaned = True

    task = asyncio.ensure_future(tidy())
    await asyncio.sleep(0)
    await end([task])
    assert cleaned


async def test_what_has_ended_already_is_left_alone() -> None:
    """Its result and its error stay to be read."""

    async def failing() -> None:
        raise ValueError

    task = asyncio.ensure_future(failing())
    await asyncio.wait([task])
    await end([task])
    assert isinstance(task.exception(), ValueError)
