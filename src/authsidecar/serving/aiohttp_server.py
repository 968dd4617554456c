"""The authz listener on aiohttp's own server: slower than the quick connection, and documented.

It stands on what aiohttp exports: `web.Server`, `web.RequestHandler` and its `handle_error`. What
that server has no setting for is done around it: peers that are not trusted never reach it, and a
connection has a place in the room and a time for its request.
"""

import asyncio
from typing import Any, Final, cast

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from authsidecar.decision.proxies.replies import Reply
from authsidecar.serving.connection_limits import ConnectionLimits, Room
from authsidecar.serving.encoding import SERVER, encoded
from authsidecar.serving.lingering_close import LINGER_S, Lingerers, Lingering
from authsidecar.serving.subrequest import (
    MAX_FIELD_BYTES,
    MAX_HEADERS,
    Answer,
    Fail,
    HeadLines,
    Refuse,
    RequestTimeoutError,
    Subrequest,
    name_error,
    peer_of,
)
from authsidecar.serving.time_limits import TimeLimits
from authsidecar.serving.untrusted_peers import Dropped, RefuseUntrusted, UntrustedPeers

IDLE_S: Final = 3600.0
_BEGIN_BYTES: Final = 256

_UPGRADES: Final = frozenset({"websocket", "tcp"})
"""What aiohttp's parser knows: after others it has lost what follows."""


async def respond(request: web.BaseRequest, answer: Answer, fail: Fail) -> web.Response:
    """Answer one request of aiohttp's through the same function as any other.

    A subrequest has no body and no upgrade: after either, the connection ends.
    """
    peer = "?" if request.transport is None else peer_of(request.transport)
    body = request.body_exists
    asked = Subrequest(
        *(request.method, request.raw_path, request.raw_headers, body, peer),
        content=request.content if body else None,
    )
    try:
        reply = await answer(asked)
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # the peer waits
        reply = fail(error, peer, asked.target)
    response = _response(reply)
    unknown = request.headers.get(hdrs.UPGRADE, "websocket").lower() not in _UPGRADES
    if asked.body or unknown or request.method == hdrs.METH_CONNECT:
        response.force_close()
    return response


def _response(reply: Reply) -> web.Response:
    headers = [*reply.headers, (hdrs.SERVER, SERVER)]
    return web.Response(status=reply.status, headers=headers, body=reply.body)


def application(answer: Answer, fail: Fail) -> web.Application:
    """A plain application that answers every request as the authz listener does."""

    @web.middleware
    async def every(request: web.Request, handler: Any) -> web.StreamResponse:  # noqa: ARG001
        return await respond(request, answer, fail)

    return web.Application(middlewares=[every])


class AiohttpConnections:
    """All connections of a listener, on aiohttp's own server; called for each new one."""

    def __init__(
        self,
        answer: Answer,
        refuse: Refuse,
        *,
        fail: Fail,
        trusts: Any,
        refuse_stranger: RefuseUntrusted,
        limits: ConnectionLimits,
        dropped: Dropped,
    ) -> None:
        """Nothing is listened on yet; the arguments are those of `Connections`."""
        self.answer = answer
        self.refuse = refuse
        self.fail = fail
        self.trusts = trusts
        self.strangers = UntrustedPeers(refuse_stranger, most=limits.strangers, dropped=dropped)
        self.room = Room(limits.connections, limits.per_peer, dropped)
        self.silent: TimeLimits[_Handler] = TimeLimits(limits.first_byte_s, self._silent)
        self.arriving: TimeLimits[_Handler] = TimeLimits(limits.request_s, self._late)
        self.draining = False
        self._dropped = dropped
        self._lingerers = Lingerers(limits.body_bytes, self._left)
        self._lingering: set[Lingering] = set()
        self._server: web.Server | None = None

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a connection that was just accepted."""
        if self._server is None:
            self._server = web.Server(self._handle)
        return _Handler(self, self._server)

    async def end(self, grace_s: float) -> None:
        """Close what is idle, wait for what is being answered, then close all."""
        self.draining = True
        self.strangers.close()
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(grace_s)
        for one in tuple(self._lingering):
            one.abort()
        self.silent.close()
        self.arriving.close()

    def linger(self, one: "_Handler", transport: asyncio.Transport) -> None:
        """A connection has had its last answer, and its peer may not be done sending."""
        self.room.leave(one)
        lingering = self._lingerers.take(transport, one.peer)
        self._lingering.add(lingering)
        self.room.put(lingering)
        self.room.expendable(lingering)

    def _left(self, one: Lingering) -> None:
        self.room.leave(one)
        self._lingering.discard(one)

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        one = cast(_Handler, request.protocol)
        one.begin()
        await asyncio.sleep(0)  # others have their turn, however many requests it sends at once
        try:
            response = await respond(request, self.answer, self.fail)
        finally:
            one.finish()
        if self.draining:
            response.force_close()
        return response

    def _silent(self, one: "_Handler") -> None:
        self._dropped("first_byte", one.peer)
        one.force_close()

    def _late(self, one: "_Handler") -> None:
        if one.busy:
            self.arriving.start(one)
            return
        self._dropped("request", one.peer)
        one.time_out()


class _Handler(web.RequestHandler):
    """aiohttp's connection, with a peer, a place and a time."""

    __slots__ = ("_begun", "_connections", "_head", "_lines", "_more", "busy", "peer")

    def __init__(self, connections: AiohttpConnections, server: web.Server) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=IDLE_S,
            max_line_size=MAX_FIELD_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=LINGER_S,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]  # as web.AppRunner takes it
        )
        self._connections = connections
        self._begun = b""
        self._head = HeadLines()
        self._lines = 0
        self._more = False
        self.busy = False
        self.peer = "?"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Who is not trusted never reaches aiohttp's server."""
        self.peer = peer_of(transport)
        connections = self._connections
        if not connections.trusts(self.peer):
            connections.strangers.take(cast(asyncio.Transport, transport), self.peer)
            return
        super().connection_made(transport)
        if connections.room.enter(self):
            connections.room.expendable(self)
            connections.silent.start(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is gone."""
        self._connections.silent.stop(self)
        self._connections.arriving.stop(self)
        self._connections.room.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A part of a request is here; how long the rest may take begins with the first."""
        self._connections.silent.stop(self)
        self._more = not data.endswith(b"\r\n\r\n")
        if not self.busy and not self._begun:
            self._connections.arriving.start(self)
        if len(self._begun) < _BEGIN_BYTES:
            self._begun += data[:_BEGIN_BYTES]
        self._lines = max(self._lines, self._head.add(data))
        super().data_received(data)

    def begin(self) -> None:
        """A whole head is here."""
        self.busy = True
        self._begun, self._lines = b"", 0
        self._connections.arriving.stop(self)
        self._connections.room.needed(self)

    def finish(self) -> None:
        """Its answer is made; what came meanwhile may be a part of the next one."""
        self.busy = False
        if self._more and self.transport is not None:
            self._connections.arriving.start(self)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,  # noqa: ARG002
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # it repeats what was sent
    ) -> web.StreamResponse:
        """Answer in our own words what could not be parsed, or what failed past `respond`."""
        self._connections.arriving.stop(self)
        if isinstance(exc, HttpProcessingError):
            error = name_error(exc, self._lines)
            reply = self._connections.refuse(error, self.peer, self._begun)
        else:
            error_ = exc or RuntimeError("no answer")
            reply = self._connections.fail(error_, self.peer, request.raw_path)
        response = _response(reply)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """After the last answer, read on for a while: else a reset takes it away."""
        finished = await super().finish_response(request, resp, start_time)
        transport = self.transport
        if transport is not None and not resp.keep_alive and not transport.is_closing():
            self._linger(transport)
        return finished

    def _linger(self, transport: asyncio.Transport) -> None:
        if not self._connections.draining:
            self.transport = None
            self._connections.linger(self, transport)
            self.connection_lost(None)

    def time_out(self) -> None:
        """The rest of a request did not come: say so, and close."""
        reply = self._connections.refuse(RequestTimeoutError(), self.peer, self._begun)
        transport = self.transport
        if transport is not None:
            transport.write(encoded(reply, connection="close", head=False))
            self._linger(transport)

    def abort(self) -> None:
        """Close at once."""
        transport = self.transport
        if transport is not None:
            transport.abort()
