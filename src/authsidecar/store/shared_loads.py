"""Loads that all share who ask for the same at the same time."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from authsidecar.store.calls import AGAIN_S
from authsidecar.tasks import end

_T = TypeVar("_T")


class SharedLoads:
    """At most one load of a key is under way that others may join."""

    def __init__(self) -> None:
        """Nothing is under way."""
        self._tasks: dict[object, asyncio.Task[Any]] = {}

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._tasks)

    async def joined(self, key: object, load: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """One load for all who ask at the same time; a caller that leaves does not end it."""
        return await asyncio.shield(self.under_way(key) or self.begin(key, load))

    def under_way(self, key: object) -> "asyncio.Task[Any] | None":
        """The load of this key that has not ended: what one has found before is no news."""
        task = self._tasks.get(key)
        return None if task is None or task.done() else task

    def begin(self, key: object, load: Callable[[], Coroutine[Any, Any, _T]]) -> "asyncio.Task[_T]":
        """Begin a load that others may join from now on."""
        task = asyncio.ensure_future(load())
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))
        return task

    async def close(self) -> None:
        """End what is under way."""
        await end(self._tasks.values(), again_s=AGAIN_S)

    def _ended(self, key: object, task: "asyncio.Task[Any]") -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled():
            task.exception()  # whoever waits has it; where nobody does, it is no leak
