"""Which route a request reaches, and whose token it carries: Coolify's order, Coolify's words.

`find_route` is row 1 of the table in README.md, `identify` row 2; rows 4 to 11 are in checks.py.
The rate limit (row 3) stands between them; each judgement says which bucket the request is charged
to, whatever the verdict, and authorize.py charges it. Pure: time and state are arguments.
"""

from dataclasses import dataclass
from functools import lru_cache
from hmac import compare_digest
from types import MappingProxyType
from typing import Final, NamedTuple, assert_never

from authsidecar.decision.allowlist import Allowlist
from authsidecar.decision.model import (
    METHODS,
    AccessRequest,
    Address,
    Allow,
    Credential,
    Deny,
    Kind,
    Reason,
    TeamId,
    TokenRecord,
    Verdict,
)
from authsidecar.decision.resources import Names, Places
from authsidecar.decision.routes import FRONT_CONTROLLER, ROUTE_UNKNOWN, Guard, Route, RouteTable
from authsidecar.times import UnixMs

METHOD_NOT_ALLOWED: Final = Reason(
    "method_not_allowed", Kind.MALFORMED, 405, "This method is not allowed here."
)
TOKEN_UNKNOWN: Final = Reason("token_unknown", Kind.UNAUTHENTICATED, 401, "Unauthenticated.")
TOKEN_DISABLED: Final = Reason("token_disabled", Kind.UNAUTHENTICATED, 401, "Unauthenticated.")
TOKEN_EXPIRED: Final = Reason("token_expired", Kind.UNAUTHENTICATED, 401, "Unauthenticated.")
RATE_LIMITED: Final = Reason("rate_limited", Kind.RATE_LIMITED, 429, "Too Many Attempts.")
MCP_DISABLED: Final = Reason("mcp_disabled", Kind.NOT_FOUND, 404, "Not found.")
STORE_UNAVAILABLE: Final = Reason(
    "store_unavailable", Kind.UNAVAILABLE, 503, "Authorization is temporarily unavailable."
)

_MEMOISED: Final = 256
"""Characters of the longest path whose route is remembered, so that junk cannot fill the memory."""

INSTANCE_TEAM: Final = TeamId(0)
"""Coolify's root team."""


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """What the operator configured.

    Attributes:
        routes: the table that decides what a route needs.
        pass_outside: whether paths outside /api and /mcp pass without identity.
        instance_team: the team whose root tokens may use the switches.
        team_isolation: whether resources that are known to be another team's are refused.
    """

    routes: RouteTable
    pass_outside: bool = False
    instance_team: TeamId = INSTANCE_TEAM
    team_isolation: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """The instance-wide state as Redis holds it.

    Attributes:
        api_enabled: the API switch.
        allowlist: who may call, by address.
        mcp_enabled: the instance's MCP switch.
        nonce: the random value that proves, in Redis, that this is still current.
    """

    api_enabled: bool
    allowlist: Allowlist
    mcp_enabled: bool
    nonce: bytes = b""


class Case(NamedTuple):
    """Everything that the checks after authentication look at.

    Without `now` the hours and the days of restrictions are left aside; without `names` and
    `places` so is what the request names.
    """

    policy: Policy
    client: Address
    route: Route
    instance: Instance
    record: TokenRecord
    names: Names | None = None
    places: Places = MappingProxyType({})
    now: UnixMs | None = None


class Judgement(NamedTuple):
    """A verdict before the rate limit, and the bucket that the request is charged to.

    Attributes:
        verdict: what is answered unless the bucket is empty.
        bucket: "principal" (the token's user and whatever else is configured), "failed",
            "unknown", "health", "feedback", "sentinel", or None: not counted.
    """

    verdict: Verdict
    bucket: str | None


def find_route(policy: Policy, request: AccessRequest) -> Route | Judgement:
    """The row that the request needs a token for, or the judgement that needs none."""
    path = request.path
    if len(path) <= _MEMOISED:
        return _remembered_route(policy, request.method, path, request.preflight)
    return _find_route(policy, request.method, path, request.preflight)


def _find_route(policy: Policy, method: str, path: str, preflight: bool) -> Route | Judgement:
    if path[: len(FRONT_CONTROLLER)].lower() == FRONT_CONTROLLER:
        return Judgement(Deny(ROUTE_UNKNOWN, "the front controller is not a route"), "unknown")
    outside = path.split("/", 2)[1] not in {"api", "mcp"}
    if preflight and (not outside or _serves(policy.routes, path)):
        return Judgement(Allow(None), None)
    route = policy.routes.find(method, path)
    if route is None and outside and policy.pass_outside:
        return Judgement(Allow(None), None)
    if route is None:
        return _unknown(method)
    match route.guard:
        case Guard.ORDINARY | Guard.SWITCH | Guard.MCP:
            return route
        case Guard.PUBLIC:
            return Judgement(Allow(None), route.bucket)
        case Guard.WRONG_METHOD:
            only = f"{route.template} takes POST"
            return Judgement(Deny(METHOD_NOT_ALLOWED, only, allowed=("POST",)), None)
        case Guard.CLOSED | Guard.ABSENT:
            return _unknown(method)
    assert_never(route.guard)


def _unknown(method: str) -> Judgement:
    return Judgement(Deny(ROUTE_UNKNOWN, f"no route for {method} at this path"), "unknown")


_remembered_route = lru_cache(maxsize=4096)(_find_route)


def _serves(routes: RouteTable, path: str) -> bool:
    return any(routes.find(method, path) for method in METHODS)


def authenticate(
    credential: Credential, record: TokenRecord | None, now: UnixMs
) -> TokenRecord | Deny:
    """The record that the credential proves to own, or the 401.

    Unknown id and wrong secret are one answer. A token is valid up to and including its
    `expires_at` (coolify-semantics section 3).
    """
    if record is None or not compare_digest(record.digest, credential.digest):
        return Deny(TOKEN_UNKNOWN, "no token with this id and secret")
    if record.disabled:
        return Deny(TOKEN_DISABLED, "the token is disabled")
    if record.expires_at is not None and now > record.expires_at:
        return Deny(TOKEN_EXPIRED, "the token's expiry has passed")
    return record


def identify(
    request: AccessRequest,
    route: Route,
    instance: Instance,
    record: TokenRecord | None,
    now: UnixMs,
) -> TokenRecord | Judgement:
    """The record that a request proves to own, or its refusal, by rows 1 (MCP) and 2."""
    if route.guard is Guard.MCP and not instance.mcp_enabled:
        return Judgement(Deny(MCP_DISABLED, "the instance's MCP switch is off"), "unknown")
    if isinstance(request.credential, Deny):
        return Judgement(request.credential, "failed")
    proven = authenticate(request.credential, record, now)
    return Judgement(proven, "failed") if isinstance(proven, Deny) else proven
