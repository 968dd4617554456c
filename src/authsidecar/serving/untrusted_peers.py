"""Peers that are not trusted: one 403 for a connection, then its end.

Nothing that they send is parsed: the answer follows the first bytes, whatever these are. Each of
them, and all of them together, are answered at a bounded pace and have a bounded number of
connections, so that however many connect, the time and the memory that they take from trusted
peers stay small. The pace is slow on purpose: a peer that connects again as soon as its connection
ends is held by it, and has no more connections a second than answers.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from itertools import islice
from typing import Final

from authsidecar.decision.proxies.replies import Reply
from authsidecar.serving.encoding import encoded
from authsidecar.serving.time_limits import TimeLimits

MAX_UNTRUSTED: Final = 512
"""How many connections they may have at once."""

PER_PEER: Final = MAX_UNTRUSTED // 2
"""How many of these one address may have: enough for those that wait for their answer, so that a
peer with some dozens of connections is held, and not closed and back at once."""

TURN_S: Final = 0.1
"""How often some of them are answered, in seconds: one connection of each address."""

PER_TURN: Final = 8
"""How many are answered in one turn."""

PATIENCE_S: Final = 1.0
"""How long one may be silent before it is answered all the same, and how long it may take to read
the answer, in seconds."""

START_BYTES: Final = 512
"""How much of what one sends is kept: enough for the request line of a proxy."""

DISCARDED_BYTES: Final = 64 * 1024
"""How much is read and thrown away after the answer, so that the peer can read it."""

RefuseUntrusted = Callable[[bytes, str], Reply]
"""The answer to a peer that sent these first bytes."""

Dropped = Callable[[str, str], None]
"""Told of a connection that is closed although its peer has not ended it: why, and whose."""


class UntrustedPeers:
    """All connections of peers that are not trusted."""

    def __init__(
        self, refuse: RefuseUntrusted, *, most: int = MAX_UNTRUSTED, dropped: Dropped
    ) -> None:
        """None is connected.

        Args:
            refuse: makes the answer, once for each connection.
            most: how many may be connected at once.
            dropped: told of a connection that was closed without an answer, because there were
                too many.
        """
        self._refuse = refuse
        self._most = most
        self._per_peer = max(1, min(PER_PEER, most // 2))
        self._dropped = dropped
        self._open: set[UntrustedPeer] = set()
        self._of_peer: Counter[str] = Counter()
        self._waiting: dict[str, deque[UntrustedPeer]] = {}
        self._turn: asyncio.TimerHandle | None = None
        self.silent: TimeLimits[UntrustedPeer] = TimeLimits(PATIENCE_S, self.queue)
        self.answered: TimeLimits[UntrustedPeer] = TimeLimits(PATIENCE_S, _abort)

    def __len__(self) -> int:
        return len(self._open)

    def take(self, transport: asyncio.Transport, peer: str) -> None:
        """A connection that was just accepted is one of these from here on."""
        if len(self._open) >= self._most or self._of_peer[peer] >= self._per_peer:
            self._dropped("strangers", peer)
            transport.abort()
            transport.set_protocol(asyncio.Protocol())
            return
        one = UntrustedPeer(self, transport, peer)
        transport.set_protocol(one)
        self._open.add(one)
        self._of_peer[peer] += 1
        self.silent.start(one)

    def queue(self, one: "UntrustedPeer") -> None:
        """It is to be answered: at once if nothing was in the last turn, else in its turn."""
        self.silent.stop(one)
        self._waiting.setdefault(one.peer, deque()).append(one)
        if self._turn is None:
            self._answer_some()

    def lost(self, one: "UntrustedPeer") -> None:
        """It is gone."""
        self.silent.stop(one)
        self.answered.stop(one)
        if one in self._open:
            self._open.remove(one)
            self._of_peer[one.peer] -= 1
            if not self._of_peer[one.peer]:
                del self._of_peer[one.peer]

    def close(self) -> None:
        """Close all at once."""
        self._waiting.clear()
        for one in tuple(self._open):
            one.transport.abort()
        self.silent.close()
        self.answered.close()
        if self._turn is not None:
            self._turn.cancel()

    def _answer_some(self) -> None:
        if not self._waiting:
            self._turn = None
            return
        self._turn = asyncio.get_running_loop().call_later(TURN_S, self._answer_some)
        for peer in tuple(islice(self._waiting, PER_TURN)):
            waiting = self._waiting.pop(peer)
            one = waiting.popleft()
            if waiting:
                self._waiting[peer] = waiting  # behind all others
            if not one.transport.is_closing():
                one.answer(self._refuse(one.start, one.peer))
                self.answered.start(one)


class UntrustedPeer(asyncio.Protocol):
    """One connection: its first bytes, an answer, and then what comes is thrown away."""

    __slots__ = ("_discarded", "_strangers", "answered", "peer", "start", "transport")

    def __init__(self, strangers: UntrustedPeers, transport: asyncio.Transport, peer: str) -> None:
        """It is open, and nothing was read.

        Args:
            strangers: all of them.
            transport: the connection.
            peer: its address.
        """
        self._strangers = strangers
        self.transport = transport
        self.peer = peer
        self.start = b""
        self.answered = False
        self._discarded = 0

    def data_received(self, data: bytes) -> None:
        """The first bytes ask for the answer; nothing is read until that is sent."""
        if self.answered:
            self._discarded += len(data)
            if self._discarded > DISCARDED_BYTES:
                self.transport.pause_reading()
        else:
            self.start = data[:START_BYTES]
            self.transport.pause_reading()
            self._strangers.queue(self)

    def answer(self, reply: Reply) -> None:
        """Send the answer and the end of it, and read on for a while.

        A connection that is closed while bytes of the peer are not read is reset, and the peer
        may then never see the answer.
        """
        self.answered = True
        self.transport.write(
            encoded(reply, connection="close", head=self.start.startswith(b"HEAD "))
        )
        self.transport.write_eof()
        self.transport.resume_reading()

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002
        """It is gone."""
        self._strangers.lost(self)


def _abort(one: UntrustedPeer) -> None:
    one.transport.abort()
