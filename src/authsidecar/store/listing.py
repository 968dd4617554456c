"""What there is: users, teams, memberships, tokens, limits and the instance's settings, read.

Lists go through index sets, never over the keyspace, and are read 500 records a trip.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from redis.asyncio import Redis

from authsidecar.decision import restrictions
from authsidecar.decision.model import Limit, Place, Restriction, Role, TeamId, TokenId, UserId
from authsidecar.decision.policy import Instance
from authsidecar.decision.ratelimit import charges
from authsidecar.decision.ratelimit.charges import Charge
from authsidecar.store import records
from authsidecar.store.entities import Member, Team, Token, User
from authsidecar.store.keys import OWNER_BUCKETS, Keys, owner_bucket
from authsidecar.times import UnixMs

SMALL: Final = 1000
"""Ids of the largest set that is read whole for a page of it: a millisecond's work."""

# The list is in the order of time: half of what is left is dropped until one is left.
_USAGE: Final = """
local n = redis.call('LLEN', KEYS[1])
local low, high = 0, n
while low < high do
  local middle = math.floor((low + high) / 2)
  if tonumber(redis.call('LINDEX', KEYS[1], middle)) > tonumber(ARGV[1]) then high = middle
  else low = middle + 1 end
end
return {n - low, redis.call('LINDEX', KEYS[1], low)}
"""

_PAGE: Final = 500
"""How many records one trip of a listing reads."""

_I = TypeVar("_I")
_N = TypeVar("_N")


class Listing:
    """Reads the state; redis-py's own exceptions pass through to the caller."""

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

    async def user_ids(self) -> list[UserId]:
        """Every user's id, in their order."""
        return [UserId(i) for i in await self._ids(self._keys.users)]

    async def user(self, user: UserId) -> User | None:
        """One user, or None."""
        return User.read(user, await self._client.hmget(self._keys.user(user), User.FIELDS))

    async def users_of(self, ids: Iterable[UserId]) -> list[User]:
        """Those of these users that are there, in the order of the ids."""
        return await self._nouns(ids, self._keys.user, User.FIELDS, User.read)

    async def users(self) -> list[User]:
        """All users by id."""
        return await self.users_of(await self.user_ids())

    # Teams and members

    async def team_ids(self) -> list[TeamId]:
        """Every team's id, in their order."""
        return [TeamId(i) for i in await self._ids(self._keys.teams)]

    async def team(self, team: TeamId) -> Team | None:
        """One team, or None."""
        return Team.read(team, await self._client.hmget(self._keys.team(team), Team.FIELDS))

    async def teams_of(self, ids: Iterable[TeamId]) -> list[Team]:
        """Those of these teams that are there, in the order of the ids."""
        return await self._nouns(ids, self._keys.team, Team.FIELDS, Team.read)

    async def teams(self) -> list[Team]:
        """All teams by id."""
        return await self.teams_of(await self.team_ids())

    async def member(self, team: TeamId, user: UserId) -> Role | None:
        """A user's role in a team, or None."""
        return records.role(await self._client.hget(self._keys.team_members(team), str(user)))

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

    async def roles(
        self, pairs: Iterable[tuple[TeamId | None, UserId]]
    ) -> Mapping[tuple[TeamId | None, UserId], Role]:
        """The roles of those of these pairs that are memberships."""
        asked = [(team, user) for team, user in pairs if team is not None]
        answers = self._answers(
            asked, lambda pipe, pair: pipe.hget(self._keys.team_members(pair[0]), str(pair[1]))
        )
        return {
            pair: role async for pair, text in answers if (role := records.role(text)) is not None
        }

    # Tokens

    async def token(self, token: TokenId) -> Token | None:
        """One token, or None."""
        found = await self.tokens_of([token])
        return found[0] if found else None

    async def token_ids_of(self, user: UserId) -> list[TokenId]:
        """The ids of a user's tokens, in their order; some may have expired and be gone."""
        return [TokenId(i) for i in await self._ids(self._keys.user_tokens(user))]

    async def tokens_of(self, ids: Iterable[TokenId]) -> list[Token]:
        """Those of these tokens that are there, in the order of the ids."""
        return await self._nouns(ids, self._keys.token, Token.FIELDS, Token.read)

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
            sources = [keys.user_tokens(owner) for owner in await self.user_ids()]
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

    # Limits

    async def expiring_page(self, start: int, count: int) -> list[TokenId]:
        """The ids of tokens that expire, the next first.

        Args:
            start: how many of those that have not expired are left out.
            count: how many at the most.
        """
        found = await self._client.zrangebyscore(
            self._keys.expiring, await self.now(), "+inf", start=start, num=count
        )
        return [TokenId(int(i)) for i in found]

    async def limit(self, scope: str, number: int) -> Limit | None:
        """The override of one token, user or team, or None."""
        return records.limit(await self._client.hget(self._limited(scope, number), "limit"))

    async def limits_of(self, scope: str, ids: Sequence[int]) -> Mapping[int, Limit]:
        """The overrides of those of these tokens, users or teams that have one, by id."""
        answers = self._answers(
            ids, lambda pipe, number: pipe.hget(self._limited(scope, number), "limit")
        )
        return {
            number: limit
            async for number, text in answers
            if (limit := records.limit(text)) is not None
        }

    async def limits(self) -> Mapping[tuple[str, int], Limit]:
        """Every override, by scope and id."""
        teams = await self.team_ids()
        limited = [("user", int(user)) for user in await self.user_ids()]
        limited += [("team", int(team)) for team in teams]
        for team in teams:
            limited += [("token", i) for i in await self._ids(self._keys.team_tokens(team))]
        answers = self._answers(
            limited, lambda pipe, holder: pipe.hget(self._limited(*holder), "limit")
        )
        return {
            holder: limit
            async for holder, text in answers
            if (limit := records.limit(text)) is not None
        }

    async def usage(self, counter: Charge, window_ms: int) -> tuple[int, UnixMs | None]:
        """How many requests a counter has admitted in a window that ends now, and when the first.

        Found by halving in Redis: a long counter costs no more than a short one.
        """
        key = self._keys.counter(counter)
        seconds, micros = await self._client.time()
        since = int(seconds) * 1000 + int(micros) // 1000 - window_ms
        used, oldest = await self._client.eval(_USAGE, 1, key, since)
        return int(used), None if oldest is None else UnixMs(int(oldest))

    # Pages: some at a time, for who must not wait for all

    async def page(
        self, index: str, cursor: int, count: int, *, scan: bool
    ) -> tuple[list[int], int | None, bool]:
        """Some ids of a set, and where to go on.

        A small set is read whole, and its ids come in their order; a large one is scanned, in no
        order, and an id that is added or removed meanwhile may be left out or come twice.

        Args:
            index: the set's key.
            cursor: 0, or where the last page has ended.
            count: how many at the most; of a large set about so many.
            scan: how the last page was read; False at first.

        Returns:
            The ids, the next cursor or None, and how this page was read.
        """
        if not scan and (cursor or int(await self._client.scard(index)) <= SMALL):
            ids = [i for i in await self._ids(index) if i >= cursor]
            more = ids[count] if len(ids) > count else None
            return ids[:count], more, False
        following, found = await self._client.sscan(index, cursor=cursor, count=count)
        return sorted(int(i) for i in found), int(following) or None, True

    async def members_page(
        self, team: TeamId, cursor: int, count: int, *, scan: bool
    ) -> tuple[list[Member], int | None, bool]:
        """Some members of a team, as `page` gives ids."""
        key = self._keys.team_members(team)
        if not scan and (cursor or int(await self._client.hlen(key)) <= SMALL):
            found = [one for one in await self.members(team) if one.user >= cursor]
            more = int(found[count].user) if len(found) > count else None
            return found[:count], more, False
        following, rows = await self._client.hscan(key, cursor=cursor, count=count)
        found = [
            Member(team, UserId(int(user)), records.role(role) or Role.MEMBER)
            for user, role in rows.items()
        ]
        return sorted(found, key=lambda one: one.user), int(following) or None, True

    # Restrictions

    async def restriction(self, scope: str, number: int) -> Restriction | None:
        """What narrows one token, user or team, or None."""
        text = await self._client.hget(self._limited(scope, number), records.RESTRICTION)
        return None if text is None else restrictions.read(text)

    async def restrictions(self, scope: str, ids: Sequence[int]) -> Mapping[int, Restriction]:
        """What narrows these tokens, users or teams, by id."""
        answers = self._answers(
            ids,
            lambda pipe, number: pipe.hget(self._limited(scope, number), records.RESTRICTION),
        )
        return {
            number: restrictions.read(text) async for number, text in answers if text is not None
        }

    async def disabled(self, tokens: Sequence[TokenId]) -> frozenset[TokenId]:
        """Those of these tokens that are disabled."""
        answers = self._answers(
            tokens, lambda pipe, token: pipe.hget(self._keys.token(token), records.DISABLED)
        )
        return frozenset([t async for t, text in answers if records.is_disabled(text)])

    async def used(self, token: TokenId, user: UserId) -> int | None:
        """How often a token with a budget was used; None if it has none."""
        key = self._keys.counter(charges.budget(token, user, 1))
        return records.number(await self._client.get(key))

    # Canaries

    async def canaries(self) -> list[records.Canary]:
        """All canary tokens by id."""
        found = await self._client.hgetall(self._keys.canaries)
        return sorted(records.canary(TokenId(int(i)), value) for i, value in found.items())

    # The instance

    async def instance(self) -> Instance:
        """The switches and the allowlist as they stand."""
        fields = await self._client.hmget(self._keys.instance, records.INSTANCE_FIELDS)
        return records.instance(fields, b"")

    # How it is read

    def _limited(self, scope: str, number: int) -> str:
        """The record that holds the override of a `token`, `user` or `team`."""
        match scope:
            case "token":
                return self._keys.token(TokenId(number))
            case "team":
                return self._keys.team(TeamId(number))
            case _:
                return self._keys.user(UserId(number))

    async def _ids(self, index: str) -> list[int]:
        return sorted(int(i) for i in await self._client.smembers(index))

    async def _nouns(
        self,
        ids: Iterable[_I],
        key: Callable[[_I], str],
        fields: Sequence[str],
        read: Callable[[_I, Sequence[records.Field]], _N | None],
    ) -> list[_N]:
        """Those that are there, in the order of the ids."""
        rows = self._answers(list(ids), lambda pipe, i: pipe.hmget(key(i), fields))
        return [noun async for i, row in rows if (noun := read(i, row)) is not None]

    async def located(self) -> list[str]:
        """The key of every resource of which it is known whose it is."""
        buckets = self._answers(
            range(OWNER_BUCKETS), lambda pipe, bucket: pipe.hkeys(self._keys.owners(bucket))
        )
        return [records.text(key) async for _, keys in buckets for key in keys]

    async def places(self, keys: Sequence[str]) -> dict[str, Place | None]:
        """Where resources lie, by their keys; None: not known."""
        answers = self._answers(
            keys, lambda pipe, key: pipe.hget(self._keys.owners(owner_bucket(key)), key)
        )
        return {key: records.place(text) async for key, text in answers}

    async def _answers(
        self, asked: Sequence[_I], ask: Callable[[Any, _I], object]
    ) -> AsyncIterator[tuple[_I, Any]]:
        """Each of these with what Redis answers to one command about it; a trip for 500."""
        for start in range(0, len(asked), _PAGE):
            page = asked[start : start + _PAGE]
            async with self._client.pipeline(transaction=False) as pipe:
                for one in page:
                    ask(pipe, one)
                answers = await pipe.execute()
            for pair in zip(page, answers, strict=True):
                yield pair
