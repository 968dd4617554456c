"""The table of probes: what is sent, how it is judged, and what it guards against.

Pure data. A probe that needs an echo shows what only the backend can see. The line to change
stands in remedies.py, under the probe's cure.
"""

from dataclasses import dataclass
from typing import Final

from authsidecar.decision.model import Proxy
from authsidecar.decision.proxies.headers import IDENTITY, USER_ID
from authsidecar.doctor import judgements as judge
from authsidecar.doctor.judgements import FORGED, LEFTMOST, RIGHTMOST, Judge
from authsidecar.serving.doctor_probe import ALLOW, PATH

LARGE: Final = 16 * 1024
"""Bytes of the header that must not break anything."""

OUTSIDE: Final = "/authsidecar-doctor"
"""A path that the sidecar is not asked about."""

_QUOTAS: Final = ("RateLimit", "RateLimit-Policy", "X-RateLimit-Limit", "X-RateLimit-Remaining")


@dataclass(frozen=True, slots=True)
class Probe:
    """One request and how it is judged.

    Attributes:
        name: stable, in kebab-case.
        guards: what goes wrong without it; advisory or pitfall.
        judge: from the observation to the fault, or None.
        cure: where remedies.py has the line to change.
        method: sent as it is.
        target: sent as it is.
        headers: names and values beside Host, Authorization, Connection and Content-Length.
        body: sent with its length.
        answer: what the sidecar is asked to say, on PATH alone.
        echo: judged by what reaches the backend.
        skip: proxies that cannot be held to it.
    """

    name: str
    guards: str
    judge: Judge
    cure: str
    method: str = "GET"
    target: str = PATH
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    answer: str = ALLOW
    echo: bool = False
    skip: frozenset[Proxy] = frozenset()


_IDENTITY_FORGED: Final = tuple((name, FORGED) for name in IDENTITY)
_NO_OVERRIDE: Final = "GHSA-7x63-xv5r-3p2x (CVE-2026-40575): a spoofed X-Forwarded-Uri was believed"
_SPLIT: Final = (
    "path normalisation split view (CVE-2025-32431, CVE-2025-66490, CVE-2019-9901): the proxy's "
    "rules miss a spelling that Laravel runs"
)
_FRONT: Final = "B1: Laravel cuts /index.php off, so /index.php/api/v1/teams runs /api/v1/teams"


def _guard(name: str, target: str, cure: str, guards: str = _SPLIT) -> Probe:
    return Probe(f"guard-{name}", guards, judge.guarded, cure, target=target)


FIRST: Final = Probe(
    "asked", "an API that nobody guards, or another proxy's endpoint", judge.asked_here, "asking"
)
"""Sent before all others: if the sidecar does not see this one, it sees none."""

_REST: Final = PATH.removeprefix("/api")

GUARDS: Final = (
    _guard(
        "bare-prefix", "/api", "api", "B2: PathPrefix(`/api/`), with the slash, misses spellings"
    ),
    _guard("mcp", "/mcp", "mcp", "an MCP server that nobody guards"),
    _guard("index-php", f"/index.php{PATH}", "index-php", _FRONT),
    _guard("encoded-index-php", f"/%69ndex%2ephp{PATH}", "index-php", _FRONT),
    _guard("encoded-letter", f"/%61pi{_REST}", "spelling"),
    _guard("encoded-slash", f"/api%2F{_REST.removeprefix('/')}", "encoded-slash"),
    _guard("double-slash", f"/{PATH}", "double-slash"),
    _guard("dot-segments", f"/x/..{PATH}", "spelling"),
    _guard("encoded-dot-segments", f"/x/%2e%2e{PATH}", "spelling"),
    _guard("encoded-slash-dots", f"/x/..%2f{PATH.removeprefix('/')}", "encoded-slash"),
)

FORWARDED: Final = (
    Probe(
        "forwarded-uri",
        _NO_OVERRIDE,
        judge.told_target,
        "forwarded-uri",
        headers=(("X-Forwarded-Uri", "/api/v1/health"),),
    ),
    Probe(
        "forwarded-method",
        "B4: the client's X-Forwarded-Method decides what permission is asked for",
        judge.told_method,
        "forwarded-method",
        headers=(("X-Forwarded-Method", "OPTIONS"),),
    ),
    Probe(
        "forwarded-for-leftmost",
        "B14: the allowlist and the limits by address are the client's to choose",
        judge.not_leftmost,
        "forwarded-for",
        headers=(("X-Forwarded-For", f"{LEFTMOST}, {RIGHTMOST}"),),
    ),
    Probe(
        "forwarded-for",
        "pitfall 10: X-Forwarded-For is believed from anybody",
        judge.own_address,
        "forwarded-for",
        headers=(("X-Forwarded-For", f"{LEFTMOST}, {RIGHTMOST}"),),
    ),
    Probe(
        "foreign-headers",
        "B5: X-Real-Ip and X-Original-* are the client's word wherever they are believed",
        judge.without_foreign("x-real-ip", "x-original-url", "x-original-uri"),
        "foreign-headers",
        headers=(
            ("X-Real-Ip", LEFTMOST),
            ("X-Original-Url", "/api/v1/health"),
            ("X-Original-Uri", "/api/v1/health"),
        ),
    ),
    Probe(
        "connection-forwarded",
        "CVE-2024-45410, CVE-2021-32813: a name in Connection deletes that header on the way",
        judge.described,
        "connection",
        headers=(("Connection", "close, X-Forwarded-Uri, X-Forwarded-Method, X-Forwarded-For"),),
    ),
    Probe(
        "request-id",
        "pitfall 15: repeats of an id cost nothing, so the id must be the proxy's own",
        judge.request_id,
        "request-id",
        headers=(("X-Authz-Request-Id", FORGED), ("X-Request-Id", FORGED)),
        skip=frozenset({Proxy.TRAEFIK}),
    ),
)

QUESTION: Final = (
    Probe(
        "method",
        "pitfall 17: a DELETE is judged as the GET of the subrequest",
        judge.told_method,
        "forwarded-method",
        method="DELETE",
    ),
    Probe(
        "query",
        "B10: another query is judged than runs, method overrides among it",
        judge.told_target,
        "forwarded-uri",
        target=f"{PATH}?page=2&name=a%2Fb",
    ),
    Probe(
        "name",
        "names that Coolify accepts are refused, or judged by another spelling than runs",
        judge.told_name,
        "name",
        target=f"{PATH}/n%C3%A4me%23%E6%97%A5",
    ),
    Probe(
        "body",
        "pitfall 20: with the body's length but not the body, every POST hangs",
        judge.bodyless,
        "body",
        method="POST",
        headers=(("Content-Type", "application/json"),),
        body=b'{"doctor": "probe"}',
    ),
    Probe(
        "content-type",
        "a body, which the sidecar can't see, names another resource than a narrow token may",
        judge.content_type,
        "content-type",
        method="POST",
        headers=(("Content-Type", "application/json"),),
        body=b'{"doctor": "probe"}',
    ),
    Probe("authorization", "a token that never arrives", judge.one_authorization, "authorization"),
    Probe(
        "authorization-twice",
        "pitfall 13: sidecar and backend may each read another token",
        judge.ambiguous,
        "authorization",
        headers=(("Authorization", "Bearer doctor-second"),),
    ),
    Probe(
        "preflight",
        "pitfall 16: browsers' preflights carry no token and are refused",
        judge.preflight,
        "preflight",
        method="OPTIONS",
        headers=(("Origin", "https://app.test"), ("Access-Control-Request-Method", "PATCH")),
    ),
    Probe(
        "method-override",
        "B9: Laravel runs the method of X-HTTP-Method-Override, the sidecar has judged POST",
        judge.no_override,
        "method-override",
        method="POST",
        headers=(("X-HTTP-Method-Override", "DELETE"),),
    ),
    Probe(
        "large-header",
        "pitfall 19: a header too large must be a clean refusal, not a failure",
        judge.answered,
        "large-header",
        headers=(("X-Doctor-Filler", "f" * LARGE),),
    ),
)

_WHOLE: Final = (
    "pitfall 14: clients that back off by status and Retry-After are told the wrong thing"
)


def _denial(status: int, cure: str, *once: str) -> Probe:
    judged = judge.denied(status, *once)
    return Probe(f"denial-{status}", _WHOLE, judged, cure, answer=str(status))


DENIALS: Final = (
    _denial(400, "denial"),
    _denial(401, "denial-401", "WWW-Authenticate"),
    _denial(403, "denial"),
    _denial(404, "denial-404"),
    _denial(429, "denial-429", "Retry-After", *_QUOTAS),
    _denial(503, "denial-503", "Retry-After"),
)

_ALIAS: Final = (
    "GHSA-x677-9fxg-v5c5 (CVE-2026-54763), GHSA-f59h-q822-g45g: PHP reads this spelling as ours, "
    "and the client's value wins"
)


def _alias(name: str, sign: str, target: str) -> Probe:
    return Probe(
        f"alias-{name}",
        _ALIAS,
        judge.no_alias,
        "alias-dot" if sign == "." else "alias",
        target=target,
        headers=tuple((n.replace("-", sign), FORGED) for n in (USER_ID, "X-Forwarded-For")),
        echo=True,
    )


BACKEND: Final = (
    Probe(
        "identity-complete",
        "B7: a name that is not copied leaves the backend without it, or with the client's",
        judge.whole_identity,
        "identity",
        echo=True,
    ),
    Probe(
        "identity-forged",
        "GHSA-7r4p-vjf4-gxv4: the client's own identity header reaches the backend",
        judge.not_forged(*IDENTITY),
        "identity",
        headers=_IDENTITY_FORGED,
        echo=True,
    ),
    Probe(
        "identity-outside",
        "the rest of the site: nobody is asked, so nobody may claim to be somebody",
        judge.nobody,
        "identity-outside",
        target=OUTSIDE,
        headers=_IDENTITY_FORGED,
        echo=True,
    ),
    _alias("underscore", "_", PATH),
    _alias("dot", ".", PATH),
    _alias("underscore-outside", "_", OUTSIDE),
    _alias("dot-outside", ".", OUTSIDE),
    Probe(
        "connection-identity",
        "B8: Connection: X-Auth-User-Id deletes what the sidecar has set",
        judge.identity_kept,
        "connection",
        headers=(("Connection", f"close, {USER_ID}"),),
        echo=True,
    ),
    Probe(
        "same-target",
        "B12, B13: the sidecar judges one path, the backend runs another",
        judge.same_target,
        "same-target",
        target=f"{PATH.replace('doctor', '%64octor')}?q=%2e%2e",
        echo=True,
    ),
    Probe(
        "forwarded-host",
        "CVE-2026-35051, CVE-2026-54764: the client's own prefix and host reach the backend",
        judge.not_forged("X-Forwarded-Host", "X-Forwarded-Prefix", "X-Real-Ip"),
        "forwarded-host",
        headers=(
            ("X-Forwarded-Host", f"{FORGED}.test"),
            ("X-Forwarded-Prefix", f"/{FORGED}"),
            ("X-Real-Ip", FORGED),
        ),
        echo=True,
    ),
    Probe(
        "websocket",
        "pitfall 18: Coolify's terminals and live updates stop",
        judge.upgraded,
        "websocket",
        headers=(
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "ZG9jdG9yJ3MgcHJvYmUhIQ=="),
        ),
        echo=True,
    ),
)

PROBES: Final = (FIRST, *GUARDS, *FORWARDED, *QUESTION, *DENIALS, *BACKEND)
"""All of them, in the order they are sent."""
