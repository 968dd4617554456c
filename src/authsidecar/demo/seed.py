"""The small world of the demo: one team, three users, and a token for each lesson."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from authsidecar.decision.model import Limit, Permission, Role, TeamId, TokenId, UserId
from authsidecar.decision.ratelimit.charges import of_token
from authsidecar.store.entities import Token
from authsidecar.store.registry import Registry
from authsidecar.times import UnixMs

TEAM: Final = TeamId(0)
OWNER: Final = UserId(1)
MEMBER: Final = UserId(2)
LEAVER: Final = UserId(3)
CLIENT: Final = UserId(4)

DAY_MS: Final = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class DemoToken:
    """A token whose secret is public: it opens nothing but the demo.

    Attributes:
        id: the number before the `|`.
        secret: what follows it.
        user: its owner; always in TEAM, or gone from it.
        permissions: what it holds.
        expired: whether its time was over yesterday.
        name: what it is called, before its id.
    """

    id: TokenId
    secret: str
    user: UserId
    permissions: frozenset[Permission]
    expired: bool = False
    name: str = "demo"

    @property
    def plain(self) -> str:
        """`ID|SECRET`, as it is sent."""
        return f"{self.id}|{self.secret}"


def _token(
    number: int,
    secret: str,
    *permissions: Permission,
    user: UserId = OWNER,
    expired: bool = False,
    name: str = "demo",
) -> DemoToken:
    return DemoToken(TokenId(number), secret, user, frozenset(permissions), expired, name)


ROOT: Final = _token(67, "abcthisisa123dummytoken", Permission.ROOT)
"""The token of Coolify's own documentation."""

READ: Final = _token(68, "demoread", Permission.READ)
SENSITIVE: Final = _token(69, "demosensitive", Permission.READ, Permission.READ_SENSITIVE)
EXPIRED: Final = _token(70, "demoexpired", Permission.READ, expired=True)
MEMBERS_WRITE: Final = _token(71, "demomember", Permission.WRITE, user=MEMBER)
LEAVERS: Final = _token(72, "demoleft", Permission.READ, user=LEAVER)
LIMITED: Final = _token(73, "demolimited", Permission.READ)

CLIENTS: Final = (
    _token(81, "demodashboard", Permission.READ, user=CLIENT, name="dashboard"),
    _token(82, "demodeploys", Permission.DEPLOY, user=CLIENT, name="deploys"),
    _token(83, "demomonitor", Permission.READ, user=CLIENT, name="monitor"),
)
"""Those of the clients whose requests the demo sends itself: no limit is shared with them."""

TOKENS: Final = (ROOT, READ, SENSITIVE, EXPIRED, MEMBERS_WRITE, LEAVERS, LIMITED, *CLIENTS)

LIMIT: Final = Limit(requests=3, window_ms=10_000)
"""What LIMITED may ask."""

CLIENT_LIMIT: Final = Limit(requests=1000, window_ms=60_000)
"""What CLIENT may ask: more than the demo sends."""


async def seed(registry: Registry) -> None:
    """Fill an empty registry with the demo's world, the API switched on."""
    await registry.add_team("Root Team", TEAM)
    people = ((OWNER, "owner"), (MEMBER, "member"), (LEAVER, "leaver"), (CLIENT, "client"))
    for user, name in people:
        await registry.add_user(name, f"{name}@example.com", user)
    await registry.set_member(TEAM, OWNER, Role.OWNER)
    await registry.set_member(TEAM, MEMBER, Role.MEMBER)
    await registry.set_member(TEAM, CLIENT, Role.ADMIN)
    await registry.set_limit("user", CLIENT, CLIENT_LIMIT)
    # As a sync can find it: a member's removal by the sidecar's own commands would delete the
    # token, and the same request would be answered with token_unknown.
    now = await registry.now()
    await registry.put_tokens([_stored(token, now) for token in TOKENS])
    await registry.set_limit("token", LIMITED.id, LIMIT)
    await registry.set_instance(api_enabled=True)


async def forget_requests(registry: Registry) -> None:
    """Let the limited token ask anew."""
    await registry.reset(of_token(LIMITED.id, LIMITED.user, LIMIT))


def _stored(token: DemoToken, now: UnixMs) -> Token:
    return Token(
        id=token.id,
        sha256=sha256(token.secret.encode()).digest(),
        name=f"{token.name} {token.id}",
        user=token.user,
        team=TEAM,
        permissions=token.permissions,
        expires_at=UnixMs(now - DAY_MS) if token.expired else None,
        created_at=UnixMs(now - 2 * DAY_MS),
    )
