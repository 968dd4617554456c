"""What is decided, and in which order: Coolify's order, Coolify's words.

Everything that can refuse a readable request is here: `find_route` (row 1 of the table in
docs/reference/reason-codes.md), `identify` (row 2) and `judge` (rows 4 to 10, CHECKS). The rate
limit (row 3) stands between them; each judgement says which bucket the request is charged to,
whatever the verdict, and authorize.py charges it. Pure: time and state are arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hmac import compare_digest
from typing import Final, NamedTuple

from authsidecar.decision.allowlist import Allowlist
from authsidecar.decision.isolation import Resource
from authsidecar.decision.model import (
    METHODS,
    AccessRequest,
    Address,
    Allow,
    Credential,
    Deny,
    Kind,
    Permission,
    Principal,
    Reason,
    Role,
    TeamId,
    TokenRecord,
    Verdict,
)
from authsidecar.decision.routes import FRONT_CONTROLLER, ROUTE_UNKNOWN, Guard, Route, RouteTable
from authsidecar.times import UnixMs

METHOD_NOT_ALLOWED: Final = Reason(
    "method_not_allowed", Kind.MALFORMED, 405, "This method is not allowed here."
)
TOKEN_UNKNOWN: Final = Reason("token_unknown", Kind.UNAUTHENTICATED, 401, "Unauthenticated.")
TOKEN_EXPIRED: Final = Reason("token_expired", Kind.UNAUTHENTICATED, 401, "Unauthenticated.")
RATE_LIMITED: Final = Reason("rate_limited", Kind.RATE_LIMITED, 429, "Too Many Attempts.")
NOT_TEAM_MEMBER: Final = Reason("not_team_member", Kind.UNAUTHENTICATED, 401, "Invalid token.")
TEAM_ROLE_REQUIRED: Final = Reason(
    "team_role_required", Kind.FORBIDDEN, 403, "Missing required team role."
)
API_DISABLED: Final = Reason("api_disabled", Kind.FORBIDDEN, 403, "API is disabled.")
ADDRESS_NOT_ALLOWED: Final = Reason(
    "address_not_allowed", Kind.FORBIDDEN, 403, "You are not allowed to access the API."
)
PERMISSION_MISSING: Final = Reason(
    "permission_missing", Kind.FORBIDDEN, 403, "Missing required permissions"
)
INSTANCE_TEAM_REQUIRED: Final = Reason(
    "instance_team_required", Kind.FORBIDDEN, 403, "You are not allowed to"
)
RESOURCE_NOT_FOUND: Final = Reason("resource_not_found", Kind.NOT_FOUND, 404, "not found.")
MCP_DISABLED: Final = Reason("mcp_disabled", Kind.NOT_FOUND, 404, "Not found.")
TEAM_MCP_DISABLED: Final = Reason(
    "team_mcp_disabled", Kind.FORBIDDEN, 403, "MCP server is disabled for this team."
)
STORE_UNAVAILABLE: Final = Reason(
    "store_unavailable", Kind.UNAVAILABLE, 503, "Authorization is temporarily unavailable."
)

ELEVATED: Final = frozenset(Permission) - {Permission.READ}
"""Permissions that only an admin or owner may use; a token with any of them is refused to others
on every route (coolify-semantics section 4)."""

PRIVILEGED: Final = frozenset({Role.OWNER, Role.ADMIN})
ROOTS: Final = frozenset({Permission.ROOT, Permission.LEGACY_ROOT})

INCLUDED_BY: Final = {
    permission: ROOTS
    | {permission}
    | ({Permission.READ_SENSITIVE} if permission is Permission.READ else set())
    for permission in Permission
}
"""Which permissions satisfy a required one: itself, root, and read:sensitive for read."""

_NOWHERE: Final = frozenset({Guard.CLOSED, Guard.ABSENT})

_MEMOISED: Final = 256
"""Characters of the longest path whose route is remembered, so that junk cannot fill the memory."""

SWITCH_ACTIONS: Final = {
    "/api/v1/enable": "enable the API",
    "/api/v1/disable": "disable the API",
    "/api/v1/mcp/enable": "enable the MCP server",
    "/api/v1/mcp/disable": "disable the MCP server",
}


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
    """Everything that the checks after authentication look at."""

    policy: Policy
    client: Address
    route: Route
    instance: Instance
    record: TokenRecord
    resource: Resource | None = None


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
    if route is None or route.guard in _NOWHERE:
        return Judgement(Deny(ROUTE_UNKNOWN, f"no route for {method} at this path"), "unknown")
    if route.guard is Guard.WRONG_METHOD:
        return Judgement(
            Deny(METHOD_NOT_ALLOWED, f"{route.template} takes POST", allowed=("POST",)), None
        )
    if route.guard is Guard.PUBLIC:
        return Judgement(Allow(None), route.bucket)
    return route


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


def judge(case: Case) -> Judgement:
    """The verdict on an authenticated request, by rows 4 to 10: the same for the same case."""
    denial = first_denial(case)
    return Judgement(_admit(case.record) if denial is None else denial, "principal")


def check_team_member(case: Case) -> Deny | None:
    """Row 4: the token's owner still belongs to the token's team."""
    if case.record.role is None or case.record.team is None:
        return Deny(NOT_TEAM_MEMBER, "the token's user is not in the token's team")
    return None


def check_team_role(case: Case) -> Deny | None:
    """Row 5: a token with more than `read` needs an admin or owner, on every route."""
    record = case.record
    if record.role in PRIVILEGED or ELEVATED.isdisjoint(record.permissions):
        return None
    elevated = " ".join(sorted(record.permissions & ELEVATED))
    return Deny(TEAM_ROLE_REQUIRED, f"the token holds {elevated}, its user's role is {record.role}")


def check_api_enabled(case: Case) -> Deny | None:
    """Row 6: the API switch is on; the switches themselves and MCP work regardless."""
    if case.route.guard is Guard.ORDINARY and not case.instance.api_enabled:
        return Deny(API_DISABLED, "the API switch is off")
    return None


def check_address(case: Case) -> Deny | None:
    """Row 7: the client's address is on the allowlist; the switches work from anywhere."""
    allowlist = case.instance.allowlist
    if case.route.guard is Guard.SWITCH or allowlist.admits(case.client):
        return None
    return Deny(ADDRESS_NOT_ALLOWED, f"{case.client} is on no entry of the allowlist")


def check_team_mcp(case: Case) -> Deny | None:
    """The team's MCP switch is on, where the route is MCP's."""
    if case.route.guard is Guard.MCP and not case.record.team_mcp:
        return Deny(TEAM_MCP_DISABLED, f"team {case.record.team} has MCP switched off")
    return None


def check_permission(case: Case) -> Deny | None:
    """Row 8: the token holds the permission that the route needs, or one of several."""
    sufficient, held = case.route.sufficient, case.record.permissions
    if not sufficient or any(not INCLUDED_BY[one].isdisjoint(held) for one in sufficient):
        return None
    reason = Reason(
        PERMISSION_MISSING.code,
        PERMISSION_MISSING.kind,
        PERMISSION_MISSING.status,
        f"{PERMISSION_MISSING.message}: {', '.join(sufficient)}",
    )
    found = " ".join(sorted(held)) or "nothing"
    detail = f"the route needs {' or '.join(sufficient)}, the token holds {found}"
    return Deny(reason, detail, sufficient)


def check_instance_team(case: Case) -> Deny | None:
    """Row 9: the switches belong to the instance team."""
    wanted = case.policy.instance_team
    if case.route.guard is not Guard.SWITCH or case.record.team == wanted:
        return None
    reason = Reason(
        INSTANCE_TEAM_REQUIRED.code,
        INSTANCE_TEAM_REQUIRED.kind,
        INSTANCE_TEAM_REQUIRED.status,
        f"{INSTANCE_TEAM_REQUIRED.message} {SWITCH_ACTIONS[case.route.template]}.",
    )
    return Deny(reason, f"needs team {wanted}, the token's team is {case.record.team}")


def check_team_isolation(case: Case) -> Deny | None:
    """Row 10: what the path names is not known to be another team's; unknown, Coolify decides."""
    resource = case.resource
    if resource is None or resource.team is None or resource.team == case.record.team:
        return None
    reason = Reason(
        RESOURCE_NOT_FOUND.code,
        RESOURCE_NOT_FOUND.kind,
        RESOURCE_NOT_FOUND.status,
        f"{resource.noun} {RESOURCE_NOT_FOUND.message}",
    )
    mine = f"the token's team is {case.record.team}"
    return Deny(reason, f"{resource.uuid} belongs to team {resource.team}, {mine}")


CHECKS: Final[tuple[Callable[[Case], Deny | None], ...]] = (
    check_team_member,
    check_team_role,
    check_api_enabled,
    check_address,
    check_team_mcp,
    check_permission,
    check_instance_team,
    check_team_isolation,
)
"""Rows 4 to 10, in order: everything that can refuse an authenticated request."""


def first_denial(case: Case) -> Deny | None:
    """The first check that refuses, or None: the request is allowed."""
    for check in CHECKS:
        if (denial := check(case)) is not None:
            return denial
    return None


def _admit(record: TokenRecord) -> Allow:
    # check_team_member has seen both; a record without them never gets here.
    assert record.team is not None  # noqa: S101
    assert record.role is not None  # noqa: S101
    return Allow(
        Principal(record.user, record.team, record.role, record.token, record.permissions),
        read_sensitive=record.role in PRIVILEGED
        and not INCLUDED_BY[Permission.READ_SENSITIVE].isdisjoint(record.permissions),
    )
