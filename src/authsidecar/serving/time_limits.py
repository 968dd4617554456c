"""Things that may last only so long, with one timer for all of them.

All have the same time, so they end in the order in which they began: starting and stopping one is
one operation on a dict, however many there are.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Generic, TypeVar

One = TypeVar("One")

_COARSE: Final = 0.1
"""The timer fires at most this part of the allowed time apart."""

_LATE_S: Final = 0.2
"""From this delay of the timer on, it was this process that stood still, not the other side."""


class TimeLimits(Generic[One]):
    """What began, and when; whatever lasts too long is reported once, and forgotten."""

    def __init__(self, seconds: float, expired: Callable[[One], None]) -> None:
        """Nothing has begun.

        Args:
            seconds: how long one may last; it is reported up to a tenth of that later.
            expired: called with what lasted too long.
        """
        self._seconds = seconds
        self._expired = expired
        self._since: dict[One, float] = {}
        self._planned = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._since)

    def start(self, one: One) -> None:
        """It begins now, or once more."""
        loop = asyncio.get_running_loop()
        self._since.pop(one, None)
        self._since[one] = loop.time()
        if self._timer is None:
            self._look_after(self._seconds)

    def stop(self, one: One) -> None:
        """It has ended in time; nothing happens if it had not begun."""
        self._since.pop(one, None)

    def oldest(self) -> One | None:
        """What began first, or None."""
        return next(iter(self._since), None)

    def close(self) -> None:
        """Forget everything."""
        self._since.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_after(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._planned = loop.time() + seconds
        self._timer = loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """Report what is too old; the timer goes on only while anything is left.

        After this process stood still, what was sent meanwhile is read before anything is reported.
        """
        self._timer = None
        now = asyncio.get_running_loop().time()
        if self._since and now - self._planned > _LATE_S:
            self._look_after(_LATE_S)
            return
        due = now - self._seconds
        while self._since:
            one, since = next(iter(self._since.items()))
            if since > due:
                if self._timer is None:  # a report may have started one
                    self._look_after(max(since - due, self._seconds * _COARSE))
                return
            del self._since[one]
            self._expired(one)
