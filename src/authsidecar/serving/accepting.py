"""Accepts several connections in one turn of the event loop.

uvloop accepts one (as libuv does since 1.45). A turn takes as long as all requests take that have
just come, so whoever connects while many others ask would wait for seconds.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from authsidecar.serving.connection_limits import Room

MOST: Final = 100
"""How many connections are accepted in a turn at the most, beside the loop's own."""

SHARE: Final = 8
"""Of the connections that may still come, one in SHARE at the most is accepted in a turn: whoever
comes when few are left may have to make room for the next one, and its request is read first."""


class Acceptor:
    """What `create_server` calls for each connection: accepts those behind it as well."""

    def __init__(
        self, made: Callable[[], asyncio.Protocol], listener: socket.socket, room: Room
    ) -> None:
        """Nothing is accepted yet; the event loop is the running one.

        Args:
            made: makes the protocol of a connection.
            listener: the socket that is listened on, which does not block; whoever closes it has
                closed the server before.
            room: says how many may still come.
        """
        self._made = made
        self._listener = listener
        self._room = room
        self._due = False
        self._opening: set[asyncio.Task[object]] = set()
        self._loop = asyncio.get_running_loop()

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a connection that the loop has accepted."""
        if not self._due:
            self._due = True
            self._loop.call_soon(self._accept_rest)
        return self._made()

    def _accept_rest(self) -> None:
        self._due = False
        with suppress(OSError):  # none is left; what else it may be, the loop meets by itself
            for _ in range(min(MOST, self._room.left // SHARE)):
                accepted, _ = self._listener.accept()
                self._open(accepted)

    def _open(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        if accepted.family != socket.AF_UNIX:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._opened(accepted))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _opened(self, accepted: socket.socket) -> None:
        with suppress(OSError):  # it is gone already
            await self._loop.connect_accepted_socket(self._made, accepted)
