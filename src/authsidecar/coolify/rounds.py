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
from authsidecar.coolify.entities import NARROWING, TEAMS, TOKENS, USERS, WIDENING, Entity
from authsidecar.coolify.rows import OFF, InstanceSettings
from authsidecar.coolify.snapshot import Oddity, OwnerBucket, Snapshot, content, number
from authsidecar.coolify.source import View
from authsidecar.store.bulk import Bulk

BUCKETS_AT_ONCE: Final = 4
"""How many buckets are in memory at a time: about a thousand rows."""

Progress = Callable[[int, int], None]
"""Told how many of how many buckets are done."""

Applied = Counter[tuple[str, str]]
"""How many facts were "put" or "dropped", by entity."""


@dataclass(frozen=True, slots=True)
class DatabaseView:
    """The database at a glance.

    Attributes:
        digests: by entity and bucket.
        settings: the instance's, or None where their row is missing.
        pg_snapshot: names what was visible.
        tokens_file: names the table of tokens and its file.
    """

    digests: Mapping[str, Mapping[int, str]]
    settings: InstanceSettings | None
    pg_snapshot: str | None
    tokens_file: str

    @classmethod
    async def at(cls, view: View) -> "DatabaseView":
        """Ask for all digests."""
        row = await view.settings()
        return cls(
            digests={entity.name: await view.digests(entity.table) for entity in NARROWING},
            settings=None if row is None else rows.settings(row),
            pg_snapshot=view.pg_snapshot,
            tokens_file=view.tokens_file,
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact that differs: not in Redis yet, not in Coolify any more, or changed."""

    entity: Entity[Any, Any]
    old: Any
    new: Any


@dataclass(slots=True)
class Comparison:
    """Some buckets of one entity, in Redis and in Coolify.

    Attributes:
        old: the facts in Redis by key.
        new: the facts in Coolify by key.
        buckets: what the snapshot holds once they are the same.
    """

    entity: Entity[Any, Any]
    old: Mapping[Any, Any]
    new: Mapping[Any, Any]
    buckets: Mapping[int, OwnerBucket] = field(repr=False)

    def differences(self) -> list[Difference]:
        """What differs, in the order of the keys."""
        keys = sorted(self.old.keys() | self.new.keys())
        pairs = ((self.old.get(key), self.new.get(key)) for key in keys)
        return [Difference(self.entity, old, new) for old, new in pairs if old != new]


def doubt(seen: DatabaseView, snapshot: Snapshot) -> str | None:
    """Why this is no Coolify at work but an emptied or half-migrated database, or None.

    Coolify deletes tokens, also the last one, and a revocation must be followed: an empty table
    of tokens is believed if it is the very table whose rows were read before.
    """
    if not snapshot.holds_any:
        return None
    if seen.settings is None:
        return "instance_settings has no row 0"
    for entity in (USERS, TEAMS):
        if not seen.digests[entity.name] and snapshot.count(entity):
            return f"{entity.table.name} is empty"
    replaced = seen.tokens_file != snapshot.tokens_file
    if not seen.digests[TOKENS.name] and snapshot.count(TOKENS) and replaced:
        return f"{TOKENS.table.name} is empty, and not the table that was read before"
    return None


async def stored_settings(bulk: Bulk) -> InstanceSettings:
    """The instance's settings in Redis."""
    found = await bulk.instance()
    return InstanceSettings(found.api_enabled, found.mcp_enabled, found.allowlist.text)


@dataclass(slots=True)
class Round:
    """One look, and what Redis has to say by it.

    Attributes:
        view: the database.
        seen: its digests.
        snapshot: what Redis holds; `apply` brings it up to date, and ruins it if it fails.
        bulk: Redis.
        dropped: told of the entity and the key of each fact that is removed.
    """

    view: View
    seen: DatabaseView
    snapshot: Snapshot
    bulk: Bulk
    dropped: Callable[[str, Any], None] = lambda *_: None

    async def differences(self) -> AsyncIterator[Difference]:
        """Everything that an application would change, entities in the order of removal."""
        for entity in NARROWING:
            for numbers in _batches(self._changed(entity)):
                compared = await self._compare(entity, numbers)
                for difference in compared.differences():
                    yield difference

    async def apply(self, progress: Progress = lambda *_: None) -> Applied:
        """Make Redis say what the view says; `progress` is told after each batch."""
        applied: Applied = Counter()
        settings = self.seen.settings or OFF
        total = self._remaining()
        stored = await stored_settings(self.bulk)
        with self.bulk.forced():
            await self._save(stored, _both(stored, settings), applied)
            for entity in NARROWING:
                held = [i for i in self._changed(entity) if self.snapshot.keys(entity, [i])]
                for numbers in _batches(held):
                    compared = await self._compare(entity, numbers)
                    if await self._narrow(compared, applied):
                        self._settle(compared)
                    progress(total - self._remaining(), total)
            await self._save(_both(stored, settings), settings, applied)
        for entity in WIDENING:
            for numbers in _batches(self._changed(entity)):
                compared = await self._compare(entity, numbers)
                wanted = [difference.new for difference in compared.differences()]
                await entity.put(self.bulk, wanted)
                applied[entity.name, "put"] += len(wanted)
                self._settle(compared)
                progress(total - self._remaining(), total)
        if self.snapshot.settings is None:
            # Whoever put a fact has done so; but that may be lost, and the fact be there.
            last = {entity.name: self.snapshot.last(entity) for entity in (USERS, TEAMS, TOKENS)}
            await self.bulk.raise_last_ids(last)
        self.snapshot.bad_entries = settings.bad_entries
        self.snapshot.settings = settings
        self.snapshot.unsure.clear()
        self.snapshot.pg_snapshot = self.seen.pg_snapshot
        if self.seen.digests[TOKENS.name]:
            self.snapshot.tokens_file = self.seen.tokens_file
        return applied

    async def _compare(self, entity: Entity[Any, Any], numbers: Sequence[int]) -> Comparison:
        new: dict[Any, Any] = {}
        keys: dict[int, list[Any]] = {i: [] for i in numbers}
        odd: dict[int, list[Oddity]] = {i: [] for i in numbers}
        for row in await self.view.rows(entity.table, numbers):
            i = number(entity.place(row))
            read = entity.read(row)
            odd[i] += [(reason, f"{entity.name} {entity.label(row)}") for reason in read.odd]
            if read.fact is not None:
                key = entity.key(read.fact)
                new[key] = read.fact
                keys[i].append(key)
        held = {*new, *self.snapshot.keys(entity, numbers)}
        digests = self.seen.digests[entity.name]
        left = {i: content(new[key] for key in keys[i]) for i in numbers}
        return Comparison(
            entity=entity,
            old={entity.key(fact): fact for fact in await entity.facts(self.bulk, sorted(held))},
            new=new,
            buckets={
                i: OwnerBucket(digests.get(i), tuple(keys[i]), tuple(odd[i]), left[i])
                for i in numbers
            },
        )

    async def _narrow(self, compared: Comparison, applied: Applied) -> bool:
        """Leave only what old and new both allow; whether nothing more is to be done."""
        entity, complete = compared.entity, True
        dropped, put = [], []
        for difference in compared.differences():
            old, new = difference.old, difference.new
            if old is None:
                complete = False
                continue
            between = None if new is None else entity.narrowed(old, new)
            if between is None:
                dropped.append(old)
                self.dropped(entity.name, entity.key(old))
            elif between != old:
                put.append(between)
            complete = complete and between == new
        await entity.drop(self.bulk, dropped)
        await entity.put(self.bulk, put)
        applied[entity.name, "dropped"] += len(dropped)
        applied[entity.name, "put"] += len(put)
        return complete

    async def _save(self, old: InstanceSettings, new: InstanceSettings, applied: Applied) -> None:
        if old != new:
            await self.bulk.set_instance(
                api_enabled=new.api_enabled, mcp_enabled=new.mcp_enabled, allowlist=new.allowlist
            )
            applied["settings", "put"] += 1

    def _settle(self, compared: Comparison) -> None:
        for i, bucket in compared.buckets.items():
            self.snapshot.settle(compared.entity, i, bucket)

    def _changed(self, entity: Entity[Any, Any]) -> list[int]:
        return self.snapshot.changed(entity, self.seen.digests[entity.name])

    def _remaining(self) -> int:
        return sum(len(self._changed(entity)) for entity in NARROWING)


def _both(one: InstanceSettings, other: InstanceSettings) -> InstanceSettings:
    """The switches that both have on; the list stays until roles and tokens are narrowed."""
    return InstanceSettings(
        api_enabled=one.api_enabled and other.api_enabled,
        mcp_enabled=one.mcp_enabled and other.mcp_enabled,
        allowlist=one.allowlist,
    )


def _batches(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [
        numbers[start : start + BUCKETS_AT_ONCE]
        for start in range(0, len(numbers), BUCKETS_AT_ONCE)
    ]
