"""Ending tasks for certain."""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

AGAIN_S: Final = 1.0
"""After how long a task that goes on is cancelled again, in seconds: it may have to clean up."""


async def end(tasks: Iterable["asyncio.Task[Any]"], *, again_s: float = AGAIN_S) -> None:
    """Cancel until all have ended; what they raise is theirs.

    On Python 3.11 a cancellation can be swallowed (asyncio.wait_for, and so redis-py): a loop that
    was cancelled once, at the wrong moment, would go on for ever.

    Args:
        tasks: to be ended; some may have ended already.
        again_s: after how long those that go on are cancelled again, in seconds.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=again_s)
        for task in done:
            if not task.cancelled():
                task.exception()  # told to nobody: that is no leak
