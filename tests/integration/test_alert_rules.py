"""The alerts of deploy/prometheus, as promtool judges them: when each fires, and when not."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.prometheus import FILES, MISSING, PROMTOOL, rules

pytestmark = [pytest.mark.skipif(PROMTOOL is None, reason=MISSING), pytest.mark.any_python]

HERE = 'job="authsidecar", instance="a:4191"'
# Values in promtool's notation: 0x8 would be a hexadecimal number, so it is 0+0x8.
UP = f"up{{{HERE}}}"
READY = f"authsidecar_ready{{{HERE}}}"
AGE = f'authsidecar_sync_age_seconds{{{HERE}, source="coolify"}}'


def series(name: str, **labels: str) -> str:
    words = [HERE, *(f'{key}="{value}"' for key, value in labels.items())]
    return f"{name}{{{', '.join(words)}}}"


def decisions(reason: str) -> str:
    outcome = "allow" if reason == "none" else "deny"
    name = "authsidecar_decisions_total"
    return series(name, proxy="traefik", outcome=outcome, reason=reason)


def histogram(name: str, quick: str, slow: str, **labels: str) -> dict[str, str]:
    """Its buckets: what takes 10 ms or less grows so, and all together so."""
    buckets = {"0.01": quick, "0.05": quick, "0.25": slow, "+Inf": slow}
    return {series(f"{name}_bucket", le=le, **labels): how for le, how in buckets.items()}


@dataclass(frozen=True)
class Case:
    """An alert's samples, every 15 seconds for 40 minutes.

    Attributes:
        fires: samples with which it fires.
        quiet: samples with which it never does, close to the others.
        after: minutes after which it must fire.
        before: minutes after which it must not fire yet; None if it fires at once.
    """

    fires: dict[str, str]
    quiet: tuple[dict[str, str], ...]
    after: int
    before: int | None


STEADY, ZERO = "1+0x160", "0+0x160"
PROBLEMS = "authsidecar_sync_problem"
DROPPED = "authsidecar_connections_dropped_total"
STARTED = series("process_start_time_seconds")
TIMES = series("authsidecar_log_lines_dropped_total")

CASES = {
    "AuthsidecarAbsent": Case(
        {'up{job="prometheus", instance="b:9090"}': STEADY}, ({UP: ZERO}, {UP: STEADY}), 6, 4
    ),
    "AuthsidecarDown": Case({UP: ZERO}, ({UP: STEADY}, {UP: "1+0x20 0 0 1+0x140"}), 2, 0),
    "AuthsidecarMetricsAbsent": Case(
        {UP: STEADY, READY.replace("a:", "b:"): STEADY},
        ({UP: STEADY, READY: STEADY}, {UP: ZERO}, {UP: STEADY, READY: ZERO}),
        6,
        4,
    ),
    "AuthsidecarNotReady": Case(
        {READY: ZERO}, ({READY: STEADY}, {READY: "1+0x9 0 0 1+0x150"}), 2, 0
    ),
    "AuthsidecarUnavailable": Case(
        {decisions("none"): "0+98x160", decisions("store_unavailable"): "0+2x160"},
        (
            {decisions("none"): "0+995x160", decisions("internal_error"): "0+5x160"},
            {decisions("none"): "0+100x160"},
            {decisions("none"): "0+10x160", decisions("permission_missing"): "0+90x160"},
        ),
        4,
        1,
    ),
    "AuthsidecarSlow": Case(
        histogram("authsidecar_decision_seconds", "0+95x160", "0+100x160", proxy="nginx"),
        (histogram("authsidecar_decision_seconds", "0+999x160", "0+1000x160", proxy="nginx"),),
        7,
        4,
    ),
    "AuthsidecarTokenGuessing": Case(
        {decisions("token_unknown"): "0+4x160", decisions("token_malformed"): "0+2x160"},
        (
            {decisions("token_unknown"): "0+4x160"},
            {decisions("token_unknown"): "0+0x20 200+0x120"},
            {decisions("token_missing"): "0+500x160"},
        ),
        12,
        4,
    ),
    "AuthsidecarProxyMisconfigured": Case(
        {decisions("untrusted_peer"): "0+1x160"},
        ({decisions("untrusted_peer"): "0+0x20 9+0x120"}, {decisions("route_unknown"): "0+9x160"}),
        12,
        4,
    ),
    "AuthsidecarConnectionsDropped": Case(
        {series(DROPPED, cause="first_byte"): "0+2x160"},
        (
            {series(DROPPED, cause="first_byte"): "0+1x160"},
            {series(DROPPED, cause="limit"): "0+0x20 20+0x120"},
        ),
        12,
        4,
    ),
    "AuthsidecarRedisErrors": Case(
        {series("authsidecar_store_errors_total", kind="timeout"): "0+1x160"},
        (
            {series("authsidecar_store_errors_total", kind="timeout"): ZERO},
            {series("authsidecar_store_errors_total", kind="pool"): "0+0x20 10+0x120"},
        ),
        12,
        4,
    ),
    "AuthsidecarEventLoopLate": Case(
        histogram("authsidecar_event_loop_lag_seconds", "0+140x160", "0+150x160"),
        (histogram("authsidecar_event_loop_lag_seconds", "0+1499x160", "0+1500x160"),),
        7,
        4,
    ),
    "AuthsidecarTaskFailing": Case(
        {series("authsidecar_background_failing", task="warnings"): STEADY},
        (
            {series("authsidecar_background_failing", task="warnings"): ZERO},
            {series("authsidecar_background_failing", task="sync"): "0+0x20 1+0x8 0+0x130"},
        ),
        6,
        4,
    ),
    "AuthsidecarLogLinesDropped": Case({TIMES: "0+0x8 7+0x152"}, ({TIMES: ZERO},), 3, 1),
    "AuthsidecarRestarts": Case(
        {STARTED: "1000+0x8 1100+0x8 1200+0x8 1300+0x136"},
        ({STARTED: "1000+0x40 1100+0x8 1200+0x112"}, {STARTED: "1000+0x160"}),
        8,
        5,
    ),
    "AuthsidecarWarningsFail": Case(
        {series("authsidecar_warnings_total", result="failed"): "0+1x160"},
        (
            {series("authsidecar_warnings_total", result="sent"): "0+9x160"},
            {series("authsidecar_warnings_total", result="refused"): ZERO},
        ),
        17,
        14,
    ),
    "AuthsidecarSyncLate": Case(
        {AGE: "Inf+0x160"}, ({AGE: "0+0x20 59+0x140"}, {AGE: "0+0x20 90 90 0+0x118"}), 2, 0
    ),
    "AuthsidecarSyncAbsent": Case(
        {AGE: "1+0x20 stale", READY: STEADY},
        (
            {AGE: STEADY, READY: STEADY},
            {READY: STEADY},
            {AGE: "1+0x20 stale", READY: "1+0x20 stale"},
        ),
        11,
        8,
    ),
    "AuthsidecarSyncProblem": Case(
        {series(PROBLEMS, problem="outage"): STEADY, series(PROBLEMS, problem="schema"): ZERO},
        (
            {series(PROBLEMS, problem="outage"): ZERO},
            {series(PROBLEMS, problem="outage"): "0+0x20 1+0x8 0+0x130"},
        ),
        6,
        4,
    ),
}


def judged(alert: str, samples: dict[str, str], when: dict[int, int]) -> dict:
    """A test of promtool's: how many of an alert fire after so many minutes."""
    return {
        "interval": "15s",
        "input_series": [{"series": name, "values": how} for name, how in samples.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": "{}", "value": count}],
            }
            for minute, count in when.items()
        ],
    }


def run(directory: Path, *tests: dict) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    file = directory / "tests.yml"
    files = [str(FILES / name) for name in ("rules.yml", "alerts.yml")]
    text = yaml.safe_dump({"rule_files": files, "evaluation_interval": "30s", "tests": list(tests)})
    file.write_text(text)
    command = [PROMTOOL, "test", "rules", str(file)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_the_files_are_valid() -> None:
    """Configuration and rules, the linter's advice included."""
    assert PROMTOOL is not None
    for command in (
        [PROMTOOL, "check", "config", str(FILES / "prometheus.yml")],
        [
            PROMTOOL,
            "check",
            "rules",
            "--lint-fatal",
            *(str(FILES / f) for f in ("rules.yml", "alerts.yml")),
        ],
    ):
        found = subprocess.run(command, check=False, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout + found.stderr


def test_every_alert_has_a_case() -> None:
    """One that was never seen firing may be one that can't."""
    assert [rule["alert"] for rule in rules("alerts.yml")] == sorted(
        CASES, key=[rule["alert"] for rule in rules("alerts.yml")].index
    )


def test_every_alert_fires_when_it_should(tmp_path: Path) -> None:
    """And not before its time."""
    tests = []
    for alert, case in CASES.items():
        when = {case.after: 1} if case.before is None else {case.before: 0, case.after: 1}
        tests.append(judged(alert, case.fires, when))
    found = run(tmp_path, *tests)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_alert_keeps_quiet_when_it_should(tmp_path: Path) -> None:
    """At no time of twenty minutes, with samples that are close to firing."""
    when = dict.fromkeys(range(1, 21), 0)
    quiet = [(alert, samples) for alert, case in CASES.items() for samples in case.quiet]
    found = run(tmp_path, *(judged(alert, samples, when) for alert, samples in quiet))
    assert found.returncode == 0, found.stdout + found.stderr
