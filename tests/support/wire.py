"""Subrequests as bytes, over connections that are kept: for many requests and for odd ones."""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from tests.support.sidecar import Answer
from tests.support.waiting import PATIENCE_S

Text = str | bytes


def subrequest(
    method: Text | None = "GET",
    uri: Text | None = "/api/v1/teams",
    *,
    authorization: Text | None = None,
    client: Text | None = "192.0.2.1",
    proxy: str = "traefik",
    headers: Sequence[tuple[Text, Text]] = (),
    line: Text | None = None,
) -> bytes:
    """What a proxy sends about one client request; None leaves a header out.

    Args:
        method: X-Forwarded-Method.
        uri: X-Forwarded-Uri.
        authorization: the client's Authorization.
        client: X-Forwarded-For.
        proxy: which endpoint is asked.
        headers: more headers, in order; a name may be repeated.
        line: the whole request line, where it is not `GET /authz/PROXY HTTP/1.1`.
    """
    forwarded: list[tuple[Text, Text | None]] = [
        ("Host", "sidecar.test"),
        ("X-Forwarded-Method", method),
        ("X-Forwarded-Uri", uri),
        ("X-Forwarded-For", client),
        ("Authorization", authorization),
    ]
    start = _bytes(line if line is not None else f"GET /authz/{proxy} HTTP/1.1")
    fields = [(name, value) for name, value in (*forwarded, *headers) if value is not None]
    return b"\r\n".join(
        [start, *(_bytes(name) + b": " + _bytes(value) for name, value in fields), b"", b""]
    )


class Wire:
    """One connection; used as an async context."""

    def __init__(self, place: int | str, source: str | None = None) -> None:
        """`place` is a port on 127.0.0.1 or the path of a unix socket."""
        self._place = place
        self._source = source

    async def __aenter__(self) -> Self:
        if isinstance(self._place, str):
            self.reader, self.writer = await asyncio.open_unix_connection(self._place)
        else:
            address = (self._source, 0) if self._source else None
            self.reader, self.writer = await asyncio.open_connection(
                "127.0.0.1", self._place, local_addr=address
            )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def ask(self, request: bytes, *, head: bool = False) -> Answer:
        """Send a request and read its answer; `head` for one whose answer has no body."""
        self.send(request)
        return await self.answer(head=head)

    def send(self, data: bytes) -> None:
        """Send bytes and wait for nothing."""
        self.writer.write(data)

    async def answer(self, *, head: bool = False) -> Answer:
        """Read one answer."""
        async with asyncio.timeout(PATIENCE_S):
            raw = await self.reader.readuntil(b"\r\n\r\n")
            start, *lines = raw[:-4].decode("latin-1").split("\r\n")
            headers = tuple(_header(line) for line in lines)
            length = next((v for n, v in headers if n.lower() == "content-length"), "0")
            body = b"" if head else await self.reader.readexactly(int(length))
            return Answer(int(start.split(" ", 2)[1]), headers, body)

    async def ended(self) -> bool:
        """Whether the other side has closed, and sent nothing more before."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read(1) == b""


async def ask(place: int | str, *requests: bytes) -> list[Answer]:
    """Ask one after the other on one connection."""
    async with Wire(place) as wire:
        return [await wire.ask(request) for request in requests]


async def ask_all(
    place: int | str, requests: Iterable[bytes], *, connections: int = 64
) -> list[Answer]:
    """Ask everything, many at a time, on connections that are kept; answers in order."""
    waiting = enumerate(requests)
    answers: dict[int, Answer] = {}

    async def worker() -> None:
        async with Wire(place) as wire:
            for number, request in waiting:
                answers[number] = await wire.ask(request)

    await asyncio.gather(*(worker() for _ in range(connections)))
    return [answers[number] for number in range(len(answers))]


def _bytes(text: Text) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8")


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.strip()
