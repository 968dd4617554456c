"""Who makes room when there are too many connections."""

from collections.abc import Iterable

import pytest

from authsidecar.serving.connection_limits import Room


class Guest:
    """A connection that only says who it is."""

    def __init__(self, peer: str, *, busy: bool = False) -> None:
        self.peer = peer
        self.busy = busy
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


class Rooms:
    """A room, and what it dropped."""

    def __init__(self, most: int, per_peer: int) -> None:
        self.dropped: list[tuple[str, str]] = []
        self.room = Room(most, per_peer, lambda cause, peer: self.dropped.append((cause, peer)))

    def fill(self, peers: Iterable[str], *, waiting: bool, busy: bool = False) -> list[Guest]:
        made = []
        for peer in peers:
            guest = Guest(peer, busy=busy)
            assert self.room.enter(guest)
            if waiting:
                self.room.expendable(guest)
            made.append(guest)
        return made


def test_a_flood_makes_room_for_itself_and_not_a_proxy() -> None:
    """Though the proxy's new connection is the oldest of all that wait."""
    rooms = Rooms(10, 8)
    (proxy,) = rooms.fill(["proxy"], waiting=True)
    flood = rooms.fill(["a", "b", "c"] * 3, waiting=True)
    rooms.fill(["a", "b", "c"] * 10, waiting=True)
    assert not proxy.aborted
    assert all(guest.aborted for guest in flood)
    assert set(rooms.dropped) == {("limit", peer) for peer in "abc"}
    assert len(rooms.room) == 10


def test_what_is_needed_is_kept_while_anything_else_can_go() -> None:
    """First who waits for a request, then the oldest idle one of the largest peer."""
    rooms = Rooms(6, 5)
    large = rooms.fill(["large"] * 4, waiting=False)
    small = rooms.fill(["small"], waiting=False)
    (waiting,) = rooms.fill(["small"], waiting=True)
    rooms.fill(["new"], waiting=False)
    assert waiting.aborted
    large[0].busy = True
    rooms.fill(["new"], waiting=False)
    assert [guest.aborted for guest in large] == [False, True, False, False]
    assert not small[0].aborted


def test_nobody_who_is_being_answered_makes_room() -> None:
    """Then the new one is closed."""
    rooms = Rooms(3, 3)
    busy = rooms.fill(["a"] * 3, waiting=False, busy=True)
    new = Guest("b")
    assert not rooms.room.enter(new)
    assert new.aborted
    assert not any(guest.aborted for guest in busy)
    assert rooms.dropped == [("limit", "b")]
    rooms.room.leave(new)
    assert len(rooms.room) == 3


def test_one_peer_makes_room_for_itself() -> None:
    """Its own longest waiting connection goes; without one, its new connection does."""
    rooms = Rooms(10, 2)
    (older,) = rooms.fill(["other"], waiting=True)
    first, second = rooms.fill(["a", "a"], waiting=True)
    rooms.fill(["a"], waiting=False)
    assert [first.aborted, second.aborted, older.aborted] == [True, False, False]
    rooms.room.needed(second)
    new = Guest("a")
    assert not rooms.room.enter(new)
    assert not second.aborted
    assert rooms.dropped == [("peer_limit", "a")] * 2


@pytest.mark.parametrize("peers", [1, 5, 600])
def test_all_who_leave_are_forgotten(peers: int) -> None:
    """Also those that were dropped before, whose end comes later."""
    rooms = Rooms(1000, 1000)
    guests = rooms.fill((str(n % peers) for n in range(2000)), waiting=True)
    assert len(rooms.room) == 1000
    for guest in guests:
        rooms.room.leave(guest)
        rooms.room.leave(guest)
    assert len(rooms.room) == 0
    assert not rooms.room._peers
    assert not rooms.room._expendable
