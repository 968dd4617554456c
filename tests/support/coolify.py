"""Coolify as the sync sees it: a database with its tables, and who follows it."""

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import asyncpg
from redis.asyncio import Redis

from authsidecar.coolify.rounds import Applied
from authsidecar.coolify.sync import Follower, SyncOptions
from authsidecar.decision.authorize import Rules, authorize
from authsidecar.decision.model import AccessRequest, Allow, Credential, Permission, Proxy, TokenId
from authsidecar.decision.policy import Policy
from authsidecar.decision.routes import coolify
from authsidecar.observe.log import Log
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.keys import Keys
from authsidecar.store.registry import Registry

SECRETS = {
    1: "sec-root",
    2: "sec-read",
    3: "sec-write",
    4: "sec-deploy",
    5: "sec-rs",
    6: "sec-ws",
    7: "sec-mread",
    8: "sec-mwrite",
    9: "sec-exp",
    10: "sec-left",
    11: "sec-lone",
    12: "sec-ghost",
    13: "sec-star",
    14: "sec-null",
    15: "sec-jnull",
    16: "sec-obj",
    17: "sec-empty",
    18: "sec-bad",
    19: "sec-true",
    20: "sec-t01",
    21: "sec-tsp",
    22: "sec-tx",
    23: "sec-te",
    24: "sec-t77",
    25: "sec-morph",
    26: "sec-t00",
    27: "sec-t3",
}
"""The secrets of coolify-seed.sql."""

USER_MODEL = "App\\Models\\User"

ONE_ROUTE_EACH = {
    Permission.READ: ("GET", "/api/v1/teams"),
    Permission.WRITE: ("POST", "/api/v1/projects"),
    Permission.DEPLOY: ("POST", "/api/v1/deploy"),
    Permission.ROOT: ("POST", "/api/v1/enable"),
}
"""A route for each permission that a route can ask for."""


@dataclass(eq=False)
class Coolify:
    """One database of Coolify's, and its owner's connection.

    Attributes:
        dsn: as its owner.
        name: of the database.
        connection: its owner's, in autocommit.
    """

    dsn: str
    name: str
    connection: Any

    async def run(self, statement: str, *values: object) -> None:
        await self.connection.execute(statement, *values)

    async def add_token(
        self, number: int, *, user: int = 1, team: str = "1", abilities: str | None = '["read"]'
    ) -> None:
        """A token whose secret is `secret-NUMBER`."""
        await self.run(
            "INSERT INTO personal_access_tokens"
            "(id, tokenable_type, tokenable_id, name, token, team_id, abilities, created_at) "
            "VALUES ($1, $2, $3, 'added', encode(sha256(convert_to($4, 'UTF8')), 'hex'), $5, $6, "
            "now() AT TIME ZONE 'UTC')",
            *(number, USER_MODEL, user, f"secret-{number}", team, abilities),
        )


@asynccontextmanager
async def coolify_at(dsn: str, name: str) -> AsyncIterator[Coolify]:
    """Coolify's database with a connection of its owner's."""
    connection = await asyncpg.connect(dsn)
    try:
        yield Coolify(dsn, name, connection)
    finally:
        await connection.close()


def bearer(token: int) -> str:
    """The Authorization header of a token of the seed, or of one that `add_token` made."""
    return f"Bearer {token}|{SECRETS.get(token, f'secret-{token}')}"


@dataclass(eq=False)
class Lines:
    """What was logged, as objects."""

    stream: io.StringIO = field(default_factory=io.StringIO)

    @property
    def log(self) -> Log:
        return Log(json_lines=True, level="debug", stream=self.stream)

    def all(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]


def follower(
    dsn: str,
    client: Redis,
    lines: Lines | None = None,
    *,
    keys: Keys | None = None,
    **options: Any,
) -> Follower:
    """A sync of this process."""
    chosen = SyncOptions(dsn, **{"interval_s": 0.05, **options})
    return Follower(chosen, client, keys or Keys(), (lines or Lines()).log)


async def sync_once(dsn: str, client: Redis, **options: Any) -> Applied:
    """One round of a sync that starts anew."""
    return await follower(dsn, client, **options).once()


async def admitted(client: Redis, tokens: list[int]) -> set[tuple[int, str]]:
    """Which tokens are let in where, by the very core that the server runs."""
    rules = Rules(Policy(coolify("4.3")), {})
    store = DecisionStore(client, Keys(), budget_ms=5000)
    found = set()
    for token in tokens:
        for permission, (method, path) in ONE_ROUTE_EACH.items():
            request = AccessRequest(
                proxy=Proxy.NGINX,
                method=method,
                path=path,
                target=path.encode(),
                client=ip_address("192.0.2.1"),
                credential=_credential(token),
            )
            outcome = await authorize(request, rules, store)
            if isinstance(outcome.verdict, Allow):
                found.add((token, permission.value))
    await store.close()
    return found


def asks(token: int) -> AccessRequest:
    """A request with a token for what needs no more than `read`."""
    method, path = ONE_ROUTE_EACH[Permission.READ]
    return AccessRequest(
        proxy=Proxy.NGINX,
        method=method,
        path=path,
        target=path.encode(),
        client=ip_address("192.0.2.1"),
        credential=_credential(token),
    )


def _credential(token: int) -> Credential:
    from hashlib import sha256

    secret = SECRETS.get(token, f"secret-{token}")
    return Credential(TokenId(token), sha256(secret.encode()).digest())


async def contents(client: Redis) -> dict[bytes, Any]:
    """Every key with its value, but for the audit, which tells how they came."""
    readers = {
        b"hash": client.hgetall,
        b"set": client.smembers,
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"stream": client.xrange,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
    }
    kinds = {key: await client.type(key) for key in await client.keys("*")}
    # What is gone meanwhile is not there.
    left = (b"none", b"stream")
    return {key: await readers[kind](key) for key, kind in kinds.items() if kind not in left}


async def state(client: Redis, keys: Keys | None = None) -> dict[str, Any]:
    """Everything that decisions depend on, as the registry reads it."""
    registry = Registry(client, keys or Keys())
    teams = await registry.teams()
    instance = await registry.instance()
    return {
        "users": await registry.users(),
        "teams": teams,
        "members": [m for team in teams for m in await registry.members(team.id)],
        "tokens": sorted([t async for t in registry.tokens()], key=lambda t: t.id),
        "settings": (instance.api_enabled, instance.mcp_enabled, instance.allowlist.text),
    }
