"""An answer as bytes on its connection: what aiohttp's own response does, for small and whole ones.

A decision's answer is known whole before its first byte goes out, so it needs no header objects,
no chunking and no drain. aiohttp parses, times out and keeps connections alive as ever; it asks a
response for three things only, and this one has nothing else.
"""

import time
from http import HTTPStatus
from typing import Final

from aiohttp import HttpVersion11, web
from aiohttp.helpers import rfc822_formatted_time

from authsidecar.proxies.replies import Reply

SERVER: Final = "authsidecar"
"""The Server header: a name without a version."""

_WEBSOCKET: Final = "websocket"

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus
}


class Written:
    """An answer that aiohttp finishes like any other response.

    Attributes:
        keep_alive: whether the connection serves another request.
    """

    __slots__ = ("_reply", "_request", "keep_alive")

    def __init__(self, reply: Reply, request: web.BaseRequest, *, last: bool) -> None:
        """Nothing is sent before aiohttp asks for it.

        A body that was declared and perhaps never sent must not be read as the next request, and
        behind an upgrade that it does not know aiohttp drops what was pipelined: after either, the
        connection closes, so that nobody waits.

        Args:
            reply: the answer.
            request: what it answers.
            last: the connection closes after it in any case.
        """
        self._reply = reply
        self._request = request
        self.keep_alive = (
            not last
            and bool(request.keep_alive)
            and not request.body_exists
            and request.headers.get("Upgrade", _WEBSOCKET).lower() == _WEBSOCKET
        )

    async def prepare(self, request: web.BaseRequest) -> None:
        """Do nothing: head and body go out together."""

    async def write_eof(self) -> None:
        """Send the whole answer.

        Raises:
            ConnectionResetError: the peer is gone.
        """
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the peer is gone")
        transport.write(self.encoded())

    def encoded(self) -> bytes:
        """Status line, headers and body."""
        reply, request = self._reply, self._request
        lines = [f"{name}: {value}\r\n" for name, value in reply.headers]
        if not self.keep_alive:
            lines.append("Connection: close\r\n")
        elif request.version < HttpVersion11:
            lines.append("Connection: keep-alive\r\n")
        head = (
            f"{_STATUS_LINES[reply.status]}{''.join(lines)}Content-Length: {len(reply.body)}\r\n"
            f"Date: {rfc822_formatted_time()}\r\nServer: {SERVER}\r\n\r\n"
        ).encode("latin-1")
        return head if request.method == "HEAD" else head + reply.body


class DecisionIds:
    """Names for decisions: unique among all processes, in order within one."""

    __slots__ = ("_count", "_prefix")

    def __init__(self, seed: bytes) -> None:
        """Begin a series.

        Args:
            seed: at least 5 random bytes, this process's own.
        """
        self._prefix = f"{int(time.time()):08x}{seed[:5].hex()}"
        self._count = 0

    def __call__(self) -> str:
        """The next name: 26 hexadecimal digits."""
        self._count += 1
        return f"{self._prefix}{self._count:08x}"
