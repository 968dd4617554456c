"""Load on several processes while a primary dies: what may be refused, and what never passes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from authsidecar.decision.authorize import Rules
from tests.support.decisions import Sidecar
from tests.support.redis import RedisProcess


@dataclass(eq=False)
class Load:
    """Requests without a pause, on all of some processes.

    Attributes:
        sides: the processes.
        rules: what they decide by.
        forbidden: tokens that must not pass from now on.
        wrong: every answer that was not one of those that may happen.
        asked_forbidden: how many requests of forbidden tokens were answered.
        killed_at: when the primary died, on the monotonic clock.
    """

    sides: Sequence[Sidecar]
    rules: Rules
    forbidden: list[int] = field(default_factory=list)
    wrong: list[tuple[int, str]] = field(default_factory=list)
    asked_forbidden: int = 0
    killed_at: float = 0.0

    @asynccontextmanager
    async def running(self, tokens: Sequence[int], *, expected: str) -> AsyncIterator[None]:
        """Ask for `tokens` all the time, and for what is forbidden."""
        tasks = [
            asyncio.create_task(self._asking(side, tokens, expected))
            for side in self.sides
            for _ in range(4)
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(end) for end in ends} == {asyncio.CancelledError}, ends

    async def until_good(self, token: int, *, after: float) -> float:
        """How long after `after` every process had answered well again, in seconds."""
        for side in self.sides:
            async with asyncio.timeout(30):
                while await side.ask(token, rules=self.rules) != "allow":  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        return time.monotonic() - after

    async def _asking(self, side: Sidecar, tokens: Sequence[int], expected: str) -> None:
        turn = 0
        while True:
            turn += 1
            for token in tokens:
                answer = await side.ask(token, rules=self.rules)
                if answer not in {expected, "store_unavailable"}:
                    self.wrong.append((token, answer))
            if self.forbidden:
                token = self.forbidden[turn % len(self.forbidden)]
                answer = await side.ask(token, rules=self.rules)
                self.asked_forbidden += 1
                if answer == "allow":
                    self.wrong.append((token, answer))
            await asyncio.sleep(0.002)


@dataclass(eq=False)
class Address:
    """A port whose server can be replaced by another: what a name, or a virtual address, is.

    Attributes:
        server: who answers now.
        port: on 127.0.0.1.
    """

    server: RedisProcess
    port: int = 0
    _open: set["asyncio.Task[None]"] = field(default_factory=set, repr=False)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def move(self, server: RedisProcess) -> None:
        """Lead to another server, and cut what was open to the old one."""
        self.server = server
        for task in tuple(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            there, back = await asyncio.open_unix_connection(self.server.socket)
            ways = [
                asyncio.ensure_future(_pump(reader, back)),
                asyncio.ensure_future(_pump(there, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                back.close()
        writer.close()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        target.write(data)
        await target.drain()


@asynccontextmanager
async def address(server: RedisProcess) -> AsyncIterator[Address]:
    """A port that leads to a server for now."""
    made = Address(server)
    listener = await asyncio.start_server(made.connect, "127.0.0.1", 0)
    made.port = listener.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        listener.close()
        await made.move(server)
