"""Structured log lines on standard error: JSON for machines, a short line for people.

Whoever logs never waits for the descriptor: a thread writes the lines (log_writer). Whatever looks
like a token is cut out of every text that did not come from this program itself.
"""

import atexit
import io
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

from authsidecar.observe.log_writer import Writer

_TOKEN: Final = re.compile(r"\d+\|\S+|(?i:bearer)\s+\S+|authsidecar_\d+_\S+")
_REDACTED: Final = "[redacted]"
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_URGENT: Final = frozenset({"warning", "error"})
_MESSAGE_LENGTH: Final = 2000
_COLOURS: Final = {"deny": "\x1b[33m", "error": "\x1b[31m", "warning": "\x1b[35m"}

Level = Literal["debug", "info", "warning", "error"]


def redact(text: str) -> str:
    """The text without anything that has the shape of a token."""
    return _TOKEN.sub(_REDACTED, text)


class Log:
    """Writes events as lines; an event is a name and fields of plain values."""

    def __init__(
        self,
        *,
        json_lines: bool,
        level: Level = "info",
        stream: TextIO | None = None,
        colours: bool = False,
    ) -> None:
        """Nothing is written yet.

        Args:
            json_lines: one JSON object a line, else a line for people.
            level: events below it are dropped.
            stream: where to, at once, which must never block; else standard error by a thread.
            colours: whether lines for people are coloured.

        `json` is the first of these, for whoever renders lines alike in advance.
        """
        self.json = json_lines
        self._second = (-1, "")
        self._rendered_at = -1
        self._time = ""
        self._threshold = _LEVELS[level]
        self._colours = colours
        self._stream, self._writer = stream, None
        if stream is None:
            self._stream, self._writer = _standard_error(self._of_dropped)

    @property
    def dropped(self) -> int:
        """How many lines of this process found no room, so far."""
        return self._writer.dropped if self._writer else 0

    def set_level(self, level: Level) -> None:
        """Drop events below this level from now on."""
        self._threshold = _LEVELS[level]

    def event(self, level: Level, event: str, /, **fields: object) -> None:
        """Have one line written; never waits for it."""
        if _LEVELS[level] >= self._threshold:
            self.line(level, event, fields)

    def line(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        """Have one line written whatever the threshold."""
        writer = self._writer
        if writer is None:
            self._write_here(self._rendered(level, event, fields))
        elif writer.room(urgent=level in _URGENT):  # a line without room is not rendered either
            writer.put(self._rendered(level, event, fields))

    def room(self, lines: int) -> int:
        """How many of so many lines would be kept; the others count as dropped and need no text."""
        return lines if self._writer is None else self._writer.room(lines, urgent=False)

    def put(self, text: str, lines: int) -> None:
        """Have so many lines written that there is room for, whatever the threshold."""
        if self._writer is None:
            self._write_here(text)
        else:
            self._writer.put(text, lines)

    def flush(self) -> None:
        """Wait until all is written, for a second at most: for the end of a process."""
        if self._writer is not None:
            self._writer.flush()

    def _write_here(self, text: str) -> None:
        if self._stream is not None:
            with suppress(OSError, ValueError):  # closed, or full: nobody's reader, and no error
                self._stream.write(f"{text}\n")
                self._stream.flush()

    def _of_dropped(self, count: int) -> str:
        return self._rendered("warning", "log_lines_dropped", {"count": count})

    def _rendered(self, level: str, event: str, fields: Mapping[str, object]) -> str:
        now = self.now()
        if self.json:
            return json.dumps({"time": now, "level": level, "event": event, **fields})
        return self._for_people(now, level, event, fields)

    def now(self) -> str:
        """The time in UTC, to the millisecond; it is rendered once for each."""
        now = int(time.time() * 1000)
        if now != self._rendered_at:
            second, ms = divmod(now, 1000)
            if second != self._second[0]:
                text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
                self._second = second, text
            self._rendered_at, self._time = now, f"{self._second[1]}.{ms:03d}Z"
        return self._time

    def _for_people(self, now: str, level: str, event: str, fields: Mapping[str, object]) -> str:
        words = [f"{key}={value}" for key, value in fields.items() if value is not None]
        mark = str(fields.get("outcome", level))
        line = f"{now[11:23]} {level:7} {event} {' '.join(words)}"
        if self._colours and mark in _COLOURS:
            return f"{_COLOURS[mark]}{line}\x1b[0m"
        return line


def take_over(log: Log) -> None:
    """Have what Python itself writes to standard error written by a log: whoever writes waits."""

    def unraisable(what: "sys.UnraisableHookArgs") -> None:
        log.event("error", "defect", error=what.exc_type.__name__, where="a destructor")

    def in_thread(what: threading.ExceptHookArgs) -> None:
        name = what.thread.name if what.thread else None
        log.event("error", "defect", error=what.exc_type.__name__, where=f"thread {name}")

    sys.unraisablehook = unraisable
    threading.excepthook = in_thread
    logging.captureWarnings(capture=True)
    warnings = logging.getLogger("py.warnings")
    warnings.handlers = [Bridge(log)]
    warnings.propagate = False


def _standard_error(tell: Callable[[int], str]) -> tuple[TextIO | None, Writer | None]:
    """Standard error by its descriptor; as a stream where it has none, as under a test."""
    try:
        writer = Writer(sys.stderr.fileno(), tell)
    except (AttributeError, OSError, ValueError, io.UnsupportedOperation):
        # Closed before the start, it is None, and its number may soon be a connection's.
        return sys.stderr, None
    atexit.register(writer.flush)
    return None, writer


class Bridge(logging.Handler):
    """Hands what libraries log to a Log: one line each, redacted, never a traceback."""

    def __init__(self, log: Log) -> None:
        """Attach it to a logger with `addHandler`."""
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a library's message as one line."""
        level: Level = (
            "error"
            if record.levelno >= logging.ERROR
            else "warning"
            if record.levelno >= logging.WARNING
            else "info"
            if record.levelno >= logging.INFO
            else "debug"
        )
        cause = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        message = redact(record.getMessage())[:_MESSAGE_LENGTH]
        self._log.event(level, "library", logger=record.name, message=message, error=cause)
