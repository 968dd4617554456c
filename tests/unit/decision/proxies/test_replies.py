"""Answers as bytes and headers, from outcomes alone."""

import json
from collections.abc import Callable
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsidecar.decision.authorize import Outcome
from authsidecar.decision.checks import NOT_TEAM_MEMBER, PERMISSION_MISSING, TEAM_MCP_DISABLED
from authsidecar.decision.credentials import TOKEN_MISSING
from authsidecar.decision.model import (
    METHODS,
    Allow,
    Deny,
    Limit,
    Permission,
    Principal,
    Quota,
    Reason,
    Role,
    TeamId,
    TokenId,
    TokenRecord,
    UserId,
)
from authsidecar.decision.policy import (
    METHOD_NOT_ALLOWED,
    RATE_LIMITED,
    STORE_UNAVAILABLE,
    TOKEN_UNKNOWN,
)
from authsidecar.decision.proxies import auth_request
from authsidecar.decision.proxies.headers import IDENTITY
from authsidecar.decision.proxies.replies import (
    ANY_ORIGIN,
    EXPOSED,
    JSON,
    NO_STORE,
    VALID_UNTIL,
    Admission,
    Challenge,
    Reply,
    lines,
    preflight,
    refuse,
    render,
    served,
    shown,
    tightest,
)
from authsidecar.decision.routes import ROUTE_UNKNOWN
from authsidecar.times import UnixMs, rfc3339
from tests.support.cases import record

NOW = UnixMs(1_000_000_000_500)
CLIENT = ip_address("192.0.2.1")


def quota(remaining: int, reset_in: int, *, scope: str = "user", limit: int = 200) -> Quota:
    return Quota(scope, Limit(limit, 60_000), remaining, UnixMs(NOW + reset_in))


FULL = Deny(RATE_LIMITED)


def denied(*quotas: Quota, deny: Deny = FULL) -> dict[str, str]:
    outcome = Outcome(deny, NOW, quotas)
    return dict(render(outcome, CLIENT, "d1").headers)


def principal(*permissions: Permission, role: Role = Role.OWNER) -> Principal:
    return Principal(UserId(0), TeamId(0), role, TokenId(7), frozenset(permissions))


def test_an_admission_says_who_it_is() -> None:
    """Each identity header exactly once, permissions in a stable order, zero is a number."""
    allow = Allow(principal(Permission.WRITE, Permission.READ), read_sensitive=True)
    reply = render(Outcome(allow, NOW), CLIENT, "d1")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers == (
        ("X-Auth-User-Id", "0"),
        ("X-Auth-Team-Id", "0"),
        ("X-Auth-Team-Role", "owner"),
        ("X-Auth-Token-Id", "7"),
        ("X-Auth-Permissions", "read write"),
        ("X-Auth-Read-Sensitive", "true"),
        ("X-Auth-Client-Ip", "192.0.2.1"),
        ("X-Auth-Decision-Id", "d1"),
        ("Cache-Control", "no-store"),
    )


def test_an_admission_without_identity_says_none() -> None:
    """Pitfall 2: every header is there, so that no client's value survives being copied."""
    reply = render(Outcome(Allow(None), NOW), ip_address("2001:db8::1"), "d1")
    assert [name for name, _ in reply.headers][:8] == list(IDENTITY)
    assert [value for _, value in reply.headers][:6] == ["none"] * 5 + ["false"]
    assert dict(reply.headers)["X-Auth-Client-Ip"] == "2001:db8::1"


@pytest.mark.parametrize("held", [(), tuple(Permission)])
def test_identity_values_are_never_empty_nor_lists(held: tuple[Permission, ...]) -> None:
    """Printable ASCII, no comma, together under 4 KB, whatever the token holds."""
    reply = render(Outcome(Allow(principal(*held)), NOW), CLIENT, "d1")
    for name, value in reply.headers:
        assert value.isascii()
        assert value.isprintable()
        assert value.strip() == value != ""
        assert not (name in IDENTITY and "," in value)
    assert sum(len(n) + len(v) + 4 for n, v in reply.headers) < 4096


def test_a_refusal_is_one_line_of_ascii_json() -> None:
    """Message, code and decision first; what is missing is a list."""
    deny = Deny(PERMISSION_MISSING, "detail of the log", (Permission.WRITE,))
    reply = refuse(deny, "d1")
    assert (reply.status, b"\n" in reply.body, reply.body.isascii()) == (403, False, True)
    assert json.loads(reply.body) == {
        "message": "Missing required permissions",
        "code": "permission_missing",
        "missing_permissions": ["write"],
        "decision_id": "d1",
    }
    assert b"detail" not in reply.body


def test_a_refusal_is_the_same_to_the_byte() -> None:
    """In the order that the interface shows, each field once."""
    deny = Deny(ROUTE_UNKNOWN, "of the log", (Permission.READ,), advice="ask otherwise")
    reply = refuse(deny, "d1", limit_name="user")
    assert reply.fields == JSON + ANY_ORIGIN + NO_STORE
    assert reply.body == (
        b'{"message": "Not found.", "docs": "https://coolify.io/docs", "code": "route_unknown", '
        b'"missing_permissions": ["read"], "limit_name": "user", "detail": "ask otherwise", '
        b'"decision_id": "d1"}'
    )


@pytest.mark.parametrize(
    ("allowed", "said"),
    [(("POST",), "POST"), (("GET", "HEAD"), "GET, HEAD"), ((), ", ".join(sorted(METHODS)))],
)
def test_a_method_that_is_not_taken_is_told_which_are(allowed: tuple[str, ...], said: str) -> None:
    """RFC 9110 section 15.5.6: Allow, before all else; without a list all methods of HTTP's."""
    reply = refuse(Deny(METHOD_NOT_ALLOWED, allowed=allowed), "d")
    assert reply.status == 405
    assert reply.headers[0] == ("Allow", said)
    assert reply.fields == lines(("Allow", said)) + JSON + ANY_ORIGIN + NO_STORE
    assert "Allow" not in dict(refuse(Deny(PERMISSION_MISSING, allowed=allowed), "d").headers)


def test_an_unknown_route_points_to_the_documentation() -> None:
    """As Coolify's own fallback does."""
    assert json.loads(refuse(Deny(ROUTE_UNKNOWN), "d").body)["docs"] == "https://coolify.io/docs"


def test_the_challenge_names_an_error_only_if_a_token_was_sent() -> None:
    """RFC 6750 section 3.1."""
    missing = dict(refuse(Deny(TOKEN_MISSING), "d").headers)["WWW-Authenticate"]
    unknown = dict(refuse(Deny(TOKEN_UNKNOWN), "d").headers)["WWW-Authenticate"]
    assert missing == 'Bearer realm="coolify"'
    assert unknown == 'Bearer realm="coolify", error="invalid_token"'


@pytest.mark.parametrize("reason", [TOKEN_MISSING, TOKEN_UNKNOWN, NOT_TEAM_MEMBER])
@pytest.mark.parametrize("write", [lambda reply: reply, auth_request.write])
def test_a_401_at_mcp_has_coolify_s_own_challenge(
    reason: Reason, write: Callable[[Reply], Reply]
) -> None:
    """Coolify says it to whoever sent nothing, too; other refusals there have none."""
    outcome = Outcome(Deny(reason), NOW, route="/mcp")
    reply = write(render(outcome, None, "d"))
    challenges = [value for name, value in reply.headers if name == "WWW-Authenticate"]
    assert (reply.status, challenges) == (401, ['Bearer realm="mcp", error="invalid_token"'])
    api = write(render(outcome._replace(route="/api/v1/teams"), None, "d"))
    assert 'realm="coolify"' in dict(api.headers)["WWW-Authenticate"]
    full = write(render(outcome._replace(verdict=Deny(TEAM_MCP_DISABLED)), None, "d"))
    assert "WWW-Authenticate" not in dict(full.headers)


def test_an_outage_says_when_to_come_back() -> None:
    """Retry-After, although no counter is involved."""
    assert dict(refuse(Deny(STORE_UNAVAILABLE), "d").headers)["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("reset_in", "seconds"),
    [(-5_000, "1"), (0, "1"), (1, "1"), (999, "1"), (1000, "1"), (1001, "2"), (59_999, "60")],
)
def test_retry_after_is_rounded_up_and_at_least_a_second(reset_in: int, seconds: str) -> None:
    """Pitfall 31: never zero, negative or a moment too early."""
    assert denied(quota(0, reset_in))["Retry-After"] == seconds


def test_the_reset_is_the_exact_instant_rounded_up() -> None:
    """In whole seconds since 1970, not one second early."""
    assert denied(quota(0, 500))["X-RateLimit-Reset"] == "1000000001"
    assert denied(quota(0, 501))["X-RateLimit-Reset"] == "1000000002"


def test_retry_waits_for_the_last_full_counter() -> None:
    """Of two full counters the later one decides; one with room does not."""
    full = [quota(0, 2_000), quota(0, 9_000, scope="token"), quota(3, 50_000, scope="team")]
    assert denied(*full)["Retry-After"] == "9"


@pytest.mark.parametrize(
    ("quotas", "name"),
    [
        ([quota(0, 2_000)], "user"),
        ([quota(3, 1), quota(0, 1, scope="team")], "team"),
        ([quota(0, 2_000), quota(0, 9_000, scope="token")], "token"),
    ],
)
def test_a_429_names_the_limit_that_must_be_waited_for(quotas: list[Quota], name: str) -> None:
    """As RateLimit-Policy names it; of several full ones the one that Retry-After is of."""
    reply = render(Outcome(FULL, NOW, tuple(quotas)), CLIENT, "d1")
    assert json.loads(reply.body) == {
        "message": "Too Many Attempts.",
        "code": "rate_limited",
        "limit_name": name,
        "decision_id": "d1",
    }


def test_a_429_tells_of_its_counters_and_of_its_decision() -> None:
    """When to come back stands behind them, to the byte."""
    reply = render(Outcome(FULL, NOW, (quota(0, 2_000),)), CLIENT, "d1")
    assert reply.fields == JSON + ANY_ORIGIN + NO_STORE + (
        "X-RateLimit-Limit: 200\r\n"
        "X-RateLimit-Remaining: 0\r\n"
        'RateLimit-Policy: "user";q=200;w=60\r\n'
        'RateLimit: "user";r=0;t=2\r\n'
        "Retry-After: 2\r\n"
        "X-RateLimit-Reset: 1000000003\r\n"
    )
    refused = render(Outcome(Deny(PERMISSION_MISSING), NOW), CLIENT, "d2")
    assert [json.loads(one.body)["decision_id"] for one in (reply, refused)] == ["d1", "d2"]


def test_the_tightest_counter_is_told() -> None:
    """The least room; of equals the one that opens last."""
    user, token, team = (
        quota(5, 1000),
        quota(2, 1000, scope="token", limit=10),
        quota(2, 2000, scope="team", limit=20),
    )
    assert tightest([user, token, team]) is team
    found = denied(user, token, team, deny=Deny(PERMISSION_MISSING))
    assert (found["X-RateLimit-Limit"], found["X-RateLimit-Remaining"]) == ("20", "2")
    assert "Retry-After" not in found


def test_several_counters_are_told_of_to_the_byte() -> None:
    """The tightest by itself, all of them in their order; rendered in advance or at once."""
    quotas = (quota(7, 30_000), quota(3, 1_500, scope="token", limit=10))
    fields = (
        "X-RateLimit-Limit: 10\r\n"
        "X-RateLimit-Remaining: 3\r\n"
        'RateLimit-Policy: "user";q=200;w=60, "token";q=10;w=60\r\n'
        'RateLimit: "user";r=7;t=30, "token";r=3;t=2\r\n'
    )
    whole = render(Outcome(Deny(PERMISSION_MISSING), NOW, quotas), CLIENT, "d").fields
    assert whole == JSON + ANY_ORIGIN + NO_STORE + fields
    shared = Admission(Allow(None), CLIENT, [(one.scope, one.limit) for one in quotas])
    states = [number for one in quotas for number in (one.remaining, one.reset_at)]
    assert shared.fields("d", states, NOW).endswith(f"Id: d\r\n{fields}{NO_STORE}")


@pytest.mark.parametrize(
    ("reset_in", "seconds"),
    [(-1, 0), (0, 0), (1, 1), (1000, 1), (1001, 2)],
)
@pytest.mark.parametrize("counters", [1, 2])
def test_the_wait_of_a_counter_is_rounded_up_and_never_negative(
    reset_in: int, seconds: int, counters: int
) -> None:
    """In whole seconds; rendered in advance as at once."""
    quotas = [quota(7, reset_in)] * counters
    told = ", ".join([f'"user";r=7;t={seconds}'] * counters)
    found = denied(*quotas, deny=Deny(PERMISSION_MISSING))
    assert found["RateLimit"] == told
    shared = Admission(Allow(None), CLIENT, [(one.scope, one.limit) for one in quotas])
    states = [number for one in quotas for number in (one.remaining, one.reset_at)]
    assert f"\r\nRateLimit: {told}\r\n" in shared.fields("d", states, NOW)


def test_counters_that_nothing_is_told_of_come_last() -> None:
    """A restriction's own, say: their states follow, and are left out."""
    shared = Admission(Allow(None), CLIENT, [("user", Limit(200)), ("team", Limit(300))])
    told = dict(Reply(200, shared.fields("d", [7, NOW, 8, NOW, 0, NOW], NOW)).headers)
    assert told["RateLimit"] == '"user";r=7;t=0, "team";r=8;t=0'
    assert told["X-RateLimit-Limit"] == "200"


def test_the_ratelimit_fields_list_every_counter() -> None:
    """draft-ietf-httpapi-ratelimit-headers-10: structured fields, windows in whole seconds."""
    odd = Quota("token", Limit(10, 1500), 0, UnixMs(NOW - 1))
    found = denied(odd, quota(7, 1), deny=Deny(PERMISSION_MISSING))
    assert found["RateLimit-Policy"] == '"token";q=10;w=2, "user";q=200;w=60'
    assert found["RateLimit"] == '"token";r=0;t=0, "user";r=7;t=1'


def test_nothing_charged_nothing_said() -> None:
    """No counter, no field of it."""
    reply: Reply = render(Outcome(Deny(TOKEN_UNKNOWN), NOW), CLIENT, "d")
    assert not [name for name, _ in reply.headers if "ratelimit" in name.lower()]


QUOTAS = st.lists(
    st.builds(
        quota,
        st.integers(0, 3),
        st.integers(-1500, 90_000),
        scope=st.sampled_from(["user", "team", "address", "token"]),
        limit=st.integers(1, 300),
    ),
    max_size=5,
)


@given(quotas=QUOTAS)
def test_what_is_rendered_in_advance_is_what_is_rendered_at_once(quotas: list[Quota]) -> None:
    allow = Allow(principal(Permission.READ), read_sensitive=len(quotas) % 2 == 0)
    shown = [(one.scope, one.limit) for one in quotas]
    states = [number for one in quotas for number in (one.remaining, one.reset_at)]
    fields = Admission(allow, CLIENT, shown).fields("6b08", [*states, 7, NOW], NOW)
    assert Reply(200, fields) == render(Outcome(allow, NOW, tuple(quotas)), CLIENT, "6b08")


def test_a_new_secret_is_told_of_on_every_answer() -> None:
    """Whether it is admitted or refused, behind what the counters say."""
    held = record(rotated_until=UnixMs(NOW + 1000))
    told = (VALID_UNTIL, "2001-09-09T01:46:41.500Z")
    for verdict in (Allow(principal(Permission.READ)), Deny(PERMISSION_MISSING)):
        reply = render(Outcome(verdict, NOW, record=held), CLIENT, "d")
        assert told in reply.headers
        assert VALID_UNTIL not in render(Outcome(verdict, NOW, record=record()), CLIENT, "d").fields


def test_unless_it_is_asked_for_no_expiry_is_said() -> None:
    """Not even of a token that expires at once."""
    outcome = Outcome(Allow(principal()), NOW, record=record(expires_at=NOW))
    assert "X-Auth-Token-Expires" not in render(outcome, CLIENT, "d").fields
    said = render(outcome, CLIENT, "d", expiry_ms=1).fields
    assert "X-Auth-Token-Expires: " in said


@pytest.mark.parametrize(
    ("verdict", "held"),
    [
        (Allow(None), record(expires_at=NOW)),
        (Allow(principal()), None),
        (Allow(principal()), record()),
        (Allow(principal()), record(expires_at=UnixMs(NOW + 2))),
    ],
)
def test_an_expiry_that_is_not_said_changes_nothing(
    verdict: Allow, held: TokenRecord | None
) -> None:
    """Where nobody is known, where it is not, where there is none, and where it is far."""
    outcome = Outcome(verdict, NOW, record=held)
    assert render(outcome, CLIENT, "d", expiry_ms=1) == render(outcome, CLIENT, "d")


def test_an_address_that_could_not_be_read_is_none() -> None:
    """The header is there all the same."""
    reply = render(Outcome(Allow(None), NOW), None, "d1")
    assert reply.headers == (
        *((name, "none") for name in IDENTITY[:5]),
        ("X-Auth-Read-Sensitive", "false"),
        ("X-Auth-Client-Ip", "none"),
        ("X-Auth-Decision-Id", "d1"),
        ("Cache-Control", "no-store"),
    )


def test_a_challenge_is_coolifys_unless_mcp_is_asked_for() -> None:
    """A realm of its own, and always an error."""
    assert Challenge(sent=False).header() == ("WWW-Authenticate", 'Bearer realm="coolify"')
    assert Challenge(sent=False, mcp=True).header()[1] == (
        'Bearer realm="mcp", error="invalid_token"'
    )


def test_a_preflight_is_told_the_methods_and_any_header() -> None:
    """For a day; `*` stands for every header but Authorization (the Fetch standard)."""
    reply = preflight(("GET", "HEAD"))
    assert (reply.status, reply.body) == (200, b"")
    assert dict(reply.headers) == {
        "Access-Control-Allow-Methods": "GET, HEAD",
        "Access-Control-Allow-Headers": "Authorization, *",
        "Access-Control-Max-Age": "86400",
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Expose-Headers": ", ".join(EXPOSED),
        "Cache-Control": "no-store",
    }


def test_what_the_sidecar_says_itself_has_no_identity() -> None:
    """JSON in one line of ASCII, with what is left of the limits, for any site to read."""
    held = record(rotated_until=UnixMs(NOW + 1000))
    outcome = Outcome(Allow(principal(Permission.READ)), NOW, (quota(7, 1),), record=held)
    for reply, said in (
        (served(outcome, "API enabled."), {"message": "API enabled."}),
        (shown(outcome, {"name": "prüfung", "id": 7}), {"name": "prüfung", "id": 7}),
    ):
        assert reply.status == 200
        assert reply.body.isascii()
        assert json.loads(reply.body) == said
        found = dict(reply.headers)
        assert not [name for name in found if name.startswith("X-Auth-")]
        assert found["Content-Type"] == "application/json"
        assert found["Access-Control-Allow-Origin"] == "*"
        assert found["Cache-Control"] == "no-store"
        assert found["X-RateLimit-Remaining"] == "7"
        assert found[VALID_UNTIL] == rfc3339(UnixMs(NOW + 1000))
