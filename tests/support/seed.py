"""State for tests, written through the very registry that the command line uses."""

from hashlib import sha256

from redis.asyncio import Redis

from authsidecar.decision.model import Permission, Role, TeamId, TokenId, UserId
from authsidecar.store.entities import Token
from authsidecar.store.keys import Keys
from authsidecar.store.registry import Registry
from authsidecar.times import UnixMs


def secret_of(token: int) -> str:
    """The secret that `token` gives to this id."""
    return f"secret-of-token-{token}"


def bearer(token: int, secret: str | None = None) -> str:
    """The Authorization header of a token that was made by `token`."""
    return f"Bearer {token}|{secret if secret is not None else secret_of(token)}"


def token(
    number: int,
    *,
    user: int,
    team: int,
    permissions: tuple[str, ...] = ("read",),
    expires_at: int | None = None,
    secret: str | None = None,
) -> Token:
    """A token whose secret is `secret_of(number)` unless given."""
    text = secret if secret is not None else secret_of(number)
    return Token(
        id=TokenId(number),
        sha256=sha256(text.encode()).digest(),
        name=f"token {number}",
        user=UserId(user),
        team=TeamId(team),
        permissions=frozenset(Permission(p) for p in permissions),
        expires_at=None if expires_at is None else UnixMs(expires_at),
        created_at=UnixMs(0),
    )


async def user(registry: Registry, number: int, **roles: str) -> None:
    """A user with roles by team: `user(registry, 7, t0="owner", t3="member")`; teams are made."""
    await registry.add_user(f"user {number}", f"user{number}@example.test", UserId(number))
    for name, role in roles.items():
        team = TeamId(int(name.removeprefix("t")))
        await registry.add_team(f"team {team}", team)
        await registry.set_member(team, UserId(number), Role(role))


def registry(client: Redis) -> Registry:
    """A registry under the default prefix."""
    return Registry(client, Keys())
