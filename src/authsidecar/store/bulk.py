"""Many facts at once, by a writer that may have been replaced: as a sync writes them.

Each batch, like the settings, is one script that looks at the fence and at the epoch. A writer
whose fence another has taken changes nothing there any more, however late it wakes up; nor does
one whose last write Redis has lost.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from redis.asyncio import Redis

from authsidecar.decision.model import Place, Role, TeamId, TokenId, UserId
from authsidecar.store import records
from authsidecar.store.audit import Facts, Origin
from authsidecar.store.changes import Changes, last_id
from authsidecar.store.entities import Member, Team, Token, User
from authsidecar.store.epoch import (
    Batch,
    ClusterEpoch,
    Epoch,
    Fence,
    FenceBroken,
    epoch,
)
from authsidecar.store.keys import Keys, owner_bucket
from authsidecar.store.registry import RECORDED_ONE_BY_ONE, Registry
from authsidecar.store.scan import Scan

BATCH: Final = 500
"""How many facts one MULTI writes: Redis serves nobody else meanwhile."""

_RECORD: Final = re.compile(r"(token|user|team):(\d{1,19})")
_MEMBERS: Final = re.compile(r"team:(\d{1,19}):members")
_OWNERS: Final = re.compile(r"owners:(\d{1,3})")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose one of Coolify's resources is, and where it lies.

    Attributes:
        uuid: its own; of an environment, also `PROJECT/NAME`.
        place: its place in the tree.
    """

    uuid: str
    place: Place


class FencedChanges(Changes):
    """Changes that are made only while the fence has its value and no write before was lost.

    Attributes:
        epoch: moves with each of them.
        forced: whether they are made on a full Redis too: those that take rights away.
    """

    def __init__(self, client: "Redis", keys: Keys, fence: Fence) -> None:
        """Nothing is sent yet."""
        super().__init__(client, keys)
        self._fence = fence
        self._epoch = epoch(client, keys, fence)
        self.forced = False

    @property
    def epoch(self) -> Epoch:
        """What shows that Redis is as the last write left it."""
        return self._epoch

    @asynccontextmanager
    async def multi(self, *, allow_oom: bool = False) -> AsyncIterator[Any]:
        """A pipeline whose commands are one write, once the caller executes it.

        On a cluster it is one in each slot.

        Args:
            allow_oom: make it on a full Redis too.

        Raises:
            FenceBroken, WritesLost: before it, or out of the execution.
        """
        forced = allow_oom or self.forced
        if not isinstance(self._epoch, ClusterEpoch):
            yield Batch(self._epoch, forced=forced)  # type: ignore[abstract]
            return
        async with super().multi(allow_oom=forced) as pipe:
            await pipe.watch(self._fence.key)
            if await pipe.get(self._fence.key) != self._fence.value:
                raise FenceBroken
            pipe.multi()
            pipe.marks = self._epoch
            yield pipe

    async def raise_last_id(self, noun: str, number: int) -> None:
        """Make sure that ids given from now on are above this one; nobody else gives any."""
        key = self._keys.next_id(noun)
        if number > int(await self._client.get(key) or 0):
            async with self.multi() as pipe:
                pipe.set(key, number)
                await pipe.execute()


class Bulk(Registry):
    """A Registry with batches for all nouns; they and the settings are behind a fence."""

    def __init__(
        self, client: "Redis", keys: Keys, fence: Fence, origin: Origin | None = None
    ) -> None:
        """Nothing is sent yet."""
        super().__init__(client, keys, origin)
        self._changes: FencedChanges = FencedChanges(client, keys, fence)

    @property
    def epoch(self) -> Epoch:
        """What shows that Redis is as the last write left it."""
        return self._changes.epoch

    @contextmanager
    def forced(self) -> Iterator[None]:
        """What is written within takes rights away: it is written to a full Redis too."""
        self._changes.forced = True
        try:
            yield
        finally:
            self._changes.forced = False

    async def _change_instance(self, write: Callable[[Any, Facts], None]) -> None:
        before = await self._instance_before()
        async with self._changes.multi(allow_oom=True) as pipe:
            write(pipe, before)
            await pipe.execute()

    async def say_synced(self, *, complete: bool) -> None:
        """Say whether all is there; once it was, it is until Redis forgets it."""
        found = await self._client.hget(self._keys.instance, records.SYNCED)
        wanted = records.SYNC_COMPLETE if complete else records.SYNC_BEGUN
        if found in {wanted, records.SYNC_COMPLETE}:
            return
        with self.forced():
            async with self._changes.multi() as pipe:
                pipe.hset(self._keys.instance, records.SYNCED, wanted)
                self._changes.renew_instance(pipe)
                await pipe.execute()

    async def outdate(self, users: Iterable[UserId]) -> None:
        """Make stale on a cluster whatever was read of these users, and of the settings.

        There a nonce is on another node than what it proves: either may be lost without the other.
        A nonce that is missing proves nothing, and a full node can be rid of it.
        """
        if not isinstance(self.epoch, ClusterEpoch):
            return
        await self._client.delete(self._keys.instance_nonce)
        async for _ in self._answers(
            list(users), lambda pipe, user: pipe.delete(self._keys.user_nonce(user))
        ):
            pass

    async def raise_last_ids(self, last: dict[str, int]) -> None:
        """Make sure that ids given from now on are above these, by noun."""
        for noun, number in last.items():
            await self._changes.raise_last_id(noun, number)

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

    async def unlisted(self, named: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
        """Those of these that are not in their index: each a set's key and a member."""
        indexes: dict[str, list[int]] = {}
        for index, member in named:
            indexes.setdefault(index, []).append(member)
        answers = self._answers(
            list(indexes.items()), lambda pipe, one: pipe.smismember(one[0], one[1])
        )
        return {
            (index, member)
            async for (index, members), found in answers
            for member, there in zip(members, found, strict=True)
            if not there
        }

    async def found(self, scan: Scan) -> list[tuple[str, Any]]:
        """Some of the facts that are there whatever the indexes say; all of them in the end.

        Args:
            scan: where the last call ended.

        Returns:
            The name of each one's noun, and its key.
        """
        facts: list[tuple[str, Any]] = []
        hashes: list[tuple[str, str, int]] = []
        for name in await scan.some(self._client, self._keys.prefix):
            if (match := _RECORD.fullmatch(name)) is not None:
                facts.append((match[1], int(match[2])))
            elif (match := _MEMBERS.fullmatch(name)) is not None:
                hashes.append(
                    ("member", self._keys.team_members(TeamId(int(match[1]))), int(match[1]))
                )
            elif (match := _OWNERS.fullmatch(name)) is not None:
                hashes.append(("owner", self._keys.owners(int(match[1])), 0))
        answers = self._answers(hashes, lambda pipe, one: pipe.hkeys(one[1]))
        async for (noun, _, team), names in answers:
            facts += [
                (noun, (team, int(found)) if noun == "member" else records.text(found))
                for found in names
            ]
        return facts

    async def owners_of(self, uuids: Iterable[str]) -> list[Owner]:
        """Those of these resources' owners that are there."""
        answers = self._answers(
            list(uuids), lambda pipe, uuid: pipe.hget(self._keys.owners(owner_bucket(uuid)), uuid)
        )
        return [
            Owner(uuid, place)
            async for uuid, text in answers
            if (place := records.place(text)) is not None
        ]

    async def put_users(self, users: Sequence[User]) -> None:
        """Write users whole, new or again."""
        for batch in _batches(users):
            old = await self.users_of([user.id for user in batch]) if self._origin else ()
            async with self._changes.multi() as pipe:
                for user in batch:
                    pipe.hset(self._keys.user(user.id), mapping=user.fields())
                    pipe.sadd(self._keys.users, user.id)
                self._record_all(pipe, "user", batch, old)
                self._changes.renew(pipe, [user.id for user in batch])
                await pipe.execute()
            await self._changes.raise_last_id("user", last_id(user.id for user in batch))

    async def put_teams(self, teams: Sequence[Team]) -> None:
        """Write teams whole, new or again; every member's records are stale from then on."""
        for batch in _batches(teams):
            members = await self._members_of(batch)
            old = await self.teams_of([team.id for team in batch]) if self._origin else ()
            async with self._changes.multi() as pipe:
                for team in batch:
                    pipe.hset(self._keys.team(team.id), mapping=team.fields())
                    pipe.sadd(self._keys.teams, team.id)
                self._record_all(pipe, "team", batch, old)
                self._changes.renew(pipe, members)
                await pipe.execute()
            await self._changes.raise_last_id("team", last_id(team.id for team in batch))

    async def put_members(self, members: Sequence[Member]) -> None:
        """Write memberships, new or again."""
        for batch in _batches(members):
            pairs = [(one.team, one.user) for one in batch]
            roles = await self.roles(pairs) if self._origin else {}
            async with self._changes.multi() as pipe:
                for member in batch:
                    key = self._keys.team_members(member.team)
                    pipe.hset(key, member.user, member.role.value)
                    pipe.sadd(self._keys.user_teams(member.user), member.team)
                self._record_members(pipe, "member.set", batch, roles)
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
                    pipe.hset(key, owner.uuid, records.write_place(owner.place))
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
                self._record_dropped(pipe, "user.remove", "user", batch)
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
                self._record_dropped(pipe, "team.remove", "team", batch)
                self._changes.renew(pipe, members)
                await pipe.execute()

    async def drop_members(self, members: Sequence[Member]) -> None:
        """Remove memberships alone: what becomes of tokens is the caller's to say."""
        for batch in _batches(members):
            async with self._changes.multi(allow_oom=True) as pipe:
                for member in batch:
                    pipe.hdel(self._keys.team_members(member.team), member.user)
                    pipe.srem(self._keys.user_teams(member.user), member.team)
                self._record_members(
                    pipe, "member.remove", batch, {(one.team, one.user): one.role for one in batch}
                )
                self._changes.renew(pipe, {member.user for member in batch})
                await pipe.execute()

    async def drop_tokens(self, tokens: Sequence[Token]) -> None:
        """Revoke tokens."""
        for batch in _batches(tokens):
            async with self._changes.multi(allow_oom=True) as pipe:
                self._drop_tokens(pipe, batch)
                self._record_dropped(pipe, "token.revoke", "token", batch)
                self._changes.renew(pipe, {token.user for token in batch})
                await pipe.execute()

    def _record_dropped(
        self, pipe: Any, action: str, noun: str, facts: Sequence[User | Team | Token]
    ) -> None:
        """Record facts that are removed: each by itself, or of very many their number."""
        if len(facts) > RECORDED_ONE_BY_ONE:
            gone = {"count": len(facts), "ids": [int(one.id) for one in facts]}
            self._record(pipe, action, f"{len(facts)} {noun}s", before=gone)
            return
        for one in facts:
            self._record(pipe, action, f"{noun} {one.id}", before=one.facts())

    def _record_members(
        self,
        pipe: Any,
        action: str,
        members: Sequence[Member],
        roles: Mapping[tuple[TeamId | None, UserId], Role],
    ) -> None:
        """Record memberships that are written or removed, with the roles that were there."""
        after = action == "member.set"
        if len(members) > RECORDED_ONE_BY_ONE:
            count = {"count": len(members)}
            self._record(
                pipe, action, f"{len(members)} members", **{"after" if after else "before": count}
            )
            return
        for one in members:
            was = roles.get((one.team, one.user))
            self._record(
                pipe,
                action,
                f"user {one.user} in team {one.team}",
                before=None if was is None else {"role": was.value},
                after=one.facts() if after else None,
            )

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
