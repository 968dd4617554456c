"""One TLS context for all connections of a client, whose files are read off the event loop.

redis-py makes a context for each connection, from files, on the loop: some ten milliseconds for
the system's certificates, and as long as it takes where the disk is slow.
"""

import asyncio
import time
from typing import Any, Final

READ_AGAIN_S: Final = 1.0
"""The time between two readings of the files, in seconds, at least."""


class SharedTls:
    """The context; read again after a connection failed, for the files may have been renewed."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._context: Any = None
        self._read_at = float("-inf")
        self._stale = True
        self._lock = asyncio.Lock()

    async def lend(self, tls: Any) -> None:
        """Give a connection's `RedisSSLContext` the context, and make it if there is none."""
        if tls.context is None or self._stale:
            async with self._lock:
                if self._stale and time.monotonic() - self._read_at > READ_AGAIN_S:
                    tls.context = None
                    self._context = await asyncio.to_thread(tls.get)
                    self._read_at = time.monotonic()
                    self._stale = False
            tls.context = self._context

    def failed(self) -> None:
        """Have the files read again before the next connection."""
        self._stale = True
