"""A million tokens in Redis within half a minute: what the registry would write, by script.

Every token expires, so that each is in every index there is; tests/unit/test_benchmarks.py holds
the script to Registry.put_tokens.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from authsidecar.model import Role, TeamId, UserId
from authsidecar.store.keys import Keys
from authsidecar.store.registry import EXPIRED_KEPT_MS, Registry, Token
from tests.support.seed import secret_of, token

USERS = 10_000
PER_TEAM = 10
"""Users of one team; so a team of a million tokens' thousand has a thousand of them."""

EXPIRES_AT = 4_102_444_800_000
"""2100-01-01."""

BATCH = 1_000


def owner(number: int, users: int = USERS) -> tuple[int, int]:
    """The user and the team of a token."""
    user = number % users + 1
    return user, (user - 1) // PER_TEAM


def one(number: int, users: int = USERS) -> Token:
    """A token as the registry takes it."""
    user, team = owner(number, users)
    return token(number, user=user, team=team, expires_at=EXPIRES_AT)


async def write_owners(state: Registry, users: int = USERS) -> None:
    """The teams and the users, each a member of one team."""
    for number in range(1, users + 1):
        team = TeamId((number - 1) // PER_TEAM)
        if (number - 1) % PER_TEAM == 0:
            await state.add_team(f"team {team}", team)
        await state.add_user(f"user {number}", f"user{number}@example.test", UserId(number))
        await state.set_member(team, UserId(number), Role.MEMBER)


async def write_tokens(
    client: "Redis", keys: Keys, first: int, last: int, users: int = USERS
) -> None:
    """Write tokens first to last, inclusive."""
    redis: Any = client
    script = redis.register_script(Path(__file__).with_suffix(".lua").read_text("ascii"))
    for start in range(first, last + 1, BATCH):
        numbers = range(start, min(start + BATCH, last + 1))
        digests = [sha256(secret_of(n).encode()).digest() for n in numbers]
        await script(
            args=[
                *(keys.prefix, start, users, PER_TEAM, 0),
                *(EXPIRES_AT, EXPIRES_AT + EXPIRED_KEPT_MS),
                *digests,
            ]
        )
