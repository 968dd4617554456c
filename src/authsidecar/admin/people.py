"""Use cases of users, teams and memberships: what each may be called, and who is in what."""

import re
from dataclasses import dataclass
from typing import Final

from authsidecar.admin.refusal import Refusal, absent
from authsidecar.admin.tokens import refused_after, unprintable
from authsidecar.decision.model import Role, TeamId, UserId
from authsidecar.store.registry import Registry

LONGEST_NAME: Final = 255
LONGEST_MAIL: Final = 254


@dataclass(frozen=True, slots=True)
class Placed:
    """A membership that was set.

    Attributes:
        refused: how many of the user's tokens in the team are refused from now on.
        warnings: what is legal but unwise about it, one line each.
    """

    refused: int
    warnings: tuple[str, ...]


def name_objection(name: str) -> str | None:
    """Why a text is no name of a user or team, or None."""
    if not name.strip() or len(name) > LONGEST_NAME:
        return f"a name has 1 to {LONGEST_NAME} characters"
    return unprintable(name)


def mail_objection(email: str) -> str | None:
    """Why a text is no mail address, or None."""
    shaped = re.fullmatch(r"[^@\s]+@[^@\s]+", email)
    if not shaped or not email.isprintable() or len(email) > LONGEST_MAIL:
        return "that is no mail address"
    return None


async def add_user(
    registry: Registry, *, name: str, email: str, number: int | None
) -> UserId | Refusal:
    """Add a user under an id, or the next one."""
    if (why := name_objection(name) or mail_objection(email)) is not None:
        return Refusal(why)
    wanted = None if number is None else UserId(number)
    found = await registry.add_user(name, email, wanted)
    return _taken(number) if found is None else found


async def add_team(registry: Registry, *, name: str, number: int | None) -> TeamId | Refusal:
    """Add a team under an id, or the next one."""
    if (why := name_objection(name)) is not None:
        return Refusal(why)
    wanted = None if number is None else TeamId(number)
    found = await registry.add_team(name, wanted)
    return _taken(number) if found is None else found


async def set_member(
    registry: Registry, team: TeamId, user: UserId, role: Role
) -> Placed | Refusal:
    """Put a user into a team, or change its role there."""
    if await registry.team(team) is None:
        return Refusal(absent("team", team))
    if await registry.user(user) is None:
        return Refusal(absent("user", user))
    if not await registry.set_member(team, user, role):
        return Refusal(f"team {team} or user {user} has just been removed")
    refused = await refused_after(registry, team, user, role)
    if not refused:
        return Placed(0, ())
    tokens = "1 token" if refused == 1 else f"{refused} tokens"
    warning = (
        f"{tokens} of user {user} in team {team} hold more than read, which a member may not use: "
        "they are refused everywhere from now on"
    )
    return Placed(refused, (warning,))


def no_member(team: int, user: int) -> str:
    """Say that a user is not in a team."""
    return (
        f"user {user} is not in team {team}; `authsidecar member list --team {team}` shows who is"
    )


def _taken(number: int | None) -> Refusal:
    return Refusal(f"the id {number} is taken; choose another, or leave --id out")
