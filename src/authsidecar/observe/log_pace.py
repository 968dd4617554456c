"""A bounded pace of log lines for what strangers can cause as often as they like.

Everything is still counted by the metrics; a line says how many like it were left out before it.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Final

SECONDS: Final = 1.0
"""The time between two lines about the same, in seconds."""

REMEMBERED: Final = 256
"""How many different ones are told apart at once; all that are beyond share one pace."""

LEFT_OUT: Final = "left_out"

Fields = Callable[[], Mapping[str, object]]
"""Makes the fields of a line."""

Write = Callable[[Mapping[str, object]], None]
"""Writes one line of these fields."""


class LogPace:
    """So many lines a second for each cause."""

    def __init__(self, write: Write, *, lines: int = 1, remembered: int = REMEMBERED) -> None:
        """Nothing was written.

        Args:
            write: writes a line.
            lines: how many are written in a second for each cause.
            remembered: how many causes are told apart.
        """
        self._write = write
        self._lines = lines
        self._remembered = remembered
        self._held: dict[Hashable, _Held] = {}
        self._forgot_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def line(self, cause: Hashable, fields: Fields) -> None:
        """Write a line, or leave it out and count it.

        The last one that is left out is written later, with the number of the others, so that
        no cause ends without its sum.

        Args:
            cause: what the pace is for: an address, say.
            fields: makes the line's fields; only called for a line that is written.
        """
        now = time.monotonic()
        held = self._held.get(cause)
        if held is None and len(self._held) >= self._remembered:
            self._forget(now)
            if len(self._held) >= self._remembered:
                cause = _OTHERS
                held = self._held.get(cause)
        if held is None:
            held = self._held[cause] = _Held()
        if now - held.at >= SECONDS:
            self._tell(held, now, fields)
        elif held.written < self._lines:
            held.written += 1
            self._write(fields())
        else:
            held.left_out += 1
            held.last = fields
            self._later()

    def close(self) -> None:
        """Tell of everything that was left out, at the end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for held in self._held.values():
            self._tell_last(held, time.monotonic())
        self._held.clear()

    def _tell(self, held: "_Held", now: float, fields: Fields) -> None:
        """The first line of a second."""
        left_out, held.left_out, held.last = held.left_out, 0, None
        held.at, held.written = now, 1
        self._write({**fields(), LEFT_OUT: left_out} if left_out else fields())

    def _tell_last(self, held: "_Held", now: float) -> None:
        if held.last is not None:
            held.left_out -= 1  # the last one gets the line
            self._tell(held, now, held.last)

    def _later(self) -> None:
        """See to it that what is left out now is told of; needs a running event loop."""
        if self._timer is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return
            self._timer = loop.call_later(SECONDS, self._flush)

    def _flush(self) -> None:
        """Tell of what was left out a second ago or longer."""
        self._timer = None
        now = time.monotonic()
        waiting = False
        for held in self._held.values():
            if now - held.at >= SECONDS:
                self._tell_last(held, now)
            else:
                waiting = waiting or held.last is not None
        if waiting:
            self._later()

    def _forget(self, now: float) -> None:
        """Drop what has been quiet for a second and has nothing to tell; once a second at most."""
        if now - self._forgot_at < SECONDS:
            return
        self._forgot_at = now
        old = [k for k, held in self._held.items() if held.last is None and now - held.at > SECONDS]
        for cause in old:
            del self._held[cause]


class _Held:
    """When the current second of one cause began, what was written in it and what left out."""

    __slots__ = ("at", "last", "left_out", "written")

    def __init__(self) -> None:
        self.at = -SECONDS
        self.written = 0
        self.left_out = 0
        self.last: Fields | None = None


_OTHERS: Final = object()
