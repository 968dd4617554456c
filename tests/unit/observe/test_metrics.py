"""What is told of a decision, in metrics and in the log."""

import io
import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from authsidecar import __version__
from authsidecar.decision.authorize import Outcome
from authsidecar.decision.credentials import TOKEN_MISSING
from authsidecar.decision.model import (
    AccessRequest,
    Allow,
    Deny,
    Limit,
    Permission,
    Proxy,
    Quota,
    Role,
    TeamId,
    TokenId,
    TokenRecord,
    UserId,
)
from authsidecar.decision.policy import METHOD_NOT_ALLOWED, RATE_LIMITED
from authsidecar.observe.log import Log
from authsidecar.observe.metrics import Telemetry, collected
from authsidecar.times import UnixMs

NOW = UnixMs(1_000)
REQUEST = AccessRequest(
    proxy=Proxy.NGINX,
    method="GET",
    path="/api/v1/servers/s3cret",
    target=b"/api/v1/servers/s3cret?token=7|s3cret",
    client=ip_address("192.0.2.1"),
    credential=Deny(TOKEN_MISSING),
    request_id="4f2a9c0d17be4d3f9a6b5c8e7d1f0a23",
)
RECORD = TokenRecord(
    token=TokenId(7),
    digest=b"s3cret",
    name="s3cret",
    user=UserId(1),
    team=TeamId(2),
    permissions=frozenset({Permission.READ}),
    expires_at=None,
    role=Role.OWNER,
)


class Told:
    """A Telemetry with what it wrote and counted."""

    def __init__(self, decisions: Any = "all") -> None:
        self.registry = CollectorRegistry()
        self.stream = io.StringIO()
        log = Log(json_lines=True, level="error", stream=self.stream)
        self.telemetry = Telemetry(self.registry, log, decisions)

    def decided(self, outcome: Outcome, request: AccessRequest = REQUEST) -> None:
        self.telemetry.decided(Proxy.NGINX, outcome, "d1", request, 0.0015)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


def quota(remaining: int, limit: int = 200) -> Quota:
    return Quota("user", Limit(limit), remaining, NOW)


def test_a_decision_is_counted_and_timed() -> None:
    """By proxy, outcome and reason; time goes into a histogram."""
    told = Told()
    told.decided(Outcome(Allow(None), NOW))
    told.decided(Outcome(Deny(RATE_LIMITED), NOW))
    told.decided(Outcome(Deny(RATE_LIMITED), NOW))
    name = "authsidecar_decisions_total"
    assert told.value(name, proxy="nginx", outcome="allow", reason="none") == 1
    assert told.value(name, proxy="nginx", outcome="deny", reason="rate_limited") == 2
    seconds = "authsidecar_decision_seconds_count"
    assert told.value(seconds, proxy="nginx", outcome="deny") == 2


def test_a_line_names_ids_and_the_template() -> None:
    """Never the path, the query, a name or a digest."""
    told = Told()
    told.decided(Outcome(Allow(None), NOW, route="/api/v1/servers/{uuid}", record=RECORD))
    (line,) = told.lines
    del line["time"]
    assert line == {
        "level": "info",
        "event": "decision",
        "decision_id": "d1",
        "proxy": "nginx",
        "outcome": "allow",
        "status": 200,
        "code": None,
        "detail": None,
        "method": "GET",
        "route": "/api/v1/servers/{uuid}",
        "client": "192.0.2.1",
        "request_id": "4f2a9c0d17be4d3f9a6b5c8e7d1f0a23",
        "user": 1,
        "team": 2,
        "token": 7,
        "ms": 1.5,
    }
    assert "s3cret" not in told.stream.getvalue()


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ("0b5e7a52-3c55-4b8c-9d3d-1f7a3f1f9b60", "0b5e7a52-3c55-4b8c-9d3d-1f7a3f1f9b60"),
        (None, None),
        ("7|aW5kZWVkYXNlY3JldHRoYXRub2JvZHlzZWVz", None),
        ("aW5kZWVkYXNlY3JldHRoYXRub2JvZHlzZWVz", None),
        ("0b5e7a52-3c55-4b8c-9d3d-1f7a3f1f9b60\n", None),
        ("abc", None),
    ],
)
def test_only_what_looks_like_a_request_id_is_written(sent: str | None, told: str | None) -> None:
    """A proxy that does not overwrite the header passes on whatever a client put there."""
    seen = Told()
    seen.decided(Outcome(Allow(None), NOW), REQUEST._replace(request_id=sent))
    assert seen.lines[0]["request_id"] == told


def test_a_refusal_says_why_in_words_for_the_operator() -> None:
    """Code, status and detail."""
    told = Told()
    told.decided(Outcome(Deny(RATE_LIMITED, "no room in user"), NOW))
    (line,) = told.lines
    assert (line["outcome"], line["code"], line["status"], line["detail"]) == (
        "deny",
        "rate_limited",
        429,
        "no room in user",
    )


def test_what_cannot_be_read_is_counted_but_not_timed() -> None:
    """Row 0: the peer is named, no client is known."""
    told = Told()
    told.telemetry.unreadable(Proxy.CADDY, Deny(METHOD_NOT_ALLOWED), "d1", "127.0.0.1")
    labels = {"proxy": "caddy", "outcome": "deny"}
    name = "authsidecar_decisions_total"
    assert told.value(name, **labels, reason="method_not_allowed") == 1
    assert not told.value("authsidecar_decision_seconds_count", **labels)
    assert told.lines[0]["peer"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("decisions", "codes"),
    [("all", [None, "rate_limited"]), ("denied", ["rate_limited"]), ("none", [])],
)
def test_which_decisions_get_a_line_is_a_setting(decisions: str, codes: list[str | None]) -> None:
    """All are counted in any case."""
    told = Told(decisions)
    told.decided(Outcome(Allow(None), NOW))
    told.decided(Outcome(Deny(RATE_LIMITED), NOW))
    assert [line["code"] for line in told.lines] == codes
    name = "authsidecar_decisions_total"
    assert told.value(name, proxy="nginx", outcome="allow", reason="none") == 1


@pytest.mark.parametrize(("remaining", "near"), [(20, None), (19, 1), (0, 1)])
def test_a_counter_is_near_its_limit_below_a_tenth(remaining: int, near: float | None) -> None:
    """Of 200, 20 left is not yet near."""
    told = Told()
    told.decided(Outcome(Allow(None), NOW, (quota(remaining),)))
    assert told.value("authsidecar_near_limit_total", limit="user") == near


def test_trips_and_look_ups_are_counted_by_closed_words() -> None:
    """Each trip is timed; one that failed is counted by the kind of its error as well."""
    told = Told()
    told.telemetry.trip("charge", 0.001, None)
    told.telemetry.trip("charge", 0.2, "timeout")
    told.telemetry.looked_up("stale")
    assert told.value("authsidecar_store_trip_seconds_count", operation="charge") == 2
    assert told.value("authsidecar_store_errors_total", kind="timeout") == 1
    assert told.value("authsidecar_cache_lookups_total", result="stale") == 1


def test_the_build_is_told() -> None:
    """So that a dashboard can tell versions apart."""
    assert Told().value("authsidecar_build_info", version=__version__) == 1


def test_a_worker_that_makes_its_file_meanwhile_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The file is empty for an instant, which prometheus_client takes for a broken one."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    empty = tmp_path / "counter_1.db"
    empty.touch()

    def begin(_: float) -> None:
        empty.write_bytes((8).to_bytes(8, "little"))

    monkeypatch.setattr("time.sleep", begin)
    assert list(collected(CollectorRegistry()).collect()) == []
