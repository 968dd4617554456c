"""`Authorization: Bearer ID|SECRET` becomes an id and a digest; here the secret ends.

Everything is bytes: a header is not text, and one byte that is not UTF-8 must be a 401.
What is refused here says why in a closed set of reasons, never in the client's own words.
"""

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from authsidecar.decision.model import Credential, Deny, Kind, Reason, TokenId

TOKEN_MISSING: Final = Reason("token_missing", Kind.UNAUTHENTICATED, 401, "Unauthenticated.")
"""No Authorization was sent, or an empty one."""

TOKEN_MALFORMED: Final = Reason("token_malformed", Kind.UNAUTHENTICATED, 401, "Unauthenticated.")
"""Something was sent that is not `Bearer ID|SECRET`: another scheme too."""

TOKEN_PREFIX_MISSING: Final = Reason(
    "token_prefix_missing", Kind.UNAUTHENTICATED, 401, "Unauthenticated."
)
"""A token without its `ID|`: the commonest mistake when copying one."""

AUTHORIZATION_AMBIGUOUS: Final = Reason(
    "authorization_ambiguous", Kind.UNAUTHENTICATED, 401, "Unauthenticated."
)
"""Several values, or one with a comma: Coolify and a proxy may each read another token."""

LONGEST: Final = 4096
"""Bytes of the longest value that is looked at; Coolify's own tokens have about 60."""

LARGEST_ID: Final = 9_223_372_036_854_775_807
"""The largest bigint; Coolify answers a larger one with a 500."""

_CREDENTIAL: Final = re.compile(rb"(?i:bearer) ([1-9][0-9]{0,18})\|([^,]+)")
_WITHOUT_PREFIX: Final = re.compile(rb"(?i:bearer) [^ \t|]+")


def find(values: Sequence[bytes]) -> Credential | Deny:
    """The one credential that a request carries, or the 401 that its headers earn.

    Args:
        values: every Authorization value as it arrived, in order.

    Source: InteractsWithInput::bearerToken and Sanctum's findToken, narrowed to one spelling.
    """
    if len(values) != 1:
        return _refusal(values)
    value = values[0]
    match = _CREDENTIAL.fullmatch(value) if len(value) <= LONGEST else None
    if match is None:
        return _refusal(values)
    token_id, secret = match.groups()
    # PHP's empty() is true of "0" as well as of "".
    if int(token_id) > LARGEST_ID or secret == b"0":
        return Deny(TOKEN_MALFORMED, "id or secret out of range")
    return Credential(TokenId(int(token_id)), sha256(secret).digest())


def _refusal(values: Sequence[bytes]) -> Deny:
    """Which 401 it is; the detail never holds a byte of a value."""
    if len(values) > 1:
        return Deny(AUTHORIZATION_AMBIGUOUS, f"{len(values)} Authorization headers")
    value = values[0] if values else b""
    if not value.strip(b" \t"):
        return Deny(TOKEN_MISSING, "no Authorization")
    if len(value) > LONGEST:
        return Deny(TOKEN_MALFORMED, f"longer than {LONGEST} bytes")
    if b"," in value:
        return Deny(AUTHORIZATION_AMBIGUOUS, "a comma in Authorization")
    if _WITHOUT_PREFIX.fullmatch(value):
        return Deny(TOKEN_PREFIX_MISSING, "no ID| before the secret")
    return Deny(TOKEN_MALFORMED, "not Bearer ID|SECRET")
