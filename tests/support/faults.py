"""What goes wrong with a Redis, done to real servers: every kind of error reply, and silence.

Each fault is a context: within it Redis is not well, after it Redis is well again.
"""

import asyncio
import contextlib
import shutil
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Self

from redis import Redis, exceptions

from authsidecar.tasks import end
from tests.support.redis import RedisProcess
from tests.support.waiting import eventually

OPTIONS = (
    *("--enable-debug-command", "yes", "--busy-reply-threshold", "5"),
    *("--loading-process-events-interval-bytes", "1024"),
    *("--appendonly", "yes", "--appendfsync", "always"),
)
"""What a server needs so that all of this can be done to it."""

FILLER = 300
"""Keys that make reading the data take a moment."""

Fault = Callable[[], AbstractAsyncContextManager[None]]


class Admin:
    """The operator's own way to some servers, which no fault touches.

    Attributes:
        servers: what the faults are done to, all at once.
        password: the servers' own.
        until_well: returns once servers that were started again are well.
        load_delay_us: how long each key takes while a server loads, in microseconds.
    """

    def __init__(
        self,
        servers: Sequence[RedisProcess],
        password: str | None = None,
        until_well: Callable[[], None] = lambda: None,
    ) -> None:
        self.servers = servers
        self.password = password
        self.until_well = until_well
        self.load_delay_us = "500"

    async def do(self, *command: str, password: str | None = None) -> list[Any]:
        """The answers of all servers to one command."""
        return [await self._do(server, *command, password=password) for server in self.servers]

    async def config(self, name: str, value: str) -> None:
        await self.do("CONFIG", "SET", name, value)

    async def fill(self) -> None:
        """Give every server something to read; once before the first fault."""
        await self.do("DEBUG", "POPULATE", str(FILLER), "filler", "64")

    async def _do(self, server: RedisProcess, *command: str, password: str | None) -> Any:
        return await asyncio.to_thread(self._ask, server, command, password)

    def _ask(self, server: RedisProcess, command: Sequence[str], password: str | None) -> Any:
        login = password or self.password
        with Redis.from_url(server.url, password=login, socket_timeout=20) as client:
            return client.execute_command(*command)

    # Error replies

    @asynccontextmanager
    async def noreplicas(self) -> AsyncIterator[None]:
        """It lacks the replicas that writes need."""
        await self.config("min-replicas-to-write", "3")
        try:
            yield
        finally:
            await self.config("min-replicas-to-write", "0")

    @asynccontextmanager
    async def readonly(self) -> AsyncIterator[None]:
        """It is a replica of nobody who answers."""
        await self.do("REPLICAOF", "127.0.0.1", "1")
        try:
            yield
        finally:
            await self.do("REPLICAOF", "NO", "ONE")

    @asynccontextmanager
    async def masterdown(self) -> AsyncIterator[None]:
        """A replica that gives no old data while its primary is away."""
        await self.config("replica-serve-stale-data", "no")
        await self.do("REPLICAOF", "127.0.0.1", "1")
        try:
            yield
        finally:
            await self.do("REPLICAOF", "NO", "ONE")
            await self.config("replica-serve-stale-data", "yes")

    @asynccontextmanager
    async def misconf(self) -> AsyncIterator[None]:
        """It cannot save: a directory stands where its file should be."""
        for server in self.servers:
            place = server.directory / "dump.rdb"
            place.unlink(missing_ok=True)
            (place / "in the way").mkdir(parents=True)
        await self.config("save", "3600 1")
        try:
            await eventually(self._failed_to_save, "a save that fails")
            yield
        finally:
            await self.config("save", "")
            for server in self.servers:
                shutil.rmtree(server.directory / "dump.rdb")

    async def _failed_to_save(self) -> bool:
        with contextlib.suppress(exceptions.ResponseError):  # one is under way
            await self.do("BGSAVE")
        infos = await self.do("INFO", "persistence")
        return all(info["rdb_last_bgsave_status"] == "err" for info in infos)

    @asynccontextmanager
    async def full(self) -> AsyncIterator[None]:
        """Its memory is used up."""
        await self.config("maxmemory", "1")
        try:
            yield
        finally:
            await self.config("maxmemory", "0")

    @asynccontextmanager
    async def loading(self) -> AsyncIterator[None]:
        """It reads its data."""
        await self.config("key-load-delay", self.load_delay_us)
        reload = asyncio.ensure_future(self._each("DEBUG", "RELOAD"))
        try:
            yield
        finally:
            await reload
            await self.config("key-load-delay", "0")

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Somebody's script does not end."""
        loop = asyncio.ensure_future(self._each("EVAL", "while true do end", "0"))
        try:
            await asyncio.sleep(0.02)
            yield
        finally:
            while not loop.done():
                for server in self.servers:
                    with contextlib.suppress(exceptions.ResponseError):
                        await self._do(server, "SCRIPT", "KILL", password=None)
                await asyncio.sleep(0.005)
            await asyncio.gather(loop, return_exceptions=True)

    async def _each(self, *command: str) -> None:
        await asyncio.gather(
            *(self._do(server, *command, password=None) for server in self.servers),
            return_exceptions=True,
        )

    @asynccontextmanager
    async def noscript(self) -> AsyncIterator[None]:
        """It has forgotten the script, again and again."""

        async def flush() -> None:
            while True:
                await self.do("SCRIPT", "FLUSH")
                await asyncio.sleep(0.002)

        flushing = asyncio.ensure_future(flush())
        try:
            yield
        finally:
            await end([flushing], again_s=0.05)

    # Who may come in

    @asynccontextmanager
    async def other_password(self) -> AsyncIterator[None]:
        """Whoever comes now is refused the login: NOAUTH without a password, else WRONGPASS."""
        await self.config("requirepass", "another")
        for server in self.servers:
            await self._do(server, "CLIENT", "KILL", "TYPE", "normal", password="another")
        try:
            yield
        finally:
            for server in self.servers:
                await self._do(
                    server, "CONFIG", "SET", "requirepass", self.password or "", password="another"
                )

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """It closes every connection, again and again."""
        await self.do("CLIENT", "KILL", "TYPE", "normal")
        await asyncio.sleep(0.01)
        await self.do("CLIENT", "KILL", "TYPE", "normal")
        yield

    # Silence

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """It answers nobody for a while, us neither."""
        await self._each("CLIENT", "PAUSE", "200", "ALL")
        try:
            yield
        finally:
            await self.do("PING")

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """Its process stands still."""
        for server in self.servers:
            server.freeze()
        try:
            yield
        finally:
            for server in self.servers:
                server.thaw()

    @asynccontextmanager
    async def killed(self) -> AsyncIterator[None]:
        """Its process is gone."""
        for server in self.servers:
            server.kill()
        try:
            yield
        finally:
            for server in self.servers:
                # In this thread, which the server must not outlive.
                server.start()
            await asyncio.to_thread(self.until_well)


class BrokenWire:
    """A TCP relay before one server; what passes it can be cut, reset, halved or garbled."""

    def __init__(self, server: RedisProcess, context: ssl.SSLContext | None = None) -> None:
        """Enter it as a context; `port` is then where it listens.

        Args:
            server: where it leads to.
            context: ends TLS behind it, so that garbled bytes break TLS.
        """
        self._server = server
        self._context = context
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._change: Callable[[bytes], bytes | None] | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        """Begin to listen."""
        self._behind = None
        if self._context is not None:
            self._behind = await asyncio.start_server(
                self._plain, "127.0.0.1", 0, ssl=self._context
            )
        self._listener = await asyncio.start_server(self._wire, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all of it."""
        for listener in (self._listener, self._behind):
            if listener is not None:
                listener.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @asynccontextmanager
    async def cut(self) -> AsyncIterator[None]:
        """Both sides are closed."""
        self._end(reset=False)
        yield

    @asynccontextmanager
    async def reset(self) -> AsyncIterator[None]:
        """Both sides are reset, again and again."""
        self._end(reset=True)
        await asyncio.sleep(0.02)
        self._end(reset=True)
        yield

    @asynccontextmanager
    async def halved(self) -> AsyncIterator[None]:
        """Half of an answer comes, and then the end."""
        self._change = lambda data: data[: len(data) // 2]
        try:
            yield
        finally:
            self._change = None
            self._end(reset=False)

    @asynccontextmanager
    async def stalled(self) -> AsyncIterator[None]:
        """Half of an answer comes, and then nothing."""
        halved: set[bool] = set()

        def stall(data: bytes) -> bytes:
            first = not halved
            halved.add(True)
            return data[: len(data) // 2] if first else b""

        self._change = stall
        try:
            yield
        finally:
            self._change = None
            self._end(reset=False)

    @asynccontextmanager
    async def garbled(self) -> AsyncIterator[None]:
        """Bytes change under way."""
        self._change = lambda data: data[:-1] + bytes([data[-1] ^ 0x55])
        try:
            yield
        finally:
            self._change = None
            self._end(reset=False)

    def _end(self, *, reset: bool) -> None:
        for pair in tuple(self._pairs):
            for writer in pair:
                if reset and (one := writer.get_extra_info("socket")) is not None:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort() if reset else writer.close()

    async def _wire(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """From the sidecar to the server, or to where TLS ends."""
        if self._behind is None:
            there = asyncio.open_unix_connection(str(self._server.socket))
        else:
            port = self._behind.sockets[0].getsockname()[1]
            there = asyncio.open_connection("127.0.0.1", port)
        await self._join(reader, writer, there, changed=True)

    async def _plain(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = asyncio.open_unix_connection(str(self._server.socket))
        await self._join(reader, writer, there, changed=False)

    async def _join(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: Any,
        *,
        changed: bool,
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(writer):
            from_there, to_there = await there
            pair = (writer, to_there)
            if changed:
                self._pairs.add(pair)
            ways = [
                asyncio.ensure_future(self._pump(reader, to_there, changed=False)),
                asyncio.ensure_future(self._pump(from_there, writer, changed=changed)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._pairs.discard(pair)
                for one in pair:
                    one.close()
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, changed: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if changed and self._change is not None:
                    data = self._change(data) or b""
                target.write(data)
                await target.drain()
