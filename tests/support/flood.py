"""A neighbour that asks as fast as it can: a process of its own (`-m tests.support.flood`).

Its connections are opened again as soon as they end.
"""

import asyncio
import contextlib
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.fork_server import Process
from tests.support.wire import subrequest

SHAPES = ("pipelined", "unread", "half")
"""What a connection does: send and read all the time, send and never read, send half a header."""

REQUEST = subrequest(authorization="Bearer 1|" + "x" * 40)


@contextmanager
def flood(
    port: int, shape: str, *, source: str, connections: int = 64, request: bytes = REQUEST
) -> Iterator[None]:
    """Flood a port of 127.0.0.1 from another loopback address, for as long as the context lasts."""
    words = [str(port), shape, source, str(connections), request.hex()]
    process = Process([sys.executable, "-m", "tests.support.flood", *words])
    try:
        yield
        assert process.poll() is None, "the flood has ended by itself"
    finally:
        process.kill()
        process.wait()


class _Unread(asyncio.Protocol):
    """Sends for as long as there is room, and reads nothing."""

    def __init__(self, block: bytes) -> None:
        self.block = block
        self.ended = asyncio.get_running_loop().create_future()
        self.room = True

    def connection_made(self, transport) -> None:
        self.transport = transport
        transport.pause_reading()
        self.resume_writing()

    def pause_writing(self) -> None:
        self.room = False

    def resume_writing(self) -> None:
        self.room = True
        while self.room and not self.transport.is_closing():
            self.transport.write(self.block)

    def connection_lost(self, _) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def _unread(port: int, source: str, block: bytes) -> None:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(
        lambda: _Unread(block), "127.0.0.1", port, local_addr=(source, 0)
    )
    try:
        async with asyncio.timeout(3):
            await protocol.ended
    except TimeoutError:
        transport.abort()


async def _talk(port: int, source: str, block: bytes, *, again: bool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))

    async def send() -> None:
        while True:
            writer.write(block)
            await writer.drain()
            if not again:
                return

    sending = asyncio.ensure_future(send())
    try:
        while await reader.read(65536):
            pass
    finally:
        sending.cancel()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await sending
        writer.close()


async def _attack(port: int, shape: str, source: str, request: bytes) -> None:
    while True:
        try:
            if shape == "unread":
                await _unread(port, source, request * 50)
            elif shape == "pipelined":
                await _talk(port, source, request * 50, again=True)
            else:
                await _talk(port, source, request[:60], again=False)
        except OSError:
            await asyncio.sleep(0.001)


async def _main(port: str, shape: str, source: str, connections: str, request: str) -> None:
    attacks = [
        _attack(int(port), shape, source, bytes.fromhex(request)) for _ in range(int(connections))
    ]
    await asyncio.gather(*attacks)


def addresses(count: int) -> list[str]:
    """So many loopback addresses, none of them 127.0.0.1."""
    return [f"127.0.{n // 250 + 1}.{n % 250 + 1}" for n in range(count)]


def half_open(port: int, sources: list[str], count: int) -> list[socket.socket]:
    """So many connections that have sent half a header, from these addresses in turn."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    made = []
    for number in range(count):
        one = socket.socket()
        one.settimeout(10)
        one.bind((sources[number % len(sources)], 0))
        made.append(one)
        one.connect(("127.0.0.1", port))
        with contextlib.suppress(OSError):  # closed by the other side already
            one.sendall(REQUEST[:60])
    return made


if __name__ == "__main__":
    import uvloop

    uvloop.run(_main(*sys.argv[1:]))
