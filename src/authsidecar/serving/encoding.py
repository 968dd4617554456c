"""An answer as the bytes that go out: whole, with one write."""

import time
from http import HTTPStatus
from typing import Final

from aiohttp.helpers import rfc822_formatted_time

from authsidecar.decision.proxies.replies import Reply

SERVER: Final = "authsidecar"
"""The Server header: a name without a version."""

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus
}


_OK: Final = _STATUS_LINES[200]


class _LastFields:
    """The fields that every answer ends with: rendered once a second."""

    __slots__ = ("_from", "_text")

    def __init__(self) -> None:
        self._from = 0
        self._text = ""

    def __call__(self) -> str:
        now = time.time()
        if not 0 <= now - self._from < 1:
            self._from = int(now)
            self._text = f"Date: {rfc822_formatted_time()}\r\nServer: {SERVER}\r\n\r\n"
        return self._text


_last_fields = _LastFields()


def encoded(reply: Reply, *, connection: str | None, head: bool) -> bytes:
    """Status line, header fields and body.

    Args:
        reply: the answer.
        connection: what is said of the connection, where anything needs to be said.
        head: leave out the body; its length is told all the same.
    """
    said = "" if connection is None else f"Connection: {connection}\r\n"
    text = (
        f"{_STATUS_LINES[reply.status]}{reply.fields}{said}Content-Length: {len(reply.body)}\r\n"
        f"{_last_fields()}"
    ).encode("latin-1")
    return text if head else text + reply.body


def last_of_admissions() -> str:
    """What `encoded_admission` ends with at this moment."""
    return f"Content-Length: 0\r\n{_last_fields()}"


def encoded_admission(fields: str, last: str) -> bytes:
    """The same of an answer of 200 without a body, on a connection that stays.

    Args:
        fields: its header fields.
        last: what `last_of_admissions` says.
    """
    return f"{_OK}{fields}{last}".encode("latin-1")


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
