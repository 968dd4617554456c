"""Where one process is between its start and its end, and what it tells of that meanwhile."""

import asyncio
import os
import select
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

import uvloop

from authsidecar.observe.log import Log
from authsidecar.serving.servers import ListenerConnections

if TYPE_CHECKING:  # prometheus_client must not be imported before workers have a place for metrics
    from authsidecar.run.reload import Reloaded
    from authsidecar.run.terms import Terms

IGNORED: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that end a process that does not expect them."""


LEFT_OPEN: Final[list[asyncio.Runner]] = []
"""Event loops of this process that nobody closes: it has to end by `leave`."""


class StoppedError(Exception):
    """The process is to end before it was ready."""


class Life:
    """A process's end, and why it is not ready.

    Attributes:
        missing: what keeps it from being ready, whatever Redis says; by part.
        connections: what proxies ask on, once there is something.
        answering: called once whoever asks is answered, if only that Redis is away.
        terms: what requests are decided by; None: what the settings say.
        reload: reads the configuration again, and has all processes decide by it; what it raises
            says why nothing has changed. None: this process can't.
    """

    def __init__(self, answering: Callable[[], None] = lambda: None) -> None:
        """It is starting."""
        self.terms: Terms | None = None
        self.reload: Callable[[], Awaitable[Reloaded]] | None = None
        self._apply: Callable[[Terms], None] | None = None
        self.answering = answering
        self.missing: dict[str, str] = {}
        self.connections: ListenerConnections | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    def change(self, terms: "Terms") -> None:
        """Have the next request decided by these terms."""
        self.terms = terms
        if self._apply is not None:
            self._apply(terms)

    def on_change(self, apply: "Callable[[Terms], None]") -> None:
        """Call this with the terms in force, if there are any yet, and with all that follow."""
        self._apply = apply
        if self.terms is not None:
            apply(self.terms)

    @property
    def ends(self) -> bool:
        """Whether a signal has said so."""
        return self._stop.is_set()

    def end_on(self, *numbers: int, quick: Iterable[int] = ()) -> None:
        """End on these signals.

        Args:
            numbers: after these, load balancers are given time; the second one ends that.
            quick: after these they are not.
        """
        loop = asyncio.get_running_loop()
        for number in numbers:
            loop.add_signal_handler(number, self.end)
        for number in quick:
            loop.add_signal_handler(number, self.end, True)

    def end(self, hurry: bool = False) -> None:
        """Have it end; asked for twice, at once."""
        if hurry or self.ends:
            self._hurry.set()
        self._stop.set()

    async def until_end(self, patience_s: float | None = None) -> bool:
        """Wait for a signal, or for so many seconds; whether there was one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._stop.wait()
        return self.ends

    async def leave(self, delay_s: float) -> None:
        """Say that it is not ready any more, and take requests for as long as was agreed.

        Connections that are kept are closed after their next answer meanwhile.
        """
        self.missing = {"process": "stopping"}
        if delay_s and not self._hurry.is_set():
            if self.connections is not None:
                self.connections.draining = True
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._hurry.wait()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop; the loop is left open, for the end of the process to close.

    To close it is to wait for whatever its threads do: for a name look-up that nobody answers, a
    minute or more. The process has to end by `leave`.
    """
    LEFT_OPEN.append(runner := asyncio.Runner(loop_factory=uvloop.new_event_loop))
    runner.run(main)


def leave(code: int) -> NoReturn:
    """End this process now, whatever its threads wait for."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def unread(patience_s: float = 1.0) -> bool:
    """Whether standard error is a pipe that would hold up for ever whoever writes a last line."""
    try:
        return not select.select([], [sys.stderr.fileno()], [], patience_s)[1]
    except (OSError, ValueError, AttributeError):
        return False


def ignore_signals() -> None:
    """Let none of them end the process before it can say that it ignores them."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)


def log_ignored_signals(log: Log, *, but: Iterable[int] = ()) -> None:
    """Have a line for each of them that comes.

    Args:
        log: where it goes.
        but: these are not ignored.
    """
    loop = asyncio.get_running_loop()
    for number in set(IGNORED).difference(but):
        name = signal.Signals(number).name
        loop.add_signal_handler(number, partial(log.event, "info", "signal_ignored", signal=name))
