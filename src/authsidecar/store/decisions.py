"""What one decision needs of Redis, in as few trips as can be.

A warm request costs one trip: the charge, which also proves that the records the request was
judged by are current. All charges that wait in the same tick of the event loop share one script
call; nothing waits for a timer. Records come from a near cache that is never trusted without
that proof, so a change is seen by the very next request.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from math import inf
from typing import Any, Final

from redis.asyncio import Redis

from authsidecar.decision.authorize import Charged, Claim, Stale, StoreError
from authsidecar.decision.model import Credential, Limit, Place, Quota, TokenRecord
from authsidecar.decision.policy import Instance
from authsidecar.decision.ratelimit.charges import Charge
from authsidecar.decision.ratelimit.pace import AddressPace
from authsidecar.store.calls import ChargeCalls
from authsidecar.store.charging import Charging
from authsidecar.store.clock import RedisClock
from authsidecar.store.cluster import Cluster
from authsidecar.store.cluster_calls import ClusterCalls
from authsidecar.store.instance_cache import InstanceCache
from authsidecar.store.keys import Keys
from authsidecar.store.loading import Loader, Unreadable
from authsidecar.store.near_cache import NearCache
from authsidecar.store.place_cache import PlaceCache
from authsidecar.store.shared_loads import SharedLoads
from authsidecar.store.trips import Observe, Trips
from authsidecar.times import UnixMs

INSTANCE_AGE_S: Final = 1.0
"""How long the allowlist and the switches are taken as read on Redis Cluster, in seconds: they are
in another slot than the counters and cannot be proven with a charge."""

PLACE_AGE_S: Final = 5.0
"""How long it is taken as read where a resource lies, in seconds: nothing proves whose it is."""

CANARIES: Final = 4096
"""How many canary tokens that were used are known at the most."""

_READY_LIMIT: Final = Limit(1_000_000, 1000)
"""Of the counter that tells whether Redis is well: never reached, and forgotten in a second."""


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
        unreadable: Unreadable = lambda *_: None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            client: redis-py's asyncio client, decode_responses off, no retries of its own.
            keys: the key names.
            budget_ms: how long one trip may take, in milliseconds.
            cache_records: how many records, and how many places of resources, are kept at the
                most; 0 keeps none.
            cache_max_age_s: after how many seconds they are read again in any case.
            pace: bounds the look-ups of addresses that send bad tokens.
            synced: whether a sync is to fill Redis, also where Redis has forgotten that.
            observe: told of every trip: operation, seconds, kind of error or None.
            looked_up: told of every use of the cache: "hit", "miss" or "stale".
            unreadable: told of each value that cannot be read, whenever it is met.
        """
        anyway: Any = client  # redis-py's own annotations mix sync, async, bytes and str
        self._client = anyway
        self._keys = keys
        self._clustered = isinstance(client, Cluster)
        self._pace = pace or AddressPace()
        self._looked_up = looked_up
        self._clock = RedisClock()
        self._canaries: set[Credential] = set()
        self._loader = Loader(
            client,
            keys,
            ordered=not self._clustered,
            unreadable=unreadable,
            unknown=self._looked_for,
        )
        self._trips = Trips(budget_ms / 1000, observe)
        self._calls: ClusterCalls | ChargeCalls = (
            ClusterCalls(anyway, self._trips)
            if self._clustered
            else ChargeCalls(anyway.connection_pool, self._trips)
        )
        self._charging = Charging(self._calls, keys, self._clock, outdated=self._outdate)
        self._records = NearCache(cache_records, cache_max_age_s)
        self._places = PlaceCache(cache_records, min(cache_max_age_s, PLACE_AGE_S))
        age_s = min(cache_max_age_s, INSTANCE_AGE_S if self._clustered else inf)
        self._instance = InstanceCache(self._loader, self._trips, max_age_s=age_s, synced=synced)
        self._loads = SharedLoads()

    def now(self) -> UnixMs:
        """The time by Redis's clock, from its last answer and this machine's own clock."""
        return self._clock.now()

    @property
    def clock_offset_ms(self) -> float:
        """By how much Redis's clock is ahead of this machine's, in milliseconds."""
        return self._clock.offset_ms

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
        self._clock.set(seconds * 1000 + micros / 1000)

    async def ready(self) -> None:
        """Ask Redis what a request asks, with a counter that is nobody's.

        Raises:
            StoreError: what it would be refused for; never of kind "open".
        """
        claim = Claim((Charge("ready", "ready", "ready", _READY_LIMIT),))
        try:
            await self._calls.charge(self._charging.part(claim, None, peek=False))
            await self.instance(fresh=True)
        except StoreError as error:
            if error.kind != "open":
                raise
            raise StoreError(self._trips.cause, str(error)) from None

    def current(self) -> Instance | None:
        """The instance-wide state that this process holds, or None."""
        return self._instance.current()

    async def instance(self, *, fresh: bool) -> Instance:
        """The instance-wide state; `fresh` reads Redis for this call alone."""
        if fresh:
            return await asyncio.ensure_future(self._instance.load())
        held = self._instance.current()
        return await self._loads.joined("instance", self._instance.load) if held is None else held

    def known(self, credential: Credential) -> TokenRecord | None:
        """The record that this process holds for exactly this id and secret, or None."""
        record = self.held(credential)
        self._looked_up("miss" if record is None else "hit")
        return record

    def holds(
        self,
        instance: Instance,
        record: TokenRecord,
        places: tuple[tuple[str, Place | None], ...] = (),
    ) -> bool:
        """Whether this process holds exactly these, and none need be read again yet."""
        now = time.monotonic()
        return (
            self._instance.holds(instance, now)
            and self._records.holds(record, now)
            and (not places or self._holds_places(places))
        )

    def held(self, credential: Credential) -> TokenRecord | None:
        """The same; not counted as a look-up."""
        now = time.monotonic()
        held = self._records.find(credential, now)
        if held is None:
            return None
        if now > held.due_at and self._loads.under_way(credential) is None:
            self._loads.begin(credential, lambda: self._load_record(credential))
        return held.record

    async def load(self, credential: Credential, *, fresh: bool) -> TokenRecord | None:
        """The record of exactly this id and secret, or None; one answer, in the same time."""
        if fresh:
            return await asyncio.ensure_future(self._load_record(credential))
        joins = self._loads.under_way(credential) is not None
        record = await self._loads.joined(credential, lambda: self._load_record(credential))
        if record is None and joins:
            # That load began before this request, and nothing proves an absence to be current.
            record = await self._loads.joined(credential, lambda: self._load_record(credential))
        return record

    async def places(self, keys: tuple[str, ...]) -> Mapping[str, Place | None]:
        """Where resources lie, by their keys, as of a few seconds ago; None: not known."""
        now = time.monotonic()
        held = {key: known[0] for key in keys if (known := self._places.find(key, now))}
        missing = tuple([key for key in keys if key not in held])
        if not missing:
            return held
        read = await self._loads.joined(("places", missing), lambda: self._load_places(missing))
        return {**held, **read}

    def held_places(self, keys: tuple[str, ...]) -> Mapping[str, Place | None] | None:
        """The same as this process holds it, for all of them, to be proven by the charge.

        On a cluster nothing can be proven, since they are in other slots than the counters.
        """
        if self._clustered:
            return None
        now = time.monotonic()
        found: dict[str, Place | None] = {}
        for key in keys:
            if (known := self._places.find(key, now)) is None:
                return None
            found[key] = known[0]
        return found

    def _holds_places(self, places: tuple[tuple[str, Place | None], ...]) -> bool:
        """Whether this process still holds each of these as it is here."""
        held = self.held_places(tuple([key for key, _ in places]))
        return held is not None and all(held[key] == place for key, place in places)

    async def provable_places(self, keys: tuple[str, ...]) -> Mapping[str, Place | None]:
        """The same, read for this call alone."""
        if not keys:
            return {}
        return await asyncio.ensure_future(self._load_places(keys))

    def is_canary(self, credential: Credential) -> bool:
        """Whether exactly this id and secret were a canary's when they were last looked up."""
        return credential in self._canaries

    def _looked_for(self, credential: Credential, is_canary: bool) -> None:
        if is_canary and len(self._canaries) < CANARIES:
            self._canaries.add(credential)
        else:
            self._canaries.discard(credential)

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

    def charge(
        self, claim: Claim, *, repeat_key: bytes | None, peek: bool = False
    ) -> Coroutine[Any, Any, Charged | Stale]:
        """Charge all of a claim's counters or none, if its state is still current.

        With `peek` the answer is the one that a charge would get, and nothing is charged.
        """
        return self._charging.charge(claim, repeat_key=repeat_key, peek=peek)

    @property
    def charging(self) -> Charging | None:
        """What charges a claim in one call, for who need not wait; None: it takes several."""
        return None if self._clustered else self._charging

    async def charge_and_read(
        self, claim: Claim, others: tuple[Charge, ...]
    ) -> tuple[Charged | Stale, tuple[Quota, ...]]:
        """Charge a claim, and tell what other counters say: they share its script call."""
        reads = [self.charge(Claim((one,)), repeat_key=None, peek=True) for one in others]
        charged, *read = await asyncio.gather(self.charge(claim, repeat_key=None), *reads)
        return charged, tuple(
            [quota for one in read if isinstance(one, Charged) for quota in one.quotas]
        )

    async def close(self) -> None:
        """End what is under way; the client is the caller's to close."""
        await self._calls.close()
        await self._loads.close()
        self._trips.close()

    def _outdate(self, claim: Claim, stale: int) -> None:
        """Drop what failed its proof: bit 0 is the first proof, bit 1 the second, and so on."""
        self._looked_up("stale")
        if claim.instance is not None:
            if stale & 1:
                self._instance.outdate(claim.instance)
            stale >>= 1
        if claim.record is not None:
            if stale & 1:
                self._records.outdate(claim.record)
            stale >>= 1
        for key, _ in claim.places:
            if stale & 1:
                self._places.drop(key)
            stale >>= 1

    async def _load_record(self, credential: Credential) -> TokenRecord | None:
        asked = time.monotonic()  # what is read is at least as new
        record, digest = await self._trips.make("token", self._loader.record(credential))
        if record is None:
            if self._clustered:
                await self._instance.load()  # nothing else proves that the absence means anything
            self._records.absent(credential.token_id, digest)
        else:
            self._records.hold(record, asked)
        return record

    async def _load_places(self, keys: tuple[str, ...]) -> Mapping[str, Place | None]:
        asked = time.monotonic()
        read = await self._trips.make("owner", self._loader.places(keys))
        for key, place in read.items():
            self._places.hold(key, place, asked)
        return read
