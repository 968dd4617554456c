"""The five kinds of facts that are followed: how each is read, compared, narrowed and written.

`narrowed` is what makes an interrupted application safe: the fact that may stand between the old
and the new one, allowing nothing that both of them do not allow.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final, Generic, TypeVar

from authsidecar.coolify import rows, source
from authsidecar.coolify.rows import Read, Row
from authsidecar.decision.model import Place, Role, TeamId, TokenId, UserId
from authsidecar.store.bulk import Bulk, Owner
from authsidecar.store.entities import Member, Team, Token, User
from authsidecar.store.keys import Keys, owner_bucket

K = TypeVar("K")
F = TypeVar("F")


class Entity(ABC, Generic[K, F]):
    """One kind of fact, keyed by K.

    Attributes:
        name: what people call it.
        table: where Coolify keeps it.
    """

    name: ClassVar[str]
    table: ClassVar[source.Table]

    @abstractmethod
    def read(self, row: Row) -> Read[F]:
        """What a row says."""

    def place(self, row: Row) -> int:
        """The id that decides which bucket a row is in."""
        return int(row["id"])

    def label(self, row: Row) -> str:
        """What names a row in a log line."""
        return str(row["id"])

    @abstractmethod
    def key(self, fact: F) -> K:
        """What names a fact."""

    @abstractmethod
    def bucketed(self, key: K) -> int:
        """The id that decides which bucket a fact is in."""

    @abstractmethod
    def narrowed(self, old: F, new: F) -> F | None:
        """What allows nothing that `old` or `new` does not allow; None: nothing does."""

    @abstractmethod
    def shown(self, fact: F) -> str:
        """A fact in a line for people: nothing secret."""

    def indexes(self, keys: Keys, fact: F) -> Sequence[tuple[str, int]]:  # noqa: ARG002  # none
        """The sets in Redis that name a fact, each with what it is named by."""
        return ()

    @abstractmethod
    async def held(self, bulk: Bulk) -> Sequence[K]:
        """The keys of all facts in Redis."""

    @abstractmethod
    async def facts(self, bulk: Bulk, keys: Iterable[K]) -> Sequence[F]:
        """Those of these facts that are in Redis."""

    @abstractmethod
    async def put(self, bulk: Bulk, facts: Sequence[F]) -> None:
        """Write facts to Redis."""

    @abstractmethod
    async def drop(self, bulk: Bulk, facts: Sequence[F]) -> None:
        """Remove facts from Redis."""


class _Members(Entity[tuple[TeamId, UserId], Member]):
    name = "member"
    table = source.MEMBERS

    def read(self, row: Row) -> Read[Member]:
        return rows.member(row)

    def place(self, row: Row) -> int:
        return int(row["user_id"])

    def label(self, row: Row) -> str:
        return f"{row['team_id']}/{row['user_id']}"

    def key(self, fact: Member) -> tuple[TeamId, UserId]:
        return fact.team, fact.user

    def bucketed(self, key: tuple[TeamId, UserId]) -> int:
        return key[1]

    def narrowed(self, old: Member, new: Member) -> Member | None:
        return new if new.role is Role.MEMBER else old

    def shown(self, fact: Member) -> str:
        return f"user {fact.user} in team {fact.team}: {fact.role}"

    def indexes(self, keys: Keys, fact: Member) -> Sequence[tuple[str, int]]:
        return ((keys.user_teams(fact.user), fact.team),)

    async def held(self, bulk: Bulk) -> Sequence[tuple[TeamId, UserId]]:
        return await bulk.memberships()

    async def facts(self, bulk: Bulk, keys: Iterable[tuple[TeamId, UserId]]) -> Sequence[Member]:
        pairs = list(keys)
        roles = await bulk.roles(pairs)
        return [Member(*pair, roles[pair]) for pair in pairs if pair in roles]

    async def put(self, bulk: Bulk, facts: Sequence[Member]) -> None:
        await bulk.put_members(facts)

    async def drop(self, bulk: Bulk, facts: Sequence[Member]) -> None:
        await bulk.drop_members(facts)


class _Tokens(Entity[TokenId, Token]):
    name = "token"
    table = source.TOKENS

    def read(self, row: Row) -> Read[Token]:
        return rows.token(row)

    def key(self, fact: Token) -> TokenId:
        return fact.id

    def bucketed(self, key: TokenId) -> int:
        return key

    def narrowed(self, old: Token, new: Token) -> Token | None:
        """Either one that the other includes: a mixture could let a member in that neither does."""
        if (old.sha256, old.user, old.team) != (new.sha256, new.user, new.team):
            return None
        if _within(new, old):
            return new
        return old if _within(old, new) else None

    def shown(self, fact: Token) -> str:
        team = "no team" if fact.team is None else f"team {fact.team}"
        held = " ".join(sorted(fact.permissions)) or "no permission"
        return f"{fact.id} of user {fact.user}, {team}: {held}"

    def indexes(self, keys: Keys, fact: Token) -> Sequence[tuple[str, int]]:
        of_user = (keys.user_tokens(fact.user), fact.id)
        return (
            (of_user,) if fact.team is None else (of_user, (keys.team_tokens(fact.team), fact.id))
        )

    async def held(self, bulk: Bulk) -> Sequence[TokenId]:
        return await bulk.token_ids()

    async def facts(self, bulk: Bulk, keys: Iterable[TokenId]) -> Sequence[Token]:
        return await bulk.tokens_of(keys)

    async def put(self, bulk: Bulk, facts: Sequence[Token]) -> None:
        await bulk.put_tokens(facts)

    async def drop(self, bulk: Bulk, facts: Sequence[Token]) -> None:
        await bulk.drop_tokens(facts)


class _Teams(Entity[TeamId, Team]):
    name = "team"
    table = source.TEAMS

    def read(self, row: Row) -> Read[Team]:
        return rows.team(row)

    def key(self, fact: Team) -> TeamId:
        return fact.id

    def bucketed(self, key: TeamId) -> int:
        return key

    def narrowed(self, old: Team, new: Team) -> Team | None:
        return old if new.mcp_enabled else new

    def shown(self, fact: Team) -> str:
        return f"{fact.id} {fact.name!a}, MCP {'on' if fact.mcp_enabled else 'off'}"

    def indexes(self, keys: Keys, fact: Team) -> Sequence[tuple[str, int]]:
        return ((keys.teams, fact.id),)

    async def held(self, bulk: Bulk) -> Sequence[TeamId]:
        return await bulk.team_ids()

    async def facts(self, bulk: Bulk, keys: Iterable[TeamId]) -> Sequence[Team]:
        return await bulk.teams_of(keys)

    async def put(self, bulk: Bulk, facts: Sequence[Team]) -> None:
        await bulk.put_teams(facts)

    async def drop(self, bulk: Bulk, facts: Sequence[Team]) -> None:
        await bulk.drop_teams(facts)


class _Users(Entity[UserId, User]):
    name = "user"
    table = source.USERS

    def read(self, row: Row) -> Read[User]:
        return rows.user(row)

    def key(self, fact: User) -> UserId:
        return fact.id

    def bucketed(self, key: UserId) -> int:
        return key

    def narrowed(self, old: User, new: User) -> User | None:  # noqa: ARG002  # names decide nothing
        return old

    def shown(self, fact: User) -> str:
        return f"{fact.id} {fact.name!a}"

    def indexes(self, keys: Keys, fact: User) -> Sequence[tuple[str, int]]:
        return ((keys.users, fact.id),)

    async def held(self, bulk: Bulk) -> Sequence[UserId]:
        return await bulk.user_ids()

    async def facts(self, bulk: Bulk, keys: Iterable[UserId]) -> Sequence[User]:
        return await bulk.users_of(keys)

    async def put(self, bulk: Bulk, facts: Sequence[User]) -> None:
        await bulk.put_users(facts)

    async def drop(self, bulk: Bulk, facts: Sequence[User]) -> None:
        await bulk.drop_users(facts)


class _Owners(Entity[str, Owner]):
    name = "owner"
    table = source.OWNERS

    def read(self, row: Row) -> Read[Owner]:
        return rows.owner(row)

    def place(self, row: Row) -> int:
        return self.bucketed(row["uuid"])

    def label(self, row: Row) -> str:
        return f"{row['uuid']!a}"

    def key(self, fact: Owner) -> str:
        return fact.uuid

    def bucketed(self, key: str) -> int:
        return owner_bucket(key) * source.BUCKET

    def narrowed(self, old: Owner, new: Owner) -> Owner | None:  # noqa: ARG002
        """The new one: an owner only takes away, and what it refuses Coolify refuses too."""
        return new

    def shown(self, fact: Owner) -> str:
        return f"of {fact.uuid!a}: team {fact.place.team}{_where(fact.place)}"

    async def held(self, bulk: Bulk) -> Sequence[str]:
        return await bulk.located()

    async def facts(self, bulk: Bulk, keys: Iterable[str]) -> Sequence[Owner]:
        return await bulk.owners_of(keys)

    async def put(self, bulk: Bulk, facts: Sequence[Owner]) -> None:
        await bulk.put_owners(facts)

    async def drop(self, bulk: Bulk, facts: Sequence[Owner]) -> None:
        await bulk.drop_owners(facts)


def _where(place: Place) -> str:
    """What of the tree a place says."""
    lies = place.within or place.environment or place.environment_name or place.project
    kind = "" if place.kind is None else f", {place.kind}"
    return f"{kind} in {lies!a}" if lies else kind


def _within(one: Token, other: Token) -> bool:
    """Whether one token allows nothing that the other does not."""
    ends = other.expires_at is None or (
        one.expires_at is not None and one.expires_at <= other.expires_at
    )
    return ends and one.permissions <= other.permissions


MEMBERS: Final = _Members()
TOKENS: Final = _Tokens()
TEAMS: Final = _Teams()
USERS: Final = _Users()
OWNERS: Final = _Owners()
"""Of resources: none where `sync.team_isolation` is off, so that switching it off removes them."""

NARROWING: Final[tuple[Entity[Any, Any], ...]] = (MEMBERS, TOKENS, TEAMS, USERS, OWNERS)
"""The order of removals: roles first, and a user only once nothing names it any more."""

WIDENING: Final[tuple[Entity[Any, Any], ...]] = (OWNERS, TEAMS, USERS, MEMBERS, TOKENS)
"""The order of additions: a token last, when all that it is judged by is there."""
