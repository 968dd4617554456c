"""Coolify at work: rights are given and taken all the while, by statements of its own."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import asyncpg

from tests.support.chaos.model import USER_MODEL
from tests.support.coolify import SECRETS

USERS = (0, 1, 2, 3, 4, 1500, 3000)
TEAMS = (0, 1, 2, 3, 1500, 3000)
ROLES = ("owner", "owner", "admin", "member", "member", "viewer", "Owner")
ABILITIES = (
    '["read"]',
    '["read"]',
    '["read","write"]',
    '["deploy"]',
    '["root"]',
    '["*"]',
    '["read","read:sensitive"]',
    '["write","write:sensitive"]',
    "[]",
    "[read",
    None,
)
LISTS = (
    *(None, None, None, "", "192.0.2.0/24", "10.0.0.0/8, 192.0.2.1", "0.0.0.0"),
    *("nonsense,192.0.2.1", "nonsense", "198.51.100.7"),
)
FIRST, APART, SLOTS = 1000, 300, 24
"""Tokens that come and go, and how far apart their ids are. A sync compares buckets of 256 ids; a
change in one's bucket would repair it by the way."""

CANARY, CANARY_SECRET = 700, "canary"
"""A token that is always there, so that to say it is unknown is to know nothing."""

OWNER, OWNED = USERS[5], TEAMS[4]
"""Who holds what is granted and revoked on purpose."""

OPEN = (
    "UPDATE instance_settings SET is_api_enabled = true, allowed_ips = NULL, "
    "is_mcp_server_enabled = true"
)
ADD_USER = "INSERT INTO users(id, name, email) VALUES ($1, 'chaos', $2) ON CONFLICT (id) DO NOTHING"
ADD_TEAM = "INSERT INTO teams(id, name) VALUES ($1, 'chaos') ON CONFLICT (id) DO NOTHING"
ADD_MEMBER = (
    "INSERT INTO team_user(team_id, user_id, role) VALUES ($1, $2, $3) "
    "ON CONFLICT (team_id, user_id) DO UPDATE SET role = excluded.role"
)
ADD_TOKEN = (
    "INSERT INTO personal_access_tokens"
    "(id, tokenable_type, tokenable_id, name, token, team_id, abilities, created_at) "
    "VALUES ($1, $2, $3, 'chaos', encode(sha256(convert_to($4, 'UTF8')), 'hex'), $5, $6, "
    "now() AT TIME ZONE 'UTC') ON CONFLICT DO NOTHING"
)

PATIENCE_S = 2.0
PAUSE_S = (0.01, 0.15)


class Churn:
    """Changes Coolify's tables at random, until it is paused; a fault of PostgreSQL's ends none."""

    def __init__(self, dsn: str, random: Random) -> None:
        self._dsn = dsn
        self._random = random
        self._connection: Any = None
        self._going = asyncio.Event()
        self._still = asyncio.Event()
        self._still.set()
        self.secrets = {
            **SECRETS,
            **{FIRST + i * APART: f"chaos-{i}" for i in range(SLOTS)},
        }
        """Every token that ever was or will be."""
        self.untouched: set[int] = set()
        """Tokens that stay as they are for now."""
        self.done = 0
        self.failed = 0
        self.last: list[str] = []

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            while True:
                if not self._going.is_set():
                    self._still.set()
                    await self._going.wait()
                    self._still.clear()
                await self._change()
                await asyncio.sleep(self._random.uniform(*PAUSE_S))
        finally:
            if self._connection is not None:
                self._connection.terminate()

    def go(self) -> None:
        """Work from now on."""
        self._going.set()

    async def pause(self) -> None:
        """Return once nothing is changed any more; a change that was under way is done or not."""
        self._going.clear()
        await self._still.wait()

    async def seed(self) -> None:
        """More people and teams than the seed has, and half of the tokens."""
        for user in USERS[5:]:
            await self._do(ADD_USER, user, f"chaos{user}@example.test")
        for team in TEAMS[4:]:
            await self._do(ADD_TEAM, team)
            for user in (1, *USERS[5:]):
                await self._do(ADD_MEMBER, team, user, "owner")
        for number in list(self.secrets)[-SLOTS::2]:
            await self._add(number)
        await self._do(ADD_TOKEN, *(CANARY, USER_MODEL, 0, CANARY_SECRET, "0", '["read"]'))

    async def grant(self, tokens: Sequence[int]) -> None:
        """Open all, and give some tokens to one who owns a team; leave that so for now."""
        self.untouched.update(tokens)
        async with self._own() as connection:
            await connection.execute(OPEN)
            await connection.execute(ADD_USER, OWNER, f"chaos{OWNER}@example.test")
            await connection.execute(ADD_TEAM, OWNED)
            await connection.execute(ADD_MEMBER, OWNED, OWNER, "owner")
            await connection.execute(
                "DELETE FROM personal_access_tokens WHERE id = ANY($1::bigint[])", tokens
            )
            for token in tokens:
                await connection.execute(
                    *(ADD_TOKEN, token, USER_MODEL, OWNER, self.secrets[token]),
                    *(str(OWNED), '["read"]'),
                )
        self._remember(f"grant {tokens}")

    async def revoke(self, tokens: Sequence[int]) -> None:
        """Delete some, and leave them deleted for now."""
        self.untouched.update(tokens)
        async with self._own() as connection:
            await connection.execute(
                "DELETE FROM personal_access_tokens WHERE id = ANY($1::bigint[])", tokens
            )
        self._remember(f"revoke {tokens}")

    @asynccontextmanager
    async def _own(self) -> AsyncIterator[Any]:
        """A connection of its own, since the other may be at work."""
        connection = await asyncpg.connect(self._dsn, timeout=2, command_timeout=2)
        try:
            yield connection
        finally:
            connection.terminate()

    async def _change(self) -> None:
        change = self._random.choices(
            (self._token, self._person, self._settings, self._abilities), (8, 5, 3, 2)
        )[0]
        try:
            await asyncio.wait_for(change(), PATIENCE_S)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            self.failed += 1
            self._remember(f"failed: {type(error).__name__}")
            if self._connection is not None:
                self._connection.terminate()
                self._connection = None
            await asyncio.sleep(0.2)

    async def _token(self) -> None:
        number = self._random.choice(list(self.secrets))
        if number in self.untouched:
            return
        row = await self._one("SELECT 1 FROM personal_access_tokens WHERE id = $1", number)
        if row is None:
            await self._add(number)
        elif self._random.random() < 0.7:
            await self._do("DELETE FROM personal_access_tokens WHERE id = $1", number)
        else:
            ends = self._random.choice(("NULL", "now() - interval '1 hour'", "now() + '9 hours'"))
            await self._do(
                f"UPDATE personal_access_tokens SET expires_at = ({ends}) AT TIME ZONE 'UTC' "
                "WHERE id = $1"
                if ends != "NULL"
                else "UPDATE personal_access_tokens SET expires_at = NULL WHERE id = $1",
                number,
            )

    async def _abilities(self) -> None:
        number = self._random.choice(list(self.secrets))
        if number not in self.untouched:
            await self._do(
                "UPDATE personal_access_tokens SET abilities = $1 WHERE id = $2",
                *(self._random.choice(ABILITIES), number),
            )

    async def _person(self) -> None:
        team, user = self._random.choice(TEAMS), self._random.choice(USERS)
        what = self._random.random()
        if self.untouched and (user == OWNER or team == OWNED):
            return
        if what < 0.25:
            await self._do("DELETE FROM team_user WHERE team_id = $1 AND user_id = $2", team, user)
        elif what < 0.8:
            await self._do(ADD_MEMBER, team, user, self._random.choice(ROLES))
        elif what < 0.85 and user in USERS[5:]:
            await self._do("DELETE FROM users WHERE id = $1", user)
        elif what < 0.89 and team in TEAMS[4:]:
            await self._do("DELETE FROM teams WHERE id = $1", team)
        elif what < 0.92:
            await self._do(
                "UPDATE teams SET is_mcp_server_enabled = NOT is_mcp_server_enabled WHERE id = $1",
                team,
            )
        else:
            await self._do(ADD_USER, user, f"chaos{user}@example.test")
            await self._do(ADD_TEAM, team)

    async def _settings(self) -> None:
        what = self._random.random()
        if self.untouched:
            return
        if what < 0.65:
            await self._do(OPEN)
        elif what < 0.77:
            await self._do("UPDATE instance_settings SET is_api_enabled = NOT is_api_enabled")
        elif what < 0.87:
            await self._do(
                "UPDATE instance_settings SET is_mcp_server_enabled = NOT is_mcp_server_enabled"
            )
        else:
            await self._do(
                "UPDATE instance_settings SET allowed_ips = $1", self._random.choice(LISTS)
            )

    async def _add(self, number: int) -> None:
        user, team = self._random.choice(USERS), self._random.choice(TEAMS)
        if self._random.random() < 0.7:
            row = await self._one("SELECT user_id, team_id FROM team_user ORDER BY random()")
            user, team = row["user_id"], row["team_id"]
        abilities = self._random.choice(ABILITIES)
        values = (number, USER_MODEL, user, self.secrets[number], str(team), abilities)
        await self._do(ADD_TOKEN, *values)

    async def _do(self, statement: str, *values: object) -> None:
        connection = await self._connected()
        await connection.execute(statement, *values)
        self.done += 1
        self._remember(f"{statement} {values or ''}")

    async def _one(self, statement: str, *values: object) -> Any:
        return await (await self._connected()).fetchrow(statement, *values)

    async def _connected(self) -> Any:
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(self._dsn, timeout=2, command_timeout=2)
        return self._connection

    def _remember(self, text: str) -> None:
        self.last = [*self.last[-39:], text]
