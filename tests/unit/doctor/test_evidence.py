"""What is kept of a probe: enough to judge it, nothing that is secret."""

import json
import re

import pytest

from authsidecar.decision.credentials import TOKEN_PREFIX_MISSING, find
from authsidecar.decision.model import Deny, Proxy
from authsidecar.decision.routes import coolify
from authsidecar.doctor.evidence import MARK, Answer, Echoed
from authsidecar.serving.doctor_probe import (
    PATH,
    REFUSALS,
    Sighting,
    credential,
    digest,
    headers_seen,
    offered,
    sighting,
)

KEY = "aB_-" * 10 + "xyz"


@pytest.mark.parametrize("answer", ["allow", *map(str, REFUSALS)])
def test_an_offer_is_read_back(answer):
    """What the doctor sends is what the sidecar reads; the key only as a digest."""
    [offer] = [offered([credential(KEY, "alias-dot", answer).encode()])]
    assert offer is not None
    assert (offer.probe, offer.answer, offer.alone) == ("alias-dot", answer, True)
    assert offer.key == digest(KEY)
    assert KEY not in repr(offer)


def test_an_offer_is_a_malformed_token_to_everybody_else():
    """No token can have its shape, and the other way round."""
    refusal = find([credential(KEY, "asked", "allow").encode()])
    assert isinstance(refusal, Deny)
    assert refusal.reason is TOKEN_PREFIX_MISSING


@pytest.mark.parametrize(
    "values",
    [
        (),
        (b"Bearer 1|secret",),
        (b"bearer doctor." + KEY.encode() + b".asked.allow",),
        (b"Bearer doctor." + KEY[:-1].encode() + b".asked.allow",),
        (b"Bearer doctor." + KEY.encode() + b".asked.admit",),
        (b"Bearer doctor." + KEY.encode() + b"." + b"a" * 41 + b".allow",),
        (b"Bearer doctor." + KEY.encode() + b".a\nb.allow",),
        (b"Bearer doctor.\xff",),
    ],
)
def test_another_shape_is_no_offer(values):
    """So Redis is not asked about it."""
    assert offered(values) is None


@pytest.mark.parametrize(
    "values",
    [
        (credential(KEY, "twice", "allow").encode(), b"Bearer 1|x"),
        (b"Bearer 1|x", credential(KEY, "twice", "allow").encode()),
        (credential(KEY, "twice", "allow").encode() + b",Bearer 1|x",),
        (credential(KEY, "twice", "allow").encode() + b"x",),
    ],
)
def test_an_offer_beside_something_else_is_not_alone(values):
    """It is told of, and never let through."""
    offer = offered(values)
    assert offer is not None
    assert not offer.alone


def test_a_record_survives_redis_and_holds_no_secret():
    """Names of all headers, values only of those that describe the request."""
    names, shown = headers_seen(
        [
            (b"Authorization", b"Bearer 1|hush"),
            (b"Cookie", b"hush"),
            (b"X-Forwarded-For", b"192.0.2.1"),
            (b"x-authz-request-id", b"\xff1"),
            (b"Origin", b"a" * 9999),
        ]
    )
    seen = Sighting("p", Proxy.ENVOY, "GET", "/\xe9", None, "code", names, shown, body=True)
    assert sighting(seen.encoded()) == seen
    assert "hush" not in seen.encoded()
    assert seen.names.count("authorization") == 1
    assert seen.values("x-forwarded-for") == ["192.0.2.1"]
    assert seen.values("x-authz-request-id") == ["\xff1"]
    assert len(seen.values("origin")[0]) == 512


def test_an_answer_is_an_echos_only_with_its_mark():
    """A backend's own JSON is not mistaken for it."""
    body = {"method": "GET", "target": "/", "headers": [["x-auth-user-id", "7"]]}
    assert Answer(200, (), json.dumps(body).encode()).echoed() is None
    echoed = Answer(200, (), json.dumps({**body, MARK: 1}).encode()).echoed()
    assert echoed == Echoed("GET", "/", (("x-auth-user-id", "7"),))
    assert Answer(200, (), b"[]").document() == Answer(200, (), b"<").document() == {}


def test_claims_are_all_that_php_takes_for_ours():
    """In any spelling, and nothing else."""
    names = ("x-auth-user-id", "x_auth_team_id", "x.auth-token_id", "x-auth-other", "x-authuser-id")
    claims = Echoed("GET", "/", tuple((name, "1") for name in names)).claims()
    assert claims == ["x-auth-user-id", "x.auth-token_id", "x_auth_team_id"]


@pytest.mark.parametrize("line", ["4.0", "4.1", "4.3"])
def test_no_release_line_has_a_route_at_the_doctors_path(line):
    """An armed doctor is let through to nothing."""
    table = coolify(line)
    assert re.fullmatch(r"/api/v1/[a-z-]+", PATH)
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"):
        assert table.find(method, PATH) is None
