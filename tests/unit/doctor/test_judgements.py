"""Each judgement, on evidence made by hand: what passes, and what is said of a fault."""

import json
from dataclasses import replace
from typing import Any

import pytest

from authsidecar.decision.model import Proxy
from authsidecar.decision.proxies.headers import IDENTITY
from authsidecar.doctor import judgements as judge
from authsidecar.doctor.evidence import MARK, Answer
from authsidecar.doctor.judgements import FORGED, LEFTMOST, RIGHTMOST, Observation
from authsidecar.serving.doctor_probe import CODE, PATH, Sighting, identity

SEEN = Sighting(
    "p", Proxy.NGINX, "GET", PATH, "127.0.0.1", None, ("authorization",), (), body=False
)
WHOLE = tuple((name.lower(), identity(name)) for name in IDENTITY)


def answer(status: int = 200, document: object = None, **headers: str) -> Answer:
    fields = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Answer(status, fields, json.dumps(document).encode())


def echo(*headers: tuple[str, str], target: str = PATH) -> Answer:
    return answer(document={MARK: 1, "method": "GET", "target": target, "headers": headers})


def saw(**changes: Any) -> Observation:
    """An observation of one sighting, changed, and an answer of 200."""
    return Observation(Proxy.NGINX, "GET", PATH, answer(), (replace(SEEN, **changes),))


def unasked(got: Answer | None) -> Observation:
    return Observation(Proxy.NGINX, "GET", PATH, got, ())


def got(found: Answer | None) -> Observation:
    return replace(saw(), answer=found)


GOOD = [
    (judge.asked_here, saw()),
    (judge.readable, saw()),
    (judge.told_target, saw()),
    (judge.told_name, saw()),
    (judge.told_method, saw()),
    (judge.described, saw()),
    (judge.described, unasked(answer(400))),
    (judge.guarded, saw()),
    (judge.guarded, unasked(answer(400))),
    (judge.guarded, unasked(answer(404, {"decision_id": "d"}))),
    (judge.not_leftmost, saw(client=RIGHTMOST)),
    (judge.own_address, saw()),
    (judge.own_address, replace(saw(client=RIGHTMOST), from_hop=True)),
    (judge.without_foreign("x-real-ip"), saw(names=("authorization", "x-real-ipx"))),
    (judge.one_authorization, saw()),
    (judge.ambiguous, replace(saw(refused="authorization_ambiguous"), answer=answer(401))),
    (judge.ambiguous, unasked(answer(400))),
    (judge.bodyless, saw()),
    (judge.bodyless, saw(body=True, forwarded=True)),
    (judge.content_type, saw(names=("authorization", "content-type"))),
    (judge.preflight, saw(names=("origin", "access-control-request-method"))),
    (judge.no_override, saw(names=("x-http-method-override",))),
    (judge.no_override, unasked(answer(400))),
    (judge.no_override, got(echo())),
    (judge.request_id, saw(shown=(("x-authz-request-id", "1"),))),
    (judge.denied(404), got(answer(404, {"code": CODE}))),
    (judge.denied(503), replace(got(answer(503, {"code": "other"})), proxy=Proxy.ENVOY)),
    (judge.denied(401, "WWW-Authenticate"), got(answer(401, {"code": CODE}, www_authenticate="B"))),
    (judge.denied(429), got(answer(429, {"code": CODE}, retry_after="7"))),
    (judge.answered, unasked(answer(431))),
    (judge.whole_identity, got(echo(*WHOLE))),
    (judge.identity_kept, got(echo(*WHOLE))),
    (judge.identity_kept, unasked(answer(400))),
    (judge.no_alias, got(echo(*WHOLE))),
    (judge.no_alias, unasked(answer(400))),
    (judge.nobody, unasked(echo())),
    (judge.nobody, unasked(answer(400))),
    (judge.same_target, got(echo())),
    (judge.not_forged("X-Real-Ip"), got(echo(("x-real-ip", "127.0.0.1")))),
    (judge.upgraded, got(answer(101))),
]

FAULTS = [
    (judge.asked_here, unasked(None), "no answer"),
    (judge.asked_here, unasked(answer(403, {"code": "untrusted_peer"})), "trusted_peers"),
    (judge.asked_here, unasked(answer(404, {"decision_id": "d"})), "another Redis"),
    (judge.asked_here, unasked(answer(200)), "not asked; the client got 200"),
    (judge.asked_here, saw(proxy=Proxy.CADDY), "/authz/caddy"),
    (judge.readable, saw(refused="ambiguous_target"), "ambiguous_target"),
    (judge.told_target, saw(target="/_authz"), "/_authz, not /api"),
    (judge.told_target, unasked(answer()), "not asked"),
    (judge.told_name, saw(target="/_authz"), "/_authz, not /api"),
    (judge.told_name, saw(refused="ambiguous_target"), "cannot read the question"),
    (judge.told_name, unasked(answer()), "not asked"),
    (judge.told_method, saw(method="POST"), "POST, not GET"),
    (judge.described, unasked(answer(200)), "without the sidecar being asked"),
    (judge.described, saw(method="POST"), "POST, not GET"),
    (judge.guarded, unasked(None), "no answer"),
    (judge.guarded, unasked(answer(404)), "answered 404"),
    (judge.guarded, unasked(answer(302)), "answered 302"),
    (judge.guarded, unasked(echo(target="/api/v1/x")), "as /api/v1/x"),
    (judge.not_leftmost, saw(client=LEFTMOST), "leftmost"),
    (judge.own_address, saw(client=RIGHTMOST), "--from-trusted-hop"),
    (judge.without_foreign("x-real-ip"), saw(names=("x-real-ip",)), "x-real-ip"),
    (judge.one_authorization, saw(names=("authorization",) * 2), "2 times"),
    (judge.ambiguous, replace(saw(), answer=answer(401)), "one of two"),
    (judge.ambiguous, unasked(answer(200)), "not refused"),
    (judge.bodyless, saw(body=True), "sent to the sidecar"),
    (judge.bodyless, saw(forwarded=True), "is shown no body"),
    (judge.bodyless, got(None), "wait for a body"),
    (judge.content_type, saw(), "content-type does not reach the sidecar"),
    (judge.preflight, saw(names=("origin",)), "access-control-request-method"),
    (judge.no_override, saw(), "--echo-url"),
    (judge.no_override, got(echo(("x-http-method-override", "DELETE"))), "reaches the backend"),
    (judge.no_override, unasked(answer(200)), "answered 200"),
    (judge.request_id, saw(), "exactly once"),
    (judge.request_id, saw(shown=(("x-authz-request-id", f"a-{FORGED}"),)), "believed"),
    (
        judge.request_id,
        replace(
            saw(shown=(("x-authz-request-id", "1"),)),
            first=(replace(SEEN, shown=(("x-authz-request-id", "1"),)),),
        ),
        "two requests",
    ),
    (judge.denied(404), got(answer(403, {"code": CODE})), "says 404, but the client got 403"),
    (judge.denied(404), got(answer(404)), "JSON body"),
    (judge.denied(503), got(answer(503, {"code": "other"})), "JSON body"),
    (judge.denied(401, "WWW-Authenticate"), got(answer(401, {"code": CODE})), "0 times"),
    (judge.denied(429), got(answer(429, {"code": CODE}, retry_after="1")), "Retry-After"),
    (judge.answered, unasked(answer(502)), "502"),
    (judge.answered, unasked(None), "no answer"),
    (judge.whole_identity, got(echo(*WHOLE[1:])), f"{IDENTITY[0]} does not"),
    (judge.whole_identity, got(echo(*WHOLE, WHOLE[0])), "doctor-user-id, doctor-user-id"),
    (judge.whole_identity, got(answer(404)), "did not reach `doctor echo`"),
    (judge.identity_kept, got(echo(*WHOLE[1:])), f"{IDENTITY[0]} does not"),
    (judge.no_alias, got(echo(("x_auth_user_id", "x"))), "x_auth_user_id"),
    (judge.no_alias, got(echo(("x.forwarded.for", FORGED))), "x.forwarded.for"),
    (judge.no_alias, got(answer(200)), "did not reach"),
    (judge.nobody, unasked(echo(("x-auth-team-id", FORGED))), "x-auth-team-id"),
    (judge.nobody, unasked(answer(200)), "did not reach"),
    (judge.same_target, got(echo(target="/other")), "the backend got GET /other"),
    (judge.not_forged("X-Real-Ip"), got(echo(("x-real-ip", FORGED))), "X-Real-Ip"),
    (judge.upgraded, got(answer(404)), "404"),
]


@pytest.mark.parametrize(("judged", "observation"), GOOD)
def test_good_evidence_passes(judged, observation):
    """No false alarm."""
    assert judged(observation) is None


@pytest.mark.parametrize(("judged", "observation", "words"), FAULTS)
def test_a_fault_is_said_in_one_line(judged, observation, words):
    """The line names what was found."""
    fault = judged(observation)
    assert fault is not None
    assert words in fault
    assert "\n" not in fault
