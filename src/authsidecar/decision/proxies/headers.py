"""Every header that the sidecar reads or writes, each named once, and the one pass over them.

Header names fold: PHP and others read `X_Auth_User_Id`, `X.Auth.User.Id` and `X-Auth-User-Id` as
one variable, and the client's may win. So another spelling of a name that is ours, or that a
proxy sets for us, is refused (pitfalls 1 and 9).
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

FORWARDED_METHOD: Final = "X-Forwarded-Method"
FORWARDED_URI: Final = "X-Forwarded-Uri"
FORWARDED_FOR: Final = "X-Forwarded-For"
METHOD_OVERRIDE: Final = "X-HTTP-Method-Override"
REQUEST_ID: Final = "X-Authz-Request-Id"

USER_ID: Final = "X-Auth-User-Id"
TEAM_ID: Final = "X-Auth-Team-Id"
TEAM_ROLE: Final = "X-Auth-Team-Role"
TOKEN_ID: Final = "X-Auth-Token-Id"  # noqa: S105  # a name, no secret
PERMISSIONS: Final = "X-Auth-Permissions"
READ_SENSITIVE: Final = "X-Auth-Read-Sensitive"
CLIENT_IP: Final = "X-Auth-Client-Ip"
TOKEN_EXPIRES: Final = "X-Auth-Token-Expires"  # noqa: S105  # a name, no secret
DECISION_ID: Final = "X-Auth-Decision-Id"

IDENTITY: Final = (
    USER_ID,
    TEAM_ID,
    TEAM_ROLE,
    TOKEN_ID,
    PERMISSIONS,
    READ_SENSITIVE,
    CLIENT_IP,
    DECISION_ID,
)
"""What the backend is told on every 200, each exactly once and never empty. TOKEN_EXPIRES comes
with them where a token expires soon, and only there: proxies delete a client's own."""

AUTHZ_STATUS: Final = "X-Authz-Status"
AUTHZ_BODY: Final = "X-Authz-Body"

RESERVED_PREFIXES: Final = (b"x-auth-", b"x-authz-", b"x-forwarded-")
"""Families in which any other spelling of `-` is refused."""


class Field(StrEnum):
    """What a header name means here; the value is where `Fields` keeps what was sent."""

    OTHER = ""
    AUTHORIZATION = "authorization"
    METHOD = "method"
    URI = "uri"
    FOR = "forwarded_for"
    REQUEST_ID = "request_id"
    ORIGIN = "origin"
    PREFLIGHT_METHOD = "preflight_method"
    OVERRIDE = "override"
    CONTENT_TYPE = "content_type"
    RESERVED = "reserved"
    USER_AGENT = "user_agent"


_FIELDS: Final = {
    b"authorization": Field.AUTHORIZATION,
    FORWARDED_METHOD.lower().encode(): Field.METHOD,
    FORWARDED_URI.lower().encode(): Field.URI,
    FORWARDED_FOR.lower().encode(): Field.FOR,
    b"origin": Field.ORIGIN,
    b"content-type": Field.CONTENT_TYPE,
    b"access-control-request-method": Field.PREFLIGHT_METHOD,
    REQUEST_ID.lower().encode(): Field.REQUEST_ID,
    METHOD_OVERRIDE.lower().encode(): Field.OVERRIDE,
    b"user-agent": Field.USER_AGENT,
}
"""Read at every endpoint, so each proxy's file sets or removes them all. A name that one proxy
alone sets must not be here, since clients could send it past the others: its endpoint's `fields`
reads it."""


class Fields:
    """The headers of one subrequest that matter, as raw bytes, in the order they came."""

    __slots__ = tuple(field.value for field in Field if field is not Field.OTHER)

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        """One pass over all headers; nothing is decided here."""
        self.authorization: list[bytes] = []
        self.forwarded_for: list[bytes] = []
        self.method: list[bytes] = []
        self.uri: list[bytes] = []
        self.request_id: list[bytes] = []
        self.origin: list[bytes] = []
        self.preflight_method: list[bytes] = []
        self.override: list[bytes] = []
        self.content_type: list[bytes] = []
        self.reserved: list[bytes] = []
        self.user_agent: list[bytes] = []
        for name, value in raw:
            field = _SEEN.get(name)
            if field is None:
                field = classify(name)
            if field:
                getattr(self, field).append(value)
                if field is Field.RESERVED:
                    break  # it is refused, whatever else there is


# The first letters of all names that mean anything here.
_OURS: Final = re.compile(
    rb"(?i:x[-_.](?:auth|forwarded|http[-_.]method)|authorization|origin|user-agent"
    rb"|access[-_.]control|content[-_.]type)"
)


def _classify(name: bytes) -> Field:
    if _OURS.match(name) is None:
        return Field.OTHER
    lower = name.lower()
    if (field := _FIELDS.get(lower)) is not None:
        return field
    folded = lower.replace(b"_", b"-").replace(b".", b"-")
    if folded == lower:
        return Field.OTHER
    if (field := _FIELDS.get(folded)) in {Field.OVERRIDE, Field.CONTENT_TYPE}:
        return field  # what may be meant counts as if it were
    return Field.RESERVED if folded.startswith(RESERVED_PREFIXES) else Field.OTHER


_SEEN: dict[bytes, Field] = {}
"""What header names mean that were seen before: the proxy's own, and as many of clients' as fit."""

_MOST_SEEN: Final = 4096
_LONGEST_SEEN: Final = 64


def classify(name: bytes) -> Field:
    """What a header name means, in any case of its letters."""
    found = _classify(name)
    if len(name) <= _LONGEST_SEEN and len(_SEEN) < _MOST_SEEN:
        _SEEN[name] = found
    return found
