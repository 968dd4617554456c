"""A connection that proxies ask on: aiohttp's parser below, one small answer for each request.

aiohttp's own connection runs every request in a task that another task waits for, which costs
more than all the rest of a check. Here an answer is written in the very tick in which its request
arrives, or in which what it waits for is there. A subrequest has no body that is read, but where
the operator says so, and no upgrade: after either, the connection ends, so that what was sent can
never be read as the next request.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, cast

from aiohttp import HttpVersion11
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD

from authsidecar.decision.proxies.replies import Reply
from authsidecar.serving.connection_limits import ConnectionLimits, Room
from authsidecar.serving.encoding import encoded, encoded_admission
from authsidecar.serving.lingering_close import Lingerers, Lingering
from authsidecar.serving.memo import Look, Memo, Remembered
from authsidecar.serving.shown_body import ShownBody
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
"""How long a connection may be silent, in seconds: longer than any proxy keeps one, so that none
sends a request just when we close."""

_READ_BYTES: Final = 64 * 1024

_BEGIN_BYTES: Final = 256
"""What is kept of a request that has not arrived whole: enough for the line of a subrequest."""

SHARE_BYTES: Final = 4096
"""How much of what one connection sent is parsed in one tick of the loop."""

_LONG_HEAD_SHARES: Final = 16

Recall = Callable[[Remembered, Look, "QuickConnection"], Coroutine[Any, Any, Reply] | None]
"""Answers a request that is remembered, with what its bytes had anew: itself, or by a coroutine."""

SHARE_REQUESTS: Final = 4
"""How many requests of one connection are answered in one tick: then others have their turn. No
proxy sends a request before it has the answer to the one before."""


_END_OF_HEAD: Final = b"\r\n\r\n"

_DEFAULTS: Final = ConnectionLimits()


class Connections:
    """All connections of a listener; called for each new one.

    Attributes:
        shows_bodies: whether a body is kept, up to a bound, until its request is answered.
    """

    def __init__(
        self,
        answer: Answer,
        refuse: Refuse,
        *,
        fail: Fail = lambda _error, _peer, _target: Reply(503, ""),
        trusts: Callable[[str], bool] = lambda _: True,
        refuse_stranger: RefuseUntrusted = lambda _start, _peer: Reply(403, ""),
        limits: ConnectionLimits = _DEFAULTS,
        dropped: Dropped = lambda _cause, _peer: None,
        memo: Memo | None = None,
        recall: Recall | None = None,
    ) -> None:
        """Nothing is listened on yet.

        Args:
            answer: answers a request.
            refuse: answers what could not be parsed.
            fail: answers a request whose answer raised.
            trusts: whether a peer may ask.
            refuse_stranger: answers one that may not.
            limits: how many connections there may be, and how long a request may take.
            dropped: told of connections that are closed because there are too many, or because
                a request does not come.
            memo: looked at before a request is parsed; None: each is parsed.
            recall: answers what the memo remembers.
        """
        self.answer = answer
        self.memo = memo if recall is not None else None
        self.recall = recall
        self.refuse = refuse
        self.fail = fail
        self.trusts = trusts
        self.strangers = UntrustedPeers(refuse_stranger, most=limits.strangers, dropped=dropped)
        self.room = Room(limits.connections, limits.per_peer, dropped)
        self.silent: TimeLimits[QuickConnection] = TimeLimits(limits.first_byte_s, self._silent)
        self.arriving: TimeLimits[QuickConnection] = TimeLimits(limits.request_s, self._late)
        self.draining = False
        self.shows_bodies = False
        self._dropped = dropped
        self._lingerers = Lingerers(limits.body_bytes, self.lost)
        self._open: set[QuickConnection | Lingering] = set()
        self.unsent: list[tuple[QuickConnection, bytes, bool]] = []
        self._lost: asyncio.Future[None] | None = None

    def __call__(self) -> "QuickConnection":
        """The protocol of a connection that was just accepted."""
        return QuickConnection(self, asyncio.get_running_loop())

    def send(self, one: "QuickConnection", data: bytes, *, last: bool) -> None:
        """Send an answer in this tick of the loop, after all that is still to be decided in it.

        Decisions that follow each other, and then writes that follow each other, find the
        processor's caches warm: that is a fifth less for each.
        """
        if not self.unsent:
            asyncio.get_running_loop().call_soon(self.flush)
        self.unsent.append((one, data, last))

    def send_all(self) -> None:
        """Send what `unsent` has: at once if nobody shares the tick, else as `send` does."""
        if len(self.unsent) == 1:
            self.flush()
        elif self.unsent:
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send what is not sent yet."""
        unsent, self.unsent = self.unsent, []
        for one, data, last in unsent:
            if last:
                one.write_last(data)
            elif (transport := one.transport) is not None and not transport.is_closing():
                transport.write(data)

    async def end(self, grace_s: float) -> None:
        """Close what is idle, wait for what is being answered, then close all.

        Args:
            grace_s: how long to wait, in seconds.
        """
        self.draining = True
        self.strangers.close()
        for one in tuple(self._open):
            one.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._open:
                    self._lost = asyncio.get_running_loop().create_future()
                    await self._lost
        for one in tuple(self._open):
            one.abort()

    def made(self, one: "QuickConnection") -> bool:
        """A connection is open; whether there is room for it."""
        if not self.room.enter(one):
            return False
        self._open.add(one)
        return True

    def linger(self, one: "QuickConnection", transport: asyncio.Transport) -> None:
        """A connection has had its last answer, and its peer may not be done sending."""
        lingering = self._lingerers.take(transport, one.peer)
        self.room.leave(one)
        self.room.put(lingering)
        self.room.expendable(lingering)
        self._open.discard(one)
        self._open.add(lingering)

    def lost(self, one: "QuickConnection | Lingering") -> None:
        """A connection is gone."""
        self.room.leave(one)
        self._open.discard(one)
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    def _silent(self, one: "QuickConnection") -> None:
        self._dropped("first_byte", one.peer)
        one.end()

    def _late(self, one: "QuickConnection") -> None:
        if one.held_up():  # by us, or by its own slow reading: no fault of the request
            self.arriving.start(one)
        else:
            self._dropped("request", one.peer)
            one.time_out()


_Arrived = tuple[RawRequestMessage, bool, Look | None]
"""A request, whether it has a body, and what is known of its bytes."""


class QuickConnection(BaseProtocol):
    """Answers requests one after the other, in the order in which they came."""

    __slots__ = (
        "_active_at",
        "_answering",
        "_begun",
        "_body",
        "_connections",
        "_ending",
        "_head",
        "_idle_timer",
        "_linger",
        "_requests",
        "_turn_due",
        "_unparsed",
        "_waits",
        "peer",
    )

    def __init__(self, connections: Connections, loop: asyncio.AbstractEventLoop) -> None:
        """Nothing has been read yet.

        Args:
            connections: who answers, and knows of this one while it is open.
            loop: the running event loop.
        """
        super().__init__(loop)
        self._connections = connections
        self._requests: deque[_Arrived | HttpProcessingError] = deque()
        self._body: ShownBody | None = None
        self._answering: RawRequestMessage | Remembered | None = None
        self._ending = False
        self._active_at = 0.0
        self._begun = b""
        self._head = HeadLines()
        self._unparsed = b""
        self._turn_due = False
        self._linger = False
        self._waits: TimeLimits[QuickConnection] | None = None
        self.peer = "?"

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._answering is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody has connected: a proxy, or one who is not spoken to any further."""
        self.peer = peer_of(transport)
        if not self._connections.trusts(self.peer):
            self._connections.strangers.take(cast(asyncio.Transport, transport), self.peer)
            return
        super().connection_made(transport)
        if not self._connections.made(self):
            transport.set_protocol(asyncio.Protocol())
            return
        self._parser = HttpRequestParser(
            self,
            self._loop,
            _READ_BYTES,
            max_line_size=MAX_FIELD_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_HEADERS,
            auto_decompress=False,
        )
        self._wait(self._connections.silent)
        self._active_at = self._loop.time()
        self._idle_timer = self._loop.call_later(IDLE_S, self._close_if_idle)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is gone; what is being answered is decided all the same."""
        super().connection_lost(exc)
        self._forget()
        self._connections.lost(self)

    def _forget(self) -> None:
        """Nothing that comes is of any interest from here on."""
        self._wait(None)
        self._idle_timer.cancel()
        self._requests.clear()
        self._unparsed = b""
        if self._body is not None:
            self._body.end()
            self._body = None
        self._parser = None

    def eof_received(self) -> None:
        """A half-closed connection is closed."""

    def data_received(self, data: bytes) -> None:
        """Answer what has arrived whole."""
        self._active_at = self._loop.time()
        if len(data) > SHARE_BYTES or self._unparsed or self._ending:
            self._unparsed += data
            self._parse_shares()
        else:
            look, connections = None, self._connections
            if (  # nothing is before it, so what is remembered of it may answer it
                connections.memo is not None
                and self._answering is None
                and not self._requests
                and not self._paused
                and self._waits is not connections.arriving
            ):
                look = connections.memo.look(data)
                if look is not None and look.found is not None:
                    self._recall(look.found, look)
                    return
            self._parse(data, look)
        self._go_on()

    def _recall(self, found: Remembered, look: Look) -> None:
        """Answer a request that is remembered: nothing of it is parsed."""
        if self._waits is not None:
            self._wait(None)
        self._answering = found
        recall = self._connections.recall
        assert recall is not None  # noqa: S101  # there is a memo
        try:
            answer = recall(found, look, self)
        except Exception as error:  # noqa: BLE001  # whatever it is, the peer waits
            self._failed(error)
        else:
            if answer is not None:
                self.run(answer)

    def _parse_shares(self) -> None:
        """Parse some of what arrived; not before all that was parsed is answered.

        A long head is no more work than a short one, so it does not wait for other turns.
        """
        shares = _LONG_HEAD_SHARES
        while shares and self._unparsed and not self._requests and self._answering is None:
            if self._ending:
                break
            shares -= 1
            data, self._unparsed = self._unparsed[:SHARE_BYTES], self._unparsed[SHARE_BYTES:]
            self._parse(data)
        if self._ending and self._unparsed:
            # Thrown away, if it is no body; its peer must be able to read the answer all the same.
            self._linger = True
            if self._body is not None:
                self._body.feed(self._unparsed)
            self._unparsed = b""

    def _parse(self, data: bytes, look: Look | None = None) -> None:
        parser = self._parser
        if parser is None:
            return
        whole = data.endswith(_END_OF_HEAD)
        try:
            messages, upgraded, rest = parser.feed_data(data)
        except HttpProcessingError as error:
            self._begun += data[:_BEGIN_BYTES]
            self._broken(name_error(error, self._head.add(data)))
            return
        if whole and not upgraded and len(messages) == 1 and not self._unparsed:
            message, payload = messages[0]
            if payload is EMPTY_PAYLOAD and not message.should_close and not message.upgrade:
                # As nearly always: one request, and nothing else.
                if message.method == "HEAD" or message.version != HttpVersion11:
                    look = None  # its answer has another form
                self._requests.append((message, False, look))
                if self._waits is not None:
                    self._begun = b""
                    self._head.clear()
                    self._wait(None)
                return
        if messages:
            self._begun = b""
        self._head.add(data)
        if not messages and len(self._begun) < _BEGIN_BYTES:
            self._begun += data[:_BEGIN_BYTES]
        self._take_all(parser, messages, upgraded, rest, whole=whole)

    def _take_all(
        self, parser: Any, messages: Any, upgraded: bool, rest: bytes, *, whole: bool
    ) -> None:
        """Take what the parser gave, and have it parse the rest."""
        arrived = bool(messages)
        self._take(messages)
        try:
            while upgraded or (messages and messages[-1][0].upgrade):
                if not upgraded:  # to what the parser does not know: it lost what follows
                    self._ending = self._linger = True
                    break
                parser.set_upgraded(False)  # declined: what follows is the next request
                if not rest or self._ending:
                    break
                messages, upgraded, rest = parser.feed_data(rest)
                arrived = arrived or bool(messages)
                self._take(messages)
        except HttpProcessingError as error:
            self._broken(error)
        if self._ending:
            self._wait(None)
        elif self._unparsed:
            pass  # it is not known yet whether the rest of a request is here
        elif arrived and whole:
            self._wait(None)
        elif arrived or self._waits is not self._connections.arriving:
            self._wait(self._connections.arriving)

    def _broken(self, error: HttpProcessingError) -> None:
        """What came is no request, and what follows cannot be read as one."""
        self._requests.append(error)
        self._ending = self._linger = True
        self._wait(None)

    def _wait(self, limits: "TimeLimits[QuickConnection] | None") -> None:
        """A part of a request is here, or none yet; None: a whole one is."""
        if self._waits is not None:
            self._waits.stop(self)
        self._waits = limits
        if limits is None:
            self._connections.room.needed(self)
        else:
            limits.start(self)
            self._connections.room.expendable(self)

    def held_up(self) -> bool:
        """Whether the rest of a request may be here and is just not read yet."""
        return self._buffer_paused or self._answering is not None or bool(self._requests)

    def time_out(self) -> None:
        """The rest of a request did not come: say so, and close."""
        self._wait(None)
        self._requests.append(RequestTimeoutError())
        self._ending = self._linger = True
        self._go_on()

    def resume_writing(self) -> None:
        """The peer reads again."""
        super().resume_writing()
        self._go_on()

    def end(self) -> None:
        """Close, once what is being answered is answered."""
        self._ending = True
        self._connections.flush()
        if self._answering is None and self.transport is not None:
            self.transport.close()

    def write_last(self, data: bytes) -> None:
        """Send the last answer now, and after it the end of the connection."""
        transport = self.transport
        if transport is not None and not transport.is_closing():
            transport.write(data)
            if self._linger and not self._connections.draining:
                self.transport = None
                self._forget()
                self._connections.linger(self, transport)
            else:
                transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()

    def _take(self, messages: Any) -> None:
        for message, payload in messages:
            body = payload is not EMPTY_PAYLOAD
            self._requests.append((message, body, None))
            if body or message.should_close:
                self._ending = True
                self._linger = body
                if body and self._connections.shows_bodies:
                    self._body = ShownBody(self._parser, payload)
                return

    def _go_on(self) -> None:
        """Answer until something must be waited for, or others have their turn."""
        requests = self._requests
        share = SHARE_REQUESTS
        while requests and share and self._answering is None and not self._paused:
            share -= 1
            request = requests.popleft()
            if isinstance(request, HttpProcessingError):
                self._refused(request)
                return
            message, body, look = request
            self._answering = message
            method, target, headers = message.method, message.path, message.raw_headers
            content = self._body.content if body and self._body is not None else None
            self.run(
                self._connections.answer(
                    Subrequest(method, target, headers, body, self.peer, look, content)
                )
            )
        if requests or self._unparsed:  # whoever sends faster than it reads must wait
            if not self._buffer_paused:
                self._pause_reading_for_buffer()
            if self._answering is None and not self._paused and not self._turn_due:
                self._turn_due = True
                self._loop.call_soon(self._next_turn)
        elif self._buffer_paused:
            self._resume_reading_for_buffer()

    def run(self, answer: Coroutine[Any, Any, Reply]) -> None:
        """Answer by this, now or when what it waits for is there."""
        try:
            awaited = answer.send(None)
        except StopIteration as answered:
            self._answered(answered.value)
        except BaseException as error:  # noqa: BLE001  # whatever it is, the peer waits
            self._failed(error)
        else:
            _Waiting(answer, self).on(awaited)

    def _next_turn(self) -> None:
        self._turn_due = False
        if self._unparsed:
            self._parse_shares()
        self._go_on()

    def answered_later(self, reply: Reply) -> None:
        """What had to be waited for is there."""
        self._answered(reply)
        if self._buffer_paused:
            self._go_on()

    def admitted_later(self, fields: str, last: str) -> None:
        """What is remembered is admitted, by an answer of these header fields."""
        if self._requests or self._ending or self._connections.draining:
            self._answered(Reply(200, fields))
        else:  # as nearly always
            data = encoded_admission(fields, last)
            self._answering = None
            self._connections.unsent.append((self, data, False))
        if self._buffer_paused:
            self._go_on()

    def failed_later(self, error: BaseException) -> None:
        """What was waited for has raised."""
        self._failed(error)
        if self._buffer_paused:
            self._go_on()

    def _failed(self, error: BaseException) -> None:
        """Answer a request whose answer raised; what no answer can be made to is cut off."""
        if not isinstance(error, Exception | asyncio.CancelledError):
            self.abort()
            raise error
        try:
            target = "" if self._answering is None else self._answering.path  # of either
            self._answered(self._connections.fail(error, self.peer, target))
        except Exception:
            self.abort()
            raise

    def _refused(self, error: HttpProcessingError) -> None:
        try:
            self._write(self._connections.refuse(error, self.peer, self._begun), head=False)
        except Exception:
            self.abort()
            raise

    def _answered(self, reply: Reply) -> None:
        message = self._answering
        self._answering = None
        assert message is not None  # noqa: S101  # it is what was just answered
        if isinstance(message, Remembered):
            self._write(reply, head=False)
        else:
            announce = message.version < HttpVersion11
            self._write(reply, head=message.method == "HEAD", announce=announce)

    def _write(self, reply: Reply, *, head: bool, announce: bool = False) -> None:
        """Have an answer sent.

        Args:
            reply: the answer.
            head: leave out the body.
            announce: say that the connection stays, where the protocol's version does not.
        """
        last = (self._ending and not self._requests) or self._connections.draining
        connection = "close" if last else "keep-alive" if announce else None
        if last:
            self._requests.clear()
            self._ending = True
        self._connections.send(self, self._encoded(reply, connection, head=head), last=last)
        if self._requests:  # pipelined: who does not read must be noticed before the next one
            self._connections.flush()

    def _encoded(self, reply: Reply, connection: str | None, *, head: bool) -> bytes:
        try:
            return encoded(reply, connection=connection, head=head)
        except Exception as error:  # noqa: BLE001  # an answer that cannot be sent is none
            reply = self._connections.fail(error, self.peer, "")
            return encoded(reply, connection=connection, head=head)

    def _close_if_idle(self) -> None:
        if self._answering is not None:
            self._active_at = self._loop.time()
        silent = self._loop.time() - self._active_at
        if silent >= IDLE_S:
            self.end()
        else:
            self._idle_timer = self._loop.call_later(IDLE_S - silent, self._close_if_idle)


class _Asking(Protocol):
    """Who waits for an answer; one of the two is called in the end."""

    def answered_later(self, reply: Reply, /) -> None:
        """The answer is there."""

    def failed_later(self, error: BaseException, /) -> None:
        """It raised instead."""


class _Waiting:
    """An answer that waits: goes on as soon as what it awaits is there."""

    __slots__ = ("_asking", "_coroutine")

    def __init__(self, coroutine: Coroutine[Any, Any, Reply], asking: _Asking) -> None:
        self._coroutine = coroutine
        self._asking = asking

    def on(self, awaited: "asyncio.Future[Any] | None") -> None:
        """Wait for what the coroutine has just yielded, as a task does."""
        if awaited is None:  # asyncio.sleep(0): the next tick
            asyncio.get_running_loop().call_soon(self._go_on, None)
            return
        try:
            awaited._asyncio_future_blocking = False  # noqa: SLF001
            awaited.add_done_callback(self._go_on)
        except AttributeError as error:  # no future
            self._coroutine.close()
            self._asking.failed_later(error)

    def _go_on(self, _: "asyncio.Future[Any] | None") -> None:
        try:
            awaited = self._coroutine.send(None)
        except StopIteration as answer:
            self._asking.answered_later(answer.value)
        except BaseException as error:  # noqa: BLE001  # whatever it is, the peer waits
            self._asking.failed_later(error)
        else:
            self.on(awaited)
