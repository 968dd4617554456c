"""What a process tells its service manager, systemd say: sd_notify(3)."""

import asyncio
import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

PATIENCE_S: Final = 1.0
"""How long a message may wait for a manager that is busy, in seconds."""

MARGIN_S: Final = 5.0
"""What a stop may take beyond what was agreed, in seconds."""


@dataclass(frozen=True, slots=True)
class NotifySocket:
    """Where messages go; without an address, nowhere.

    Attributes:
        address: the manager's datagram socket; one that begins with @ is an abstract name.
        watchdog_s: a process that is silent for so long is ended, in seconds; None: it is not.
    """

    address: str | None = None
    watchdog_s: float | None = None

    @classmethod
    def taken(cls, environ: MutableMapping[str, str]) -> Self:
        """The one that the environment names, taken out of it: no child may speak for us."""
        address = environ.pop("NOTIFY_SOCKET", None)
        watchdog_us = environ.pop("WATCHDOG_USEC", "")
        ours = environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watched = ours and watchdog_us.isdecimal() and int(watchdog_us) > 0
        return cls(address, int(watchdog_us) / 1e6 if watched else None)

    @property
    def beat_s(self) -> float | None:
        """The time between two signs of life, in seconds, or None."""
        return self.watchdog_s and self.watchdog_s / 3

    def ready(self) -> None:
        """Say that whoever asks is answered: after a start, and after a reload."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """Say that the configuration is read again; `ready` ends that."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, seconds: float) -> None:
        """Say that the end was begun, and how long it may take."""
        margin_us = int((seconds + MARGIN_S) * 1e6)
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={margin_us}")

    def live(self) -> None:
        """Give a sign of life, waiting for nobody."""
        if self.watchdog_s is not None:
            self._tell("WATCHDOG=1", patience_s=0)

    async def keep_alive(self) -> None:
        """Give signs of life for as long as this event loop turns."""
        while self.beat_s is not None:
            self.live()
            await asyncio.sleep(self.beat_s)

    def _tell(self, *states: str, patience_s: float = PATIENCE_S) -> None:
        """Send these; a manager that does not listen is no reason to fail."""
        if self.address is None:
            return
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.settimeout(patience_s)
            one.sendto("\n".join(states).encode(), name)
