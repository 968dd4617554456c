"""The keys of the management API: who may ask it, and how they are kept in Redis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Final, Self

from redis.asyncio import Redis

from authsidecar.store import audit, records
from authsidecar.store.audit import Origin
from authsidecar.store.changes import Changes
from authsidecar.store.keys import Keys
from authsidecar.store.records import Field
from authsidecar.times import UnixMs, rfc3339

EXPIRED_KEPT_MS: Final = 7 * 24 * 3600 * 1000
"""For how long an expired key is kept, so that `key list` can show it: a week."""


class Scope(StrEnum):
    """What a management key may do."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class ManagementKey:
    """A management key as it is stored; the secret is only its SHA-256.

    Attributes:
        id: the number in it.
        sha256: the 32 bytes of the secret's digest.
        name: what it is for.
        scope: READ may look, WRITE may change as well.
        created_at: when it was made.
        expires_at: the last millisecond at which it is valid, or None.
    """

    FIELDS: ClassVar = ("sha256", "name", "scope", "created_at", "expires_at")

    id: int
    sha256: bytes = field(repr=False)
    name: str
    scope: Scope
    created_at: UnixMs
    expires_at: UnixMs | None

    @classmethod
    def read(cls, number: int, fields: Sequence[Field]) -> Self | None:
        """The key with these values of FIELDS, or None if it is not there.

        What can't be read grants nothing: an odd scope may only look, an odd expiry has passed.
        """
        digest, name, scope, created_at, expires_at = fields
        if digest is None:
            return None
        return cls(
            id=number,
            sha256=digest,
            name=records.text(name),
            scope=Scope.WRITE if scope == Scope.WRITE.value.encode() else Scope.READ,
            created_at=UnixMs(records.number(created_at) or 0),
            expires_at=None if expires_at is None else UnixMs(records.number(expires_at) or 0),
        )

    def fields(self) -> Mapping[str, bytes | str | int]:
        """The values that `read` reads, by name; without an expiry if the key has none."""
        values: dict[str, bytes | str | int] = {
            "sha256": self.sha256,
            "name": self.name,
            "scope": self.scope.value,
            "created_at": self.created_at,
        }
        return values if self.expires_at is None else values | {"expires_at": self.expires_at}

    def facts(self) -> Mapping[str, object]:
        """What the audit says of it: nothing of its secret."""
        return {
            "name": self.name,
            "scope": self.scope.value,
            "expires_at": None if self.expires_at is None else rfc3339(self.expires_at),
        }

    def may(self, scope: Scope) -> bool:
        """Whether the key's scope is enough."""
        return self.scope is Scope.WRITE or scope is Scope.READ

    def expired(self, now: UnixMs) -> bool:
        """Whether it is not valid any more."""
        return self.expires_at is not None and now > self.expires_at


class ManagementKeys:
    """Keeps the keys; redis-py's own exceptions pass through to the caller."""

    def __init__(self, client: "Redis", keys: Keys, origin: Origin | None = None) -> None:
        """Nothing is sent yet.

        Args:
            client: redis-py's asyncio client, decode_responses off.
            keys: the key names.
            origin: who makes the changes, for the audit; None: they are not recorded.
        """
        self._client: Any = client  # redis-py's own annotations mix sync, async, bytes and str
        self._keys = keys
        self._changes = Changes(client, keys)
        self._origin = origin

    async def now(self) -> UnixMs:
        """The time by Redis's clock."""
        seconds, micros = await self._client.time()
        return UnixMs(int(seconds) * 1000 + int(micros) // 1000)

    async def next_id(self) -> int:
        """An id that no key ever had."""
        return await self._changes.next_id("management-key")

    async def add(self, key: ManagementKey) -> None:
        """Keep a new key; it is removed a week after it has expired."""
        name = self._keys.management_key(key.id)
        async with self._changes.multi() as pipe:
            pipe.hset(name, mapping=key.fields())
            if key.expires_at is not None:
                pipe.pexpireat(name, key.expires_at + EXPIRED_KEPT_MS)
            pipe.sadd(self._keys.management_keys, key.id)
            target = f"key {key.id}"
            audit.write(pipe, self._keys, self._origin, "key.create", target, after=key.facts())
            await pipe.execute()

    async def find(self, number: int) -> ManagementKey | None:
        """One key, or None: read on every request, so that a revoked one opens nothing."""
        found = await self._client.hmget(self._keys.management_key(number), ManagementKey.FIELDS)
        return ManagementKey.read(number, found)

    async def list(self) -> list[ManagementKey]:
        """All keys by id."""
        numbers = sorted(int(i) for i in await self._client.smembers(self._keys.management_keys))
        async with self._client.pipeline(transaction=False) as pipe:
            for number in numbers:
                pipe.hmget(self._keys.management_key(number), ManagementKey.FIELDS)
            rows = await pipe.execute() if numbers else []
        found = [
            key
            for number, row in zip(numbers, rows, strict=True)
            if (key := ManagementKey.read(number, row)) is not None
        ]
        gone = set(numbers) - {key.id for key in found}
        if gone:  # expired a week ago: Redis has removed the record
            await self._client.srem(self._keys.management_keys, *gone)
        return found

    async def remove(self, number: int) -> bool:
        """Revoke a key: it is deleted. False if it is not there."""
        name = self._keys.management_key(number)

        async def change(pipe: Any) -> bool:
            there = ManagementKey.read(number, await pipe.hmget(name, ManagementKey.FIELDS))
            pipe.multi()
            pipe.delete(name)
            pipe.srem(self._keys.management_keys, number)
            if there is not None:
                target = f"key {number}"
                audit.write(
                    pipe, self._keys, self._origin, "key.revoke", target, before=there.facts()
                )
            return there is not None

        return await self._changes.transaction(change, [name], allow_oom=True)
