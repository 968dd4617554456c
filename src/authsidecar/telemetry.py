"""What is told of a decision: counters for Prometheus and one log line.

Label values come from closed sets: a path, token, user or address is never one. A log line
names ids and the route's template, never a target, a header or any part of a token.
"""

from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from authsidecar import __version__
from authsidecar.authorize import Outcome
from authsidecar.log import Log
from authsidecar.model import AccessRequest, Allow, Deny, Proxy

NEAR_LIMIT = 10
"""A counter is near its limit when less than one in NEAR_LIMIT of it is left."""

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

Decisions = Literal["all", "denied", "none"]


class _Series(NamedTuple):
    """The two series that one kind of decision moves."""

    decisions: Counter
    seconds: Histogram


class Telemetry:
    """Metrics in a registry, decisions in a log."""

    def __init__(self, registry: CollectorRegistry, log: Log, decisions: Decisions = "all") -> None:
        """Register the metrics.

        Args:
            registry: where the metrics are collected.
            log: where lines go.
            decisions: which decisions get a line.
        """
        self._log = log
        self._decisions = decisions
        self._series: dict[tuple[str, str, str], _Series] = {}
        self._count = Counter(
            "authsidecar_decisions",
            "Decisions by proxy, outcome (allow or deny) and reason code.",
            ["proxy", "outcome", "reason"],
            registry=registry,
        )
        self._seconds = Histogram(
            "authsidecar_decision_seconds",
            "Time from a readable subrequest to its answer.",
            ["proxy", "outcome"],
            buckets=_FAST,
            registry=registry,
        )
        self._trips = Histogram(
            "authsidecar_store_trip_seconds",
            "Time of one trip to Redis.",
            ["operation"],
            buckets=_FAST,
            registry=registry,
        )
        self._errors = Counter(
            "authsidecar_store_errors",
            "Trips to Redis that failed, by kind.",
            ["kind"],
            registry=registry,
        )
        self._lookups = Counter(
            "authsidecar_cache_lookups",
            "Near cache look-ups: hit, miss or stale.",
            ["result"],
            registry=registry,
        )
        self._near = Counter(
            "authsidecar_near_limit",
            "Admitted requests that left less than a tenth of a limit.",
            ["limit"],
            registry=registry,
        )
        build = Gauge(
            "authsidecar_build_info",
            "Always 1; the version is a label.",
            ["version"],
            registry=registry,
            multiprocess_mode="max",
        )
        build.labels(__version__).set(1)

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
        for quota in outcome.quotas:
            if quota.remaining * NEAR_LIMIT < quota.limit.requests:
                self._near.labels(quota.scope).inc()
        record = outcome.record
        fields: dict[str, object] = {
            "decision_id": decision_id,
            "proxy": proxy.value,
            "outcome": "allow",
            "status": 200,
            "code": None,
            "method": request.method,
            "route": outcome.route,
            "client": str(request.client),
            "user": record.user if record else None,
            "team": record.team if record else None,
            "token": record.token if record else None,
        }
        self._tell(proxy, verdict, fields, seconds)

    def unreadable(self, proxy: Proxy, deny: Deny, decision_id: str, peer: str) -> None:
        """Count and log a request that was refused before it could be read.

        Args:
            proxy: the endpoint that was asked.
            deny: why it was refused.
            decision_id: names the decision.
            peer: the address that called.
        """
        fields: dict[str, object] = {
            "decision_id": decision_id,
            "proxy": proxy.value,
            "outcome": "deny",
            "status": deny.reason.status,
            "code": deny.reason.code,
            "peer": peer,
        }
        self._tell(proxy, deny, fields, None)

    def trip(self, operation: str, seconds: float, error: str | None) -> None:
        """Count one trip to Redis.

        Args:
            operation: what it was for, from a closed set.
            seconds: how long it took.
            error: the closed kind of what went wrong, or None.
        """
        self._trips.labels(operation).observe(seconds)
        if error is not None:
            self._errors.labels(error).inc()

    def looked_up(self, result: str) -> None:
        """Count one use of the near cache: hit, miss or stale."""
        self._lookups.labels(result).inc()

    def _tell(
        self,
        proxy: Proxy,
        verdict: Allow | Deny,
        fields: dict[str, object],
        seconds: float | None,
    ) -> None:
        reason = "none"
        if isinstance(verdict, Deny):
            reason = verdict.reason.code
            fields["outcome"] = "deny"
            fields["status"] = verdict.reason.status
            fields["code"] = reason
            fields["detail"] = verdict.detail
        outcome = str(fields["outcome"])
        series = self._series.get((proxy, outcome, reason))
        if series is None:
            series = _Series(
                self._count.labels(proxy.value, outcome, reason),
                self._seconds.labels(proxy.value, outcome),
            )
            self._series[proxy, outcome, reason] = series
        series.decisions.inc()
        if seconds is not None:
            series.seconds.observe(seconds)
            fields["ms"] = round(seconds * 1000, 3)
        if self._decisions == "all" or (self._decisions == "denied" and outcome == "deny"):
            self._log.line("info", "decision", fields)
