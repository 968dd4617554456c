"""One trip to Redis: bounded in time, and what goes wrong said in a closed set of kinds."""

import re
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from redis import exceptions

from authsidecar.decision.authorize import StoreError
from authsidecar.store.breaker import Breaker
from authsidecar.store.deadlines import Deadlines

_T = TypeVar("_T")

REPLIES: Final = {
    "READONLY": "replica",
    "MASTERDOWN": "replica",
    "NOREPLICAS": "noreplicas",
    "MISCONF": "misconf",
    "OOM": "full",
    "LOADING": "loading",
    "BUSY": "busy",
    "NOAUTH": "auth",
    "WRONGPASS": "auth",
    "NOPERM": "permission",
    "CLUSTERDOWN": "cluster",
    "TRYAGAIN": "cluster",
}
"""The kind of an error reply, by Redis's own word for it."""

KINDS: Final = ("timeout", "connection", "pool", *dict.fromkeys(REPLIES.values()), "open", "other")
"""All kinds: closed, since they label a metric."""

SILENT: Final = frozenset({"timeout", "connection"})
"""Kinds that mean that Redis did not answer: only these open the circuit."""

OURS: Final = frozenset({"pool", "other"})
"""Kinds that say nothing about Redis."""

# Redis before 7 says it within the error of the script that wanted to write.
_WORD: Final = re.compile(rf"\b(?:{'|'.join(REPLIES)})\b")

Observe = Callable[[str, float, str | None], None]
"""Told of every trip: what it was for, how many seconds it took, the kind of error or None."""


def kind_of(error: BaseException) -> str:
    """The closed kind of what went wrong.

    Args:
        error: what redis-py raised, or what a budget ended with.
    """
    if isinstance(error, TimeoutError | exceptions.TimeoutError):
        return "timeout"
    # redis-py says of a login that is refused, and of a primary that was demoted behind sentinels,
    # that the connection is lost; what it had read stands behind that.
    for one in (error, error.__cause__, error.__context__):
        if isinstance(one, exceptions.RedisError) and (kind := _reply(one)) is not None:
            return kind
    return "connection" if isinstance(error, exceptions.ConnectionError | OSError) else "other"


def _reply(error: exceptions.RedisError) -> str | None:
    """The kind of an error reply; None if it is none, or says nothing known."""
    match error:
        case exceptions.MaxConnectionsError():
            return "pool"
        case exceptions.AuthenticationError():
            return "auth"
        case exceptions.ReadOnlyError():
            return "replica"
        case exceptions.BusyLoadingError():
            return "loading"
        case _:
            pass
    word = getattr(error, "status_code", None)
    if word not in REPLIES:
        found = _WORD.search(str(error))
        word = found[0] if found else None
    return None if word is None else REPLIES[word]


class Trips:
    """Makes trips within a budget; while Redis does not answer, most are not even tried."""

    def __init__(self, budget_s: float, observe: Observe) -> None:
        """Nothing is sent yet; the event loop is the running one.

        `cause` is the kind of the silence that has opened the circuit.

        Args:
            budget_s: how long one trip may take, in seconds.
            observe: told of every trip that was made.
        """
        self.deadlines = Deadlines(budget_s)
        self._observe = observe
        self._breaker = Breaker()
        self.cause = "open"

    async def make(self, operation: str, command: Coroutine[Any, Any, _T]) -> _T:
        """Run a command of redis-py's, or several that belong together.

        Args:
            operation: what it is for, from a closed set.
            command: not started yet.

        Raises:
            StoreError: Redis did not answer well in time; never says more than a closed kind.
        """
        start = time.monotonic()
        if not self.lets_through(start):
            command.close()
            raise StoreError("open", f"{operation}: Redis has not answered lately")
        try:
            async with self.deadlines.limit():
                answer = await command
        except (TimeoutError, OSError, exceptions.RedisError) as error:
            kind = self.failed(operation, start, error)
            raise StoreError(kind, f"{operation}: {kind}") from None
        self.answered(operation, start)
        return answer

    def lets_through(self, now: float) -> bool:
        """Whether to make a trip; who makes one says how it ends.

        Args:
            now: a monotonic time in seconds.
        """
        return self._breaker.lets_through(now)

    def answered(self, operation: str, start: float) -> None:
        """A trip was answered well.

        Args:
            operation: what it was for.
            start: when it began, by a monotonic clock in seconds.
        """
        self._breaker.answered()
        self._observe(operation, time.monotonic() - start, None)

    def failed(self, operation: str, start: float, error: BaseException) -> str:
        """The closed kind of what a trip has failed with.

        Args:
            operation: what it was for.
            start: when it began, by a monotonic clock in seconds.
            error: what redis-py raised, or what a budget ended with.
        """
        now, kind = time.monotonic(), kind_of(error)
        if kind in SILENT:
            self._breaker.failed(now)
            self.cause = kind
        elif kind not in OURS:
            self._breaker.answered()
        self._observe(operation, now - start, kind)
        return kind

    def close(self) -> None:
        """Time nothing any more."""
        self.deadlines.close()
