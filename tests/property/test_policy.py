"""Laws of the policy: what more can never cost, and what it can never buy."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from authsidecar.decision.allowlist import parse
from authsidecar.decision.checks import CHECKS, ELEVATED, first_denial
from authsidecar.decision.credentials import TOKEN_MISSING
from authsidecar.decision.model import (
    METHODS,
    Allow,
    Credential,
    Deny,
    Permission,
    Role,
    TeamId,
    TokenId,
    TokenRecord,
)
from authsidecar.decision.policy import Case as PolicyCase
from authsidecar.decision.policy import Instance, Judgement, Policy, find_route
from authsidecar.decision.routes import Guard, Route, RouteTable, coolify
from authsidecar.times import UnixMs
from tests.support.cases import DIGEST, NOW, code, judged, record, request

permission_denial = next(check.denial for check in CHECKS if check.name == "permission")
TABLE = coolify("4.3")
POLICY = Policy(TABLE)
PERMISSIONS = st.frozensets(st.sampled_from(Permission))
GUARDED = st.sampled_from(
    [r for r in TABLE if r.guard in {Guard.ORDINARY, Guard.SWITCH, Guard.MCP}]
)
ADDRESSES = st.one_of(
    st.sampled_from([IPv4Address("192.0.2.1"), IPv4Address("198.51.100.1")]),
    st.builds(IPv6Address, st.integers(0, 2**128 - 1)),
)
INSTANCES = st.builds(
    Instance,
    api_enabled=st.booleans(),
    allowlist=st.sampled_from(["", "192.0.2.0/24", "198.51.100.1", "2001:db8::/32"]).map(parse),
    mcp_enabled=st.booleans(),
)
RECORDS = st.builds(
    lambda permissions, role, team, team_mcp, expires, digest: record(
        permissions=permissions,
        role=role,
        team=team,
        team_mcp=team_mcp,
        expires_at=expires,
        digest=digest,
    ),
    PERMISSIONS,
    st.sampled_from([*Role, None]),
    st.sampled_from([TeamId(0), TeamId(3), None]),
    st.booleans(),
    st.sampled_from([None, UnixMs(NOW - 1), NOW, UnixMs(NOW + 1)]),
    st.sampled_from([DIGEST, DIGEST, DIGEST, bytes(32)]),
)
CREDENTIALS = st.sampled_from(
    [Credential(TokenId(67), DIGEST), Credential(TokenId(67), b"x" * 32), Deny(TOKEN_MISSING)]
)


@st.composite
def cases(draw: st.DrawFn) -> PolicyCase:
    """Any authenticated request that the policy may have to judge."""
    route = draw(GUARDED)
    return PolicyCase(POLICY, draw(ADDRESSES), route, draw(INSTANCES), draw(RECORDS))


def holding(case: PolicyCase, permissions: frozenset[Permission]) -> PolicyCase:
    return case._replace(record=replace(case.record, permissions=permissions))


def denial(case: PolicyCase) -> str:
    found = first_denial(case)
    return "allow" if found is None else found.reason.code


def said(case: PolicyCase, credential: Credential | Deny) -> Judgement:
    return judged(
        case.route,
        case.record,
        instance=case.instance,
        policy=case.policy,
        client=case.client,
        credential=credential,
    )


@given(cases(), PERMISSIONS)
def test_granting_more_never_denies_the_permission_check(
    case: PolicyCase, more: frozenset[Permission]
) -> None:
    """What passes row 8 with some permissions passes it with more."""
    if permission_denial(case) is None:
        assert permission_denial(holding(case, case.record.permissions | more)) is None


@given(cases(), PERMISSIONS)
def test_granting_more_to_an_admin_never_denies_anything(
    case: PolicyCase, more: frozenset[Permission]
) -> None:
    """Row 5 alone turns more permissions into a refusal, and only for a member."""
    if case.record.role is not Role.MEMBER and denial(case) == "allow":
        assert denial(holding(case, case.record.permissions | more)) == "allow"


@given(cases(), st.sampled_from([Permission.ROOT, Permission.LEGACY_ROOT]))
def test_root_passes_the_permission_check_and_no_other(case: PolicyCase, root: Permission) -> None:
    """With root, a refusal by row 8 goes away; every other one but row 5's stays as it was."""
    before = denial(case)
    rooted = holding(case, case.record.permissions | {root})
    assert permission_denial(rooted) is None
    after = denial(rooted)
    if before == "permission_missing":
        # Only what comes after row 8, or row 5 for a member, may still refuse.
        assert after in {"allow", "instance_team_required", "team_role_required"}
    elif case.record.role is Role.MEMBER and before != "not_team_member":
        assert after == "team_role_required"
    else:
        assert after == before


@given(cases(), CREDENTIALS)
def test_an_admission_is_earned_by_every_check(
    case: PolicyCase, credential: Credential | Deny
) -> None:
    """Default deny: an Allow means that each condition of the table held, spelled out here anew."""
    judgement = said(case, credential)
    held, route = case.record, case.route
    if isinstance(judgement.verdict, Allow):
        assert isinstance(credential, Credential)
        assert credential.digest == held.digest == DIGEST
        assert held.expires_at is None or held.expires_at >= NOW
        assert held.role is not None
        assert held.team is not None
        assert not held.permissions & ELEVATED or held.role in {Role.OWNER, Role.ADMIN}
        assert route.guard is not Guard.ORDINARY or case.instance.api_enabled
        assert route.guard is Guard.SWITCH or case.instance.allowlist.admits(case.client)
        if route.guard is Guard.MCP:
            assert case.instance.mcp_enabled
            assert held.team_mcp
        else:
            assert held.permissions
        if route.guard is Guard.SWITCH:
            assert held.permissions & {Permission.ROOT, Permission.LEGACY_ROOT}
            assert held.team == 0
        assert judgement.verdict.principal is not None
        assert judgement.verdict.principal.permissions == held.permissions
    assert judgement.bucket in {"principal", "failed", "unknown"}


@given(cases(), CREDENTIALS)
def test_who_is_not_authenticated_is_never_charged_to_a_user(
    case: PolicyCase, credential: Credential | Deny
) -> None:
    """A 401 of row 2 goes to the address, and nothing else about the token changes the answer."""
    judgement = said(case, credential)
    proven = isinstance(credential, Credential) and credential.digest == case.record.digest
    if not proven:
        assert judgement.bucket != "principal"
        stranger = case._replace(record=record(digest=case.record.digest))
        assert code(said(stranger, credential)) == code(judgement)


@given(st.sampled_from(sorted(METHODS)), st.text(max_size=30), st.booleans())
def test_no_row_no_access_for_any_path(method: str, text: str, outside: bool) -> None:
    """Below /api nothing passes without a row, whatever the path and the setting."""
    path = f"/api/{text}"
    policy = Policy(TABLE, pass_outside=outside)
    found = find_route(policy, request(method, path))
    if TABLE.find(method, path) is None:
        assert isinstance(found, Judgement)
        assert (code(found), found.bucket) == ("route_unknown", "unknown")


@given(st.text(max_size=30), CREDENTIALS, RECORDS)
def test_an_empty_table_admits_nobody(
    text: str, credential: Credential | Deny, held: TokenRecord
) -> None:
    """Without routes there is no access, with any token."""
    found = find_route(Policy(RouteTable(())), request("GET", f"/{text}", credential=credential))
    assert isinstance(found, Judgement)
    assert code(found) == "route_unknown"


SEGMENTS = st.sampled_from(["a", "b", "{x}", "{y}"])
TEMPLATES = st.lists(SEGMENTS, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
ROWS = st.lists(
    st.builds(
        Route,
        st.sampled_from(["GET", "POST"]),
        TEMPLATES,
        st.just(Guard.ORDINARY),
        st.sampled_from(Permission),
    ),
    max_size=12,
)


def matches(route: Route, method: str, path: str) -> bool:
    """The slow and obvious way."""
    segments = path.split("/")[1:]
    return (
        route.method == ("GET" if method == "HEAD" else method)
        and len(segments) == len(route.segments)
        and all(
            (ours.startswith("{") and bool(theirs)) or ours == theirs
            for ours, theirs in zip(route.segments, segments, strict=True)
        )
    )


@given(
    ROWS,
    st.sampled_from(["GET", "HEAD", "POST", "PUT"]),
    st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=4),
)
def test_the_first_row_that_matches_wins(
    rows: list[Route], method: str, segments: list[str]
) -> None:
    """The tree finds exactly the row that a walk down the list finds."""
    path = "/" + "/".join(segments)
    slow = next((row for row in rows if matches(row, method, path)), None)
    assert RouteTable(rows).find(method, path) is slow
