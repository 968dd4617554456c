"""A million tokens in Redis within half a minute: what the registry would write, by script.

Every token expires, so that each is in every index there is; tests/unit/test_benchmarks.py holds
the script to Registry.put_tokens.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from authsidecar.decision.model import Role, TeamId, UserId
from authsidecar.store.bulk import Bulk
from authsidecar.store.entities import Member, Team, Token, User
from authsidecar.store.epoch import Fence
from authsidecar.store.keys import Keys
from authsidecar.store.registry import EXPIRED_KEPT_MS
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


async def write_owners(client: "Redis", keys: Keys, users: int = USERS) -> None:
    """The teams and the users, each a member of one team."""
    fence = Fence(f"{keys.prefix}benchmark:fence", b"1")
    redis: Any = client
    await redis.set(fence.key, fence.value)
    bulk, numbers = Bulk(client, keys, fence), range(1, users + 1)
    members = [Member(TeamId((n - 1) // PER_TEAM), UserId(n), Role.MEMBER) for n in numbers]
    await bulk.put_teams([Team(t, f"team {t}", True) for t in sorted({m.team for m in members})])
    await bulk.put_users([User(m.user, f"user {m.user}", "user@example.test") for m in members])
    await bulk.put_members(members)


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
