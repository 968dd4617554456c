"""Writes the dashboard beside it, authsidecar.json: `make generate`.

A dashboard's JSON is long and says everything many times. What is worth reading is here: which
panels there are, and what each asks. No name of a data source or instance is in it: they are
variables.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

FILE: Final = Path(__file__).with_name("authsidecar.json")

WIDTH: Final = 24
"""How many columns Grafana's grid has."""

SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}

Unit = Literal["reqps", "s", "percentunit", "short", "bytes", "cps"]


@dataclass(frozen=True, slots=True)
class Query:
    """One question to Prometheus.

    Attributes:
        expr: in PromQL; HERE stands for the labels that the variables choose.
        legend: names its series.
    """

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture.

    Attributes:
        title: what it shows.
        says: how to read it.
        unit: Grafana's name of the values' unit.
        queries: what it asks.
        width: its columns of WIDTH.
        red: from this value on it is red; None: never.
        kind: a curve, or the last value.
        stacked: whether curves stand on one another.
    """

    title: str
    says: str
    unit: Unit
    queries: tuple[Query, ...]
    width: int = 8
    red: float | None = None
    kind: Literal["timeseries", "stat"] = "timeseries"
    stacked: bool = False


def _quantiles(metric: str, by: str = "") -> tuple[Query, ...]:
    of = f"sum by (le{by and ', ' + by}) (rate({metric}_bucket{{HERE}}[$__rate_interval]))"
    legend = f"{{{{{by}}}}} " if by else ""
    return tuple(
        Query(f"histogram_quantile({q}, {of})", f"{legend}p{q * 100:.0f}") for q in (0.5, 0.99)
    )


def _rate(metric: str, by: str, more: str = "") -> Query:
    expr = f"sum by ({by}) (rate({metric}{{HERE{more}}}[$__rate_interval]))"
    return Query(expr, f"{{{{{by}}}}}")


ROWS: Final[dict[str, tuple[Panel, ...]]] = {
    "Is it well?": (
        Panel(
            "Scraped",
            "How many sidecars answer Prometheus.",
            "short",
            (Query("sum(up{HERE})", "up"),),
            width=4,
            kind="stat",
        ),
        Panel(
            "Not ready",
            "How many cannot decide; `/readyz` says what is missing.",
            "short",
            (Query("count(authsidecar_ready{HERE}) - sum(authsidecar_ready{HERE})", "not ready"),),
            width=4,
            red=1,
            kind="stat",
        ),
        Panel(
            "Requests",
            "Decisions a second.",
            "reqps",
            (Query("sum(rate(authsidecar_decisions_total{HERE}[$__rate_interval]))", "all"),),
            width=4,
            kind="stat",
        ),
        Panel(
            "Unavailable",
            "The share of 503s, of the last five minutes.",
            "percentunit",
            (Query("max(instance:authsidecar_unavailable:ratio_rate5m{HERE})", "503"),),
            width=4,
            red=0.01,
            kind="stat",
        ),
        Panel(
            "99 of 100 decided within",
            "Of the last five minutes; the slowest instance.",
            "s",
            (Query("max(instance:authsidecar_decision_seconds:p99_5m{HERE})", "p99"),),
            width=4,
            red=0.1,
            kind="stat",
        ),
        Panel(
            "Coolify followed",
            "Seconds since Redis was last seen to say what Coolify says; nothing without a sync.",
            "s",
            (Query("max(authsidecar_sync_age_seconds{HERE})", "age"),),
            width=4,
            red=60,
            kind="stat",
        ),
    ),
    "Decisions": (
        Panel(
            "By proxy",
            "Requests a second.",
            "reqps",
            (_rate("authsidecar_decisions_total", "proxy"),),
            stacked=True,
        ),
        Panel(
            "Refused, by reason",
            "Reasons are the codes of docs/reference/reason-codes.md.",
            "reqps",
            (_rate("authsidecar_decisions_total", "reason", ', outcome="deny"'),),
            stacked=True,
        ),
        Panel(
            "Time of a decision",
            "From a readable subrequest to its answer.",
            "s",
            _quantiles("authsidecar_decision_seconds"),
        ),
        Panel(
            "Near a limit",
            "Admitted requests that left less than a tenth of it.",
            "reqps",
            (_rate("authsidecar_near_limit_total", "limit"),),
        ),
        Panel(
            "Connections dropped",
            "Closed although the peer had not ended them.",
            "cps",
            (_rate("authsidecar_connections_dropped_total", "cause"),),
        ),
        Panel(
            "Log lines dropped",
            "Standard error is not read, or its disk is full.",
            "cps",
            (_rate("authsidecar_log_lines_dropped_total", "instance"),),
        ),
    ),
    "Redis": (
        Panel(
            "Time of a trip",
            "One trip to Redis, by what it was for.",
            "s",
            _quantiles("authsidecar_store_trip_seconds", "operation"),
        ),
        Panel(
            "Trips that failed",
            "By kind: docs/reference/metrics.md says what each means.",
            "cps",
            (_rate("authsidecar_store_errors_total", "kind"),),
            stacked=True,
        ),
        Panel(
            "Connections",
            "At most redis.max_connections for each worker.",
            "short",
            (
                Query(
                    "sum by (instance, state) (authsidecar_redis_connections{HERE})",
                    "{{instance}} {{state}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Near cache",
            "What became of look-ups; a miss or a stale record costs a trip.",
            "reqps",
            (_rate("authsidecar_cache_lookups_total", "result"),),
            width=12,
            stacked=True,
        ),
        Panel(
            "Tasks beside requests",
            "1 while a task fails; `/readyz` says how. And its failures, of the last hour.",
            "short",
            (
                Query("max by (task) (authsidecar_background_failing{HERE})", "{{task}}"),
                Query(
                    "sum by (task) (increase(authsidecar_background_failures_total{HERE}[1h]))",
                    "{{task}}: failures",
                ),
            ),
            width=12,
            red=1,
        ),
    ),
    "Coolify and warnings": (
        Panel(
            "Age of the sync",
            "It goes on while Redis is away.",
            "s",
            (Query("authsidecar_sync_age_seconds{HERE}", "{{instance}}"),),
            red=60,
        ),
        Panel(
            "What keeps the sync from following",
            "1 for the problem that there is.",
            "short",
            (Query("max by (problem) (authsidecar_sync_problem{HERE})", "{{problem}}"),),
            red=1,
        ),
        Panel(
            "Doubtful",
            "Odd rows in Coolify's tables, and rounds that did not follow a doubtful database.",
            "short",
            (
                Query("max by (reason) (authsidecar_sync_odd_rows{HERE})", "{{reason}}"),
                Query("max(authsidecar_sync_kept_rounds{HERE})", "rounds kept"),
            ),
        ),
        Panel(
            "Warnings of expiry",
            "Tries, of one mail or one webhook each.",
            "cps",
            (_rate("authsidecar_warnings_total", "result"),),
            width=12,
        ),
        Panel(
            "Uses of canary tokens",
            "Somebody has read a place where nobody should be: the log says which.",
            "short",
            (Query("sum(increase(authsidecar_canary_uses_total{HERE}[1h]))", "in an hour"),),
            width=12,
        ),
    ),
    "Process": (
        Panel(
            "Processor",
            "Cores in use, of all workers of an instance.",
            "short",
            (_rate("process_cpu_seconds_total", "instance"),),
            width=6,
        ),
        Panel(
            "Memory",
            "Resident, of all workers of an instance.",
            "bytes",
            (Query("process_resident_memory_bytes{HERE}", "{{instance}}"),),
            width=6,
        ),
        Panel(
            "Descriptors",
            "The share in use, of the worker that has most.",
            "percentunit",
            (Query("process_open_fds{HERE} / process_max_fds{HERE}", "{{instance}}"),),
            width=6,
            red=0.8,
        ),
        Panel(
            "Event loop late",
            "Time that requests wait for the process.",
            "s",
            _quantiles("authsidecar_event_loop_lag_seconds"),
            width=6,
            red=0.05,
        ),
        Panel(
            "Started",
            "How often within the last hour.",
            "short",
            (Query("changes(process_start_time_seconds{HERE}[1h])", "{{instance}}"),),
            width=8,
        ),
        Panel(
            "Versions",
            "How many sidecars run which.",
            "short",
            (Query("count by (version) (authsidecar_build_info{HERE})", "{{version}}"),),
            width=8,
        ),
        Panel(
            "Configurations",
            "How many processes decide by which; two at once mean that one was forgotten.",
            "short",
            (Query("sum by (digest) (authsidecar_config_info{HERE})", "{{digest}}"),),
            width=8,
        ),
        Panel(
            "Receipts",
            "Decisions that can be looked up by their id; a dropped one can't.",
            "cps",
            (
                Query(
                    "sum(rate(authsidecar_receipts_written_total{HERE}[$__rate_interval]))",
                    "written",
                ),
                _rate("authsidecar_receipts_dropped_total", "cause"),
            ),
            width=16,
        ),
        Panel(
            "Missing in the console's charts",
            "Decisions that Redis did not take into its counters.",
            "cps",
            (
                Query(
                    "sum(rate(authsidecar_fleet_counts_dropped_total{HERE}[$__rate_interval]))",
                    "decisions",
                ),
            ),
            width=8,
        ),
    ),
}


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.red is not None:
        steps.append({"color": "red", "value": panel.red})
    custom = {
        "stacking": {"mode": "normal" if panel.stacked else "none"},
        "fillOpacity": 20 if panel.stacked else 0,
        "thresholdsStyle": {"mode": "off" if panel.red is None else "line"},
    }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": 4 if panel.kind == "stat" else 8},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "thresholds": {"mode": "absolute", "steps": steps},
                **({"custom": custom} if panel.kind == "timeseries" else {}),
            },
            "overrides": [],
        },
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": SOURCE,
                "expr": query.expr.replace("HERE", 'job="authsidecar", instance=~"$instance"'),
                "legendFormat": query.legend,
            }
            for at, query in enumerate(panel.queries)
        ],
    }


def panels() -> list[dict[str, Any]]:
    """All panels, row by row, each at its place."""
    made: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        made.append({"id": len(made) + 1, "type": "row", "title": title, "gridPos": place})
        x, y = 0, y + 1
        height = 0
        for panel in row:
            if x + panel.width > WIDTH:
                x, y = 0, y + height
            made.append(_panel(panel, len(made) + 1, x, y))
            height = made[-1]["gridPos"]["h"]
            x += panel.width
        y += height
    return made


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana stores it."""
    variables = [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "instance",
            "label": "Sidecar",
            "type": "query",
            "datasource": SOURCE,
            "query": 'label_values(up{job="authsidecar"}, instance)',
            "refresh": 2,
            "includeAll": True,
            "allValue": ".*",
            "multi": True,
            "current": {"text": "All", "value": "$__all"},
        },
    ]
    firing = {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Authsidecar.*", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{instance}}",
    }
    return {
        "uid": "authsidecar",
        "title": "authsidecar",
        "tags": ["authsidecar"],
        "schemaVersion": 39,
        "editable": False,
        "time": {"from": "now-3h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": variables},
        "annotations": {"list": [firing]},
        "panels": panels(),
    }


def text() -> str:
    """What stands in the file."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
