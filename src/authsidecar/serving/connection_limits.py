"""How many connections of trusted peers there may be at once, and which one makes room.

A network that is trusted may hold more than the proxy: on a Coolify host, every container. So no
peer can have all of the connections, and one that waits for a request that does not come gives way
to a new one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from authsidecar.serving.untrusted_peers import MAX_UNTRUSTED

FIRST_BYTE_S: Final = 30.0
REQUEST_S: Final = 10.0
BODY_BYTES: Final = 64 * 1024
MAX_CONNECTIONS: Final = 16_384

_COMPARED: Final = 512
"""From this number of peers on, it would cost too much to look for the one with the most."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What connections of a listener may take.

    Attributes:
        connections: of trusted peers, in all.
        per_peer: of these, of one address.
        strangers: of peers that are not trusted, in all.
        first_byte_s: how long a new connection may be silent, in seconds.
        request_s: how long a request may take to arrive, in seconds.
        body_bytes: how much of a body is thrown away as fast as it comes.
    """

    connections: int = MAX_CONNECTIONS
    per_peer: int = MAX_CONNECTIONS
    strangers: int = MAX_UNTRUSTED
    first_byte_s: float = FIRST_BYTE_S
    request_s: float = REQUEST_S
    body_bytes: int = BODY_BYTES


class Guest(Protocol):
    """A connection, as far as it takes room."""

    @property
    def peer(self) -> str:
        """Its address; empty for the unix socket."""

    @property
    def busy(self) -> bool:
        """Whether a request of it is being answered."""

    def abort(self) -> None:
        """Close it at once."""


class Room:
    """The connections of trusted peers that are open."""

    def __init__(self, most: int, per_peer: int, dropped: Callable[[str, str], None]) -> None:
        """Nobody is connected.

        Args:
            most: how many may be, in all.
            per_peer: how many of one peer.
            dropped: told of each that is closed for want of room: why, and its peer.
        """
        self._most = most
        self._per_peer = per_peer
        self._dropped = dropped
        self._count = 0
        self._peers: dict[str, _Peer] = {}
        self._expendable: dict[Guest, None] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def left(self) -> int:
        """How many connections may come before one must make room."""
        return max(self._most - self._count, 0)

    def enter(self, guest: Guest) -> bool:
        """Let in a new connection, if there is room or room can be made.

        Returns:
            False if it must be closed.
        """
        peer = self._peers.get(guest.peer)
        if peer is not None and len(peer.open) >= self._per_peer:
            oldest = next(iter(peer.expendable), None)
            self._drop(oldest or guest, "peer_limit")
            if oldest is None:
                return False
        if self._count >= self._most:
            victim = self._waiting_longest() or self._idle()
            self._drop(victim or guest, "limit")
            if victim is None:
                return False
        self.put(guest)
        return True

    def put(self, guest: Guest) -> None:
        """Take in a connection in place of one that has just left."""
        peer = self._peers.get(guest.peer)
        if peer is None:
            peer = self._peers[guest.peer] = _Peer()
        peer.open[guest] = None
        self._count += 1

    def leave(self, guest: Guest) -> None:
        """It is gone; nothing happens if it was dropped before."""
        peer = self._peers.get(guest.peer)
        if peer is None or guest not in peer.open:
            return
        self.needed(guest)
        del peer.open[guest]
        self._count -= 1
        if not peer.open:
            del self._peers[guest.peer]

    def expendable(self, guest: Guest) -> None:
        """It waits for a request, or for its end: such a one makes room first."""
        self._expendable.setdefault(guest)
        self._peers[guest.peer].expendable.setdefault(guest)

    def needed(self, guest: Guest) -> None:
        """It makes room only if nothing else can."""
        if self._expendable.pop(guest, _MISSING) is None:
            self._peers[guest.peer].expendable.pop(guest, None)

    def _waiting_longest(self) -> Guest | None:
        """The longest waiting connection of the peer with the most of them.

        Not simply the longest waiting one: a flood opens more in a moment than a proxy needs to
        send its request.
        """
        if len(self._peers) > _COMPARED:
            return next(iter(self._expendable), None)
        largest = max(self._peers.values(), key=lambda peer: len(peer.expendable))
        return next(iter(largest.expendable), None)

    def _idle(self) -> Guest | None:
        """The oldest connection, without a request, of the peer that has the most."""
        largest = max(self._peers.values(), key=lambda peer: len(peer.open))
        return next((one for one in largest.open if not one.busy), None)

    def _drop(self, guest: Guest, cause: str) -> None:
        self._dropped(cause, guest.peer)
        self.leave(guest)
        guest.abort()


class _Peer:
    """The connections of one address, the oldest first."""

    __slots__ = ("expendable", "open")

    def __init__(self) -> None:
        self.open: dict[Guest, None] = {}
        self.expendable: dict[Guest, None] = {}


_MISSING: Final = object()
