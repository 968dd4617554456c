"""What Redis holds, as far as a round needs to know it: per bucket the keys, and two digests.

One digest is of Coolify's rows as they were last applied. After a start it is unknown, and differs
from every other and from that of no rows: the first round compares everything with Redis itself.
The other is of the facts as they were then left in Redis: the sweep compares it with what is there.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from authsidecar.coolify.entities import NARROWING, TEAMS, TOKENS, USERS, Entity
from authsidecar.coolify.rows import InstanceSettings, Odd
from authsidecar.coolify.source import BUCKET
from authsidecar.store.bulk import Bulk

Oddity = tuple[Odd, str]
"""What is wrong, and the row's entity and id: "token 14"."""


UNKNOWN: Final = ""
"""The digest of a bucket that was not compared yet."""


@dataclass(frozen=True, slots=True)
class OwnerBucket:
    """The facts of 256 ids.

    Attributes:
        digest: of the rows that they came from; None if there are no rows.
        keys: which of them Redis holds.
        odd: which of the rows are odd.
        content: of the facts themselves; 0 if they are not known.
    """

    digest: str | None = None
    keys: tuple[Any, ...] = ()
    odd: tuple[Oddity, ...] = ()
    content: int = 0


@dataclass(slots=True)
class Snapshot:
    """All buckets by entity.

    Attributes:
        buckets: by the entity's name, then by number.
        bad_entries: of the allowlist.
        pg_snapshot: names the view that was last applied; None if unknown.
        tokens_file: the table whose tokens were last applied (see source.View); "" if unknown.
        settings: the instance's, as they were last applied; None if unknown.
        unsure: how many of the keys, by entity, no index names: they may be there.
    """

    buckets: dict[str, dict[int, OwnerBucket]]
    bad_entries: tuple[str, ...] = ()
    pg_snapshot: str | None = None
    tokens_file: str = ""
    settings: InstanceSettings | None = None
    unsure: dict[str, int] = field(default_factory=dict)
    _empty: OwnerBucket = field(default=OwnerBucket(), repr=False)

    @classmethod
    async def load(
        cls,
        bulk: Bulk,
        tokens_file: str,
        before: "Snapshot | None" = None,
        dropped: Iterable[tuple[str, Any]] = (),
    ) -> "Snapshot":
        """Read from Redis which facts it holds.

        Args:
            bulk: Redis.
            tokens_file: see above.
            before: what Redis held once: an index may have been lost, and the facts be there.
            dropped: what was removed lately, by entity: the fact alone may be back.
        """
        gone = list(dropped)
        unsure: dict[str, int] = {}
        buckets: dict[str, dict[int, OwnerBucket]] = {}
        for entity in NARROWING:
            found = dict.fromkeys(await entity.held(bulk))
            sure = len(found)
            if before is not None:
                found |= dict.fromkeys(before.every_key(entity))
            found |= dict.fromkeys(key for name, key in gone if name == entity.name)
            unsure[entity.name] = len(found) - sure
            keys: dict[int, list[Any]] = {}
            for key in found:
                keys.setdefault(number(entity.bucketed(key)), []).append(key)
            buckets[entity.name] = {
                i: OwnerBucket(UNKNOWN, tuple(some)) for i, some in keys.items()
            }
        return cls(buckets, tokens_file=tokens_file, unsure=unsure)

    def changed(self, entity: Entity[Any, Any], digests: Mapping[int, str]) -> list[int]:
        """The numbers of the buckets that differ from these digests, in order."""
        held = self.buckets[entity.name]
        numbers = digests.keys() | held.keys()
        return sorted(i for i in numbers if held.get(i, self._empty).digest != digests.get(i))

    def keys(self, entity: Entity[Any, Any], numbers: Sequence[int]) -> list[Any]:
        """The keys that Redis holds in these buckets."""
        held = self.buckets[entity.name]
        return [key for i in numbers for key in held.get(i, self._empty).keys]

    def every_key(self, entity: Entity[Any, Any]) -> Iterator[Any]:
        """The keys that Redis holds, of all buckets."""
        for bucket in self.buckets[entity.name].values():
            yield from bucket.keys

    def doubt(self, entity: Entity[Any, Any], i: int, more: Sequence[Any] = ()) -> None:
        """Have a bucket compared with Redis again, and with it keys that nobody knew of."""
        held = self.buckets[entity.name].get(i, self._empty)
        keys = (*held.keys, *(key for key in more if key not in held.keys))
        self.buckets[entity.name][i] = OwnerBucket(UNKNOWN, keys, held.odd)
        self.pg_snapshot = None

    def settle(self, entity: Entity[Any, Any], i: int, bucket: OwnerBucket) -> None:
        """Take note of what a bucket holds now."""
        if bucket.digest is None:
            self.buckets[entity.name].pop(i, None)
        else:
            self.buckets[entity.name][i] = bucket

    def count(self, entity: Entity[Any, Any]) -> int:
        """How many facts Redis holds for sure."""
        held = sum(len(bucket.keys) for bucket in self.buckets[entity.name].values())
        return held - self.unsure.get(entity.name, 0)

    def last(self, entity: Entity[Any, Any]) -> int:
        """The highest number that a key has; 0 without one."""
        return max(self.every_key(entity), default=0)

    @property
    def holds_any(self) -> bool:
        """Whether there is anything to lose."""
        return any(self.count(entity) for entity in (TOKENS, USERS, TEAMS))

    def oddities(self) -> Iterator[Oddity]:
        """Everything odd."""
        for buckets in self.buckets.values():
            for bucket in buckets.values():
                yield from bucket.odd
        for entry in self.bad_entries:
            yield Odd.ALLOWLIST_ENTRY, f"entry {entry[:60]!a}"

    def odd(self) -> Mapping[Odd, int]:
        """How many odd rows there are, by what is wrong."""
        return Counter(reason for reason, _ in self.oddities())


def content(facts: Iterable[Any]) -> int:
    """A digest of facts, the same in any order; only within this process."""
    return hash(frozenset(facts))


def number(place: int) -> int:
    """The bucket of an id, as PostgreSQL divides: towards zero."""
    return place // BUCKET if place >= 0 else -(-place // BUCKET)
