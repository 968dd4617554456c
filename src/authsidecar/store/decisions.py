"""What one decision needs of Redis, in as few trips as can be.

A warm request costs one trip: the charge, which also proves that the records the request was
judged by are current. All charges that wait in the same tick of the event loop share one script
call; nothing waits for a timer. Records come from a near cache that is never trusted without
that proof, so a change is seen by the very next request.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from math import inf
from typing import Any, Final, TypeVar

from redis.asyncio import Redis

from authsidecar.decision.authorize import STALE, UNSYNCED, Charged, Claim, Stale, StoreError
from authsidecar.decision.model import Credential, Limit, Quota, TeamId, TokenRecord
from authsidecar.decision.policy import Instance
from authsidecar.decision.ratelimit.charges import Charge, slot_of_user
from authsidecar.decision.ratelimit.pace import AddressPace
from authsidecar.store.calls import AGAIN_S, ChargeCalls, Part, Result
from authsidecar.store.cluster import Cluster
from authsidecar.store.cluster_calls import ClusterCalls
from authsidecar.store.keys import Keys
from authsidecar.store.loading import Loader
from authsidecar.store.near_cache import NearCache
from authsidecar.store.records import (
    SYNC_BEGUN,
    SYNC_COMPLETE,
    SYNC_ENDED,
    Field,
    unchanged,
)
from authsidecar.store.refusals import Refusals
from authsidecar.store.trips import Observe, Trips
from authsidecar.tasks import end
from authsidecar.times import UnixMs

REPEAT_FREE_MS: Final = 10_000
"""For how long a repeat of the same client request costs nothing, in milliseconds."""

INSTANCE_AGE_S: Final = 1.0
"""How long the allowlist and the switches are taken as read on Redis Cluster, in seconds: they are
in another slot than the counters and cannot be proven with a charge."""

OWNER_AGE_S: Final = 5.0
"""How long the owner of a resource is taken as read, in seconds: nothing proves it."""

_READY_LIMIT: Final = Limit(1_000_000, 1000)
"""Of the counter that tells whether Redis is well: never reached, and forgotten in a second."""

_STATUS_STALE: Final = 0
_STATUS_REFUSED: Final = 2
_STATUS_REPEATED: Final = 3

_T = TypeVar("_T")


class DecisionStore:
    """The Store of authorize.py over Redis, alone or as a cluster."""

    def __init__(
        self,
        client: "Redis | Cluster",
        keys: Keys,
        *,
        budget_ms: int = 50,
        cache_records: int = 100_000,
        cache_max_age_s: float = 30.0,
        pace: AddressPace | None = None,
        synced: bool = False,
        observe: Observe = lambda *_: None,
        looked_up: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            client: redis-py's asyncio client, decode_responses off, no retries of its own.
            keys: the key names.
            budget_ms: how long one trip may take, in milliseconds.
            cache_records: how many records, and how many owners of resources, are kept at the
                most; 0 keeps none.
            cache_max_age_s: after how many seconds they are read again in any case.
            pace: bounds the look-ups of addresses that send bad tokens.
            synced: whether a sync is to fill Redis, also where Redis has forgotten that.
            observe: told of every trip: operation, seconds, kind of error or None.
            looked_up: told of every use of the cache: "hit", "miss" or "stale".
        """
        anyway: Any = client  # redis-py's own annotations mix sync, async, bytes and str
        self._client = anyway
        self._keys = keys
        self._cache_records = cache_records
        self._owner_age_s = min(cache_max_age_s, OWNER_AGE_S)
        self._synced = synced
        self._seen_synced = False
        self._clustered = isinstance(client, Cluster)
        self._instance_age_s = min(cache_max_age_s, INSTANCE_AGE_S if self._clustered else inf)
        self._pace = pace or AddressPace()
        self._looked_up = looked_up
        self._loader = Loader(client, keys, ordered=not self._clustered)
        self._trips = Trips(budget_ms / 1000, observe)
        self._calls: ClusterCalls | ChargeCalls = (
            ClusterCalls(anyway, self._trips)
            if self._clustered
            else ChargeCalls(anyway.connection_pool, self._trips)
        )
        self._refusals = Refusals()
        self._records = NearCache(cache_records, cache_max_age_s)
        self._owners: OrderedDict[str, tuple[TeamId | None, float]] = OrderedDict()
        self._instance: tuple[Instance, float] | None = None
        self._loads: dict[object, asyncio.Task[Any]] = {}
        self._clock_offset_ms = 0.0

    def now(self) -> UnixMs:
        """The time by Redis's clock, from its last answer and this machine's own clock."""
        return UnixMs(int(time.time() * 1000 + self._clock_offset_ms))

    @property
    def clock_offset_ms(self) -> float:
        """By how much Redis's clock is ahead of this machine's, in milliseconds."""
        return self._clock_offset_ms

    @property
    def connections(self) -> tuple[int, int]:
        """How many connections to Redis are idle, and how many are used."""
        idle, used = self._calls.connections
        if self._clustered:
            free, taken = self._client.connections
        else:
            (free, _), (taken, _) = self._client.connection_pool.get_connection_count()
        return idle + free, used + taken

    async def ping(self) -> None:
        """Ask Redis for the time, which also sets this process's idea of it."""
        near = {"near": self._keys.instance} if self._clustered else {}
        seconds, micros = await self._trips.make("ping", self._client.time(**near))
        self._clock_offset_ms = seconds * 1000 + micros / 1000 - time.time() * 1000

    async def ready(self) -> None:
        """Ask Redis what a request asks, with a counter that is nobody's.

        Raises:
            StoreError: what it would be refused for; never of kind "open".
        """
        claim = Claim((Charge("ready", "ready", "ready", _READY_LIMIT),))
        try:
            await self._calls.charge(self._part(claim, None, peek=False))
            await self.instance(fresh=True)
        except StoreError as error:
            if error.kind != "open":
                raise
            raise StoreError(self._trips.cause, str(error)) from None

    def current(self) -> Instance | None:
        """The instance-wide state that this process holds, or None."""
        held = self._instance
        return held[0] if held and time.monotonic() - held[1] <= self._instance_age_s else None

    async def instance(self, *, fresh: bool) -> Instance:
        """The instance-wide state; `fresh` reads Redis for this call alone."""
        if fresh:
            return await asyncio.ensure_future(self._load_instance())
        held = self.current()
        return await self._joined("instance", self._load_instance) if held is None else held

    def known(self, credential: Credential) -> TokenRecord | None:
        """The record that this process holds for exactly this id and secret, or None."""
        now = time.monotonic()
        held = self._records.find(credential, now)
        if held is None:
            self._looked_up("miss")
            return None
        if now > held.due_at and self._under_way(credential) is None:
            self._begin(credential, lambda: self._load_record(credential))
        self._looked_up("hit")
        return held.record

    async def load(self, credential: Credential, *, fresh: bool) -> TokenRecord | None:
        """The record of exactly this id and secret, or None; one answer, in the same time."""
        if fresh:
            return await asyncio.ensure_future(self._load_record(credential))
        joins = self._under_way(credential) is not None
        record = await self._joined(credential, lambda: self._load_record(credential))
        if record is None and joins:
            # That load began before this request, and nothing proves an absence to be current.
            record = await self._joined(credential, lambda: self._load_record(credential))
        return record

    async def owner(self, uuid: str) -> TeamId | None:
        """The team of a resource, or None; kept unproven, since resources do not change teams."""
        held = self._owners.get(uuid)
        if held is not None and time.monotonic() - held[1] <= self._owner_age_s:
            self._owners.move_to_end(uuid)
            return held[0]
        return await self._joined(("owner", uuid), lambda: self._load_owner(uuid))

    def may_look_up(self, address: str, credential: Credential) -> bool:
        """Whether this token from this address may cost a look-up now.

        A token that was known and must only be read again takes no place in the pace.
        """
        if self._records.recognises(credential):
            return True
        return self._pace.may_look_up(address, self.now())

    def refused_address(self, address: str, until: UnixMs) -> None:
        """Take note that an address has used up its bucket of failed authentications."""
        self._pace.refuse(address, until)

    async def charge(
        self, claim: Claim, *, repeat_key: bytes | None, peek: bool = False
    ) -> Charged | Stale:
        """Charge all of a claim's counters or none, if its state is still current.

        With `peek` the answer is the one that a charge would get, and nothing is charged.
        """
        if not claim.counters:
            repeat_key = None  # nothing is counted
        if repeat_key is None and not peek and (quota := self._standing(claim)) is not None:
            return Charged(False, (quota,), self.now())
        if self._clustered:
            return await self._charge_slots(claim, repeat_key, peek=peek)
        if not claim.counters and claim.instance is None and claim.record is None:
            return Charged(True, (), self.now())
        part = self._part(claim, repeat_key, peek=peek)
        told = self._told(claim, await self._calls.charge(part))
        if told is None:
            return STALE
        status, quotas, now = told
        return Charged(status != _STATUS_REFUSED, quotas, now)

    async def _charge_slots(
        self, claim: Claim, repeat_key: bytes | None, *, peek: bool
    ) -> Charged | Stale:
        """Charge a cluster: the user's slot first, with the proof, then the team's, the address's.

        What comes later is not charged for a request that the user's own counters refuse.
        """
        repeated, now = False, self.now()
        quotas: tuple[Quota, ...] = ()
        if claim.sent is None:
            claim.sent = _by_slot(claim)
        for there in claim.sent:
            part = self._part(there, repeat_key, peek=peek or repeated)
            repeat_key = None  # the first slot remembers it for all
            told = self._told(there, await self._calls.charge(part))
            if told is None:
                return STALE
            status, more, now = told
            quotas += more
            if status == _STATUS_REFUSED and not repeated:
                return Charged(False, quotas, now)
            repeated = repeated or status == _STATUS_REPEATED
        return Charged(True, quotas, now)

    def _told(self, claim: Claim, result: Result) -> tuple[int, tuple[Quota, ...], UnixMs] | None:
        """What a script call says of one claim, and what follows from it; None: it is stale."""
        now, (status, stale, *numbers) = result
        counters = claim.counters
        self._clock_offset_ms = now - time.time() * 1000
        if status == _STATUS_STALE:
            self._forget(claim, stale)
            self._forget_refusals(counters)  # it is judged again, and must ask again
            return None
        quotas = tuple(
            [
                Quota(counter.scope, counter.limit, numbers[2 * i], UnixMs(numbers[2 * i + 1]))
                for i, counter in enumerate(counters)
            ]
        )
        if status == _STATUS_REFUSED:
            for counter, quota in zip(counters, quotas, strict=True):
                if quota.remaining == 0:
                    self._refusals.note(counter, quota, now)
        else:
            self._forget_refusals(counters)
        return status, quotas, now

    def _forget_refusals(self, counters: tuple[Charge, ...]) -> None:
        if self._refusals:
            for counter in counters:
                self._refusals.clear(counter)

    def _standing(self, claim: Claim) -> Quota | None:
        """A refusal of one of its counters that stands without asking Redis."""
        if not self._refusals:
            return None
        now = self.now()
        for counter in claim.counters:
            if (quota := self._refusals.standing(counter, now)) is not None:
                return quota
        return None

    async def close(self) -> None:
        """End what is under way; the client is the caller's to close."""
        await self._calls.close()
        await end(self._loads.values(), again_s=AGAIN_S)
        self._trips.close()

    def _part(self, claim: Claim, repeat_key: bytes | None, *, peek: bool) -> Part:
        """A claim's part of a script call; that of a plain charge is packed once."""
        if peek or repeat_key is not None:
            return self._packed(claim, repeat_key, "peek" if peek else "charge")
        if claim.sent is None:
            claim.sent = self._packed(claim, None, "charge")
        part: Part = claim.sent
        return part

    def _packed(self, claim: Claim, repeat_key: bytes | None, mode: str) -> Part:
        """KEYS and ARGV in the order that charge.lua reads."""
        names, instance, record, counters = self._keys, claim.instance, claim.record, claim.counters
        keys: list[str] = []
        args: list[str | bytes | int] = [(instance is not None) + (record is not None)]
        if instance is not None:
            keys.append(names.instance_nonce)
            args.append(instance.nonce)
        if record is not None:
            keys.append(names.user_nonce(record.user))
            args.append(record.nonce)
        if repeat_key is not None:
            home = slot_of_user(record.user) if record is not None else counters[0].tag
            keys.append(names.repeat(home, repeat_key))
            args.append(REPEAT_FREE_MS)
        else:
            args.append(0)
        args.append(mode)
        args.append(len(counters))
        for counter in counters:
            keys.append(names.counter(counter))
            args.append(counter.limit.requests)
            args.append(counter.limit.window_ms)
        return Part.of(keys, args)

    def _forget(self, claim: Claim, stale: int) -> None:
        """Drop what failed its proof: bit 0 is the first proof, bit 1 the second."""
        self._looked_up("stale")
        if claim.instance is not None:
            if stale & 1 and self._instance and self._instance[0] is claim.instance:
                self._instance = None
            stale >>= 1
        if claim.record is not None and stale & 1:
            self._records.outdate(claim.record)

    async def _load_instance(self) -> Instance:
        asked = time.monotonic()  # what is read is at least as new
        loaded, synced = await self._trips.make("instance", self._loader.instance())
        if not await self._is_complete(synced):
            self._instance = None
            raise StoreError(UNSYNCED, "instance: the first sync is not complete")
        loaded = unchanged(self._instance[0] if self._instance else None, loaded)
        self._instance = (loaded, asked)
        return loaded

    async def _is_complete(self, synced: Field) -> bool:
        """Whether what Redis holds is all there is: not before the first sync, or after a flush."""
        if synced == SYNC_COMPLETE:
            self._seen_synced = True
            return True
        if synced == SYNC_ENDED:
            self._seen_synced = False
        if synced == SYNC_BEGUN:
            return False
        if self._synced or self._seen_synced:
            return await self._trips.make("instance", self._loader.followed())
        return True

    async def _load_record(self, credential: Credential) -> TokenRecord | None:
        asked = time.monotonic()  # what is read is at least as new
        record, digest = await self._trips.make("token", self._loader.record(credential))
        if record is None:
            if self._clustered:
                await self._load_instance()  # nothing else proves that the absence means anything
            self._records.absent(credential.token_id, digest)
        else:
            self._records.hold(record, asked)
        return record

    async def _load_owner(self, uuid: str) -> TeamId | None:
        asked = time.monotonic()
        team = await self._trips.make("owner", self._loader.owner(uuid))
        if self._cache_records:
            self._owners[uuid] = (team, asked)
            self._owners.move_to_end(uuid)
            if len(self._owners) > self._cache_records:
                self._owners.popitem(last=False)
        return team

    async def _joined(self, key: object, load: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """One load for all who ask at the same time; a caller that leaves does not end it."""
        return await asyncio.shield(self._under_way(key) or self._begin(key, load))

    def _under_way(self, key: object) -> "asyncio.Task[Any] | None":
        """The load of this key that has not ended: what one has found before is no news."""
        task = self._loads.get(key)
        return None if task is None or task.done() else task

    def _begin(
        self, key: object, load: Callable[[], Coroutine[Any, Any, _T]]
    ) -> "asyncio.Task[_T]":
        task = asyncio.ensure_future(load())
        self._loads[key] = task
        task.add_done_callback(lambda done: self._loaded(key, done))
        return task

    def _loaded(self, key: object, task: "asyncio.Task[Any]") -> None:
        if self._loads.get(key) is task:
            del self._loads[key]
        if not task.cancelled():
            task.exception()  # whoever waits has it; where nobody does, it is no leak


def _by_slot(claim: Claim) -> tuple[Claim, ...]:
    """A claim on a cluster, by slot: the user's own first, with the proof of the record.

    The instance-wide state is in a slot of its own and cannot be proven.
    """
    slots: dict[str, list[Charge]] = {}
    if claim.record is not None:
        slots[slot_of_user(claim.record.user)] = []
    for counter in claim.counters:
        slots.setdefault(counter.tag, []).append(counter)
    return tuple(
        Claim(tuple(there), record=claim.record if i == 0 else None)
        for i, there in enumerate(slots.values())
    )
