"""Answers that may take seconds: a page waits for a moment, and is asked again."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Final, Generic, TypeVar

T = TypeVar("T")

PATIENCE_S: Final = 0.2
"""How long a page waits for an answer that may take seconds, in seconds."""

FORGOTTEN_S: Final = 300.0
"""When an answer that nobody has come for is forgotten, in seconds."""


class NotYetError(Exception):
    """The answer is still being found; ask again."""


@dataclass(slots=True)
class _Asked(Generic[T]):
    """One question: who finds its answer, and how long that holds once it is found."""

    finding: "asyncio.Task[T]"
    until: float = inf


class SlowAnswers(Generic[T]):
    """Answers that may take seconds: a page waits for a moment, and is asked again."""

    def __init__(self, kept_s: float = 0) -> None:
        """Nothing is asked yet.

        Args:
            kept_s: how long an answer is given again, in seconds; 0: it is given once.
        """
        self._kept_s = kept_s
        self._asked: dict[tuple[object, str], _Asked[T]] = {}

    async def of(self, whose: object, ask: Callable[[], Awaitable[T]], what: str = "") -> T:
        """The answer, if it is there in a moment.

        Args:
            whose: whom the question is about: the client of a Redis.
            ask: finds it; called if nobody has asked the same.
            what: what is asked.

        Raises:
            NotYetError: it is being found out; ask again.
            Exception: what the finding has raised; the next one tries again.
        """
        now, key = time.monotonic(), (whose, what)
        self._asked = {of: one for of, one in self._asked.items() if one.until > now}
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = _Asked(asyncio.ensure_future(ask()))
            asked.finding.add_done_callback(partial(self._found, asked))
        done, _ = await asyncio.wait({asked.finding}, timeout=PATIENCE_S)
        if not done:
            raise NotYetError
        if not self._kept_s or asked.finding.cancelled() or asked.finding.exception() is not None:
            self._asked.pop(key, None)
        return asked.finding.result()

    def _found(self, asked: _Asked[T], finding: "asyncio.Task[T]") -> None:
        asked.until = time.monotonic() + (self._kept_s or FORGOTTEN_S)
        if not finding.cancelled():
            finding.exception()  # it is seen, should nobody come for it
