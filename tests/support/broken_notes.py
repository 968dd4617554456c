"""`python -m tests.support.broken_notes serve`: one admission of this sidecar can't be noted."""

from itertools import count
from typing import Any

from authsidecar.cli import main
from authsidecar.observe.tallies import Times
from authsidecar.serving import warm_path

PREPARED = warm_path._Prepared.__init__
ADMISSIONS = count()


class Broken(Times):
    """Fails once."""

    __slots__ = ("_whole",)

    def __init__(self, whole: Times) -> None:
        self._whole = whole

    def add(self, seconds: float) -> None:
        if next(ADMISSIONS) == 0:
            raise ZeroDivisionError("Bearer 1|a-secret")
        self._whole.add(seconds)


def prepare(prepared: Any, *arguments: Any, **options: Any) -> None:
    PREPARED(prepared, *arguments, **options)
    prepared.times = Broken(prepared.times)


if __name__ == "__main__":
    warm_path._Prepared.__init__ = prepare  # type: ignore[method-assign]
    main()
