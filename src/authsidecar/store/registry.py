"""Users, teams, members, tokens and the instance's settings, changed one at a time.

Each change takes along whatever depends on it, and is seen by the very next request.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, NamedTuple

from redis import exceptions
from redis.asyncio import Redis

from authsidecar.decision import restrictions
from authsidecar.decision.model import (
    DAMAGED,
    Limit,
    Restriction,
    Role,
    TeamId,
    TokenId,
    UserId,
)
from authsidecar.decision.policy import Instance
from authsidecar.decision.ratelimit import charges
from authsidecar.decision.ratelimit.charges import Charge
from authsidecar.store import audit, records
from authsidecar.store.audit import Origin
from authsidecar.store.changes import Changes, Precondition, last_id
from authsidecar.store.entities import Team, Token, User
from authsidecar.store.keys import Keys
from authsidecar.store.listing import Listing
from authsidecar.store.trials import SETTING_ACTIONS, TRIED, Trials, trial_field
from authsidecar.times import UnixMs, rfc3339

EXPIRED_KEPT_MS: Final = 7 * 24 * 3600 * 1000
"""For how long an expired token is kept, so that its refusal can say why: a week."""


RECORDED_ONE_BY_ONE: Final = 20
"""Up to how many facts that are written together have a record each in the audit."""


class _Owned(NamedTuple):
    """What is known of a token when something beside it is changed."""

    owner: UserId
    expires_at: UnixMs | None


class Registry(Listing):
    """Lists the state and changes it; redis-py's own exceptions pass through to the caller.

    Attributes:
        trials: changes of settings that somebody has to confirm.
    """

    def __init__(
        self,
        client: "Redis",
        keys: Keys,
        origin: Origin | None = None,
        precondition: Precondition | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            client: redis-py's asyncio client, decode_responses off.
            keys: the key names.
            origin: who makes the changes, for the audit; None: they are not recorded.
            precondition: what must hold when what is there is first changed or removed.
        """
        super().__init__(client, keys)
        self._changes = Changes(client, keys, precondition)
        self.trials = Trials(client, keys, origin)
        self._origin = origin

    # Users

    async def add_user(self, name: str, email: str, user: UserId | None = None) -> UserId | None:
        """Add a user; None if the id is taken. Ids count up unless given."""
        keys = self._keys

        def write(pipe: Any, number: int) -> None:
            added = User(UserId(number), name, email)
            pipe.hset(keys.user(added.id), mapping=added.fields())
            pipe.sadd(keys.users, added.id)
            self._record(pipe, "user.add", f"user {number}", after=added.facts())
            self._changes.renew(pipe, [added.id])

        number = await self._changes.add("user", lambda i: keys.user(UserId(i)), user, write)
        return None if number is None else UserId(number)

    async def remove_user(self, user: UserId) -> int | None:
        """Remove a user with its memberships and tokens: how many tokens; None if not there."""
        keys = self._keys

        async def change(pipe: Any) -> int | None:
            was = User.read(user, await pipe.hmget(keys.user(user), User.FIELDS))
            if was is None:
                return None
            teams = [TeamId(int(i)) for i in await pipe.smembers(keys.user_teams(user))]
            tokens = await self._watched_tokens(pipe, await pipe.smembers(keys.user_tokens(user)))
            pipe.multi()
            self._drop_tokens(pipe, tokens)
            for team in teams:
                pipe.hdel(keys.team_members(team), user)
            pipe.srem(keys.users, user)
            pipe.delete(keys.user(user), keys.user_teams(user), keys.user_tokens(user))
            before = {**was.facts(), "teams": sorted(teams), "tokens": _ids(tokens)}
            self._record(pipe, "user.remove", f"user {user}", before=before)
            self._changes.renew(pipe, [user])
            return len(tokens)

        watched = [keys.user(user), keys.user_teams(user), keys.user_tokens(user)]
        return await self._changes.transaction(change, watched, allow_oom=True)

    # Teams and members

    async def add_team(self, name: str, team: TeamId | None = None) -> TeamId | None:
        """Add a team; None if the id is taken. Ids count up unless given."""
        keys = self._keys

        def write(pipe: Any, number: int) -> None:
            added = Team(TeamId(number), name, mcp_enabled=True)
            pipe.hset(keys.team(added.id), mapping=added.fields())
            pipe.sadd(keys.teams, added.id)
            self._record(pipe, "team.add", f"team {number}", after=added.facts())

        number = await self._changes.add("team", lambda i: keys.team(TeamId(i)), team, write)
        return None if number is None else TeamId(number)

    async def remove_team(self, team: TeamId) -> int | None:
        """Remove a team with its memberships and tokens: how many tokens; None if not there."""
        keys = self._keys

        async def change(pipe: Any) -> int | None:
            was = Team.read(team, await pipe.hmget(keys.team(team), Team.FIELDS))
            if was is None:
                return None
            members = await self._watched_members(pipe, team)
            tokens = await self._watched_tokens(pipe, await pipe.smembers(keys.team_tokens(team)))
            pipe.multi()
            self._drop_tokens(pipe, tokens)
            for user in members:
                pipe.srem(keys.user_teams(user), team)
            pipe.srem(keys.teams, team)
            pipe.delete(keys.team(team), keys.team_members(team), keys.team_tokens(team))
            before = {**was.facts(), "members": sorted(members), "tokens": _ids(tokens)}
            self._record(pipe, "team.remove", f"team {team}", before=before)
            self._changes.renew(pipe, {*members, *(t.user for t in tokens)})
            return len(tokens)

        watched = [keys.team(team), keys.team_members(team), keys.team_tokens(team)]
        return await self._changes.transaction(change, watched, allow_oom=True)

    async def set_team_mcp(self, team: TeamId, enabled: bool) -> bool:
        """Turn a team's MCP switch; False if there is no such team."""

        def write(pipe: Any, key: str, was: records.Field) -> None:
            pipe.hset(key, "mcp_enabled", int(enabled))
            self._record(
                pipe,
                "mcp.switch",
                f"team {team}",
                before={"mcp_enabled": records.flag(was, absent=True)},
                after={"mcp_enabled": enabled},
            )

        return await self._change_team(team, write, "mcp_enabled")

    async def set_member(self, team: TeamId, user: UserId, role: Role) -> bool:
        """Give a user a role in a team; False if either is not there."""
        keys = self._keys
        needed = [keys.team(team), keys.user(user)]

        async def change(pipe: Any) -> bool:
            if await pipe.exists(*needed) != len(needed):
                return False
            was = await pipe.hget(keys.team_members(team), str(user))
            pipe.multi()
            pipe.hset(keys.team_members(team), user, role.value)
            pipe.sadd(keys.user_teams(user), team)
            self._record(
                pipe,
                "member.set",
                f"user {user} in team {team}",
                before=None if was is None else {"role": records.text(was)},
                after={"role": role.value},
            )
            self._changes.renew(pipe, [user])
            return True

        return await self._changes.transaction(change, needed, allow_oom=True)

    async def remove_member(self, team: TeamId, user: UserId) -> int | None:
        """Remove a membership and the tokens it carried: how many; None if it is not there."""
        keys = self._keys

        async def change(pipe: Any) -> int | None:
            was = await pipe.hget(keys.team_members(team), str(user))
            if was is None:
                return None
            held = await self._watched_tokens(pipe, await pipe.smembers(keys.user_tokens(user)))
            tokens = [t for t in held if t.team == team]
            pipe.multi()
            self._drop_tokens(pipe, tokens)
            pipe.hdel(keys.team_members(team), user)
            pipe.srem(keys.user_teams(user), team)
            before = {"role": records.text(was), "tokens": _ids(tokens)}
            self._record(pipe, "member.remove", f"user {user} in team {team}", before=before)
            self._changes.renew(pipe, [user])
            return len(tokens)

        watched = [keys.team_members(team), keys.user_tokens(user)]
        return await self._changes.transaction(change, watched, allow_oom=True)

    # Tokens

    async def next_token_id(self) -> TokenId:
        """A token id that was never given before; they count up as Coolify's do."""
        return TokenId(await self._changes.next_id("token"))

    async def put_tokens(self, tokens: Iterable[Token]) -> None:
        """Write tokens whole, new or again; ids given later are above all of these.

        Where Redis is full, those that are there are written, since their rights may become less;
        then OutOfMemoryError says that the new ones are not.
        """
        tokens = tuple(tokens)
        if not tokens:
            return
        old = await self.tokens_of(t.id for t in tokens)
        try:
            await self._put_tokens(tokens, old)
        except exceptions.OutOfMemoryError:
            there = {t.id for t in old}
            if changed := [t for t in tokens if t.id in there]:
                await self._put_tokens(changed, old, allow_oom=True)
            if len(changed) < len(tokens):
                raise
            return
        await self._changes.raise_last_id("token", last_id(t.id for t in tokens))

    async def forget_expired(self, before: UnixMs) -> None:
        """Drop from the index of expiries what has expired before this time."""
        await self._client.zremrangebyscore(self._keys.expiring, "-inf", f"({before}")

    async def remove_token(self, token: TokenId) -> bool:
        """Revoke a token: it is deleted. False if it is not there."""

        async def change(pipe: Any) -> bool:
            tokens = await self._watched_tokens(pipe, [token])
            pipe.multi()
            self._drop_tokens(pipe, tokens)
            for one in tokens:
                self._record(pipe, "token.revoke", f"token {one.id}", before=one.facts())
            self._changes.renew(pipe, [t.user for t in tokens])
            return bool(tokens)

        return await self._changes.transaction(change, [self._keys.token(token)], allow_oom=True)

    async def disable_token(self, token: TokenId, *, disabled: bool) -> bool:
        """Have a token refused, or no more; False if it is not there."""

        def write(pipe: Any, key: str, was: records.Field, _: "_Owned | None") -> None:
            if disabled:
                pipe.hset(key, records.DISABLED, 1)
            else:
                pipe.hdel(key, records.DISABLED)
            self._record(
                pipe,
                "token.disable" if disabled else "token.enable",
                f"token {token}",
                before={"disabled": records.is_disabled(was)},
                after={"disabled": disabled},
            )

        return await self._change_holder("token", token, write, records.DISABLED)

    async def rotate_token(self, token: TokenId, digest: bytes, until: UnixMs) -> bool:
        """Give a token another secret; False if the token is not there.

        Args:
            token: its id.
            digest: the 32 bytes of the new secret's SHA-256.
            until: the last millisecond at which the secret that it has now is valid. The one
                before that, if any, is not valid any more.
        """
        key = self._keys.token(token)

        async def change(pipe: Any) -> bool:
            before, owner = await pipe.hmget(key, "sha256", "user")
            if before is None:
                return False
            pipe.multi()
            rotated = records.write_rotated(digest, records.Replaced(before, until))
            pipe.hset(key, mapping={"sha256": digest, records.ROTATED: rotated})
            after = {"old_secret_until": rfc3339(until)}
            self._record(pipe, "token.rotate", f"token {token}", after=after)
            self._changes.renew(pipe, [UserId(records.number(owner) or 0)])
            return True

        return await self._changes.transaction(change, [key], allow_oom=True)

    # Canaries

    async def add_canary(self, canary: records.Canary) -> bool:
        """Keep a canary token; False if there is one of that id."""
        key, field = self._keys.canaries, str(canary.id)

        async def change(pipe: Any) -> bool:
            if await pipe.hexists(key, field):
                return False
            pipe.multi()
            pipe.hset(key, field, canary.written())
            self._record(pipe, "canary.create", f"canary {field}", after={"note": canary.note})
            return True

        return await self._changes.transaction(change, [key])

    async def remove_canary(self, token: TokenId) -> bool:
        """Forget a canary token; False if there is none of that id."""
        key, field = self._keys.canaries, str(token)

        async def change(pipe: Any) -> bool:
            if not await pipe.hexists(key, field):
                return False
            pipe.multi()
            pipe.hdel(key, field)
            self._record(pipe, "canary.remove", f"canary {field}")
            return True

        return await self._changes.transaction(change, [key], allow_oom=True)

    # Limits

    async def set_limit(self, scope: str, number: int, limit: Limit | None) -> bool:
        """Override a limit for one token, user or team, or clear it; False if it is not there."""

        def write(pipe: Any, key: str, was: records.Field, _: "_Owned | None") -> None:
            if limit is None:
                pipe.hdel(key, "limit")
            else:
                pipe.hset(key, "limit", records.write_limit(limit))
            self._record(
                pipe,
                "limit.clear" if limit is None else "limit.set",
                f"{scope} {number}",
                before=_limit_facts(records.limit(was)),
                after=_limit_facts(limit),
            )

        return await self._change_holder(scope, number, write, "limit")

    # Restrictions

    async def set_restriction(
        self, scope: str, number: int, restriction: Restriction | None
    ) -> bool:
        """Narrow one token, user or team, or take that back; False if it is not there.

        What a token has used of a budget is kept as long as it is restricted.
        """

        def write(pipe: Any, key: str, was: records.Field, token: "_Owned | None") -> None:
            self._record(
                pipe,
                "unrestrict" if restriction is None else "restrict",
                f"{scope} {number}",
                before=_restriction_facts(None if was is None else restrictions.read(was)),
                after=_restriction_facts(restriction),
            )
            if restriction is None:
                pipe.hdel(key, records.RESTRICTION)
            else:
                pipe.hset(key, records.RESTRICTION, restrictions.write(restriction))
            if token is not None:
                budget = self._keys.counter(charges.budget(TokenId(number), token.owner, 1))
                if restriction is None:
                    pipe.delete(budget)
                elif restriction.uses is not None:
                    pipe.set(budget, 0, nx=True)
                    if token.expires_at is not None:
                        pipe.pexpireat(budget, token.expires_at + EXPIRED_KEPT_MS)

        return await self._change_holder(scope, number, write, records.RESTRICTION)

    async def reset(self, counter: Charge) -> bool:
        """Forget what a counter has admitted; False if it was empty."""
        async with self._changes.multi(allow_oom=True) as pipe:
            pipe.delete(self._keys.counter(counter))
            self._record(pipe, "limit.reset", f"{counter.scope} counter of {counter.tag}")
            deleted, *_ = await pipe.execute()
        return bool(deleted)

    # The instance

    async def set_instance(
        self,
        *,
        api_enabled: bool | None = None,
        mcp_enabled: bool | None = None,
        allowlist: str | None = None,
    ) -> None:
        """Change what is given, which ends its trial; the allowlist was parsed by the caller."""
        given = {"api_enabled": api_enabled, "mcp_enabled": mcp_enabled, "allowlist": allowlist}
        fields = {
            name: int(value) if isinstance(value, bool) else value
            for name, value in given.items()
            if value is not None
        }

        def write(pipe: Any, before: audit.Facts) -> None:
            pipe.hset(self._keys.instance, mapping=fields)
            if tried := [trial_field(name) for name in TRIED if name in fields]:
                pipe.hdel(self._keys.instance, *tried)
            for name, value in given.items():
                if value is not None and (len(fields) == 1 or before.get(name) != value):
                    self._record(
                        pipe,
                        SETTING_ACTIONS[name],
                        "instance",
                        before={name: before.get(name)},
                        after={name: value},
                    )
            self._changes.renew_instance(pipe)

        await self._change_instance(write)

    async def _change_instance(self, write: Callable[[Any, audit.Facts], None]) -> None:
        async def change(pipe: Any) -> None:
            before = await self._instance_before()
            pipe.multi()
            write(pipe, before)

        await self._changes.transaction(change, [self._keys.instance], allow_oom=True)

    async def _instance_before(self) -> audit.Facts:
        """What the audit says of the settings before they are changed."""
        return _instance_facts(await self.instance()) if self._origin else {}

    async def first_start(self, *, api_enabled: bool) -> bool:
        """Set the API switch of an installation that never had one; False if it had."""
        if await self._client.hexists(self._keys.instance, "api_enabled"):
            return False  # nothing is to be written, which a full Redis would refuse
        async with self._changes.multi() as pipe:
            pipe.hsetnx(self._keys.instance, "api_enabled", int(api_enabled))
            self._changes.renew_instance(pipe)
            first, _ = await pipe.execute()
        return bool(first)

    # How it is written

    def _record(
        self,
        pipe: Any,
        action: str,
        target: str,
        *,
        before: audit.Facts | None = None,
        after: audit.Facts | None = None,
    ) -> None:
        """Have the audit say what a change does, in that very change."""
        audit.write(pipe, self._keys, self._origin, action, target, before=before, after=after)

    async def _change_holder(
        self,
        scope: str,
        number: int,
        write: "Callable[[Any, str, records.Field, _Owned | None], object]",
        field: str,
    ) -> bool:
        """Change what is kept beside a token, user or team; False if it is not there.

        Args:
            scope: "token", "user" or "team".
            number: its id.
            write: called with the pipeline, the key of the record, the field's value and, if it is
                a token's, what is known of that.
            field: what is changed.
        """
        if scope == "team":
            return await self._change_team(
                TeamId(number), lambda pipe, key, was: write(pipe, key, was, None), field
            )
        key = self._limited(scope, number)

        async def change(pipe: Any) -> bool:
            if not await pipe.exists(key):
                return False
            was = await pipe.hget(key, field)
            token = None
            if scope == "token":
                owner, expires = map(records.number, await pipe.hmget(key, "user", "expires_at"))
                token = _Owned(UserId(owner or 0), None if expires is None else UnixMs(expires))
            pipe.multi()
            write(pipe, key, was, token)
            self._changes.renew(pipe, [UserId(number) if token is None else token.owner])
            return True

        return await self._changes.transaction(change, [key], allow_oom=True)

    async def _change_team(
        self, team: TeamId, write: Callable[[Any, str, records.Field], object], field: str
    ) -> bool:
        """Change a field of a team's; every member's records are stale from then on."""
        key, members_key = self._keys.team(team), self._keys.team_members(team)

        async def change(pipe: Any) -> bool:
            if not await pipe.exists(key):
                return False
            was = await pipe.hget(key, field)
            members = await self._watched_members(pipe, team)
            pipe.multi()
            write(pipe, key, was)
            self._changes.renew(pipe, members)
            return True

        return await self._changes.transaction(change, [key, members_key], allow_oom=True)

    async def _put_tokens(
        self, tokens: Collection[Token], old: Collection[Token], *, allow_oom: bool = False
    ) -> None:
        """Write tokens in the place of those that had their ids, all in one change."""
        async with self._changes.multi(allow_oom=allow_oom) as pipe:
            for moved in old:
                self._unlist(pipe, moved)
            for token in tokens:
                self._put_token(pipe, token)
            self._record_all(pipe, "token", tokens, old)
            self._changes.renew(pipe, {t.user for t in (*tokens, *old)})
            await pipe.execute()

    def _record_all(
        self,
        pipe: Any,
        noun: str,
        new: Collection[User | Team | Token],
        old: Collection[User | Team | Token] = (),
    ) -> None:
        """Record facts that are written: each by itself, or of very many their number."""
        if len(new) > RECORDED_ONE_BY_ONE:
            facts = {"count": len(new), "new": len(new) - len(old), "ids": _ids(new)}
            self._record(pipe, f"{noun}.put", f"{len(new)} {noun}s", after=facts)
            return
        was = {one.id: one.facts() for one in old}
        for one in new:
            action = f"{noun}.change" if one.id in was else f"{noun}.add"
            target = f"{noun} {one.id}"
            self._record(pipe, action, target, before=was.get(one.id), after=one.facts())

    def _put_token(self, pipe: Any, token: Token) -> None:
        key, fields = self._keys.token(token.id), token.fields()
        if absent := [name for name in Token.FIELDS if name not in fields]:
            pipe.hdel(key, *absent)
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
            pipe.delete(self._keys.token(token.id), self._keys.usage(token.id))
            pipe.delete(self._keys.counter(charges.budget(token.id, token.user, 1)))
            pipe.zrem(self._keys.expiring, token.id)
            self._unlist(pipe, token)

    def _unlist(self, pipe: Any, token: Token) -> None:
        pipe.srem(self._keys.user_tokens(token.user), token.id)
        if token.team is not None:
            pipe.srem(self._keys.team_tokens(token.team), token.id)

    async def _watched_tokens(self, pipe: Any, ids: Iterable[bytes | int]) -> list[Token]:
        """Those of these tokens that are there, read within a transaction."""
        found = []
        for token in [TokenId(int(i)) for i in ids]:
            fields = await pipe.hmget(self._keys.token(token), Token.FIELDS)
            found.append(Token.read(token, fields))
        return [token for token in found if token is not None]

    async def _watched_members(self, pipe: Any, team: TeamId) -> list[UserId]:
        """Who is in a team, read within a transaction."""
        return [UserId(int(i)) for i in await pipe.hkeys(self._keys.team_members(team))]


def _ids(found: Iterable[User | Team | Token]) -> list[int]:
    return sorted(int(one.id) for one in found)


def _limit_facts(limit: Limit | None) -> audit.Facts | None:
    if limit is None:
        return None
    return {"limit": limit.requests, "window_seconds": limit.window_ms / 1000}


def _restriction_facts(restriction: Restriction | None) -> audit.Facts | None:
    if restriction is DAMAGED:
        return {"damaged": True}
    return None if restriction is None else restrictions.as_mapping(restriction)


def _instance_facts(instance: Instance) -> audit.Facts:
    return {
        "api_enabled": instance.api_enabled,
        "mcp_enabled": instance.mcp_enabled,
        "allowlist": instance.allowlist.text,
    }
