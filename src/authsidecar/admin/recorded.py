"""What a receipt says, as the values that the core decides from."""

from collections.abc import Mapping
from typing import Final

from authsidecar.decision import restrictions
from authsidecar.decision.addresses import Networks, parse_network
from authsidecar.decision.allowlist import Allowlist
from authsidecar.decision.checks import ADDRESS_NOT_ALLOWED, NOT_TEAM_MEMBER
from authsidecar.decision.credentials import (
    AUTHORIZATION_AMBIGUOUS,
    TOKEN_MALFORMED,
    TOKEN_MISSING,
    TOKEN_PREFIX_MISSING,
)
from authsidecar.decision.model import (
    DAMAGED,
    Credential,
    Deny,
    Permission,
    Restriction,
    Role,
    TeamId,
    TokenId,
    TokenRecord,
    UserId,
)
from authsidecar.decision.policy import RATE_LIMITED, TOKEN_UNKNOWN
from authsidecar.observe.receipts import Receipt
from authsidecar.times import UnixMs

TAKEN: Final = bytes(32)
"""The digest of a secret that is taken as right."""

_OTHER: Final = b"\xff" * 32

_CREDENTIALS: Final = {
    reason.code: Deny(reason)
    for reason in (
        TOKEN_MISSING,
        TOKEN_MALFORMED,
        TOKEN_PREFIX_MISSING,
        AUTHORIZATION_AMBIGUOUS,
    )
}


def credential(one: Receipt) -> Credential | Deny:
    """What is known of the token that was sent."""
    if one.token is not None:
        return Credential(TokenId(one.token), TAKEN)
    if one.code in _CREDENTIALS:
        return _CREDENTIALS[one.code]
    if one.claimed is None:
        return _CREDENTIALS[TOKEN_MISSING.code]
    failed = one.code == RATE_LIMITED.code and any(q.scope == "failed" for q in one.counters)
    wrong = failed or one.code == TOKEN_UNKNOWN.code
    return Credential(TokenId(one.claimed), _OTHER if wrong else TAKEN)


def expired(token: int, at: UnixMs) -> TokenRecord:
    """A token that had expired just before."""
    return TokenRecord(
        token=TokenId(token),
        digest=TAKEN,
        name="",
        user=UserId(0),
        team=None,
        permissions=frozenset(),
        expires_at=UnixMs(at - 1),
        role=None,
    )


def token_record(one: Receipt, token: int, user: int) -> TokenRecord:
    """The token as it was."""
    gone = one.code == NOT_TEAM_MEMBER.code
    return TokenRecord(
        token=TokenId(token),
        digest=TAKEN,
        name="",
        user=UserId(user),
        team=None if one.team is None else TeamId(one.team),
        permissions=frozenset(map(Permission, one.permissions)),
        expires_at=one.expires_at,
        role=None if gone or one.role is None else Role(one.role),
        team_mcp=one.team_mcp,
        limits=one.limits,
        restrictions={holder: _restriction(of) for holder, of in one.restrictions.items()},
    )


def _restriction(of: Mapping[str, object]) -> Restriction:
    try:
        return restrictions.parse(of)
    except ValueError:
        return DAMAGED


def admitting(one: Receipt) -> Allowlist:
    """A list that says of this address what the list of that time said."""
    if one.code == ADDRESS_NOT_ALLOWED.code or not one.address_allowed or one.client is None:
        return Allowlist((), everyone=False, networks=Networks())
    network = parse_network(one.client)
    return Allowlist((one.client,), everyone=False, networks=Networks.of([network]))
