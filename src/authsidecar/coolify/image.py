"""What Redis holds, as far as a round needs to know it: per bucket the keys, and a digest.

The digest is of Coolify's rows as they were last applied. After a start it is unknown, and differs
from every other and from that of no rows: the first round compares everything with Redis itself.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from authsidecar.coolify.nouns import NARROWING, TEAMS, TOKENS, USERS, Noun
from authsidecar.coolify.rows import Odd
from authsidecar.coolify.source import BUCKET
from authsidecar.store.bulk import Bulk

Oddity = tuple[Odd, str]
"""What is wrong, and the row's noun and id: "token 14"."""


UNKNOWN: Final = ""
"""The digest of a bucket that was not compared yet."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """The facts of 256 ids.

    Attributes:
        digest: of the rows that they came from; None if there are no rows.
        keys: which of them Redis holds.
        odd: which of the rows are odd.
    """

    digest: str | None = None
    keys: tuple[Any, ...] = ()
    odd: tuple[Oddity, ...] = ()


@dataclass(slots=True)
class Image:
    """All buckets by noun.

    Attributes:
        buckets: by the noun's name, then by number.
        bad_entries: of the allowlist.
        snapshot: names the view that was last applied; None if unknown.
        tokens_file: the table whose tokens were last applied (see source.View); "" if unknown.
    """

    buckets: dict[str, dict[int, Bucket]]
    bad_entries: tuple[str, ...] = ()
    snapshot: str | None = None
    tokens_file: str = ""
    _empty: Bucket = field(default=Bucket(), repr=False)

    @classmethod
    async def load(cls, bulk: Bulk, tokens_file: str) -> "Image":
        """Read from Redis which facts it holds."""
        buckets: dict[str, dict[int, Bucket]] = {}
        for noun in NARROWING:
            keys: dict[int, list[Any]] = {}
            for key in await noun.held(bulk):
                keys.setdefault(number(noun.bucketed(key)), []).append(key)
            buckets[noun.name] = {i: Bucket(UNKNOWN, tuple(found)) for i, found in keys.items()}
        return cls(buckets, tokens_file=tokens_file)

    def changed(self, noun: Noun[Any, Any], digests: Mapping[int, str]) -> list[int]:
        """The numbers of the buckets that differ from these digests, in order."""
        held = self.buckets[noun.name]
        numbers = digests.keys() | held.keys()
        return sorted(i for i in numbers if held.get(i, self._empty).digest != digests.get(i))

    def keys(self, noun: Noun[Any, Any], numbers: Sequence[int]) -> list[Any]:
        """The keys that Redis holds in these buckets."""
        held = self.buckets[noun.name]
        return [key for i in numbers for key in held.get(i, self._empty).keys]

    def settle(self, noun: Noun[Any, Any], i: int, bucket: Bucket) -> None:
        """Take note of what a bucket holds now."""
        if bucket.digest is None:
            self.buckets[noun.name].pop(i, None)
        else:
            self.buckets[noun.name][i] = bucket

    def count(self, noun: Noun[Any, Any]) -> int:
        """How many facts Redis holds."""
        return sum(len(bucket.keys) for bucket in self.buckets[noun.name].values())

    @property
    def holds_any(self) -> bool:
        """Whether there is anything to lose."""
        return any(self.count(noun) for noun in (TOKENS, USERS, TEAMS))

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


def number(place: int) -> int:
    """The bucket of an id, as PostgreSQL divides: towards zero."""
    return place // BUCKET if place >= 0 else -(-place // BUCKET)
