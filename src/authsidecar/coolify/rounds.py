"""One look at the database, and what follows from it: compare, narrow, switch, widen.

An application can be killed at any point. First everything is narrowed to what both the old and
the new state allow, then the settings are switched, then the new state is completed: whoever is
let in under way would be let in by the old or by the new state.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from authsidecar.coolify import rows
from authsidecar.coolify.image import Bucket, Image, Oddity, content, number
from authsidecar.coolify.nouns import NARROWING, TEAMS, TOKENS, USERS, WIDENING, Noun
from authsidecar.coolify.rows import OFF, Settings
from authsidecar.coolify.source import View
from authsidecar.store.bulk import Bulk

BUCKETS_AT_ONCE: Final = 4
"""How many buckets are in memory at a time: about a thousand rows."""

Progress = Callable[[int, int], None]
"""Told how many of how many buckets are done."""

Applied = Counter[tuple[str, str]]
"""How many facts were "put" or "dropped", by noun."""


@dataclass(frozen=True, slots=True)
class Look:
    """The database at a glance.

    Attributes:
        digests: by noun and bucket.
        settings: the instance's, or None where their row is missing.
        snapshot: names what was visible.
        tokens_file: names the table of tokens and its file.
    """

    digests: Mapping[str, Mapping[int, str]]
    settings: Settings | None
    snapshot: str | None
    tokens_file: str

    @classmethod
    async def at(cls, view: View) -> "Look":
        """Ask for all digests."""
        row = await view.settings()
        return cls(
            digests={noun.name: await view.digests(noun.table) for noun in NARROWING},
            settings=None if row is None else rows.settings(row),
            snapshot=view.snapshot,
            tokens_file=view.tokens_file,
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact that differs: not in Redis yet, not in Coolify any more, or changed."""

    noun: Noun[Any, Any]
    old: Any
    new: Any


@dataclass(slots=True)
class Comparison:
    """Some buckets of one noun, in Redis and in Coolify.

    Attributes:
        old: the facts in Redis by key.
        new: the facts in Coolify by key.
        buckets: what the image holds once they are the same.
    """

    noun: Noun[Any, Any]
    old: Mapping[Any, Any]
    new: Mapping[Any, Any]
    buckets: Mapping[int, Bucket] = field(repr=False)

    def differences(self) -> list[Difference]:
        """What differs, in the order of the keys."""
        keys = sorted(self.old.keys() | self.new.keys())
        pairs = ((self.old.get(key), self.new.get(key)) for key in keys)
        return [Difference(self.noun, old, new) for old, new in pairs if old != new]


def doubt(look: Look, image: Image) -> str | None:
    """Why this is no Coolify at work but an emptied or half-migrated database, or None.

    Coolify deletes tokens, also the last one, and a revocation must be followed: an empty table
    of tokens is believed if it is the very table whose rows were read before.
    """
    if not image.holds_any:
        return None
    if look.settings is None:
        return "instance_settings has no row 0"
    for noun in (USERS, TEAMS):
        if not look.digests[noun.name] and image.count(noun):
            return f"{noun.table.name} is empty"
    replaced = look.tokens_file != image.tokens_file
    if not look.digests[TOKENS.name] and image.count(TOKENS) and replaced:
        return f"{TOKENS.table.name} is empty, and not the table that was read before"
    return None


async def stored_settings(bulk: Bulk) -> Settings:
    """The instance's settings in Redis."""
    found = await bulk.instance()
    return Settings(found.api_enabled, found.mcp_enabled, found.allowlist.text)


@dataclass(slots=True)
class Round:
    """One look, and what Redis has to say by it.

    Attributes:
        view: the database.
        look: its digests.
        image: what Redis holds; `apply` brings it up to date, and ruins it if it fails.
        bulk: Redis.
        dropped: told of the noun and the key of each fact that is removed.
    """

    view: View
    look: Look
    image: Image
    bulk: Bulk
    dropped: Callable[[str, Any], None] = lambda *_: None

    async def differences(self) -> AsyncIterator[Difference]:
        """Everything that an application would change, nouns in the order of removal."""
        for noun in NARROWING:
            for numbers in _batches(self._changed(noun)):
                compared = await self._compare(noun, numbers)
                for difference in compared.differences():
                    yield difference

    async def apply(self, progress: Progress = lambda *_: None) -> Applied:
        """Make Redis say what the view says; `progress` is told after each batch."""
        applied: Applied = Counter()
        settings = self.look.settings or OFF
        total = self._remaining()
        stored = await stored_settings(self.bulk)
        with self.bulk.forced():
            await self._save(stored, _both(stored, settings), applied)
            for noun in NARROWING:
                held = [i for i in self._changed(noun) if self.image.keys(noun, [i])]
                for numbers in _batches(held):
                    compared = await self._compare(noun, numbers)
                    if await self._narrow(compared, applied):
                        self._settle(compared)
                    progress(total - self._remaining(), total)
            await self._save(_both(stored, settings), settings, applied)
        for noun in WIDENING:
            for numbers in _batches(self._changed(noun)):
                compared = await self._compare(noun, numbers)
                wanted = [difference.new for difference in compared.differences()]
                await noun.put(self.bulk, wanted)
                applied[noun.name, "put"] += len(wanted)
                self._settle(compared)
                progress(total - self._remaining(), total)
        if self.image.settings is None:
            # Whoever put a fact has done so; but that may be lost, and the fact be there.
            last = {noun.name: self.image.last(noun) for noun in (USERS, TEAMS, TOKENS)}
            await self.bulk.raise_last_ids(last)
        self.image.bad_entries = settings.bad_entries
        self.image.settings = settings
        self.image.unsure.clear()
        self.image.snapshot = self.look.snapshot
        if self.look.digests[TOKENS.name]:
            self.image.tokens_file = self.look.tokens_file
        return applied

    async def _compare(self, noun: Noun[Any, Any], numbers: Sequence[int]) -> Comparison:
        new: dict[Any, Any] = {}
        keys: dict[int, list[Any]] = {i: [] for i in numbers}
        odd: dict[int, list[Oddity]] = {i: [] for i in numbers}
        for row in await self.view.rows(noun.table, numbers):
            i = number(noun.place(row))
            read = noun.read(row)
            odd[i] += [(reason, f"{noun.name} {noun.label(row)}") for reason in read.odd]
            if read.fact is not None:
                key = noun.key(read.fact)
                new[key] = read.fact
                keys[i].append(key)
        held = {*new, *self.image.keys(noun, numbers)}
        digests = self.look.digests[noun.name]
        left = {i: content(new[key] for key in keys[i]) for i in numbers}
        return Comparison(
            noun=noun,
            old={noun.key(fact): fact for fact in await noun.facts(self.bulk, sorted(held))},
            new=new,
            buckets={
                i: Bucket(digests.get(i), tuple(keys[i]), tuple(odd[i]), left[i]) for i in numbers
            },
        )

    async def _narrow(self, compared: Comparison, applied: Applied) -> bool:
        """Leave only what old and new both allow; whether nothing more is to be done."""
        noun, complete = compared.noun, True
        dropped, put = [], []
        for difference in compared.differences():
            old, new = difference.old, difference.new
            if old is None:
                complete = False
                continue
            between = None if new is None else noun.narrowed(old, new)
            if between is None:
                dropped.append(old)
                self.dropped(noun.name, noun.key(old))
            elif between != old:
                put.append(between)
            complete = complete and between == new
        await noun.drop(self.bulk, dropped)
        await noun.put(self.bulk, put)
        applied[noun.name, "dropped"] += len(dropped)
        applied[noun.name, "put"] += len(put)
        return complete

    async def _save(self, old: Settings, new: Settings, applied: Applied) -> None:
        if old != new:
            await self.bulk.set_instance(
                api_enabled=new.api_enabled, mcp_enabled=new.mcp_enabled, allowlist=new.allowlist
            )
            applied["settings", "put"] += 1

    def _settle(self, compared: Comparison) -> None:
        for i, bucket in compared.buckets.items():
            self.image.settle(compared.noun, i, bucket)

    def _changed(self, noun: Noun[Any, Any]) -> list[int]:
        return self.image.changed(noun, self.look.digests[noun.name])

    def _remaining(self) -> int:
        return sum(len(self._changed(noun)) for noun in NARROWING)


def _both(one: Settings, other: Settings) -> Settings:
    """The switches that both have on; the list stays until roles and tokens are narrowed."""
    return Settings(
        api_enabled=one.api_enabled and other.api_enabled,
        mcp_enabled=one.mcp_enabled and other.mcp_enabled,
        allowlist=one.allowlist,
    )


def _batches(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [
        numbers[start : start + BUCKETS_AT_ONCE]
        for start in range(0, len(numbers), BUCKETS_AT_ONCE)
    ]
