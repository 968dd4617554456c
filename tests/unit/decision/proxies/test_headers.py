"""Header names: which one means what, and which spelling is refused."""

import pytest

from authsidecar.decision.proxies import headers
from authsidecar.decision.proxies.headers import (
    _LONGEST_SEEN,
    _MOST_SEEN,
    _SEEN,
    IDENTITY,
    RESERVED_PREFIXES,
    Field,
    Fields,
    classify,
)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        (b"Authorization", Field.AUTHORIZATION),
        (b"AUTHORIZATION", Field.AUTHORIZATION),
        (b"X-Forwarded-Method", Field.METHOD),
        (b"x-forwarded-uri", Field.URI),
        (b"X-FORWARDED-FOR", Field.FOR),
        (b"Origin", Field.ORIGIN),
        (b"Access-Control-Request-Method", Field.PREFLIGHT_METHOD),
        (b"X-Authz-Request-Id", Field.REQUEST_ID),
        (b"Content-Type", Field.CONTENT_TYPE),
        (b"content_type", Field.CONTENT_TYPE),
        (b"Content.Type", Field.CONTENT_TYPE),
        (b"USER-AGENT", Field.USER_AGENT),
        (b"user_agent", Field.OTHER),
        (b"access_control.request-method", Field.OTHER),
        (b"X-HTTP-Method-Override", Field.OVERRIDE),
        (b"x_http_method_override", Field.OVERRIDE),
        (b"X.Http.Method_Override", Field.OVERRIDE),
        (b"X-Forwarded_Uri", Field.RESERVED),
        (b"x.authz.request.id", Field.RESERVED),
        (b"X-Auth-User-Id", Field.OTHER),
        (b"X-Forwarded-Proto", Field.OTHER),
        (b"Author_ization", Field.OTHER),
        (b"X-Authority", Field.OTHER),
        (b"", Field.OTHER),
        (b"\xff_\xfe", Field.OTHER),
    ],
)
def test_a_name_means_one_thing_in_any_case(name: bytes, field: Field) -> None:
    """Letter case never matters; `_` and `.` never make a header that is read."""
    assert classify(name) is field


@pytest.mark.parametrize("name", IDENTITY)
@pytest.mark.parametrize("separator", ["_", "."])
def test_every_other_spelling_of_an_identity_header_is_reserved(name: str, separator: str) -> None:
    """Pitfall 1: each position of `-` alone, and all of them, in any case."""
    parts = name.split("-")
    spellings = {separator.join(parts)} | {
        "-".join(parts[:i]) + separator + "-".join(parts[i:]) for i in range(1, len(parts))
    }
    assert len(spellings) == len(parts)
    for spelling in spellings:
        assert classify(spelling.encode()) is Field.RESERVED
        assert classify(spelling.lower().encode()) is Field.RESERVED
    assert classify(name.upper().encode()) is Field.OTHER


def test_all_of_our_names_are_in_reserved_families() -> None:
    """No header that we set or read for its proxy could be spelled otherwise unnoticed."""
    ours = [
        value
        for name, value in vars(headers).items()
        if name.isupper() and isinstance(value, str) and value.startswith("X-")
    ]
    assert len(ours) >= 14
    for name in set(ours) - {headers.METHOD_OVERRIDE}:
        assert name.lower().encode().startswith(RESERVED_PREFIXES)


def test_values_are_kept_as_they_came() -> None:
    """Raw bytes, in order, repeated and empty ones too: to judge them is for others."""
    fields = Fields(
        [
            (b"X-Forwarded-For", b"\xff"),
            (b"authorization", b""),
            (b"x-forwarded-for", b" 1"),
            (b"Authorization", b"b"),
            (b"X-Forwarded-Uri", b"/"),
            (b"X-Forwarded-Method", b"GET"),
            (b"X-Authz-Request-Id", b"r"),
            (b"Content-Type", b"t"),
            (b"Content_Type", b"t2"),
            (b"User-Agent", b"u"),
            (b"Cookie", b"c"),
        ]
    )
    assert fields.forwarded_for == [b"\xff", b" 1"]
    assert fields.authorization == [b"", b"b"]
    assert (fields.uri, fields.method, fields.request_id) == ([b"/"], [b"GET"], [b"r"])
    assert (fields.content_type, fields.user_agent) == ([b"t", b"t2"], [b"u"])
    assert not any((fields.origin, fields.preflight_method, fields.override, fields.reserved))


def test_nothing_is_read_after_a_reserved_name() -> None:
    """It is refused, whatever else there is."""
    fields = Fields([(b"Origin", b"o"), (b"X_Auth_User_Id", b"1"), (b"Authorization", b"a")])
    assert (fields.origin, fields.reserved, fields.authorization) == ([b"o"], [b"1"], [])


def test_without_headers_every_field_is_an_empty_list() -> None:
    """A value is looked for in each, so each is there."""
    fields = Fields([])
    assert [getattr(fields, name) for name in Fields.__slots__] == [[]] * 11


def test_flags_are_raised_by_presence_alone() -> None:
    """An empty Origin or override is there."""
    fields = Fields(
        (name, b"")
        for name in (
            b"Origin",
            b"Access-Control-Request-Method",
            b"X-HTTP-Method-Override",
            b"X_Auth_User_Id",
        )
    )
    assert fields.origin
    assert fields.preflight_method
    assert fields.override
    assert fields.reserved


def test_a_name_that_was_seen_is_not_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy sends the same ones each time."""
    monkeypatch.setitem(_SEEN, b"X-Seen", Field.ORIGIN)
    assert Fields([(b"X-Seen", b"o")]).origin == [b"o"]


def test_long_names_are_not_remembered() -> None:
    """Junk cannot fill the memory, and is judged all the same."""
    _SEEN.clear()
    for length in (_LONGEST_SEEN, _LONGEST_SEEN + 1):
        assert classify(b"x" * length) is Field.OTHER
    assert {b"x" * _LONGEST_SEEN: Field.OTHER} == _SEEN
    before = len(_SEEN)
    fields = Fields((b"X_Auth_" + str(n).encode() * 30 + b"x" * 60, b"") for n in range(100))
    assert fields.reserved
    assert len(_SEEN) == before
    Fields((b"X-Junk-%d" % n, b"") for n in range(2 * _MOST_SEEN))
    assert len(_SEEN) == _MOST_SEEN
    assert Fields([(b"X.Auth.User.Id", b"1")]).reserved
