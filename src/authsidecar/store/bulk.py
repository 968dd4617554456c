"""Many facts at once, by a writer that may have been replaced: as a sync writes them.

Each batch, like the settings, is a MULTI that watches the fence. A writer whose fence another has
taken changes nothing there any more, however late it wakes up.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from redis import exceptions
from redis.asyncio import Redis

from authsidecar.model import TeamId, TokenId, UserId
from authsidecar.store import records
from authsidecar.store.changes import Changes
from authsidecar.store.keys import OWNER_BUCKETS, Keys, owner_bucket
from authsidecar.store.nouns import Member, Team, Token, User
from authsidecar.store.registry import Registry

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


class FencedChanges(Changes):
    """Changes whose MULTI is made only while the fence has its value.

    A transaction watches no fence; the one that a batch makes, after it, only raises last ids.
    """

    def __init__(self, client: "Redis", keys: Keys, fence: Fence) -> None:
        """Nothing is sent yet."""
        super().__init__(client, keys)
        self._fence = fence

    @asynccontextmanager
    async def multi(self, *, allow_oom: bool = False) -> AsyncIterator[Any]:
        """A pipeline whose commands are one MULTI, once the caller executes it.

        Args:
            allow_oom: make it on a full Redis too.

        Raises:
            FenceBroken: before it, or out of the execution.
        """
        async with super().multi(allow_oom=allow_oom) as pipe:
            await pipe.watch(self._fence.key)
            if await pipe.get(self._fence.key) != self._fence.value:
                raise FenceBroken
            pipe.multi()
            try:
                yield pipe
            except exceptions.WatchError:
                raise FenceBroken from None


class Bulk(Registry):
    """A Registry with batches for all nouns; they and the settings are behind a fence."""

    def __init__(self, client: "Redis", keys: Keys, fence: Fence) -> None:
        """Nothing is sent yet."""
        super().__init__(client, keys)
        self._changes = FencedChanges(client, keys, fence)

    async def token_ids(self) -> list[TokenId]:
        """Every token's id: each has an owner, so the users' indexes name them all."""
        indexes = self._answers(
            await self.user_ids(), lambda pipe, user: pipe.smembers(self._keys.user_tokens(user))
        )
        return [TokenId(int(token)) async for _, tokens in indexes for token in tokens]

    async def memberships(self) -> list[tuple[TeamId, UserId]]:
        """Every membership."""
        indexes = self._answers(
            await self.user_ids(), lambda pipe, user: pipe.smembers(self._keys.user_teams(user))
        )
        return [(TeamId(int(team)), user) async for user, teams in indexes for team in teams]

    async def owned(self) -> list[str]:
        """The uuid of every resource whose owner is there."""
        buckets = self._answers(
            range(OWNER_BUCKETS), lambda pipe, bucket: pipe.hkeys(self._keys.owners(bucket))
        )
        return [records.text(uuid) async for _, uuids in buckets for uuid in uuids]

    async def owners_of(self, uuids: Iterable[str]) -> list[Owner]:
        """Those of these resources' owners that are there."""
        answers = self._answers(
            list(uuids), lambda pipe, uuid: pipe.hget(self._keys.owners(owner_bucket(uuid)), uuid)
        )
        return [
            Owner(uuid, TeamId(team))
            async for uuid, text in answers
            if (team := records.number(text)) is not None
        ]

    async def put_users(self, users: Sequence[User]) -> None:
        """Write users whole, new or again."""
        for batch in _batches(users):
            async with self._changes.multi() as pipe:
                for user in batch:
                    pipe.hset(self._keys.user(user.id), mapping=user.fields())
                    pipe.sadd(self._keys.users, user.id)
                self._changes.renew(pipe, [user.id for user in batch])
                await pipe.execute()
            await self._changes.raise_last_id("user", max(user.id for user in batch))

    async def put_teams(self, teams: Sequence[Team]) -> None:
        """Write teams whole, new or again; every member's records are stale from then on."""
        for batch in _batches(teams):
            members = await self._members_of(batch)
            async with self._changes.multi() as pipe:
                for team in batch:
                    pipe.hset(self._keys.team(team.id), mapping=team.fields())
                    pipe.sadd(self._keys.teams, team.id)
                self._changes.renew(pipe, members)
                await pipe.execute()
            await self._changes.raise_last_id("team", max(team.id for team in batch))

    async def put_members(self, members: Sequence[Member]) -> None:
        """Write memberships, new or again."""
        for batch in _batches(members):
            async with self._changes.multi() as pipe:
                for member in batch:
                    key = self._keys.team_members(member.team)
                    pipe.hset(key, member.user, member.role.value)
                    pipe.sadd(self._keys.user_teams(member.user), member.team)
                self._changes.renew(pipe, {member.user for member in batch})
                await pipe.execute()

    async def put_tokens(self, tokens: Iterable[Token]) -> None:
        """Write tokens whole, new or again; they stay until they are dropped."""
        for batch in _batches(list(tokens)):
            await super().put_tokens(batch)

    async def put_owners(self, owners: Sequence[Owner]) -> None:
        """Write owners of resources, new or again; no record depends on them."""
        for batch in _batches(owners):
            async with self._changes.multi() as pipe:
                for owner in batch:
                    key = self._keys.owners(owner_bucket(owner.uuid))
                    pipe.hset(key, owner.uuid, owner.team)
                await pipe.execute()

    async def drop_owners(self, owners: Sequence[Owner]) -> None:
        """Forget whose these resources are."""
        for batch in _batches(owners):
            async with self._changes.multi(allow_oom=True) as pipe:
                for owner in batch:
                    pipe.hdel(self._keys.owners(owner_bucket(owner.uuid)), owner.uuid)
                await pipe.execute()

    async def drop_users(self, users: Sequence[User]) -> None:
        """Remove users whose memberships and tokens were dropped before."""
        keys = self._keys
        for batch in _batches(users):
            async with self._changes.multi(allow_oom=True) as pipe:
                for user in batch:
                    pipe.srem(keys.users, user.id)
                    pipe.delete(keys.user(user.id), keys.user_teams(user.id))
                    pipe.delete(keys.user_tokens(user.id))
                self._changes.renew(pipe, [user.id for user in batch])
                await pipe.execute()

    async def drop_teams(self, teams: Sequence[Team]) -> None:
        """Remove teams; tokens may go on to name one that is gone, and belong to nobody."""
        keys = self._keys
        for batch in _batches(teams):
            members = await self._members_of(batch)
            async with self._changes.multi(allow_oom=True) as pipe:
                for team in batch:
                    pipe.srem(keys.teams, team.id)
                    pipe.delete(keys.team(team.id), keys.team_members(team.id))
                self._changes.renew(pipe, members)
                await pipe.execute()

    async def drop_members(self, members: Sequence[Member]) -> None:
        """Remove memberships alone: what becomes of tokens is the caller's to say."""
        for batch in _batches(members):
            async with self._changes.multi(allow_oom=True) as pipe:
                for member in batch:
                    pipe.hdel(self._keys.team_members(member.team), member.user)
                    pipe.srem(self._keys.user_teams(member.user), member.team)
                self._changes.renew(pipe, {member.user for member in batch})
                await pipe.execute()

    async def drop_tokens(self, tokens: Sequence[Token]) -> None:
        """Revoke tokens."""
        for batch in _batches(tokens):
            async with self._changes.multi(allow_oom=True) as pipe:
                self._drop_tokens(pipe, batch)
                self._changes.renew(pipe, {token.user for token in batch})
                await pipe.execute()

    def _let_expire(self, pipe: Any, key: str, token: Token) -> None:  # noqa: ARG002
        """Keep it: whoever is followed deletes its expired tokens itself."""
        pipe.persist(key)

    async def _members_of(self, teams: Sequence[Team]) -> set[UserId]:
        members = self._answers(
            teams, lambda pipe, team: pipe.hkeys(self._keys.team_members(team.id))
        )
        return {UserId(int(user)) async for _, users in members for user in users}


def _batches(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))
