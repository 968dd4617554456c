"""The end of a connection whose peer may still be sending: its answer must reach it.

A connection that is closed while bytes of the peer are not read is reset, and the peer may then
never see the answer that was sent before. So what still comes is read and thrown away for some
seconds: as fast as it comes up to a bound, then slowly, so that nobody is kept busy by it.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from authsidecar.serving.time_limits import TimeLimits

LINGER_S: Final = 5.0
"""How long the peer may take to end the connection, in seconds."""

PAUSE_S: Final = 0.01
"""The time between two reads past the bound, in seconds."""


class Lingerers:
    """All connections of a listener that have had their last answer."""

    def __init__(self, quick_bytes: int, left: Callable[["Lingering"], None]) -> None:
        """None is there.

        Args:
            quick_bytes: how much of each is thrown away as fast as it comes.
            left: called with each that is gone.
        """
        self._quick_bytes = quick_bytes
        self._left = left
        self._limits: TimeLimits[Lingering] = TimeLimits(LINGER_S, lambda one: one.abort())
        self._paused: list[Lingering] = []
        self._timer: asyncio.TimerHandle | None = None

    def take(self, transport: asyncio.Transport, peer: str) -> "Lingering":
        """End a connection: nothing more is sent on it, and what comes is thrown away."""
        one = Lingering(self, transport, peer, self._quick_bytes)
        transport.set_protocol(one)
        self._limits.start(one)
        transport.write_eof()
        transport.resume_reading()
        return one

    def pause(self, one: "Lingering") -> None:
        """Read on from it in a moment."""
        one.transport.pause_reading()
        self._paused.append(one)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PAUSE_S, self._read_on)

    def lost(self, one: "Lingering") -> None:
        """It is gone."""
        self._limits.stop(one)
        self._left(one)

    def _read_on(self) -> None:
        self._timer = None
        paused, self._paused = self._paused, []
        for one in paused:
            if not one.transport.is_closing():
                one.transport.resume_reading()


class Lingering(asyncio.Protocol):
    """One such connection."""

    __slots__ = ("_left", "_lingerers", "peer", "transport")

    busy = False

    def __init__(
        self, lingerers: Lingerers, transport: asyncio.Transport, peer: str, quick_bytes: int
    ) -> None:
        """It has had its last answer.

        Args:
            lingerers: all of them.
            transport: the connection.
            peer: its address.
            quick_bytes: how much is thrown away as fast as it comes.
        """
        self._lingerers = lingerers
        self._left = quick_bytes
        self.transport = transport
        self.peer = peer

    def data_received(self, data: bytes) -> None:
        """Throw it away."""
        self._left -= len(data)
        if self._left < 0:
            self._lingerers.pause(self)

    def end(self) -> None:
        """Close, whatever still comes."""
        self.transport.close()

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002
        """It is gone."""
        self._lingerers.lost(self)
