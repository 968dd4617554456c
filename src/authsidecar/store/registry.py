"""Users, teams, members, tokens and the instance's settings: written whole, seen at once.

Every change and the renewal of the nonces that prove it are one MULTI, so that the very next
request on any process is judged by the new state. Lists go through index sets, never over the
keyspace.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from redis import exceptions
from redis.asyncio import Redis

from authsidecar.model import Limit, Permission, Role, TeamId, TokenId, UnixMs, UserId
from authsidecar.policy import Instance
from authsidecar.ratelimit.charges import Charge
from authsidecar.store import records
from authsidecar.store.keys import Keys
from authsidecar.store.loading import NONCE_BYTES

EXPIRED_KEPT_MS: Final = 7 * 24 * 3600 * 1000
"""For how long an expired token is kept, so that its refusal can say why: a week."""

_T = TypeVar("_T")

_TOKEN_NAMES: Final = [*records.TOKEN_FIELDS[:6], "created_at"]

_PAGE: Final = 500
"""How many records one trip of a listing reads."""


@dataclass(frozen=True, slots=True)
class User:
    """A user as it is listed."""

    id: UserId
    name: str
    email: str


@dataclass(frozen=True, slots=True)
class Team:
    """A team as it is listed."""

    id: TeamId
    name: str
    mcp_enabled: bool


@dataclass(frozen=True, slots=True)
class Member:
    """A membership as it is listed."""

    team: TeamId
    user: UserId
    role: Role


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is stored; the secret is only its SHA-256.

    Attributes:
        id: the number before the `|`.
        sha256: the 32 bytes of the secret's digest.
        name: what its owner calls it.
        user: its owner.
        team: its team, or None: it came from Coolify and its team is no plain number.
        permissions: what it holds.
        expires_at: the last millisecond at which it is valid, or None.
        created_at: when it was issued.
    """

    id: TokenId
    sha256: bytes = field(repr=False)
    name: str
    user: UserId
    team: TeamId | None
    permissions: frozenset[Permission]
    expires_at: UnixMs | None
    created_at: UnixMs


class Registry:
    """Reads and changes the state; redis-py's own exceptions pass through to the caller."""

    def __init__(self, client: "Redis", keys: Keys) -> None:
        """Nothing is sent yet.

        Args:
            client: redis-py's asyncio client, decode_responses off.
            keys: the key names.
        """
        self._client: Any = client  # redis-py's own annotations mix sync, async, bytes and str
        self._keys = keys

    async def now(self) -> UnixMs:
        """The time by Redis's clock."""
        seconds, micros = await self._client.time()
        return UnixMs(int(seconds) * 1000 + int(micros) // 1000)

    # Users

    async def add_user(self, name: str, email: str, user: UserId | None = None) -> UserId | None:
        """Add a user; None if the id is taken. Ids count up unless given."""
        keys = self._keys

        def write(pipe: Any, number: int) -> None:
            pipe.hset(keys.user(UserId(number)), mapping={"name": name, "email": email})
            pipe.sadd(keys.users, number)
            self._renew(pipe, [UserId(number)])

        number = await self._add("user", lambda i: keys.user(UserId(i)), user, write)
        return None if number is None else UserId(number)

    async def user(self, user: UserId) -> User | None:
        """One user, or None."""
        name, email = await self._client.hmget(self._keys.user(user), ["name", "email"])
        return None if name is None else User(user, _text(name), _text(email))

    async def users(self) -> list[User]:
        """All users by id."""
        ids = await self._ids(self._keys.users)
        rows = await self._hmget([self._keys.user(UserId(i)) for i in ids], ["name", "email"])
        return [
            User(UserId(i), _text(name), _text(email))
            for i, (name, email) in zip(ids, rows, strict=True)
            if name is not None
        ]

    async def remove_user(self, user: UserId) -> int | None:
        """Remove a user with its memberships and tokens: how many tokens; None if not there."""
        keys = self._keys

        async def change(pipe: Any) -> int | None:
            if not await pipe.exists(keys.user(user)):
                return None
            teams = [TeamId(int(i)) for i in await pipe.smembers(keys.user_teams(user))]
            tokens = await self._tokens(pipe, await pipe.smembers(keys.user_tokens(user)))
            pipe.multi()
            self._drop_tokens(pipe, tokens)
            for team in teams:
                pipe.hdel(keys.team_members(team), user)
            pipe.srem(keys.users, user)
            pipe.delete(keys.user(user), keys.user_teams(user), keys.user_tokens(user))
            self._renew(pipe, [user])
            return len(tokens)

        watched = [keys.user(user), keys.user_teams(user), keys.user_tokens(user)]
        return await self._transaction(change, watched)

    # Teams and members

    async def add_team(self, name: str, team: TeamId | None = None) -> TeamId | None:
        """Add a team; None if the id is taken. Ids count up unless given."""
        keys = self._keys

        def write(pipe: Any, number: int) -> None:
            pipe.hset(keys.team(TeamId(number)), mapping={"name": name, "mcp_enabled": 1})
            pipe.sadd(keys.teams, number)

        number = await self._add("team", lambda i: keys.team(TeamId(i)), team, write)
        return None if number is None else TeamId(number)

    async def team(self, team: TeamId) -> Team | None:
        """One team, or None."""
        name, mcp, _ = await self._client.hmget(
            self._keys.team(team), ["name", "mcp_enabled", "limit"]
        )
        return None if name is None else Team(team, _text(name), records.flag(mcp, absent=True))

    async def teams(self) -> list[Team]:
        """All teams by id."""
        ids = await self._ids(self._keys.teams)
        rows = await self._hmget([self._keys.team(TeamId(i)) for i in ids], ["name", "mcp_enabled"])
        return [
            Team(TeamId(i), _text(name), records.flag(mcp, absent=True))
            for i, (name, mcp) in zip(ids, rows, strict=True)
            if name is not None
        ]

    async def remove_team(self, team: TeamId) -> int | None:
        """Remove a team with its memberships and tokens: how many tokens; None if not there."""
        keys = self._keys

        async def change(pipe: Any) -> int | None:
            if not await pipe.exists(keys.team(team)):
                return None
            members = await self._member_ids(pipe, team)
            tokens = await self._tokens(pipe, await pipe.smembers(keys.team_tokens(team)))
            pipe.multi()
            self._drop_tokens(pipe, tokens)
            for user in members:
                pipe.srem(keys.user_teams(user), team)
            pipe.srem(keys.teams, team)
            pipe.delete(keys.team(team), keys.team_members(team), keys.team_tokens(team))
            self._renew(pipe, {*members, *(t.user for t in tokens)})
            return len(tokens)

        watched = [keys.team(team), keys.team_members(team), keys.team_tokens(team)]
        return await self._transaction(change, watched)

    async def set_team_mcp(self, team: TeamId, enabled: bool) -> bool:
        """Turn a team's MCP switch; False if there is no such team."""
        return await self._change_team(
            team, lambda pipe, key: pipe.hset(key, "mcp_enabled", int(enabled))
        )

    async def set_member(self, team: TeamId, user: UserId, role: Role) -> bool:
        """Give a user a role in a team; False if either is not there."""
        keys = self._keys
        needed = [keys.team(team), keys.user(user)]

        async def change(pipe: Any) -> bool:
            if await pipe.exists(*needed) != len(needed):
                return False
            pipe.multi()
            pipe.hset(keys.team_members(team), user, role.value)
            pipe.sadd(keys.user_teams(user), team)
            self._renew(pipe, [user])
            return True

        return await self._transaction(change, needed)

    async def member(self, team: TeamId, user: UserId) -> Role | None:
        """A user's role in a team, or None."""
        return records.role(await self._client.hget(self._keys.team_members(team), str(user)))

    async def roles(
        self, pairs: Iterable[tuple[TeamId | None, UserId]]
    ) -> Mapping[tuple[TeamId | None, UserId], Role]:
        """The roles of those of these pairs that are memberships; a trip for 500."""
        asked = [(team, user) for team, user in pairs if team is not None]
        found: dict[tuple[TeamId | None, UserId], Role] = {}
        for start in range(0, len(asked), _PAGE):
            page = asked[start : start + _PAGE]
            async with self._client.pipeline(transaction=False) as pipe:
                for team, user in page:
                    pipe.hget(self._keys.team_members(team), str(user))
                answers = await pipe.execute()
            for pair, answer in zip(page, answers, strict=True):
                if (role := records.role(answer)) is not None:
                    found[pair] = role
        return found

    async def members(self, team: TeamId) -> list[Member]:
        """A team's members by user id."""
        found = await self._client.hgetall(self._keys.team_members(team))
        return sorted(
            (
                Member(team, UserId(int(user)), records.role(role) or Role.MEMBER)
                for user, role in found.items()
            ),
            key=lambda m: m.user,
        )

    async def remove_member(self, team: TeamId, user: UserId) -> int | None:
        """Remove a membership and the tokens it carried: how many; None if it is not there."""
        keys = self._keys

        async def change(pipe: Any) -> int | None:
            if not await pipe.hexists(keys.team_members(team), str(user)):
                return None
            held = await self._tokens(pipe, await pipe.smembers(keys.user_tokens(user)))
            tokens = [t for t in held if t.team == team]
            pipe.multi()
            self._drop_tokens(pipe, tokens)
            pipe.hdel(keys.team_members(team), user)
            pipe.srem(keys.user_teams(user), team)
            self._renew(pipe, [user])
            return len(tokens)

        watched = [keys.team_members(team), keys.user_tokens(user)]
        return await self._transaction(change, watched)

    # Tokens

    async def next_token_id(self) -> TokenId:
        """A token id that was never given before; they count up as Coolify's do."""
        return TokenId(int(await self._client.incr(self._keys.next_id("token"))))

    async def put_tokens(self, tokens: Iterable[Token]) -> None:
        """Write tokens whole, new or again; ids given later are above all of these."""
        tokens = tuple(tokens)
        if not tokens:
            return
        old = await self.tokens_of(t.id for t in tokens)
        async with self._change() as pipe:
            for moved in old:
                self._unlist(pipe, moved)
            for token in tokens:
                self._put_token(pipe, token)
            self._renew(pipe, {t.user for t in (*tokens, *old)})
            await pipe.execute()
        await self._raise_last_id("token", max(t.id for t in tokens))

    async def token(self, token: TokenId) -> Token | None:
        """One token, or None."""
        found = await self.tokens_of([token])
        return found[0] if found else None

    async def tokens_of(self, ids: Iterable[TokenId]) -> list[Token]:
        """Those of these tokens that are there, in the order of the ids; a trip for 500."""
        numbers = list(ids)
        rows = await self._hmget([self._keys.token(i) for i in numbers], _TOKEN_NAMES)
        found = (_token(number, row) for number, row in zip(numbers, rows, strict=True))
        return [token for token in found if token is not None]

    async def tokens(
        self, *, user: UserId | None = None, team: TeamId | None = None
    ) -> AsyncIterator[Token]:
        """Tokens by id within each user; of one user, one team, both, or all."""
        keys = self._keys
        if user is not None:
            sources = [keys.user_tokens(user)]
        elif team is not None:
            sources = [keys.team_tokens(team)]
        else:
            sources = [keys.user_tokens(UserId(i)) for i in await self._ids(keys.users)]
        for source in sources:
            ids = await self._ids(source)
            for start in range(0, len(ids), _PAGE):
                page = [TokenId(i) for i in ids[start : start + _PAGE]]
                found = await self.tokens_of(page)
                for token in found:
                    if team is None or token.team == team:
                        yield token
                gone = set(page) - {t.id for t in found}
                if gone:  # expired a week ago: Redis has removed the record
                    await self._client.srem(source, *gone)
                    await self._client.zrem(keys.expiring, *gone)

    async def expiring(
        self, first: UnixMs, last: UnixMs
    ) -> AsyncIterator[list[tuple[TokenId, UnixMs]]]:
        """The tokens that expire in this time, with their last millisecond; 500 at a time."""
        key, start = self._keys.expiring, 0
        while page := await self._client.zrange(
            key, first, last, byscore=True, offset=start, num=_PAGE, withscores=True
        ):
            yield [(TokenId(int(token)), UnixMs(int(at))) for token, at in page]
            start += _PAGE

    async def forget_expired(self, before: UnixMs) -> None:
        """Drop from the index of expiries what has expired before this time."""
        await self._client.zremrangebyscore(self._keys.expiring, "-inf", f"({before}")

    async def remove_token(self, token: TokenId) -> bool:
        """Revoke a token: it is deleted. False if it is not there."""

        async def change(pipe: Any) -> bool:
            tokens = await self._tokens(pipe, [token])
            pipe.multi()
            self._drop_tokens(pipe, tokens)
            self._renew(pipe, [t.user for t in tokens])
            return bool(tokens)

        return await self._transaction(change, [self._keys.token(token)])

    # Limits

    async def set_limit(self, scope: str, number: int, limit: Limit | None) -> bool:
        """Override a limit for one token, user or team, or clear it; False if it is not there."""
        keys = self._keys

        def write(pipe: Any, key: str) -> None:
            if limit is None:
                pipe.hdel(key, "limit")
            else:
                pipe.hset(key, "limit", records.write_limit(limit))

        if scope == "team":
            return await self._change_team(TeamId(number), write)
        key = keys.token(TokenId(number)) if scope == "token" else keys.user(UserId(number))

        async def change(pipe: Any) -> bool:
            if not await pipe.exists(key):
                return False
            owner = await pipe.hget(key, "user") if scope == "token" else number
            pipe.multi()
            write(pipe, key)
            self._renew(pipe, [UserId(int(owner))])
            return True

        return await self._transaction(change, [key])

    async def limits(self) -> Mapping[tuple[str, int], Limit]:
        """Every override, by scope and id."""
        keys, found = self._keys, dict[tuple[str, int], Limit]()
        users = [UserId(i) for i in await self._ids(keys.users)]
        teams = [TeamId(i) for i in await self._ids(keys.teams)]
        holders = [("user", int(i), keys.user(i)) for i in users]
        holders += [("team", int(i), keys.team(i)) for i in teams]
        for team in teams:
            tokens = [TokenId(i) for i in await self._ids(keys.team_tokens(team))]
            holders += [("token", int(i), keys.token(i)) for i in tokens]
        rows = await self._hmget([key for _, _, key in holders], ["limit"])
        for (scope, number, _), (text,) in zip(holders, rows, strict=True):
            if (limit := records.limit(text)) is not None:
                found[scope, number] = limit
        return found

    async def limit(self, scope: str, number: int) -> Limit | None:
        """The override of one token, user or team, or None."""
        keys = self._keys
        match scope:
            case "token":
                key = keys.token(TokenId(number))
            case "team":
                key = keys.team(TeamId(number))
            case _:
                key = keys.user(UserId(number))
        return records.limit(await self._client.hget(key, "limit"))

    async def reset(self, counter: Charge) -> bool:
        """Forget what a counter has admitted; False if it was empty."""
        return bool(await self._client.delete(self._keys.counter(counter)))

    # The instance

    async def instance(self) -> Instance:
        """The switches and the allowlist as they stand."""
        fields = await self._client.hmget(self._keys.instance, list(records.INSTANCE_FIELDS))
        return records.instance(fields, b"")

    async def allowlist_text(self) -> str:
        """The allowlist as it was saved."""
        return _text(await self._client.hget(self._keys.instance, "allowlist"))

    async def set_instance(
        self,
        *,
        api_enabled: bool | None = None,
        mcp_enabled: bool | None = None,
        allowlist: str | None = None,
    ) -> None:
        """Change what is given; the text of the allowlist was parsed by the caller."""
        given = {"api_enabled": api_enabled, "mcp_enabled": mcp_enabled, "allowlist": allowlist}
        fields = {
            name: int(value) if isinstance(value, bool) else value
            for name, value in given.items()
            if value is not None
        }
        async with self._change() as pipe:
            pipe.hset(self._keys.instance, mapping=fields)
            pipe.set(self._keys.instance_nonce, _nonce())
            await pipe.execute()

    async def first_start(self, *, api_enabled: bool) -> bool:
        """Set the API switch of an installation that never had one; False if it had."""
        async with self._change() as pipe:
            pipe.hsetnx(self._keys.instance, "api_enabled", int(api_enabled))
            pipe.set(self._keys.instance_nonce, _nonce())
            first, _ = await pipe.execute()
        return bool(first)

    # How it is written

    def _change(self) -> Any:
        """One MULTI."""
        return self._client.pipeline(transaction=True)

    async def _transaction(
        self, change: Callable[[Any], Awaitable[_T]], watched: Iterable[str]
    ) -> _T:
        """Read under WATCH, then write in one MULTI; again from the start if it moved."""
        async with self._client.pipeline(transaction=True) as pipe:
            while True:
                try:
                    await pipe.watch(*watched)
                    result = await change(pipe)
                    await pipe.execute()
                except exceptions.WatchError:
                    continue
                return result

    async def _change_team(self, team: TeamId, write: Callable[[Any, str], object]) -> bool:
        """Change a team's own fields; every member's records are stale from then on."""
        key, members_key = self._keys.team(team), self._keys.team_members(team)

        async def change(pipe: Any) -> bool:
            if not await pipe.exists(key):
                return False
            members = await self._member_ids(pipe, team)
            pipe.multi()
            write(pipe, key)
            self._renew(pipe, members)
            return True

        return await self._transaction(change, [key, members_key])

    def _renew(self, pipe: Any, users: Iterable[UserId]) -> None:
        for user in users:
            pipe.set(self._keys.user_nonce(user), _nonce())

    def _put_token(self, pipe: Any, token: Token) -> None:
        key = self._keys.token(token.id)
        fields: dict[str, str | bytes | int] = {
            "sha256": token.sha256,
            "name": token.name,
            "user": token.user,
            "permissions": " ".join(sorted(token.permissions)),
            "created_at": token.created_at,
        }
        for name, value in (("team", token.team), ("expires_at", token.expires_at)):
            if value is None:
                pipe.hdel(key, name)
            else:
                fields[name] = value
        pipe.hset(key, mapping=fields)
        self._let_expire(pipe, key, token)
        if token.expires_at is None:
            pipe.zrem(self._keys.expiring, token.id)
        else:
            pipe.zadd(self._keys.expiring, {str(token.id): token.expires_at})
        pipe.sadd(self._keys.user_tokens(token.user), token.id)
        if token.team is not None:
            pipe.sadd(self._keys.team_tokens(token.team), token.id)

    def _let_expire(self, pipe: Any, key: str, token: Token) -> None:
        if token.expires_at is None:
            pipe.persist(key)
        else:
            pipe.pexpireat(key, token.expires_at + EXPIRED_KEPT_MS)

    def _drop_tokens(self, pipe: Any, tokens: Iterable[Token]) -> None:
        for token in tokens:
            pipe.delete(self._keys.token(token.id))
            pipe.zrem(self._keys.expiring, token.id)
            self._unlist(pipe, token)

    def _unlist(self, pipe: Any, token: Token) -> None:
        pipe.srem(self._keys.user_tokens(token.user), token.id)
        if token.team is not None:
            pipe.srem(self._keys.team_tokens(token.team), token.id)

    async def _tokens(self, client: Any, ids: Iterable[object]) -> list[Token]:
        """The tokens that are there, in the order of the ids."""
        numbers = [TokenId(int(str(i, "ascii") if isinstance(i, bytes) else str(i))) for i in ids]
        found = []
        for number in numbers:
            fields = await client.hmget(self._keys.token(number), _TOKEN_NAMES)
            if (token := _token(number, fields)) is not None:
                found.append(token)
        return found

    async def _member_ids(self, client: Any, team: TeamId) -> list[UserId]:
        return [UserId(int(i)) for i in await client.hkeys(self._keys.team_members(team))]

    async def _ids(self, key: str) -> list[int]:
        return sorted(int(i) for i in await self._client.smembers(key))

    async def _hmget(self, keys: list[str], names: list[str]) -> list[list[records.Field]]:
        rows: list[list[records.Field]] = []
        for start in range(0, len(keys), _PAGE):
            async with self._client.pipeline(transaction=False) as pipe:
                for key in keys[start : start + _PAGE]:
                    pipe.hmget(key, names)
                rows.extend(await pipe.execute())
        return rows

    async def _add(
        self,
        noun: str,
        key: Callable[[int], str],
        wanted: int | None,
        write: Callable[[Any, int], None],
    ) -> int | None:
        """Write under the wanted id, or the next free one; None if the wanted one is taken."""

        async def change(pipe: Any, number: int) -> bool:
            if await pipe.exists(key(number)):
                return False
            pipe.multi()
            write(pipe, number)
            return True

        if wanted is not None:
            added = await self._transaction(lambda pipe: change(pipe, wanted), [key(wanted)])
            await self._raise_last_id(noun, wanted)
            return wanted if added else None
        while True:
            number = int(await self._client.incr(self._keys.next_id(noun)))
            if await self._transaction(partial(change, number=number), [key(number)]):
                return number

    async def _raise_last_id(self, noun: str, number: int) -> None:
        """Make sure that ids given from now on are above this one."""
        key = self._keys.next_id(noun)

        async def change(pipe: Any) -> None:
            last = int(await pipe.get(key) or 0)
            pipe.multi()
            if number > last:
                pipe.set(key, number)

        await self._transaction(change, [key])


def _nonce() -> str:
    return secrets.token_hex(NONCE_BYTES)


def _text(value: records.Field) -> str:
    return (value or b"").decode("utf-8", "replace")


def _token(number: TokenId, fields: list[records.Field]) -> Token | None:
    digest, name, user, team, permissions, expires_at, created_at = fields
    if digest is None:
        return None
    expires = None if expires_at is None else UnixMs(records.number(expires_at) or 0)
    belongs = records.number(team)
    return Token(
        id=number,
        sha256=digest,
        name=_text(name),
        user=UserId(records.number(user) or 0),
        team=None if belongs is None else TeamId(belongs),
        permissions=records.permissions(permissions),
        expires_at=expires,
        created_at=UnixMs(records.number(created_at) or 0),
    )
