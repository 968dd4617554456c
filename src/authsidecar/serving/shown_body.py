"""The body of a subrequest, where a proxy shows it: kept up to a bound, and read only if needed."""

import asyncio
from typing import Any, Final

from aiohttp import StreamReader
from aiohttp.http_exceptions import HttpProcessingError

from authsidecar.decision import bodies
from authsidecar.decision.bodies import Body
from authsidecar.decision.model import Proxy
from authsidecar.serving.subrequest import Subrequest

SHOWING: Final = frozenset({Proxy.TRAEFIK, Proxy.ENVOY})
"""The proxies that can show a body."""

PARTIAL: Final = b"x-envoy-auth-partial-body"
"""Envoy says `false` with a body that it shows whole."""

WAIT_S: Final = 5.0
"""How long a body may take to arrive; both proxies have all of it before they ask."""

_SHARE_BYTES: Final = 4096


class BodyError(Exception):
    """Why a body can't be had, in one of the fixed sentences of `bodies`."""


class ShownBody:
    """What arrives of a body, as its connection's parser reads it.

    Attributes:
        content: the body as it comes; what is longer than may be looked at raises BodyError.
    """

    __slots__ = ("_parser", "content")

    def __init__(self, parser: Any, content: StreamReader) -> None:
        """Its head was just parsed.

        Args:
            parser: reads what follows.
            content: what the parser makes of it.
        """
        self._parser = parser
        self.content = content
        self._bound()

    def feed(self, data: bytes) -> None:
        """More has arrived."""
        for start in range(0, len(data), _SHARE_BYTES):
            if self.content.is_eof() or self.content.exception() is not None:
                return  # whatever follows is thrown away
            try:
                self._parser.feed_data(data[start : start + _SHARE_BYTES])
            except HttpProcessingError:
                self.end()
            self._bound()

    def end(self) -> None:
        """Nothing more comes."""
        if not self.content.is_eof() and self.content.exception() is None:
            self.content.set_exception(BodyError(bodies.NOT_WHOLE))

    def _bound(self) -> None:
        if self.content.total_bytes > bodies.LONGEST:
            self.content.set_exception(BodyError(bodies.TOO_LONG))


class BodyReader:
    """Reads what a body says that a proxy shows, if anybody asks; it never raises."""

    __slots__ = ("_asked", "_content_types", "_proxy", "_said")

    def __init__(self, asked: Subrequest, proxy: Proxy, content_types: list[bytes]) -> None:
        """Nothing is read yet.

        Args:
            asked: the subrequest that the body came with.
            proxy: who shows it.
            content_types: of the client's request.
        """
        self._asked = asked
        self._proxy = proxy
        self._content_types = content_types
        self._said: Body | None = None

    async def __call__(self) -> Body:
        """What the body says; the first time this waits for it."""
        if self._said is None:
            self._said = await self._read()
        return self._said

    async def _read(self) -> Body:
        content = self._asked.content
        if content is None:
            return Body(fault=bodies.NOT_SHOWN)
        partial = [value for name, value in self._asked.headers if name.lower() == PARTIAL]
        if partial != ([b"false"] if self._proxy is Proxy.ENVOY else []):
            return Body(fault=bodies.CUT_OFF)
        try:
            data = await asyncio.ensure_future(_whole(content))
        except BodyError as error:
            return Body(fault=str(error))
        except (TimeoutError, OSError, HttpProcessingError):
            return Body(fault=bodies.NOT_WHOLE)
        return bodies.read(self._content_types, data) if data else Body(fault=bodies.NOT_SHOWN)


async def _whole(content: StreamReader) -> bytes:
    """All of a body."""
    data = bytearray()
    async with asyncio.timeout(WAIT_S):
        while part := await content.readany():
            data += part
            if len(data) > bodies.LONGEST:
                raise BodyError(bodies.TOO_LONG)
    return bytes(data)
