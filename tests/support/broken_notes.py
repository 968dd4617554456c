"""`python -m tests.support.broken_notes serve`: a sidecar with three defects.

Of the requests that its memo knows the first can't be answered, the second can't be noted, and the
next gets no line.
"""

from collections.abc import Sequence
from itertools import count
from typing import Any

from authsidecar.cli import main
from authsidecar.observe.metrics import Line, Telemetry
from authsidecar.observe.tallies import Times
from authsidecar.serving import encoding, warm_path

PREPARED = warm_path._Prepared.__init__
WRITE = Telemetry.write
ADMISSIONS = count()
LINES = count()
SETTLED = count()
PLAIN = 2
"""So many are answered the plain way before the memo knows them."""


class Broken(Times):
    """Fails once."""

    __slots__ = ("_whole",)

    def __init__(self, whole: Times) -> None:
        self._whole = whole

    def add(self, seconds: float) -> None:
        if next(ADMISSIONS) == 0:
            raise ZeroDivisionError("Bearer 1|a-secret")
        self._whole.add(seconds)


def write(telemetry: Telemetry, lines: Sequence[Line]) -> None:
    if next(LINES) == PLAIN:
        raise ZeroDivisionError("Bearer 1|a-secret")
    WRITE(telemetry, lines)


def prepare(prepared: Any, *arguments: Any, **options: Any) -> None:
    PREPARED(prepared, *arguments, **options)
    prepared.times = Broken(prepared.times)


def last_of_admissions() -> str:
    if next(SETTLED) == 0:
        raise ZeroDivisionError("Bearer 1|a-secret")
    return encoding.last_of_admissions()


if __name__ == "__main__":
    warm_path.last_of_admissions = last_of_admissions  # type: ignore[attr-defined]
    Telemetry.write = write  # type: ignore[method-assign]
    warm_path._Prepared.__init__ = prepare  # type: ignore[method-assign]
    main()
