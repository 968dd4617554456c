"""What the proxy is answered: an outcome rendered as status, headers and body.

RateLimit fields as in draft-ietf-httpapi-ratelimit-headers-10, the challenge as in RFC 6750
section 3, Retry-After as in RFC 9110 section 10.2.3.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from authsidecar.authorize import Outcome
from authsidecar.credentials import TOKEN_MISSING
from authsidecar.model import (
    METHODS,
    Address,
    Allow,
    Deny,
    Kind,
    Limit,
    Permission,
    Principal,
    Quota,
    Reason,
    UnixMs,
)
from authsidecar.policy import METHOD_NOT_ALLOWED
from authsidecar.proxies import headers
from authsidecar.routes import ROUTE_UNKNOWN
from authsidecar.times import rfc3339

REALM: Final = "coolify"
DOCS: Final = "https://coolify.io/docs"
NONE: Final = "none"
"""The identity of a request that needs none; never empty, so that no client value survives."""

UNAVAILABLE_RETRY_S: Final = 1
"""Retry-After of a 503, in seconds: Redis is asked again at once when it is back."""

NO_STORE: Final = ("Cache-Control", "no-store")
JSON: Final = ("Content-Type", "application/json")

ANY_ORIGIN: Final = ("Access-Control-Allow-Origin", "*")
"""Coolify puts it on every answer; without it a browser's script cannot read why it was refused."""

Headers = tuple[tuple[str, str], ...]


class Reply(NamedTuple):
    """An answer in the native dialect: what the client of a refused request sees."""

    status: int
    headers: Headers
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Challenge:
    """WWW-Authenticate (RFC 6750 section 3); an error only if a token was sent."""

    sent: bool

    def header(self) -> tuple[str, str]:
        """The header as name and value."""
        tail = ', error="invalid_token"' if self.sent else ""
        return "WWW-Authenticate", f'Bearer realm="{REALM}"{tail}'


def render(
    outcome: Outcome, client: Address | None, decision_id: str, *, expiry_ms: int = 0
) -> Reply:
    """The native answer to a readable request.

    Args:
        outcome: what was decided.
        client: the address that was judged; None where it could not be read.
        decision_id: names this decision in the log, the answer and the backend's headers.
        expiry_ms: how long before its expiry a token is said to expire, in milliseconds.
    """
    match outcome.verdict:
        case Allow() as allow:
            identity = (*_identity(allow, client, decision_id), *_expiry(outcome, allow, expiry_ms))
            return Reply(200, (*identity, *_quota(outcome.quotas, outcome.now), NO_STORE))
        case Deny() as deny:
            reply = refuse(deny, decision_id)
            extra = _quota(outcome.quotas, outcome.now)
            if deny.reason.kind is Kind.RATE_LIMITED:
                extra = (*extra, *_retry(outcome.quotas, outcome.now))
            return Reply(reply.status, (*reply.headers, *extra), reply.body)


def served(outcome: Outcome, message: str) -> Reply:
    """The answer to a request that the sidecar served itself: to the client, so no identity."""
    body = json.dumps({"message": message}).encode("ascii")
    return Reply(200, (JSON, *_quota(outcome.quotas, outcome.now), ANY_ORIGIN, NO_STORE), body)


def refuse(deny: Deny, decision_id: str) -> Reply:
    """The native answer to a refusal, before any counter is told of."""
    reason = deny.reason
    extra = _extra(reason)
    if reason is METHOD_NOT_ALLOWED:
        allowed = "POST" if deny.detail.endswith("takes POST") else ", ".join(sorted(METHODS))
        extra = (("Allow", allowed),)
    body = f'{_body(reason, deny.missing)}, "decision_id": "{decision_id}"}}'
    return Reply(reason.status, (JSON, *extra, ANY_ORIGIN, NO_STORE), body.encode("ascii"))


@lru_cache(maxsize=256)
def _body(reason: Reason, missing: tuple[Permission, ...]) -> str:
    """A refusal's JSON, up to what is different each time."""
    body: dict[str, object] = {"message": reason.message}
    if reason == ROUTE_UNKNOWN:
        body["docs"] = DOCS
    body["code"] = reason.code
    if missing:
        body["missing_permissions"] = list(missing)
    return json.dumps(body)[:-1]


def _extra(reason: Reason) -> Headers:
    if reason.status == 401:
        return (Challenge(sent=reason is not TOKEN_MISSING).header(),)
    if reason.kind is Kind.UNAVAILABLE:
        return (("Retry-After", str(UNAVAILABLE_RETRY_S)),)
    return ()


def _identity(allow: Allow, client: Address | None, decision_id: str) -> Headers:
    return (
        *_whom(allow.principal, allow.read_sensitive),
        (headers.CLIENT_IP, NONE if client is None else str(client)),
        (headers.DECISION_ID, decision_id),
    )


def _expiry(outcome: Outcome, allow: Allow, expiry_ms: int) -> Headers:
    """When the token that the caller is known by expires, if that is soon."""
    if not expiry_ms or allow.principal is None or outcome.record is None:
        return ()
    at = outcome.record.expires_at
    if at is None or at - outcome.now > expiry_ms:
        return ()
    return ((headers.TOKEN_EXPIRES, rfc3339(at)),)


@lru_cache(maxsize=4096)
def _whom(who: Principal | None, read_sensitive: bool) -> Headers:
    """What is the same on every answer to the same caller."""
    return (
        (headers.USER_ID, NONE if who is None else str(who.user)),
        (headers.TEAM_ID, NONE if who is None else str(who.team)),
        (headers.TEAM_ROLE, NONE if who is None else who.role.value),
        (headers.TOKEN_ID, NONE if who is None else str(who.token)),
        (headers.PERMISSIONS, (NONE if who is None else " ".join(sorted(who.permissions))) or NONE),
        (headers.READ_SENSITIVE, "true" if read_sensitive else "false"),
    )


def tightest(quotas: Sequence[Quota]) -> Quota:
    """The counter with the least room; of equal ones the one that opens last."""
    return min(quotas, key=lambda q: (q.remaining, -q.reset_at))


def _quota(quotas: Sequence[Quota], now: UnixMs) -> Headers:
    if not quotas:
        return ()
    least = tightest(quotas) if len(quotas) > 1 else quotas[0]
    policies = [_policy(q.scope, q.limit) for q in quotas]
    states = [f'"{q.scope}";r={q.remaining};t={_seconds(q.reset_at - now)}' for q in quotas]
    return (
        ("X-RateLimit-Limit", str(least.limit.requests)),
        ("X-RateLimit-Remaining", str(least.remaining)),
        ("RateLimit-Policy", ", ".join(policies)),
        ("RateLimit", ", ".join(states)),
    )


@lru_cache(maxsize=1024)
def _policy(scope: str, limit: Limit) -> str:
    return f'"{scope}";q={limit.requests};w={-(-limit.window_ms // 1000)}'


def _retry(quotas: Sequence[Quota], now: UnixMs) -> Headers:
    """When the last of the full counters opens: rounded up, at least a second."""
    at = max(q.reset_at for q in quotas if q.remaining == 0)
    return (
        ("Retry-After", str(max(1, _seconds(at - now)))),
        ("X-RateLimit-Reset", str(_seconds(at))),
    )


def _seconds(milliseconds: int) -> int:
    return max(0, -(-milliseconds // 1000))
