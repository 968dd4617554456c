"""Rows 4 to 11: everything that can refuse an authenticated request, one row for each check.

CHECKS is the one place that lists them. The order of the decision, the rows and hints of
`authsidecar explain`, what `whoami` tells of, and the tests of README and
docs/reference/reason-codes.md all follow it.
"""

from collections.abc import Callable
from typing import Final, NamedTuple, assert_never

from authsidecar.decision.model import (
    Allow,
    Deny,
    Kind,
    Permission,
    Principal,
    Reason,
    Role,
    TokenRecord,
)
from authsidecar.decision.permissions import satisfies
from authsidecar.decision.policy import Case, Judgement
from authsidecar.decision.resources import MOST_NAMED, owned
from authsidecar.decision.restrictions import (
    TOKEN_RESTRICTED,
    narrowed,
    outside,
    refusal,
    refusal_now,
    refusal_of_all,
)
from authsidecar.decision.routes import ROUTE_UNKNOWN, Guard

NOT_TEAM_MEMBER: Final = Reason("not_team_member", Kind.UNAUTHENTICATED, 401, "Invalid token.")
TEAM_ROLE_REQUIRED: Final = Reason(
    "team_role_required", Kind.FORBIDDEN, 403, "Missing required team role."
)
API_DISABLED: Final = Reason("api_disabled", Kind.FORBIDDEN, 403, "API is disabled.")
ADDRESS_NOT_ALLOWED: Final = Reason(
    "address_not_allowed", Kind.FORBIDDEN, 403, "You are not allowed to access the API."
)
TEAM_MCP_DISABLED: Final = Reason(
    "team_mcp_disabled", Kind.FORBIDDEN, 403, "MCP server is disabled for this team."
)
PERMISSION_MISSING: Final = Reason(
    "permission_missing", Kind.FORBIDDEN, 403, "Missing required permissions"
)
INSTANCE_TEAM_REQUIRED: Final = Reason(
    "instance_team_required", Kind.FORBIDDEN, 403, "You are not allowed to"
)
RESOURCE_NOT_FOUND: Final = Reason("resource_not_found", Kind.NOT_FOUND, 404, "not found.")

ELEVATED: Final = frozenset(Permission) - {Permission.READ}
"""Permissions that only an admin or owner may use; a token with any of them is refused to others
on every route (coolify-semantics section 4)."""

PRIVILEGED: Final = frozenset({Role.OWNER, Role.ADMIN})

SWITCH_ACTIONS: Final = {
    "/api/v1/enable": "enable the API",
    "/api/v1/disable": "disable the API",
    "/api/v1/mcp/enable": "enable the MCP server",
    "/api/v1/mcp/disable": "disable the MCP server",
}


class Passed(NamedTuple):
    """What a check that refuses nothing says.

    Attributes:
        detail: what it needed and found.
        needed: False where the request did not have to pass it.
    """

    detail: str
    needed: bool = True


class Check(NamedTuple):
    """One check.

    Attributes:
        name: its row in `authsidecar explain`.
        reason: what it denies with; the message may be completed for the request.
        denial: the refusal, or None.
        of_all: the refusal of the token whatever it asks, or None; None itself: what is checked
            depends on the route, the permission or the rate. `whoami` tells of it.
        passed: what is said where `denial` is None.
        hint: what an operator can do about a refusal.
    """

    name: str
    reason: Reason
    denial: Callable[[Case], Deny | None]
    of_all: Callable[[Case], Deny | None] | None
    passed: Callable[[Case], Passed]
    hint: str


def judge(case: Case) -> Judgement:
    """The verdict on an authenticated request, by rows 4 to 11: the same for the same case."""
    denial = first_denial(case)
    return Judgement(admission(case.record) if denial is None else denial, "principal")


def first_denial(case: Case) -> Deny | None:
    """The first check that refuses, or None: the request is allowed."""
    match case.route.guard:
        case Guard.ORDINARY | Guard.SWITCH | Guard.MCP:
            for check in CHECKS:
                if (denial := check.denial(case)) is not None:
                    return denial
            return None
        case Guard.PUBLIC | Guard.WRONG_METHOD | Guard.CLOSED | Guard.ABSENT:
            return Deny(ROUTE_UNKNOWN, "no token opens this route")  # `find_route` has answered
    assert_never(case.route.guard)


def denial_of_all(case: Case) -> Deny | None:
    """The first check that refuses the token whatever it asks of the API, or None.

    Only what depends on neither route nor permission is looked at, at the time of the case.
    """
    for check in CHECKS:
        if check.of_all is not None and (denial := check.of_all(case)) is not None:
            return denial
    return None


def _team_member(case: Case) -> Deny | None:
    """Row 4: the token's owner still belongs to the token's team."""
    if case.record.role is None or case.record.team is None:
        return Deny(NOT_TEAM_MEMBER, "the token's user is not in the token's team")
    return None


def _team_member_passed(case: Case) -> Passed:
    record = case.record
    return Passed(f"user {record.user} is {record.role} of team {record.team}")


def _team_role(case: Case) -> Deny | None:
    """Row 5: a token with more than `read` needs an admin or owner, on every route."""
    record = case.record
    if record.role in PRIVILEGED or ELEVATED.isdisjoint(record.permissions):
        return None
    elevated = " ".join(sorted(record.permissions & ELEVATED))
    return Deny(TEAM_ROLE_REQUIRED, f"the token holds {elevated}, its user's role is {record.role}")


def _team_role_passed(case: Case) -> Passed:
    elevated = sorted(case.record.permissions & ELEVATED)
    if not elevated:
        return Passed("no permission of the token needs a role")
    return Passed(f"{' '.join(elevated)}: needs owner or admin, found {case.record.role}")


def _api_enabled(case: Case) -> Deny | None:
    """Row 6: the API switch is on; the switches themselves and MCP work regardless."""
    if case.route.guard in {Guard.SWITCH, Guard.MCP} or case.instance.api_enabled:
        return None
    return Deny(API_DISABLED, "the API switch is off")


def _api_enabled_passed(case: Case) -> Passed:
    if case.route.guard in {Guard.SWITCH, Guard.MCP}:
        return Passed("this route works whatever the API switch says", needed=False)
    return Passed("the API switch is on")


def _address(case: Case) -> Deny | None:
    """Row 7: the client's address is on the allowlist; the switches work from anywhere."""
    if case.route.guard is Guard.SWITCH or case.instance.allowlist.admits(case.client):
        return None
    return Deny(ADDRESS_NOT_ALLOWED, f"{case.client} is on no entry of the allowlist")


def _address_passed(case: Case) -> Passed:
    if case.route.guard is Guard.SWITCH:
        return Passed("this route works from every address", needed=False)
    if case.instance.allowlist.everyone:
        return Passed(f"{case.client}: the allowlist admits everyone")
    return Passed(f"{case.client} is on the allowlist")


def _team_mcp(case: Case) -> Deny | None:
    """The team's MCP switch is on, where the route is MCP's."""
    if case.route.guard in {Guard.ORDINARY, Guard.SWITCH} or case.record.team_mcp:
        return None
    return Deny(TEAM_MCP_DISABLED, f"team {case.record.team} has MCP switched off")


def _team_mcp_passed(case: Case) -> Passed:
    if case.route.guard is not Guard.MCP:
        return Passed("not an MCP route", needed=False)
    return Passed(f"team {case.record.team} has MCP switched on")


def _permission(case: Case) -> Deny | None:
    """Row 8: the token holds the permission that the route needs, or one of several.

    Only MCP's route needs none; another one that names none admits nobody.
    """
    sufficient, held = case.route.sufficient, case.record.permissions
    if case.route.guard is Guard.MCP and not sufficient:
        return None
    if any(satisfies(held, one) for one in sufficient):
        return None
    reason = PERMISSION_MISSING._replace(
        message=f"{PERMISSION_MISSING.message}: {', '.join(sufficient)}"
    )
    found = " ".join(sorted(held)) or "nothing"
    detail = f"the route needs {' or '.join(sufficient)}, the token holds {found}"
    return Deny(reason, detail, sufficient)


def _permission_passed(case: Case) -> Passed:
    if case.route.permission is None:
        return Passed("the route needs no permission", needed=False)
    held = " ".join(sorted(case.record.permissions))
    return Passed(f"the route needs {' or '.join(case.route.sufficient)}, the token holds {held}")


def restriction(case: Case) -> Deny | None:
    """Row 9: what was made narrower than the permissions, for the token, its user or its team."""
    for holder, narrower in case.record.restrictions.items():
        why = refusal(narrower, case.route, case.client)
        if why is None and case.now is not None:
            why = refusal_now(narrower, case.now)
        if why is not None:
            return Deny(TOKEN_RESTRICTED, f"the {holder}'s restriction {why}")
        if case.names is not None:
            refused = outside(narrower, case.route, case.names, case.places)
            if refused is not None:
                detail = f"the {holder}'s restriction {refused.why}"
                if refused.noun is not None:
                    return not_found(refused.noun, detail)
                return Deny(TOKEN_RESTRICTED, detail, advice=refused.advice)
    return None


def _restriction_of_all(case: Case) -> Deny | None:
    for holder, narrower in case.record.restrictions.items():
        why = refusal_of_all(narrower, case.client, case.now)
        if why is not None:
            return Deny(TOKEN_RESTRICTED, f"the {holder}'s restriction {why}")
    return None


def _restriction_passed(case: Case) -> Passed:
    holders = case.record.restrictions
    if not holders:
        return Passed("neither the token nor its user or team is restricted", needed=False)
    return Passed(f"the restriction of {' and '.join(holders)} admits it")


def _instance_team(case: Case) -> Deny | None:
    """Row 10: the switches belong to the instance team."""
    wanted = case.policy.instance_team
    if case.route.guard in {Guard.ORDINARY, Guard.MCP} or case.record.team == wanted:
        return None
    action = SWITCH_ACTIONS[case.route.template]
    reason = INSTANCE_TEAM_REQUIRED._replace(message=f"{INSTANCE_TEAM_REQUIRED.message} {action}.")
    return Deny(reason, f"needs team {wanted}, the token's team is {case.record.team}")


def _instance_team_passed(case: Case) -> Passed:
    if case.route.guard is not Guard.SWITCH:
        return Passed("not a switch", needed=False)
    return Passed(f"team {case.record.team} is the instance team")


def _team_isolation(case: Case) -> Deny | None:
    """Row 11: nothing that is named is known to be another team's; unknown, Coolify decides."""
    if case.names is None or not case.policy.team_isolation:
        return None
    mine = f"the token's team is {case.record.team}"
    for one in (*case.names.resources, *case.names.others):
        place = owned(one, case.places)
        if place is not None and place.team != case.record.team:
            return not_found(one.noun, f"{one.text} belongs to team {place.team}, {mine}")
    if len(case.names.keys) > MOST_NAMED:
        return not_found("Resource", f"more than {MOST_NAMED} resources are named at once")
    return None


def not_found(noun: str, detail: str) -> Deny:
    """Coolify's 404 for something that it does not find."""
    reason = RESOURCE_NOT_FOUND._replace(message=f"{noun} {RESOURCE_NOT_FOUND.message}")
    return Deny(reason, detail)


def _team_isolation_passed(case: Case) -> Passed:
    if not case.policy.team_isolation:
        return Passed("sync.team_isolation is off", needed=False)
    names = () if case.names is None else (*case.names.resources, *case.names.others)
    if not names:
        return Passed("the request names no resource", needed=False)
    said = []
    for one in names:
        place = owned(one, case.places)
        whose = (
            "is not known to be any team's" if place is None else f"belongs to team {place.team}"
        )
        said.append(f"{one.noun} {one.text} {whose}")
    return Passed("; ".join(said))


CHECKS: Final = (
    Check(
        "team_member",
        NOT_TEAM_MEMBER,
        _team_member,
        _team_member,
        _team_member_passed,
        "`authsidecar member set` makes the user a member again",
    ),
    Check(
        "team_role",
        TEAM_ROLE_REQUIRED,
        _team_role,
        _team_role,
        _team_role_passed,
        "make the user owner or admin, or use a token with read alone",
    ),
    Check(
        "api_enabled",
        API_DISABLED,
        _api_enabled,
        _api_enabled,
        _api_enabled_passed,
        "`authsidecar api enable` switches it on",
    ),
    Check(
        "address",
        ADDRESS_NOT_ALLOWED,
        _address,
        _address,
        _address_passed,
        "`authsidecar allowlist show` shows who may call",
    ),
    Check(
        "team_mcp",
        TEAM_MCP_DISABLED,
        _team_mcp,
        None,
        _team_mcp_passed,
        "`authsidecar mcp enable --team ID` switches it on",
    ),
    Check(
        "permission",
        PERMISSION_MISSING,
        _permission,
        None,
        _permission_passed,
        "use a token that holds it; `authsidecar token create` makes one",
    ),
    Check(
        "restriction",
        TOKEN_RESTRICTED,
        restriction,
        _restriction_of_all,
        _restriction_passed,
        "`authsidecar token show ID` shows what narrows it",
    ),
    Check(
        "instance_team",
        INSTANCE_TEAM_REQUIRED,
        _instance_team,
        None,
        _instance_team_passed,
        "use a token of the instance team (coolify.instance_team)",
    ),
    Check(
        "team_isolation",
        RESOURCE_NOT_FOUND,
        _team_isolation,
        None,
        _team_isolation_passed,
        "use a token of the team that owns it",
    ),
)
"""Rows 4 to 11, in order."""


def admission(record: TokenRecord) -> Allow:
    """What a member of the token's team is admitted as."""
    # Row 4 has seen both; a record without them never gets here.
    assert record.team is not None  # noqa: S101
    assert record.role is not None  # noqa: S101
    held = record.permissions
    if record.restrictions:
        held = narrowed(held, record.restrictions)
    return Allow(
        Principal(record.user, record.team, record.role, record.token, held),
        read_sensitive=record.role in PRIVILEGED and satisfies(held, Permission.READ_SENSITIVE),
    )
