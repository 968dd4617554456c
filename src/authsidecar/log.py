"""Structured log lines on standard error: JSON for machines, a short line for people.

Lines written in one tick of the event loop go out in one write. Whatever looks like a token is
cut out of every text that did not come from this program itself.
"""

import asyncio
import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

_TOKEN: Final = re.compile(r"\d+\|\S+|(?i:bearer)\s+\S+")
_REDACTED: Final = "[redacted]"
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
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
            stream: where to; standard error unless given.
            colours: whether lines for people are coloured.
        """
        self._json = json_lines
        self._threshold = _LEVELS[level]
        self._stream = stream or sys.stderr
        self._colours = colours
        self._lines: list[str] = []

    def event(self, level: Level, event: str, /, **fields: object) -> None:
        """Write one line, at once unless an event loop is running: then in its next tick."""
        if _LEVELS[level] >= self._threshold:
            self.line(level, event, fields)

    def line(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        """Write one line whatever the threshold."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._json:
            text = json.dumps({"time": time, "level": level, "event": event, **fields})
        else:
            text = self._for_people(time, level, event, fields)
        self._lines.append(text)
        if len(self._lines) == 1:
            try:
                asyncio.get_running_loop().call_soon(self.flush)
            except RuntimeError:
                self.flush()

    def flush(self) -> None:
        """Write what waits; a closed standard error is nobody's reader and no error."""
        lines, self._lines = self._lines, []
        if lines:
            try:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()
            except (BrokenPipeError, ValueError):
                pass

    def _for_people(self, time: str, level: str, event: str, fields: Mapping[str, object]) -> str:
        words = [f"{key}={value}" for key, value in fields.items() if value is not None]
        mark = str(fields.get("outcome", level))
        line = f"{time[11:23]} {level:7} {event} {' '.join(words)}"
        if self._colours and mark in _COLOURS:
            return f"{_COLOURS[mark]}{line}\x1b[0m"
        return line


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
        message = redact(record.getMessage())
        self._log.event(level, "library", logger=record.name, message=message, error=cause)
