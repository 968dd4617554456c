"""What the proxy is answered: an outcome rendered as status, headers and body.

RateLimit fields as in draft-ietf-httpapi-ratelimit-headers-10, the challenge as in RFC 6750
section 3, Retry-After as in RFC 9110 section 10.2.3.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Final, NamedTuple

from authsidecar.decision.authorize import Outcome
from authsidecar.decision.credentials import TOKEN_MISSING
from authsidecar.decision.model import (
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
)
from authsidecar.decision.policy import METHOD_NOT_ALLOWED
from authsidecar.decision.proxies import headers
from authsidecar.decision.routes import MCP_PATH, ROUTE_UNKNOWN
from authsidecar.times import UnixMs, rfc3339

REALM: Final = "coolify"
MCP_REALM: Final = "mcp"
DOCS: Final = "https://coolify.io/docs"
NONE: Final = "none"
"""The identity of a request that needs none; never empty, so that no client value survives."""

VALID_UNTIL: Final = "X-Token-Valid-Until"
"""To the client: its token has another secret, and this one ends."""

UNAVAILABLE_RETRY_S: Final = 1
"""Retry-After of a 503, in seconds: Redis is asked again at once when it is back."""

Headers = tuple[tuple[str, str], ...]


def lines(*fields: tuple[str, str]) -> str:
    """Header fields as they are sent: a line each, its end included."""
    return "".join([f"{name}: {value}\r\n" for name, value in fields])


NO_STORE: Final = lines(("Cache-Control", "no-store"))
JSON: Final = lines(("Content-Type", "application/json"))

EXPOSED: Final = (
    *("Allow", "RateLimit", "RateLimit-Policy", "Retry-After", "WWW-Authenticate"),
    *("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"),
)
"""What a script may read of an answer's header, beside the few fields that it always may."""

ANY_ORIGIN: Final = lines(
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Expose-Headers", ", ".join(EXPOSED)),
)
"""Coolify puts the first on every answer; without it a browser's script cannot read why it was
refused, and without the second not when it may come back."""


class Reply(NamedTuple):
    """An answer in the native dialect: what the client of a refused request sees.

    Attributes:
        status: the HTTP status.
        fields: the header fields as `lines` writes them.
        body: JSON, or empty.
    """

    status: int
    fields: str
    body: bytes = b""

    @property
    def headers(self) -> Headers:
        """The header fields as names and values, in order."""
        pairs = [line.partition(": ") for line in self.fields.split("\r\n")[:-1]]
        return tuple((name, value) for name, _, value in pairs)


@dataclass(frozen=True, slots=True)
class Challenge:
    """WWW-Authenticate (RFC 6750 section 3).

    Attributes:
        sent: whether a token was sent: only then there is an error, but for /mcp.
        mcp: whether /mcp was asked for, where Coolify itself names a realm, and always an error.
    """

    sent: bool
    mcp: bool = False

    def header(self) -> tuple[str, str]:
        """The header as name and value."""
        tail = ', error="invalid_token"' if self.sent or self.mcp else ""
        return "WWW-Authenticate", f'Bearer realm="{MCP_REALM if self.mcp else REALM}"{tail}'


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
    quota = _quota(outcome.quotas, outcome.now) + _rotated(outcome)
    match outcome.verdict:
        case Allow() as allow:
            identity = _identity(allow.principal, allow.read_sensitive, client)
            expiry = _expiry(outcome, allow, expiry_ms) if expiry_ms else ""
            decision = f"{headers.DECISION_ID}: {decision_id}\r\n"
            return Reply(200, f"{identity}{decision}{expiry}{quota}{NO_STORE}")
        case Deny() as deny:
            if deny.reason.kind is Kind.RATE_LIMITED:
                full = _full(outcome.quotas)
                reply = refuse(deny, decision_id, limit_name=full.scope)
                quota += _retry(full, outcome.now)
            else:
                reply = refuse(deny, decision_id, mcp=outcome.route == MCP_PATH)
            return Reply(reply.status, reply.fields + quota, reply.body)


class Admission:
    """Renders admissions of one token from one address: what they share is rendered once."""

    __slots__ = ("_before", "_told")

    def __init__(
        self, allow: Allow, client: Address, counters: Sequence[tuple[str, Limit]]
    ) -> None:
        """Render what is shared.

        Args:
            allow: the verdict.
            client: the address that was judged.
            counters: scope and limit of each counter that is told of, in order.
        """
        identity = _identity(allow.principal, allow.read_sensitive, client)
        self._before = f"{identity}{headers.DECISION_ID}: "
        self._told = _told(tuple(counters))

    def fields(self, decision_id: str, states: Sequence[int], now: UnixMs) -> str:
        """The header fields that `render` gives one of them, unless the token expires soon.

        Args:
            decision_id: names the decision.
            states: of each counter what is left of it, and when it resets; what follows is of
                counters that nothing is told of.
            now: Redis's clock.
        """
        told = self._told
        if told.one:  # as nearly always
            left, wait = str(states[0]), states[1] - now
            return (
                f"{self._before}{decision_id}{told.one}{left}{told.then}{left}"
                f";t={-(-wait // 1000) if wait > 0 else 0}\r\n{NO_STORE}"
            )
        return f"{self._before}{decision_id}\r\n{told.of_all(states, now)}{NO_STORE}"


class _Told:
    """What is told of counters, but for what they hold.

    Attributes:
        one: of a single one, up to what is left of it; empty: there are others, or none.
        then: what follows, up to what is left of it again.
    """

    __slots__ = ("_limits", "_policies", "_scopes", "one", "then")

    def __init__(self, counters: Sequence[tuple[str, Limit]]) -> None:
        self._limits = [
            f"X-RateLimit-Limit: {limit.requests}\r\nX-RateLimit-Remaining: "
            for _, limit in counters
        ]
        self._scopes = [f'"{scope}";r=' for scope, _ in counters]
        policies = ", ".join([_policy(scope, limit) for scope, limit in counters])
        self._policies = f"\r\nRateLimit-Policy: {policies}\r\nRateLimit: "
        self.one = self.then = ""
        if len(counters) == 1:
            self.one = f"\r\n{self._limits[0]}"
            self.then = f"{self._policies}{self._scopes[0]}"

    def of_all(self, states: Sequence[int], now: UnixMs) -> str:
        """The header fields of several counters, the tightest first."""
        if not self._limits:
            return ""
        told: list[str] = []
        tightest, least, latest = "", inf, 0
        for limit, scope, left, reset_at in zip(
            self._limits, self._scopes, states[::2], states[1::2], strict=False
        ):
            if left < least or (left == least and reset_at > latest):
                tightest, least, latest = limit, left, reset_at
            told.append(f"{scope}{left};t={_seconds(reset_at - now)}")
        return f"{tightest}{least}{self._policies}{', '.join(told)}\r\n"


# One for all with the same limits: what is used by every request stays in the processor's caches.
_told = lru_cache(256)(_Told)


def served(outcome: Outcome, message: str) -> Reply:
    """The answer to a request that the sidecar served itself: to the client, so no identity."""
    return shown(outcome, {"message": message})


def shown(outcome: Outcome, facts: Mapping[str, object]) -> Reply:
    """The answer to a client that asked the sidecar itself: one line of ASCII."""
    body = json.dumps(facts).encode("ascii")
    quota = _quota(outcome.quotas, outcome.now) + _rotated(outcome)
    return Reply(200, f"{JSON}{quota}{ANY_ORIGIN}{NO_STORE}", body)


def preflight(methods: Sequence[str]) -> Reply:
    """What a browser is told before it asks the sidecar itself: any script may, with a token.

    Source: the Fetch standard; `*` stands for every header but Authorization.
    """
    fields = lines(
        ("Access-Control-Allow-Methods", ", ".join(methods)),
        ("Access-Control-Allow-Headers", "Authorization, *"),
        ("Access-Control-Max-Age", "86400"),
    )
    return Reply(200, f"{fields}{ANY_ORIGIN}{NO_STORE}")


def refuse(
    deny: Deny, decision_id: str, *, limit_name: str | None = None, mcp: bool = False
) -> Reply:
    """The native answer to a refusal, before any counter is told of.

    Args:
        deny: why it is refused.
        decision_id: names this decision.
        limit_name: the limit that has no room, as RateLimit-Policy names it.
        mcp: whether /mcp was asked for.
    """
    reason = deny.reason
    fields = _refusal(reason, mcp=mcp)
    if reason is METHOD_NOT_ALLOWED:
        fields = lines(("Allow", ", ".join(deny.allowed or sorted(METHODS)))) + fields
    said = _body(reason, deny.missing, limit_name, deny.advice)
    body = f'{said}, "decision_id": "{decision_id}"}}'
    return Reply(reason.status, fields, body.encode("ascii"))


@lru_cache(maxsize=256)
def _body(
    reason: Reason, missing: tuple[Permission, ...], limit_name: str | None, advice: str
) -> str:
    """A refusal's JSON, up to what is different each time."""
    body: dict[str, object] = {"message": reason.message}
    if reason == ROUTE_UNKNOWN:
        body["docs"] = DOCS
    body["code"] = reason.code
    if missing:
        body["missing_permissions"] = list(missing)
    if limit_name is not None:
        body["limit_name"] = limit_name
    if advice:
        body["detail"] = advice
    return json.dumps(body)[:-1]


@lru_cache(maxsize=256)
def _refusal(reason: Reason, *, mcp: bool) -> str:
    """The header fields of every refusal for the same reason."""
    extra = ""
    if reason.status == 401:
        extra = lines(Challenge(sent=reason is not TOKEN_MISSING, mcp=mcp).header())
    elif reason.kind is Kind.UNAVAILABLE:
        extra = lines(("Retry-After", str(UNAVAILABLE_RETRY_S)))
    return f"{JSON}{extra}{ANY_ORIGIN}{NO_STORE}"


def _rotated(outcome: Outcome) -> str:
    """Until when a secret is valid that another one has replaced."""
    if outcome.record is None or outcome.record.rotated_until is None:
        return ""
    return lines((VALID_UNTIL, rfc3339(outcome.record.rotated_until)))


def _expiry(outcome: Outcome, allow: Allow, expiry_ms: int) -> str:
    """When the token that the caller is known by expires, if that is soon."""
    if allow.principal is None or outcome.record is None:
        return ""
    at = outcome.record.expires_at
    if at is None or at - outcome.now > expiry_ms:
        return ""
    return lines((headers.TOKEN_EXPIRES, rfc3339(at)))


@lru_cache(maxsize=4096)
def _identity(who: Principal | None, read_sensitive: bool, client: Address | None) -> str:
    """What is the same on every answer to the same caller from the same address."""
    return lines(
        (headers.USER_ID, NONE if who is None else str(who.user)),
        (headers.TEAM_ID, NONE if who is None else str(who.team)),
        (headers.TEAM_ROLE, NONE if who is None else who.role.value),
        (headers.TOKEN_ID, NONE if who is None else str(who.token)),
        (headers.PERMISSIONS, (NONE if who is None else " ".join(sorted(who.permissions))) or NONE),
        (headers.READ_SENSITIVE, "true" if read_sensitive else "false"),
        (headers.CLIENT_IP, NONE if client is None else str(client)),
    )


def tightest(quotas: Sequence[Quota]) -> Quota:
    """The counter with the least room; of equal ones the one that opens last."""
    return min(quotas, key=lambda q: (q.remaining, -q.reset_at))


def _quota(quotas: Sequence[Quota], now: UnixMs) -> str:
    if len(quotas) == 1:
        least = quotas[0]
        policies, states = _policy(least.scope, least.limit), _state(least, now)
    elif quotas:
        least = tightest(quotas)
        policies = ", ".join([_policy(q.scope, q.limit) for q in quotas])
        states = ", ".join([_state(q, now) for q in quotas])
    else:
        return ""
    return (
        f"X-RateLimit-Limit: {least.limit.requests}\r\n"
        f"X-RateLimit-Remaining: {least.remaining}\r\n"
        f"RateLimit-Policy: {policies}\r\n"
        f"RateLimit: {states}\r\n"
    )


def _state(quota: Quota, now: UnixMs) -> str:
    return f'"{quota.scope}";r={quota.remaining};t={_seconds(quota.reset_at - now)}'


@lru_cache(maxsize=1024)
def _policy(scope: str, limit: Limit) -> str:
    return f'"{scope}";q={limit.requests};w={-(-limit.window_ms // 1000)}'


def _full(quotas: Sequence[Quota]) -> Quota:
    """Of the counters without room, the one that opens last."""
    return max([q for q in quotas if q.remaining == 0], key=lambda q: q.reset_at)


def _retry(full: Quota, now: UnixMs) -> str:
    """When a full counter opens: rounded up, at least a second."""
    wait = max(1, _seconds(full.reset_at - now))
    return f"Retry-After: {wait}\r\nX-RateLimit-Reset: {_seconds(full.reset_at)}\r\n"


def _seconds(milliseconds: int) -> int:
    return -(-milliseconds // 1000) if milliseconds > 0 else 0
