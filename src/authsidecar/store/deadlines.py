"""Budgets that count turns of the event loop, so that a busy host is not taken for a silent Redis.

A budget is divided into ticks. A tick is one timer of the event loop. One that comes late counts
back: this process has waited for the processor, or had more to do than it could, and so may Redis
have, then and just before. While the host has far more to run than processors, Redis may wait for
one although this process does not: nothing is used up then. Before a deadline acts, the loop has
read its sockets and run whoever waits for what was read.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final

TICKS: Final = 10
"""Into how many ticks a budget is divided: a deadline is late by one of them at the most."""

SHORTEST_S: Final = 0.001
"""The shortest tick, in seconds."""

LATE_S: Final = 0.002
"""From when on a tick is late, in seconds: an idle host is later by one millisecond at the most."""

LONGEST: Final = 20
"""How many budgets long what is timed may take on a busy host."""


CROWDED: Final = 2 * (os.cpu_count() or 1)
"""With more tasks than this that can run, a host is crowded."""


def is_crowded() -> bool:
    """Whether the host has more tasks to run than CROWDED; not where that can't be known."""
    try:
        with open("/proc/loadavg", "rb") as file:  # noqa: PTH123  # it is read within a tick
            return int(file.read().split()[3].partition(b"/")[0]) > CROWDED
    except (OSError, ValueError, IndexError):
        return False


class Deadlines:
    """Calls back when a budget is used up; made within the event loop that it counts."""

    def __init__(self, budget_s: float) -> None:
        """Nothing is timed yet.

        Args:
            budget_s: how long what is timed may take, in seconds.
        """
        self._loop = asyncio.get_running_loop()
        self._tick_s = max(budget_s / TICKS, SHORTEST_S)
        # One more than fit into the budget: the tick under way is not a whole one.
        self._ticks = round(budget_s / self._tick_s) + 1
        self._longest_s = LONGEST * self._ticks * self._tick_s
        self._due: deque[tuple[int, float, Callable[[], None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._counted = 0
        self.tick = 0

    def at_end(self, act: Callable[[], None]) -> None:
        """Call this once the budget of what begins now is used up.

        Args:
            act: called outside of any task.
        """
        latest = self._loop.time() + self._longest_s
        self._due.append((self._counted + self._ticks, latest, act))
        if self._timer is None:
            self._timer = self._loop.call_later(self._tick_s, self._count)

    def limit(self) -> "Timeout":
        """A context within which a task is cancelled when its budget is used up."""
        return Timeout(self, self._loop)

    def close(self) -> None:
        """Time nothing any more."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _count(self) -> None:
        assert self._timer is not None  # noqa: S101  # it has just called
        now = self._loop.time()
        self.tick += 1
        self._counted += 1 if now - self._timer.when() < LATE_S else -1
        due = self._due
        crowded: bool | None = None  # looked at once a tick, not for each deadline
        while due and (due[0][0] <= self._counted or due[0][1] <= now):
            if now < due[0][1]:
                crowded = is_crowded() if crowded is None else crowded
                if crowded:
                    break  # the next tick looks again
            # After whoever was woken by what the loop has just read.
            self._loop.call_soon(due.popleft()[2])
        self._timer = self._loop.call_later(self._tick_s, self._count) if due else None


class Timeout:
    """Bounds what is awaited within: raises TimeoutError when the budget is used up."""

    __slots__ = ("_deadlines", "_loop", "_timeout")

    def __init__(self, deadlines: Deadlines, loop: asyncio.AbstractEventLoop) -> None:
        """The budget begins when the context is entered."""
        self._deadlines = deadlines
        self._loop = loop
        self._timeout: asyncio.Timeout | None = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        """Begin."""
        assert self._timeout is not None  # noqa: S101  # it is entered once
        await self._timeout.__aenter__()
        self._deadlines.at_end(self._expire)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """End, as asyncio.timeout does."""
        # The deadline may be kept for long; what it would end is not kept with it.
        timeout, self._timeout = self._timeout, None
        assert timeout is not None  # noqa: S101  # it is left once
        await timeout.__aexit__(kind, error, at)

    def _expire(self) -> None:
        if self._timeout is not None:
            self._timeout.reschedule(self._loop.time())
