"""Redis's clock, by which all is decided, between two looks at it."""

import time

from authsidecar.times import UnixMs


class RedisClock:
    """Tells the time by Redis's last answer and this machine's own clock.

    Attributes:
        offset_ms: by how much Redis's clock is ahead of this machine's, in milliseconds.
    """

    def __init__(self) -> None:
        """As long as Redis has not answered, this machine's clock is taken as Redis's."""
        self.offset_ms = 0.0

    def now(self) -> UnixMs:
        """The time by Redis's clock."""
        return UnixMs(int(time.time() * 1000 + self.offset_ms))

    def set(self, now_ms: float) -> None:
        """Redis has just said that it is this time."""
        self.offset_ms = now_ms - time.time() * 1000
