"""A client that sends exactly the bytes it is told, however odd."""

import asyncio
import contextlib
import re

from tests.support.waiting import PATIENCE_S


async def send(url: str, method: str, target: str, *lines: str) -> tuple[int, bytes]:
    """One request on one connection; the status and all bytes of the answer.

    Args:
        url: `http://host:port`.
        method: sent as it is.
        target: sent as it is, in Latin-1.
        lines: header lines; Host and Connection are added unless they are among them.
    """
    place = url.removeprefix("http://")
    if not any(line.lower().startswith("connection:") for line in lines):
        lines = ("Connection: close", *lines)
    if not any(line.lower().startswith("host:") for line in lines):
        lines = (f"Host: {place}", *lines)
    length = ("Content-Length: 0",) if method == "POST" else ()
    head = (f"{method} {target} HTTP/1.1", *length, *lines)
    answer = await exchanged(url, ("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))
    return int(answer.split(b" ", 2)[1]), answer


async def exchanged(url: str, request: bytes, *, patience_s: float = PATIENCE_S) -> bytes:
    """All bytes of the answer to these bytes, on one connection; none if it is just closed."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        async with asyncio.timeout(patience_s):
            return await _answer(reader, has_body=not request.startswith(b"HEAD "))
    except ConnectionError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader, *, has_body: bool) -> bytes:
    """As much as Content-Length says, else until the end: Envoy closes a second later."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as cut:
        return cut.partial
    if not has_body:
        return head
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    return head + (await reader.readexactly(int(length[1])) if length else await reader.read())
