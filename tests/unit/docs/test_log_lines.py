"""docs/reference/log-lines.md names the fields of a decision's line, in their order."""

import io
import json
import re
from ipaddress import ip_address
from pathlib import Path

from prometheus_client import CollectorRegistry

from authsidecar.decision.authorize import Outcome
from authsidecar.decision.model import Allow, Deny, Proxy
from authsidecar.observe.log import Log
from authsidecar.observe.log_pace import LEFT_OUT
from authsidecar.observe.metrics import Telemetry
from authsidecar.serving.authz import REQUEST_UNREADABLE
from authsidecar.times import UnixMs
from tests.support.cases import record, request

PAGE = (Path(__file__).parents[3] / "docs/reference/log-lines.md").read_text()
READABLE, UNREADABLE = (
    re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)
    for part in PAGE.split("A request that could not be read", 1)
)


def test_the_page_has_every_field_of_a_decision() -> None:
    stream = io.StringIO()
    telemetry = Telemetry(CollectorRegistry(), Log(json_lines=True, stream=stream))
    outcome = Outcome(Allow(None), UnixMs(0), (), "/api/v1/teams", record("read"))
    telemetry.decided(Proxy.NGINX, outcome, "6b08", request(), 0.001)
    telemetry.unreadable(Proxy.NGINX, Deny(REQUEST_UNREADABLE, "why"), "6b09", "192.0.2.1")
    readable, unreadable = (json.loads(line) for line in stream.getvalue().splitlines())
    common = ["time", "level", "event"]
    assert list(readable) == common + READABLE
    assert list(unreadable) == common + READABLE[:6] + UNREADABLE
    assert all(f"`{name}`" in PAGE for name in (*common, LEFT_OUT))
    assert readable["client"] == str(ip_address(readable["client"]))
