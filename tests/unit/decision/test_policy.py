"""Each check by itself, their order, and which bucket a request is charged to."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from authsidecar.decision.allowlist import parse
from authsidecar.decision.checks import (
    ADDRESS_NOT_ALLOWED,
    API_DISABLED,
    CHECKS,
    ELEVATED,
    NOT_TEAM_MEMBER,
    PRIVILEGED,
    RESOURCE_NOT_FOUND,
    TEAM_ROLE_REQUIRED,
    Check,
    admission,
    denial_of_all,
    first_denial,
)
from authsidecar.decision.credentials import TOKEN_MISSING
from authsidecar.decision.model import (
    DAMAGED,
    METHODS,
    Allow,
    Deny,
    Permission,
    Place,
    Principal,
    ResourceKind,
    Restriction,
    Role,
    TeamId,
    TokenId,
    TokenRecord,
    UserId,
)
from authsidecar.decision.permissions import INCLUDED_BY
from authsidecar.decision.policy import (
    MCP_DISABLED,
    METHOD_NOT_ALLOWED,
    TOKEN_DISABLED,
    TOKEN_EXPIRED,
    TOKEN_UNKNOWN,
    Case,
    Judgement,
    Policy,
    find_route,
)
from authsidecar.decision.resources import MOST_NAMED, Named, Names
from authsidecar.decision.restrictions import HIDDEN_BODY, TOKEN_RESTRICTED
from authsidecar.decision.routes import ROUTE_UNKNOWN, Guard, Route, RouteTable, coolify, extra
from authsidecar.times import UnixMs, rfc3339
from tests.support.cases import (
    ENABLE,
    MCP,
    NOW,
    OPEN,
    POLICY,
    READ,
    code,
    judged,
    record,
    request,
)

ROUTES = Policy(coolify("4.3"))
ALL = tuple(Permission)
CLIENT = request().client
ISOLATING = replace(POLICY, team_isolation=True)


def needing(permission: str) -> Route:
    return Route("GET", "/api/v1/thing", Guard.ORDINARY, Permission(permission))


def of_team(team: int | None) -> dict[str, Any]:
    """A request that names a server of this team; None: it is not known whose it is."""
    names = Names((Named(frozenset({ResourceKind.SERVER}), "u1"),))
    place = None if team is None else Place(TeamId(team), ResourceKind.SERVER)
    return {"policy": ISOLATING, "names": names, "places": {"u1": place}}


def outcome(policy: Policy, method: str, path: str, **changed: object) -> tuple[str, str | None]:
    """Of a request that needs no token: its code and its bucket, with nothing remembered."""
    found = find_route(replace(policy), request(method, path, **changed))
    assert isinstance(found, Judgement)
    return code(found), found.bucket


# Rows 0 and 1: the route


def test_a_route_that_needs_a_token_is_handed_on() -> None:
    """The row itself, to be judged by."""
    found = find_route(ROUTES, request("GET", "/api/v1/teams"))
    assert isinstance(found, Route)
    assert (found.template, found.permission) == ("/api/v1/teams", Permission.READ)


@pytest.mark.parametrize("path", ["/api/v1/nothing", "/api", "/api/v1", "/", "/login", "/MCP"])
def test_no_row_no_access(path: str) -> None:
    """404, counted in the bucket of unknown routes."""
    assert outcome(ROUTES, "GET", path) == ("route_unknown", "unknown")


@pytest.mark.parametrize("long", ["", "x" * 300])
def test_a_path_is_as_good_as_its_row_however_long_it_is(long: str) -> None:
    """Routes of short paths are remembered, those of long ones are not."""
    found = find_route(ROUTES, request("GET", f"/api/v1/servers/u{long}"))
    assert isinstance(found, Route)
    assert found.template == "/api/v1/servers/{uuid}"
    assert outcome(ROUTES, "OPTIONS", f"/api/v1/u{long}", preflight=True) == ("allow", None)
    assert outcome(ROUTES, "GET", f"/api/v1/u{long}") == ("route_unknown", "unknown")


CLOSED = Policy(extra("PATCH /web deny", RouteTable(())))
DETAILS = [
    ("GET", "/index.php", Deny(ROUTE_UNKNOWN, "the front controller is not a route"), "unknown"),
    ("GET", "/api/none", Deny(ROUTE_UNKNOWN, "no route for GET at this path"), "unknown"),
    ("PATCH", "/web", Deny(ROUTE_UNKNOWN, "no route for PATCH at this path"), "unknown"),
    ("GET", "/mcp", Deny(METHOD_NOT_ALLOWED, "/mcp takes POST", allowed=("POST",)), None),
]


@pytest.mark.parametrize(("method", "path", "verdict", "bucket"), DETAILS)
def test_a_refusal_without_a_token_says_why(
    method: str, path: str, verdict: Deny, bucket: str | None
) -> None:
    """In the log, and which methods there are."""
    policy = replace(CLOSED if path == "/web" else ROUTES)
    assert find_route(policy, request(method, path)) == Judgement(verdict, bucket)


@pytest.mark.parametrize("method", sorted(METHODS - {"GET", "HEAD"}))
def test_another_method_of_a_known_path_is_unknown(method: str) -> None:
    """Coolify has no 405 of its own here."""
    assert outcome(ROUTES, method, "/api/v1/version") == ("route_unknown", "unknown")


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_mcp_takes_post_alone(method: str) -> None:
    """GET and DELETE are 405, and HEAD goes by the GET row."""
    assert outcome(ROUTES, method, "/mcp") == ("method_not_allowed", None)


@pytest.mark.parametrize(
    ("method", "path", "bucket"),
    [
        ("GET", "/api/health", "health"),
        ("HEAD", "/api/v1/health", "health"),
        ("POST", "/api/feedback", "feedback"),
        ("POST", "/api/v1/sentinel/push", "sentinel"),
    ],
)
def test_public_routes_pass_in_their_own_bucket(method: str, path: str, bucket: str) -> None:
    """No token is looked at, whatever it is."""
    assert outcome(ROUTES, method, path) == ("allow", bucket)
    assert outcome(ROUTES, method, path, credential=Deny(TOKEN_MISSING)) == ("allow", bucket)


@pytest.mark.parametrize(
    "path",
    [
        "/index.php",
        "/index.php/api/v1/teams",
        "/INDEX.php/api/v1/teams",
        "/index.phpx",
        "/iNdEx.PhP",
    ],
)
@pytest.mark.parametrize("pass_outside", [True, False])
def test_the_front_controller_is_never_a_route(path: str, pass_outside: bool) -> None:
    """Symfony cuts it off; not even a preflight or an open outside gets through."""
    policy = replace(ROUTES, pass_outside=pass_outside)
    assert outcome(policy, "GET", path) == ("route_unknown", "unknown")
    assert outcome(policy, "OPTIONS", path, preflight=True) == ("route_unknown", "unknown")


@pytest.mark.parametrize("path", ["/", "/login", "/apis/x", "/API/v1/teams", "/mcpx"])
def test_paths_outside_pass_only_where_the_operator_says_so(path: str) -> None:
    """`outside: pass` is for the first segments that are neither api nor mcp, without identity."""
    assert outcome(ROUTES, "GET", path)[0] == "route_unknown"
    policy = replace(ROUTES, pass_outside=True)
    assert outcome(policy, "GET", path) == ("allow", None)
    assert outcome(policy, "GET", "/api/v1/nothing") == ("route_unknown", "unknown")
    assert outcome(policy, "GET", "/api") == ("route_unknown", "unknown")


def test_a_preflight_passes_uncounted() -> None:
    """CORS asks without a token; outside, only where the operator's own rows serve the path."""
    assert outcome(ROUTES, "OPTIONS", "/api/v1/teams", preflight=True) == ("allow", None)
    assert outcome(ROUTES, "OPTIONS", "/api/v1/teams") == ("route_unknown", "unknown")
    assert outcome(ROUTES, "OPTIONS", "/web", preflight=True)[0] == "route_unknown"
    policy = Policy(extra("POST /web read", RouteTable(())))
    assert outcome(policy, "OPTIONS", "/web", preflight=True) == ("allow", None)


def test_a_closed_row_is_as_if_there_were_none() -> None:
    """404, not 403: what is closed is not told apart from what never was."""
    policy = Policy(extra("GET /api/v1/teams deny\nGET /web deny", coolify("4.3")))
    assert outcome(policy, "GET", "/api/v1/teams") == ("route_unknown", "unknown")
    assert outcome(replace(policy, pass_outside=True), "GET", "/web")[0] == "route_unknown"


# Row 2: who it is


def test_an_unknown_id_and_a_wrong_secret_are_one_answer() -> None:
    """The very same refusal, charged to the address."""
    wrong = judged(READ, record(digest=bytes(32)))
    unknown = judged(READ, credential=Deny(TOKEN_MISSING))
    assert (code(wrong), wrong.bucket) == ("token_unknown", "failed")
    assert (code(unknown), unknown.bucket) == ("token_missing", "failed")


@pytest.mark.parametrize(
    ("expires_in", "expected"),
    [(None, "allow"), (1, "allow"), (0, "allow"), (-1, "token_expired")],
)
def test_a_token_is_valid_up_to_and_including_its_expiry(
    expires_in: int | None, expected: str
) -> None:
    """The last millisecond counts as Coolify counts it."""
    expires = None if expires_in is None else UnixMs(NOW + expires_in)
    judgement = judged(READ, record(expires_at=expires))
    assert code(judgement) == expected
    assert judgement.bucket == ("failed" if expected == "token_expired" else "principal")


@pytest.mark.parametrize(
    ("route", "held", "off", "refused"),
    [
        (READ, {"digest": bytes(32)}, {}, Deny(TOKEN_UNKNOWN, "no token with this id and secret")),
        (READ, {"disabled": True}, {}, Deny(TOKEN_DISABLED, "the token is disabled")),
        (
            READ,
            {"expires_at": UnixMs(NOW - 1)},
            {},
            Deny(TOKEN_EXPIRED, "the token's expiry has passed"),
        ),
        (
            MCP,
            {},
            {"mcp_enabled": False},
            Deny(MCP_DISABLED, "the instance's MCP switch is off"),
        ),
    ],
)
def test_who_is_not_identified_learns_why_from_the_log(
    route: Route, held: dict[str, Any], off: dict[str, Any], refused: Deny
) -> None:
    """The verdict has the reason, and words that tell of no secret."""
    instance = replace(OPEN, **off)
    verdict = judged(route, record(**held), instance=instance).verdict
    assert verdict == refused


def test_an_expired_token_with_a_wrong_secret_is_unknown() -> None:
    """Only who holds the secret learns that it has expired."""
    assert code(judged(READ, record(digest=bytes(32), expires_at=UnixMs(1)))) == "token_unknown"


# Rows 4 to 9, one by one


@pytest.mark.parametrize("missing", ["role", "team"])
@pytest.mark.parametrize("route", [READ, ENABLE, MCP])
def test_row_4_a_token_needs_its_team(missing: str, route: Route) -> None:
    """Membership, user or team is gone: 401 in Coolify's words, counted against the user."""
    judgement = judged(route, record("root", team=TeamId(0) if missing == "role" else None))
    if missing == "role":
        judgement = judged(route, record("root", role=None))
    assert (code(judgement), judgement.bucket) == ("not_team_member", "principal")
    assert isinstance(judgement.verdict, Deny)
    assert (judgement.verdict.reason.status, judgement.verdict.reason.message) == (
        401,
        "Invalid token.",
    )


@pytest.mark.parametrize("permission", ALL)
@pytest.mark.parametrize("role", list(Role))
def test_row_5_more_than_read_needs_an_admin_or_owner(permission: Permission, role: Role) -> None:
    """Even on a route that needs only `read`, with a token that also holds it."""
    held = record("read", permission, role=role)
    refused = permission is not Permission.READ and role is Role.MEMBER
    assert code(judged(READ, held)) == ("team_role_required" if refused else "allow")


def test_row_6_the_switch_stops_ordinary_routes_alone() -> None:
    """enable and disable must work while the API is off; MCP has a switch of its own."""
    off = replace(OPEN, api_enabled=False)
    assert code(judged(READ, instance=off)) == "api_disabled"
    assert code(judged(ENABLE, record("root", team=TeamId(0)), instance=off)) == "allow"
    assert code(judged(MCP, instance=off)) == "allow"


def test_row_7_the_allowlist_stops_all_but_the_switches() -> None:
    """An administrator who locked everybody out can still let them in."""
    closed = replace(OPEN, allowlist=parse("198.51.100.0/24"))
    assert code(judged(READ, instance=closed)) == "address_not_allowed"
    assert code(judged(MCP, instance=closed)) == "address_not_allowed"
    assert code(judged(ENABLE, record("root", team=TeamId(0)), instance=closed)) == "allow"
    inside = ip_address("198.51.100.7")
    assert code(judged(READ, instance=closed, client=inside)) == "allow"


INCLUDES = {
    ("read", "read:sensitive"),
    *((needed, root) for needed in ALL for root in ("root", "*")),
    *((p, p) for p in ALL),
}


@pytest.mark.parametrize("needed", ALL)
@pytest.mark.parametrize("held", ALL)
def test_row_8_nothing_but_root_and_read_sensitive_includes_another(
    needed: Permission, held: Permission
) -> None:
    """All forty-nine pairs; a refusal names what was missing, in the words of the documentation."""
    judgement = judged(needing(needed), record(held))
    allowed = (needed, held) in INCLUDES
    assert code(judgement) == ("allow" if allowed else "permission_missing")
    if isinstance(judgement.verdict, Deny):
        assert judgement.verdict.missing == (needed,)
        assert judgement.verdict.reason.message == f"Missing required permissions: {needed}"


def test_row_8_an_empty_token_holds_nothing() -> None:
    """No permission at all is denied everywhere a permission is needed."""
    for needed in ALL:
        held = record(permissions=frozenset())
        assert code(judged(needing(needed), held)) == "permission_missing"


@pytest.mark.parametrize(
    ("path", "action"),
    [
        ("/api/v1/enable", "enable the API"),
        ("/api/v1/disable", "disable the API"),
        ("/api/v1/mcp/enable", "enable the MCP server"),
        ("/api/v1/mcp/disable", "disable the MCP server"),
    ],
)
def test_row_9_the_switches_belong_to_the_instance_team(path: str, action: str) -> None:
    """A root token of another team is refused in Coolify's words; the team is configurable."""
    route = Route("POST", path, Guard.SWITCH, Permission.ROOT)
    judgement = judged(route, record("root"))
    assert code(judgement) == "instance_team_required"
    assert isinstance(judgement.verdict, Deny)
    assert judgement.verdict.reason.message == f"You are not allowed to {action}."
    assert code(judged(route, record("root", team=TeamId(0)))) == "allow"
    other = replace(POLICY, instance_team=TeamId(3))
    assert code(judged(route, record("root"), policy=other)) == "allow"
    assert code(judged(route, record("root", team=TeamId(0)), policy=other)) == (
        "instance_team_required"
    )


def test_mcp_has_two_switches() -> None:
    """The instance's, off, hides the route from everybody; the team's, off, is a 403."""
    off = replace(OPEN, mcp_enabled=False)
    hidden = judged(MCP, credential=Deny(TOKEN_MISSING), instance=off)
    assert (code(hidden), hidden.bucket) == ("mcp_disabled", "unknown")
    assert code(judged(MCP, record(team_mcp=False))) == "team_mcp_disabled"
    assert code(judged(READ, record(team_mcp=False), instance=off)) == "allow"
    assert code(judged(MCP, record(permissions=frozenset()))) == "allow"


# The order


def test_the_first_check_that_refuses_has_the_word() -> None:
    """Everything wrong at once, mended from the top one by one: codes in Coolify's order."""
    shut = replace(OPEN, api_enabled=False, allowlist=parse("198.51.100.1"))
    route = needing("deploy")
    wrong = {"digest": bytes(32), "expires_at": UnixMs(1), "role": None, "team": None}
    said = [code(judged(route, record("write", **wrong), instance=shut))]
    for mended in (
        {"digest": record().digest},
        {"expires_at": None},
        {"team": TeamId(3), "role": Role.MEMBER},
        {"role": Role.ADMIN},
    ):
        wrong |= mended
        said.append(code(judged(route, record("write", **wrong), instance=shut)))
    held = record("write", **wrong)
    half = replace(shut, api_enabled=True)
    said.append(code(judged(route, held, instance=half)))
    said.append(code(judged(route, held)))
    said.append(code(judged(route, record("deploy", **wrong))))
    assert said == [
        "token_unknown",
        "token_expired",
        "not_team_member",
        "team_role_required",
        "api_disabled",
        "address_not_allowed",
        "permission_missing",
        "allow",
    ]


@pytest.mark.parametrize(
    ("held", "passes"),
    [("write", True), ("deploy", True), ("root", True), ("*", True), ("read", False)],
)
def test_of_several_permissions_each_suffices(held: str, passes: bool) -> None:
    """A refusal names them all, as Coolify does."""
    either = replace(needing("write"), alternatives=(Permission.DEPLOY,))
    judgement = judged(either, record(held, role=Role.OWNER))
    assert code(judgement) == ("allow" if passes else "permission_missing")
    if isinstance(judgement.verdict, Deny):
        denial = judgement.verdict
        assert denial.reason.message == "Missing required permissions: write, deploy"
        assert denial.missing == (Permission.WRITE, Permission.DEPLOY)
        assert denial.detail == "the route needs write or deploy, the token holds read"


def test_the_permission_is_said_before_the_instance_team() -> None:
    """Row 8 before rows 9 and 10."""
    assert code(judged(ENABLE, record("write"))) == "permission_missing"
    assert [check.name for check in CHECKS][-4:] == [
        "permission",
        "restriction",
        "instance_team",
        "team_isolation",
    ]


@pytest.mark.parametrize(
    "held",
    [record("read"), record("write"), record("read", role=None), record(permissions=frozenset())],
)
def test_whatever_rows_4_to_9_say_the_user_is_charged(held: TokenRecord) -> None:
    """A refused request of a known token is no free probe."""
    assert judged(needing("deploy"), held).bucket == "principal"


@pytest.mark.parametrize(
    "guard", sorted(set(Guard) - {Guard.ORDINARY, Guard.SWITCH, Guard.MCP, Guard.PUBLIC})
)
def test_what_is_no_route_for_tokens_admits_none(guard: Guard) -> None:
    """No token opens it: neither when the route is looked for, nor if that were left out."""
    shut = Route("GET", "/api/v1/teams", guard)
    table = Policy(RouteTable([shut]))
    code_of, _ = outcome(table, "GET", "/api/v1/teams")
    assert code_of == ("method_not_allowed" if guard is Guard.WRONG_METHOD else "route_unknown")
    assert code(judged(shut, record("root"), policy=table)) == "route_unknown"


def test_a_public_route_is_judged_without_a_token_or_not_at_all() -> None:
    """A token that is judged on it all the same gains no identity."""
    public = Route("GET", "/api/health", Guard.PUBLIC, bucket="health")
    assert code(judged(public, record("root"))) == "route_unknown"


def test_an_ordinary_route_without_a_permission_admits_nobody() -> None:
    """Only MCP's route needs none."""
    bare = Route("GET", "/api/v1/thing", Guard.ORDINARY)
    assert code(judged(bare, record("root"))) == "permission_missing"
    assert code(judged(MCP, record("read"))) == "allow"


@pytest.mark.parametrize("path", ["/mcp/x", "/mcp/", "/api", "/api/x", "/mcp", "/api/v9/teams"])
@pytest.mark.parametrize("method", sorted(METHODS - {"OPTIONS"}))
def test_an_open_outside_ends_at_api_and_mcp(method: str, path: str) -> None:
    """With `outside: pass`, what is below /api and /mcp has a row of its own or is refused."""
    found = find_route(replace(ROUTES, pass_outside=True), request(method, path))
    if isinstance(found, Judgement):
        assert code(found) in {"route_unknown", "method_not_allowed"}
    else:
        assert found.guard is Guard.MCP


# Every check


# Cases that one check after the other refuses.
REFUSED: dict[str, dict[str, Any]] = {
    "team_member": {"held": record("read", role=None)},
    "team_role": {"held": record("write", role=Role.MEMBER)},
    "api_enabled": {"instance": replace(OPEN, api_enabled=False)},
    "address": {"instance": replace(OPEN, allowlist=parse("10.0.0.0/8"))},
    "team_mcp": {"route": MCP, "held": record("read", team_mcp=False)},
    "permission": {"route": needing("write")},
    "restriction": {"route": READ, "held": record("read", restrictions={"token": DAMAGED})},
    "instance_team": {"route": ENABLE, "held": record("root")},
    "team_isolation": of_team(9),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_check_is_one_row(check: Check) -> None:
    """It denies with its own reason, says something when passed, and helps an operator."""
    case = case_of(REFUSED[check.name])
    denial = first_denial(case)
    assert denial is not None
    assert denial.reason.code == check.reason.code
    assert denial.reason.message.startswith(check.reason.message) or (
        denial.reason.message.endswith(check.reason.message)
    )
    fine = Case(POLICY, CLIENT, READ, OPEN, record("read"))
    assert check.denial(fine) is None
    assert check.passed(fine).detail
    assert check.hint


DENIED = {
    "team_member": "the token's user is not in the token's team",
    "team_role": "the token holds write, its user's role is member",
    "api_enabled": "the API switch is off",
    "address": "192.0.2.1 is on no entry of the allowlist",
    "team_mcp": "team 3 has MCP switched off",
    "permission": "the route needs write, the token holds read",
    "restriction": "the token's restriction cannot be read, so it admits nothing",
    "instance_team": "needs team 0, the token's team is 3",
    "team_isolation": "u1 belongs to team 9, the token's team is 3",
}
ROOT = record("write", "root", team=TeamId(0))
NARROW = replace(OPEN, allowlist=parse("192.0.2.0/24"))
PASSED = [
    ("team_member", {}, True, "user 7 is owner of team 3"),
    ("restriction", {}, False, "neither the token nor its user or team is restricted"),
    ("team_role", {}, True, "no permission of the token needs a role"),
    ("team_role", {"held": ROOT}, True, "root write: needs owner or admin, found owner"),
    ("api_enabled", {}, True, "the API switch is on"),
    ("api_enabled", {"route": MCP}, False, "this route works whatever the API switch says"),
    ("api_enabled", {"route": ENABLE}, False, "this route works whatever the API switch says"),
    ("address", {}, True, "192.0.2.1: the allowlist admits everyone"),
    ("address", {"instance": NARROW}, True, "192.0.2.1 is on the allowlist"),
    ("address", {"route": ENABLE}, False, "this route works from every address"),
    ("team_mcp", {}, False, "not an MCP route"),
    ("team_mcp", {"route": MCP}, True, "team 3 has MCP switched on"),
    ("permission", {"held": ROOT}, True, "the route needs read, the token holds root write"),
    ("permission", {"route": MCP}, False, "the route needs no permission"),
    ("instance_team", {}, False, "not a switch"),
    ("instance_team", {"route": ENABLE, "held": ROOT}, True, "team 0 is the instance team"),
    ("team_isolation", {}, False, "sync.team_isolation is off"),
    (
        "team_isolation",
        {"policy": ISOLATING},
        False,
        "the request names no resource",
    ),
    (
        "team_isolation",
        of_team(3),
        True,
        "Server u1 belongs to team 3",
    ),
    (
        "team_isolation",
        of_team(None),
        True,
        "Server u1 is not known to be any team's",
    ),
]


def case_of(how: dict[str, Any]) -> Case:
    full: dict[str, Any] = {
        "policy": POLICY,
        "route": READ,
        "instance": OPEN,
        "held": record("read"),
    } | how
    return Case(
        full["policy"],
        CLIENT,
        full["route"],
        full["instance"],
        full["held"],
        full.get("names"),
        full.get("places", {}),
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_denial_says_what_was_needed_and_found(check: Check) -> None:
    """In the log and in `explain`."""
    denial = check.denial(case_of(REFUSED[check.name]))
    assert denial is not None
    assert denial.detail == DENIED[check.name]


@pytest.mark.parametrize(("name", "how", "needed", "detail"), PASSED)
def test_a_passed_check_says_what_it_needed_and_found(
    name: str, how: dict[str, Any], needed: bool, detail: str
) -> None:
    """Or that the request did not have to pass it."""
    [check] = [check for check in CHECKS if check.name == name]
    assert check.denial(case_of(how)) is None
    assert check.passed(case_of(how)) == (detail, needed)


def test_checks_differ_in_name_and_code() -> None:
    """Each is told from the others in `explain`, in the body and in the metrics."""
    for said in ([c.name for c in CHECKS], [c.reason.code for c in CHECKS]):
        assert len(set(said)) == len(CHECKS)
    assert set(REFUSED) == {check.name for check in CHECKS}


RESTRICTED = {"token": Restriction(resources=frozenset({"u1"}))}
SERVER_ROUTE = Route("GET", "/api/v1/servers/{uuid}", Guard.ORDINARY, Permission.READ)
SERVER = Named(frozenset({ResourceKind.SERVER}), "u2")
HERE = {"u2": Place(TeamId(3), ResourceKind.SERVER)}


@pytest.mark.parametrize(
    ("names", "denial"),
    [
        (
            Names((SERVER,)),
            Deny(
                RESOURCE_NOT_FOUND._replace(message="Server not found."),
                "the token's restriction has not Server u2 within it",
            ),
        ),
        (
            Names((SERVER,), body=True),
            Deny(
                TOKEN_RESTRICTED,
                "the token's restriction does not admit a body that can't be seen",
                advice=HIDDEN_BODY,
            ),
        ),
    ],
)
def test_what_is_named_outside_a_restriction_is_refused(names: Names, denial: Deny) -> None:
    """Coolify's 404 of it, or how to ask instead; the log has whose restriction it is."""
    held = record("read", restrictions=RESTRICTED)
    assert first_denial(Case(POLICY, CLIENT, SERVER_ROUTE, OPEN, held, names, HERE)) == denial
    free = record("read")
    assert first_denial(Case(POLICY, CLIENT, SERVER_ROUTE, OPEN, free, names, HERE)) is None


def test_a_restriction_is_held_against_the_time_where_there_is_one() -> None:
    """Else against the rest of it alone; the first holder that refuses is told."""
    over = Restriction(until=NOW)
    held = record("read", restrictions={"user": Restriction(), "team": over})
    case = Case(POLICY, CLIENT, READ, OPEN, held)
    assert first_denial(case) is None
    assert first_denial(case._replace(now=NOW)) is None
    denial = first_denial(case._replace(now=UnixMs(NOW + 1)))
    assert denial == Deny(TOKEN_RESTRICTED, f"the team's restriction ended {rfc3339(NOW)}")


@pytest.mark.parametrize(
    ("name", "denial"),
    [
        ("team_member", Deny(NOT_TEAM_MEMBER, DENIED["team_member"])),
        ("team_role", Deny(TEAM_ROLE_REQUIRED, DENIED["team_role"])),
        ("api_enabled", Deny(API_DISABLED, DENIED["api_enabled"])),
        ("address", Deny(ADDRESS_NOT_ALLOWED, DENIED["address"])),
        ("team_mcp", None),
        ("permission", None),
        ("restriction", Deny(TOKEN_RESTRICTED, DENIED["restriction"])),
        ("instance_team", None),
        ("team_isolation", None),
    ],
)
def test_what_refuses_a_token_on_every_route_is_told(name: str, denial: Deny | None) -> None:
    """Only what depends on neither route nor permission."""
    assert denial_of_all(case_of(REFUSED[name])) == denial


def test_a_restriction_refuses_all_by_its_time_and_networks() -> None:
    """At the time of the case, for each holder."""
    elsewhere = Restriction(networks=(ip_network("10.0.0.0/8"),))
    early = Restriction(not_before=UnixMs(NOW + 1))
    for narrower, why in (
        (elsewhere, "does not admit 192.0.2.1"),
        (early, f"begins {rfc3339(UnixMs(NOW + 1))}"),
    ):
        held = record("read", restrictions={"token": Restriction(), "user": narrower})
        case = Case(POLICY, CLIENT, READ, OPEN, held, now=NOW)
        assert denial_of_all(case) == Deny(TOKEN_RESTRICTED, f"the user's restriction {why}")


def test_a_denial_names_all_permissions_that_are_held() -> None:
    """In their order; for the role only those that need one; `nothing` where there are none."""
    empty = record(permissions=frozenset())
    denial = first_denial(case_of({"held": empty}))
    assert denial is not None
    assert denial.detail == "the route needs read, the token holds nothing"
    denial = first_denial(case_of({"route": needing("deploy"), "held": record("write", "read")}))
    assert denial is not None
    assert denial.detail == "the route needs deploy, the token holds read write"
    odd = record("write", "read", "deploy", role=Role.MEMBER)
    denial = first_denial(case_of({"held": odd}))
    assert denial == Deny(
        TEAM_ROLE_REQUIRED, "the token holds deploy write, its user's role is member"
    )


def test_a_check_that_is_passed_names_all_that_it_looked_at() -> None:
    """Permissions that suffice, holders of restrictions, resources of path and query."""
    passed = {check.name: check.passed for check in CHECKS}
    either = replace(READ, alternatives=(Permission.WRITE,))
    assert passed["permission"](case_of({"route": either, "held": ROOT})).detail == (
        "the route needs read or write, the token holds root write"
    )
    held = record("read", restrictions={"token": Restriction(), "team": Restriction()})
    assert passed["restriction"](case_of({"held": held})) == (
        "the restriction of token and team admits it",
        True,
    )
    two = Names((SERVER,), (Named(frozenset({ResourceKind.PROJECT}), "p"),))
    case = case_of({"policy": ISOLATING, "names": two, "places": HERE})
    assert passed["team_isolation"](case) == (
        "Server u2 belongs to team 3; Project p is not known to be any team's",
        True,
    )


def test_what_the_query_names_is_another_teams_as_well() -> None:
    """Beside what the path names; whether its text is a project's or a server's."""
    names = Names((SERVER,), (Named(frozenset({ResourceKind.PROJECT}), "p"),))
    places = HERE | {"p": Place(TeamId(9), ResourceKind.PROJECT)}
    denial = first_denial(case_of({"policy": ISOLATING, "names": names, "places": places}))
    assert denial == Deny(
        RESOURCE_NOT_FOUND._replace(message="Project not found."),
        "p belongs to team 9, the token's team is 3",
    )


def test_more_resources_than_are_looked_for_are_not_found() -> None:
    """A hundred are; nobody names more in good faith."""
    names = Names((SERVER,), keys=("u2",) * MOST_NAMED)
    how = {"policy": ISOLATING, "names": names, "places": HERE}
    assert first_denial(case_of(how)) is None
    more = names._replace(keys=("u2",) * (MOST_NAMED + 1))
    denial = first_denial(case_of(how | {"names": more}))
    assert denial == Deny(
        RESOURCE_NOT_FOUND._replace(message="Resource not found."),
        "more than 100 resources are named at once",
    )


def test_no_token_opens_a_route_for_none() -> None:
    """Should one that is closed ever be judged by a token's checks."""
    shut = Route("GET", "/api/v1/teams", Guard.CLOSED)
    assert first_denial(case_of({"route": shut})) == Deny(
        ROUTE_UNKNOWN, "no token opens this route"
    )


# What is allowed


@pytest.mark.parametrize("role", list(Role))
def test_what_is_admitted_holds_what_its_restrictions_leave(role: Role) -> None:
    """Read only, although the token holds root: neither named nor counted as sensitive."""
    narrower = {"token": Restriction(permissions=frozenset({Permission.READ}))}
    held = record("root", role=role)
    who = Principal(UserId(7), TeamId(3), role, TokenId(67), frozenset({Permission.ROOT}))
    assert admission(held) == Allow(who, read_sensitive=role in PRIVILEGED)
    narrowed = replace(held, restrictions=narrower)
    left = who._replace(permissions=frozenset({Permission.READ}))
    assert admission(narrowed) == Allow(left, read_sensitive=False)


@pytest.mark.parametrize(
    ("permissions", "role", "sensitive"),
    [
        (("read",), Role.OWNER, False),
        (("write", "read"), Role.OWNER, False),
        (("read", "write:sensitive"), Role.OWNER, False),
        (("read:sensitive",), Role.OWNER, True),
        (("read:sensitive",), Role.ADMIN, True),
        (("root",), Role.ADMIN, True),
        (("*",), Role.OWNER, True),
        (("read",), Role.MEMBER, False),
    ],
)
def test_sensitive_data_needs_permission_and_role(
    permissions: tuple[str, ...], role: Role, sensitive: bool
) -> None:
    """X-Auth-Read-Sensitive is true only for root or read:sensitive of an admin or owner."""
    verdict = judged(READ, record(*permissions, role=role)).verdict
    assert isinstance(verdict, Allow)
    assert verdict.read_sensitive is sensitive
    assert verdict.principal is not None
    assert (verdict.principal.token, verdict.principal.role) == (TokenId(67), role)


def test_a_verdict_is_no_condition() -> None:
    """`if verdict:` over a refusal would fail open, so it fails."""
    for verdict in (judged(READ).verdict, judged(needing("write")).verdict):
        with pytest.raises(TypeError, match="match on Allow"):
            bool(verdict)


def test_the_tables_name_every_permission() -> None:
    """A permission that is added later has to be placed."""
    assert set(INCLUDED_BY) == set(ALL)
    assert set(ALL) - {Permission.READ} == ELEVATED
