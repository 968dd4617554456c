"""Connections that come together are accepted together, and by whoever made their protocol."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop

from authsidecar.serving.accepting import MOST, SHARE, Acceptor
from authsidecar.serving.connection_limits import Room

TOGETHER = 2 * MOST
ROOMY = Room(1000, 1000, lambda *_: None)
FULL = Room(SHARE - 1, 1, lambda *_: None)


class Echo(asyncio.Protocol):
    def __init__(self, made: "list[Echo]") -> None:
        made.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@pytest.fixture(params=["tcp", "unix"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    if request.param == "tcp":
        made = socket.create_server(("127.0.0.1", 0), backlog=1024)
    else:
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(tmp_path / "s"))
        made.listen(1024)
    made.setblocking(False)
    yield made
    made.close()


@pytest.mark.parametrize("room", [ROOMY, FULL, None], ids=["roomy", "full", "without"])
def test_who_connects_together_is_accepted_within_a_few_turns(
    listener: socket.socket, room: Room | None
) -> None:
    """Without it the loop accepts one in a turn, or it would not be needed."""

    async def turns() -> int:
        made: list[Echo] = []
        loop = asyncio.get_running_loop()

        def factory() -> Echo:
            return Echo(made)

        with ExitStack() as stack:
            clients = [stack.enter_context(socket.socket(listener.family)) for _ in range(TOGETHER)]
            for client in clients:
                client.connect(listener.getsockname())
                client.settimeout(5)
            acceptor = factory if room is None else Acceptor(factory, listener, room)
            server = await loop.create_server(acceptor, sock=listener.dup(), backlog=1024)
            needed = 0
            while len(made) < TOGETHER:
                needed += 1
                await asyncio.sleep(0)
            for number, client in enumerate(clients):
                client.sendall(b"%d" % number)
            await asyncio.sleep(0.1)
            assert [client.recv(10) for client in clients] == [
                b"%d" % number for number in range(TOGETHER)
            ]
            server.close()
        await asyncio.sleep(0.05)
        return needed

    needed = uvloop.run(turns())
    assert (needed < 20) is (room is ROOMY)


async def test_whoever_is_gone_before_it_is_accepted_is_no_error(listener: socket.socket) -> None:
    made: list[Echo] = []
    loop = asyncio.get_running_loop()
    told: list[Any] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    for _ in range(5):
        with socket.socket(listener.family) as client:
            client.connect(listener.getsockname())
    server = await loop.create_server(
        Acceptor(lambda: Echo(made), listener, ROOMY), sock=listener.dup(), backlog=1024
    )
    await asyncio.sleep(0.05)
    assert len(made) == 5
    server.close()
    assert told == []
