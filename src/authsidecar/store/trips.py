"""One trip to Redis: bounded in time, and what goes wrong said in a closed set of kinds."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from redis import exceptions

from authsidecar.authorize import StoreError
from authsidecar.store.breaker import Breaker

_T = TypeVar("_T")

READONLY: Final = "READONLY"
"""Redis before 7 says it within the error of the script that wanted to write."""

Observe = Callable[[str, float, str | None], None]
"""Told of every trip: what it was for, how many seconds it took, the kind of error or None."""


class Trips:
    """Makes trips within a budget; while Redis does not answer, most are not even tried."""

    def __init__(self, budget_s: float, observe: Observe) -> None:
        """Nothing is sent yet.

        Args:
            budget_s: how long one trip may take, in seconds.
            observe: told of every trip that was made.
        """
        self._budget_s = budget_s
        self._observe = observe
        self._breaker = Breaker()

    async def make(self, operation: str, command: Coroutine[Any, Any, _T]) -> _T:
        """Run a command of redis-py's, or several that belong together.

        Args:
            operation: what it is for, from a closed set.
            command: not started yet.

        Raises:
            StoreError: Redis did not answer well in time; never says more than a closed kind.
        """
        start = time.monotonic()
        if not self._breaker.lets_through(start):
            command.close()
            raise StoreError("open", f"{operation}: Redis has not answered lately")
        kind = "other"
        try:
            async with asyncio.timeout(self._budget_s):
                answer = await command
        except (TimeoutError, exceptions.TimeoutError):
            kind = "timeout"
        except exceptions.ReadOnlyError:
            kind = "readonly"
        except exceptions.BusyLoadingError:
            kind = "loading"
        except (exceptions.ConnectionError, OSError):
            kind = "connection"
        except exceptions.RedisError as error:
            if READONLY in str(error):
                kind = "readonly"
        else:
            self._breaker.answered()
            self._observe(operation, time.monotonic() - start, None)
            return answer
        now = time.monotonic()
        self._breaker.failed(now)
        self._observe(operation, now - start, kind)
        raise StoreError(kind, f"{operation}: {kind}")
