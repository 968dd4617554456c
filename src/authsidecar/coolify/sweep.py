"""Comparing what Redis holds with what was left there, a little at each look.

Rounds compare with Redis only what has changed in Coolify. What was changed in Redis itself, by
hand or by a backup that was put back, is found here: each bucket is read once in a while, and all
keys are walked over for facts that nobody knows of. Nothing of it asks Coolify's database; what
differs is doubted, and the next round compares it with the database.
"""

import time
from collections.abc import AsyncIterator
from math import inf
from typing import Any, Final

from redis import exceptions

from authsidecar.coolify.entities import NARROWING, Entity
from authsidecar.coolify.rounds import stored_settings
from authsidecar.coolify.snapshot import Snapshot, content, number
from authsidecar.store.bulk import Bulk
from authsidecar.store.keys import Keys
from authsidecar.store.scan import Scan

LOOK_S: Final = 0.5
"""The time between two looks, in seconds. One reads one bucket at the most, so 100,000 tokens of a
few users take three minutes."""

PASS_S: Final = 60.0
"""The least time in which all buckets are read, and all keys are walked over, in seconds."""

PAGE: Final = 64
"""How many facts are read at a time: whoever has a request meanwhile waits for no more."""

_NOUNS: Final = {entity.name: entity for entity in NARROWING}


class Sweep:
    """Where one sync's comparison is."""

    def __init__(self, bulk: Bulk, keys: Keys) -> None:
        """Nothing is sent yet."""
        self._bulk = bulk
        self._keys = keys
        self._scan = Scan()
        self._left: list[tuple[Entity[Any, Any], int]] = []
        self._next_at = self._walk_at = -inf
        self._pause_s = 0.0

    def hurry(self) -> None:
        """Begin anew at once: something is known to be wrong."""
        self._left.clear()
        self._next_at = self._walk_at = -inf

    async def look(self, snapshot: Snapshot) -> list[str]:
        """Compare a bucket of it with Redis, and doubt what differs.

        Returns:
            What differs, for people.
        """
        now = time.monotonic()
        different: list[str] = []
        if now >= self._next_at:
            different = await self._next(snapshot)
            self._next_at = now + self._pause_s
        if now >= self._walk_at:
            different += [where async for where in self._unknown(snapshot)]
            if self._scan.complete:
                self._walk_at = now + PASS_S
        return different

    async def _next(self, snapshot: Snapshot) -> list[str]:
        if not self._left:
            self._left = [
                (entity, i) for entity in NARROWING for i in snapshot.buckets[entity.name]
            ]
            self._pause_s = PASS_S / (len(self._left) + 1)
            if (
                snapshot.settings is not None
                and await stored_settings(self._bulk) != snapshot.settings
            ):
                snapshot.settings = snapshot.pg_snapshot = None
                return ["settings"]
            return []
        entity, i = self._left.pop()
        return [where async for where in self._compared(snapshot, entity, i)]

    async def _compared(
        self, snapshot: Snapshot, entity: Entity[Any, Any], i: int
    ) -> AsyncIterator[str]:
        bucket = snapshot.buckets[entity.name].get(i)
        if bucket is None or not bucket.content:
            return
        facts: list[Any] = []
        for start in range(0, len(bucket.keys), PAGE):
            facts += await entity.facts(self._bulk, bucket.keys[start : start + PAGE])
        if content(facts) != bucket.content:
            snapshot.doubt(entity, i)
            yield f"{entity.name} bucket {i}"
            return
        named = {index: fact for fact in facts for index in entity.indexes(self._keys, fact)}
        lost = await self._bulk.unlisted(list(named))
        if lost:
            await entity.put(self._bulk, [named[index] for index in lost])
            yield f"{entity.name} index"

    async def _unknown(self, snapshot: Snapshot) -> AsyncIterator[str]:
        try:
            some = await self._bulk.found(self._scan)
        except exceptions.NoPermissionError:  # SCAN: what the indexes name is compared all the same
            return
        for name, found in some:
            entity = _NOUNS[name]
            i = number(entity.bucketed(found))
            bucket = snapshot.buckets[name].get(i)
            if bucket is None or found not in bucket.keys:
                snapshot.doubt(entity, i, [found])
                yield f"{name} {found}"
