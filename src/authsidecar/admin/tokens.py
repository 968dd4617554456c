"""Use cases of tokens: issue, import, revoke; and the rules by which a token may come to be.

Every path to a new token goes through `objection` (decisions: "Tokens"); importing may only keep
an expiry that issuing would not offer.
"""

import secrets
import string
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from redis.exceptions import RedisError

from authsidecar.admin.refusal import LeftoverError, Refusal
from authsidecar.decision.checks import ELEVATED, PRIVILEGED
from authsidecar.decision.model import Permission, Role, TeamId, TokenId, UserId
from authsidecar.decision.permissions import ROOTS
from authsidecar.store.entities import Token
from authsidecar.store.registry import Registry
from authsidecar.times import UnixMs

SHORTEST_NAME: Final = 3
LONGEST_NAME: Final = 255

EXPIRY_DAYS: Final = (7, 30, 60, 90, 365)
"""The lifetimes on offer, in days; a token may also live until it is revoked."""

DAY_MS: Final = 24 * 3600 * 1000

SECRET_LENGTH: Final = 40
SECRET_ALPHABET: Final = string.ascii_letters + string.digits
"""Sanctum's own secrets are Str::random(40)."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A token that was just made; nobody can ask for `plain` again.

    Attributes:
        token: what is stored.
        plain: `ID|SECRET`, for its owner alone.
    """

    token: Token
    plain: str = field(repr=False)


def completed(permissions: Iterable[Permission]) -> frozenset[Permission]:
    """What a token with these permissions holds: `read:sensitive` brings `read`."""
    held = frozenset(permissions)
    return held | {Permission.READ} if Permission.READ_SENSITIVE in held else held


def objection(name: str, permissions: frozenset[Permission], role: Role) -> str | None:
    """Why no token may be made like this, or None.

    Args:
        name: what its owner calls it.
        permissions: what it would hold, completed.
        role: its owner's role in its team.
    """
    return _name_objection(name) or _permission_objection(permissions, role)


def _name_objection(name: str) -> str | None:
    if not SHORTEST_NAME <= len(name) <= LONGEST_NAME or not name.strip():
        return f"the name needs {SHORTEST_NAME} to {LONGEST_NAME} characters, it has {len(name)}"
    return unprintable(name)


def unprintable(text: str) -> str | None:
    """Say why a text cannot be a name: control characters, or halves of characters."""
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in text):
        return "the name holds a control character"
    return None


def _permission_objection(permissions: frozenset[Permission], role: Role) -> str | None:
    if not permissions:
        return "a token needs at least one permission"
    if Permission.LEGACY_ROOT in permissions:
        return "the legacy permission * cannot be given to a token; use root"
    if permissions & ROOTS and len(permissions) > 1:
        return "root stands alone: it includes everything else, leave the others out"
    elevated = sorted(permissions & ELEVATED)
    if elevated and role not in PRIVILEGED:
        return (
            f"{' and '.join(elevated)} may only be held by an owner or admin of the team, and "
            f"the user is {role}; give read alone, or change the role"
        )
    return None


async def standing(registry: Registry, team: TeamId, user: UserId) -> Role | Refusal:
    """A user's role in a team, or what is missing."""
    role = await registry.member(team, user)
    if role is not None:
        return role
    if await registry.user(user) is None:
        return Refusal(f"there is no user {user}; `authsidecar user list` shows them")
    if await registry.team(team) is None:
        return Refusal(f"there is no team {team}; `authsidecar team list` shows them")
    return Refusal(
        f"user {user} is not in team {team}; "
        f"`authsidecar member set --team {team} --user {user} --role member` adds the user"
    )


async def issue(
    registry: Registry,
    *,
    user: UserId,
    team: TeamId,
    name: str,
    permissions: Iterable[Permission],
    days: int | None,
) -> Issued | Refusal:
    """Make a token; its secret exists in the answer and nowhere else.

    Args:
        registry: where it is stored.
        user: its owner, who must be in the team.
        team: what it gives access to.
        name: 3 to 255 characters.
        permissions: at least one.
        days: one of EXPIRY_DAYS, or None: it does not expire.

    Raises:
        LeftoverError: it may have been stored, and could not be taken back.
    """
    if days is not None and days not in EXPIRY_DAYS:
        offered = ", ".join(map(str, EXPIRY_DAYS))
        return Refusal(f"a token expires after {offered} days or never, not after {days}")
    role = await standing(registry, team, user)
    if isinstance(role, Refusal):
        return role
    held = completed(permissions)
    if (why := objection(name, held, role)) is not None:
        return Refusal(why)
    now = await registry.now()
    secret = new_secret()
    token = Token(
        id=await registry.next_token_id(),
        sha256=sha256(secret.encode("ascii")).digest(),
        name=name,
        user=user,
        team=team,
        permissions=held,
        expires_at=None if days is None else UnixMs(now + days * DAY_MS),
        created_at=now,
    )
    try:
        await registry.put_tokens([token])
        withdrawn = await withdraw(registry, [token])
    except BaseException as error:
        await _unmake(registry, token, error)
        raise
    if withdrawn:
        return Refusal(f"user {user} has just lost its role in team {team}; nothing was issued")
    return Issued(token, f"{token.id}|{secret}")


def new_secret() -> str:
    """A secret that nobody can guess."""
    return "".join(secrets.choice(SECRET_ALPHABET) for _ in range(SECRET_LENGTH))


async def rotate(registry: Registry, token: TokenId, overlap_ms: int) -> tuple[str, UnixMs] | None:
    """Give a token a new secret; None if it is not there.

    Args:
        registry: where it is stored.
        token: its id; its permissions, restrictions, limits and expiry stay.
        overlap_ms: for how long the secret that it has now stays valid, in milliseconds.

    Returns:
        `ID|SECRET`, for its owner alone, and until when the old one is valid.
    """
    secret = new_secret()
    until = UnixMs(await registry.now() + overlap_ms - 1)  # its last millisecond
    digest = sha256(secret.encode("ascii")).digest()
    if not await registry.rotate_token(token, digest, until):
        return None
    return f"{token}|{secret}", until


async def _unmake(registry: Registry, token: Token, error: BaseException) -> None:
    """Take back a token that may have been stored, and whose secret nobody will be shown."""
    try:
        await registry.remove_token(token.id)
    except (RedisError, OSError):
        raise LeftoverError("token", token.id, error) from None


async def withdraw(registry: Registry, written: Iterable[Token]) -> Mapping[int, str]:
    """Take back what was written while its right to be was taken away; says which and why.

    Whoever removes a user or member removes the tokens that are there by then: with this look
    after the write, one of the two sees the other.
    """
    tokens = tuple(written)
    roles = await registry.roles({(t.team, t.user) for t in tokens})
    gone: dict[int, str] = {}
    for token in tokens:
        role = roles.get((token.team, token.user))
        why = (
            f"user {token.user} is not in team {token.team} any more"
            if role is None
            else objection(token.name, token.permissions, role)
        )
        if why is not None:
            await registry.remove_token(token.id)
            gone[token.id] = why
    return gone


async def refused_after(registry: Registry, team: TeamId, user: UserId, role: Role) -> int:
    """How many of a user's tokens in a team are refused everywhere once it has this role."""
    if role in PRIVILEGED:
        return 0
    held = [token async for token in registry.tokens(user=user, team=team)]
    return sum(1 for token in held if token.permissions & ELEVATED)
