"""Many facts at once, by a writer that may have been replaced: as a sync writes them.

Every MULTI watches the fence. A writer whose fence another has taken changes nothing any more,
however late it wakes up.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from redis import exceptions
from redis.asyncio import Redis

from authsidecar.model import TeamId, TokenId, UserId
from authsidecar.store import records
from authsidecar.store.keys import OWNER_BUCKETS, Keys, owner_bucket
from authsidecar.store.registry import Member, Registry, Team, Token, User

BATCH: Final = 500
"""How many facts one MULTI writes: Redis serves nobody else meanwhile."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Fence:
    """A key, and the value that it has as long as its writer may write."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose one of Coolify's resources is."""

    uuid: str
    team: TeamId


class FenceBroken(Exception):  # noqa: N818  # it is no failure: another one writes
    """Another writer has taken over; nothing was written."""


class Bulk(Registry):
    """A Registry whose every change is behind a fence, with batches for all nouns."""

    def __init__(self, client: "Redis", keys: Keys, fence: Fence) -> None:
        """Nothing is sent yet."""
        super().__init__(client, keys)
        self._fence = fence

    async def user_ids(self) -> list[UserId]:
        """Every user's id."""
        return [UserId(i) for i in await self._ids(self._keys.users)]

    async def team_ids(self) -> list[TeamId]:
        """Every team's id."""
        return [TeamId(i) for i in await self._ids(self._keys.teams)]

    async def token_ids(self) -> list[TokenId]:
        """Every token's id: each has an owner, so the users' indexes name them all."""
        indexes = [self._keys.user_tokens(user) for user in await self.user_ids()]
        return [TokenId(i) for ids in await self._smembers(indexes) for i in ids]

    async def memberships(self) -> list[tuple[TeamId, UserId]]:
        """Every membership."""
        users = await self.user_ids()
        teams = await self._smembers([self._keys.user_teams(user) for user in users])
        return [(TeamId(i), u) for u, ids in zip(users, teams, strict=True) for i in ids]

    async def owned(self) -> list[str]:
        """The uuid of every resource whose owner is there."""
        async with self._client.pipeline(transaction=False) as pipe:
            for bucket in range(OWNER_BUCKETS):
                pipe.hkeys(self._keys.owners(bucket))
            return [_text(uuid) for uuids in await pipe.execute() for uuid in uuids]

    async def owners_of(self, uuids: Iterable[str]) -> list[Owner]:
        """Those of these resources' owners that are there; a trip for 500."""
        found: list[Owner] = []
        for batch in _batches(list(uuids)):
            async with self._client.pipeline(transaction=False) as pipe:
                for uuid in batch:
                    pipe.hget(self._keys.owners(owner_bucket(uuid)), uuid)
                teams = map(records.number, await pipe.execute())
            pairs = zip(batch, teams, strict=True)
            found += [Owner(uuid, TeamId(team)) for uuid, team in pairs if team is not None]
        return found

    async def users_of(self, ids: Iterable[UserId]) -> list[User]:
        """Those of these users that are there; a trip for 500."""
        numbers = list(ids)
        rows = await self._hmget([self._keys.user(i) for i in numbers], ["name", "email"])
        found = zip(numbers, rows, strict=True)
        return [
            User(i, _text(name), _text(email)) for i, (name, email) in found if name is not None
        ]

    async def teams_of(self, ids: Iterable[TeamId]) -> list[Team]:
        """Those of these teams that are there; a trip for 500."""
        numbers = list(ids)
        rows = await self._hmget([self._keys.team(i) for i in numbers], ["name", "mcp_enabled"])
        found = zip(numbers, rows, strict=True)
        return [Team(i, _text(name), mcp == b"1") for i, (name, mcp) in found if name is not None]

    async def put_users(self, users: Sequence[User]) -> None:
        """Write users whole, new or again."""
        for batch in _batches(users):
            async with self._change() as pipe:
                for user in batch:
                    fields: Mapping[str, str] = {"name": user.name, "email": user.email}
                    pipe.hset(self._keys.user(user.id), mapping=fields)
                    pipe.sadd(self._keys.users, user.id)
                self._renew(pipe, [user.id for user in batch])
                await pipe.execute()
            await self._raise_last_id("user", max(user.id for user in batch))

    async def put_teams(self, teams: Sequence[Team]) -> None:
        """Write teams whole, new or again; every member's records are stale from then on."""
        for batch in _batches(teams):
            members = await self._members_of(batch)
            async with self._change() as pipe:
                for team in batch:
                    fields = {"name": team.name, "mcp_enabled": int(team.mcp_enabled)}
                    pipe.hset(self._keys.team(team.id), mapping=fields)
                    pipe.sadd(self._keys.teams, team.id)
                self._renew(pipe, members)
                await pipe.execute()
            await self._raise_last_id("team", max(team.id for team in batch))

    async def put_members(self, members: Sequence[Member]) -> None:
        """Write memberships, new or again."""
        for batch in _batches(members):
            async with self._change() as pipe:
                for member in batch:
                    key = self._keys.team_members(member.team)
                    pipe.hset(key, member.user, member.role.value)
                    pipe.sadd(self._keys.user_teams(member.user), member.team)
                self._renew(pipe, {member.user for member in batch})
                await pipe.execute()

    async def put_tokens(self, tokens: Iterable[Token]) -> None:
        """Write tokens whole, new or again; they stay until they are dropped."""
        for batch in _batches(list(tokens)):
            await super().put_tokens(batch)

    async def put_owners(self, owners: Sequence[Owner]) -> None:
        """Write owners of resources, new or again; no record depends on them."""
        for batch in _batches(owners):
            async with self._change() as pipe:
                for owner in batch:
                    key = self._keys.owners(owner_bucket(owner.uuid))
                    pipe.hset(key, owner.uuid, owner.team)
                await pipe.execute()

    async def drop_owners(self, owners: Sequence[Owner]) -> None:
        """Forget whose these resources are."""
        for batch in _batches(owners):
            async with self._change() as pipe:
                for owner in batch:
                    pipe.hdel(self._keys.owners(owner_bucket(owner.uuid)), owner.uuid)
                await pipe.execute()

    async def drop_users(self, users: Sequence[User]) -> None:
        """Remove users whose memberships and tokens were dropped before."""
        keys = self._keys
        for batch in _batches(users):
            async with self._change() as pipe:
                for user in batch:
                    pipe.srem(keys.users, user.id)
                    pipe.delete(keys.user(user.id), keys.user_teams(user.id))
                    pipe.delete(keys.user_tokens(user.id))
                self._renew(pipe, [user.id for user in batch])
                await pipe.execute()

    async def drop_teams(self, teams: Sequence[Team]) -> None:
        """Remove teams; tokens may go on to name one that is gone, and belong to nobody."""
        keys = self._keys
        for batch in _batches(teams):
            members = await self._members_of(batch)
            async with self._change() as pipe:
                for team in batch:
                    pipe.srem(keys.teams, team.id)
                    pipe.delete(keys.team(team.id), keys.team_members(team.id))
                self._renew(pipe, members)
                await pipe.execute()

    async def drop_members(self, members: Sequence[Member]) -> None:
        """Remove memberships alone: what becomes of tokens is the caller's to say."""
        for batch in _batches(members):
            async with self._change() as pipe:
                for member in batch:
                    pipe.hdel(self._keys.team_members(member.team), member.user)
                    pipe.srem(self._keys.user_teams(member.user), member.team)
                self._renew(pipe, {member.user for member in batch})
                await pipe.execute()

    async def drop_tokens(self, tokens: Sequence[Token]) -> None:
        """Revoke tokens."""
        for batch in _batches(tokens):
            async with self._change() as pipe:
                self._drop_tokens(pipe, batch)
                self._renew(pipe, {token.user for token in batch})
                await pipe.execute()

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[Any]:
        async with self._client.pipeline(transaction=True) as pipe:
            await pipe.watch(self._fence.key)
            if await pipe.get(self._fence.key) != self._fence.value:
                raise FenceBroken
            pipe.multi()
            try:
                yield pipe
            except exceptions.WatchError:
                raise FenceBroken from None

    def _let_expire(self, pipe: Any, key: str, token: Token) -> None:  # noqa: ARG002
        """Keep it: whoever is followed deletes its expired tokens itself."""
        pipe.persist(key)

    async def _members_of(self, teams: Iterable[Team]) -> set[UserId]:
        async with self._client.pipeline(transaction=False) as pipe:
            for team in teams:
                pipe.hkeys(self._keys.team_members(team.id))
            answers = await pipe.execute()
        return {UserId(int(user)) for users in answers for user in users}

    async def _smembers(self, keys: list[str]) -> list[list[int]]:
        found: list[list[int]] = []
        for batch in _batches(keys):
            async with self._client.pipeline(transaction=False) as pipe:
                for key in batch:
                    pipe.smembers(key)
                found += [[int(i) for i in ids] for ids in await pipe.execute()]
        return found


def _batches(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
