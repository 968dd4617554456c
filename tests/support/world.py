"""A small world behind a sidecar: one token for each way to be somebody or nobody."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

from redis.asyncio import Redis

from authsidecar.decision.model import Limit, TeamId
from authsidecar.store.registry import Registry
from tests.support import seed
from tests.support.redis import RedisProcess
from tests.support.sidecar import Answer, SidecarProcess
from tests.support.wire import Text, ask, subrequest

OWNER, MEMBER, LONER = 1, 3, 4
"""Users: owner of teams 0 and 5, member of team 0, and one without a team."""

ROOT, READ, WRITE, DEPLOY, NOTHING, EXPIRED = 10, 11, 12, 13, 14, 15
"""Tokens of the owner in team 0: what each holds, or that it has expired."""

ROOT_OF_MEMBER, READ_OF_MEMBER, ROOT_OF_LONER, ROOT_OF_OTHER_TEAM = 20, 21, 22, 23

_fresh = count(1)


def address() -> str:
    """A client address that no other test has used: every address has buckets of its own."""
    number = next(_fresh)
    return f"10.77.{number // 250}.{number % 250 + 1}"


@dataclass(frozen=True)
class World:
    """A sidecar, its Redis, and a client of that."""

    sidecar: SidecarProcess
    client: Redis

    @property
    def registry(self) -> Registry:
        return seed.registry(self.client)

    async def ask(
        self,
        method: Text | None = "GET",
        uri: Text | None = "/api/v1/teams",
        *,
        token: int | None = None,
        authorization: Text | None = None,
        client: Text | None = "192.0.2.1",
        **more,
    ) -> Answer:
        """One subrequest, as `subrequest` makes it; `token` stands for its Authorization."""
        if token is not None:
            authorization = seed.bearer(token)
        request = subrequest(method, uri, authorization=authorization, client=client, **more)
        return (await ask(self.sidecar.port, request))[0]

    async def newcomer(
        self, *, role: str | None = "owner", team: int = 0, permissions: tuple[str, ...] = ("read",)
    ) -> int:
        """A token, and a user of the same number, that no other test has."""
        number = 1000 + next(_fresh)
        await seed.user(self.registry, number, **({f"t{team}": role} if role else {}))
        made = seed.token(number, user=number, team=team, permissions=permissions)
        await self.registry.put_tokens([made])
        return number

    async def exhausted(self, **how) -> int:
        """A newcomer whose user has no request left within the hour."""
        number = await self.newcomer(**how)
        await self.registry.set_limit("user", number, Limit(1, 3_600_000))
        answer = await self.ask(token=number)
        assert answer.header("X-RateLimit-Remaining") == "0"
        return number


@asynccontextmanager
async def world_of(sidecar: SidecarProcess, redis_server: RedisProcess) -> AsyncIterator[World]:
    """A world at its beginning, with a client of this event loop."""
    async with Redis.from_url(redis_server.url) as client:
        await _reset(seed.registry(client))
        yield World(sidecar, client)


async def _reset(registry: Registry) -> None:
    await registry.set_instance(api_enabled=True, mcp_enabled=True, allowlist="")
    await registry.set_team_mcp(TeamId(0), enabled=True)


def populate(redis_server: RedisProcess) -> None:
    """Write users, teams and tokens; the API and MCP on, everyone on the allowlist."""
    asyncio.run(_populate(redis_server.url))


async def _populate(url: str) -> None:
    ago = int(time.time() * 1000) - 60_000
    owned = {ROOT: ("root",), READ: ("read",), WRITE: ("write",), DEPLOY: ("deploy",), NOTHING: ()}
    async with Redis.from_url(url) as client:
        registry = seed.registry(client)
        await seed.user(registry, OWNER, t0="owner", t5="owner")
        await seed.user(registry, MEMBER, t0="member")
        await seed.user(registry, LONER)
        await registry.put_tokens(
            [
                *(seed.token(n, user=OWNER, team=0, permissions=p) for n, p in owned.items()),
                seed.token(EXPIRED, user=OWNER, team=0, expires_at=ago),
                seed.token(ROOT_OF_MEMBER, user=MEMBER, team=0, permissions=("root",)),
                seed.token(READ_OF_MEMBER, user=MEMBER, team=0),
                seed.token(ROOT_OF_LONER, user=LONER, team=0, permissions=("root",)),
                seed.token(ROOT_OF_OTHER_TEAM, user=OWNER, team=5, permissions=("root",)),
            ]
        )
        await _reset(registry)
