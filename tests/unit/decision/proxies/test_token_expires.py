"""The one header that is not on every 200: a token that expires soon says when."""

from ipaddress import ip_address

import pytest

from authsidecar.decision.authorize import Outcome
from authsidecar.decision.checks import PERMISSION_MISSING
from authsidecar.decision.model import (
    Allow,
    Deny,
    Permission,
    Principal,
    Role,
    TeamId,
    TokenId,
    TokenRecord,
    UserId,
)
from authsidecar.decision.proxies.replies import render
from authsidecar.times import UnixMs

EXPIRY = UnixMs(1_800_000_000_000)  # 2027-01-15 08:00 UTC
HOUR_MS = 3_600_000
CLIENT = ip_address("192.0.2.1")


def record(expires_at: UnixMs | None) -> TokenRecord:
    return TokenRecord(
        token=TokenId(7),
        digest=b"digest",
        name="n",
        user=UserId(1),
        team=TeamId(1),
        permissions=frozenset({Permission.READ}),
        expires_at=expires_at,
        role=Role.OWNER,
    )


def said(verdict, now: int, expires_at: UnixMs | None = EXPIRY, hours: int = 24) -> str | None:
    outcome = Outcome(verdict, UnixMs(now), record=record(expires_at))
    reply = render(outcome, CLIENT, "d1", expiry_ms=hours * HOUR_MS)
    return dict(reply.headers).get("X-Auth-Token-Expires")


KNOWN = Allow(Principal(UserId(1), TeamId(1), Role.OWNER, TokenId(7), frozenset({Permission.READ})))


@pytest.mark.parametrize(
    ("before_ms", "hours", "expected"),
    [
        (24 * HOUR_MS + 1, 24, None),
        (24 * HOUR_MS, 24, "2027-01-15T08:00:00Z"),
        (0, 24, "2027-01-15T08:00:00Z"),
        (1, 0, None),
        (0, 0, None),
    ],
)
def test_it_is_said_from_the_configured_time_on(before_ms, hours, expected):
    """To the millisecond; 0 hours are never."""
    assert said(KNOWN, EXPIRY - before_ms, hours=hours) == expected


def test_a_token_without_expiry_says_nothing():
    """There is nothing to say."""
    assert said(KNOWN, EXPIRY, None) is None


@pytest.mark.parametrize("verdict", [Allow(None), Deny(PERMISSION_MISSING)])
def test_it_is_said_to_the_backend_of_a_known_caller_alone(verdict):
    """Not on a refusal, nor where nobody is named."""
    assert said(verdict, EXPIRY) is None
