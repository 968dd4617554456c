"""One request as it arrived, whichever server read it, and what is answered to it."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple

from aiohttp import StreamReader
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError

from authsidecar.decision.proxies.replies import Reply
from authsidecar.serving.memo import Look

MAX_FIELD_BYTES: Final = 32 * 1024
MAX_HEADERS: Final = 200


class RequestTimeoutError(HttpProcessingError):
    """A request has begun and does not end."""

    code = 408
    message = "timeout"


class TooManyHeadersError(HttpProcessingError):
    """A request has more header fields than MAX_HEADERS."""

    code = 431
    message = "too many header fields"


class Subrequest(NamedTuple):
    """One request as it arrived.

    Attributes:
        method: its own, whatever the proxy says of the client's.
        target: path and query.
        headers: names and values in order.
        body: whether one was declared.
        peer: the caller's address; empty for a unix socket, "?" for one that is gone already.
        look: what was known of its bytes; None: they are not to be remembered.
        content: the body as it comes, if there is one that may be read; else it is thrown away.
    """

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bool
    peer: str
    look: Look | None = None
    content: StreamReader | None = None


Answer = Callable[[Subrequest], Coroutine[Any, Any, Reply]]
"""Answers a request. It may run outside of any task: it may await futures and tasks."""

Refuse = Callable[[HttpProcessingError, str, bytes], Reply]
"""Answers what could not be parsed, to this peer; the bytes are what the request begins with."""

Fail = Callable[[BaseException, str, str], Reply]
"""Answers a request whose own answer raised this, to this peer; it had this target."""


class HeadLines:
    """Counts the lines of the head that is arriving; an empty line ends it."""

    __slots__ = ("_begun", "_lines")

    def __init__(self) -> None:
        """Nothing has arrived."""
        self.clear()

    def clear(self) -> None:
        """What comes next is a new head."""
        self._lines = 0
        self._begun = False  # a line that is not empty, and has no end yet

    def add(self, data: bytes) -> int:
        """How many lines the longest head has that is in this data, with what came before it."""
        if not self._lines and data.endswith(b"\r\n\r\n") and not self._begun:
            lines = data.count(b"\n")
            if lines <= MAX_HEADERS:  # as nearly always: whole, and in no part too long
                return lines
        longest = self._lines
        *ended, rest = data.split(b"\n")
        for line in ended:
            empty = not self._begun and line in {b"", b"\r"}
            self._lines = 0 if empty else self._lines + 1
            self._begun = False
            longest = max(longest, self._lines)
        self._begun = self._begun or rest not in {b"", b"\r"}
        return longest


def name_error(error: HttpProcessingError, lines: int) -> HttpProcessingError:
    """The parser's error, or the one for too many fields, which it has no type for.

    Args:
        error: what the parser raised.
        lines: how many lines the head has, the request line among them.
    """
    if type(error) is BadHttpMessage and lines - 1 > MAX_HEADERS:
        return TooManyHeadersError()
    return error


def peer_of(transport: asyncio.BaseTransport) -> str:
    """The address of who is connected."""
    name = transport.get_extra_info("peername")
    if isinstance(name, tuple):
        return str(name[0])
    # A unix client may have a name of its own, and a TCP client that left at once has none.
    one = transport.get_extra_info("socket")
    return "" if one is not None and one.family == socket.AF_UNIX else "?"
