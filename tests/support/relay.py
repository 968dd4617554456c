"""A TCP relay before a Redis: it can end TLS, and make every byte late."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable


@contextlib.asynccontextmanager
async def relay(
    path: str,
    *,
    port: int = 0,
    context: ssl.SSLContext | None = None,
    delay: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[int]:
    """A port on 127.0.0.1 that leads to a unix socket.

    Args:
        path: of the socket.
        port: 0 for a free one.
        context: ends TLS here.
        delay: how many seconds the next answer is held back.
    """
    open_now: set[asyncio.Task[None]] = set()

    async def pump(
        source: asyncio.StreamReader, target: asyncio.StreamWriter, *, late: bool
    ) -> None:
        while data := await source.read(65536):
            if late and (seconds := delay()):
                await asyncio.sleep(seconds)
            target.write(data)
            await target.drain()
        target.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_now.add(task)
        task.add_done_callback(open_now.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            there, back = await asyncio.open_unix_connection(path)
            ways = [
                asyncio.ensure_future(pump(reader, back, late=False)),
                asyncio.ensure_future(pump(there, writer, late=True)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                back.close()
                writer.close()

    server = await asyncio.start_server(connect, "127.0.0.1", port, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(open_now):
            task.cancel()
        await asyncio.gather(*open_now, return_exceptions=True)
