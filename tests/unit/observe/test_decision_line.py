"""A line that is rendered in pieces says what json.dumps says of its fields."""

import json
from ipaddress import ip_address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from authsidecar.decision.model import Allow, Deny, Kind, Proxy, Reason
from authsidecar.observe.decision_line import DecisionLine, texts
from tests.support.cases import record

TEXTS = st.text() | st.sampled_from(['"', "\\", "\x00\x1f", "\u2028", "\ud800", "]}\n{"])
REASON = Reason("address_not_allowed", Kind.FORBIDDEN, 403, "You are not allowed.")


@given(
    proxy=st.sampled_from(Proxy),
    detail=TEXTS | st.none(),
    route=TEXTS | st.none(),
    client=st.ip_addresses(),
    token=st.none() | st.integers(1, 2**63 - 1),
    request_id=TEXTS | st.none() | st.uuids().map(str),
    seconds=st.floats(0, 1e6),
)
def test_a_line_is_the_json_of_its_fields(*, detail, token, request_id, seconds, **kind) -> None:
    verdict = Allow(None) if detail is None else Deny(REASON, detail)
    owner = None if token is None else record(token=token)
    line = DecisionLine(verdict, method="GET", record=owner, **kind)
    fields = line.fields("6b08", request_id, seconds)
    whole = json.dumps({"time": "now", "level": "info", "event": "decision", **fields})
    for lines in (1, 3):  # rendered, and again
        own = [line.own("6b08", request_id, seconds) for _ in range(lines)]
        found = texts("now", own).split("\n")
        assert len(found) == lines
        for text in found:
            assert text.rpartition('"ms"')[0] == whole.rpartition('"ms"')[0]
            assert json.loads(text) == json.loads(whole)


def test_only_what_has_the_form_of_an_id_is_written() -> None:
    kind: Any = {"proxy": Proxy.NGINX, "method": "GET", "route": None, "record": None}
    line = DecisionLine(Allow(None), client=ip_address("192.0.2.1"), **kind)
    assert '"request_id": null' in line.own("1", "67|aSecretThatAClientPutThere", 0.001)
    assert f'"request_id": "{"0a" * 16}"' in line.own("1", "0a" * 16, 0.001)
