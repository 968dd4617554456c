"""Reading what a decision needs: the instance, and a token with its owner.

A nonce is always read before what it proves, so that a change in between shows as a stale nonce
in the charge that follows, and never as an old record under a new nonce.
"""

import secrets
from collections.abc import Callable, Sequence
from hmac import compare_digest
from typing import Any, Final

from authsidecar.decision.model import Credential, Place, TeamId, TokenRecord, UserId
from authsidecar.decision.policy import Instance
from authsidecar.store import records
from authsidecar.store.keys import Keys, owner_bucket

NONCE_BYTES: Final = 12

Unreadable = Callable[[str, str], None]
"""Told of a value that cannot be read, and so grants nothing: its key, and its field."""

Unknown = Callable[[Credential, bool], None]
"""Told of a token that is not known, and whether it is a canary."""


class Loader:
    """Reads whole records; redis-py's own exceptions pass through to the caller."""

    def __init__(
        self,
        client: Any,
        keys: Keys,
        *,
        ordered: bool = True,
        unreadable: Unreadable = lambda *_: None,
        unknown: Unknown = lambda *_: None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            client: redis-py's asyncio client.
            keys: the key names.
            ordered: whether the commands of a pipeline run in its order: not on Redis Cluster,
                where each node has a part of them.
            unreadable: told of each field whose value cannot be read.
            unknown: told of each token that is not known, and whether it is a canary.
        """
        self._client = client
        self._keys = keys
        self._ordered = ordered
        self._unreadable = unreadable
        self._unknown = unknown

    async def instance(self) -> tuple[Instance, records.Field]:
        """The instance-wide state, and what a sync says of it (records.SYNCED)."""
        names = self._keys
        fields = [*records.INSTANCE_FIELDS, records.SYNCED]
        nonce, (read,) = await self._proven(
            names.instance_nonce, lambda pipe: pipe.hmget(names.instance, fields)
        )
        *read, synced = read
        self._tell(names.instance, records.INSTANCE_FIELDS, read)
        return records.instance(read, nonce), synced

    async def followed(self) -> bool:
        """Whether a sync has ever told of a complete round; an older one says no more."""
        return bool(await self._client.hexists(self._keys.sync_status, "at"))

    async def record(self, credential: Credential) -> tuple[TokenRecord | None, bytes]:
        """The token of exactly this id and secret, or None, and the digest stored under its id.

        Unknown ids and wrong secrets end alike after the first trip; nothing more is read of a
        token that is not the caller's.
        """
        names, token = self._keys, credential.token_id
        asked = ["sha256", "user", "team", records.ROTATED]
        found = await self._client.hmget(names.token(token), asked)
        digest = found[0] or b""
        old = records.replaced(found[0], found[3])
        # Both are compared, whatever there is: so every refusal takes the same time.
        is_old = compare_digest(b"" if old is None else old.digest, credential.digest)
        is_own = compare_digest(digest, credential.digest)
        owner, team_number = records.number(found[1]), records.number(found[2])
        if owner is None or not (is_own or is_old):
            # Asked for every one of them: whoever uses a canary can't tell by the time it takes.
            kept = await self._client.hget(names.canaries, str(token))
            is_canary = compare_digest(records.canary_digest(kept), credential.digest)
            self._unknown(credential, is_canary)
            return None, digest
        user, team = UserId(owner), None if team_number is None else TeamId(team_number)

        def read(pipe: Any) -> None:
            pipe.hmget(names.token(token), list(records.TOKEN_FIELDS))
            pipe.hmget(names.user(user), list(records.USER_FIELDS))
            if team is not None:
                pipe.hmget(names.team(team), list(records.TEAM_FIELDS))
                pipe.hget(names.team_members(team), str(user))

        nonce, (fields, owned, *rest) = await self._proven(names.user_nonce(user), read)
        no_team: list[records.Field] = [None] * len(records.TEAM_FIELDS)
        team_fields, member = rest or (no_team, None)
        if (records.number(fields[2]), records.number(fields[3])) != (owner, team_number):
            return None, digest  # it was moved meanwhile: the next request will find it
        self._tell(names.token(token), records.TOKEN_FIELDS, fields)
        self._tell(names.user(user), records.USER_FIELDS, owned)
        if team is not None:
            self._tell(names.team(team), records.TEAM_FIELDS, team_fields)
            self._tell(names.team_members(team), ["role"], [member])
        record = records.token_record(
            token,
            fields,
            user=owned,
            team=team_fields,
            member=member,
            nonce=nonce,
            wanted=credential.digest,
        )
        if record is None or not compare_digest(record.digest, credential.digest):
            return None, digest
        return record, digest

    async def places(self, keys: Sequence[str]) -> dict[str, Place | None]:
        """Where resources lie, by their keys; None if it is not known."""
        async with self._client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hget(self._keys.owners(owner_bucket(key)), key)
            return dict(zip(keys, map(records.place, await pipe.execute()), strict=True))

    def _tell(self, key: str, names: Sequence[str], values: Sequence[records.Field]) -> None:
        for name in records.unreadable(names, values):
            self._unreadable(key, name)

    async def _proven(self, key: str, read: Any) -> tuple[bytes, list[Any]]:
        """A nonce and what it proves, read after it; a missing nonce is made first."""
        while True:
            nonce = None if self._ordered else await self._client.get(key)
            if self._ordered or nonce is not None:
                async with self._client.pipeline(transaction=False) as pipe:
                    if self._ordered:
                        pipe.get(key)
                    read(pipe)
                    answers = await pipe.execute()
                if self._ordered:
                    nonce, *answers = answers
                if nonce is not None:
                    return bytes(nonce), answers
            await self._client.set(key, secrets.token_hex(NONCE_BYTES), nx=True)
