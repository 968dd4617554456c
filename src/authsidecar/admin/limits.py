"""Use cases of limits: which counter somebody has, what holds for it, and how much is used."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from authsidecar.decision.model import Limit, TeamId, TokenId, UserId
from authsidecar.decision.ratelimit import charges
from authsidecar.decision.ratelimit.charges import Charge
from authsidecar.store.registry import Registry
from authsidecar.times import UnixMs

ANY: Final = Limit(1)
"""Stands for a limit where only its counter's name is asked for."""

Source = Literal["override", "configuration", "off"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What holds for one user, token or team now.

    Attributes:
        source: where the limit is from.
        limit: it, or None: not limited.
        used: what its window has admitted.
        free_at: when the oldest of these leaves the window, or None.
    """

    source: Source
    limit: Limit | None
    used: int
    free_at: UnixMs | None


async def counter(registry: Registry, scope: str, number: int) -> Charge | None:
    """The counter of a user, token or team; None if that is not there."""
    if scope == "token":
        found = await registry.token(TokenId(number))
        return None if found is None else charges.of_token(found.id, found.user, ANY)
    if scope == "team":
        team = await registry.team(TeamId(number))
        return None if team is None else charges.of_team(team.id, ANY)
    user = await registry.user(UserId(number))
    return None if user is None else charges.of_user(user.id, ANY)


async def look_up(
    registry: Registry, configured: Mapping[str, Limit], scope: str, number: int
) -> Standing | None:
    """What holds for one user, token or team, and how much of it is used; None if not there."""
    counted = await counter(registry, scope, number)
    if counted is None:
        return None
    override = await registry.limit(scope, number)
    limit = override or configured.get(scope)
    if limit is None:
        return Standing("off", None, 0, None)
    used, oldest = await registry.usage(counted, limit.window_ms)
    free_at = None if oldest is None else UnixMs(oldest + limit.window_ms)
    return Standing("override" if override else "configuration", limit, used, free_at)


def chosen(requests: int, window_s: int | None, configured: Limit | None) -> Limit:
    """The limit that somebody means: without a window, in that of the configured one."""
    if window_s is not None:
        return Limit(requests, window_s * 1000)
    return Limit(requests, (configured or ANY).window_ms)
