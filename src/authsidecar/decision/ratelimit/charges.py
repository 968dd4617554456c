"""Which counters one request is charged to (docs/explanation/rate-limiting.md)."""

from collections.abc import Mapping
from typing import NamedTuple

from authsidecar.decision.addresses import address_bucket
from authsidecar.decision.model import Address, Limit, TeamId, TokenId, TokenRecord, UserId

PRINCIPAL_SCOPES = ("token", "user", "team", "address")
"""The counters of an authenticated request, narrowest first; only the configured ones count."""

SCOPES = (
    "user",
    "token",
    "team",
    "address",
    "failed",
    "unknown",
    "health",
    "feedback",
    "sentinel",
    "whoami",
)
"""All counters that a limit can be configured for."""

LARGEST_LIMIT = 100_000
"""The most requests in a window that somebody may be given at run time."""

LONGEST_WINDOW_S = 86_400
"""The longest such window, in seconds: a day."""

RESTRICTION = "restriction"
"""The scope of a restriction's own rate."""

USES = "uses"
"""The scope of a budget: it only ever counts up, and has no window."""

NO_WINDOW = 0
"""Of a budget's limit, in milliseconds."""


class Charge(NamedTuple):
    """One unit of one counter.

    Attributes:
        scope: what sort of counter it is, as the RateLimit fields name it.
        tag: the slot that the counter lives in on Redis Cluster: `u:42`, `t:1`, `a:192.0.2.1`.
        name: the counter within its slot.
        limit: what it admits.
    """

    scope: str
    tag: str
    name: str
    limit: Limit


def of_address(
    bucket: str, client: Address, limits: Mapping[str, Limit], ipv6_prefix: int
) -> tuple[Charge, ...]:
    """The counter of a request without an identity: its bucket, per client address.

    Args:
        bucket: "failed", "unknown", "health", "feedback", "sentinel" or "address".
        client: who is asking; IPv6 is counted by network, since a client owns a whole one.
        limits: by scope; a bucket without a limit is not counted.
        ipv6_prefix: the length of that network, 48 to 128.
    """
    limit = limits.get(bucket)
    if limit is None:
        return ()
    return (Charge(bucket, f"a:{address_bucket(client, ipv6_prefix)}", bucket, limit),)


def slot_of_user(user: UserId) -> str:
    """The tag of a user's slot, in which all that proves and counts for the user lives."""
    return f"u:{user}"


def of_token(token: TokenId, user: UserId, limit: Limit) -> Charge:
    """A token's own counter; it lives in its user's slot, to be charged with the user's."""
    return Charge("token", slot_of_user(user), f"token:{token}", limit)


def of_user(user: UserId, limit: Limit) -> Charge:
    """A user's counter, whichever of its tokens is used."""
    return Charge("user", slot_of_user(user), "user", limit)


def of_team(team: TeamId, limit: Limit) -> Charge:
    """A team's counter, whichever of its members asks."""
    return Charge("team", f"t:{team}", "team", limit)


def of_restriction(record: TokenRecord) -> tuple[Charge, ...]:
    """The counters of what narrows the token itself: its rate, and what is left of its uses."""
    narrowed = record.restrictions.get("token")
    if narrowed is None:
        return ()
    found: tuple[Charge, ...] = ()
    if narrowed.rate is not None:
        name = f"restriction:{record.token}"
        found += (Charge(RESTRICTION, slot_of_user(record.user), name, narrowed.rate),)
    if narrowed.uses is not None:
        found += (budget(record.token, record.user, narrowed.uses),)
    return found


def budget(token: TokenId, user: UserId, uses: int) -> Charge:
    """What a token may be used in all; it is in the user's slot, too."""
    return Charge(USES, slot_of_user(user), f"uses:{token}", Limit(uses, NO_WINDOW))


def of_principal(
    record: TokenRecord, client: Address, limits: Mapping[str, Limit], ipv6_prefix: int
) -> tuple[Charge, ...]:
    """The counters of an authenticated request: token, user, team and address, at most four.

    A run-time override of the token, user or team wins over the configured limit.
    """
    charges = []
    overrides = record.limits
    if (limit := overrides.get("token") or limits.get("token")) is not None:
        charges.append(of_token(record.token, record.user, limit))
    if (limit := overrides.get("user") or limits.get("user")) is not None:
        charges.append(of_user(record.user, limit))
    if record.team is not None:
        limit = overrides.get("team") or limits.get("team")
        if limit is not None:
            charges.append(of_team(record.team, limit))
    return (*charges, *of_address("address", client, limits, ipv6_prefix))
