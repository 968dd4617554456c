"""Warnings that are written once, however often what they tell of is met."""

from typing import Final

from authsidecar.observe.log import Log

MOST: Final = 1000
"""How many different warnings of one kind a process writes; whoever has more has seen it."""


class Once:
    """Writes a warning the first time that it is met with these fields."""

    def __init__(self, log: Log, event: str, *, most: int = MOST) -> None:
        """Nothing is written yet.

        Args:
            log: where lines go.
            event: their name.
            most: how many are written at the most.
        """
        self._log = log
        self._event = event
        self._most = most
        self._seen: set[tuple[tuple[str, str], ...]] = set()

    def warn(self, **fields: str) -> None:
        """Write it, unless it was written before."""
        what = tuple(fields.items())
        if what not in self._seen and len(self._seen) < self._most:
            self._seen.add(what)
            self._log.event("warning", self._event, **fields)
