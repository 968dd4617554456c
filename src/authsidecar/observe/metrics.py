"""What is told of a decision: counters for Prometheus and one log line.

Label values come from closed sets: a path, token, user or address is never one. A log line
names ids and the route's template, never a target, a header or any part of a token; of the
proxy's request id only what has the form of one.
"""

import asyncio
import os
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from operator import add
from typing import Any, Final, Literal, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from authsidecar import __version__
from authsidecar.decision.authorize import Outcome
from authsidecar.decision.model import (
    AccessRequest,
    Address,
    Allow,
    Deny,
    Kind,
    Proxy,
    TokenRecord,
    Verdict,
)
from authsidecar.decision.proxies.forward_auth import UNTRUSTED_PEER
from authsidecar.observe.batch_histogram import BatchHistogram
from authsidecar.observe.decision_line import DecisionLine, decided, texts
from authsidecar.observe.log import Log
from authsidecar.observe.log_pace import LogPace
from authsidecar.observe.process import Process
from authsidecar.observe.tallies import BOUNDS_S, Tally, Times
from authsidecar.tasks import end

NEAR_LIMIT = 10
"""A counter is near its limit when less than one in NEAR_LIMIT of it is left."""

LAG_EVERY_S: Final = 0.1
"""The time between two looks at how late the event loop is, in seconds."""

SETTLED_S: Final = 1.0
"""The least time between two log lines of how Redis answers, in seconds."""

Line = tuple[DecisionLine, str, str | None, float]
"""What the lines of decisions of one kind share; then of one decision its id, the proxy's id of the
request, and how many seconds it took."""

DROPS: Final = ("first_byte", "request", "peer_limit", "limit", "strangers", "management")
"""Why a connection is closed although its peer has not ended it."""

UNREADABLE_LINES: Final = 20
"""How many lines a second one peer gets about what could not be read, of each reason."""

CONFIG_INFO: Final = "authsidecar_config_info"
"""The name of the metric whose label is a digest: those that nobody has in force are not shown."""

SHARED_S: Final = 0.25
"""The age of what other processes see of this one's metrics, at the most, in seconds."""

READINGS: Final = 20
"""How often a file is looked at that a worker has just made, and that is still empty."""

Keep = Callable[[Callable[[], Coroutine[Any, Any, None]]], Coroutine[Any, Any, None]]
"""Does a task's work, and sees to it that it goes on."""

Decisions = Literal["all", "denied", "none"]


def shared() -> bool:
    """Whether metrics are kept where other processes read them too.

    prometheus_client keeps them in files of PROMETHEUS_MULTIPROC_DIR, if that was set before it
    was imported.
    """
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


def collected(registry: CollectorRegistry) -> CollectorRegistry:
    """The metrics of all worker processes where there are several, else this one's."""
    if not shared():
        return registry
    summed = CollectorRegistry()
    _OfAll(summed)  # type: ignore[no-untyped-call]
    return summed


class _OfAll(MultiProcessCollector):
    """The files of all workers, read again where one of them is not begun yet."""

    def collect(self) -> Iterable[Metric]:
        for _ in range(READINGS):
            with suppress(struct.error):
                return self._read()
            time.sleep(0.01)  # in a thread of its own: see management.py
        return self._read()

    def _read(self) -> Iterable[Metric]:
        found = list(cast(Iterable[Metric], super().collect()))  # type: ignore[no-untyped-call]
        for metric in found:
            if metric.name == CONFIG_INFO:
                metric.samples = [sample for sample in metric.samples if sample.value]
        return found


@dataclass(frozen=True, slots=True)
class Sums:
    """What this process has decided since its start.

    Attributes:
        reasons: how many decisions, by reason code; `none`: admitted.
        times: how many of those that were measured took so long: up to each of BOUNDS_S, but
            longer than the one before, and at last those that took longer than all of them.
    """

    reasons: Mapping[str, int]
    times: Sequence[int]


class Telemetry:
    """Metrics in a registry, decisions in a log."""

    def __init__(
        self,
        registry: CollectorRegistry,
        log: Log,
        decisions: Decisions = "all",
        *,
        kinds: Iterable[str] = (),
        results: Iterable[str] = (),
    ) -> None:
        """Register the metrics.

        Args:
            registry: where the metrics are collected.
            log: where lines go.
            decisions: which decisions get a line.
            kinds: why a trip to Redis may fail. Such a series is there from the start, at 0:
                Prometheus does not see the first increase of one that was absent.
            results: what may become of a warning; the same.
        """
        self._log = log
        self._decisions = decisions
        self._tallies: dict[tuple[Proxy | None, str], Tally] = {}
        self._trip_times: dict[str, Times] = {}
        self._looked_up = dict.fromkeys(("hit", "miss", "stale"), 0)
        self._refusals = LogPace(self._line)
        self._unreadables = LogPace(self._line, lines=UNREADABLE_LINES)
        self._drops = LogPace(lambda fields: log.event("warning", "connection_dropped", **fields))
        self._redis: str | None = None
        self._redis_since = 0.0
        self._connected: Callable[[], tuple[int, int]] | None = None
        self._lines_told = 0
        registry.register(self)  # first, so that all that follow have been told when they are read
        self._register_decisions(registry)
        self._register_redis(registry, kinds)
        self._register_process(registry)
        self._warnings = Counter(
            "authsidecar_warnings",
            "Tries to warn of a token's expiry: sent, failed or refused.",
            ["result"],
            registry=registry,
        )
        for result in results:
            self._warnings.labels(result)
        self._canaries = Counter(
            "authsidecar_canary_uses",
            "Requests with a canary token.",
            registry=registry,
        )

    def _register_decisions(self, registry: CollectorRegistry) -> None:
        """What is decided, and how long it takes."""
        self._count = Counter(
            "authsidecar_decisions",
            "Decisions by proxy, outcome (allow or deny) and reason code.",
            ["proxy", "outcome", "reason"],
            registry=registry,
        )
        self._seconds = BatchHistogram(
            "authsidecar_decision_seconds",
            "Time from a readable subrequest to its answer.",
            ["proxy", "outcome"],
            buckets=BOUNDS_S,
            registry=registry,
        )
        self._near = Counter(
            "authsidecar_near_limit",
            "Admitted requests that left less than a tenth of a limit.",
            ["limit"],
            registry=registry,
        )

    def _register_redis(self, registry: CollectorRegistry, kinds: Iterable[str]) -> None:
        """How Redis answers, and what is known without asking it."""
        self._trips = BatchHistogram(
            "authsidecar_store_trip_seconds",
            "Time of one trip to Redis.",
            ["operation"],
            buckets=BOUNDS_S,
            registry=registry,
        )
        self._errors = Counter(
            "authsidecar_store_errors",
            "Trips to Redis that failed, by kind.",
            ["kind"],
            registry=registry,
        )
        for kind in kinds:
            self._errors.labels(kind)
        self._lookups = Counter(
            "authsidecar_cache_lookups",
            "Near cache look-ups: hit, miss or stale.",
            ["result"],
            registry=registry,
        )
        for result in self._looked_up:
            self._lookups.labels(result)
        self._connections = Gauge(
            "authsidecar_redis_connections",
            "Connections to Redis, idle or used by a command under way.",
            ["state"],
            registry=registry,
            multiprocess_mode="livesum",
        )

    def _register_process(self, registry: CollectorRegistry) -> None:
        """This process: its loop, connections, log and readiness."""
        self._lag = Histogram(
            "authsidecar_event_loop_lag_seconds",
            "How late the event loop runs a timer: time that requests wait for this process.",
            buckets=BOUNDS_S,
            registry=registry,
        )
        self._dropped = Counter(
            "authsidecar_connections_dropped",
            "Connections that were closed although the peer had not ended them, by cause.",
            ["cause"],
            registry=registry,
        )
        for cause in DROPS:
            self._dropped.labels(cause)
        self._lines_lost = Counter(
            "authsidecar_log_lines_dropped",
            "Log lines that found no room because what was logged before could not be written.",
            registry=registry,
        )
        self._process = Process(registry)
        self._ready = Gauge(
            "authsidecar_ready",
            "1 if requests can be decided, as /readyz says; 0 if not.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._config = Gauge(
            CONFIG_INFO,
            "How many processes decide by the configuration that the label names.",
            ["digest"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._config_digest: str | None = None
        build = Gauge(
            "authsidecar_build_info",
            "Always 1; the version is a label.",
            ["version"],
            registry=registry,
            multiprocess_mode="max",
        )
        build.labels(__version__).set(1)

    def describe(self) -> Iterable[Metric]:
        """Nothing: it has no series of its own."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Write down what was counted; the registry asks for it before it reads the series."""
        for tally in self._tallies.values():
            tally.write()
        for times in self._trip_times.values():
            times.write()
        for result, count in self._looked_up.items():
            if count:
                self._lookups.labels(result).inc(count)
                self._looked_up[result] = 0
        if self._connected is not None:
            idle, used = self._connected()
            self._connections.labels("idle").set(idle)
            self._connections.labels("used").set(used)
        dropped = self._log.dropped
        self._lines_lost.inc(dropped - self._lines_told)
        self._lines_told = dropped
        self._process.write()
        return ()

    def sums(self) -> Sums:
        """What this process has decided since its start."""
        reasons: dict[str, int] = {}
        times = [0] * (len(BOUNDS_S) + 1)
        for (_, reason), tally in self._tallies.items():
            tally.write()
            reasons[reason] = reasons.get(reason, 0) + tally.written
            times = list(map(add, times, tally.times.written))
        return Sums(reasons, times)

    def record_ready(self, ready: bool) -> None:
        """Show whether requests can be decided."""
        self._ready.set(ready)

    def follow(self, config_digest: str, decisions: Decisions) -> None:
        """Show which configuration is in force, and write the lines that it wants.

        Args:
            config_digest: what it is known by.
            decisions: which decisions get a line.
        """
        self._decisions = decisions
        old, self._config_digest = self._config_digest, config_digest
        if old not in {None, config_digest}:
            self._config.labels(old).set(0)  # in files of several processes it goes on to be read
            self._config.remove(old)
        self._config.labels(config_digest).set(1)

    def watch(self, connections: Callable[[], tuple[int, int]]) -> None:
        """Tell how many connections to Redis there are.

        Args:
            connections: asked when the metrics are read: idle ones, used ones.
        """
        self._connected = connections

    @asynccontextmanager
    async def kept(self, keep: Keep = lambda work: work()) -> AsyncIterator[None]:
        """Write down what is counted meanwhile, often where other processes read it too.

        Args:
            keep: begins that work again if it fails.
        """
        tasks = [asyncio.create_task(keep(self._watch_loop))]
        if shared():
            tasks.append(asyncio.create_task(keep(self._keep_collecting)))
        try:
            yield
        finally:
            await end(tasks)
            for pace in (self._refusals, self._unreadables, self._drops):
                pace.close()
            self.collect()

    async def _watch_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self._lag.observe(max(0.0, loop.time() - due))

    async def _keep_collecting(self) -> None:
        while True:
            await asyncio.sleep(SHARED_S)
            self.collect()

    def decided(
        self,
        proxy: Proxy,
        outcome: Outcome,
        decision_id: str,
        request: AccessRequest,
        seconds: float,
    ) -> None:
        """Count and log one decision on a readable request.

        Args:
            proxy: the endpoint that was asked.
            outcome: what was decided.
            decision_id: names the decision.
            request: what was asked.
            seconds: how long it took.
        """
        verdict = outcome.verdict
        if isinstance(verdict, Allow) or verdict.reason.kind is not Kind.RATE_LIMITED:
            for quota in outcome.quotas:
                if quota.remaining * NEAR_LIMIT < quota.limit.requests:
                    self._near.labels(quota.scope).inc()
        self._count_one(proxy, verdict, seconds)
        if not self._tells(verdict):
            return
        line = DecisionLine(
            verdict,
            proxy=proxy,
            method=request.method,
            route=outcome.route,
            client=request.client,
            record=outcome.record,
        )
        if (
            outcome.record is None
            and isinstance(verdict, Deny)
            and verdict.reason.kind is Kind.RATE_LIMITED
        ):
            fields = partial(line.fields, decision_id, request.request_id, seconds)
            self._refusals.line(_network(request.client), fields)
        else:
            self.write([(line, decision_id, request.request_id, seconds)])

    def line_of_admissions(
        self, access: AccessRequest, route: str, record: TokenRecord
    ) -> DecisionLine | None:
        """What `admitted` takes for requests of one kind; None: they get no line.

        Args:
            access: one of these requests.
            route: the template that they match.
            record: their token.
        """
        if self._decisions != "all":
            return None
        return DecisionLine(
            Allow(None),
            proxy=access.proxy,
            method=access.method,
            route=route,
            client=access.client,
            record=record,
        )

    def times_of_admissions(self, proxy: Proxy) -> Times:
        """What counts the admissions at an endpoint, but for what is told of a near limit."""
        tally = self._tallies.get((proxy, "none")) or self._tally(proxy, "allow", "none")
        return tally.times

    def unreadable(self, proxy: Proxy | None, deny: Deny, decision_id: str, peer: str) -> None:
        """Count and log a request that was refused before it could be read.

        Args:
            proxy: the endpoint that was asked; None if it is none of ours, or unreadable itself.
            deny: why it was refused.
            decision_id: names the decision.
            peer: the address that called.
        """
        self._count_one(proxy, deny, None)
        if self._tells(deny):
            pace = self._refusals if deny.reason is UNTRUSTED_PEER else self._unreadables
            fields = partial(_unreadable, proxy, deny, decision_id, peer)
            pace.line((peer, deny.reason.code), fields)

    def connection_dropped(self, cause: str, peer: str) -> None:
        """Count and log a connection that was closed although its peer had not ended it.

        Args:
            cause: why, one of DROPS.
            peer: the address that called.
        """
        self._dropped.labels(cause).inc()
        self._drops.line((cause, peer), lambda: {"cause": cause, "peer": peer})

    def trip(self, operation: str, seconds: float, error: str | None) -> None:
        """Count one trip to Redis.

        Args:
            operation: what it was for, from a closed set.
            seconds: how long it took.
            error: the closed kind of what went wrong, or None.
        """
        times = self._trip_times.get(operation)
        if times is None:
            times = self._trip_times[operation] = Times(self._trips.labels(operation))
        times.add(seconds)
        if error is not None:
            self._errors.labels(error).inc()
        if error != self._redis and time.monotonic() - self._redis_since >= SETTLED_S:
            self._redis, self._redis_since = error, time.monotonic()
            if error is None:
                self._log.event("info", "redis_answers")
            else:
                self._log.event("warning", "redis_fails", kind=error)

    def looked_up(self, result: str) -> None:
        """Count one use of the near cache: hit, miss or stale."""
        self._looked_up[result] += 1

    def warned(self, result: str) -> None:
        """Count one try to warn of a token's expiry: sent, failed or refused."""
        self._warnings.labels(result).inc()

    def canary_used(self) -> None:
        """Count one request with a canary token."""
        self._canaries.inc()

    def _count_one(self, proxy: Proxy | None, verdict: Verdict, seconds: float | None) -> None:
        reason = "none" if isinstance(verdict, Allow) else verdict.reason.code
        tally = self._tallies.get((proxy, reason))
        if tally is None:
            outcome = "allow" if isinstance(verdict, Allow) else "deny"
            tally = self._tally(proxy, outcome, reason)
        if seconds is None:
            tally.unmeasured += 1
        else:
            tally.times.add(seconds)

    def _tally(self, proxy: Proxy | None, outcome: str, reason: str) -> Tally:
        """A new tally of decisions of one kind."""
        asked = "none" if proxy is None else proxy.value
        tally = Tally(
            self._count.labels(asked, outcome, reason), self._seconds.labels(asked, outcome)
        )
        self._tallies[proxy, reason] = tally
        return tally

    def write(self, lines: Sequence[Line]) -> None:
        """Write the lines of decisions."""
        log = self._log
        if not log.json:
            for line, decision_id, request_id, seconds in lines:
                self._line(line.fields(decision_id, request_id, seconds))
        elif kept := lines[: log.room(len(lines))]:
            own = [line.own(one, request, seconds) for line, one, request, seconds in kept]
            log.put(texts(log.now(), own), len(own))

    def _line(self, fields: Mapping[str, object]) -> None:
        self._log.line("info", "decision", fields)

    def _tells(self, verdict: Verdict) -> bool:
        """Whether such a decision gets a line."""
        return self._decisions == "all" or (
            self._decisions == "denied" and isinstance(verdict, Deny)
        )


def _unreadable(proxy: Proxy | None, deny: Deny, decision_id: str, peer: str) -> dict[str, object]:
    """The fields of the line of a request that could not be read."""
    return {"decision_id": decision_id, **decided(proxy, deny), "peer": peer}


def _network(client: Address) -> bytes:
    """What has a pace of its own: an IPv4 address, or the 64 bits that one IPv6 host has."""
    return client.packed[:8]
