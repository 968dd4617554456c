"""A circuit breaker: while Redis does not answer, requests do not wait for it one by one."""

from typing import Final

FAILURES: Final = 5
"""Trips that fail in a row before the circuit opens."""

OPEN_S: Final = 0.25
"""How long an open circuit lets nobody through, in seconds; then one trip may try."""


class Breaker:
    """Whether a trip is worth its time; the caller says how each one ended."""

    def __init__(self) -> None:
        """The circuit is closed: every trip is made."""
        self._failures = 0
        self._closed_at = 0.0

    def lets_through(self, now: float) -> bool:
        """Whether to make a trip.

        Args:
            now: a monotonic time in seconds.
        """
        if self._failures < FAILURES:
            return True
        if now < self._closed_at:
            return False
        self._closed_at = now + OPEN_S  # this one tries; who comes meanwhile does not wait for it
        return True

    def answered(self) -> None:
        """A trip was answered."""
        self._failures = 0

    def failed(self, now: float) -> None:
        """A trip was not answered in time, or not at all.

        Args:
            now: a monotonic time in seconds.
        """
        self._failures += 1
        if self._failures >= FAILURES:
            self._closed_at = now + OPEN_S
