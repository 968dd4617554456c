"""What narrows a token: how it is spelled, what it refuses, and when it would be wider."""

import json
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest

from authsidecar.decision.bodies import read as read_body
from authsidecar.decision.checks import judge
from authsidecar.decision.model import (
    DAMAGED,
    UNREADABLE_LIMIT,
    Allow,
    Deny,
    Limit,
    Permission,
    Place,
    ResourceKind,
    Restriction,
    TeamId,
)
from authsidecar.decision.policy import Case, Judgement
from authsidecar.decision.resources import LONGEST_NAME, named, with_body
from authsidecar.decision.restrictions import (
    HIDDEN_BODY,
    LARGEST_BUDGET,
    LARGEST_RATE,
    LONGEST_NOTE,
    MOST_ENTRIES,
    Refused,
    RestrictionError,
    _within_minute,
    as_mapping,
    depends_on_time,
    hours_text,
    narrowed,
    outside,
    parse,
    parse_hours,
    parse_rate,
    read,
    refusal,
    refusal_now,
    refusal_of_all,
    widened,
    within,
    write,
)
from authsidecar.decision.routes import Guard, Route, coolify
from authsidecar.times import UnixMs
from tests.support.cases import ENABLE, MCP, NOW, OPEN, POLICY, READ, code, judged, record, request

WHOLE = {
    "permissions": ["deploy", "read"],
    "routes": ["* /api/v1/teams", "POST /api/v1/deploy"],
    "projects": ["p1", "p2"],
    "environments": ["p3/a b/ü", "p3/prod"],
    "resources": ["r1"],
    "tags": ["my shop"],
    "from": ["192.0.2.0/24", "2001:db8::/32"],
    "rate": "10/60s",
    "uses": 5,
    "not_before": "2026-01-01T00:00:00Z",
    "until": "2027-01-01T00:00:00Z",
    "hours": ["Mon,Tue,Wed,Thu,Fri 08:00-18:00 Europe/Berlin"],
    "note": "für die CI",
}


def at(text: str) -> UnixMs:
    return UnixMs(int(datetime.fromisoformat(text).timestamp() * 1000))


def test_what_is_written_is_read_again() -> None:
    """As a file has it, and as Redis has it."""
    restriction = parse(WHOLE)
    assert as_mapping(restriction) == WHOLE
    assert read(write(restriction).encode()) == restriction


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"null",
        b"[]",
        b'"read"',
        b'{"note": "x"}',
        b'{"permissions": []}',
        b'{"permissions": ["*"]}',
        b'{"permissions": "read"}',
        b'{"planets": ["x"]}',
        b'{"uses": 0}',
        b'{"uses": true}',
        b'{"uses": 5',
        b'{"rate": "1/0s"}',
        b'{"hours": ["Mon 08:00-18:00 Nowhere/Town"]}',
        b"\xff",
        b"[" * 100_000,
        write(parse(WHOLE)).encode()[:-1],
    ],
)
def test_what_cannot_be_read_admits_nothing(text: bytes) -> None:
    """Also what a later version may have written: an unknown part could have narrowed it."""
    assert read(text) is DAMAGED
    verdict = judged(READ, record("root", restrictions={"token": read(text)})).verdict
    assert isinstance(verdict, Deny)
    assert verdict.detail == "the token's restriction cannot be read, so it admits nothing"


PARTS = (
    "permissions, routes, projects, environments, resources, tags, from, rate, uses, not_before, "
    "until, hours, note"
)
PERMISSIONS = "read, read:sensitive, write, write:sensitive, deploy, root"
DAYS = "Mon, Tue, Wed, Thu, Fri, Sat, Sun, Mon-Fri"
MAPPING = "a restriction is a mapping, such as {permissions: [read]}"
USES = "uses: it is no whole number from 1 to 1000000000"

WRONG: list[tuple[object, str]] = [
    ([], MAPPING),
    ("read", MAPPING),
    ({"permission": ["read"]}, f"'permission' is none of {PARTS}"),
    ({"uses": 1, "zeta": 1, "alpha": 1}, f"'alpha' is none of {PARTS}"),
    ({"uses": 1, 5: 1}, f"'5' is none of {PARTS}"),
    ({"ü": 1}, f"'\\xfc' is none of {PARTS}"),
    ({"permissions": ["reed"]}, f"permissions: 'reed' is none of {PERMISSIONS}"),
    ({"permissions": ["read", "*"]}, f"permissions: '*' is none of {PERMISSIONS}"),
    ({"permissions": "read"}, "permissions: it is no list of texts"),
    ({"permissions": ["read", 1]}, "permissions: it is no list of texts"),
    ({"permissions": []}, "permissions: an empty list would admit nothing"),
    ({"tags": ["x"] * (MOST_ENTRIES + 1)}, "tags: it has more than 300 entries"),
    *[
        (
            {"routes": [text]},
            f"routes: '{text}' is no METHOD and template, such as 'GET /api/v1/servers'",
        )
        for text in (
            "/api/v1/teams",
            "GET",
            "GET ",
            "GET api",
            "GET /a b",
            "GET /a /b",
            "GET x /a",
            " /a ",
        )
    ],
    *[
        (
            {"routes": [f"{text} /a"]},
            f"routes: '{text}' is no method of a route; GET serves HEAD, too",
        )
        for text in ("HEAD", "OPTIONS", "get", "", "**")
    ],
    (
        {"from": ["192.0.2.1", "office"]},
        "from: 'office': not an IP address (host names are not looked up)",
    ),
    ({"rate": "10"}, "rate: '10' is not N/WINDOW, such as 10/60s or 100/1h"),
    ({"rate": 5}, "rate: '' is not N/WINDOW, such as 10/60s or 100/1h"),
    ({"rate": "0/60s"}, "rate: 0 is not 1 to 100000 requests"),
    ({"rate": "100001/60s"}, "rate: 100001 is not 1 to 100000 requests"),
    ({"rate": "1/0s"}, "rate: its window is not one second to one day"),
    ({"rate": "1/2d"}, "rate: its window is not one second to one day"),
    ({"uses": "5"}, USES),
    ({"uses": True}, USES),
    ({"uses": 1.0}, USES),
    ({"uses": 0}, USES),
    ({"uses": 1_000_000_001}, USES),
    ({"until": "2027-01-01"}, "until: not a time such as 2027-01-31T12:00:00Z"),
    ({"until": "2027-01-01T00:00:00"}, "until: it has no time zone; end it with Z for UTC"),
    ({"not_before": 5}, "not_before: it is no text with a time such as 2027-01-31T12:00:00Z"),
    *[
        ({"hours": [text]}, f"hours: '{text}' is not such as Mon-Fri 08:00-18:00 Europe/Berlin")
        for text in ("", "Mon 08:00-18:00", "Mon 08:00-18:00 UTC x", "Mon 8:00-18:00 UTC")
    ],
    *[
        (
            {"hours": [f"Tue,{text} 08:00-18:00 UTC"]},
            f"hours: '{text}' is no day or span of days: {DAYS}",
        )
        for text in ("Mo", "", "mon", "Mon-Fr", "-Fri", "Mon-Wed-Fri")
    ],
    *[
        (
            {"hours": [f"Mon {text} UTC"]},
            f"hours: '{text}' is no time of the day, 00:00-24:00 at the most",
        )
        for text in ("08:00-24:01", "08:60-18:00", "08:00-18:60", "24:00-18:00", "24:01-18:00")
    ],
    *[
        (
            {"hours": [f"Mon {text} UTC"]},
            f"hours: '{text}': the whole day is 00:00-24:00, until midnight is 24:00",
        )
        for text in ("08:00-08:00", "08:00-00:00", "00:00-00:00")
    ],
    *[
        (
            {"hours": [f"Mon 08:00-18:00 {text}"]},
            f"hours: '{text}' is no time zone, such as Europe/Berlin or UTC",
        )
        for text in ("Europe/Berlyn", "../../etc/passwd", "/etc/passwd", "Europe", "")
    ],
    ({"projects": ["a", "a/b"]}, "projects: 'a/b' is no uuid"),
    ({"resources": ["a b"]}, "resources: 'a b' is no uuid"),
    ({"resources": ["x" * 256]}, f"resources: '{'x' * 256}' is no uuid"),
    *[
        (
            {"environments": [text]},
            f"environments: '{text}' is no PROJECT/NAME, with the uuid of a project",
        )
        for text in ("prod", "p", "p/", "/x", "a b/x", "p/" + "x" * (LONGEST_NAME + 1))
    ],
    ({"environments": ["p/a\x1b"]}, "environments: 'a\\x1b' holds a control character"),
    *[
        ({"tags": [text]}, f"tags: '{text}' is no name of a tag")
        for text in ("a,b", " ", "", " x", "x ", "x" * (LONGEST_NAME + 1))
    ],
    ({"tags": ["a\x1bb"]}, "tags: 'a\\x1bb' holds a control character"),
    ({"note": "\x1b[2J", "uses": 1}, "note: it holds a control character"),
    ({"note": 5}, "note: it is no text of at most 500 characters"),
    ({"note": "x" * (LONGEST_NOTE + 1)}, "note: it is no text of at most 500 characters"),
    ({"note": "only a note"}, "it limits nothing"),
    ({}, "it limits nothing"),
    (
        {"not_before": "2027-01-01T00:00:00Z", "until": "2026-12-31T23:59:59Z"},
        "until: it is before not_before",
    ),
]


@pytest.mark.parametrize(("given", "why"), WRONG)
def test_a_wrong_part_is_named(given: object, why: str) -> None:
    """In one line, for whoever typed it."""
    with pytest.raises(RestrictionError) as caught:
        parse(given)
    assert str(caught.value) == why
    assert "\n" not in why


@pytest.mark.parametrize(
    "given",
    [
        {"routes": ["GET /"]},
        {"tags": ["x"]},
        {"tags": [f"x{n:03}" for n in range(MOST_ENTRIES)]},
        {"resources": ["x" * 255]},
        {"uses": 1},
        {"uses": LARGEST_BUDGET},
        {"note": "x" * LONGEST_NOTE, "uses": 5},
        {"not_before": "2027-01-01T00:00:00Z", "until": "2027-01-01T00:00:00Z"},
        {"hours": ["Mon 00:00-24:00 UTC", "Tue 23:59-00:01 UTC", "Wed 00:59-01:59 UTC"]},
        {"permissions": ["deploy", "read", "read:sensitive", "root", "write", "write:sensitive"]},
    ],
)
def test_what_is_just_within_the_bounds_is_read(given: dict[str, Any]) -> None:
    """And written as it was."""
    assert as_mapping(parse(given)) == given


def test_what_says_the_same_twice_is_kept_once() -> None:
    """Networks by version and address, hours in the order in which they were given."""
    tue, mon = "Tue 08:00-09:00 UTC", "Mon 08:00-09:00 UTC"
    networks = ["2001:db8::/32", "192.0.2.0/24", "10.0.0.0/8", "192.0.2.0/24"]
    found = as_mapping(parse({"hours": [tue, mon, tue], "from": networks}))
    assert found == {"from": ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"], "hours": [tue, mon]}
    days = parse_hours("Sat-Mon,Sun 08:00-09:00 UTC")
    assert hours_text(days) == "Mon,Sat,Sun 08:00-09:00 UTC"


def test_it_is_written_without_blanks_and_in_order() -> None:
    """So that the same restriction is the same text."""
    restriction = parse({"note": "ü", "uses": 5, "rate": "10/1m", "tags": ["y", "x"]})
    text = '{"note":"\\u00fc","rate":"10/60s","tags":["x","y"],"uses":5}'
    assert write(restriction) == text


# ------------------------------------------------------------------------------- what it refuses

SENSITIVE = Route("GET", "/api/v1/secret", Guard.ORDINARY, Permission.READ_SENSITIVE)


EITHER = Route("GET", "/a", Guard.ORDINARY, Permission.READ, alternatives=(Permission.DEPLOY,))
SERVER = Route("GET", "/api/v1/servers/{uuid}", Guard.ORDINARY, Permission.READ)
UNREAD = "cannot be read, so it admits nothing"


@pytest.mark.parametrize(
    ("given", "route", "why"),
    [
        (None, READ, UNREAD),
        ({"routes": ["GET /a", "* /b"]}, ENABLE, "does not name POST /api/v1/enable"),
        ({"routes": ["* /api/v1/enable"]}, ENABLE, None),
        ({"routes": ["* /b", "POST /a"]}, EITHER, "does not name GET /a"),
        (
            {"projects": ["p"]},
            *(READ, "can't tell what GET /api/v1/teams touches; --route names it"),
        ),
        ({"projects": ["p"]}, SERVER, None),
        ({"projects": ["p"], "routes": ["GET /api/v1/teams"]}, READ, None),
        (
            {"permissions": ["root"]},
            *(MCP, "narrows the permissions, which MCP does not look at; --route names it"),
        ),
        ({"permissions": ["read"], "routes": ["POST /mcp"]}, MCP, None),
        ({"uses": 1}, MCP, None),
        (
            {"permissions": ["write", "deploy"]},
            *(SENSITIVE, "leaves deploy write, the route needs read:sensitive"),
        ),
        ({"permissions": ["write"]}, EITHER, "leaves write, the route needs read or deploy"),
        ({"permissions": ["deploy"]}, EITHER, None),
        ({"permissions": ["read"]}, EITHER, None),
        ({"permissions": ["write"]}, Route("GET", "/a", Guard.ORDINARY), None),
        ({"permissions": ["read"], "from": ["::/0"]}, READ, "does not admit 192.0.2.1"),
        ({"from": ["192.0.3.0/24", "2001:db8::/32"]}, READ, "does not admit 192.0.2.1"),
        ({"from": ["192.0.3.0/24", "192.0.2.0/24"]}, READ, None),
    ],
)
def test_it_is_told_what_it_refuses(
    given: dict[str, Any] | None, route: Route, why: str | None
) -> None:
    """What comes after the token's restriction, its user's or its team's."""
    restriction = DAMAGED if given is None else parse(given)
    assert refusal(restriction, route, ip_address("192.0.2.1")) == why


MONDAY = at("2026-06-29T08:00:00+00:00")


@pytest.mark.parametrize(
    ("given", "now", "why"),
    [
        ({"not_before": "2026-06-29T08:00:00Z"}, MONDAY - 1, "begins 2026-06-29T08:00:00Z"),
        ({"not_before": "2026-06-29T08:00:00Z"}, MONDAY, None),
        ({"until": "2026-06-29T08:00:00Z"}, MONDAY + 1, "ended 2026-06-29T08:00:00Z"),
        ({"until": "2026-06-29T08:00:00Z"}, MONDAY, None),
        ({"hours": ["Mon 08:00-09:00 UTC"]}, MONDAY - 1, "admits Mon 08:00-09:00 UTC"),
        ({"hours": ["Mon 08:00-09:00 UTC"]}, MONDAY, None),
        ({"hours": ["Mon 08:00-09:00 UTC"]}, MONDAY + 3_599_999, None),
        (
            {"hours": ["Mon 08:00-09:00 UTC", "Mon 09:01-10:00 UTC"]},
            *(MONDAY + 3_600_000, "admits Mon 08:00-09:00 UTC, Mon 09:01-10:00 UTC"),
        ),
        ({"hours": ["Mon 08:00-09:00 UTC", "Mon 09:01-10:00 UTC"]}, MONDAY + 3_660_000, None),
        ({"from": ["::/0"], "hours": ["Tue 08:00-09:00 UTC"]}, MONDAY, "does not admit 192.0.2.1"),
        ({"from": ["::/0"]}, None, "does not admit 192.0.2.1"),
        ({"from": ["192.0.2.1"], "hours": ["Tue 08:00-09:00 UTC"]}, None, None),
        (
            {"from": ["192.0.2.1"], "hours": ["Tue 08:00-09:00 UTC"]},
            *(MONDAY, "admits Tue 08:00-09:00 UTC"),
        ),
        ({"routes": ["GET /a"], "permissions": ["read"], "projects": ["p"]}, MONDAY, None),
    ],
)
def test_it_is_told_what_is_refused_whatever_the_route(
    given: dict[str, Any], now: UnixMs | None, why: str | None
) -> None:
    """By the address first, and by the time if there is one."""
    restriction, client = parse(given), ip_address("192.0.2.1")
    assert refusal_of_all(restriction, client, now) == why
    assert depends_on_time(restriction) is bool(given.keys() & {"not_before", "until", "hours"})
    if now is not None and "from" not in given:
        assert refusal_now(restriction, now) == why


def test_what_hours_admit_is_remembered_by_the_minute() -> None:
    """Not by the millisecond, of which each request has its own."""
    restriction = parse({"hours": ["Mon 08:00-09:00 UTC"]})
    _within_minute.cache_clear()
    for ms in (0, 1, 59_999, 60_000):
        assert refusal_now(restriction, UnixMs(MONDAY + ms)) is None
    assert _within_minute.cache_info().currsize == 2


def test_what_could_not_be_read_admits_nothing_whatever_the_route() -> None:
    """A restriction, and a limit that may have been lower than the configured one."""
    client, limit = ip_address("192.0.2.1"), f"is a limit that {UNREAD}"
    for now in (None, NOW):
        assert refusal_of_all(DAMAGED, client, now) == UNREAD
        assert refusal_of_all(UNREADABLE_LIMIT, client, now) == limit
    assert refusal(UNREADABLE_LIMIT, READ, client) == limit


@pytest.mark.parametrize(
    ("given", "route", "expected"),
    [
        ({"permissions": ["read"]}, READ, "allow"),
        ({"permissions": ["read:sensitive"]}, READ, "allow"),
        ({"permissions": ["read"]}, SENSITIVE, "token_restricted"),
        ({"permissions": ["write"]}, READ, "token_restricted"),
        ({"permissions": ["read"]}, MCP, "token_restricted"),
        ({"permissions": ["read"], "routes": ["POST /mcp"]}, MCP, "allow"),
        ({"permissions": ["read"]}, ENABLE, "token_restricted"),
        ({"routes": ["GET /api/v1/teams"]}, READ, "allow"),
        ({"routes": ["* /api/v1/teams"]}, READ, "allow"),
        ({"routes": ["POST /api/v1/teams"]}, READ, "token_restricted"),
        ({"routes": ["GET /api/v1/team"]}, READ, "token_restricted"),
        ({"from": ["192.0.2.0/24"]}, READ, "allow"),
        ({"from": ["192.0.3.0/24", "2001:db8::/32"]}, READ, "token_restricted"),
        ({"uses": 1}, READ, "allow"),
    ],
)
def test_it_refuses_what_it_does_not_name(
    given: dict[str, Any], route: Route, expected: str
) -> None:
    """Whoever holds it: the token, its user or its team."""
    for holder in ("token", "user", "team"):
        held = record("root", restrictions={holder: parse(given)})
        assert code(judged(route, held, client=ip_address("192.0.2.1"))) == expected


def test_each_of_several_must_admit() -> None:
    """A ceiling for a user's tokens holds beside what a token has itself."""
    both = {"token": parse({"uses": 5}), "user": parse({"permissions": ["write"]})}
    verdict = judged(READ, record("root", restrictions=both)).verdict
    assert isinstance(verdict, Deny)
    assert verdict.detail.startswith("the user's restriction leaves write")


def test_it_is_said_after_the_permission_and_before_the_instance_team() -> None:
    """The order of the table in README."""
    only = {"token": parse({"routes": ["POST /mcp"]})}
    assert code(judged(READ, record("write", restrictions=only))) == "permission_missing"
    assert code(judged(ENABLE, record("root", restrictions=only))) == "token_restricted"


@pytest.mark.parametrize(
    ("held", "left", "expected"),
    [
        ("root", "read deploy", "read deploy"),
        ("*", "root", "* root"),
        ("read read:sensitive", "read", "read"),
        ("read:sensitive", "read", "read"),
        ("read", "read:sensitive", "read"),
        ("write", "read", ""),
    ],
)
def test_the_backend_is_told_what_is_left(held: str, left: str, expected: str) -> None:
    """X-Auth-Permissions and X-Auth-Read-Sensitive go by the narrower permissions."""
    restriction = Restriction(permissions=frozenset(map(Permission, left.split())))
    found = narrowed(frozenset(map(Permission, held.split())), {"token": restriction})
    assert found == frozenset(map(Permission, expected.split()))

    verdict = judged(READ, record("root", restrictions={"token": parse({"permissions": ["read"]})}))
    assert isinstance(verdict.verdict, Allow)
    assert verdict.verdict.principal is not None
    assert verdict.verdict.principal.permissions == {Permission.READ}
    assert verdict.verdict.read_sensitive is False


# ---------------------------------------------------------------------------------------- time


def test_the_first_and_the_last_millisecond_are_within() -> None:
    """As an expiry: valid up to and including the time."""
    restriction = Restriction(not_before=NOW, until=UnixMs(NOW + 10))
    refused = [refusal_now(restriction, UnixMs(NOW + ms)) is not None for ms in (-1, 0, 10, 11)]
    assert refused == [True, False, False, True]


@pytest.mark.parametrize(
    ("spec", "moment", "expected"),
    [
        ("Mon-Fri 08:00-18:00 Europe/Berlin", "2026-07-01T06:00:00+00:00", True),  # Wed, 08:00
        ("Mon-Fri 08:00-18:00 Europe/Berlin", "2026-07-01T05:59:59+00:00", False),
        ("Mon-Fri 08:00-18:00 Europe/Berlin", "2026-07-01T15:59:59+00:00", True),
        ("Mon-Fri 08:00-18:00 Europe/Berlin", "2026-07-01T16:00:00+00:00", False),
        ("Mon-Fri 08:00-18:00 Europe/Berlin", "2026-01-07T07:00:00+00:00", True),  # winter
        ("Mon-Fri 08:00-18:00 Europe/Berlin", "2026-07-04T10:00:00+00:00", False),  # Sat
        ("Sat-Mon 00:00-24:00 UTC", "2026-07-05T23:59:59+00:00", True),  # Sun
        ("Sat-Mon 00:00-24:00 UTC", "2026-07-07T00:00:00+00:00", False),  # Tue
        ("Fri 22:00-06:00 UTC", "2026-07-03T22:00:00+00:00", True),
        ("Fri 22:00-06:00 UTC", "2026-07-03T21:59:59+00:00", False),
        ("Fri 22:00-06:00 UTC", "2026-07-04T05:59:59+00:00", True),  # Sat morning is Friday's
        ("Fri 22:00-06:00 UTC", "2026-07-04T06:00:00+00:00", False),
        ("Fri 22:00-06:00 UTC", "2026-07-03T05:00:00+00:00", False),  # Fri morning is Thursday's
        ("Fri 22:00-06:00 UTC", "2026-07-04T22:00:00+00:00", False),
        ("Sun 22:00-06:00 UTC", "2026-07-06T03:00:00+00:00", True),  # Mon morning is Sunday's
        # Spring: at 02:00 the clocks show 03:00, so what is between is never shown.
        ("Sun 02:00-03:00 Europe/Berlin", "2026-03-29T00:59:59+00:00", False),
        ("Sun 02:00-03:00 Europe/Berlin", "2026-03-29T01:00:00+00:00", False),
        ("Sun 01:00-04:00 Europe/Berlin", "2026-03-29T01:59:59+00:00", True),
        ("Sun 01:00-04:00 Europe/Berlin", "2026-03-29T02:00:00+00:00", False),
        # Autumn: the clocks show 02:00 to 03:00 twice, and both are within.
        ("Sun 02:00-03:00 Europe/Berlin", "2026-10-25T00:00:00+00:00", True),
        ("Sun 02:00-03:00 Europe/Berlin", "2026-10-25T01:59:59+00:00", True),
        ("Sun 02:00-03:00 Europe/Berlin", "2026-10-25T02:00:00+00:00", False),
        # A zone half an hour off, and one whose clocks change by half an hour.
        ("Mon 09:00-10:00 Asia/Kolkata", "2026-07-06T03:30:00+00:00", True),
        ("Sun 01:45-02:15 Australia/Lord_Howe", "2026-10-03T15:15:00+00:00", True),
    ],
)
def test_hours_are_what_the_clocks_of_the_place_show(
    spec: str, moment: str, expected: bool
) -> None:
    """Also where they change, and over midnight."""
    assert within(parse_hours(spec), at(moment)) is expected


def test_a_year_of_office_hours_has_the_minutes_that_its_clocks_show() -> None:
    """Minute by minute over both changes of 2026, against the calendar's own arithmetic."""
    hours = parse_hours("Mon-Sun 01:30-03:30 Europe/Berlin")
    for day, minutes in (("2026-03-28", 120), ("2026-03-29", 60), ("2026-10-25", 180)):
        start = int(datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp()) - 3 * 3600
        end = start + 12 * 3600
        assert sum(within(hours, UnixMs(s * 1000)) for s in range(start, end, 60)) == minutes


def test_the_machine_s_own_zone_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the one that is named."""
    import time

    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    try:
        assert within(parse_hours("Wed 08:00-09:00 UTC"), at("2026-07-01T08:30:00+00:00"))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert datetime.now(UTC).tzinfo is UTC


# --------------------------------------------------------------------------------------- wider


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ({"permissions": ["read"]}, {"permissions": ["read", "write"]}, "permissions"),
        ({"permissions": ["read"]}, {"uses": 5}, "permissions"),
        ({"permissions": ["read:sensitive"]}, {"permissions": ["read"]}, None),
        ({"routes": ["* /a"]}, {"routes": ["GET /a"]}, None),
        ({"routes": ["GET /a"]}, {"routes": ["* /a"]}, "routes"),
        ({"from": ["10.0.0.0/8"]}, {"from": ["10.1.0.0/16"]}, None),
        ({"from": ["10.1.0.0/16"]}, {"from": ["10.1.0.0/16", "::/0"]}, "from"),
        ({"rate": "10/60s"}, {"rate": "11/60s"}, "rate"),
        ({"rate": "10/60s"}, {"rate": "10/30s"}, "rate"),
        ({"rate": "10/60s"}, {"rate": "5/2m"}, None),
        ({"uses": 5}, {"uses": 6}, "uses"),
        ({"uses": 5}, {"uses": 4, "note": "less"}, None),
        ({"until": "2027-01-01T00:00:00Z"}, {"until": "2027-01-02T00:00:00Z"}, "until"),
        ({"not_before": "2027-01-01T00:00:00Z"}, {"uses": 1}, "not_before"),
        ({"hours": ["Mon 08:00-09:00 UTC"]}, {"hours": ["Mon 08:00-10:00 UTC"]}, "hours"),
        ({"uses": 5}, {"uses": 5, "routes": ["GET /a"]}, None),
    ],
)
def test_what_would_be_wider_is_named(
    old: dict[str, Any], new: dict[str, Any], part: str | None
) -> None:
    """So that nobody widens what he meant to narrow."""
    assert widened(parse(old), parse(new)) == part


def test_whatever_replaces_a_damaged_one_is_wider_in_nothing() -> None:
    """It admits nothing, and must be put right."""
    assert widened(DAMAGED, Restriction(rate=Limit(1))) is None


# ------------------------------------------------------------------------ what a request names

TEAM = TeamId(3)
PROD = ("p", "e1", "prod")
DEV = ("p", "e2", "dev")
TREE = {
    "p": Place(TEAM, ResourceKind.PROJECT, "p"),
    "q": Place(TEAM, ResourceKind.PROJECT, "q"),
    "e1": Place(TEAM, ResourceKind.ENVIRONMENT, *PROD),
    "p/prod": Place(TEAM, ResourceKind.ENVIRONMENT, *PROD),
    "p/dev": Place(TEAM, ResourceKind.ENVIRONMENT, *DEV),
    "app": Place(TEAM, ResourceKind.APPLICATION, *PROD),
    "other": Place(TEAM, ResourceKind.APPLICATION, *DEV),
    "db": Place(TEAM, ResourceKind.DATABASE, *PROD),
    "svc": Place(TEAM, ResourceKind.SERVICE, *PROD),
    "part": Place(TEAM, ResourceKind.SERVICE_DATABASE, *PROD, "svc"),
    "srv": Place(TEAM, ResourceKind.SERVER),
    "run": Place(TEAM, ResourceKind.DEPLOYMENT, *PROD, "app"),
}


def asked(
    given: dict[str, Any], method: str, target: str, *, body: bool = False, held: str = "root"
) -> Deny | Allow:
    """What a restriction says of a request, by the tree."""
    path = target.partition("?")[0]
    route = coolify("4.3").find(method, path)
    assert route is not None
    names = named(route, path, target.encode())._replace(body=body)
    one = record(held, restrictions={"token": parse(given)})
    return judge(Case(POLICY, request().client, route, OPEN, one, names, TREE)).verdict


def answer(given: dict[str, Any], method: str, target: str, **more: Any) -> str:
    return code(Judgement(asked(given, method, target, **more), None))


INSIDE = [
    ({"projects": ["p"]}, "GET", "/api/v1/projects/p"),
    ({"projects": ["p"]}, "GET", "/api/v1/projects/p/prod"),
    ({"projects": ["p"]}, "GET", "/api/v1/projects/p/e1"),
    ({"projects": ["p"]}, "PATCH", "/api/v1/applications/app"),
    ({"projects": ["p"]}, "GET", "/api/v1/services/svc/databases/part"),
    ({"projects": ["p"]}, "GET", "/api/v1/deployments/run"),
    ({"projects": ["p"]}, "POST", "/api/v1/deploy?uuid=app,svc,db"),
    ({"environments": ["p/prod"]}, "GET", "/api/v1/projects/p/prod"),
    ({"environments": ["p/prod"]}, "GET", "/api/v1/projects/p/e1"),
    ({"environments": ["p/e1"]}, "GET", "/api/v1/projects/p/prod"),
    ({"environments": ["p/prod"]}, "POST", "/api/v1/databases/db/stop"),
    ({"resources": ["app"]}, "POST", "/api/v1/applications/app/restart"),
    ({"resources": ["app"]}, "GET", "/api/v1/applications/app/logs?lines=5"),
    ({"resources": ["app"]}, "GET", "/api/v1/deployments/applications/app?skip=0&take=5"),
    ({"resources": ["app"]}, "POST", "/api/v1/deployments/run/cancel"),
    ({"resources": ["app"]}, "POST", "/api/v1/deploy?uuid=app&force=true"),
    ({"resources": ["svc"]}, "GET", "/api/v1/services/svc/databases/part/logs"),
    ({"resources": ["part"]}, "GET", "/api/v1/services/svc/databases/part/logs"),
    ({"resources": ["srv"]}, "GET", "/api/v1/servers/srv/domains"),
    ({"tags": ["shop"]}, "POST", "/api/v1/deploy?tag=shop"),
    ({"resources": ["app"], "routes": ["GET /api/v1/servers"]}, "GET", "/api/v1/servers"),
    ({"resources": ["app"], "routes": ["* /mcp"]}, "POST", "/mcp"),
]


@pytest.mark.parametrize(("given", "method", "target"), INSIDE)
def test_what_lies_inside_passes(given: dict[str, Any], method: str, target: str) -> None:
    """By its project, its environment, itself, or what it is a part of."""
    assert answer(given, method, target) == "allow"


ELSEWHERE = [
    ({"projects": ["q"]}, "GET", "/api/v1/projects/p", "Project not found."),
    ({"projects": ["q"]}, "GET", "/api/v1/applications/app", "Application not found."),
    ({"projects": ["p"]}, "GET", "/api/v1/servers/srv", "Server not found."),
    ({"environments": ["p/prod"]}, "GET", "/api/v1/projects/p", "Project not found."),
    ({"environments": ["p/prod"]}, "GET", "/api/v1/projects/p/dev", "Environment not found."),
    ({"environments": ["q/prod"]}, "GET", "/api/v1/databases/db", "Database not found."),
    ({"resources": ["app"]}, "GET", "/api/v1/applications/other", "Application not found."),
    ({"resources": ["app"]}, "GET", "/api/v1/projects/p/prod", "Environment not found."),
    ({"resources": ["db"]}, "GET", "/api/v1/deployments/run", "Deployment not found."),
    ({"resources": ["part"]}, "GET", "/api/v1/services/svc", "Service not found."),
    (
        {"resources": ["part"]},
        *("GET", "/api/v1/services/app/databases/part"),
        "Service database not found.",
    ),
    (
        {"projects": ["p"]},
        *("GET", "/api/v1/services/p/databases/part"),
        "Service database not found.",
    ),
    ({"resources": ["app"]}, "POST", "/api/v1/deploy?uuid=app,other", "Resource not found."),
]


@pytest.mark.parametrize(("given", "method", "target", "message"), ELSEWHERE)
def test_what_lies_outside_is_not_found(
    given: dict[str, Any], method: str, target: str, message: str
) -> None:
    """In Coolify's own words; a route that is named opens no other resource."""
    route = coolify("4.3").find(method, target.partition("?")[0])
    assert route is not None
    for more in ({}, {"routes": [f"* {route.template}"]}):
        verdict = asked({**given, **more}, method, target)
        assert isinstance(verdict, Deny)
        assert (verdict.reason.code, verdict.reason.status) == ("resource_not_found", 404)
        assert verdict.reason.message == message


REFUSED = [
    ("GET", "/api/v1/applications"),
    ("POST", "/api/v1/applications/public"),
    ("POST", "/mcp"),
    ("GET", "/api/v1/security/keys/app"),
    ("GET", "/api/v1/teams/1"),
    ("GET", "/api/v1/deployments"),
    ("POST", "/api/v1/disable"),
    ("GET", "/api/v1/applications/unknown"),
    ("GET", "/api/v1/databases/app"),
    ("POST", "/api/v1/deploy"),
    ("POST", "/api/v1/deploy?uuid="),
    ("POST", "/api/v1/deploy?tag=shop"),
    ("POST", "/api/v1/deploy?uuid=app&tag=shop"),
    ("POST", "/api/v1/deploy?uuid=srv"),
    ("GET", "/api/v1/applications/app?uuid=other"),
    ("GET", "/api/v1/applications/app?u%75id[]=other"),
    ("POST", "/api/v1/applications/app/move?environment_uuid=e2"),
    ("GET", "/api/v1/applications/" + "x" * 300),
]


@pytest.mark.parametrize(("method", "target"), REFUSED)
def test_what_cannot_be_told_is_refused(method: str, target: str) -> None:
    """Collections, creations, MCP, what is the team's, what nobody knows, and odd queries."""
    assert answer({"resources": ["app"]}, method, target) == "token_restricted"


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_a_body_that_would_be_input_is_refused_with_advice(method: str) -> None:
    """On every method, since Laravel reads JSON on GET as well; a named route is no way around."""
    for given in ({"projects": ["p"]}, {"projects": ["p"], "routes": [f"{method} {APP}"]}):
        verdict = asked(given, method, "/api/v1/applications/app", body=True)
        assert isinstance(verdict, Deny)
        assert verdict.reason.code == "token_restricted"
        assert "without a body and without this Content-Type" in verdict.advice
    plain = {"permissions": ["write", "read"]}
    assert answer(plain, method, "/api/v1/applications/app", body=True) == "allow"


APP = "/api/v1/applications/{uuid}"


NO_PROJECT = Refused("has not Project p within it", "Project")
UNSEEN = Refused("does not admit a body that can't be seen", advice=HIDDEN_BODY)
AMONG = {"projects": ["p"], "tags": ["shop"]}
HUNDRED = ",".join(["app", *(f"a{n}" for n in range(99))])
OTHER_KEY = "a key of the query may name another resource"


@pytest.mark.parametrize(
    ("given", "method", "target", "said", "expected"),
    [
        ({"uses": 1}, "GET", "/api/v1/applications/unknown", None, None),
        (AMONG, "GET", "/api/v1/applications/app", None, None),
        (AMONG, "GET", "/api/v1/applications", None, None),
        (AMONG, "POST", "/api/v1/services", None, None),
        (AMONG, "POST", "/api/v1/services", UNSEEN, UNSEEN),
        (AMONG, "GET", "/api/v1/services", UNSEEN, None),
        (AMONG, "PATCH", "/api/v1/applications/other", UNSEEN, UNSEEN),
        (
            *(AMONG, "GET", "/api/v1/applications/other?server_uuid=s", None),
            Refused(f"can't tell what is named: {OTHER_KEY}", advice=f"{OTHER_KEY}."),
        ),
        (
            *(AMONG, "POST", "/api/v1/deploy", None),
            Refused("can't tell what POST /api/v1/deploy touches: no uuid is given"),
        ),
        (
            *(AMONG, "POST", "/api/v1/services", {"name": "x"}),
            Refused("can't tell what POST /api/v1/services touches: no uuid is given"),
        ),
        (AMONG, "POST", "/api/v1/deploy", {"uuid": "app", "tag": "shop"}, None),
        (
            *(AMONG, "POST", f"/api/v1/deploy?uuid={HUNDRED}", None),
            Refused("does not know Resource a0"),
        ),
        (
            *(AMONG, "POST", f"/api/v1/deploy?uuid={HUNDRED},b", None),
            Refused("admits 100 resources at once"),
        ),
        (
            *(AMONG, "POST", "/api/v1/deploy?uuid=app&tag=shop,x", None),
            Refused("does not name a tag that is to be deployed"),
        ),
        (
            *(AMONG, "GET", "/api/v1/applications/unknown", None),
            Refused("does not know Application unknown"),
        ),
        (
            *(AMONG, "GET", "/api/v1/servers/srv", None),
            Refused("has not Server srv within it", "Server"),
        ),
        (
            *({"resources": ["app"]}, "POST", "/api/v1/deploy?uuid=app,other", None),
            Refused("has not Resource other within it", "Resource"),
        ),
        (
            *({"environments": ["p/prod"]}, "GET", "/api/v1/projects/q/e1", None),
            Refused("does not know Environment e1"),
        ),
        ({"environments": ["p/prod"]}, "GET", "/api/v1/projects/p/e1", None, None),
        ({"environments": ["p/e1"]}, "GET", "/api/v1/services/svc/databases/part", None, None),
        (
            *({"environments": ["q/prod"]}, "GET", "/api/v1/services/svc/databases/part", None),
            Refused("has not Service database part within it", "Service database"),
        ),
        (
            *(AMONG, "GET", "/api/v1/services/other/databases/part", None),
            Refused("knows part elsewhere than in other", "Service database"),
        ),
        (AMONG, "POST", "/api/v1/applications/app/move", {"environment_uuid": "e1"}, None),
        (
            *(AMONG, "POST", "/api/v1/applications/app/move", {"environment_uuid": "e3"}),
            Refused("does not know the Environment that the body names"),
        ),
        (
            *(AMONG, "POST", "/api/v1/applications/app/move", {"project_uuid": "q"}),
            Refused("has not the Project that the body names within it", "Project"),
        ),
        (
            *({"projects": ["q"]}, "POST", "/api/v1/applications/app/move", {"project_uuid": "q"}),
            Refused("has not Application app within it", "Application"),
        ),
        (
            *(AMONG, "POST", "/api/v1/services", {"server_uuid": "srv"}),
            Refused("has not the Server that the body names within it", "Server"),
        ),
        (
            *({"resources": ["srv"]}, "POST", "/api/v1/services", {"server_uuid": "srv"}),
            None,
        ),
        ({"resources": ["p", "e1"]}, "GET", "/api/v1/projects/p", None, NO_PROJECT),
    ],
)
def test_it_is_told_what_lies_outside(
    given: dict[str, Any],
    method: str,
    target: str,
    said: dict[str, object] | Refused | None,
    expected: Refused | None,
) -> None:
    """What the path names by its text, what a body does by its noun alone."""
    path = target.partition("?")[0]
    route = coolify("4.3").find(method, path)
    assert route is not None
    names = named(route, path, target.encode())
    if isinstance(said, Refused):
        names = names._replace(body=True, held=True)
    elif said is not None:
        body = read_body([b"application/json"], json.dumps(said).encode())
        names = with_body(names, route, path, body)._replace(held=True)
    assert outside(parse(given), route, names, TREE) == expected


def test_a_named_creation_may_have_a_body() -> None:
    """Whoever names it accepts what can't be seen."""
    given = {"projects": ["p"], "routes": ["POST /api/v1/applications/public"]}
    assert answer(given, "POST", "/api/v1/applications/public", body=True) == "allow"


def test_a_named_creation_is_held_to_its_body_where_bodies_are_shown() -> None:
    """What it names must lie inside; a list under the same template names nothing."""
    services = "/api/v1/services"
    given = {"projects": ["p"], "routes": [f"* {services}"]}

    def ask(method: str, said: str | None) -> str:
        route = coolify("4.3").find(method, services)
        assert route is not None
        names = named(route, services, services.encode())._replace(held=True, body=said is None)
        if said is not None:
            names = with_body(
                names, route, services, read_body([b"application/json"], said.encode())
            )
        one = record("root", restrictions={"token": parse(given)})
        case = Case(POLICY, request().client, route, OPEN, one, names, TREE)
        return code(Judgement(judge(case).verdict, None))

    assert ask("POST", '{"project_uuid": "p", "environment_name": "prod"}') == "allow"
    assert ask("POST", '{"project_uuid": "p", "environment_name": "no"}') == "token_restricted"
    assert ask("POST", '{"project_uuid": "p", "server_uuid": "srv"}') == "resource_not_found"
    assert ask("POST", '{"name": "x"}') == "token_restricted"
    assert ask("POST", None) == "token_restricted"
    assert ask("GET", '{"name": "x"}') == "allow"


def test_each_restriction_must_admit_what_is_named() -> None:
    """The token's, its user's and its team's."""
    route = coolify("4.3").find("GET", "/api/v1/applications/app")
    assert route is not None
    names = named(route, "/api/v1/applications/app", b"/api/v1/applications/app")
    wide, narrow = parse({"projects": ["p"]}), parse({"environments": ["p/dev"]})
    for restrictions, expected in (
        ({"token": wide, "user": wide}, "allow"),
        ({"token": wide, "team": narrow}, "resource_not_found"),
        ({"token": narrow, "team": wide}, "resource_not_found"),
    ):
        case = Case(
            POLICY, request().client, route, OPEN, record(restrictions=restrictions), names, TREE
        )
        assert code(judge(case)) == expected


@pytest.mark.parametrize(
    ("old", "new", "wider"),
    [
        ({"projects": ["p"]}, {"projects": ["p"]}, None),
        ({"projects": ["p", "q"]}, {"projects": ["p"]}, None),
        ({"projects": ["p"]}, {"projects": ["q"]}, "projects"),
        ({"projects": ["p"]}, {"uses": 1}, "resources"),
        ({"projects": ["p"]}, {"environments": ["p/prod"]}, None),
        ({"projects": ["p"]}, {"environments": ["q/prod"]}, "environments"),
        ({"projects": ["p"]}, {"environments": ["p/a/b"]}, None),
        ({"resources": ["p", "other"]}, {"resources": ["p"]}, None),
        ({"projects": ["p"]}, {"resources": ["app"]}, None),
        ({"projects": ["q"]}, {"resources": ["app"]}, "resources"),
        ({"projects": ["p"]}, {"resources": ["unknown"]}, "resources"),
        ({"environments": ["p/prod"]}, {"resources": ["db"]}, None),
        ({"resources": ["svc"]}, {"resources": ["part"]}, None),
        ({"resources": ["app"]}, {"resources": ["app"], "tags": ["x"]}, "tags"),
        ({"uses": 1}, {"uses": 1, "projects": ["p"]}, None),
    ],
)
def test_what_lies_within_is_not_wider(
    old: dict[str, Any], new: dict[str, Any], wider: str | None
) -> None:
    """As far as it is known where it lies."""
    assert widened(parse(old), parse(new), TREE) == wider


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("1/1", Limit(1, 1000)),
        ("5/s", Limit(5, 1000)),
        ("5/m", Limit(5, 60_000)),
        ("5/2h", Limit(5, 7_200_000)),
        ("5/1d", Limit(5, 86_400_000)),
        (f"{LARGEST_RATE}/60", Limit(LARGEST_RATE, 60_000)),
        ("5/", None),
        ("5/0s", None),
        ("0/5s", None),
        (f"{LARGEST_RATE + 1}/60", None),
        ("5/2d", None),
        ("5/86401s", None),
        ("5/5x", None),
        ("5", None),
    ],
)
def test_a_rate_is_read_to_its_bounds(text: str, limit: Limit | None) -> None:
    """One second to one day."""
    if limit is not None:
        assert parse_rate(text) == limit
        return
    with pytest.raises(ValueError, match=r"is not"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"rate": 5}, "rate"),
        ({"note": 5}, "note"),
        ({"uses": 5, "note": "x" * LONGEST_NOTE}, None),
        ({"note": "x" * (LONGEST_NOTE + 1)}, "note"),
        ({"note": "a\x07"}, "it holds a control character"),
        ({"tags": ["x" * LONGEST_NAME]}, None),
        ({"tags": ["x" * (LONGEST_NAME + 1)]}, "tags"),
        ({"tags": [" x"]}, "tags"),
        ({"tags": [" "]}, "tags"),
        ({"environments": ["p/x"]}, None),
        ({"environments": ["p/" + "x" * LONGEST_NAME]}, None),
        ({"environments": ["p/" + "x" * (LONGEST_NAME + 1)]}, "environments"),
        ({"environments": ["p/"]}, "environments"),
        ({"environments": ["p"]}, "environments"),
        ({"environments": ["/x"]}, "environments"),
    ],
)
def test_a_part_is_read_to_its_bounds(given: dict[str, Any], wrong: str | None) -> None:
    """What is wrong is named."""
    if wrong is None:
        assert as_mapping(parse(given)) == given
        return
    with pytest.raises(RestrictionError, match=wrong):
        parse(given)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ({"until": "2027-01-01T00:00:00Z"}, {"until": "2027-01-01T00:00:00Z"}, None),
        ({"until": "2027-01-01T00:00:00Z"}, {"until": "2027-01-01T00:00:01Z"}, "until"),
        ({"until": "2027-01-01T00:00:00Z"}, {"uses": 5}, "until"),
        ({"not_before": "2027-01-01T00:00:00Z"}, {"not_before": "2027-01-01T00:00:00Z"}, None),
        ({"not_before": "2027-01-01T00:00:01Z"}, {"not_before": "2027-01-01T00:00:00Z"}, "not"),
        ({"not_before": "2027-01-01T00:00:00Z"}, {"uses": 5}, "not"),
        ({"hours": ["Mon 08:00-18:00 UTC"]}, {"hours": ["Mon 08:00-18:00 UTC"]}, None),
        ({"hours": ["Mon 08:00-18:00 UTC"]}, {"hours": ["Tue 08:00-18:00 UTC"]}, "hours"),
        ({"hours": ["Mon 08:00-18:00 UTC"]}, {"uses": 5}, "hours"),
    ],
)
def test_the_same_time_is_no_wider_and_another_one_is(old, new, part: str | None) -> None:
    """To the second."""
    found = widened(parse(old), parse(new))
    assert found is None if part is None else found is not None and part in found
