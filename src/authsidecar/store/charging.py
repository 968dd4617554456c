"""A claim as charge.lua reads it, and what its answer means."""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from authsidecar.decision.authorize import STALE, Charged, Claim, Stale
from authsidecar.decision.model import Quota
from authsidecar.decision.ratelimit.charges import Charge, slot_of_user
from authsidecar.store.calls import ChargeCalls, Part, Result, Waiter, bulk
from authsidecar.store.clock import RedisClock
from authsidecar.store.cluster_calls import ClusterCalls
from authsidecar.store.keys import Keys, owner_bucket, repeat_digest
from authsidecar.store.records import write_place
from authsidecar.store.refusals import Refusals
from authsidecar.times import UnixMs

REPEAT_FREE_MS: Final = 10_000
"""For how long a repeat of the same client request costs nothing, in milliseconds."""

PACKED: Final = 8192
"""How many claims are kept packed; as many as authorize.py keeps judgements."""

_HASH: Final = " field"
"""Stands in the place of a nonce where a field of a hash is to be proven."""

Pieces = tuple[bytes, bytes, Part]
"""A claim with a repeat key: the KEYS before that one's digest, those after it, and its whole."""

_STATUS_STALE: Final = 0
_STATUS_ADMITTED: Final = 1
_STATUS_REFUSED: Final = 2
_STATUS_REPEATED: Final = 3

ADMITS: Final = frozenset({_STATUS_ADMITTED, _STATUS_REPEATED})
"""What the first number of a result is that admits its claim; `Charging.read` reads any other."""


class Charging:
    """Charges claims, and repeats refusals that need no asking.

    Attributes:
        packed: gives an authenticated request's claim to be begun as often as it is asked.
    """

    def __init__(
        self,
        calls: ChargeCalls | ClusterCalls,
        keys: Keys,
        clock: RedisClock,
        *,
        outdated: Callable[[Claim, int], None],
    ) -> None:
        """Nothing is sent yet.

        Args:
            calls: runs the script.
            keys: the key names.
            clock: set by each answer.
            outdated: told of each claim whose proofs failed: bit 0 is the first proof that it has,
                bit 1 the second, and so on.
        """
        self._calls = calls
        self._enqueue = None if isinstance(calls, ClusterCalls) else calls.enqueue
        self._keys = keys
        self._clock = clock
        self._outdated = outdated
        self._clustered = isinstance(calls, ClusterCalls)
        self._refusals = Refusals()
        # A claim is the same object as long as nothing that it was made of has changed.
        self.packed = lru_cache(PACKED)(self._packed_claim)
        self._slots = lru_cache(PACKED)(_by_slot)

    def now(self) -> UnixMs:
        """The time by Redis's clock."""
        return self._clock.now()

    def tell(self, settled: Callable[[], None]) -> None:
        """Call this once all have their answers who share a call; not on a cluster."""
        if isinstance(self._calls, ChargeCalls):
            self._calls.settled = settled

    def begin(
        self, packed: "PackedClaim", repeat_key: bytes | None, waiter: Waiter
    ) -> Charged | None:
        """Charge a claim of an authenticated request without waiting; not on a cluster.

        Args:
            packed: what is to be charged.
            repeat_key: identifies a client request that the proxy may ask about again.
            waiter: gets the result, to be given to `read`; a StoreError if there is none.

        Returns:
            The answer, if it is known without asking; then the waiter gets nothing.
        """
        claim, part = packed.claim, packed.part
        if repeat_key is None or not claim.counters:  # nothing is counted: nothing is a repeat
            if self._refusals.seen and (quota := self._standing(claim)) is not None:
                return Charged(False, (quota,), self._clock.now())
        else:
            part = self._marked(packed, repeat_key)
        assert self._enqueue is not None  # noqa: S101  # not on a cluster
        self._enqueue(waiter, part)
        return None

    def heard(self, now: UnixMs) -> bool:
        """Redis has just said that it is this time; whether any refusal is remembered."""
        self._clock.set(now)
        if self._refusals.seen:
            self._refusals.forget_old(now)
        return bool(self._refusals.seen)

    def read(self, claim: Claim, result: Result) -> Charged | Stale:
        """What a result says of its claim."""
        read = self._read(claim, result)
        if read is None:
            return STALE
        status, quotas, now = read
        return Charged(status != _STATUS_REFUSED, quotas, now)

    async def charge(
        self, claim: Claim, *, repeat_key: bytes | None, peek: bool = False
    ) -> Charged | Stale:
        """Charge all of a claim's counters or none, if its state is still current.

        With `peek` the answer is the one that a charge would get, and nothing is charged.
        """
        if not claim.counters:
            repeat_key = None  # nothing is counted
        if repeat_key is None and not peek and (quota := self._standing(claim)) is not None:
            return Charged(False, (quota,), self._clock.now())
        if self._clustered:
            return await self._charge_slots(claim, repeat_key, peek=peek)
        if not claim.counters and claim.instance is None and claim.record is None:
            return Charged(True, (), self._clock.now())
        part = self.part(claim, repeat_key, peek=peek)
        return self.read(claim, await self._calls.charge(part))

    async def _charge_slots(
        self, claim: Claim, repeat_key: bytes | None, *, peek: bool
    ) -> Charged | Stale:
        """Charge a cluster: the user's slot first, with the proof, then the team's, the address's.

        What comes later is not charged for a request that the user's own counters refuse.
        """
        repeated, now = False, self._clock.now()
        quotas: tuple[Quota, ...] = ()
        for there in self._slots(claim) if claim.record is not None else _by_slot(claim):
            part = self.part(there, repeat_key, peek=peek or repeated)
            repeat_key = None  # the first slot remembers it for all
            read = self._read(there, await self._calls.charge(part))
            if read is None:
                return STALE
            status, more, now = read
            quotas += more
            if status == _STATUS_REFUSED and not repeated:
                return Charged(False, quotas, now)
            repeated = repeated or status == _STATUS_REPEATED
        return Charged(True, quotas, now)

    def _read(self, claim: Claim, result: Result) -> tuple[int, tuple[Quota, ...], UnixMs] | None:
        """What a script call says of one claim, and what follows from it; None: it is stale."""
        now, (status, stale, *numbers) = result
        counters = claim.counters
        self._clock.set(now)
        if status == _STATUS_STALE:
            self._outdated(claim, stale)
            self.forget_refusals(counters)  # it is judged again, and must ask again
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
            self.forget_refusals(counters)
        return status, quotas, now

    def forget_refusals(self, counters: tuple[Charge, ...]) -> None:
        """Redis has just admitted these, whatever it said of them before."""
        if self._refusals.seen and self._refusals.touches(counters):
            for counter in counters:
                self._refusals.clear(counter)

    def _standing(self, claim: Claim) -> Quota | None:
        """A refusal of one of its counters that stands without asking Redis."""
        if not self._refusals.seen or not self._refusals.touches(claim.counters):
            return None
        now = self._clock.now()
        for counter in claim.counters:
            if (quota := self._refusals.standing(counter, now)) is not None:
                return quota
        return None

    def part(self, claim: Claim, repeat_key: bytes | None, *, peek: bool) -> Part:
        """A claim's part of a script call; that of a charge of a token is packed once."""
        if peek:
            return self._packed(claim, repeat_key, charging=False)
        # The claims of refused strangers come once each, and would push out all others.
        if claim.record is None:
            return self._packed(claim, repeat_key, charging=True)
        packed = self.packed(claim)
        return packed.part if repeat_key is None else self._marked(packed, repeat_key)

    def _packed_claim(self, claim: Claim) -> "PackedClaim":
        return PackedClaim(claim, self._packed(claim, None, charging=True))

    def _marked(self, packed: "PackedClaim", repeat_key: bytes) -> Part:
        """A token's claim with a repeat key, as it is sent."""
        if packed.pieces is None:
            packed.pieces = self._pieces(packed.claim)
        before, after, (key, keys, args, _, packed_args) = packed.pieces
        packed_keys = before + repeat_digest(repeat_key).encode("ascii") + after
        # A named tuple's own constructor takes three times as long.
        return _made(Part, (key, keys, args, packed_keys, packed_args))

    def _pieces(self, claim: Claim) -> Pieces:
        """A token's claim with any repeat key."""
        assert claim.record is not None  # noqa: S101  # it is a token's
        some = b""
        whole = self._packed(claim, some, charging=True)
        proofs = bulk(*self._proofs(claim)[0])
        marker = bulk(self._keys.repeat(slot_of_user(claim.record.user), some))
        at = len(proofs) + marker.index(repeat_digest(some).encode("ascii"))
        after = at + len(repeat_digest(some))
        return whole.packed_keys[:at], whole.packed_keys[after:], whole

    def _proofs(self, claim: Claim) -> tuple[list[str], list[str | bytes | int]]:
        """The keys of what proves that a claim's state is current, and what they should hold."""
        keys: list[str] = []
        proofs: list[str | bytes | int] = []
        if claim.instance is not None:
            keys.append(self._keys.instance_nonce)
            proofs.append(claim.instance.nonce)
        if claim.record is not None:
            keys.append(self._keys.user_nonce(claim.record.user))
            proofs.append(claim.record.nonce)
        for key, place in claim.places:
            keys.append(self._keys.owners(owner_bucket(key)))
            proofs += [_HASH, key, "" if place is None else write_place(place)]
        return keys, proofs

    def _packed(self, claim: Claim, repeat_key: bytes | None, *, charging: bool) -> Part:
        """KEYS and ARGV in the order that charge.lua reads."""
        names, record, counters = self._keys, claim.record, claim.counters
        keys, proofs = self._proofs(claim)
        free_ms = 0 if repeat_key is None else REPEAT_FREE_MS
        form = [len(keys), free_ms, int(charging)]
        if repeat_key is not None:
            home = slot_of_user(record.user) if record is not None else counters[0].tag
            keys.append(names.repeat(home, repeat_key))
        for counter in counters:
            keys.append(names.counter(counter))
            form += [counter.limit.requests, counter.limit.window_ms]
        return Part.of(keys, [json.dumps(form, separators=(",", ":")), *proofs])


class PackedClaim:
    """A claim of an authenticated request as it is sent again and again.

    Attributes:
        claim: what is charged.
        part: its part of a script call where nothing tells a repeat.
        pieces: what that is made of where something does; None: it was not needed yet.
    """

    __slots__ = ("claim", "part", "pieces")

    def __init__(self, claim: Claim, part: Part) -> None:
        self.claim = claim
        self.part = part
        self.pieces: Pieces | None = None


_made: Final = tuple.__new__


def _by_slot(claim: Claim) -> tuple[Claim, ...]:
    """A claim on a cluster, by slot: the user's own first, with the proof of the record.

    The instance-wide state and the places are in slots of their own and cannot be proven.
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
