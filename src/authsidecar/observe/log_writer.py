"""Writes lines to a descriptor from a thread of its own: nobody else ever waits for it.

A pipe that nobody reads blocks the one who writes to it, and a full disk refuses him; neither
may reach a decision. What waits is bounded. A line that finds no room is dropped and counted, and
once lines go out again, one says how many are missing.
"""

import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Final

WAITING_LINES: Final = 10_000
"""How many lines may wait to be written."""

URGENT_LINES: Final = 1_000
"""How many warnings and errors may wait beyond that, when the others have taken all the room."""

BATCH_BYTES: Final = 32 * 1024
"""From this size on, in bytes, what is written at once is not added to: half of a pipe."""

LINGER_S: Final = 0.02
"""How long lines are collected after a write, in seconds: under load a write has many."""

RETRY_S: Final = 0.05
LONGEST_RETRY_S: Final = 1.0
"""The pause after a write that failed, in seconds; it doubles up to the longer one."""

TELL_S: Final = 1.0
"""The time between two lines about dropped lines, in seconds, at least."""

STOP_S: Final = 1.0
"""How long a stop waits for lines to be written, in seconds."""


class Writer:
    """Lines on their way to one descriptor, in order.

    After a fork, the child starts with nothing waiting and with a thread of its own.
    """

    def __init__(self, descriptor: int, tell: Callable[[int], str]) -> None:
        """No thread is started yet.

        Args:
            descriptor: where lines are written; it may block, fail, or do so later.
            tell: makes the line that says how many lines were dropped.
        """
        self._descriptor = descriptor
        self._tell = tell
        self._reset()
        _WRITERS.add(self)

    def _reset(self) -> None:
        self.dropped = 0
        self._told = 0
        self._told_at = 0.0
        self._queue: queue.SimpleQueue[tuple[int, str] | threading.Event] = queue.SimpleQueue()
        self._put = 0
        self._taken = 0
        self._hopeless = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def room(self, lines: int = 1, *, urgent: bool) -> int:
        """How many of so many lines would be kept; the others are counted as dropped."""
        most = WAITING_LINES + URGENT_LINES if urgent else WAITING_LINES
        kept = min(lines, max(most - self._waiting, 0))
        if kept < lines:
            with self._lock:
                self.dropped += lines - kept
        return kept

    def put(self, text: str, lines: int = 1) -> None:
        """Have a line written, or so many with line ends between them; never waits."""
        if self._thread is None:
            self._start()
        with self._lock:  # the thread that writes never holds it
            self._put += lines
        self._queue.put((lines, text))

    def flush(self, patience_s: float = STOP_S) -> None:
        """Wait until what was put is written, for so many seconds; once in vain is enough."""
        if self._thread is not None:
            self._queue.put(written := threading.Event())
            self._hopeless = not written.wait(0 if self._hopeless else patience_s)

    @property
    def _waiting(self) -> int:
        """How many lines wait."""
        return self._put - self._taken

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            texts, written = self._next()
            if texts:
                self._write("\n".join(texts))
            self._report()
            if written is not None:
                written.set()
            elif self._waiting < WAITING_LINES // 100:
                time.sleep(LINGER_S)

    def _next(self) -> tuple[list[str], threading.Event | None]:
        """What one write should have; waits for the first line, and ends where a flush waits."""
        texts: list[str] = []
        size = 0
        with suppress(queue.Empty):
            while size < BATCH_BYTES:
                one = self._queue.get(block=not texts)
                if isinstance(one, threading.Event):
                    return texts, one
                lines, text = one
                self._taken += lines
                texts.append(text)
                size += len(text) + 1
        return texts, None

    def _report(self) -> None:
        """Say how many lines are missing, as soon as one can be written again."""
        missing, now = self.dropped - self._told, time.monotonic()
        if missing and (now - self._told_at > TELL_S or not self._waiting):
            self._write(self._tell(missing))
            self._told += missing
            self._told_at = now

    def _write(self, text: str) -> None:
        """Write it all, however long that takes."""
        left = memoryview(f"{text}\n".encode("utf-8", "backslashreplace"))
        pause = RETRY_S
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
                pause = RETRY_S
            except OSError:  # a full disk, a reader that is gone: it may be back
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_RETRY_S)


_WRITERS: Final[weakref.WeakSet[Writer]] = weakref.WeakSet()


def _in_the_child() -> None:
    """Threads do not survive a fork, and what waited is the parent's to write."""
    for writer in _WRITERS:
        writer._reset()  # noqa: SLF001  # the module's own class


os.register_at_fork(after_in_child=_in_the_child)
