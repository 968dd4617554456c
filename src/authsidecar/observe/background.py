"""The work that runs beside requests: what fails of it is told, and tried again later.

A task that ends by an error nobody foresaw would be gone without a word: asyncio keeps what it
raised until nobody looks any more. Here it is a line in the log, a metric and a word in `/readyz`,
and the task is begun again, after pauses that grow.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from authsidecar.observe.log import Log
from authsidecar.tasks import end

Name = Literal[
    "sync",
    "sync_status",
    "last_used",
    "audit",
    "receipts",
    "fleet",
    "warnings",
    "canaries",
    "metrics",
    "sentinel",
    "cluster",
    "embedded",
    "trials",
]
"""The tasks that there are; closed, since it labels a metric."""

BACKOFF_S: Final = (0.5, 1.0, 2.0, 5.0, 15.0, 60.0)
"""The pauses before a task that failed is begun again, in seconds; the last one stays."""

WELL_S: Final = 90.0
"""After how long without another failure a task counts as well again, in seconds: longer than the
longest pause."""

Work = Callable[[], Coroutine[Any, Any, object]]
"""Begins a task's work, which goes on until it is cancelled; again after a failure."""


def describe_error(error: BaseException) -> str:
    """What an error nobody foresaw is, and where in this program: never what it says.

    Its own words may hold whatever it was about, a secret too.
    """
    place, where = "", error.__traceback__
    while where is not None:
        name = where.tb_frame.f_globals.get("__name__", "")
        if name.startswith("authsidecar.") and name != __name__:
            place = f" in {name}:{where.tb_lineno}"
        where = where.tb_next
    return f"{type(error).__name__}{place}"


class Background:
    """The tasks of one process, and which of them fail."""

    def __init__(self, log: Log, registry: CollectorRegistry | None = None) -> None:
        """No task runs yet.

        Args:
            log: told of each failure once for as long as it stays the same, and of its end.
            registry: where the metrics are; None: nowhere.
        """
        self._log = log
        self._failing: dict[str, str] = {}
        self._failures: Counter | None = None
        self._gauge: Gauge | None = None
        if registry is not None:
            self._failures = Counter(
                "authsidecar_background_failures",
                "Failures of a task beside requests that nobody foresaw.",
                ["task"],
                registry=registry,
            )
            self._gauge = Gauge(
                "authsidecar_background_failing",
                "1 while a task beside requests fails.",
                ["task"],
                registry=registry,
                multiprocess_mode="livemax",
            )
            for name in get_args(Name):
                self._failures.labels(name)
                self._gauge.labels(name).set(0)

    @property
    def failing(self) -> Mapping[str, str]:
        """What fails, by task; empty if all is well."""
        return self._failing

    def failed(self, name: Name, what: str) -> None:
        """Tell that a task has failed, and why.

        Args:
            name: the task.
            what: for people; no secret.
        """
        if self._failures is not None and self._gauge is not None:
            self._failures.labels(name).inc()
            self._gauge.labels(name).set(1)
        if self._failing.get(name) != what:
            self._failing[name] = what
            self._log.event("error", "background_failed", task=name, error=what)

    def well(self, name: Name) -> None:
        """Tell that a task does its work again; costs nothing if it always has."""
        if name in self._failing:
            del self._failing[name]
            if self._gauge is not None:
                self._gauge.labels(name).set(0)
            self._log.event("info", "background_recovered", task=name)

    @contextlib.asynccontextmanager
    async def running(self, name: Name, work: Work) -> AsyncIterator["asyncio.Task[None]"]:
        """Have a task run beside other work, until the context ends."""
        task = asyncio.create_task(self.keep(name, work))
        try:
            yield task
        finally:
            await end([task])

    async def keep(self, name: Name, work: Work) -> None:
        """Do a task's work, and begin it again whenever it fails; ends only when it returns."""
        failures = 0
        while True:
            began = time.monotonic()
            recovery = asyncio.get_running_loop().call_later(WELL_S, self.well, name)
            try:
                await work()
            except Exception as error:  # noqa: BLE001  # whatever it is, it is told and tried again
                if time.monotonic() - began > WELL_S:
                    failures = 0
                self.failed(name, describe_error(error))
            else:
                return
            finally:
                recovery.cancel()
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1
